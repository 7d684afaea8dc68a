"""Many clients on few servers: money is neither made nor lost, and the limit holds at every moment."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import psycopg
import pytest
from fix_clients import Database
from fix_postgres import PASSING
from fix_proxy import MakeProxy

CLIENTS = 200
SERVERS = 5
ACCOUNTS = 50
OPENING = 1000
TRANSFERS = 6


@pytest.mark.parametrize("workers", ["extended protocol", "simple protocol"])
async def test_200_clients_on_5_servers_keep_a_banks_sum_and_the_limit_of_servers(
    make_proxy: MakeProxy, database: Database, workers: str
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SERVERS, max_client_conn=CLIENTS + 10
    )
    database.sql("create table account (id int primary key, balance int not null check (balance >= 0))")
    database.sql(f"insert into account select n, {OPENING} from generate_series(1, {ACCOUNTS}) n")
    transfer = transfer_extended if workers == "extended protocol" else transfer_simple
    done = asyncio.Event()
    watcher = asyncio.create_task(most_servers(database, done))
    clients = [
        await asyncpg.connect(host=proxy.host, port=proxy.port, user="trust_user", database="app", ssl=False)
        for _ in range(CLIENTS)
    ]
    try:
        sums = await asyncio.gather(*(client_life(client, transfer, seed) for seed, client in enumerate(clients)))
    finally:
        done.set()
        most = await watcher
        for client in clients:
            await client.close()
    assert set(sums) == {ACCOUNTS * OPENING}
    assert most == SERVERS
    assert database.sql("select sum(balance) from account") == [(ACCOUNTS * OPENING,)]
    assert database.sql("select count(*) from account where balance <> %s", [OPENING])[0][0] > ACCOUNTS // 2


async def most_servers(database: Database, done: asyncio.Event) -> int:
    """The highest number of clients' backends that pg_stat_activity has shown (autovacuum comes and goes as it likes)."""
    most = 0
    count = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
    count += f" and application_name <> '{PASSING}'"
    async with await psycopg.AsyncConnection.connect(database.server.dsn(dbname="postgres"), autocommit=True) as watcher:
        while not done.is_set():
            row = await (await watcher.execute(count, [database.name])).fetchone()
            assert row is not None
            most = max(most, row[0])
    return most


async def client_life(client: asyncpg.Connection, transfer: object, seed: int) -> int:
    """Some transfers, every third of them rolled back; then the sum of all accounts as this client sees it."""
    chance = random.Random(seed)
    for number in range(TRANSFERS):
        # In order of their ids, so that the database has no deadlocks to break.
        low, high = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
        await transfer(client, low, high, chance.randint(-50, 50), number % 3 == 2)  # type: ignore[operator]
    return int(await client.fetchval("select sum(balance) from account"))


async def transfer_extended(client: asyncpg.Connection, low: int, high: int, amount: int, fails: bool) -> None:
    transaction = client.transaction()
    await transaction.start()
    server = await client.fetchval("select pg_backend_pid()")
    await client.execute("update account set balance = balance - $2 where id = $1", low, amount)
    await client.execute("update account set balance = balance + $2 where id = $1", high, amount)
    assert await client.fetchval("select pg_backend_pid()") == server
    if fails:
        await transaction.rollback()
    else:
        await transaction.commit()


async def transfer_simple(client: asyncpg.Connection, low: int, high: int, amount: int, fails: bool) -> None:
    await client.execute("begin")
    await client.execute(
        f"update account set balance = balance - ({amount}) where id = {low};"
        f"update account set balance = balance + ({amount}) where id = {high}"
    )
    await client.execute("rollback" if fails else "commit")
