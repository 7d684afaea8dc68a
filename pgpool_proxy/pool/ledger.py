"""Leave to open one more server, and to let one more client in: answered at once in one process; shared_ledger.py for several.

A pool asks before each server that it opens and tells of each that is closed. It knows nothing of who answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool import limits
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool

if TYPE_CHECKING:
    from pgpool_proxy.pool.registry import Database, User

LATER: Final = Report("the clients are being counted", "00000", "LOG")
"""Answer of `Ledger.admit`: the client is told by its `let_in`."""


class Ledger(Protocol):
    """Who grants servers, and counts clients."""

    def may_open(self, pool: Pool, now: float) -> bool:
        """True: one more may be opened now. False: not now; the ledger sees to it that the pool's `grow` is called later."""
        ...

    def give_back(self, pool: Pool) -> None:
        """The leave to open one was not made use of."""
        ...

    def closed(self, pool: Pool, server: PoolServer) -> None:
        """A server of the pool is closed."""
        ...

    def offer(self, pool: Pool, server: PoolServer, now: float) -> bool:
        """A server was released, and `pool.recalls` is not 0. True: it is not the pool's any more."""
        ...

    def surplus(self, pool: Pool) -> i64:
        """How many servers the pool should close as soon as they are idle."""
        ...

    def configured(self, pool: Pool) -> None:
        """The pool's limits are new: the ledger may see to min_pool_size, which is for all workers together."""
        ...

    def admit(self, client: PoolClient, database: Database, user: User) -> Report | None:
        """Is there room for one more client? The report when there is not; `LATER`: see there."""
        ...

    def settled(self, client: PoolClient, database: Database, user: User) -> None:
        """It joins its pool."""
        ...

    def departed(self, client: PoolClient) -> None:
        """A client's connection has ended, at whatever stage; `login_user` and `pool` still say where it was."""
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

    def closed(self, pool: Pool, server: PoolServer) -> None:
        return None

    def offer(self, pool: Pool, server: PoolServer, now: float) -> bool:
        return False

    def surplus(self, pool: Pool) -> i64:
        allowed = pool.limits
        return pool.taken - allowed.pool_size - allowed.reserve_pool_size if allowed.pool_size > 0 else 0

    def configured(self, pool: Pool) -> None:
        return None

    def admit(self, client: PoolClient, database: Database, user: User) -> Report | None:
        return database.registry.admit(client, database, user)

    def settled(self, client: PoolClient, database: Database, user: User) -> None:
        return None

    def departed(self, client: PoolClient) -> None:
        return None
