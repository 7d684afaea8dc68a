"""What time brings: `tick(now)` looks at every pool and returns orders; somebody else carries them out.

It closes servers that are old, idle for too long or too many, sends away clients that waited or idled for too long, marks
servers that must be checked before their next use, and says which pools should try to grow.
"""

from __future__ import annotations

from typing import Final, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Database, Registry
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_WAITING_CANCEL,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_TESTED,
    SV_USED,
)

CLOSE_CLIENT: Final = 0
CLOSE_SERVER: Final = 1
NOTIFY_CLIENT: Final = 2
GROW: Final = 3
DROP_POOL: Final = 4
DROP_DATABASE: Final = 5


class Order:
    """One thing to do: `action`, whom it concerns, and the reason that everybody is told."""

    def __init__(
        self,
        action: i64,
        report: Report,
        client: PoolClient | None = None,
        server: PoolServer | None = None,
        pool: Pool | None = None,
        database: Database | None = None,
    ) -> None:
        self.action: i64 = action
        self.report: Report = report
        self.client: PoolClient | None = client
        self.server: PoolServer | None = server
        self.pool: Pool | None = pool
        self.database: Database | None = database

    def __repr__(self) -> str:
        return f"<Order {self.action} {self.report.message} {self.client or self.server or self.pool or self.database!r}>"


NOTHING_TO_SAY: Final = Report("", "00000", "LOG")


class Janitor:
    """Timeouts that belong to the process, not to a pool: seconds, 0 is off."""

    def __init__(self, registry: Registry) -> None:
        self.registry: Registry = registry
        self.client_login_timeout: float = 60.0
        self.server_connect_timeout: float = 15.0
        self.cancel_wait_timeout: float = 10.0
        self.pool_idle_timeout: float = 0.0
        self.autodb_idle_timeout: float = 3600.0

    def tick(self, now: float) -> list[Order]:
        orders: list[Order] = []
        self._expire_logins(now, orders)
        for pool in list(self.registry.pools.values()):
            self._expire_waiting(pool, now, orders)
            self._expire_clients(pool, now, orders)
            self._tend_servers(pool, now, orders)
            wanted = pool.wanted_servers(now) > 0
            if (wanted and now >= pool.retry_at) or (pool.waiting.count and pool.idle.count):
                orders.append(Order(GROW, NOTHING_TO_SAY, pool=pool))
            if not wanted and self.pool_idle_timeout > 0 and self._is_abandoned(pool, now):
                orders.append(Order(DROP_POOL, NOTHING_TO_SAY, pool=pool))
        for pool in self.registry.peer_pools.values():
            self._tend_peer(pool, now, orders)
        if self.autodb_idle_timeout > 0:
            self._forget_databases(now, orders)
        return orders

    def _forget_databases(self, now: float, orders: list[Order]) -> None:
        """Databases that `*` made and nobody uses any more. What an operator has paused or disabled stays so."""
        for database in self.registry.databases.values():
            if not database.is_auto or database.paused or database.disabled:
                continue
            if database.last_used == 0.0 or database.client_count or database.server_count:
                database.last_used = now
            elif now - database.last_used >= self.autodb_idle_timeout:
                orders.append(Order(DROP_DATABASE, NOTHING_TO_SAY, database=database))

    def _is_abandoned(self, pool: Pool, now: float) -> bool:
        if pool.client_count or pool.server_count or pool.database.is_admin:
            return False
        return now - pool.last_used >= self.pool_idle_timeout

    def _expire_logins(self, now: float, orders: list[Order]) -> None:
        limit = self.client_login_timeout
        if limit <= 0:
            return
        for member in self.registry.login_clients.members():
            client = cast(PoolClient, member)
            if now - client.connect_time < limit:
                return  # in order of arrival: the others are younger
            orders.append(Order(CLOSE_CLIENT, errors.CLIENT_LOGIN_TIMEOUT, client))

    def _expire_waiting(self, pool: Pool, now: float, orders: list[Order]) -> None:
        limits = pool.limits
        if pool.waiting.count:
            for member in pool.waiting.members():
                client = cast(PoolClient, member)
                waited = now - client.wait_start
                if limits.query_wait_timeout > 0 and waited >= limits.query_wait_timeout:
                    orders.append(Order(CLOSE_CLIENT, errors.QUERY_WAIT_TIMEOUT, client))
                elif limits.query_wait_notify > 0 and waited >= limits.query_wait_notify:
                    if not client.wait_notified:
                        client.wait_notified = True
                        orders.append(Order(NOTIFY_CLIENT, NOTHING_TO_SAY, client))
                else:
                    break  # first come, first served: the others have waited less
        if pool.waiting_login.count and self.client_login_timeout > 0:
            for member in pool.waiting_login.members():
                client = cast(PoolClient, member)
                if now - client.connect_time >= self.client_login_timeout:
                    report = pool.last_failure or errors.CLIENT_LOGIN_TIMEOUT_SERVER_DOWN
                    orders.append(
                        Order(CLOSE_CLIENT, errors.CLIENT_LOGIN_TIMEOUT_SERVER_DOWN.with_detail(report.message), client)
                    )
        for member in pool.clients[CL_WAITING_CANCEL].members():
            client = cast(PoolClient, member)
            if self.cancel_wait_timeout > 0 and now - client.request_time >= self.cancel_wait_timeout:
                orders.append(Order(CLOSE_CLIENT, errors.CANCEL_WAIT_TIMEOUT, client))

    def _expire_clients(self, pool: Pool, now: float, orders: list[Order]) -> None:
        """Clients that are idle, or servers that are held, for longer than the settings allow. Costs nothing when all are 0."""
        limits = pool.limits
        if limits.client_idle_timeout > 0:
            for member in pool.clients[CL_ACTIVE].members():
                client = cast(PoolClient, member)
                if client.server is None and now - client.request_time >= limits.client_idle_timeout:
                    orders.append(Order(CLOSE_CLIENT, errors.CLIENT_IDLE_TIMEOUT, client))
        for member in pool.servers[SV_ACTIVE].members():
            server = cast(PoolServer, member)
            report = server.overdue(now)
            if report is not None:
                orders.append(Order(CLOSE_SERVER, report, server=server))

    def _tend_servers(self, pool: Pool, now: float, orders: list[Order]) -> None:
        limits = pool.limits
        for member in pool.opening.members():
            server = cast(PoolServer, member)
            if self.server_connect_timeout > 0 and now - server.connect_time >= self.server_connect_timeout:
                orders.append(Order(CLOSE_SERVER, errors.CONNECT_TIMEOUT, server=server))
        self._end_of_tests(pool, now, orders)
        surplus = pool.ledger.surplus(pool)
        spare = pool.server_count - limits.min_pool_size
        for members in (pool.idle, pool.servers[SV_USED]):
            for member in members.members():
                server = cast(PoolServer, member)
                idle = now - server.request_time
                reason = pool.wants_retirement(server, now)
                if reason is None and surplus > 0:
                    reason = errors.TOO_MANY_SERVERS
                if reason is None and 0 < limits.server_idle_timeout <= idle and spare > 0:
                    reason = errors.SERVER_IDLE_TIMEOUT
                if reason is not None:
                    orders.append(Order(CLOSE_SERVER, reason, server=server))
                    surplus -= 1
                    spare -= 1
                elif members is pool.idle and limits.server_check_query is not None and 0 < limits.server_check_delay <= idle:
                    pool.move_server(server, SV_USED)

    def _tend_peer(self, pool: Pool, now: float, orders: list[Order]) -> None:
        """Cancel requests for a peer that does not answer must not hold the places of others."""
        self._expire_waiting(pool, now, orders)
        for members in (pool.opening, pool.servers[SV_ACTIVE_CANCEL]):
            for member in members.members():
                server = cast(PoolServer, member)
                if 0 < self.cancel_wait_timeout <= now - server.request_time:
                    orders.append(Order(CLOSE_SERVER, errors.CANCEL_WAIT_TIMEOUT, server=server))

    def _end_of_tests(self, pool: Pool, now: float, orders: list[Order]) -> None:
        """Servers that do not answer a check or a reset, or whose cancel does not end: they would never be free again."""
        for member in pool.servers[SV_TESTED].members():
            server = cast(PoolServer, member)
            if server.tested_since == 0.0:
                server.tested_since = now
            elif 0 < self.server_connect_timeout <= now - server.tested_since:
                orders.append(Order(CLOSE_SERVER, errors.CHECK_FAILED.with_detail("no answer in time"), server=server))
        for member in pool.servers[SV_BEING_CANCELED].members():
            server = cast(PoolServer, member)
            if 0 < self.cancel_wait_timeout <= now - server.request_time:
                orders.append(Order(CLOSE_SERVER, errors.CANCEL_WAIT_TIMEOUT, server=server))
