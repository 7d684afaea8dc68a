"""How many servers and clients there may be: each limit, what happens at it, and who gives way."""

from __future__ import annotations

import threading
import time

import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, refusal, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient
from fix_tcp import MakeMiddleman
from fix_wait import wait_until


def holder(proxy: Proxy, login: Login, **keywords: str) -> RawClient:
    """A client that holds a server by a transaction."""
    client = login(proxy, **keywords)
    run(client, "begin")
    return client


# --- pool_size, min_pool_size, reserve ---------------------------------------------------------------------------------
def test_a_pool_never_opens_more_servers_than_its_size(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    holders = [holder(proxy, login) for _ in range(2)]
    waiting = [login(proxy) for _ in range(5)]
    for client in waiting:
        ask(client, "select 1")
    settle(proxy)
    assert len(database.pids()) == 2
    for client in holders:
        run(client, "commit")
    assert [answer(client) for client in waiting] == ["1"] * 5
    assert len(database.pids()) == 2


def test_pool_size_of_a_database_and_of_a_user_precede_the_default(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry(pool_size=2)},
        sections={"users": {"md5_user": "pool_size=1"}},
        pool_mode="transaction",
        default_pool_size=5,
    )
    for user, size in (("trust_user", 2), ("md5_user", 1)):
        holders = [holder(proxy, login, user=user) for _ in range(size)]
        one_more = login(proxy, user=user)
        ask(one_more, "select 1")
        settle(proxy)
        assert one_more.is_silent(0.1)
        run(holders[0], "commit")
        answer(one_more)


def test_servers_are_opened_only_for_those_who_wait(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=20)
    clients = [login(proxy) for _ in range(3)]
    for client in clients * 3:
        value(client, "select 1")
    assert len(database.pids()) == 1
    for client in clients:
        ask(client, "select pg_sleep(0.2)")
    for client in clients:
        answer(client)
    assert len(database.pids()) <= 3


def test_many_waiters_have_several_servers_opened_at_a_time(
    make_proxy: MakeProxy, database: Database, login: Login, make_middleman: MakeMiddleman
) -> None:
    middleman = make_middleman(database.server.port)
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=20,
    )
    clients = [login(proxy) for _ in range(12)]
    run(clients[0], "begin")
    before = middleman.accepted
    middleman.pause()
    for client in clients[1:]:
        ask(client, "select pg_backend_pid()")
    wait_until(lambda: middleman.accepted - before >= 2)
    settle(proxy)
    assert middleman.accepted - before <= 11
    middleman.resume()
    for client in clients[1:]:
        answer(client)


def test_min_pool_size_is_kept_open_without_clients_for_a_forced_user(
    make_proxy: MakeProxy, database: Database
) -> None:
    databases = {"app": database.entry(user="trust_user", min_pool_size=3), "idle": database.entry(user="trust_user")}
    proxy = make_proxy(databases=databases, server_idle_timeout=0.3)
    wait_until(lambda: len(database.pids()) == 3)
    assert [row["database"] for row in proxy.admin("SHOW POOLS")] == ["app", "pgbouncer"]
    pids = database.pids()
    database.kill(pids[0])
    wait_until(lambda: len(database.pids()) == 3 and pids[0] not in database.pids())


def test_min_pool_size_is_opened_with_the_first_client_and_outlives_the_idle_timeout(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", min_pool_size=2, server_idle_timeout=0.4
    )
    assert database.pids() == []
    clients = [holder(proxy, login) for _ in range(4)]
    assert len(database.pids()) == 4
    for client in clients:
        run(client, "commit")
    wait_until(lambda: len(database.pids()) == 2)
    proxy.wait_log("server idle timeout")
    settle(proxy)
    assert len(database.pids()) == 2


def test_the_reserve_is_used_after_its_timeout_and_not_before(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()},
        pool_mode="transaction",
        default_pool_size=1,
        reserve_pool_size=1,
        reserve_pool_timeout=0.6,
    )
    first, second, third = holder(proxy, login), login(proxy), login(proxy)
    started = time.monotonic()
    ask(second, "begin; select pg_backend_pid()")
    other = answer(second)
    assert time.monotonic() - started >= 0.6
    assert other != str(backend_pid(first))
    proxy.wait_log("taking connection from reserve_pool")
    ask(third, "select 1")
    settle(proxy)
    assert third.is_silent(0.9)
    assert len(database.pids()) == 2
    run(second, "commit")
    assert answer(third) == "1"


# --- limits that pools share --------------------------------------------------------------------------------------------
def test_max_db_connections_evicts_the_idle_server_of_another_user(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", max_db_connections=1)
    first, second = login(proxy), login(proxy, user="scram_user")
    for client, user in ((first, "trust_user"), (second, "scram_user"), (first, "trust_user")):
        assert value(client, "select current_user") == user
        wait_until(lambda user=user: [row["usename"] for row in database.servers()] == [user])  # type: ignore[misc]
    proxy.wait_log("closing because: evicted")


def test_max_db_connections_makes_the_other_user_wait_while_nobody_is_idle(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", max_db_connections=2)
    first, second = holder(proxy, login), login(proxy, user="scram_user")
    assert value(second, "begin; select current_user") == "scram_user"
    third = login(proxy)
    ask(third, "select 'served'")
    settle(proxy)
    assert third.is_silent(0.2)
    assert len(database.pids()) == 2
    run(second, "commit")
    assert answer(third) == "served"
    wait_until(lambda: len(database.pids()) <= 2, what="the one that gave way is gone")
    run(first, "commit")


def test_max_user_connections_holds_over_all_databases_of_the_user(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"one": database.entry(), "two": database.entry()},
        sections={"users": {"scram_user": "max_user_connections=1"}},
        pool_mode="transaction",
    )
    one, two = login(proxy, database="one", user="scram_user"), login(proxy, database="two", user="scram_user")
    first = backend_pid(one)
    second = backend_pid(two)
    assert first != second
    wait_until(lambda: database.pids(usename="scram_user") == [second], what="the one that gave way is gone")
    run(two, "begin")
    ask(one, "select 'served'")
    settle(proxy)
    assert one.is_silent(0.2)
    free = [holder(proxy, login, database="one") for _ in range(3)]
    assert len({backend_pid(client) for client in free}) == 3
    run(two, "commit")
    assert answer(one) == "served"


# --- clients ------------------------------------------------------------------------------------------------------------
def test_max_client_conn_refuses_with_53300_and_lets_in_again(
    make_proxy: MakeProxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(pool_mode="transaction", max_client_conn=3)
    clients = [login(proxy) for _ in range(3)]
    fields = refusal(make_raw_client(proxy.port))
    assert (fields["S"], fields["C"]) == ("FATAL", "53300")
    assert fields["M"] == "no more connections allowed (max_client_conn)"
    assert [value(client, "select 1") for client in clients] == ["1"] * 3
    clients[0].close()
    settle(proxy)
    value(login(proxy), "select 1")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("max_db_client_connections", "client connections exceeded (max_db_client_connections)"),
        ("max_user_client_connections", "client connections exceeded (max_user_client_connections)"),
    ],
)
def test_limits_on_clients_of_a_database_and_of_a_user_are_kept(
    make_proxy: MakeProxy, login: Login, make_raw_client: MakeRawClient, setting: str, text: str
) -> None:
    proxy = make_proxy(pool_mode="transaction", **{setting: 2})
    clients = [login(proxy) for _ in range(2)]
    fields = refusal(make_raw_client(proxy.port))
    assert (fields["C"], fields["M"]) == ("53300", text)
    login(proxy, database="other", user="scram_user")
    clients[0].close()
    settle(proxy)
    login(proxy)


def test_show_waits_says_what_a_client_waits_for(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(pool_mode="transaction", default_pool_size=1)
    with proxy.connect() as holder:
        holder.execute("begin")
        holder.execute("select 1")
        asking = threading.Thread(target=lambda: proxy.sql("select 1"))
        asking.start()
        try:
            row = wait_until(lambda: next(iter(proxy.admin("SHOW WAITS")), None), 10, "somebody waits")
            assert row["reason"] == "all 1 servers of the pool are busy"
            assert row["queue"] == 1
        finally:
            holder.rollback()
            asking.join(10)
    assert proxy.admin("SHOW WAITS") == []
