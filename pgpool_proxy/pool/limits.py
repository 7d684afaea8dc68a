"""Every limit on server connections: pool_size, the reserve, max_db_connections, max_user_connections, and eviction.

Decides and returns; the caller acts. Limits on clients (max_client_conn and its kin) are the registry's, where clients are
counted.

max_db_connections and max_user_connections are shared by several pools. A pool at such a limit takes the place of a server
that is idle in another one. Where none is idle, since the others have waiters themselves, the pool starves; when it has no
server at all for STARVED_S, a pool that has some gives up the next one that is released (`owes`).
"""

from __future__ import annotations

from typing import Final, cast

from mypy_extensions import i64

from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.states import SV_TESTED, SV_USED

FULL: Final = 0
OPEN: Final = 1
OPEN_FROM_RESERVE: Final = 2
EVICT: Final = 3

ABOUT_TO_OPEN: Final = "a server is about to be opened"
STARVED_S: Final = 1.0  # to give a server up costs two logins, some 10 ms each: at that pace next to nothing is lost


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
    if pool.main is not None:
        return _decide_dedicated(pool, pool.main)
    servers = pool.taken
    verdict: i64 = OPEN
    if limits.pool_size > 0 and servers >= limits.pool_size:
        reserve = limits.reserve_pool_size
        if reserve <= 0 or servers >= limits.pool_size + reserve:
            return Decision(FULL)
        if longest_wait(pool, now) < limits.reserve_pool_timeout or pool.waiting.count == 0:
            return Decision(FULL)
        verdict = OPEN_FROM_RESERVE
    by_database = database_is_full(pool)
    by_user = user_is_full(pool)
    if not by_database and not by_user:
        return Decision(verdict)
    waiters = pool.waiting.count
    if waiters == 0 and pool.waiting_login.count:
        waiters = 1
    if pool.opening.count >= waiters:
        return Decision(FULL)  # it is for min_pool_size, which takes nothing from others, nor from itself
    victim = _longest_idle(pool.database.pools) if by_database else None
    if by_user and (victim is not None or not by_database):
        other = _longest_idle(pool.user.pools)
        if other is None or not by_database:
            victim = other
    return Decision(EVICT, victim) if victim is not None else Decision(FULL, shared=True)


def _decide_dedicated(pool: Pool, main: Pool) -> Decision:
    """A replication client's server counts in the size of the pool that it would be in, and may take an idle one's place."""
    if pool.server_count > 0:
        return Decision(FULL)
    if main.limits.pool_size > 0 and main.taken >= main.limits.pool_size:
        victim = _longest_idle([main])
    elif database_is_full(pool):
        victim = _longest_idle(pool.database.pools)
    elif user_is_full(pool):
        victim = _longest_idle(pool.user.pools)
    else:
        return Decision(OPEN)
    return Decision(EVICT, victim) if victim is not None else Decision(FULL, shared=True)


def database_is_full(pool: Pool) -> bool:
    database = pool.database
    return database.max_connections > 0 and database.server_count >= database.max_connections


def user_is_full(pool: Pool) -> bool:
    user = pool.user
    return user.max_connections > 0 and user.server_count >= user.max_connections


def owes(source: Pool, starving: Pool, now: float) -> bool:
    """Must `source` give up a server to `starving`, although it has waiters of its own?"""
    if starving.server_count or now < starving.retry_at or starving.is_paused:
        return False
    waited = longest_wait(starving, now)
    if waited < STARVED_S or waited <= longest_wait(source, now):
        return False
    by_database = database_is_full(starving)
    by_user = user_is_full(starving)
    if by_database and starving.database is not source.database:
        return False
    if by_user and starving.user is not source.user:
        return False
    return by_database or by_user


def _longest_idle(pools: list[Pool]) -> PoolServer | None:
    """The server that has been idle longest in any of these pools; one whose pool has waiters is never taken."""
    found: PoolServer | None = None
    for pool in pools:
        if pool.waiting.count:
            continue
        for member in pool.idle.members() + pool.servers[SV_USED].members():
            server = cast(PoolServer, member)
            if found is None or server.request_time < found.request_time:
                found = server
    return found


def reason_to_wait(pool: Pool, now: float) -> str:
    """Why the clients that wait in `pool` wait, in words for people."""
    limits = pool.limits
    failure = pool.last_failure
    if pool.is_paused:
        return "paused"
    if failure is not None and pool.usable_servers == 0 and now < pool.retry_at:
        return f"no server can be had: {failure.message}"
    if pool.opening.count:
        return "a server is being opened"
    if pool.servers[SV_TESTED].count:
        return "a server is being checked or reset"
    database, user = pool.database, pool.user
    reached = limit_reached(
        limits.pool_size, pool.taken,
        database.max_connections, database.server_count,
        user.max_connections, user.server_count,
    )  # fmt: skip
    return reached or ABOUT_TO_OPEN


def limit_reached(
    pool_size: i64, taken: i64, max_of_database: i64, of_database: i64, max_of_user: i64, of_user: i64
) -> str:
    """Which limit (0: none) keeps a pool from one more server, in words for people; empty when none does."""
    if pool_size > 0 and taken >= pool_size:
        return f"all {int(taken)} servers of the pool are busy"
    if max_of_database > 0 and of_database >= max_of_database:
        return f"max_db_connections: all {int(of_database)} servers of the database are taken"
    if max_of_user > 0 and of_user >= max_of_user:
        return f"max_user_connections: all {int(of_user)} servers of the user are taken"
    return ""
