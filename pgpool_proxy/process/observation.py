"""What /metrics, /readyz and the status page are told of this process: the `Source` of metrics/snapshot.py.

Knows the living objects; copies from them what a snapshot holds, and samples the totals once a second for the status page.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Final

from pgpool_proxy import log
from pgpool_proxy.admin.connections import count_of, pinned_servers
from pgpool_proxy.admin.control import WorkerFigures
from pgpool_proxy.metrics.snapshot import DatabaseSnapshot, HistoryRow, PoolSnapshot, Readiness, Snapshot, WorkerSnapshot
from pgpool_proxy.pool import stats
from pgpool_proxy.pool.limits import longest_wait
from pgpool_proxy.pool.pool import POOL_MODES, Pool
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_ACTIVE_CANCEL,
    CL_WAITING,
    CL_WAITING_CANCEL,
    CL_WAITING_LOGIN,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_IDLE,
    SV_LOGIN,
    SV_TESTED,
    SV_USED,
)
from pgpool_proxy.process.about import build, package_version
from pgpool_proxy.process.counters import Counters
from pgpool_proxy.process.metrics_port import MetricsPort

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

HISTORY_S: Final = 300
PROBE_S: Final = 2.0  # for a server to answer a probe
SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
SERVER_STATE_ORDER: Final = (SV_ACTIVE, SV_ACTIVE_CANCEL, SV_BEING_CANCELED, SV_IDLE, SV_USED, SV_TESTED, SV_LOGIN)


class Observation(MetricsPort):
    """See the module's docstring."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self._history: deque[HistoryRow] = deque(maxlen=HISTORY_S)
        self._sampled: tuple[float, tuple[int, ...], int] = (0.0, stats.ZERO, 0)
        self.counters = Counters()
        self.is_draining = False

    # --- time -------------------------------------------------------------------------------------------------------------
    def tick(self, now: float, late: float) -> None:
        """Called by the janitor; `late`: seconds after it was due."""
        self.counters.loop_lag.add(max(int(late * 1e6), 0))
        before, old, waits = self._sampled
        if now - before >= 1.0:
            pools = self._pools()
            totals = stats.merge(pool.stats.totals() for pool in pools)
            waited = sum(sum(pool.stats.waits.counts) for pool in pools)
            if before:
                self._history.append(self._sample(now - before, old, totals, waited - waits, pools))
            self._sampled = now, totals, waited

    def _sample(
        self, seconds: float, old: tuple[int, ...], new: tuple[int, ...], waits: int, pools: list[Pool]
    ) -> HistoryRow:
        """One row of the history. A pool that was dropped takes its totals with it: no rate is below 0."""
        grown = dict(zip(stats.FIELDS, (max(b - a, 0) for a, b in zip(old, new, strict=True)), strict=True))
        return (
            round(time(), 1),
            round(grown["xact_count"] / seconds, 1),
            round(grown["query_count"] / seconds, 1),
            round(grown["bytes_received"] / seconds),
            round(grown["bytes_sent"] / seconds),
            round(grown["query_time"] / grown["query_count"] / 1000, 3) if grown["query_count"] else 0.0,
            round(grown["wait_time"] / waits / 1000, 3) if waits > 0 else 0.0,
            int(self._worker.registry.client_count),
            sum(int(pool.waiting.count + pool.waiting_login.count) for pool in pools),
            sum(int(pool.servers[SV_ACTIVE].count) for pool in pools),
            sum(int(pool.servers[SV_IDLE].count + pool.servers[SV_USED].count) for pool in pools),
            round(max(waits, 0) / seconds, 1),
        )

    # --- Source -----------------------------------------------------------------------------------------------------------
    def history(self, done: Callable[[list[HistoryRow]], None]) -> None:
        done(self.own_history())

    def own_history(self) -> list[HistoryRow]:
        return list(self._history)

    def snapshot(self, done: Callable[[Callable[[], Snapshot]], None]) -> None:
        snapshot = self.own_snapshot()
        done(lambda: snapshot)

    def own_snapshot(self) -> Snapshot:
        """This process now."""
        worker = self._worker
        registry, counters = worker.registry, self.counters
        now = worker.clock()
        return Snapshot(
            version=package_version(),
            build=build(),
            started_at=worker.started_at,
            pools=[_pool(pool, now) for pool in self._pools()],
            databases=[_database(database) for _, database in sorted(registry.databases.items()) if not database.is_admin],
            clients=int(registry.client_count),
            max_clients=int(registry.max_client_conn),
            login_clients=int(registry.login_clients.count),
            users=frozenset(registry.users),
            errors=dict(counters.errors),
            disconnects=dict(counters.disconnects),
            cancels=counters.cancels,
            tls_handshakes=dict(counters.tls_handshakes),
            loop_lag=counters.loop_lag.snapshot(),
            lost_log_lines=log.lost_lines(),
            servers=sum(int(members.count) for pool in registry.pools.values() for members in pool.servers),
            peers=len(worker.config.peers),
            peer_pools=frozenset([str(number) for number in registry.peer_pools]),
            dns_names=frozenset([name for name, _, _ in worker.dns.hosts()]),
            dns_zones=frozenset([name for name, _, _ in worker.dns.zones()]),
            dns_queries=worker.dns.queries,
            workers=tuple([worker_snapshot(figures) for figures in worker.control.workers()]),
        )

    def _pools(self) -> list[Pool]:
        pools = self._worker.registry.pools.values()
        found = [pool for pool in pools if not pool.database.is_admin and pool.main is None]
        return sorted(found, key=lambda pool: (pool.database.name, pool.user.name))

    # --- readiness --------------------------------------------------------------------------------------------------------
    def readiness(self, done: Callable[[Readiness], None]) -> None:
        worker = self._worker
        reasons: list[str] = []
        if worker.closing is not None or self.is_draining:
            reasons.append("shutting down")
        if worker.control.is_suspended:
            reasons.append("suspended")
        elif worker.registry.paused:
            reasons.append("paused")
        unproved: list[str] = []
        for name in _names(worker.config.settings.readiness_databases):
            database = worker.registry.database(name)
            if database is None:
                reasons.append(f"database {name}: there is none")
            elif database.paused or database.disabled:
                reasons.append(f"database {name}: {'paused' if database.paused else 'disabled'}")
            elif any(pool.usable_servers for pool in database.pools):
                continue
            elif _is_refused(database):
                reasons.append(f"database {name}: server login has been failing")
            else:
                unproved.append(name)
        if not unproved or reasons:
            done(Readiness(tuple(reasons)))
        else:
            worker.tasks.start(self._probe(unproved, done), "readiness")

    async def _probe(self, names: list[str], done: Callable[[Readiness], None]) -> None:
        """Databases that have no server at the moment: does one of their hosts speak PostgreSQL?"""
        answers = await asyncio.gather(*(self._answers(name) for name in names))
        problems = [f"database {name}: {problem}" for name, problem in zip(names, answers, strict=True) if problem]
        done(Readiness(tuple(problems)))

    async def _answers(self, name: str) -> str:
        """Empty, or why no server of the database can be had."""
        entry = self._worker.config.database(name)
        if entry is None:
            return "there is none"
        problem = ""
        for host in entry.hosts or (self._worker.config.settings.unix_socket_dir,):
            try:
                async with asyncio.timeout(PROBE_S):
                    await _ask(host, entry.port)
            except (OSError, TimeoutError, EOFError) as error:
                problem = f"{host}:{entry.port}: {str(error) or type(error).__name__}"
            else:
                return ""
        return problem


def _is_refused(database: Database) -> bool:
    """Whether a pool that keeps servers by itself gets none. Of others it says nothing: the failure may be their client's, and
    without clients, who stay away from what is not ready, nobody would try again."""
    return any(
        pool.last_failure is not None and pool.limits.min_pool_size > 0 and pool.user.name == database.forced_user
        for pool in database.pools
    )


async def _ask(host: str, port: int) -> None:
    """Raises OSError or EOFError where nobody speaks PostgreSQL."""
    if host.startswith(("/", "@")):
        path = f"{host}/.s.PGSQL.{port}"
        reader, writer = await asyncio.open_unix_connection("\0" + path[1:] if host.startswith("@") else path)
    else:
        reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(SSL_REQUEST)
        answer = await reader.readexactly(1)
        if answer not in (b"S", b"N"):
            raise OSError("no PostgreSQL server answers")
    finally:
        writer.close()


def _pool(pool: Pool, now: float) -> PoolSnapshot:
    counted = pool.stats
    return PoolSnapshot(
        database=pool.database.name,
        user=pool.user.name,
        mode=POOL_MODES[int(pool.limits.pool_mode)],
        size=int(pool.limits.pool_size),
        clients=(
            count_of("clients", pool, CL_ACTIVE),
            count_of("clients", pool, CL_WAITING) + count_of("clients", pool, CL_WAITING_LOGIN),
            count_of("clients", pool, CL_ACTIVE_CANCEL),
            count_of("clients", pool, CL_WAITING_CANCEL),
        ),
        servers=tuple(count_of("servers", pool, state) for state in SERVER_STATE_ORDER),
        longest_wait=max(longest_wait(pool, now), 0.0),
        totals=counted.totals(),
        reserve_uses=int(counted.reserve_uses),
        waits=counted.waits.snapshot(),
        queries=counted.queries.snapshot(),
        transactions=counted.xacts.snapshot(),
        logins=counted.logins.snapshot(),
        connects=counted.connects.snapshot(),
        pinned=pinned_servers(pool),
        states_seen=tuple(counted.states_seen),
    )


def worker_snapshot(figures: WorkerFigures, is_up: bool = True) -> WorkerSnapshot:
    """What SHOW WORKERS has, for the metrics."""
    return WorkerSnapshot(
        figures.number,
        is_up,
        clients=figures.clients,
        servers=figures.servers,
        leases=figures.leases,
        cpu_seconds=figures.cpu_seconds,
        memory=figures.memory,
        restarts=figures.restarts,
    )


def _database(database: Database) -> DatabaseSnapshot:
    return DatabaseSnapshot(
        name=database.name,
        servers=int(database.server_count),
        max_servers=int(database.max_connections),
        clients=int(database.client_count),
        paused=bool(database.paused or database.registry.paused),  # by name, or all
        disabled=bool(database.disabled),
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
