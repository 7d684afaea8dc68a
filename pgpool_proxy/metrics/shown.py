"""Which pools have series of their own in /metrics; all the others are one.

A counter may not fall: Prometheus takes that for a restart, and counts all of it once more. So the others' counters are no sum
of the pools that are among them now. They grow by what each of these has counted since the last scrape, and so they never fall,
whichever pools come, go, or change sides. And a pool that has series of its own keeps them until another has had twice as many
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import Final

from pgpool_proxy.metrics.merge import added
from pgpool_proxy.metrics.snapshot import Counts, PoolSnapshot
from pgpool_proxy.pool.stats import FIELDS

OTHERS: Final = "(others)"
QUERIES: Final = FIELDS.index("query_count")
STAYING: Final = 2  # a pool that is shown counts so many times


class Shown:
    """At most `most` pools of each scrape."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._own: set[tuple[str, str]] = set()  # database and user of those that have series of their own
        self._last: dict[tuple[str, str], PoolSnapshot] = {}
        self._others: PoolSnapshot | None = None

    def of(self, pools: Sequence[PoolSnapshot]) -> list[PoolSnapshot]:
        """Those with the most queries, and the rest as one, which stays once it is there."""
        if self._others is None and len(pools) <= self._most:
            return list(pools)
        own = nsmallest(self._most - 1, pools, key=self._rank)
        self._own = {(pool.database, pool.user) for pool in own}
        rest = [pool for pool in pools if (pool.database, pool.user) not in self._own]
        grown = [_grown(pool, self._last.get((pool.database, pool.user))) for pool in rest]
        if self._others is not None:
            grown.append(replace(self._others, clients=_zeros(self._others.clients), servers=_zeros(self._others.servers),
                                 longest_wait=0.0, pinned=0))  # fmt: skip
        self._others = replace(added(grown), database=OTHERS, user=OTHERS, mode="", size=0)
        self._last = {(pool.database, pool.user): pool for pool in pools}
        return [*own, self._others]

    def _rank(self, pool: PoolSnapshot) -> tuple[int, str, str]:
        key = pool.database, pool.user
        return -pool.totals[QUERIES] * (STAYING if key in self._own else 1), *key


def _grown(new: PoolSnapshot, old: PoolSnapshot | None) -> PoolSnapshot:
    """What was counted since; the rest as it is now."""
    if old is None or any(map(int.__lt__, new.totals, old.totals)):  # the pool is new, or another one of that name
        return new
    return replace(
        new,
        totals=_less(new.totals, old.totals),
        reserve_uses=max(new.reserve_uses - old.reserve_uses, 0),
        waits=_since(new.waits, old.waits),
        queries=_since(new.queries, old.queries),
        transactions=_since(new.transactions, old.transactions),
        logins=_since(new.logins, old.logins),
        connects=_since(new.connects, old.connects),
        states_seen=_less(new.states_seen, old.states_seen),
    )


def _since(new: Counts, old: Counts) -> Counts:
    return _less(new[0], old[0]), max(new[1] - old[1], 0)


def _less(new: tuple[int, ...], old: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([max(a - b, 0) for a, b in zip(new, old, strict=True)])


def _zeros(values: tuple[int, ...]) -> tuple[int, ...]:
    return (0,) * len(values)
