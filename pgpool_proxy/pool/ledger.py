"""Leave to open one more server: answered at once in one process; across workers it will be a lease.

A pool asks before each server that it opens and gives back for each that it closes. It knows nothing of who answers.
"""

from __future__ import annotations

from typing import Protocol

from pgpool_proxy import errors
from pgpool_proxy.pool import limits
from pgpool_proxy.pool.pool import Pool


class Ledger(Protocol):
    """Who grants servers."""

    def may_open(self, pool: Pool, now: float) -> bool:
        """True: one more may be opened now. False: not now; the ledger sees to it that the pool's `grow` is called later."""
        ...

    def give_back(self, pool: Pool) -> None:
        """A server of the pool is closed."""
        ...


class LocalLedger:
    """The ledger of a single process: the limits hold by its own counts."""

    def may_open(self, pool: Pool, now: float) -> bool:
        decision = limits.decide(pool, now)
        while decision.verdict == limits.EVICT and decision.victim is not None:
            decision.victim.disconnect(errors.EVICTED, now)
            decision = limits.decide(pool, now)
        if decision.verdict == limits.OPEN_FROM_RESERVE:
            pool.database.registry.reserve_taken(pool)
            return True
        if decision.verdict == limits.OPEN:
            return True
        if decision.shared:
            pool.database.registry.starve(pool)
        return False

    def give_back(self, pool: Pool) -> None:
        return None
