"""Who gets in, and how: each method in both roles; and what those who do not get in may learn from it."""

from __future__ import annotations

import hashlib
import time

import psycopg
import pytest
from fix_clients import refusal
from fix_postgres import USERS, Postgres
from fix_proxy import MakeProxy
from fix_raw import MakeRawClient, RawServer, message, startup_message
from fix_wait import cpu_seconds

METHODS = ("trust", "plain", "md5", "scram-sha-256")
PASSWORD_USERS = [user for user, (_, password) in USERS.items() if password]


def secret_of(postgres: Postgres, user: str) -> str:
    """What pg_authid has: an md5 hash or a SCRAM secret."""
    return str(postgres.sql("select rolpassword from pg_authid where rolname = %s", [user])[0][0])


def connect(proxy: object, user: str, password: str | None, **keywords: object) -> str:
    """Log in with psycopg and ask who we are."""
    row = proxy.connect(user=user, password=password, **keywords).execute("select current_user").fetchone()  # type: ignore[attr-defined]
    return str(row[0])


# --- clients to us ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_knows_the_password_gets_in_by_each_method_to_each_kind_of_server(
    make_proxy: MakeProxy, method: str
) -> None:
    users = {name: password or "some-secret" for name, (_, password) in USERS.items()}
    proxy = make_proxy(auth_type=method, users=users, pool_mode="transaction")
    for user, password in users.items():
        assert connect(proxy, user, password) == user


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_a_wrong_an_empty_and_no_password_are_refused_alike(make_proxy: MakeProxy, method: str) -> None:
    proxy = make_proxy(auth_type=method)
    for password in ("wrong", "plain-secret ", "x" * 900):
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            connect(proxy, "plain_user", password)
    assert connect(proxy, "plain_user", "plain-secret") == "plain_user"


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_hashed_secrets_in_the_auth_file_let_their_users_in(
    make_proxy: MakeProxy, postgres: Postgres, method: str
) -> None:
    users = {user: secret_of(postgres, user) for user in ("md5_user", "scram_user")}
    proxy = make_proxy(auth_type=method, users=users)
    for user in users:
        if (method, user) != ("scram-sha-256", "md5_user"):  # no SCRAM proof can be checked against an md5 hash
            assert connect(proxy, user, USERS[user][1]) == user
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            connect(proxy, user, "wrong")


def test_the_keys_of_a_scram_login_pass_through_to_the_server(make_proxy: MakeProxy, postgres: Postgres) -> None:
    """The auth_file has a secret from which the password cannot be had, and the server still wants a proof."""
    proxy = make_proxy(
        auth_type="scram-sha-256", users={"scram_user": secret_of(postgres, "scram_user")}, pool_mode="transaction"
    )
    assert connect(proxy, "scram_user", "scram-secret") == "scram_user"
    assert "rolpassword" not in proxy.log()
    assert "scram-secret" not in proxy.log()
    assert "SCRAM-SHA-256$" not in proxy.log()


def test_scram_is_asked_of_a_user_with_a_scram_secret_although_auth_type_is_md5(
    make_proxy: MakeProxy, postgres: Postgres, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(auth_type="md5", users={"scram_user": secret_of(postgres, "scram_user"), "md5_user": "md5-secret"})
    for user, code in (("scram_user", 10), ("md5_user", 5)):
        client = make_raw_client(proxy.port)
        client.send(startup_message(user))
        assert int.from_bytes(client.read_message().body[:4], "big") == code


def test_trust_lets_in_users_of_the_auth_file_only(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy(auth_type="trust", users={"trust_user": ""})
    assert connect(proxy, "trust_user", None) == "trust_user"
    fields = refusal(make_raw_client(proxy.port), user="plain_user")
    assert (fields["S"], fields["C"]) == ("FATAL", "28000")


def test_any_lets_everybody_in_as_the_forced_user(make_proxy: MakeProxy, postgres: Postgres) -> None:
    entry = f"host={postgres.host} port={postgres.port} dbname=app"
    proxy = make_proxy(
        auth_type="any", users={}, databases={"forced": f"{entry} user=scram_user password=scram-secret", "open": entry}
    )
    assert connect(proxy, "whoever", None, dbname="forced") == "scram_user"
    with pytest.raises(psycopg.OperationalError, match="bouncer config error"):
        connect(proxy, "whoever", None, dbname="open")


# --- what a stranger learns ---------------------------------------------------------------------------------------------
def conversation(make_raw_client: MakeRawClient, port: int, method: str, user: str, database: str) -> list[object]:
    """All that a stranger with a wrong password is told, less what is random."""
    client = make_raw_client(port)
    client.send(startup_message(user, database))
    first = client.read_message()
    found: list[object] = [first.type, first.body[:4], first.body[8:] if method == "md5" else first.body]
    if method == "scram-sha-256":
        initial = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"
        client.send_message(b"p", b"SCRAM-SHA-256\0" + len(initial).to_bytes(4, "big") + initial)
        challenge = client.read_message()
        parts = dict(part.split(b"=", 1) for part in challenge.body[4:].split(b","))
        found += [challenge.type, len(parts[b"r"]), len(parts[b"s"]), parts[b"i"]]
        client.send_message(b"p", b"c=biws,r=" + parts[b"r"] + b",p=" + b"A" * 43 + b"=")
    elif method == "md5":
        client.send_message(b"p", b"md5" + hashlib.md5(b"wrong").hexdigest().encode() + b"\0")
    else:
        client.send_message(b"p", b"wrong\0")
    return [*found, client.read_to_end()]


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_unknown_users_and_databases_look_like_a_wrong_password(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, method: str, postgres: Postgres
) -> None:
    proxy = make_proxy(auth_type=method, databases={"app": f"host={postgres.host} port={postgres.port}"})
    names = proxy.show("LISTS", list="users")["items"]
    known = conversation(make_raw_client, proxy.port, method, "plain_user", "app")
    assert known == conversation(make_raw_client, proxy.port, method, "nobody_knows", "app")
    assert proxy.show("LISTS", list="users")["items"] == names, "a stranger's name is kept"
    assert known == conversation(make_raw_client, proxy.port, method, "plain_user", "nowhere")
    assert known == conversation(make_raw_client, proxy.port, method, "nobody_knows", "nowhere")
    assert known == conversation(make_raw_client, proxy.port, method, "nobody_knows", "pgbouncer")
    (last,) = known[-1]  # type: ignore[misc]
    fields = last.fields()
    assert fields["C"] == "28P01"
    assert fields["M"] == ("SASL authentication failed" if method == "scram-sha-256" else "password authentication failed")


@pytest.mark.parametrize("most", ["salted", "clear"])
@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_a_user_that_does_not_exist_looks_like_most_of_an_auth_file_with_secrets_of_all_kinds(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, postgres: Postgres, method: str, most: str
) -> None:
    """In what is asked for, in what is told, and in what its refusal costs: a derivation, or none."""
    salted = secret_of(postgres, "scram_user").replace("$4096:", "$900000:")
    secrets = {"salted": salted, "clear": "secret", "hashed": "md5" + "0" * 32}
    users = {f"{kind}_{number}": secret for kind, secret in secrets.items() for number in range(6 if kind == most else 2)}
    proxy = make_proxy(auth_type=method, users=users, scram_iterations=1_000_000)
    asked = "scram-sha-256" if (method, most) == ("md5", "salted") else method

    def seen(user: str) -> tuple[object, bool]:
        before = cpu_seconds(proxy.pid)
        found = conversation(make_raw_client, proxy.port, asked, user, "app")
        return found, cpu_seconds(proxy.pid) - before > 0.1

    nobody = seen("nobody")
    assert nobody == seen(f"{most}_0")
    assert nobody[1] == ((method, most) in {("plain", "salted"), ("scram-sha-256", "clear")}), "it costs a derivation"
    if method == "scram-sha-256" or (method, most) == ("md5", "clear"):  # by SCRAM, a hash proves nobody, and it does not show
        assert nobody == seen("hashed_0")


def test_the_salt_of_an_unknown_user_stays_the_same_from_login_to_login(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(auth_type="scram-sha-256")

    def salt(user: str) -> bytes:
        client = make_raw_client(proxy.port)
        client.send(startup_message(user))
        client.read_message()
        initial = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"
        client.send_message(b"p", b"SCRAM-SHA-256\0" + len(initial).to_bytes(4, "big") + initial)
        return client.read_message().body.split(b",")[1]

    assert salt("nobody_knows") == salt("nobody_knows") != salt("nobody_else")
    assert salt("plain_user") == salt("plain_user")


def test_a_known_user_learns_that_the_database_is_unknown_after_its_password(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, postgres: Postgres
) -> None:
    proxy = make_proxy(auth_type="md5", databases={"app": f"host={postgres.host} port={postgres.port}"})
    fields = refusal(make_raw_client(proxy.port), user="md5_user", password="md5-secret", database="nowhere")
    assert (fields["S"], fields["C"], fields["M"]) == ("FATAL", "3D000", "no such database: nowhere")


def test_a_database_that_the_server_does_not_have_is_told_in_the_servers_words(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy()
    fields = refusal(make_raw_client(proxy.port), database="not_on_the_server")
    assert fields["C"] == "3D000"
    assert 'database "not_on_the_server" does not exist' in fields["M"]


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_anything_but_a_proof_ends_a_login(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, method: str
) -> None:
    proxy = make_proxy(auth_type=method, client_login_timeout=1)
    for first in (
        message(b"Q", b"select 1\0"),
        message(b"S"),
        message(b"X"),
        message(b"d", b"data"),
        message(b"p", b""),
        message(b"p", b"x" * 100_000 + b"\0"),
        b"p\xff\xff\xff\xff",
        b"p\0\0\0\0",
        startup_message(),
    ):
        client = make_raw_client(proxy.port)
        client.send(startup_message("plain_user"))
        client.read_message()
        client.send(first)
        assert {found.type for found in client.read_to_end()} <= {b"E"}, first[:20]


# --- we to servers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("user", PASSWORD_USERS)
def test_the_password_of_the_entry_logs_in_to_a_server_of_each_kind(
    make_proxy: MakeProxy, postgres: Postgres, user: str
) -> None:
    entry = f"host={postgres.host} port={postgres.port} dbname=app user={user} password={USERS[user][1]}"
    proxy = make_proxy(databases={"app": entry}, users={"somebody": ""})
    assert connect(proxy, "somebody", None) == user


@pytest.mark.parametrize("user", PASSWORD_USERS)
def test_a_wrong_password_for_the_server_is_told_and_not_tried_again_and_again(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, postgres: Postgres, user: str
) -> None:
    entry = f"host={postgres.host} port={postgres.port} dbname=app user={user} password=wrong-{{}}"
    proxy = make_proxy(databases={"app": entry}, users={"somebody": ""}, server_login_retry=15)
    started = time.monotonic()
    for _ in range(20):
        fields = refusal(make_raw_client(proxy.port), user="somebody")
        assert fields["C"] == "28P01"
        assert f'password authentication failed for user "{user}"' in fields["M"]
    attempts = len([line for line in proxy.log().splitlines() if "server login failed" in line])
    assert attempts < 10 + (time.monotonic() - started) / 5
    assert "wrong-" not in proxy.log()


def test_a_server_that_wants_a_password_when_none_is_known_is_left(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, postgres: Postgres
) -> None:
    entry = f"host={postgres.host} port={postgres.port} dbname=app user=scram_user"
    proxy = make_proxy(databases={"app": entry}, users={"somebody": ""})
    fields = refusal(make_raw_client(proxy.port), user="somebody")
    assert fields["S"] == "FATAL"
    assert fields["M"].startswith("server login") or "password" in fields["M"]


def test_a_server_with_an_odd_authentication_request_is_left(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, raw_server: RawServer
) -> None:
    requests = (
        b"\0\0\0\x02",
        b"\0\0\0\x07",
        b"\0\0\0\x0a" + b"SCRAM-SHA-1\0\0",
        b"\0\0\0\x0a",
        b"\0\0\0\x0b" + b"r=x,s=x,i=1",
        b"\0\0\0\x0c" + b"v=x",
        b"\0\0\0\x05",
        b"\0\0\0\x05" + b"x" * 60_000,
        b"\0\0\x7f\xff",
        b"\0",
        b"",
    )
    entry = f"host=127.0.0.1 port={raw_server.port} password=x"
    databases = {f"d{at}": entry for at in range(len(requests))}
    proxy = make_proxy(databases=databases, users={"somebody": ""}, server_tls_sslmode="disable")
    for at, request in enumerate(requests):
        client = make_raw_client(proxy.port)
        client.send(startup_message("somebody", f"d{at}"))
        peer = raw_server.accept()
        raw_server.read_startup(peer)
        peer.send_message(b"R", request)
        (last,) = client.read_to_end()
        assert last.fields()["S"] == "FATAL", request[:20]
        assert peer.is_closed(), request[:20]


def test_logins_by_scram_with_a_costly_key_derive_it_once(make_proxy: MakeProxy) -> None:
    """Deriving a key costs milliseconds; it is done once, and not on the loop."""
    proxy = make_proxy(auth_type="scram-sha-256", scram_iterations=200_000, pool_mode="transaction")
    connections = [proxy.connect(user="scram_user", password="scram-secret") for _ in range(10)]
    assert [connection.execute("select 1").fetchone() for connection in connections] == [(1,)] * 10

