"""Plain counters of one pool, snapshots of them, and the averages between two snapshots. Times are microseconds.

What is counted, after PgBouncer's SHOW STATS: a query is what a client sends from the first packet after the previous end
until ReadyForQuery with no answer outstanding; a transaction likewise until status 'I'. `bytes_received` came from clients,
`bytes_sent` went to them; login traffic is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mypy_extensions import i64

FIELDS: Final = (
    "server_assignment_count",
    "xact_count",
    "query_count",
    "bytes_received",
    "bytes_sent",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
    "client_login_count",
)


class PoolStats:
    """The running totals of one pool."""

    def __init__(self) -> None:
        self.server_assignment_count: i64 = 0
        self.xact_count: i64 = 0
        self.query_count: i64 = 0
        self.bytes_received: i64 = 0
        self.bytes_sent: i64 = 0
        self.xact_time: i64 = 0
        self.query_time: i64 = 0
        self.wait_time: i64 = 0
        self.client_parse_count: i64 = 0
        self.server_parse_count: i64 = 0
        self.bind_count: i64 = 0
        self.client_login_count: i64 = 0

    def totals(self) -> tuple[int, ...]:
        """The totals in the order of `FIELDS`."""
        return (
            int(self.server_assignment_count),
            int(self.xact_count),
            int(self.query_count),
            int(self.bytes_received),
            int(self.bytes_sent),
            int(self.xact_time),
            int(self.query_time),
            int(self.wait_time),
            int(self.client_parse_count),
            int(self.server_parse_count),
            int(self.bind_count),
            int(self.client_login_count),
        )


ZERO: Final[tuple[int, ...]] = (0,) * len(FIELDS)


def merge(totals: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Totals of several pools added up."""
    merged = list(ZERO)
    for one in totals:
        for at, value in enumerate(one):
            merged[at] += value
    return tuple(merged)


def averages(old: tuple[int, ...], new: tuple[int, ...], seconds: float) -> tuple[int, ...]:
    """What SHOW STATS prints as avg_*: counts and bytes per second, times per transaction, query or assignment."""
    grown = [later - earlier for earlier, later in zip(old, new, strict=True)]
    per_second = [int(value / seconds) if seconds > 0 else 0 for value in grown]
    assignments, xacts, queries = grown[0], grown[1], grown[2]
    per_second[5] = grown[5] // xacts if xacts > 0 else 0
    per_second[6] = grown[6] // queries if queries > 0 else 0
    per_second[7] = grown[7] // assignments if assignments > 0 else 0
    return tuple(per_second)
