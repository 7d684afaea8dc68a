"""-R where the old daemon, the new one, or both have several workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, bind, cancel_request, execute, parse, sync
from fix_wait import await_until, is_running, wait_until

Follow = Callable[..., Proxy]
BOTH = pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])


@pytest.fixture
def make(make_proxy: MakeProxy, database: Database) -> Callable[[int], Proxy]:
    def made(workers: int) -> Proxy:
        proxy = make_proxy(
            start=False,
            databases={"app": database.entry()},
            pool_mode="transaction",
            default_pool_size=6,
            workers=workers,
        )
        proxy.settings["pidfile"] = proxy.directory / "proxy.pid"
        return proxy.start()

    return made


@pytest.fixture
def follow(make_proxy: MakeProxy) -> Follow:
    """A daemon with this many workers takes the place of the old one; returns when that has ended."""

    def followed(old: Proxy, workers: int) -> Proxy:
        new = make_proxy(start=False, arguments=("-R",))
        new.settings, new.databases, new.sections, new.users = dict(old.settings), old.databases, old.sections, old.users
        new.settings["workers"] = workers
        new.port, new.ini, new.auth_file = old.port, old.ini, old.auth_file
        new.launch()
        assert old.wait_exit(30) == 0, old.log()
        new.wait_log("old process has ended")
        return new

    return followed


@BOTH
def test_clients_and_servers_move(
    make: Callable[[int], Proxy], follow: Follow, database: Database, login: Login, make_raw_client: MakeRawClient,
    before: int, after: int,
) -> None:  # fmt: skip
    database.sql("create table t (a int)")
    old = make(before)
    idle = make_raw_client(old.port)
    idle.login(application_name="mover", TimeZone="Asia/Tokyo")
    idle.send(parse("select $1::int + 1", "plus"), bind("plus", "", "4"), execute(), sync())
    assert answer(idle) == "5"
    holders = [login(old) for _ in range(4)]
    for holder in holders:
        run(holder, "begin; insert into t values (1)")
    pids = {backend_pid(holder) for holder in holders}
    totals = old.show("STATS_TOTALS", database="app")["query_count"]
    new = follow(old, after)
    idle.send(bind("plus", "", "41"), execute(), sync())
    assert answer(idle) == "42"
    assert value(idle, "show timezone") == "Asia/Tokyo"
    assert {backend_pid(holder) for holder in holders} == pids
    for holder in holders:
        run(holder, "insert into t values (2); commit")
    assert database.sql("select sum(a) from t") == [(12,)]
    assert set(database.pids()) >= pids
    assert (old.directory / "proxy.pid").read_text() == f"{new.pid}\n"
    ids = [row["id"] for row in new.admin("SHOW CLIENTS")]
    assert len(ids) == len(set(ids)) == 6
    assert new.show("STATS_TOTALS", database="app")["query_count"] >= totals
    assert value(login(new), "select 1") == "1"
    if after > 1:
        rows = new.admin("SHOW WORKERS")
        assert sum(row["leases"] for row in rows) == len(database.pids())
        assert max(row["clients"] for row in rows) <= 5


@BOTH
def test_a_cancel_key_keeps_its_worth(
    make: Callable[[int], Proxy], follow: Follow, database: Database, login: Login, make_raw_client: MakeRawClient,
    before: int, after: int,
) -> None:  # fmt: skip
    old = make(before)
    clients = [login(old) for _ in range(3)]
    new = follow(old, after)
    for client in clients:
        ask(client, "select pg_sleep(60)")
        wait_until(lambda: database.pids(state="active"), 10, "it runs")
        messenger = make_raw_client(new.port)
        messenger.send(cancel_request(client.pid, client.secret))
        assert messenger.read_to_end() == []
        assert error(client.read_until(b"Z"))["C"] == "57014"


@BOTH
async def test_no_transaction_fails_under_load(
    make: Callable[[int], Proxy], follow: Follow, database: Database, before: int, after: int
) -> None:
    old = make(before)
    database.sql("create table counted (n int)")
    stop = asyncio.Event()

    async def one(connection: Any) -> int:
        done = 0
        while not stop.is_set():
            async with connection.transaction():
                await connection.execute("insert into counted values (1)")
            done += 1
        return done

    connections = [await old.aconnect(prepare_threshold=2) for _ in range(10)]
    running = [asyncio.ensure_future(one(connection)) for connection in connections]
    pid = old.pid
    await asyncio.to_thread(follow, old, after)
    await await_until(lambda: not is_running(pid), 10, "the old one has gone")
    stop.set()
    done = sum(await asyncio.gather(*running))
    for connection in connections:
        await connection.close()
    assert database.sql("select count(*) from counted") == [(done,)]
