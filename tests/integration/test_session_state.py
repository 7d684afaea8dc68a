"""What clients leave behind on a real server: seen, cleaned before anybody meets it, or kept with its client."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, settle, value
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_raw import RawClient, bind, execute, parse, sync
from fix_wait import wait_until

LEFT = """select concat_ws(',',
    (select 'set' where current_setting('work_mem') = '77MB' or current_setting('app.tenant', true) <> ''
        or current_setting('default_transaction_isolation') = 'serializable' or current_setting('row_security') = 'off'),
    (select 'role' where current_user <> 'trust_user'),
    (select 'listen' from pg_listening_channels() limit 1),
    (select 'prepare' from pg_prepared_statements where from_sql limit 1),
    (select 'cursor' from pg_cursors where is_holdable limit 1),
    (select 'temp' from pg_class where relnamespace = pg_my_temp_schema() limit 1),
    (select 'lock' from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() limit 1))"""

PG_DUMP = [
    "SET statement_timeout = 0",
    "SET client_encoding = 'UTF8'",
    "SET standard_conforming_strings = on",
    "SELECT pg_catalog.set_config('search_path', '', false)",
    "SET check_function_bodies = false",
    "SET xmloption = content",
    "SET row_security = off",
]

#: kind -> statements that leave it behind, statements that give it back one by one
CASES: dict[str, list[tuple[str, str]]] = {
    "set": [
        ("set work_mem = '77MB'", "reset work_mem"),
        ("set work_mem = '77MB'", "set work_mem to default"),
        ("set session work_mem = '77MB'", "reset all"),
        ("set session characteristics as transaction isolation level serializable", "reset default_transaction_isolation"),
        ("select set_config('work_mem', '77MB', false)", "reset work_mem"),
        ("set app.tenant = 'x'", "reset all"),
        ("; ".join(PG_DUMP), "reset all"),
        ("begin; set work_mem = '77MB'; commit", "discard all"),
    ],
    "role": [
        ("set role pg_monitor", "reset role"),
        ("set role pg_monitor", "set role none"),
        ("set session authorization md5_user", "reset session authorization"),
        ("set session authorization md5_user", "discard all"),
    ],
    "listen": [("listen a", "unlisten a"), ("listen a; listen b", "unlisten *")],
    "prepare": [("prepare p as select 1", "deallocate p"), ("prepare p as select 1; prepare q as select 2", "deallocate all")],
    "cursor": [
        ("declare c cursor with hold for select generate_series(1, 5)", "close c"),
        ("declare c cursor with hold for select 1; declare d cursor with hold for select 2", "close all"),
    ],
    "temp": [
        ("create temp table t (x int)", "drop table t"),
        ("create temp table t as select 1", "discard temp"),
        ("select 1 as x into temp t", "drop table t"),
        ("create temp sequence s", "drop sequence s"),
        ("create temp view v as select 1", "drop view v"),
        ("create table pg_temp.t (x int)", "drop table t"),
    ],
    "lock": [
        ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
        ("select pg_try_advisory_lock_shared(7, 8)", "select pg_advisory_unlock_shared(7, 8)"),
        ("select pg_advisory_lock(x) from generate_series(1, 3) as x", "select pg_advisory_unlock_all()"),
    ],
}

#: statements that leave nothing although they look so, each run in a transaction of its own
HARMLESS = [
    "begin; set local work_mem = '77MB'; commit",
    "begin; set work_mem = '77MB'; rollback",
    "begin; set transaction isolation level serializable; commit",
    "begin; listen a; rollback",
    "begin; create temp table t (x int) on commit drop; commit",
    "begin; create temp table t (x int); rollback",
    "begin; declare c cursor for select 1; commit",
    "begin; declare c cursor with hold for select 1; rollback",
    "select pg_advisory_xact_lock(7)",
    "select set_config('work_mem', '77MB', true)",
    "set application_name = 'me'",
    "set time zone 'UTC'",
    "select 'set work_mem = 1;listen a'",
    "create table if not exists plain (x int)",
]


@pytest.fixture
def start(make_proxy: MakeProxy, database: Database) -> Any:
    """Transaction pooling on one server, with this session_state: `start("pin")`."""

    def make(session_state: str, **settings: object) -> Proxy:
        settings = {"pool_mode": "transaction", "default_pool_size": 1, **settings}
        entry = {"superuser": database.entry(user="postgres"), "app": database.entry()}
        return make_proxy(databases=entry, session_state=session_state, **settings)

    return make


NUMBERS = itertools.count()


def simple(client: RawClient, sql: str) -> None:
    run(client, sql)


def extended(client: RawClient, sql: str) -> None:
    """Each statement by the extended protocol; a transaction's in one pipeline."""
    parts = [part.strip() for part in sql.split("; ")]
    client.send(*(message for part in parts for message in (parse(part), bind(), execute())), sync())
    assert b"E" not in client.read_types()


def prepared(client: RawClient, sql: str) -> None:
    """Each statement prepared in one pipeline, and run in another."""
    for part in sql.split("; "):
        name = f"s{next(NUMBERS)}"
        client.send(parse(part.strip(), name), sync())
        assert client.read_types() == b"1Z"
        client.send(bind(name), execute(), sync())
        assert b"E" not in client.read_types()


WAYS = {"simple": simple, "extended": extended, "prepared": prepared}


def login_for(login: Login, proxy: Proxy, kind: str) -> RawClient:
    """SET SESSION AUTHORIZATION is for superusers."""
    return login(proxy, database="superuser") if kind == "role" else login(proxy)


def left(client: RawClient, kind: str) -> str:
    found = value(client, LEFT.replace("'trust_user'", "'postgres'" if kind == "role" else "'trust_user'"))
    return found or ""


def pinned(proxy: Proxy) -> set[str]:
    return {row["pinned"] for row in proxy.admin("SHOW CLIENTS") if row["database"] != "pgbouncer"} - {""}


def wait_pinned(proxy: Proxy, *expected: str) -> None:
    """What is in doubt is asked of the server after the client has its answer."""
    wait_until(lambda: pinned(proxy) == set(expected), what=f"pinned: {expected}")


# --- ignore -------------------------------------------------------------------------------------------------------------
def test_ignore_leaves_everything_as_pgbouncer_does(start: Any, login: Login) -> None:
    proxy = start("ignore")
    first, second = login(proxy), login(proxy)
    run(first, "set work_mem = '77MB'; create temp table t (); listen a")
    assert left(second, "") == "set,listen,temp"
    wait_pinned(proxy)
    counts = proxy.show("SESSION_STATE", database="app")
    assert counts["session_state"] == "ignore"
    assert not any(counts[kind] for kind in ("set", "listen", "temp"))


# --- warn ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CASES)
def test_warn_logs_once_for_each_client_and_counts_each(start: Any, login: Login, kind: str) -> None:
    proxy = start("warn")
    name = "superuser" if kind == "role" else "app"
    for number, (leaves, gives_back) in enumerate(CASES[kind], 1):
        client = login_for(login, proxy, kind)
        run(client, leaves)
        assert left(client, kind) == kind
        run(client, gives_back)
        run(client, leaves)
        run(client, gives_back)
        assert proxy.show("SESSION_STATE", database=name)[kind] == 2 * number
        line = rf"WARNING C-\d+: {name}/.* leaves session state on its server: {kind} \(session_state = warn\)"
        assert proxy.log_contains(line, times=number), proxy.log()


@pytest.mark.parametrize("way", WAYS)
def test_warn_says_nothing_of_what_leaves_nothing(start: Any, login: Login, way: str) -> None:
    proxy = start("warn")
    client = login(proxy)
    for sql in HARMLESS:
        if way != "prepared" or not sql.startswith("begin"):
            WAYS[way](client, sql)
    assert not proxy.log_contains("leaves session state"), proxy.log()


def test_warn_is_for_session_mode_too(start: Any, login: Login) -> None:
    proxy = start("warn", pool_mode="session")
    client = login(proxy)
    run(client, "listen a")
    prepared(client, "set work_mem = '77MB'")
    assert proxy.log_contains("leaves session state on its server: listen")
    assert proxy.log_contains("leaves session state on its server: set")


# --- reset --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CASES)
def test_reset_lets_nobody_meet_it(start: Any, login: Login, kind: str, way: str) -> None:
    proxy = start("reset")
    first, second = login_for(login, proxy, kind), login_for(login, proxy, kind)
    server = backend_pid(first)
    for leaves, _ in CASES[kind]:
        run(first, "begin")
        ask(second, LEFT if kind != "role" else "select case when current_user <> 'postgres' then 'role' end")
        settle(proxy)  # the second one waits, and is the next to have the server
        WAYS["extended" if way == "prepared" and leaves.startswith("begin") else way](first, leaves.removeprefix("begin; "))
        if not leaves.startswith("begin"):
            run(first, "commit")
        assert not answer(second), leaves
        WAYS["extended" if way == "prepared" and leaves.startswith("begin") else way](first, leaves)
        assert left(second, kind) == "", leaves
        assert left(first, kind) == "", leaves
    assert backend_pid(second) == server, "the server was cleaned, not closed"


def test_reset_keeps_a_transaction_together(start: Any, login: Login) -> None:
    proxy = start("reset")
    client = login(proxy)
    run(client, "begin")
    run(client, "set work_mem = '77MB'; create temp table t as select 5 as x")
    assert value(client, "show work_mem") == "77MB"
    assert value(client, "select x from t") == "5"
    run(client, "commit")
    assert left(client, "") == ""


def test_reset_leaves_prepared_statements_of_the_protocol_usable(start: Any, login: Login) -> None:
    proxy = start("reset")
    client = login(proxy)
    client.send(parse("select 42", "mine"), sync())
    assert client.read_types() == b"1Z"
    run(client, "prepare p as select 1")
    client.send(bind("mine"), execute(), sync())
    assert client.read_types() == b"2DCZ"
    assert left(client, "") == ""


def test_reset_keeps_the_parameters_that_follow_the_client(start: Any, login: Login) -> None:
    proxy = start("reset", track_startup_parameters=1)
    first = login(proxy, application_name="first", options="-c statement_timeout=12s")
    second = login(proxy, application_name="second", options="-c statement_timeout=12s")
    for client, name in ((first, "first"), (second, "second")) * 2:
        run(client, "set work_mem = '77MB'")
        assert value(client, "show application_name") == name
        assert value(client, "show statement_timeout") == "12s"


def test_reset_runs_connect_query_again(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    query = "set search_path = mine; set geqo_seed = 0.25; prepare shared as select 5"
    proxy = make_proxy(
        databases={"app": database.entry(connect_query=f"'{query}'")},
        pool_mode="transaction", default_pool_size=1, session_state="reset",
    )  # fmt: skip
    client = login(proxy)
    for leaves in ("set work_mem = '77MB'", "listen a", "prepare p as select 1"):
        run(client, leaves)
        assert value(client, "show search_path") == "mine"
        assert value(client, "show geqo_seed") == "0.25"
        assert value(client, "execute shared") == "5"
        assert left(client, "") in ("", "prepare")
    assert len(database.servers()) == 1


def test_reset_ignores_errors_of_connect_query(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(
        databases={"app": database.entry(connect_query="'select nonsense'")},
        pool_mode="transaction", default_pool_size=1, session_state="reset",
    )  # fmt: skip
    client = login(proxy)
    server = backend_pid(client)
    run(client, "set work_mem = '77MB'")
    assert left(client, "") == ""
    assert backend_pid(client) == server
    assert proxy.log_contains("error in connect_query", times=2)


def test_reset_of_a_library_closes_the_server(start: Any, login: Login) -> None:
    proxy = start("reset")
    client = login(proxy, database="superuser")
    server = backend_pid(client)
    run(client, "load 'auto_explain'")
    assert value(client, "select current_setting('auto_explain.log_min_duration', true)") is None
    assert backend_pid(client) != server
    assert proxy.log_contains("closing because: session state cannot be reset")


# --- pin ----------------------------------------------------------------------------------------------------------------
def must_wait(proxy: Proxy, client: RawClient) -> None:
    ask(client, "select pg_backend_pid()")
    settle(proxy)
    assert client.is_silent(0.03)


@pytest.mark.parametrize("way", ["simple", "prepared"])
@pytest.mark.parametrize("kind", CASES)
def test_pin_keeps_the_server_until_it_is_given_back(start: Any, login: Login, kind: str, way: str) -> None:
    proxy = start("pin")
    first, second = login_for(login, proxy, kind), login_for(login, proxy, kind)
    server = backend_pid(first)
    for leaves, gives_back in CASES[kind]:
        WAYS["simple" if leaves.startswith("begin") else way](first, leaves)
        wait_pinned(proxy, kind)
        must_wait(proxy, second)
        assert left(first, kind) == kind
        assert backend_pid(first) == server
        WAYS["simple" if gives_back == "discard all" else way](first, gives_back)
        assert answer(second) == str(server), gives_back
        wait_pinned(proxy)
        assert left(second, kind) == ""


@pytest.mark.parametrize("way", WAYS)
def test_pin_lets_go_of_what_leaves_nothing(start: Any, login: Login, way: str) -> None:
    proxy = start("pin")
    first, second = login(proxy), login(proxy)
    for sql in [*HARMLESS, "select pg_try_advisory_lock(1); select pg_advisory_unlock(1)"]:
        if way != "prepared" or not sql.startswith("begin"):
            WAYS[way](first, sql)
            assert value(second, "select 1") == "1"


def test_pin_of_one_kind_outlives_the_end_of_another(start: Any, login: Login) -> None:
    proxy = start("pin")
    client = login(proxy)
    run(client, "listen a; create temp table t (); create temp table u (); set work_mem = '77MB'; set geqo = off")
    wait_pinned(proxy, "set,listen,temp")
    run(client, "drop table t; reset geqo")
    wait_pinned(proxy, "set,listen,temp")
    run(client, "drop table u; reset work_mem")
    wait_pinned(proxy, "listen")
    run(client, "begin; unlisten a; rollback")
    wait_pinned(proxy, "listen")
    run(client, "unlisten a")
    wait_pinned(proxy)


def test_a_pin_ends_for_a_client_with_startup_parameters_of_its_own(start: Any, login: Login) -> None:
    proxy = start("pin", track_startup_parameters=1)
    client = login(proxy, extra_float_digits="2", statement_timeout="12s")
    run(client, "set work_mem = '77MB'")
    wait_pinned(proxy, "set")
    run(client, "set statement_timeout = '5s'; reset work_mem")
    wait_pinned(proxy, "set")
    assert value(client, "show statement_timeout") == "5s"
    run(client, "reset statement_timeout")
    wait_pinned(proxy)
    assert (value(client, "show statement_timeout"), value(client, "show extra_float_digits")) == ("12s", "2")


def test_a_savepoint_takes_back_what_was_given_back(start: Any, login: Login) -> None:
    proxy = start("pin")
    client = login(proxy)
    run(client, "set work_mem = '77MB'")
    run(client, "begin; savepoint s")
    run(client, "reset all")
    run(client, "rollback to s")
    run(client, "commit")
    assert left(client, "") == "set"
    wait_pinned(proxy, "set")
    run(client, "begin; savepoint s; listen a; rollback to s; commit")
    wait_pinned(proxy, "set")


def test_a_pinned_listener_hears_what_is_notified(start: Any, database: Database) -> None:
    proxy = start("pin")
    with proxy.connect() as connection:
        connection.execute("listen news")
        database.sql("select pg_notify('news', 'hello')")
        notify = next(connection.notifies(timeout=10, stop_after=1))
        assert (notify.channel, notify.payload) == ("news", "hello")
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_pinned_session_works_as_one_of_its_own(start: Any) -> None:
    proxy = start("pin")
    with proxy.connect(prepare_threshold=0) as connection:
        connection.execute("create temp table t (x int)")
        with connection.cursor().copy("copy t from stdin") as copy:
            for number in range(100):
                copy.write_row((number,))
        connection.execute("prepare total (int) as select sum(x) from t where x < $1")
        assert connection.execute("execute total (10)").fetchone() == (45,)
        connection.execute("declare c cursor with hold for select x from t order by x")
        assert connection.execute("fetch 3 from c").fetchall() == [(0,), (1,), (2,)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0")
        assert connection.execute("fetch 1 from c").fetchall() == [(3,)]


def test_pins_keep_to_the_limits_of_the_pool(start: Any, login: Login, database: Database) -> None:
    proxy = start("pin", default_pool_size=2, query_wait_timeout=1)
    pins = [login(proxy) for _ in range(2)]
    for client in pins:
        run(client, "listen a")
    assert len(database.servers()) == 2
    assert proxy.show("POOLS", database="app")["sv_active"] == 2
    assert proxy.show("SESSION_STATE", database="app")["pinned"] == 2
    assert [row["pinned"] for row in proxy.admin("SHOW SERVERS")] == ["listen"] * 2
    late = login(proxy)
    ask(late, "select 1")
    assert error(late.read_to_end())["C"] == "53300"
    assert len(database.servers()) == 2
    assert all(value(client, "select 1") == "1" for client in pins)


@pytest.mark.parametrize("how", ["terminate", "vanish", "vanish in a transaction", "vanish in a query"])
def test_a_pinned_client_that_leaves_leaves_a_clean_server(start: Any, login: Login, database: Database, how: str) -> None:
    proxy = start("pin")
    first, second = login(proxy), login(proxy)
    server = backend_pid(first)
    run(first, "set work_mem = '77MB'; create temp table t (); listen a; prepare p as select 1; select pg_advisory_lock(5)")
    must_wait(proxy, second)
    if how == "terminate":
        first.send_message(b"X")
    elif how == "vanish in a transaction":
        run(first, "begin; set geqo = off")
    elif how == "vanish in a query":
        ask(first, "select pg_sleep(60)")
        wait_until(lambda: database.servers(wait_event="PgSleep"))
    if how != "terminate":
        first.reset()
    assert answer(second) == str(server)
    assert left(second, "") == ""
    assert value(second, "show geqo") == "on"


def test_statement_mode_pins_too(start: Any, login: Login) -> None:
    proxy = start("pin", pool_mode="statement")
    first, second = login(proxy), login(proxy)
    run(first, "create temp table t as select 5 as x")
    must_wait(proxy, second)
    assert value(first, "select x from t") == "5"
    run(first, "drop table t")
    answer(second)


def test_pause_waits_for_pinned_servers(start: Any, login: Login) -> None:
    proxy = start("pin")
    client = login(proxy)
    run(client, "listen a")
    with pytest.raises(psycopg.errors.QueryCanceled, match="PAUSE timed out"):
        proxy.admin("PAUSE app TIMEOUT 0.5")
    assert value(client, "select 1") == "1"
    run(client, "unlisten *")
    proxy.admin("PAUSE app TIMEOUT 10")
    proxy.admin("RESUME app")
    assert value(client, "select 1") == "1"


def test_shutdown_waits_for_a_pinned_client(start: Any, login: Login) -> None:
    proxy = start("pin")
    client = login(proxy)
    run(client, "create temp table t as select 5 as x")
    proxy.admin("SHUTDOWN WAIT_FOR_CLIENTS")
    assert value(client, "select x from t") == "5"
    assert proxy.is_running()
    client.send_message(b"X")
    assert proxy.wait_exit() == 0


def test_reconnect_replaces_a_pinned_server_when_it_is_released(start: Any, login: Login) -> None:
    proxy = start("pin")
    client = login(proxy)
    server = backend_pid(client)
    run(client, "listen a")
    proxy.admin("RECONNECT app")
    assert backend_pid(client) == server
    run(client, "unlisten a")
    wait_pinned(proxy)
    assert backend_pid(client) != server


def test_a_server_that_dies_takes_its_pinned_client_along(start: Any, login: Login, database: Database) -> None:
    proxy = start("pin")
    client = login(proxy)
    run(client, "listen a")
    database.kill(backend_pid(client))
    assert error(client.read_to_end())["C"] == "57P01"
    wait_until(lambda: not database.servers())
    assert value(login(proxy), "select 1") == "1"


def test_a_custom_parameter_pins_until_reset_all(start: Any, login: Login) -> None:
    """pg_settings does not show it, so that RESET of one parameter cannot prove that none is left."""
    proxy = start("pin")
    client = login(proxy)
    run(client, "set app.tenant = 'x'; set work_mem = '77MB'")
    run(client, "reset work_mem")
    assert value(client, "show app.tenant") == "x"
    wait_pinned(proxy, "set")
    run(client, "reset all")
    wait_pinned(proxy)


# --- where it is said -----------------------------------------------------------------------------------------------------
def test_user_beats_database_beats_the_rest(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(
        databases={"app": database.entry(), "resets": database.entry(session_state="reset")},
        sections={"users": {"md5_user": "session_state=warn"}},
        session_state="pin",
        pool_mode="transaction",
    )
    for user, name in (("trust_user", "app"), ("trust_user", "resets"), ("md5_user", "resets")):
        run(login(proxy, user=user, database=name), "listen a")
    found = {(row["user"], row["database"]): row["session_state"] for row in proxy.admin("SHOW SESSION_STATE")}
    assert found == {("trust_user", "app"): "pin", ("trust_user", "resets"): "reset", ("md5_user", "resets"): "warn"}
    wait_pinned(proxy, "listen")


def test_reload_changes_it(start: Any, login: Login) -> None:
    proxy = start("ignore")
    first, second = login(proxy), login(proxy)
    run(first, "listen a")
    with proxy.run_with_config(session_state="pin"):
        run(first, "listen a")
        must_wait(proxy, second)
        run(first, "unlisten *")
        answer(second)
    run(first, "listen a")
    assert value(second, "select 1") == "1"


def test_the_questions_are_understood_by_every_server(shared_postgres: Postgres) -> None:
    from pgpool_proxy.session.session_state import CLEANING, QUESTIONS

    with shared_postgres.connect() as connection:
        for _, sql in (*QUESTIONS, *CLEANING):
            connection.execute(sql)
