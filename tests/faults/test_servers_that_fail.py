"""A server that dies is told to its client with SQLSTATE and reason, and replaced; clients of other servers do not notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from fix_clients import Database, Login, answer, ask, assert_whole, backend_pid, error, run, value
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_raw import Message, RawClient, bind, execute, flush, parse
from fix_tcp import MakeMiddleman, Middleman
from fix_wait import is_running, wait_until

from pgpool_proxy.pool.pool import MAX_OPENING

SIZE = 2


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    database.sql("create table t (x text)")
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)


def in_a_transaction(client: RawClient) -> None:
    run(client, "begin; insert into t values ('lost')")


def in_a_query(client: RawClient) -> None:
    ask(client, "select pg_sleep(60)")


def in_the_middle_of_a_result(client: RawClient) -> None:
    ask(client, "select repeat('x', 1000) from generate_series(1, 200) union all select pg_sleep(60)::text")
    for _ in range(50):
        client.read_message()


def in_copy_in(client: RawClient) -> None:
    ask(client, "copy t from stdin")
    assert client.read_message().type == b"G"
    client.send_message(b"d", b"lost\n")


def in_copy_out(client: RawClient) -> None:
    ask(client, "copy (select repeat('x', 1000) from generate_series(1, 200) union all select pg_sleep(60)::text) to stdout")
    for _ in range(50):
        client.read_message()


def in_a_pipeline(client: RawClient) -> None:
    client.send(parse("select 1", "s"), bind("s"), execute(), flush())
    assert client.read_types(until=b"C") == b"12DC"


POINTS: tuple[Callable[[RawClient], None], ...] = (
    in_a_transaction, in_a_query, in_the_middle_of_a_result, in_copy_in, in_copy_out, in_a_pipeline
)  # fmt: skip


def last_words(client: RawClient) -> dict[str, str] | None:
    """What the daemon says before it closes; None when the connection ends inside a message, where nothing can be said."""
    data = b""
    while chunk := client.socket.recv(65_536):
        data += chunk
    kind, at, stop = b"", 0, 0
    while stop < len(data):
        at, kind = stop, data[stop : stop + 1]
        stop += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
    if stop > len(data):
        assert b"FATAL" not in data[at:], "an error would be taken for the rest of the message"
        return None
    return Message(kind, data[at + 5 :]).fields()


def linked_pid(database: Database, before: list[int]) -> int:
    """The backend that has been put to work since."""

    def at_work() -> list[int]:
        rest = (None, "starting", "idle")
        return [row["pid"] for row in database.servers() if row["pid"] not in before and row["state"] not in rest]

    busy = wait_until(at_work)
    assert len(busy) == 1
    return int(busy[0])


def test_pg_terminate_backend_at_any_point_reaches_the_client_in_the_servers_words(
    pooled: Proxy, database: Database, login: Login
) -> None:
    for point in POINTS:
        bystander, client = login(pooled), login(pooled)
        run(bystander, "begin; insert into t values ('kept')")
        other = [backend_pid(bystander)]
        point(client)
        database.kill(linked_pid(database, other))
        fields = error([found for found in client.read_to_end() if found.type == b"E"])
        assert (fields["S"], fields["C"]) == ("FATAL", "57P01"), point.__name__
        assert fields["M"] == "terminating connection due to administrator command"
        run(bystander, "commit")
        bystander.close()
        assert_whole(pooled, database, login, SIZE)
    assert database.sql("select x, count(*) from t group by x") == [("kept", len(POINTS))]


@pytest.mark.parametrize("how", ["drop", "reset"])
def test_a_connection_to_the_server_that_breaks_at_any_point_is_told_to_its_client_with_08006(
    make_proxy: MakeProxy, database: Database, login: Login, make_middleman: MakeMiddleman, how: str
) -> None:
    middleman = make_middleman(database.server.port)
    database.sql("create table t (x text)")
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=SIZE,
    )
    for point in POINTS:
        client, idle = login(proxy), login(proxy)
        value(idle, "select 1")
        point(client)
        linked_pid(database, [])  # its server has read what it sent
        before = proxy.log().count("closing because: server closed the connection")
        broken = getattr(middleman, how)()
        fields = last_words(client)
        if fields is None:
            assert point in (in_the_middle_of_a_result, in_copy_out), point.__name__
        else:
            assert (fields["S"], fields["C"], fields["M"]) == ("FATAL", "08006", "server conn crashed?"), point.__name__
        lost = before + broken
        wait_until(lambda lost=lost: proxy.log().count("closing because: server closed the connection") >= lost)  # type: ignore[misc]
        assert value(idle, "select 'did not notice'") == "did not notice"
        idle.close()
        database.server.terminate(datname=database.name)  # who sleeps does not notice that the client is gone
        wait_until(lambda: not proxy.admin("SHOW SERVERS"))  # the one of `idle` has gone, too
        assert_whole(proxy, database, login, SIZE)


def test_a_backend_killed_with_sigkill_is_not_a_silent_loss(
    make_proxy: MakeProxy, private_postgres: Postgres, login: Login
) -> None:
    """PostgreSQL then ends all its backends and recovers: every client hears of it, and is served again soon."""
    proxy = make_proxy(server=private_postgres, pool_mode="transaction", default_pool_size=3)
    for _ in range(2):
        busy, other, idle = login(proxy), login(proxy), login(proxy)
        value(idle, "select 1")
        run(busy, "begin")
        pid = backend_pid(busy)
        run(other, "begin")
        ask(other, "select pg_sleep(60)")
        os.kill(pid, signal.SIGKILL)
        for client in (busy, other):
            if client is busy:
                ask(busy, "select 1")
            fields = error([found for found in client.read_to_end() if found.type == b"E"])
            assert fields["S"] == "FATAL"
            assert fields["C"] in ("08006", "57P02", "57P01")

        def recovered() -> bool:
            ask(idle, "select 'recovered'")  # noqa: B023
            return answer(idle) == "recovered"  # noqa: B023

        recovered()
        idle.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived_by_those_who_are_idle_and_those_who_wait(
    make_proxy: MakeProxy, private_postgres: Postgres, login: Login, mode: str
) -> None:
    proxy = make_proxy(server=private_postgres, pool_mode="transaction", default_pool_size=10, server_login_retry=600)
    busy, idle = login(proxy), login(proxy)
    waiting = [login(proxy) for _ in range(20)]
    run(busy, "begin")
    private_postgres.stop(mode)
    fields = error([found for found in busy.read_to_end() if found.type == b"E"])
    assert (fields["S"], fields["C"]) == ("FATAL", "57P01" if mode == "fast" else "08006")
    for client in waiting:
        ask(client, "select 'waited'")
    wait_until(lambda: proxy.log().count("server login failed") >= MAX_OPENING + 4, what="it is asked again and again")
    private_postgres.start()
    assert [answer(client) for client in waiting] == ["waited"] * 20  # long before server_login_retry
    assert value(idle, "select 'idled'") == "idled"


def test_a_server_that_has_no_room_is_asked_seldom_and_those_who_wait_are_served_by_the_servers_there_are(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    database.server.sql(f"alter database {database.name} connection limit 1", dbname="postgres")
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=10, server_login_retry=1)
    started = time.monotonic()
    clients = [login(proxy) for _ in range(12)]
    for _ in range(5):
        for client in clients:
            ask(client, "select pg_sleep(0.01), 'served'")
        for client in clients:
            assert not [found for found in client.read_until(b"Z") if found.type == b"E"]
    assert len(database.pids()) == 1
    attempts = proxy.log().count("too many connections for database") // 2 + 1
    assert 1 <= attempts < 20 + 4 * (time.monotonic() - started)
    database.server.sql(f"alter database {database.name} connection limit -1", dbname="postgres")

    def grows() -> bool:
        for client in clients:
            ask(client, "select pg_sleep(0.05), 'served'")
        for client in clients:
            client.read_until(b"Z")
        return len(database.pids()) > 3

    wait_until(grows, 20)


@pytest.fixture
def behind(make_middleman: MakeMiddleman, database: Database) -> Middleman:
    return make_middleman(database.server.port)


def test_servers_that_hang_hold_up_nobody_for_longer_than_query_wait_timeout_and_come_back(
    make_proxy: MakeProxy, database: Database, login: Login, behind: Middleman
) -> None:
    proxy = make_proxy(
        databases={
            "app": f"host=127.0.0.1 port={behind.port} dbname={database.name}",
            "healthy": database.entry(dbname="app"),
        },
        pool_mode="transaction",
        default_pool_size=SIZE,
        query_wait_timeout=0.5,
    )
    hanging = [login(proxy) for _ in range(SIZE)]
    for client in hanging:
        run(client, "begin")
    behind.pause()
    for client in hanging:
        ask(client, "select 'in the end'")
    waiting = login(proxy)
    ask(waiting, "select 1")
    healthy = login(proxy, database="healthy")
    assert value(healthy, "select 1") == "1"
    assert error(waiting.read_to_end())["M"] == "query_wait_timeout"
    behind.resume()
    assert [answer(client) for client in hanging] == ["in the end"] * SIZE
    for client in hanging:
        run(client, "commit")
    healthy.close()
    assert_whole(proxy, database, login, SIZE)


def test_a_backend_that_is_stopped_and_continued_delays_only_its_own_client(
    pooled: Proxy, database: Database, login: Login
) -> None:
    stopped, other = login(pooled), login(pooled)
    run(stopped, "begin")
    pid = backend_pid(stopped)
    os.kill(pid, signal.SIGSTOP)
    try:
        ask(stopped, "select 'late'")
        for _ in range(20):
            assert value(other, "select 1") == "1"
        assert stopped.is_silent(0.01)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert answer(stopped) == "late"
    run(stopped, "commit")


def test_every_byte_of_a_server_may_come_alone(
    make_proxy: MakeProxy, database: Database, login: Login, behind: Middleman
) -> None:
    behind.down.chop = behind.up.chop = 1
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={behind.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=1,
    )
    first, second = login(proxy, application_name="first"), login(proxy, application_name="second")
    for _ in range(3):
        for client, name in ((first, "first"), (second, "second")):
            assert value(client, "show application_name") == name
            client.send(parse("select repeat('x', 300)", "s"), bind("s"), execute(), parse("select 1"), bind(), execute())
            client.send_message(b"C", b"Ss\0")
            client.send_message(b"S")
            assert client.read_types() == b"12DC12DC3Z"


def test_a_database_that_is_dropped_and_made_anew(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)
    client = login(proxy)
    value(client, "select 1")
    database.server.sql(f"drop database {database.name} with (force)", dbname="postgres")
    ask(client, "select 1")
    fields = error(client.read_to_end())
    assert fields["C"] in ("3D000", "57P01")
    database.server.sql(f"create database {database.name} owner trust_user", dbname="postgres")

    def is_served() -> bool:
        try:
            return value(login(proxy), "select 1") == "1"
        except (AssertionError, EOFError):
            return False

    wait_until(is_served, 14, "it is served, before server_login_retry")
    assert is_running(proxy.pid)
