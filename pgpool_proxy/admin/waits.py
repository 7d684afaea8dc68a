"""SHOWs of our own that say why: who waits and what for, and how long things take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias, cast

from pgpool_proxy.admin.connections import Place, main_pools, seconds_and_micros
from pgpool_proxy.admin.control import Row, Source
from pgpool_proxy.pool.handles import PoolClient
from pgpool_proxy.pool.limits import reason_to_wait
from pgpool_proxy.pool.stats import percentile
from pgpool_proxy.session.client_session import ClientSession

Counts: TypeAlias = tuple[tuple[int, ...], int]  # of a pool.stats.Histogram: its buckets, and the sum in µs
KINDS: Final = ("wait", "query", "transaction", "login", "server_connect")
AT_QUEUE, AT_REASON = 8, 9  # columns of SHOW WAITS


def waits(source: Source) -> Iterator[tuple[Place, Row]]:
    """Clients that wait for a server, those that have waited longest first within their pool."""
    now = source.now()
    for key, pool in sorted(source.registry.pools.items()):
        members = [cast(PoolClient, member) for member in pool.waiting_login.members() + pool.waiting.members()]
        for client in sorted(members, key=lambda client: float(client.wait_start)):
            address, port = (client.address, int(client.port)) if isinstance(client, ClientSession) else ("", 0)
            yield (*key, float(client.wait_start)), (
                int(client.number),
                pool.database.name,
                pool.user.name,
                address,
                port,
                source.wall(client.wait_start).strftime("%Y-%m-%d %H:%M:%S %Z"),
                *seconds_and_micros(max(now - client.wait_start, 0.0)),
                int(pool.waiting.count + pool.waiting_login.count),
                reason_to_wait(pool, now),
                source.worker,
            )


def usage(source: Source) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Database and user of each pool that has servers or waiters; what there may be and what there is of its servers, of its
    database's and of its user's."""
    for pool in main_pools(source):
        database, user = pool.database, pool.user
        if not database.is_admin and (pool.taken or pool.waiting.count or pool.waiting_login.count):
            yield database.name, user.name, (
                int(pool.limits.pool_size), int(pool.taken), int(database.max_connections), int(database.server_count),
                int(user.max_connections), int(user.server_count),
            )  # fmt: skip


def histograms(source: Source) -> Iterator[tuple[str, str, tuple[Counts, ...]]]:
    """Each pool's database, user and histograms, in the order of `KINDS`."""
    for pool in main_pools(source):
        counted = pool.stats
        if not pool.database.is_admin:
            kinds = counted.waits, counted.queries, counted.xacts, counted.logins, counted.connects
            yield pool.database.name, pool.user.name, tuple([histogram.snapshot() for histogram in kinds])


def stats_histograms(found: Iterable[tuple[str, str, tuple[Counts, ...]]]) -> Iterator[Row]:
    """Percentiles of each pool since it was made, in microseconds."""
    for database, user, histograms in found:
        for kind, counts in zip(KINDS, histograms, strict=True):
            yield (database, user, kind, *_percentiles(*counts))


def _percentiles(counts: tuple[int, ...], total: int) -> tuple[int, int, int, int, int]:
    """count, mean, p50, p95, p99."""
    number = sum(counts)
    mean = total // number if number else 0
    return number, mean, percentile(counts, 0.5), percentile(counts, 0.95), percentile(counts, 0.99)
