"""A client that goes at any moment costs at most its own server: nobody else notices, and the pool loses nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from fix_clients import Database, Login, answer, ask, assert_whole, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    MakeRawClient,
    RawClient,
    bind,
    execute,
    flush,
    message,
    parse,
    query,
    startup_message,
    sync,
    terminate,
)
from fix_wait import wait_until

SIZE = 2


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    database.sql("create table t (x text)")
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)


def leave_by_terminate(client: RawClient) -> None:
    client.send(terminate())
    client.close()


LEAVE: dict[str, Callable[[RawClient], None]] = {
    "by FIN": RawClient.close,
    "by RST": RawClient.reset,
    "by Terminate": leave_by_terminate,
}


def in_a_transaction(client: RawClient, database: Database) -> None:
    run(client, "begin; insert into t values ('lost')")


def in_a_failed_transaction(client: RawClient, database: Database) -> None:
    client.query("begin; select 1/0")


def in_a_query(client: RawClient, database: Database) -> None:
    ask(client, "insert into t select 'lost' from pg_sleep(60)")
    wait_until(lambda: any("pg_sleep" in row["query"] for row in database.servers(state="active")))


def in_the_middle_of_a_result(client: RawClient, database: Database) -> None:
    ask(client, "select repeat('x', 1000) from generate_series(1, 1000000)")
    client.read_bytes(100_000)


def in_copy_in(client: RawClient, database: Database) -> None:
    ask(client, "copy t from stdin")
    assert client.read_message().type == b"G"
    client.send_message(b"d", b"lost\n")


def in_the_middle_of_copy_data(client: RawClient, database: Database) -> None:
    ask(client, "copy t from stdin")
    assert client.read_message().type == b"G"
    client.send(message(b"d", b"lost\n" * 1000)[:2000])


def behind_the_end_of_copy_in(client: RawClient, database: Database) -> None:
    in_copy_in(client, database)
    client.send(message(b"f", b"no\0"))


def in_copy_out(client: RawClient, database: Database) -> None:
    ask(client, "copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout")
    client.read_bytes(100_000)


def in_a_pipeline_without_sync(client: RawClient, database: Database) -> None:
    client.send(parse("select 1", "s"), bind("s"), execute(), flush())
    assert client.read_types(until=b"C") == b"12DC"


def in_a_pipeline_that_failed(client: RawClient, database: Database) -> None:
    client.send(parse("select nonsense", "s"), bind("s"), execute(), flush())
    assert client.read_message().type == b"E"


def in_a_long_pipeline(client: RawClient, database: Database) -> None:
    client.send((parse("select repeat('x', 100)") + bind() + execute() + sync()) * 5000)


def in_the_middle_of_a_message(client: RawClient, database: Database) -> None:
    client.send(query("select 'lost'" + " " * 5000)[:3000])


def in_the_middle_of_a_header(client: RawClient, database: Database) -> None:
    client.send(query("select 1")[:3])


def behind_a_header_that_promises_much(client: RawClient, database: Database) -> None:
    client.send(b"P" + struct.pack("!i", 2**30))


POINTS = (
    in_a_transaction,
    in_a_failed_transaction,
    in_a_query,
    in_the_middle_of_a_result,
    in_copy_in,
    in_the_middle_of_copy_data,
    behind_the_end_of_copy_in,
    in_copy_out,
    in_a_pipeline_without_sync,
    in_a_pipeline_that_failed,
    in_a_long_pipeline,
    in_the_middle_of_a_message,
    in_the_middle_of_a_header,
    behind_a_header_that_promises_much,
)


@pytest.mark.parametrize("how", LEAVE)
def test_a_client_that_leaves_at_any_point_costs_nobody_else_anything(
    pooled: Proxy, database: Database, login: Login, how: str
) -> None:
    for point in POINTS:
        bystander = login(pooled)
        run(bystander, "begin; insert into t values ('kept')")
        client = login(pooled)
        point(client, database)
        LEAVE[how](client)
        assert value(bystander, "select 'still here'") == "still here", point.__name__
        run(bystander, "commit")
        bystander.close()
        settle(pooled)
        assert_whole(pooled, database, login, SIZE)
    assert database.sql("select x, count(*) from t group by x") == [("kept", len(POINTS))]


@pytest.mark.parametrize("how", LEAVE)
def test_a_client_that_leaves_the_queue_is_passed_over(pooled: Proxy, database: Database, login: Login, how: str) -> None:
    holders = [login(pooled) for _ in range(SIZE)]
    for client in holders:
        run(client, "begin")
    waiting = [login(pooled) for _ in range(6)]
    for number, client in enumerate(waiting):
        ask(client, f"insert into t values ('{number}') returning x")
        settle(pooled)
    for client in waiting[::2]:
        LEAVE[how](client)
    settle(pooled)
    for client in holders:
        run(client, "commit")
    assert [answer(client) for client in waiting[1::2]] == ["1", "3", "5"]
    assert database.sql("select x from t order by x") == [("1",), ("3",), ("5",)]
    assert_whole(pooled, database, login, SIZE)


def test_a_client_that_leaves_while_its_first_server_logs_in(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)
    for how in LEAVE.values():
        for _ in range(10):
            client = make_raw_client(proxy.port)
            client.send(startup_message())
            how(client)
    assert_whole(proxy, database, login, SIZE)


def test_a_client_that_leaves_right_behind_its_query(pooled: Proxy, database: Database, login: Login) -> None:
    for how in LEAVE.values():
        for _ in range(30):
            client = login(pooled)
            client.send(query("select 1"))
            how(client)
    assert_whole(pooled, database, login, SIZE)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("answered", [True, False])
def test_a_pipeline_without_its_sync_leaves_nothing_behind(
    pooled: Proxy, database: Database, login: Login, how: str, answered: bool
) -> None:
    for _ in range(5):
        client = login(pooled)
        client.send(parse("insert into t values ('lost')"), bind(), execute(), flush())
        if answered:
            assert client.read_types(until=b"C") == b"12C"
        LEAVE[how](client)
    assert_whole(pooled, database, login, SIZE)
    assert database.sql("select x from t") == []


def test_a_client_that_leaves_before_its_copy_begins_does_not_cost_its_server(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    database.sql("create table t (x text)")
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    for data in (query("copy t from stdin"), parse("copy t from stdin") + bind() + execute() + flush()):
        holder = login(proxy)
        run(holder, "begin; lock t in access exclusive mode")
        proxy.admin("set default_pool_size = 2")
        client = login(proxy)
        client.send(data)
        wait_until(lambda: database.servers(wait_event_type="Lock"))
        before = set(database.pids())
        client.close()
        settle(proxy)
        run(holder, "commit")
        wait_until(lambda: not database.servers(state="active"))
        assert value(login(proxy), "select 'next'") == "next"
        assert before == set(database.pids())
        assert value(login(proxy), "select 'free'") == "free"


def test_a_client_that_takes_its_leave_behind_its_query_has_it_done(pooled: Proxy, database: Database, login: Login) -> None:
    client = login(pooled)
    client.send(query("insert into t select 'done' from pg_sleep(0.3) returning x"), terminate())
    assert [found.type for found in client.read_to_end()] == [b"T", b"D", b"C", b"Z"]
    assert database.sql("select x from t") == [("done",)]
    assert_whole(pooled, database, login, SIZE)


def test_a_query_before_a_broken_message_reaches_its_server(pooled: Proxy, database: Database, login: Login) -> None:
    for broken in (b"Q\0\0\0\0", b"Q\xff\xff\xff\xff", b"!\0\0\0\4"):
        pids = set(database.pids())
        client = login(pooled)
        client.send(query("select pg_sleep(60)") + broken)
        assert client.read_to_end()[-1].fields()["C"] == "08P01"
        settle(pooled)
        wait_until(lambda: not database.servers(state="active"))
        assert pids <= set(database.pids())
    assert_whole(pooled, database, login, SIZE)


@pytest.mark.parametrize("how", ["by FIN", "by RST"])
def test_a_connection_that_ends_at_each_byte_of_its_login_is_forgotten(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient, how: str
) -> None:
    packet = startup_message()
    for size in range(len(packet)):
        client = make_raw_client(pooled.port)
        client.send(packet[:size])
        LEAVE[how](client)
    assert_whole(pooled, database, login, SIZE)


def test_a_crowd_that_leaves_at_once_frees_its_places(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE, max_client_conn=100
    )
    for _ in range(3):
        crowd = [login(proxy) for _ in range(100)]
        for client in crowd:
            ask(client, "select pg_sleep(0.001)")
        for client in crowd:
            client.reset()
        settle(proxy)
        wait_until(lambda: not database.servers(state="active"))
        settle(proxy)
    assert_whole(proxy, database, login, SIZE)
