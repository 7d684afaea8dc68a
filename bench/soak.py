"""Four workers under connects, disconnects, kills, reloads and restarts, and at the end every counter has to be right.

    python bench/soak.py                 five minutes
    python bench/soak.py --minutes 1

Clients connect, run some transactions each, and leave, again and again. Meanwhile the console orders RELOAD, RESTART, PAUSE and
RESUME, KILL_CLIENT, KILL and RESUME, SET, and workers are killed by SIGKILL. What a worker has counted reaches the supervisor
twice a second, so the load holds its breath for a moment before each SIGKILL: with that, nothing that a client has seen done
may be missing at the end. Counted beyond that may be only what was under way when a client lost its connection.
pg_stat_activity is watched all the time: it never shows more servers than the pool may have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from servers import DATABASE, LOOPBACK, TRUST_USER, BenchError, PgpoolProxy, Postgres

WORKERS = 4
POOL = 6
CLIENTS = 40
QUERY = "select abalance from pgbench_accounts where aid = %s"
DONE_BEFORE = re.compile(r"already suspended/paused|is not paused|not paused/suspended")  # by who gave it
PREPARED_AT = 2  # the number of the execution, from 0, that psycopg prepares before
REPORT_S = 0.5  # how often a worker tells what it has counted


class Soak:
    """One run of it."""

    def __init__(self, postgres: Postgres, daemon: PgpoolProxy) -> None:
        self.postgres = postgres
        self.daemon = daemon
        self.logins = 0  # that were answered
        self.transactions = 0
        self.lost = 0  # connections that ended in the middle of something
        self.peak = 0
        self.done: dict[str, int] = {}  # what was ordered, how often
        self.problems: list[str] = []
        self._over = asyncio.Event()
        self._breathing = asyncio.Event()
        self._breathing.set()
        self._busy = 0

    # --- the load -----------------------------------------------------------------------------------------------------------
    async def client(self) -> None:
        while not self._over.is_set():
            await self._breathing.wait()
            try:
                await self._visit()
            except psycopg.Error:
                self.lost += 1
                await asyncio.sleep(random.uniform(0.01, 0.05))

    async def _visit(self) -> None:
        self._busy += 1
        try:
            connection = await psycopg.AsyncConnection.connect(
                f"host={LOOPBACK} port={self.daemon.port} user={TRUST_USER} dbname={DATABASE}",
                autocommit=True,
                prepare_threshold=PREPARED_AT,
            )
        finally:
            self._busy -= 1
        self.logins += 1
        try:
            for number in range(random.randrange(1, 40)):
                await self._breathing.wait()
                self._busy += 1
                try:
                    await connection.execute(QUERY, [random.randrange(1, 1000)])
                finally:
                    self._busy -= 1
                self.transactions += 2 if number == PREPARED_AT else 1  # Parse has a Sync of its own
        finally:
            await connection.close()

    async def watch(self) -> None:
        """pg_stat_activity, as often as it answers."""
        count = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
        connection = await psycopg.AsyncConnection.connect(
            f"host={LOOPBACK} port={self.postgres.port} user=postgres dbname=postgres", autocommit=True
        )
        async with connection:
            while not self._over.is_set():
                row = await (await connection.execute(count, [DATABASE])).fetchone()
                self.peak = max(self.peak, row[0] if row else 0)

    # --- what happens to it ---------------------------------------------------------------------------------------------------
    async def console(self, command: str) -> list[dict[str, Any]]:
        """A command; it is given again when its own worker is killed below it, and may have been carried out by then."""
        is_given = again = False
        for _ in range(50):
            try:
                connection = await psycopg.AsyncConnection.connect(
                    f"host={LOOPBACK} port={self.daemon.port} user=postgres dbname=pgbouncer",
                    autocommit=True,
                    prepare_threshold=None,
                    row_factory=dict_row,
                )
                async with connection:
                    again, is_given = is_given, True
                    cursor = await connection.execute(command)  # type: ignore[call-overload]
                    return await cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                if again and DONE_BEFORE.search(str(error)):
                    return []
                if error.sqlstate is not None or not isinstance(error, psycopg.OperationalError):
                    raise
                await asyncio.sleep(0.1)
        raise BenchError(f"the console does not answer {command}")

    async def trouble(self, seconds: float) -> None:
        """One thing after the other."""
        end = time.monotonic() + seconds
        kinds = [self.reload, self.kill_clients, self.kill_worker, self.pause, self.restart, self.kill_database, self.setting]
        while time.monotonic() < end:
            for kind in random.sample(kinds, len(kinds)):
                await asyncio.sleep(random.uniform(0.2, 1.0))
                if time.monotonic() >= end:
                    break
                self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1
                try:
                    await kind()
                except psycopg.Error as error:
                    self.problems.append(f"{kind.__name__}: {error}")

    async def reload(self) -> None:
        await self.console("RELOAD")

    async def setting(self) -> None:
        await self.console(f"SET query_wait_timeout = {random.randrange(60, 120)}")

    async def restart(self) -> None:
        await self.console("RESTART")

    async def pause(self) -> None:
        await self.console(f"PAUSE {DATABASE}")
        await self.console(f"RESUME {DATABASE}")

    async def kill_database(self) -> None:
        await self.console(f"KILL {DATABASE}")
        await self.console(f"RESUME {DATABASE}")

    async def kill_clients(self) -> None:
        clients = [row["id"] for row in await self.console("SHOW CLIENTS") if row["database"] == DATABASE]
        for number in random.sample(clients, min(3, len(clients))):
            try:
                await self.console(f"KILL_CLIENT {number}")
            except psycopg.Error:
                pass  # it has left

    async def kill_worker(self) -> None:
        """When it has told what it has counted."""
        self._breathing.clear()
        try:
            while self._busy:  # noqa: ASYNC110 - forty of them, each with its own end
                await asyncio.sleep(0.01)
            await asyncio.sleep(2 * REPORT_S + 0.5)
            victim = random.choice([row for row in await self.console("SHOW WORKERS") if row["state"] == "active"])
            os.kill(victim["pid"], signal.SIGKILL)
            await asyncio.sleep(0.2)
        except ProcessLookupError:
            pass  # it has ended by itself since
        finally:
            self._breathing.set()

    # --- the end ------------------------------------------------------------------------------------------------------------
    async def run(self, seconds: float) -> None:
        files = self.descriptors()
        loads = [asyncio.ensure_future(self.client()) for _ in range(CLIENTS)]
        watching = asyncio.ensure_future(self.watch())
        await self.trouble(seconds)
        self._over.set()
        await asyncio.gather(*loads, watching)
        await asyncio.sleep(2)
        await self.check(files)

    def descriptors(self) -> int:
        """Of the supervisor."""
        return len(list(Path(f"/proc/{self.daemon.pids()[0]}/fd").iterdir()))

    async def check(self, files: int) -> None:
        totals = next(row for row in await self.console("SHOW STATS_TOTALS") if row["database"] == DATABASE)
        self.equal("transactions", self.transactions, int(totals["xact_count"]), 2 * self.lost)
        self.equal("logins", self.logins, int(totals["client_login_count"]), self.lost)
        lists = {row["list"]: row["items"] for row in await self.console("SHOW LISTS")}
        if lists["used_clients"] != 1:
            self.problems.append(f"SHOW LISTS counts {lists['used_clients']} clients when only its own is there")
        pool = next(row for row in await self.console("SHOW POOLS") if row["database"] == DATABASE)
        if any(pool[name] for name in ("cl_active", "cl_waiting", "sv_active", "sv_login", "sv_tested")):
            self.problems.append(f"somebody is left: {pool}")
        workers = await self.console("SHOW WORKERS")
        backends = int(self.postgres.psql(f"select count(*) from pg_stat_activity where datname = '{DATABASE}'"))
        if not sum(row["leases"] for row in workers) == sum(row["servers"] for row in workers) == backends:
            self.problems.append(f"leases, servers and backends differ: {workers}, {backends}")
        if self.peak > POOL:
            self.problems.append(f"pg_stat_activity has shown {self.peak} servers of a pool of {POOL}")
        left = self.descriptors()
        if left > files + POOL + 4:
            self.problems.append(f"the supervisor has {left} descriptors open, {files} at the beginning")
        if [row["state"] for row in workers] != ["active"] * WORKERS:
            self.problems.append(f"workers: {workers}")
        print(f"orders: {self.done}\nlogins: {self.logins}, transactions: {self.transactions}, lost connections: {self.lost}")
        print(f"most servers at a time: {self.peak} of {POOL}; workers replaced: {sum(row['restarts'] for row in workers)}")

    def equal(self, what: str, seen: int, counted: int, unseen: int) -> None:
        """What was under way when a connection was lost may have been counted without being seen."""
        print(f"{what}: {seen} seen by clients, {counted} counted by the daemon")
        if not seen <= counted <= seen + unseen:
            self.problems.append(f"{what}: clients have seen {seen}, the daemon counts {counted}, {unseen} may differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = Path(tempfile.mkdtemp(prefix="pgpool_proxy-soak-"))
    directory.chmod(0o755)
    postgres = Postgres(directory)
    settings = {"workers": WORKERS, "default_pool_size": POOL, "metrics_listen_addr": "", "logfile": ""}
    daemon = PgpoolProxy("pgpool_proxy", directory / "daemon", postgres, settings)
    try:
        postgres.start()
        postgres.fill(1)
        daemon.start()
        soak = Soak(postgres, daemon)
        asyncio.run(soak.run(options.minutes * 60))
    except BenchError as error:
        sys.exit(f"soak: {error}")
    finally:
        daemon.stop()
        postgres.stop()
        shutil.rmtree(directory)
    if soak.problems:
        sys.exit("\n".join(["soak:", *soak.problems]))
    print("all counters are right")


if __name__ == "__main__":
    main()
