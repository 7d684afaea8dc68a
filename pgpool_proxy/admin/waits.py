"""SHOWs of our own that say why: who waits and what for, and how long things take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from pgpool_proxy.admin.connections import main_pools, pools_in_order, seconds_and_micros
from pgpool_proxy.admin.control import Row, Source
from pgpool_proxy.pool.handles import PoolClient
from pgpool_proxy.pool.limits import reason_to_wait
from pgpool_proxy.pool.stats import Histogram, percentile
from pgpool_proxy.session.client_session import ClientSession


def waits(source: Source) -> Iterator[Row]:
    """Clients that wait for a server, those that have waited longest first within their pool."""
    now = source.now()
    for pool in pools_in_order(source):
        members = [cast(PoolClient, member) for member in pool.waiting_login.members() + pool.waiting.members()]
        for client in sorted(members, key=lambda client: float(client.wait_start)):
            address, port = (client.address, int(client.port)) if isinstance(client, ClientSession) else ("", 0)
            yield (
                int(client.number),
                pool.database.name,
                pool.user.name,
                address,
                port,
                source.wall(client.wait_start).strftime("%Y-%m-%d %H:%M:%S %Z"),
                *seconds_and_micros(max(now - client.wait_start, 0.0)),
                int(pool.waiting.count + pool.waiting_login.count),
                reason_to_wait(pool, now),
            )


def stats_histograms(source: Source) -> Iterator[Row]:
    """Percentiles of each pool since it was made, in microseconds."""
    for pool in main_pools(source):
        if pool.database.is_admin:
            continue
        counted = pool.stats
        for kind, histogram in (
            ("wait", counted.waits),
            ("query", counted.queries),
            ("transaction", counted.xacts),
            ("login", counted.logins),
            ("server_connect", counted.connects),
        ):
            yield (pool.database.name, pool.user.name, kind, *_percentiles(histogram))


def _percentiles(histogram: Histogram) -> tuple[int, int, int, int, int]:
    """count, mean, p50, p95, p99."""
    counts, total = histogram.snapshot()
    number = sum(counts)
    mean = total // number if number else 0
    return number, mean, percentile(counts, 0.5), percentile(counts, 0.95), percentile(counts, 0.99)
