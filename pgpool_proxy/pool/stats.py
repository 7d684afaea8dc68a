"""Plain counters of one pool, snapshots of them, and the averages between two snapshots. Times are microseconds.

What is counted, after PgBouncer's SHOW STATS: a query is what a client sends from the first packet after the previous end
until ReadyForQuery with no answer outstanding; a transaction likewise until status 'I'. `bytes_received` came from clients,
`bytes_sent` went to them; login traffic is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

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

FIRST_BOUND: Final[i64] = 100  # µs; each bound is twice the one before it
BUCKETS: Final[i64] = 20  # up to 52 s; what takes longer is in one bucket more
BOUNDS: Final[tuple[int, ...]] = tuple(100 << at for at in range(20))


class Histogram:
    """How long something took, by powers of two. `counts` has one number more than `BOUNDS`: what took longer than all."""

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (int(BUCKETS) + 1)
        self.sum: i64 = 0

    def add(self, micros: i64) -> None:
        """HOT: once a query."""
        at: i64 = 0
        bound: i64 = FIRST_BOUND
        while at < BUCKETS and micros > bound:
            bound <<= 1
            at += 1
        counts = self.counts
        counts[at] = counts[at] + 1  # twice as fast as +=, which is the object's own when compiled
        self.sum += micros

    def snapshot(self) -> tuple[tuple[int, ...], int]:
        """The counts and the sum, as they are now."""
        return tuple(self.counts), int(self.sum)


def percentile(counts: tuple[int, ...], share: float) -> int:
    """The time below which `share` (0 to 1) of what was counted lies, µs, as far as buckets tell; 0 when nothing was.

    Within a bucket an even spread is assumed; of what took longer than the last bound only that bound is known.
    """
    wanted = sum(counts) * share
    if wanted <= 0:
        return 0
    below = 0
    for at, bound in enumerate(BOUNDS):
        if below + counts[at] >= wanted:
            start = BOUNDS[at - 1] if at else 0
            return int(start + (bound - start) * (wanted - below) / counts[at])
        below += counts[at]
    return BOUNDS[-1]

STATE_KINDS: Final = ("set", "role", "listen", "prepare", "cursor", "temp", "load", "lock")
"""What a client can leave behind on a server (session_state); a mask of kinds has the first in its lowest bit."""


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
        self.waits: Histogram = Histogram()  # for a server, of those clients that had to wait
        self.queries: Histogram = Histogram()
        self.xacts: Histogram = Histogram()
        self.logins: Histogram = Histogram()  # of clients: from the accepted connection to the welcome
        self.connects: Histogram = Histogram()  # of servers: from the connection attempt to the first ReadyForQuery
        self.reserve_uses: i64 = 0  # servers opened from the reserve
        self.states_seen: list[int] = [0 for _ in STATE_KINDS]  # transactions that have left something of a kind behind

    def saw_state(self, kinds: i64) -> None:
        """A transaction has left these kinds behind."""
        for at in range(len(STATE_KINDS)):
            self.states_seen[at] += int(kinds) >> at & 1

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
Period: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], float]
"""Totals at the beginning of a period and at its end, and the seconds between them."""


def merge(totals: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Totals of several pools added up."""
    merged = list(ZERO)
    for one in totals:
        for at, value in enumerate(one):
            merged[at] += value
    return tuple(merged)


def averages(periods: Iterable[Period]) -> tuple[int, ...]:
    """What SHOW STATS prints as avg_*: counts and bytes per second, times per transaction, query or assignment.

    Of several processes or databases, each over its own period: rates are added up, times are those of all together.
    """
    per_second = [0.0] * len(FIELDS)
    all_grown = list(ZERO)
    for old, new, seconds in periods:
        for at, (earlier, later) in enumerate(zip(old, new, strict=True)):
            all_grown[at] += later - earlier
            if seconds > 0:
                per_second[at] += (later - earlier) / seconds
    found = [int(value) for value in per_second]
    assignments, xacts, queries = all_grown[0], all_grown[1], all_grown[2]
    found[5] = all_grown[5] // xacts if xacts > 0 else 0
    found[6] = all_grown[6] // queries if queries > 0 else 0
    found[7] = all_grown[7] // assignments if assignments > 0 else 0
    return tuple(found)
