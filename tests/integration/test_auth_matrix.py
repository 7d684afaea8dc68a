"""Every client method by every server method by what is known: nobody is let in by the proxy's own word alone. LDAP and
PAM have their cells in test_auth_outside, where the directory and the service are.

Who gets in must have proved itself to the proxy, by the method asked for, and the server must have let the proxy in as that
user (CVE-2025-46801: each leg relied on the other).
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import psycopg
import pytest
from fix_postgres import USERS, Postgres
from fix_proxy import MakeProxy, Proxy
from fix_tls import Certificates
from fix_wait import hand_over

CLIENT_METHODS = ("trust", "plain", "md5", "scram-sha-256")
#: what the auth_file holds of the user
STORED = ("plain", "hash", "empty", "nothing")
#: what the client types
TYPED = ("right", "wrong", None)


def stored(postgres: Postgres, user: str, form: str) -> dict[str, str]:
    password = USERS[user][1]
    if form == "nothing":
        return {}
    if form == "empty":
        return {user: ""}
    if form == "hash" and password:
        return {user: str(postgres.sql("select rolpassword from pg_authid where rolname = %s", [user])[0][0])}
    return {user: password or "any-password"}


def expected(client: str, user: str, form: str, typed: str | None, is_md5: bool) -> bool:
    """What must be true for this cell to let in."""
    server = USERS[user][0]
    is_hash = form == "hash" and server != "trust"
    if form == "nothing":
        return False  # nobody knows the user
    if client == "trust":
        proved = True
    elif form == "empty" or typed != "right":
        proved = False
    else:
        proved = not (client == "scram-sha-256" and is_hash and is_md5)
    if not proved:
        return False
    if server == "trust":
        return True
    if form == "empty":
        return False  # nothing to log in to the server with
    if not is_hash:
        return True
    if is_md5:
        return server == "md5"
    # A SCRAM secret is of use only with the keys of the client's own login, and only to a server that asks for SCRAM.
    asked_scram = client in ("md5", "scram-sha-256") or (client == "plain" and typed == "right")
    return server == "scram-sha-256" and asked_scram


@pytest.mark.parametrize("form", STORED)
@pytest.mark.parametrize("client", CLIENT_METHODS)
def test_a_cell_lets_in_exactly_whom_it_should(
    make_proxy: MakeProxy, shared_postgres: Postgres, client: str, form: str
) -> None:
    users: dict[str, str] = {}
    for user in USERS:
        users |= stored(shared_postgres, user, form)
    proxy = make_proxy(auth_type=client, users=users | {"admin_user": "x"}, server_login_retry=0)
    wrong: list[str] = []
    for user, (server, password) in USERS.items():
        is_md5 = users.get(user, "").startswith("md5")
        for typed in TYPED:
            given = {"right": password or "any-password", "wrong": "not-it", None: None}[typed]
            is_in, told = try_login(proxy, user, given)
            if is_in != expected(client, user, form, typed, is_md5):
                wrong.append(f"{client} -> {server}, {form} stored, {typed} typed: {'let in' if is_in else told}")
    assert wrong == []


def try_login(
    proxy: Proxy, user: str, password: str | None, becomes: str | None = None, **keywords: object
) -> tuple[bool, str]:
    """Is it in, as itself (or as `becomes`)? Otherwise why not."""
    try:
        with psycopg.connect(proxy.dsn(user=user, password=password, passfile="/dev/null", **keywords)) as connection:
            return connection.execute("select current_user").fetchone() == (becomes or user,), "another user"
    except psycopg.OperationalError as error:
        return False, str(error)


# --- proofs without a password --------------------------------------------------------------------------------------------
@pytest.fixture
def rules(run_dir: Path) -> Path:
    """An HBA file; `.ident` beside it is its ident file. Only the account that runs the tests is anybody."""
    found = run_dir / f"matrix-{os.urandom(4).hex()}.conf"
    found.write_text("local all all peer map=accounts\nhost all all all reject\n")
    ident = found.with_suffix(".ident")
    ident.write_text("".join(f"accounts {pwd.getpwuid(os.getuid()).pw_name} {user}\n" for user in list(USERS)[:3]))
    hand_over(found, ident)
    return found


@pytest.mark.parametrize("form", STORED)
@pytest.mark.parametrize("client", ["cert", "peer", "reject"])
def test_a_cell_of_a_proof_without_a_password_lets_in_exactly_whom_it_should(
    make_proxy: MakeProxy, shared_postgres: Postgres, certificates: Certificates, rules: Path, client: str, form: str
) -> None:
    """Who has proved itself is known to the servers by what is stored, as with trust: there are no keys and nothing typed."""
    users: dict[str, str] = {}
    for user in USERS:
        users |= stored(shared_postgres, user, form)
    users |= {"admin_user": "x"}
    if client == "cert":
        tls = {"client_tls_sslmode": "verify-full", **certificates.settings(ca=True)}
        proxy = make_proxy(auth_type="cert", users=users, server_login_retry=0, **tls)
    else:
        proxy = make_proxy(
            auth_type="hba", auth_hba_file=rules, auth_ident_file=rules.with_suffix(".ident"), users=users, server_login_retry=0
        )
    wrong: list[str] = []
    for user, (server, _) in USERS.items():
        is_md5 = users.get(user, "").startswith("md5")
        for shown in ("own", "another's"):
            keywords: dict[str, object] = {}
            if client == "cert":
                keywords = {"sslmode": "require", **certificates.client(user if shown == "own" else "somebody")}
            elif client == "peer":
                keywords = {"host": proxy.directory}
            proved = {"cert": shown == "own", "peer": user in list(USERS)[:3], "reject": False}[client]
            is_in, told = try_login(proxy, user, "", **keywords)
            if is_in != (proved and expected("trust", user, form, None, is_md5)):
                wrong.append(f"{client} ({shown}) -> {server}, {form} stored: {'let in' if is_in else told}")
    assert wrong == []


@pytest.mark.parametrize("known", ["entry", "auth_file", "wrong", "nothing"])
def test_a_cell_of_any_becomes_the_forced_user_where_its_password_is_known(
    make_proxy: MakeProxy, postgres: Postgres, known: str
) -> None:
    where = f"host={postgres.host} port={postgres.port} dbname=app"
    passwords = {user: password for user, (_, password) in USERS.items() if password}
    entries = {
        user: f"{where} user={user}" + (f" password={passwords[user]}" if known == "entry" and user in passwords else "")
        for user in USERS
    }
    users = {"auth_file": passwords, "wrong": dict.fromkeys(passwords, "not-it")}.get(known, {})
    proxy = make_proxy(auth_type="any", databases=entries, users=users | {"admin_user": "x"}, server_login_retry=0)
    for user, (server, _) in USERS.items():
        for password in (None, "whatever"):
            is_in, told = try_login(proxy, "whoever", password, becomes=user, dbname=user)
            assert is_in == (server == "trust" or known in ("entry", "auth_file")), (user, known, told)


def test_keys_of_one_users_login_are_of_no_use_to_another(make_proxy: MakeProxy, shared_postgres: Postgres) -> None:
    secrets = stored(shared_postgres, "scram_user", "hash")
    proxy = make_proxy(auth_type="scram-sha-256", users=secrets | {"trust_user": "x"}, server_login_retry=0)
    assert try_login(proxy, "scram_user", "scram-secret")[0]
    assert not try_login(proxy, "scram_user", "x")[0]
    assert try_login(proxy, "trust_user", "x")[0]
    assert not try_login(proxy, "trust_user", "scram-secret")[0]
