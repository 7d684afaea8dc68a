"""auth_query: who is looked up and how, what its answers mean, how long they are kept, and what never follows from them."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_clients import Database, Gate
from fix_postgres import Postgres, copy_of_template, locked, template
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, Message, Peer, RawServer, message, startup_message
from fix_tls import reload_by_signal
from fix_wait import wait_until

from pgpool_proxy.auth.exchange import Secret
from pgpool_proxy.auth.scram import build_secret, salted_password


@pytest.fixture(scope="module")
def shared_postgres(run_dir: Path) -> Iterator[Postgres]:
    """A server that lets in roles which these tests make."""
    with locked(run_dir):
        source, bindir = template(run_dir)
    server = copy_of_template(run_dir, source, bindir)
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all md5\n")
    server.restart()
    yield server
    server.stop("immediate")


@pytest.fixture
def roles(shared_postgres: Postgres) -> Iterator[dict[str, str]]:
    """Roles that no auth_file knows, with the password `secret`; q_expired's is out of date, q_nologin may not log in."""
    suffix = f"_{threading.get_native_id()}_{time.monotonic_ns() % 10**9}"
    names = {name: name + suffix for name in ("q_scram", "q_md5", "q_expired", "q_nologin", "q_none")}
    with shared_postgres.connect(dbname="postgres") as connection:
        for name, role in names.items():
            connection.execute(f"set password_encryption = '{'md5' if name == 'q_md5' else 'scram-sha-256'}'")
            options = {"q_expired": "login valid until '2001-01-01'", "q_nologin": "nologin"}.get(name, "login")
            secret = "" if name == "q_none" else " password 'secret'"
            connection.execute(f"create role {role} {options}{secret}")
    yield names
    with shared_postgres.connect(dbname="postgres") as connection:
        for role in names.values():
            connection.execute(f"drop role if exists {role}")


def make(make_proxy: MakeProxy, database: Database, **settings: object) -> Proxy:
    return make_proxy(
        **{
            "databases": {"app": database.entry()},
            "users": {"postgres": "x", ADMIN_USER: ADMIN_PASSWORD},
            "auth_user": "postgres",
            "auth_type": "scram-sha-256",
            "pool_mode": "transaction",
            **settings,
        }
    )


def log_in(proxy: Proxy, user: str, password: str = "secret", **keywords: object) -> str:
    """current_user, or the error."""
    try:
        return str(proxy.sql("select current_user", user=user, password=password, **keywords)[0][0])
    except psycopg.OperationalError as error:
        return str(error)


# --- who gets in ----------------------------------------------------------------------------------------------------------
def test_the_default_query_lets_in_whom_the_server_would(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str]
) -> None:
    proxy = make(make_proxy, database)
    assert log_in(proxy, roles["q_scram"]) == roles["q_scram"]
    for user, password in (
        (roles["q_scram"], "wrong"),
        (roles["q_expired"], "secret"),
        (roles["q_nologin"], "secret"),
        (roles["q_none"], "secret"),
        (roles["q_none"], ""),
        ("nobody", "secret"),
        ("postgres", "secret"),  # auth_user is nobody special: it is known from auth_file, with another password
    ):
        told = log_in(proxy, user, password)
        assert "SASL authentication failed" in told or "no password supplied" in told or "empty password" in told, (user, told)


def test_cve_2025_2291_a_password_that_has_expired_lets_in_nobody(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str], shared_postgres: Postgres
) -> None:
    proxy = make(make_proxy, database)
    user = roles["q_expired"]
    assert "SASL authentication failed" in log_in(proxy, user)
    shared_postgres.sql(f"alter role {user} valid until 'infinity'")
    assert log_in(proxy, user) == user
    shared_postgres.sql(f"alter role {user} valid until '2001-01-01'")
    assert "SASL authentication failed" in log_in(proxy, user)


def test_md5_users_get_in_by_md5_and_plain(make_proxy: MakeProxy, database: Database, roles: dict[str, str]) -> None:
    proxy = make(make_proxy, database, auth_type="md5")
    assert log_in(proxy, roles["q_md5"]) == roles["q_md5"]
    assert log_in(proxy, roles["q_scram"]) == roles["q_scram"]
    assert "password authentication failed" in log_in(proxy, roles["q_md5"], "wrong")


def test_auth_dbname_and_auth_user_of_a_database_come_before_the_global_ones(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str], shared_postgres: Postgres
) -> None:
    entry = database.entry(auth_user="postgres", auth_dbname="lookups")
    lookups = f"host={shared_postgres.host} port={shared_postgres.port} dbname=other"
    proxy = make(make_proxy, database, databases={"app": entry, "lookups": lookups}, auth_user="nobody", auth_dbname="none")
    assert log_in(proxy, roles["q_scram"]) == roles["q_scram"]
    assert database.servers(usename="postgres") == []


def test_a_missing_auth_dbname_is_a_config_error(make_proxy: MakeProxy, database: Database, roles: dict[str, str]) -> None:
    proxy = make(make_proxy, database, auth_dbname="none")
    assert "bouncer config error" in log_in(proxy, roles["q_scram"])


def test_a_password_changed_on_the_server_counts_at_the_next_login(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str], shared_postgres: Postgres
) -> None:
    proxy = make(make_proxy, database)
    user = roles["q_scram"]
    assert log_in(proxy, user) == user
    shared_postgres.sql(f"alter role {user} password 'another'")
    assert "SASL authentication failed" in log_in(proxy, user)
    assert log_in(proxy, user, "another") == user


def test_the_pools_servers_of_a_forced_user_are_not_the_lookups(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str]
) -> None:
    proxy = make(make_proxy, database, databases={"app": database.entry(user="trust_user", password="x")})
    assert log_in(proxy, roles["q_scram"]) == "trust_user"
    assert {row["usename"] for row in database.servers()} == {"trust_user", "postgres"}


# --- odd answers ----------------------------------------------------------------------------------------------------------
ODD = {
    "no row": ("select 'x'::text, 'y'::text where false", "password authentication failed"),
    "NULL secret": ("select $1::text, NULL::text", "password authentication failed"),
    "empty secret": ("select $1::text, ''::text", "password authentication failed"),
    "NULL name": ("select NULL::text, 'secret'::text where $1 is not null", "bouncer config error"),
    "another name": ("select 'postgres'::text, 'secret'::text where $1 is not null", "bouncer config error"),
    "two rows": ("select $1::text, 'secret'::text union all select $1::text, 'secret'", "bouncer config error"),
    "one column": ("select $1::text", "bouncer config error"),
    "three columns": ("select $1::text, 'secret'::text, 1", "bouncer config error"),
    "no columns": ("set application_name = 'x'", "bouncer config error"),
    "error": ("select 1/0, $1::text", "bouncer config error"),
    "syntax error": ("selekt", "bouncer config error"),
    "copy": ("copy (select 1) to stdout", "bouncer config error"),
}


@pytest.mark.parametrize("case", ODD)
def test_cve_2015_6817_every_odd_answer_refuses_and_the_next_login_works(
    make_proxy: MakeProxy, database: Database, case: str
) -> None:
    query, told = ODD[case]
    proxy = make(make_proxy, database, auth_type="plain", auth_query=query)
    for password in ("secret", "y", "x"):
        assert told in log_in(proxy, "trust_user", password)
    proxy.settings["auth_query"] = "select $1::text, 'secret'::text"
    reload_by_signal(proxy)
    assert log_in(proxy, "trust_user") == "trust_user"


def test_no_answer_meets_client_login_timeout(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make(
        make_proxy, database, auth_type="plain", client_login_timeout=1, auth_query="select $1::text, pg_sleep(20)::text"
    )
    assert "client_login_timeout" in log_in(proxy, "trust_user")


def test_a_lookup_server_that_cannot_be_had_refuses(make_proxy: MakeProxy, roles: dict[str, str]) -> None:
    proxy = make_proxy(
        databases={"app": "host=127.0.0.1 port=1"}, users={"postgres": "x"}, auth_user="postgres", auth_type="plain"
    )
    assert "bouncer config error" in log_in(proxy, roles["q_scram"])


# --- what the client asks for never gets there ----------------------------------------------------------------------------
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_cve_2025_12819_the_clients_parameters_are_not_the_lookups(
    make_proxy: MakeProxy, database: Database, pool_mode: str
) -> None:
    database.sql("create schema evil")
    database.sql("create table evil.fake_users (name text, secret text)")
    database.sql("insert into evil.fake_users values ('trust_user', 'evil')")
    database.sql("create table public.fake_users (name text, secret text)")
    database.sql("insert into public.fake_users values ('trust_user', 'good')")
    proxy = make(
        make_proxy, database, auth_type="plain", pool_mode=pool_mode, track_extra_parameters="IntervalStyle, search_path",
        auth_query="select name, secret from fake_users where name = $1", default_pool_size=1,
    )  # fmt: skip
    evil = "-c search_path=evil"
    assert "password authentication failed" in log_in(proxy, "trust_user", "evil", options=evil)
    assert log_in(proxy, "trust_user", "good", options=evil) == "trust_user"
    assert "password authentication failed" in log_in(proxy, "trust_user", "evil")


# --- sharing and keeping --------------------------------------------------------------------------------------------------
@pytest.fixture
def counted(database: Database) -> Callable[[], int]:
    """An auth_query that counts how often it was asked."""
    database.sql("create sequence asked")

    def count() -> int:
        last, called = database.sql("select last_value, is_called from asked")[0]
        return int(last) if called else 0

    return count


COUNTING = "select $1::text, case when nextval('asked') > 0 then 'secret' end"


def test_without_a_ttl_every_login_asks(make_proxy: MakeProxy, database: Database, counted: Callable[[], int]) -> None:
    proxy = make(make_proxy, database, auth_type="plain", auth_query=COUNTING)
    for _ in range(3):
        assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 3


def test_answers_are_kept_until_a_password_does_not_match_or_reload_or_reconnect(
    make_proxy: MakeProxy, database: Database, counted: Callable[[], int]
) -> None:
    proxy = make(make_proxy, database, auth_type="plain", auth_query=COUNTING, auth_query_cache_ttl=60)
    for _ in range(3):
        assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 1
    assert "authentication failed" in log_in(proxy, "trust_user", "wrong")
    assert counted() == 2
    assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 2
    reload_by_signal(proxy)
    assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 3
    proxy.admin("RECONNECT")
    assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 4


def secret(form: str, word: str) -> str:
    """What the table of users holds."""
    if form == "md5":
        return "md5" + hashlib.md5(f"{word}somebody".encode()).hexdigest()
    if form == "scram":
        salt, iterations = word.encode() * 6, 4096
        return build_secret(salted_password(word.encode(), salt, iterations), salt, iterations).formatted().decode()
    return word


@pytest.fixture
def users_table(database: Database) -> Callable[[str], None]:
    """Sets what a table of users holds for `somebody`."""
    database.sql("create table users (name text, secret text)")

    def put(found: str) -> None:
        database.sql("delete from users")
        database.sql("insert into users values ('somebody', %s)", [found])

    return put


def make_with_table(make_proxy: MakeProxy, database: Database, **settings: object) -> Proxy:
    """Logins of `somebody` become trust_user on the server, whatever the secret."""
    return make(
        make_proxy, database, databases={"app": database.entry(user="trust_user", password="x"), "lookups": database.entry()},
        auth_dbname="lookups", auth_query_cache_ttl=60, auth_query="select name, secret from public.users where name = $1",
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "old", "new", "is_saved"),
    [
        ("plain", "plain", "plain", True),
        ("plain", "md5", "scram", True),
        ("plain", "scram", "md5", True),
        ("md5", "plain", "md5", True),
        ("md5", "md5", "plain", True),
        ("md5", "md5", "scram", False),
        ("md5", "scram", "md5", False),
        ("scram-sha-256", "plain", "plain", True),
        ("scram-sha-256", "scram", "plain", True),
        ("scram-sha-256", "md5", "plain", True),
        ("scram-sha-256", "scram", "scram", False),  # the salt of the old secret has been sent
        ("scram-sha-256", "plain", "md5", False),
    ],
)
def test_a_password_that_was_changed_while_the_old_one_is_kept_is_asked_for_anew(
    make_proxy: MakeProxy,
    database: Database,
    users_table: Callable[[str], None],
    method: str,
    old: str,
    new: str,
    is_saved: bool,
) -> None:
    users_table(secret(old, "old"))
    proxy = make_with_table(make_proxy, database, auth_type=method)
    can_log_in = (method, old) != ("scram-sha-256", "md5")
    assert (log_in(proxy, "somebody", "old") == "trust_user") is can_log_in
    users_table(secret(new, "new"))
    told = log_in(proxy, "somebody", "new")
    assert (told == "trust_user") is is_saved, told
    if (method, new) != ("scram-sha-256", "md5"):
        assert log_in(proxy, "somebody", "new") == "trust_user"
    assert "authentication failed" in log_in(proxy, "somebody", "old")


def test_a_password_that_was_changed_is_asked_for_anew_by_every_worker(
    make_proxy: MakeProxy, database: Database, users_table: Callable[[str], None]
) -> None:
    users_table(secret("scram", "old"))
    proxy = make_with_table(make_proxy, database, auth_type="scram-sha-256", workers=2)
    for _ in range(4):
        assert log_in(proxy, "somebody", "old") == "trust_user"
    users_table(secret("scram", "new"))
    log_in(proxy, "somebody", "new")  # one worker notices
    for _ in range(4):
        assert "authentication failed" in log_in(proxy, "somebody", "old")
        assert log_in(proxy, "somebody", "new") == "trust_user"


def test_a_wrong_password_is_held_against_one_new_answer_only(
    make_proxy: MakeProxy, database: Database, counted: Callable[[], int]
) -> None:
    proxy = make(make_proxy, database, auth_type="plain", auth_query=COUNTING, auth_query_cache_ttl=60)
    assert "authentication failed" in log_in(proxy, "trust_user", "wrong")  # against an answer that was new
    assert counted() == 1
    for asked in (2, 3):
        assert "authentication failed" in log_in(proxy, "trust_user", "wrong")
        assert counted() == asked
    assert log_in(proxy, "trust_user") == "trust_user"
    assert counted() == 3


@pytest.mark.parametrize("change", ["delete from users", "drop table users", "update users set secret = ''"])
def test_a_user_that_has_gone_while_its_answer_is_kept_is_refused_like_a_wrong_password(
    make_proxy: MakeProxy, database: Database, users_table: Callable[[str], None], change: str
) -> None:
    users_table("secret")
    proxy = make_with_table(make_proxy, database, auth_type="plain")
    assert log_in(proxy, "somebody") == "trust_user"
    database.sql(change)
    assert "password authentication failed" in log_in(proxy, "somebody", "wrong")
    assert "failed" in log_in(proxy, "somebody") or "config error" in log_in(proxy, "somebody")


# --- what a stranger learns -----------------------------------------------------------------------------------------------
def test_an_unknown_database_is_looked_up_like_any_other(
    make_proxy: MakeProxy, database: Database, counted: Callable[[], int]
) -> None:
    proxy = make(
        make_proxy, database, databases={"app": database.entry(), "lookups": database.entry()}, auth_dbname="lookups",
        auth_type="plain", auth_query=COUNTING,
    )  # fmt: skip
    assert "password authentication failed" in log_in(proxy, "trust_user", "wrong")
    assert "password authentication failed" in log_in(proxy, "trust_user", "wrong", dbname="nowhere")
    assert counted() == 2
    assert "no such database: nowhere" in log_in(proxy, "trust_user", dbname="nowhere")
    assert counted() == 3


@pytest.mark.parametrize("for_all", [True, False])
def test_an_unknown_user_is_asked_for_what_most_of_those_are_that_were_found(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, for_all: bool
) -> None:
    """Most, not the last one; and whatever auth_file has, since none of them is in it."""
    salted = Secret.of_scram(build_secret(bytes(32), b"salt" * 4, 4096)).value.decode()
    proxy = make(
        make_proxy, database, databases={"app": database.entry() if for_all else f"{database.entry()} auth_user=postgres"},
        auth_user="postgres" if for_all else "", auth_type="md5",
        auth_query="select $1::text, case left($1, 1)"
        f" when 's' then '{salted}' when 'm' then 'md5' || repeat('0', 32) when 'p' then 'secret' end",
    )  # fmt: skip

    def asked(user: str) -> int:
        client = make_raw_client(proxy.port)
        client.send(startup_message(user))
        return int.from_bytes(client.read_message().body[:4], "big")

    assert asked("nobody") == 10
    assert [asked(user) for user in ("s1", "s2", "s3")] == [10] * 3
    assert [asked("m1") for _ in range(5)] == [5] * 5
    assert asked("nobody") == 10
    assert [asked(user) for user in ("p1", "p2", "p3")] == [5] * 3
    assert asked("nobody") == 5


def test_an_unknown_database_without_anybody_to_ask_takes_as_long(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make(
        make_proxy, database, auth_type="plain",
        auth_query="select $1::text, case when pg_sleep(0.5) is null then 'x' end where $1 <> 'trust_user'",
    )  # fmt: skip
    for dbname in ("app", "nowhere"):
        start = time.monotonic()
        assert "password authentication failed" in log_in(proxy, "nobody", dbname=dbname)
        assert time.monotonic() - start >= 0.5
    assert not proxy.log_contains("no such database|is not configured")


def test_concurrent_logins_of_one_user_share_a_lookup(
    make_proxy: MakeProxy, database: Database, counted: Callable[[], int], gate: Gate
) -> None:
    asked = "case when nextval('asked') > 0 then 'secret' end"
    proxy = make(make_proxy, database, auth_type="plain", auth_query=gate.sql(f"$1::text, {asked}"))
    told: list[str] = []
    threads = [threading.Thread(target=lambda: told.append(log_in(proxy, "trust_user"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: proxy.show("LISTS", list="login_clients")["items"] == 8)
    gate.wait()
    gate.open()
    for thread in threads:
        thread.join()
    assert told == ["trust_user"] * 8
    assert counted() == 1


def test_lookups_keep_within_the_pool_and_count_no_client(
    make_proxy: MakeProxy, database: Database, roles: dict[str, str]
) -> None:
    proxy = make(make_proxy, database, default_pool_size=1, max_client_conn=3, auth_type="plain")
    users = [roles["q_scram"], roles["q_md5"], *["nobody"] * 4]
    for user in users * 3:
        log_in(proxy, user)
    assert len(database.servers(usename="postgres")) == 1
    kept = [proxy.connect(user=roles["q_md5"], password="secret") for _ in range(3)]
    assert "max_client_conn" in log_in(proxy, roles["q_md5"])
    for connection in kept:
        connection.close()


# --- on the wire ----------------------------------------------------------------------------------------------------------
COLUMN = b"\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)


def read_lookup(peer: Peer) -> list[Message]:
    return peer.read_until(b"S")


def test_the_name_is_a_text_parameter_and_the_query_is_sent_as_it_stands(
    make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: Any
) -> None:
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, users={"asker": "x"}, auth_user="asker",
        auth_type="plain", server_tls_sslmode="disable", auth_query="select name, secret from users where name = $1",
    )  # fmt: skip
    name = "x' or true --"
    client = make_raw_client(proxy.port)
    client.send(startup_message(user=name))
    peer = raw_server.accept_login()
    parse, bind, describe, execute, _ = read_lookup(peer)
    assert parse.body == b"\0select name, secret from users where name = $1\0" + struct.pack("!hi", 1, 25)
    assert bind.body == b"\0\0" + struct.pack("!hhi", 0, 1, len(name)) + name.encode() + struct.pack("!h", 0)
    assert (describe.body, execute.body[:1]) == (b"P\0", b"\0")
    peer.send(
        message(b"1"), message(b"2"),
        message(b"T", struct.pack("!h", 2) + b"".join(name_of_column + COLUMN for name_of_column in (b"n", b"s"))),
        message(b"D", struct.pack("!hi", 2, len(name)) + name.encode() + struct.pack("!i", 6) + b"secret"),
        message(b"C", b"SELECT 1\0"), message(b"Z", b"I"),
    )  # fmt: skip
    assert client.read_message().body == struct.pack("!i", 3)
    client.send_message(b"p", b"wrong\0")
    assert client.read_message().fields()["M"] == "password authentication failed"


@pytest.mark.parametrize(
    "answer", [b"", message(b"D", b"\0\2\0\0\0\xff"), message(b"T", b""), b"\0" * 20, message(b"G", b"\0\0\0")]
)
def test_a_hostile_answer_refuses_the_login_and_nothing_else(
    make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: Any, answer: bytes
) -> None:
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, users={"asker": "x"}, auth_user="asker",
        auth_type="plain", server_tls_sslmode="disable",
    )  # fmt: skip
    client = make_raw_client(proxy.port)
    client.send(startup_message(user="somebody"))
    peer = raw_server.accept_login()
    read_lookup(peer)
    peer.send(answer)
    peer.close()
    told = client.read_message()
    assert told.type == b"E"
    assert told.fields()["M"] == "bouncer config error"
    assert proxy.is_running()
