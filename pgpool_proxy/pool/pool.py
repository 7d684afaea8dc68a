"""One (database, user) pool: one container per state, and who gets which server.

Theory of operation
-------------------
Every client and server of the pool stands in the container of its state; `move_client` and `move_server` are the only ones to
move them, along the tables of `states`. A client that wants a server gets the most recently used idle one at once, or queues
first come, first served; a server that is released goes to the first waiter in the same call, so nothing lies between taking
and giving. Opening more servers is planned by `grow`, which asks the ledger for leave and tells the launcher. HOT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.containers import StateList
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_ACTIVE_CANCEL,
    CL_CLOSED,
    CL_LOGIN,
    CL_WAITING,
    CL_WAITING_CANCEL,
    CL_WAITING_LOGIN,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_CLOSED,
    SV_IDLE,
    SV_LOGIN,
    SV_TESTED,
    SV_USED,
    ClientState,
    ServerState,
    check_client_move,
    check_server_move,
)
from pgpool_proxy.pool.stats import PoolStats

if TYPE_CHECKING:
    from pgpool_proxy.pool.ledger import Ledger
    from pgpool_proxy.pool.registry import Database, User

SESSION: Final = 0
TRANSACTION: Final = 1
STATEMENT: Final = 2
POOL_MODES: Final = ("session", "transaction", "statement")

NO_REPLICATION: Final = 0
LOGICAL: Final = 1
PHYSICAL: Final = 2
REPLICATION_NAMES: Final = ("none", "logical", "physical")  # in SHOW
REPLICATION_WORDS: Final = ("no", "database", "yes")  # as values of the startup parameter

IGNORE: Final = 0
WARN: Final = 1
RESET: Final = 2
PIN: Final = 3
SESSION_STATES: Final = ("ignore", "warn", "reset", "pin")

MAX_OPENING: Final = 8  # logins of one pool under way at once: a server forks and authenticates for each
CHECK_GRACE_S: Final = 0.5  # a check query that takes longer is not counted on: another server is opened
FIRST_RETRY_S: Final = 0.1  # pause after the first failed login; it doubles up to server_login_retry
RETURN_PAUSES: Final = 3  # doublings while a server is away, so that its return is noticed within a second,
RETURNS_SOON: Final = 150  # for so many attempts: some two minutes


def retry_pause(failures: i64, is_away: bool, longest: float) -> float:
    """Seconds until the next attempt after so many that failed; at most `longest`.

    `is_away`: nobody listens or it is starting up, as when it is restarted. An attempt costs nobody anything then.
    """
    doublings = failures
    if is_away and doublings > RETURN_PAUSES:
        doublings = max(RETURN_PAUSES, failures - RETURNS_SOON)
    return min(longest, FIRST_RETRY_S * float(1 << int(min(doublings, 20))))


class Launcher(Protocol):
    """Opens servers; what it starts is in the pool (state login) before it returns."""

    def launch(self, pool: Pool, now: float) -> None: ...


class PoolLimits:
    """The settings that a pool obeys, resolved for its user and database. Seconds where a name says timeout or lifetime."""

    def __init__(self) -> None:
        self.pool_mode: i64 = SESSION
        self.pool_size: i64 = 20
        self.min_pool_size: i64 = 0
        self.reserve_pool_size: i64 = 0
        self.reserve_pool_timeout: float = 5.0
        self.query_wait_timeout: float = 120.0
        self.query_timeout: float = 0.0
        self.transaction_timeout: float = 0.0
        self.idle_transaction_timeout: float = 0.0
        self.client_idle_timeout: float = 0.0
        self.server_lifetime: float = 3600.0
        self.server_idle_timeout: float = 600.0
        self.server_login_retry: float = 15.0
        self.server_login_retry_backoff: bool = True  # off: queries are refused until then, too
        self.server_check_delay: float = 30.0
        self.server_check_query: bytes | None = b""  # None: no check; empty: an empty Query
        self.server_reset_query: bytes = b"DISCARD ALL"
        self.server_reset_query_always: bool = False
        self.server_round_robin: bool = False
        self.server_fast_close: bool = False
        self.query_wait_notify: float = 5.0
        self.max_prepared_statements: i64 = 200
        self.session_state: i64 = IGNORE
        self.load_balance_hosts: str | None = None


class Pool:
    """See the module's theory of operation."""

    def __init__(self, database: Database, user: User, ledger: Ledger, launcher: Launcher, limits: PoolLimits) -> None:
        self.database: Database = database
        self.user: User = user
        self.ledger: Ledger = ledger
        self.launcher: Launcher = launcher
        self.limits: PoolLimits = limits
        self.clients: list[StateList] = [StateList(f"cl_{state.name.lower()}") for state in ClientState]
        self.servers: list[StateList] = [StateList(f"sv_{state.name.lower()}") for state in ServerState]
        self.waiting: StateList = self.clients[CL_WAITING]
        self.waiting_login: StateList = self.clients[CL_WAITING_LOGIN]
        self.idle: StateList = self.servers[SV_IDLE]
        self.active: StateList = self.servers[SV_ACTIVE]
        self.opening: StateList = self.servers[SV_LOGIN]
        self.used: StateList = self.servers[SV_USED]
        self.tested: StateList = self.servers[SV_TESTED]
        self.stats: PoolStats = PoolStats()
        self.server_parameters: dict[bytes, bytes] | None = None  # what a server reports at login; None: not known yet
        self.generation: i64 = 0  # grows when servers have to be opened anew (RECONNECT): server_parameters are then stale
        self.last_failure: Report | None = None  # the last failed server login, until one succeeds
        self.failures: i64 = 0  # failed server logins in a row; what fails during a pause is the same failure
        self.retry_at: float = 0.0  # no server is opened before
        self.last_lifetime_close: float = 0.0
        self.last_used: float = 0.0
        self.replication: i64 = NO_REPLICATION  # made for one replication client, and gone with it
        self.main: Pool | None = None  # then: the pool whose size it counts in
        self.startup: list[tuple[bytes, bytes]] = []  # then: the client's own parameters, for its server's StartupMessage
        self.dedicated: list[Pool] = []  # the pools that count in the size of this one
        self.number: i64 = 0  # tells pools of the same database and user apart
        self.recalls: i64 = 0  # servers that the ledger has been asked for and could not give up yet
        self.handing: bool = False  # `_serve_waiting` is under way: what is released meanwhile is its next

    # --- counts -------------------------------------------------------------------------------------------------------
    @property
    def client_count(self) -> int:
        return sum(int(members.count) for members in self.clients)

    @property
    def server_count(self) -> i64:
        """Servers that count against pool_size: all but those which only carry a CancelRequest."""
        total: i64 = 0
        for state in range(SV_CLOSED):
            if state != SV_ACTIVE_CANCEL:
                total += self.servers[state].count
        return total

    @property
    def taken(self) -> i64:
        """What counts against pool_size: its servers, and those of its replication clients."""
        total = self.server_count
        for pool in self.dedicated:
            total += pool.server_count
        return total

    @property
    def usable_servers(self) -> i64:
        """Servers that are logged in."""
        return self.server_count - self.opening.count

    @property
    def is_paused(self) -> bool:
        return self.database.paused or self.database.registry.paused

    def __repr__(self) -> str:
        counts = [f" {members.name}={members.count}" for members in self.clients + self.servers if members.count]
        return f"<Pool {self.database.name}/{self.user.name}{''.join(counts)}>"

    # --- movers -------------------------------------------------------------------------------------------------------
    def move_client(self, client: PoolClient, state: i64) -> None:
        """The only way for a client of this pool to change its state."""
        check_client_move(client.state, state)
        if client.home is not None:
            self.clients[client.state].remove(client)
        client.state = state
        if state != CL_CLOSED:
            self.clients[state].append(client)

    def move_server(self, server: PoolServer, state: i64) -> None:
        """The only way for a server of this pool to change its state."""
        check_server_move(server.state, state)
        if server.home is not None:
            self.servers[server.state].remove(server)
        server.state = state
        if state != SV_CLOSED:
            self.servers[state].append(server)

    # --- clients ------------------------------------------------------------------------------------------------------
    def join(self, client: PoolClient, now: float) -> bool:
        """A client that proved who it is joins. False: it waits until a server's parameters are known (`welcome`)."""
        client.pool = self
        self.last_used = now
        if self.server_parameters is not None:
            self.move_client(client, CL_ACTIVE)
            return True
        client.wait_start = now
        self.move_client(client, CL_WAITING_LOGIN)
        self.grow(now)
        return False

    def leave(self, client: PoolClient, now: float) -> None:
        """The client is gone, whatever it was doing; its link has been ended by its owner."""
        if client.state != CL_CLOSED:
            is_cancel = client.state == CL_WAITING_CANCEL or client.state == CL_ACTIVE_CANCEL
            if client.state == CL_LOGIN:
                check_client_move(client.state, CL_CLOSED)
                client.state = CL_CLOSED
            else:
                self.move_client(client, CL_CLOSED)
            self.last_used = now
            if self.main is not None and not is_cancel:
                self.dissolve(now)

    def dissolve(self, now: float) -> None:
        """The replication client is gone: its server goes with it, and the pool."""
        for members in self.servers:
            for member in members.members():
                cast(PoolServer, member).disconnect(errors.REPLICATION_CLOSED, now)
        self.database.registry.drop_pool(self)

    def request(self, client: PoolClient, now: float) -> bool:
        """`client` wants a server. True: it was given one (`assigned` was called); False: it queues, or was refused."""
        if self.waiting.first is None and not self.is_paused:
            server = self._pick(now)
            if server is not None:
                self._give(server, client, now)
                return True
        if self.last_failure is not None and not self.limits.server_login_retry_backoff:
            failure = self.failure(now)
            if failure is not None:
                client.disconnect(failure, now)
                return False
        client.wait_start = now
        client.wait_notified = False
        self.move_client(client, CL_WAITING)
        self.grow(now)
        return client.state != CL_WAITING

    def withdraw(self, client: PoolClient) -> None:
        """A waiting client does not want a server any more (it was cancelled); it is idle again."""
        self.move_client(client, CL_ACTIVE)
        client.wait_start = 0.0

    def _pick(self, now: float) -> PoolServer | None:
        """The idle server to use next; those that must not be used again are closed on the way."""
        idle = self.idle
        while True:
            member = idle.first if self.limits.server_round_robin else idle.last
            if member is None:
                return None
            server = cast(PoolServer, member)
            if not server.close_needed:
                return server
            server.disconnect(errors.OBSOLETE_CONNECTION, now)

    def _give(self, server: PoolServer, client: PoolClient, now: float) -> None:
        self.move_server(server, SV_ACTIVE)
        server.client = client
        client.server = server
        server.request_time = now
        self.stats.server_assignment_count += 1
        client.assigned(server, now)

    def _serve_waiting(self, server: PoolServer | None, now: float) -> bool:
        """Hand an unlinked server, and after it the idle ones, to the clients that have waited longest.

        False: not in a pause, nor in a call from within the one under way, which takes the server up when it is idle. So a
        client whose request is over at once does not make the next hand-over part of its own.
        """
        if self.handing or self.is_paused:
            return False
        waiting = self.waiting
        self.handing = True
        try:
            if server is not None and waiting.count:
                self._serve(server, cast(PoolClient, waiting.first), now)
            while self.idle.count and waiting.count and not self.is_paused:
                server = self._pick(now)
                if server is None:
                    break
                self._serve(server, cast(PoolClient, waiting.first), now)
        finally:
            self.handing = False
        return True

    def _serve(self, server: PoolServer, client: PoolClient, now: float) -> None:
        self.move_client(client, CL_ACTIVE)
        self._has_waited(client, now)
        if server.state == SV_ACTIVE:  # straight from hand to hand
            server.client = client
            client.server = server
            server.request_time = now
            self.stats.server_assignment_count += 1
            client.assigned(server, now)
        else:
            self._give(server, client, now)

    def _has_waited(self, client: PoolClient, now: float) -> None:
        waited = i64((now - client.wait_start) * 1_000_000)
        self.stats.wait_time += waited
        self.stats.waits.add(waited)
        client.wait_start = 0.0

    # --- servers ------------------------------------------------------------------------------------------------------
    def add_server(self, server: PoolServer) -> None:
        """A connection attempt begins."""
        self.opening.append(server)
        self.database.server_count += 1
        self.user.server_count += 1

    def opened(self, server: PoolServer, parameters: dict[bytes, bytes], now: float) -> None:
        """A server has logged in: it goes to the first waiter, or becomes idle."""
        self.forget_failures()
        if self.server_parameters is None and not server.close_needed:
            self.server_parameters = parameters
        if self.server_parameters is not None:
            self._welcome_all(now)
        self._free(server, now)
        self.grow(now)

    def forget_failures(self) -> None:
        """Servers can be had again."""
        self.last_failure = None
        self.failures = 0
        self.retry_at = 0.0

    def open_failed(self, report: Report, retry_in: float, now: float) -> None:
        """A connect or a login failed, here or in another worker: nothing is opened for `retry_in` seconds. The server itself
        leaves by `server_gone`."""
        self.last_failure = report
        if now >= self.retry_at:  # else it was begun together with the one that has failed already
            self.failures += 1
            self.retry_at = now + retry_in

    def failure(self, now: float) -> Report | None:
        """What to tell at once to who comes now, when no server can be had: none is usable, and none will be tried yet."""
        failure = self.last_failure
        if failure is None or self.usable_servers > 0 or now >= self.retry_at:
            return None
        return errors.cached_failure(failure)

    def send_away(self, report: Report, now: float, waiting_too: bool) -> None:
        """No server can be had: tell those who wait for their login and, with `waiting_too`, those who wait for a server."""
        if self.usable_servers > 0:
            return
        for member in self.waiting_login.members():
            cast(PoolClient, member).disconnect(report, now)
        if waiting_too:
            for member in self.waiting.members():
                cast(PoolClient, member).disconnect(report, now)

    def release(self, server: PoolServer, now: float) -> None:
        """The link of `server` has ended and it is clean: next waiter, idle, or closed if its time has come."""
        client = server.client
        if client is not None:
            client.server = None
            server.client = None
        server.request_time = now
        self._free(server, now)

    def _free(self, server: PoolServer, now: float) -> None:
        if server.cancels:
            self.move_server(server, SV_BEING_CANCELED)
            return
        reason = self._retirement(server, now)
        if reason is not None:
            server.disconnect(reason, now)
            return
        limits = self.limits
        if limits.server_check_delay == 0 and limits.server_check_query is not None and server.state != SV_LOGIN:
            self.move_server(server, SV_TESTED)
            server.check(limits.server_check_query, now)
            return
        self._settle(server, now)

    def _settle(self, server: PoolServer, now: float) -> None:
        if self.recalls and self.ledger.offer(self, server, now):
            return
        registry = self.database.registry
        if self.waiting.first is not None:
            if registry.starving and registry.owes(self, now):
                server.disconnect(errors.EVICTED, now)
                return
            if self._serve_waiting(server, now):
                return
        self.move_server(server, SV_IDLE)
        if registry.starving:
            registry.server_idled(self, now)

    def _retirement(self, server: PoolServer, now: float) -> Report | None:
        """Why a released server is not used again, or None."""
        if server.close_needed:
            return errors.CLOSE_NEEDED
        if self.is_paused:
            return errors.PAUSE_MODE
        lifetime = self.limits.server_lifetime
        if self.main is not None and server.state != SV_LOGIN:
            return errors.REPLICATION_CLOSED
        if now - server.connect_time >= lifetime and self._lifetime_due(server, lifetime, now):
            self.last_lifetime_close = now
            return errors.LIFETIME_OVER
        return None

    def _lifetime_due(self, server: PoolServer, lifetime: float, now: float) -> bool:
        """Closings for age are spaced by lifetime / pool_size, so that they never come as a herd. 0: used once."""
        state = server.state
        if state == SV_LOGIN or (lifetime == 0 and (state == SV_IDLE or state == SV_USED)):
            return False
        size = self.limits.pool_size
        spacing = lifetime / float(int(size)) if size > 0 else 0.0
        return now - self.last_lifetime_close >= spacing

    def wants_retirement(self, server: PoolServer, now: float) -> Report | None:
        """For the janitor: why an idle server should be closed now, or None. Claims the slot of server_lifetime's spacing."""
        return self._retirement(server, now)

    def checked(self, server: PoolServer, now: float) -> None:
        """server_check_query or server_reset_query has been answered: the server may be used."""
        server.tested_since = 0.0
        if server.cancels:
            self.move_server(server, SV_BEING_CANCELED)
            return
        reason = self._retirement(server, now)
        if reason is not None:
            server.disconnect(reason, now)
        else:
            self._settle(server, now)

    def cancel_ended(self, server: PoolServer, now: float) -> None:
        """A CancelRequest for `server` has ended; the last one sets it free."""
        server.cancels -= 1
        if server.cancels:
            return
        if server.state == SV_ACTIVE:
            server.cancels_ended(now)
        elif server.state == SV_BEING_CANCELED:
            if server.is_unclean:
                server.clean(now)
            else:
                self._free(server, now)

    def server_gone(self, server: PoolServer, now: float) -> None:
        """The server is closed, whatever it was doing; its link has been ended by its owner."""
        if server.state == SV_CLOSED:
            return
        counted = server.state != SV_ACTIVE_CANCEL
        client = server.client
        if client is not None:
            client.server = None
            server.client = None
        self.move_server(server, SV_CLOSED)
        if counted:
            self.database.server_count -= 1
            self.user.server_count -= 1
            self.ledger.closed(self, server)
        self.last_used = now
        hungry = self.waiting.count > 0 or self.waiting_login.count > 0
        registry = self.database.registry
        if registry.starving:
            if hungry:
                registry.starve(self)  # its turn comes by the time that its first client has waited
            registry.room_made(self, now)
        if hungry:
            self.grow(now)  # min_pool_size is the janitor's: what was evicted for another pool must not come back at once

    def learn(self, parameters: dict[bytes, bytes], now: float) -> None:
        """What its servers report is known from elsewhere, before one has logged in here."""
        if self.server_parameters is None:
            self.server_parameters = parameters
            self._welcome_all(now)

    def forget_parameters(self) -> None:
        """What servers report is to be learned anew (RECONNECT, another server, another TLS set-up)."""
        self.generation += 1
        self.server_parameters = None

    # --- growing ------------------------------------------------------------------------------------------------------
    def _welcome_all(self, now: float) -> None:
        for member in self.waiting_login.members():
            client = cast(PoolClient, member)
            if client.state != CL_WAITING_LOGIN:
                continue
            self._has_waited(client, now)
            self.move_client(client, CL_ACTIVE)
            client.welcome(now)

    def wanted_servers(self, now: float) -> i64:
        """How many more servers should be opening now, before limits: never more than there are waiters."""
        waiters = self.waiting.count
        if waiters == 0:
            if self.waiting_login.count and self.server_parameters is None:
                waiters = 1
        elif self.tested.count:
            waiters -= self._being_checked(now)
        wanted = min(MAX_OPENING, waiters)
        servers = self.server_count
        if servers < self.limits.min_pool_size and (self.has_clients or self.database.forced_user == self.user.name):
            missing = self.limits.min_pool_size - servers + self.opening.count
            if missing > MAX_OPENING:
                missing = MAX_OPENING
            if missing > wanted:
                wanted = missing
        if self.failures and wanted > 1:
            wanted = 1  # whether it can be had again one attempt tells
        return wanted - self.opening.count

    def _being_checked(self, now: float) -> i64:
        """Servers that will be free in a moment. One that takes long may never answer: nobody counts on it."""
        count: i64 = 0
        for member in self.tested.members():
            if now - cast(PoolServer, member).request_time < CHECK_GRACE_S:
                count += 1
        return count

    @property
    def has_clients(self) -> bool:
        return (self.clients[CL_ACTIVE].count + self.waiting.count + self.waiting_login.count) > 0

    def grow(self, now: float) -> None:
        """See to those who wait: give them what is idle, check what was idle for long, open what is wanted, allowed and not
        put off by a failed login."""
        if self.idle.count and self.waiting.count:
            self._serve_waiting(None, now)
        if self.used.count and self.waiting.count and not self.is_paused:
            self._check_used(now)
        while self.wanted_servers(now) > 0:
            if not self.may_grow(now):
                return
            if not self.ledger.may_open(self, now):
                return
            if self.wanted_servers(now) <= 0:  # the eviction of a server has called us, too
                self.ledger.give_back(self)
                return
            self.launcher.launch(self, now)

    def may_grow(self, now: float) -> bool:
        """False: no server is opened for it now, whoever wants one."""
        if now < self.retry_at or self.is_paused or self.database.is_removed:
            return False
        registry = self.database.registry
        return registry.closing is None and not registry.suspended

    def _check_used(self, now: float) -> None:
        """Somebody waits: the servers that were idle for long are checked, and come back through `checked`."""
        query = self.limits.server_check_query
        wanted = self.waiting.count - self._being_checked(now)
        while wanted > 0:
            member = self.used.first  # not a walk: what happens to one may close others
            if member is None:
                return
            server = cast(PoolServer, member)
            server.request_time = now
            self.move_server(server, SV_TESTED)
            if query is None:
                self.checked(server, now)
            else:
                server.check(query, now)
            wanted -= 1
