"""What time brings to clients and servers: each timeout ends what it says, and nothing else."""

from __future__ import annotations

import time

import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, refusal, run, settle, value
from fix_postgres import Postgres
from fix_proxy import MakeProxy
from fix_raw import MakeRawClient, RawServer, message, startup_message
from fix_tcp import MakeMiddleman
from fix_wait import wait_until


def test_query_wait_timeout_sends_a_waiting_client_away_and_nobody_else(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1, query_wait_timeout=0.4
    )
    holder, waiting = login(proxy), login(proxy)
    run(holder, "begin")
    started = time.monotonic()
    ask(waiting, "select 1")
    fields = error(waiting.read_to_end())
    assert time.monotonic() - started >= 0.4
    assert (fields["S"], fields["C"], fields["M"]) == ("FATAL", "53300", "query_wait_timeout")
    assert value(holder, "select 2") == "2"
    run(holder, "commit")
    assert value(login(proxy), "select 3") == "3"


def test_query_wait_notify_tells_a_waiting_client_that_it_waits(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1, query_wait_notify=1
    )
    holder, waiting = login(proxy), login(proxy)
    run(holder, "begin")
    ask(waiting, "select 1")
    notice = waiting.read_message()
    assert notice.type == b"N"
    assert notice.fields()["M"].startswith("No server connection available in postgres backend")
    run(holder, "commit")
    assert answer(waiting) == "1"


def test_a_server_past_its_lifetime_is_closed_when_it_is_released_and_not_before(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1, server_lifetime=0.5
    )
    client = login(proxy)
    run(client, "begin")
    first = backend_pid(client)
    run(client, "select pg_sleep(0.8)")
    assert backend_pid(client) == first
    run(client, "commit")
    wait_until(lambda: first not in database.pids())
    assert backend_pid(client) != first
    proxy.wait_log("closing because: server lifetime over")


def test_an_idle_server_is_closed_after_server_idle_timeout(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", server_idle_timeout=0.3)
    client = login(proxy)
    run(client, "begin")
    run(client, "select pg_sleep(0.6)")
    assert len(database.pids()) == 1
    run(client, "commit")
    wait_until(lambda: database.pids() == [])
    proxy.wait_log("closing because: server idle timeout")
    assert value(client, "select 1") == "1"


@pytest.mark.parametrize("what", ["accepts and says nothing", "does not even accept"])
def test_server_connect_timeout_ends_an_attempt_that_hangs(
    make_proxy: MakeProxy,
    make_raw_client: MakeRawClient,
    make_middleman: MakeMiddleman,
    raw_server: RawServer,
    what: str,
) -> None:
    middleman = make_middleman(raw_server.port)
    if "not even" in what:
        middleman.deaf_listen()
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port}"}, server_connect_timeout=0.5, server_login_retry=0.2
    )
    started = time.monotonic()
    fields = refusal(make_raw_client(proxy.port))
    assert time.monotonic() - started >= 0.4
    assert fields["C"] == "08006"
    assert "connect timeout" in fields["M"]
    assert "server_login_retry" in fields["M"]


def test_clients_are_told_at_once_while_servers_cannot_be_had_and_served_soon_after_they_can(
    make_proxy: MakeProxy, private_postgres: Postgres, make_raw_client: MakeRawClient, login: Login
) -> None:
    proxy = make_proxy(server=private_postgres, pool_mode="transaction", server_login_retry=15)
    client = login(proxy)
    value(client, "select 1")
    private_postgres.stop()
    proxy.wait_log("closing because: terminating connection due to administrator command|idle server got dirty")
    newcomer = login(proxy)  # the parameters of the servers are known: it gets in
    ask(newcomer, "select 1")
    proxy.wait_log("connect failed")
    started = time.monotonic()
    private_postgres.start()
    assert answer(newcomer) == "1"
    assert time.monotonic() - started < 14  # not server_login_retry
    assert value(client, "select 'still here'") == "still here"


def test_a_first_login_is_refused_with_the_cause_while_the_server_is_down(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, make_middleman: MakeMiddleman, database: Database, login: Login
) -> None:
    middleman = make_middleman(database.server.port)
    middleman.refuse()
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        server_login_retry=15,
    )
    for _ in range(3):
        fields = refusal(make_raw_client(proxy.port))
        assert fields["C"] == "08006"
        assert fields["M"].startswith("server login has been failing, cached error: connect failed")
    middleman.listen()

    def is_let_in() -> bool:
        try:
            return value(login(proxy), "select 1") == "1"
        except AssertionError:
            return False

    wait_until(is_let_in, 14, "it is let in, before server_login_retry")


def test_a_server_that_is_starting_up_keeps_those_who_are_in_waiting(
    make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: MakeRawClient
) -> None:
    """57P03 is over soon: nobody is told of it."""
    entry = {"app": f"host={raw_server.host} port={raw_server.port}"}
    proxy = make_proxy(databases=entry, pool_mode="transaction", server_tls_sslmode="disable", workers=1)
    client = make_raw_client(proxy.port)
    client.send(startup_message())
    server = raw_server.accept_login()
    client.read_until(b"Z")
    server.close()
    wait_until(lambda: not proxy.admin("SHOW SERVERS"))
    ask(client, "select 1")
    for _ in range(2):
        refusing = raw_server.accept()
        raw_server.read_startup(refusing)
        refusing.send(message(b"E", b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"))
        refusing.close()
    server = raw_server.accept_login()
    assert server.read_message() == (b"Q", b"select 1\0")
    server.send(message(b"C", b"SELECT 0\0"), message(b"Z", b"I"))
    assert client.read_types() == b"CZ"
    assert not proxy.log_contains("pooler error")


def test_without_backoff_queries_are_refused_while_the_server_is_down_as_by_pgbouncer(
    make_proxy: MakeProxy, make_middleman: MakeMiddleman, database: Database, login: Login
) -> None:
    middleman = make_middleman(database.server.port)
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        server_login_retry=2,
        server_login_retry_backoff=0,
    )
    waiting, refused = login(proxy), login(proxy)
    assert value(waiting, "select 1") == "1"
    middleman.refuse()
    middleman.drop()
    proxy.wait_log("closing because: server closed the connection")
    asked = time.monotonic()
    ask(waiting, "select 'waited'")
    proxy.wait_log("connect failed")
    ask(refused, "select 1")
    assert error(refused.read_to_end())["M"].startswith("server login has been failing, cached error: connect failed")
    middleman.listen()
    assert answer(waiting) == "waited"
    assert time.monotonic() - asked >= 2
    assert proxy.log().count("server login failed") == 1


def test_a_failing_server_is_not_hammered(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, make_middleman: MakeMiddleman, raw_server: RawServer
) -> None:
    middleman = make_middleman(raw_server.port)
    middleman.up.cut_after = 0
    proxy = make_proxy(databases={"app": f"host=127.0.0.1 port={middleman.port}"}, server_login_retry=15)
    deadline = time.monotonic() + 1.5
    attempts = 0
    while time.monotonic() < deadline or attempts <= 10:
        assert refusal(make_raw_client(proxy.port))["C"] == "08006"
        attempts += 1
    assert middleman.accepted < 10


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0", startup_message()[:-4]], ids=["nothing", "1", "3", "most"])
def test_client_login_timeout_ends_a_login_that_does_not_go_on(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, sent: bytes
) -> None:
    proxy = make_proxy(client_login_timeout=0.4)
    client = make_raw_client(proxy.port)
    started = time.monotonic()
    client.send(sent)
    fields = error(client.read_to_end())
    assert time.monotonic() - started >= 0.4
    assert fields["M"] == "client_login_timeout"


def test_client_login_timeout_ends_a_login_that_owes_its_password(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(client_login_timeout=1, auth_type="scram-sha-256")
    client = make_raw_client(proxy.port)
    client.send(startup_message("scram_user"))
    assert client.read_message().type == b"R"
    client.send(message(b"p", b"SCRAM-SHA-256\0")[:7])
    assert error(client.read_to_end())["M"] == "client_login_timeout"


def test_a_client_that_waits_for_the_first_server_is_told_that_the_server_is_down(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, raw_server: RawServer
) -> None:
    proxy = make_proxy(databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, client_login_timeout=0.5)
    fields = refusal(make_raw_client(proxy.port))
    assert fields["C"] == "08006"
    assert fields["M"] == "client_login_timeout (server down)"


@pytest.mark.parametrize(
    ("setting", "sql", "sqlstate", "text"),
    [
        ("idle_transaction_timeout", "", "25P03", "idle transaction timeout"),
        ("transaction_timeout", "select pg_sleep(10)", "25P04", "transaction timeout"),
    ],
)
def test_timeouts_on_transactions_end_client_and_server(
    make_proxy: MakeProxy, database: Database, login: Login, setting: str, sql: str, sqlstate: str, text: str
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", **{setting: 0.4})
    client, other = login(proxy), login(proxy)
    run(client, "begin")
    if sql:
        ask(client, sql)
    fields = error(client.read_to_end())
    assert (fields["C"], fields["M"]) == (sqlstate, text)
    assert value(other, "select 1") == "1"


def test_query_timeout_cancels_the_query_and_the_client_goes_on(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", query_timeout=0.4)
    client = login(proxy)
    pid = backend_pid(client)
    fields = error(client.query("select pg_sleep(30)"))
    assert (fields["C"], fields["M"]) == ("57014", "canceling statement due to user request")
    assert value(client, "select 1") == "1"
    assert backend_pid(client) == pid


def test_client_idle_timeout_ends_a_client_that_asks_for_nothing(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(pool_mode="transaction", client_idle_timeout=0.4)
    client = login(proxy)
    fields = error(client.read_to_end())
    assert (fields["C"], fields["M"]) == ("57P05", "client_idle_timeout")


def test_a_server_that_died_while_it_was_idle_is_not_handed_out(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy)
    for _ in range(5):
        pid = backend_pid(client)
        database.kill(pid)
        wait_until(lambda pid=pid: pid not in database.pids())  # type: ignore[misc]
        settle(proxy)
        assert backend_pid(client) != pid


def test_a_server_that_was_idle_for_long_is_checked_before_it_is_used(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()},
        pool_mode="transaction",
        server_check_delay=0.3,
        server_check_query="do 'begin if to_regclass(''sick'') is not null then raise ''sick''; end if; end'",
    )
    client = login(proxy)

    def idle_for_long() -> bool:
        idle = "select clock_timestamp() - state_change > '0.7s' from pg_stat_activity where datname = %s"
        return bool(database.server.sql(idle, [database.name])[0][0])

    first = backend_pid(client)
    wait_until(idle_for_long)
    assert backend_pid(client) == first
    run(client, "create table sick ()")
    wait_until(idle_for_long)
    ask(client, "select 'healthy'")
    proxy.wait_log("closing because: test query failed")
    database.sql("drop table sick")
    assert answer(client) == "healthy"
    assert backend_pid(client) != first
