"""A snapshot as Prometheus' text. Runs in a thread: it knows nothing that lives on the loop.

Names, units and types follow Prometheus' conventions: seconds and bytes, `_total` for counters. Cardinality is bounded: beyond
`MAX_POOLS` pools (those with the most queries are kept) and `MAX_HISTOGRAMS` histograms of each kind, the rest is added up
under database and user `OTHERS` (shown.py). No label comes from what strangers send: databases and users exist here only after
a login.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pgpool_proxy.metrics.shown import OTHERS, Shown
from pgpool_proxy.metrics.snapshot import CLIENT_STATES, SERVER_STATES, Counts, PoolSnapshot, Snapshot, WorkerSnapshot
from pgpool_proxy.pool.stats import BOUNDS, FIELDS, STATE_KINDS

PREFIX: Final = "pgpool_proxy_"
MAX_POOLS: Final = 1000
MAX_HISTOGRAMS: Final = 100
POOL: Final = ("database", "user")

COUNTERS: Final = {  # of pool.stats.FIELDS: name, help
    "server_assignment_count": ("server_assignments", "Times a server was given to a client"),
    "xact_count": ("transactions", "Transactions"),
    "query_count": ("queries", "Queries: what a client sends until it is answered"),
    "bytes_received": ("received_bytes", "Bytes that came from clients"),
    "bytes_sent": ("sent_bytes", "Bytes that went to clients"),
    "xact_time": ("transaction_time_seconds", "Time of all transactions"),
    "query_time": ("query_time_seconds", "Time of all queries"),
    "wait_time": ("wait_time_seconds", "Time that clients waited for servers"),
    "client_parse_count": ("client_parses", "Parse messages with a name that came from clients"),
    "server_parse_count": ("server_parses", "Parse messages with a name that went to servers, which had not got them"),
    "bind_count": ("binds", "Bind messages"),
    "client_login_count": ("client_logins", "Logins of clients"),
}
TIMES: Final = frozenset({"xact_time", "query_time", "wait_time"})  # µs
HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[PoolSnapshot], Counts]], ...]] = (
    ("wait_seconds", "How long clients waited for a server, of those that had to", lambda pool: pool.waits),
    ("query_seconds", "How long queries took, from a client's first byte to the last of the answer", lambda pool: pool.queries),
    ("transaction_seconds", "How long transactions took", lambda pool: pool.transactions),
    ("login_seconds", "How long clients took to log in, from the accepted connection to the welcome", lambda pool: pool.logins),
    ("server_connect_seconds", "How long servers took to be connected and logged in to", lambda pool: pool.connects),
)
LE: Final = (*(f"{bound / 1e6:g}" for bound in BOUNDS), "+Inf")


class Exposition:
    """The body of /metrics, scrape after scrape."""

    def __init__(self) -> None:
        self._pools = Shown(MAX_POOLS)
        self._histograms = Shown(MAX_HISTOGRAMS)

    def render(self, snapshot: Snapshot) -> bytes:
        """For one thread at a time."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self, snapshot))
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def families(self, snapshot: Snapshot) -> Iterator[Metric]:
        """Every family that /metrics has, besides process_*."""
        yield from _of_pools(_in_utf8(self._pools.of(snapshot.pools)))
        yield from _histograms(_in_utf8(self._histograms.of(snapshot.pools)))
        yield from _of_databases(snapshot)
        yield from _of_process(snapshot)
        yield from _of_workers(snapshot.workers)


class _Families(Collector):
    def __init__(self, exposition: Exposition, snapshot: Snapshot) -> None:
        self._exposition = exposition
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return self._exposition.families(self._snapshot)


def _label(name: str) -> str:
    """What Prometheus takes, which is UTF-8: of other bytes the number is written."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _in_utf8(pools: Iterable[PoolSnapshot]) -> list[PoolSnapshot]:
    return [
        pool
        if pool.database.isascii() and pool.user.isascii()
        else replace(pool, database=_label(pool.database), user=_label(pool.user))
        for pool in pools
    ]


# --- pools ----------------------------------------------------------------------------------------------------------------
def _of_pools(pools: list[PoolSnapshot]) -> Iterator[Metric]:
    clients = GaugeMetricFamily(f"{PREFIX}clients", "Clients of a pool by state, as in SHOW POOLS", labels=(*POOL, "state"))
    servers = GaugeMetricFamily(f"{PREFIX}servers", "Servers of a pool by state, as in SHOW POOLS", labels=(*POOL, "state"))
    waits = GaugeMetricFamily(f"{PREFIX}longest_wait_seconds", "How long the first client of the queue has waited", labels=POOL)
    sizes = GaugeMetricFamily(f"{PREFIX}pool_size", "Servers that the pool may have, the reserve aside", labels=(*POOL, "mode"))
    reserve = CounterMetricFamily(f"{PREFIX}reserve_uses", "Servers opened from the reserve", labels=POOL)
    pinned = GaugeMetricFamily(f"{PREFIX}pinned_servers", "Servers kept with their clients by session_state", labels=POOL)
    states = CounterMetricFamily(
        f"{PREFIX}session_states", "Transactions that left something of a kind behind", labels=(*POOL, "kind")
    )
    for pool in pools:
        labels = (pool.database, pool.user)
        for state, count in zip(CLIENT_STATES, pool.clients, strict=True):
            clients.add_metric((*labels, state), count)
        for state, count in zip(SERVER_STATES, pool.servers, strict=True):
            servers.add_metric((*labels, state), count)
        waits.add_metric(labels, pool.longest_wait)
        if pool.database != OTHERS:
            sizes.add_metric((*labels, pool.mode), pool.size)
        reserve.add_metric(labels, pool.reserve_uses)
        pinned.add_metric(labels, pool.pinned)
        for kind, count in zip(STATE_KINDS, pool.states_seen, strict=True):
            if count:
                states.add_metric((*labels, kind), count)
    yield from (clients, servers, waits, sizes, reserve, pinned, states)
    for at, field in enumerate(FIELDS):
        if field in COUNTERS:
            name, text = COUNTERS[field]
            family = CounterMetricFamily(PREFIX + name, text, labels=POOL)
            for pool in pools:
                value = pool.totals[at]
                family.add_metric((pool.database, pool.user), value / 1e6 if field in TIMES else value)
            yield family


def _histograms(pools: list[PoolSnapshot]) -> Iterator[Metric]:
    for name, text, of in HISTOGRAMS:
        family = HistogramMetricFamily(PREFIX + name, text, labels=POOL)
        for pool in pools:
            counts, total = of(pool)
            family.add_metric((pool.database, pool.user), _buckets(counts), total / 1e6)
        yield family


def _buckets(counts: Iterable[int]) -> list[tuple[str, float]]:
    """Prometheus' buckets: each counts what the smaller ones do, too."""
    below = 0
    buckets: list[tuple[str, float]] = []
    for le, count in zip(LE, counts, strict=True):
        below += count
        buckets.append((le, below))
    return buckets


# --- databases, and the process as a whole --------------------------------------------------------------------------------
def _of_databases(snapshot: Snapshot) -> Iterator[Metric]:
    label = ("database",)
    servers = GaugeMetricFamily(f"{PREFIX}database_servers", "Servers of a database", labels=label)
    limits = GaugeMetricFamily(f"{PREFIX}database_servers_max", "max_db_connections; 0: no limit", labels=label)
    clients = GaugeMetricFamily(f"{PREFIX}database_clients", "Clients of a database", labels=label)
    paused = GaugeMetricFamily(f"{PREFIX}database_paused", "1 while PAUSE holds the database", labels=label)
    disabled = GaugeMetricFamily(f"{PREFIX}database_disabled", "1 while DISABLE refuses its clients", labels=label)
    for database in snapshot.databases[:MAX_POOLS]:
        name = (_label(database.name),)
        servers.add_metric(name, database.servers)
        limits.add_metric(name, database.max_servers)
        clients.add_metric(name, database.clients)
        paused.add_metric(name, database.paused)
        disabled.add_metric(name, database.disabled)
    return iter((servers, limits, clients, paused, disabled))


def _of_process(snapshot: Snapshot) -> Iterator[Metric]:
    info = GaugeMetricFamily(f"{PREFIX}build_info", "What runs", labels=("version", "build", "python"))
    info.add_metric((snapshot.version, snapshot.build, platform.python_version()), 1)
    yield info
    yield GaugeMetricFamily(f"{PREFIX}start_time_seconds", "When the process began, since 1970", value=snapshot.started_at)
    yield GaugeMetricFamily(f"{PREFIX}used_clients", "All clients, logged in or not", value=snapshot.clients)
    yield GaugeMetricFamily(f"{PREFIX}max_clients", "max_client_conn", value=snapshot.max_clients)
    yield GaugeMetricFamily(f"{PREFIX}login_clients", "Clients that are logging in", value=snapshot.login_clients)
    yield GaugeMetricFamily(f"{PREFIX}used_servers", "All server connections", value=snapshot.servers)
    yield GaugeMetricFamily(f"{PREFIX}users", "Users that have logged in", value=len(snapshot.users))
    yield GaugeMetricFamily(f"{PREFIX}pools", "Pools", value=len(snapshot.pools))
    yield GaugeMetricFamily(f"{PREFIX}databases", "Databases", value=len(snapshot.databases))
    yield GaugeMetricFamily(f"{PREFIX}peers", "Entries of [peers]", value=snapshot.peers)
    yield GaugeMetricFamily(f"{PREFIX}peer_pools", "Peers that cancel requests went to", value=len(snapshot.peer_pools))
    yield GaugeMetricFamily(f"{PREFIX}dns_names", "Host names that were looked up", value=len(snapshot.dns_names))
    yield GaugeMetricFamily(f"{PREFIX}dns_zones", "Zones of those names", value=len(snapshot.dns_zones))
    yield GaugeMetricFamily(f"{PREFIX}dns_queries", "Questions to name servers under way", value=snapshot.dns_queries)
    yield CounterMetricFamily(f"{PREFIX}cancel_requests", "Cancel requests that clients sent", value=snapshot.cancels)
    yield CounterMetricFamily(f"{PREFIX}lost_log_lines", "Log lines that were not written", value=snapshot.lost_log_lines)
    errors = CounterMetricFamily(f"{PREFIX}errors", "Errors that the pooler told clients, by SQLSTATE class", labels=("class",))
    for name, count in sorted(snapshot.errors.items()):
        errors.add_metric((_label(name),), count)
    yield errors
    ends = CounterMetricFamily(f"{PREFIX}disconnects", "Connections that ended, by side and reason", labels=("side", "reason"))
    for labels, count in sorted(snapshot.disconnects.items()):
        ends.add_metric([_label(label) for label in labels], count)
    yield ends
    handshakes = CounterMetricFamily(f"{PREFIX}tls_handshakes", "TLS handshakes that were finished", labels=("side",))
    for side, count in sorted(snapshot.tls_handshakes.items()):
        handshakes.add_metric((side,), count)
    yield handshakes
    lag = HistogramMetricFamily(f"{PREFIX}loop_lag_seconds", "How much later than due the janitor ran, ten times a second")
    lag.add_metric((), _buckets(snapshot.loop_lag[0]), snapshot.loop_lag[1] / 1e6)
    yield lag


def _of_workers(workers: Iterable[WorkerSnapshot]) -> Iterator[Metric]:
    label = ("worker",)
    families: list[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[WorkerSnapshot], float | None]]] = [
        (GaugeMetricFamily(f"{PREFIX}worker_up", "1 while the worker serves", labels=label), lambda one: one.is_up),
        (
            GaugeMetricFamily(f"{PREFIX}worker_clients", "Clients of the worker, logged in or not", labels=label),
            lambda one: one.clients,
        ),
        (GaugeMetricFamily(f"{PREFIX}worker_servers", "Servers of the worker", labels=label), lambda one: one.servers),
        (
            GaugeMetricFamily(f"{PREFIX}worker_leases", "Servers that the worker may have", labels=label),
            lambda one: one.leases,
        ),
        (
            CounterMetricFamily(f"{PREFIX}worker_cpu_seconds", "CPU time of the worker's process", labels=label),
            lambda one: one.cpu_seconds,
        ),
        (
            GaugeMetricFamily(f"{PREFIX}worker_memory_bytes", "Resident memory of the worker's process", labels=label),
            lambda one: one.memory,
        ),
        (
            CounterMetricFamily(f"{PREFIX}worker_restarts", "Times another process took the worker's place", labels=label),
            lambda one: one.restarts,
        ),
    ]
    for family, of in families:
        for worker in workers:
            value = of(worker)
            if value is not None:
                family.add_metric((str(worker.number),), value)
        yield family
