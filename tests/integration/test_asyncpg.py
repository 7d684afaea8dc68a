"""asyncpg, which prepares everything and speaks only the extended protocol, in front of both pool modes."""

from __future__ import annotations

import asyncio
import io

import asyncpg
import pytest
from fix_clients import Database
from fix_proxy import MakeProxy, Proxy


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    """Transaction pooling on three servers."""
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=3)


def where(proxy: Proxy) -> dict[str, object]:
    return {"host": proxy.host, "port": proxy.port, "user": "trust_user", "database": "app", "ssl": False}


@pytest.mark.parametrize("cache", [100, 0], ids=["with its statement cache", "without"])
async def test_its_pool_of_20_connections_works_on_3_servers(pooled: Proxy, database: Database, cache: int) -> None:
    async with asyncpg.create_pool(**where(pooled), min_size=20, max_size=20, statement_cache_size=cache) as pool:

        async def work(number: int) -> None:
            for turn in range(5):
                async with pool.acquire() as connection:
                    assert await connection.fetchval("select $1::int * 10 + $2::int", number, turn) == number * 10 + turn
                async with pool.acquire() as connection, connection.transaction():
                    first = await connection.fetchval("select pg_backend_pid()")
                    assert await connection.fetchval("select pg_backend_pid()") == first

        await asyncio.gather(*(work(number) for number in range(60)))
    assert len(database.pids()) <= 3


async def test_a_prepared_statement_is_used_on_every_server(pooled: Proxy) -> None:
    first, second = await asyncpg.connect(**where(pooled)), await asyncpg.connect(**where(pooled))
    statement = await first.prepare("select pg_backend_pid(), $1::text")
    pid, _ = await statement.fetchrow("a")
    async with second.transaction():
        assert await second.fetchval("select pg_backend_pid()") == pid
        other, text = await statement.fetchrow("b")
        assert (other != pid, text) == (True, "b")
    assert [attribute.name for attribute in statement.get_attributes()] == ["pg_backend_pid", "text"]
    assert await statement.executemany([("c",), ("d",)]) is None
    await first.close()
    await second.close()


async def test_cursors_copy_and_large_results(pooled: Proxy) -> None:
    connection = await asyncpg.connect(**where(pooled))
    async with connection.transaction():
        found = [row[0] async for row in connection.cursor("select generate_series(1, 1000)", prefetch=70)]
    assert found == list(range(1, 1001))
    await connection.execute("create table t (n int, text text)")
    await connection.copy_records_to_table("t", records=[(number, "x" * 10) for number in range(20_000)])
    out = io.BytesIO()
    await connection.copy_from_query("select n from t order by n", output=out)
    assert out.getvalue().split() == [b"%d" % number for number in range(20_000)]
    assert len(await connection.fetch("select * from t")) == 20_000
    await connection.executemany("insert into t values ($1, $2)", [(number, "y") for number in range(2_000)])
    assert await connection.fetchval("select count(*) from t") == 22_000
    await connection.close()


async def test_errors_timeouts_and_cancelled_tasks_leave_the_pool_usable(pooled: Proxy) -> None:
    async with asyncpg.create_pool(**where(pooled), min_size=4, max_size=4) as pool:
        for _ in range(3):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await pool.fetchval("select 1/0")
            with pytest.raises(asyncio.TimeoutError):
                await pool.fetchval("select pg_sleep(10)", timeout=0.1)
            task = asyncio.create_task(pool.fetchval("select pg_sleep(10)"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await asyncio.gather(*(pool.fetchval("select $1::int", number) for number in range(20))) == list(range(20))


async def test_statements_survive_a_change_of_their_tables(pooled: Proxy) -> None:
    connection, other = await asyncpg.connect(**where(pooled)), await asyncpg.connect(**where(pooled))
    await connection.execute("create table t (a int)")
    await connection.execute("insert into t values (1)")
    assert tuple(await connection.fetchrow("select * from t")) == (1,)
    await other.execute("alter table t add b int default 2")
    assert tuple(await connection.fetchrow("select * from t")) == (1, 2)
    await connection.close()
    await other.close()


async def test_notifications_reach_a_listener_in_session_mode(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session")
    connection = await asyncpg.connect(**where(proxy))
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("news", lambda *args: heard.put_nowait(args[3]))
    await asyncio.to_thread(database.sql, "select pg_notify('news', 'hello')")
    assert await asyncio.wait_for(heard.get(), 10) == "hello"
    await connection.close()
