"""Every limit on server connections: pool_size, the reserve, max_db_connections, max_user_connections, and eviction.

Decides and returns; the caller acts. Limits on clients (max_client_conn and its kin) are the registry's, where clients are
counted.
"""

from __future__ import annotations

from typing import Final, cast

from mypy_extensions import i64

from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool

FULL: Final = 0
OPEN: Final = 1
OPEN_FROM_RESERVE: Final = 2
EVICT: Final = 3


class Decision:
    """`verdict` is one of FULL, OPEN, OPEN_FROM_RESERVE, EVICT; with EVICT, `victim` has to be closed first."""

    def __init__(self, verdict: i64, victim: PoolServer | None = None, shared: bool = False) -> None:
        self.verdict: i64 = verdict
        self.victim: PoolServer | None = victim
        self.shared: bool = shared  # FULL because of a limit that other pools share


def longest_wait(pool: Pool, now: float) -> float:
    """Seconds that the first waiter of the pool has waited; 0 when nobody waits."""
    member = pool.waiting.first or pool.waiting_login.first
    if member is None:
        return 0.0
    return now - cast(PoolClient, member).wait_start


def decide(pool: Pool, now: float) -> Decision:
    """May `pool` open one more server? In PgBouncer's order: pool_size and reserve, database, user."""
    limits = pool.limits
    servers = pool.server_count
    verdict: i64 = OPEN
    if limits.pool_size > 0 and servers >= limits.pool_size:
        reserve = limits.reserve_pool_size
        if reserve <= 0 or servers >= limits.pool_size + reserve:
            return Decision(FULL)
        if longest_wait(pool, now) < limits.reserve_pool_timeout or pool.waiting.count == 0:
            return Decision(FULL)
        verdict = OPEN_FROM_RESERVE
    database = pool.database
    if database.max_connections > 0 and database.server_count >= database.max_connections:
        victim = _longest_idle(database.pools)
        return Decision(EVICT, victim) if victim is not None else Decision(FULL, shared=True)
    user = pool.user
    if user.max_connections > 0 and user.server_count >= user.max_connections:
        victim = _longest_idle(user.pools)
        return Decision(EVICT, victim) if victim is not None else Decision(FULL, shared=True)
    return Decision(verdict)


def _longest_idle(pools: list[Pool]) -> PoolServer | None:
    """The server that has been idle longest in any of these pools; one whose pool has waiters is never taken."""
    found: PoolServer | None = None
    for pool in pools:
        if pool.waiting.count:
            continue
        for member in pool.idle.members() + pool.servers[3].members():
            server = cast(PoolServer, member)
            if found is None or server.request_time < found.request_time:
                found = server
    return found
