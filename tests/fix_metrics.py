"""Pools as /metrics sees them, made up."""

from __future__ import annotations

from typing import Any

from pgpool_proxy.metrics.snapshot import PoolSnapshot
from pgpool_proxy.pool.stats import FIELDS, Histogram


def counts(*micros: int) -> tuple[tuple[int, ...], int]:
    histogram = Histogram()
    for one in micros:
        histogram.add(one)
    return histogram.snapshot()


def pool(database: str = "app", user: str = "alice", queries: int = 7, **values: Any) -> PoolSnapshot:
    totals = tuple(queries if name == "query_count" else at for at, name in enumerate(FIELDS))
    known: dict[str, Any] = {
        "mode": "transaction",
        "size": 20,
        "clients": (1, 2, 3, 4),
        "servers": (1, 2, 3, 4, 5, 6, 7),
        "longest_wait": 0.25,
        "totals": totals,
        "reserve_uses": 1,
        "waits": counts(50, 150),
        "queries": counts(100),
        "transactions": counts(),
        "logins": counts(3_000_000),
        "connects": counts(60_000_000),
        "pinned": 2,
        "states_seen": (0, 0, 5, 0, 0, 1, 0, 0),
    }
    return PoolSnapshot(database, user, **{**known, **values})
