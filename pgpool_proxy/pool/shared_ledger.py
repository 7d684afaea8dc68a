"""The ledger of one worker of several: servers are opened by leases, of which the supervisor keeps account (leases.py).

Theory of operation
-------------------
A pool that wants a server uses up a grant, or is noted; `flush` says what the noted ones want as long as somebody waits,
at most every 5 ms each. What is granted is used at once or given back. When the supervisor asks for a server (`Recall`), an
idle one goes, the one that was used longest ago; else the pool remembers, and each server that it releases is offered
(`Pool._settle`):

    the pool has no waiters                                 it goes
    somebody waits in a worker that has none of the pool's  it goes when he has waited longer than our next waiter
    somebody waits in another one                           it goes when he has waited 1.25 times as long, and 10 ms more
    it would have to be closed for another pool             it goes when that pool has no server at all, and waits for a second

To move costs about a millisecond, a login ten, so a pool with waiters keeps for a while what it has got, and one that has just
used its only server does not let it go at once; where servers cannot move, all that takes longer (`_owes`; what is put off is
looked at again by `flush`). A server that goes is moved with its connection, or closed, and is somebody else's then.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.leases import GRANT, MINIMUM, RECALL, RECALL_OFF, REFUSALS, UNEVEN, UNEVEN_S
from pgpool_proxy.pool.ledger import LATER
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.pool.states import SV_IDLE, SV_USED

SAY_S: Final = 0.005  # what is wanted is not said anew before: many requests wait for less than that
KEEP_EVEN_S: Final = 0.050  # a pool with waiters gives up a server for the sake of balance, at most so often
KEEP_LEAST_S: Final = 0.005  # a worker that has got the only server uses it at least so long
KEEP_PART: Final = 0.125  # or for this part of the other one's wait, up to KEEP_EVEN_S
KEEP_LOGIN_S: Final = 0.2  # where a server cannot move, and costs a login
KEEP_LAST_S: Final = 0.020  # the only server of a worker that was using it just now
KEEP_IDLE_S: Final = 0.02  # such a server that is idle, for a worker that has none
WORTH_LOGIN_S: Final = 0.03  # or for one that has some, when it waits for so long: most waits are over before


class Wire(Protocol):
    """Messages to the supervisor; `leases.LeaseBook` and `leases.ClientBook` say what they mean there."""

    def wake(self) -> None:
        """There is something for `flush`: call it at the end of this turn of the loop."""
        ...

    def say_wants(
        self, database: str, user: str, waiting: int, logins: int, dedicated: int, minimum: int, since: float, received: int
    ) -> None: ...

    def say_has_clients(self, database: str, user: str, yes: bool) -> None: ...

    def say_busy(self, database: str, user: str, recall: int) -> None: ...

    def say_closing(self, database: str, user: str, number: int, recall: int) -> None:
        """The server of this number is being closed; 0: one that never had a connection here."""
        ...

    def say_given_back(self, database: str, user: str, number: int) -> None: ...

    def ask_admission(self, ticket: int, database: str, user: str, over: bool) -> None: ...

    def say_settled(self, database: str, user: str) -> None: ...

    def say_withdrawn(self, database: str, user: str) -> None: ...

    def say_ended(self, database: str, user: str) -> None: ...


class Mover(Protocol):
    """Takes servers to other workers."""

    def can_move(self, server: PoolServer) -> bool:
        """False: its connection cannot be taken over (TLS, state that no other process could know)."""
        ...

    def move(self, server: PoolServer, recall: i64, now: float) -> bool:
        """Offer it to the supervisor and end it here by `gone`, leaving the connection as it is. False: nothing was done."""
        ...


class Recall:
    """The supervisor wants one server of a pool; see `leases.Recall`."""

    def __init__(self, number: i64, since: float, starving: bool, close: bool) -> None:
        self.number: i64 = number
        self.since: float = since
        self.starving: bool = starving
        self.close: bool = close


class Share:
    """This worker's part of one pool, its replication clients' pools with it."""

    def __init__(self, database: str, user: str) -> None:
        self.database: str = database
        self.user: str = user
        self.grants: i64 = 0  # leave to open servers that is not used yet
        self.from_reserve: i64 = 0  # of these
        self.received: i64 = 0  # leases that have come and were not confirmed yet
        self.waiting: i64 = 0  # what was said last
        self.logins: i64 = 0
        self.dedicated: i64 = 0
        self.minimum: i64 = 0
        self.since: float = 0.0
        self.said_at: float = 0.0
        self.is_open: bool = False  # noted
        self.recalls: list[Recall] = []
        self.done: i64 = 0  # the last recall for which a server was given up
        self.got_at: float = 0.0  # when a lease came or went
        self.least: i64 = 0  # our part of min_pool_size
        self.least_of_all: i64 = 0  # min_pool_size
        self.has_clients: bool = False  # as said

    @property
    def is_clean(self) -> bool:
        """Nothing is lost when it is forgotten."""
        said = self.waiting + self.logins + self.dedicated + self.minimum
        return said + self.grants + self.received + self.least == 0 and not (self.is_open or self.recalls or self.has_clients)


class SharedLedger:
    """See the module's theory of operation. `use` says for whom; a `Ledger` for its pools."""

    def __init__(self, wire: Wire, mover: Mover) -> None:
        self.is_dirty: bool = False  # there is something new for `flush`
        self._wire: Wire = wire
        self._mover: Mover = mover
        self._registry: Registry | None = None
        self._shares: dict[tuple[str, str], Share] = {}
        self._open: list[Share] = []
        self._leaving: PoolServer | None = None  # is being given up
        self._answering: i64 = 0  # for this recall; 0: it moves, and nothing is said of it
        self._last_ticket: int = 0
        self._tickets: dict[int, tuple[PoolClient, str, str]] = {}
        self._admitted: dict[int, tuple[str, str]] = {}  # by client number: counted by the supervisor, not settled yet

    def use(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def is_wanting(self) -> bool:
        """Somebody waits for a lease: `flush` every 10 ms."""
        return bool(self._open)

    # --- asked by pools -----------------------------------------------------------------------------------------------
    def may_open(self, pool: Pool, now: float) -> bool:
        share = self._share(pool)
        if share.grants and (pool.main is None or pool.server_count == 0):
            share.grants -= 1
            if share.from_reserve:
                share.from_reserve -= 1
                pool.database.registry.reserve_taken(pool)
            return True
        self._note(share)
        return False

    def give_back(self, pool: Pool) -> None:
        share = self._share(pool)
        share.grants += 1
        self._note(share)

    def closed(self, pool: Pool, server: PoolServer) -> None:
        recall: i64 = 0
        if server is self._leaving:
            if self._answering == 0:
                return  # it goes on elsewhere
            recall = self._answering
        self._wire.say_closing(pool.database.name, pool.user.name, int(server.number), int(recall))

    def offer(self, pool: Pool, server: PoolServer, now: float) -> bool:
        share = self._share(pool)
        for recall in share.recalls:
            if self._owes(share, pool, server, recall, now):
                self._give_up(share, pool, server, recall, now)
                return True
        if pool.waiting.first is None:
            self._note(share)  # it will be idle, and is looked at again
        return False

    def surplus(self, pool: Pool) -> i64:
        return 0  # the supervisor knows, and recalls

    def configured(self, pool: Pool) -> None:
        if pool.main is None and not pool.database.is_admin:
            share = self._share(pool)
            share.least_of_all = pool.limits.min_pool_size
            pool.limits.min_pool_size = share.least
            pool.recalls = len(share.recalls)

    # --- clients ------------------------------------------------------------------------------------------------------
    def admit(self, client: PoolClient, database: Database, user: User) -> Report | None:
        if database.is_admin:
            return None
        if not client.is_over and database.max_client_connections <= 0 and user.max_client_connections <= 0:
            return None
        self._last_ticket += 1
        self._tickets[self._last_ticket] = (client, database.name, user.name)
        self._wire.ask_admission(self._last_ticket, database.name, user.name, client.is_over)
        return LATER

    def admitted(self, ticket: int, code: i64, now: float) -> None:
        """The supervisor's answer."""
        client, database, user = self._tickets.pop(ticket)
        if code != 0:
            client.let_in(REFUSALS[int(code)], now)
        elif client.is_closed:
            self._wire.say_withdrawn(database, user)
        else:
            self._admitted[int(client.number)] = (database, user)
            client.let_in(None, now)

    def settled(self, client: PoolClient, database: Database, user: User) -> None:
        if self._admitted.pop(int(client.number), None) is None:
            self._wire.say_settled(database.name, user.name)

    def departed(self, client: PoolClient) -> None:
        user = client.login_user
        pool = client.pool
        if user is not None and pool is not None:
            self._wire.say_ended(pool.database.name, user.name)
            return
        admitted = self._admitted.pop(int(client.number), None)
        if admitted is not None:
            self._wire.say_withdrawn(admitted[0], admitted[1])
        self._wire.say_ended("", "")

    # --- orders of the supervisor ---------------------------------------------------------------------------------------
    def obey(
        self,
        kind: i64,
        database: str,
        user: str,
        number: i64,
        from_reserve: bool,
        recall: i64,
        since: float,
        starving: bool,
        close: bool,
        now: float,
    ) -> None:
        """One `leases.Order`."""
        share = self._share_of(database, user)
        if kind == GRANT:
            self._granted(share, number, from_reserve, now)
        elif kind == RECALL:
            self._recalled(share, Recall(recall, since, starving, close), now)
        elif kind == RECALL_OFF:
            self._recall_over(share, recall)
        elif kind == MINIMUM:
            share.least = number
            pool = self._pool(share)
            if pool is not None:
                pool.limits.min_pool_size = number

    def _granted(self, share: Share, number: i64, from_reserve: bool, now: float) -> None:
        share.grants += number
        share.received += number
        if from_reserve:
            share.from_reserve += number
        share.got_at = now
        self._note(share)  # what is left over is given back, what came is confirmed
        pool = self._pool(share)
        if pool is None:
            return
        hungry = [pool, *pool.dedicated]
        hungry.sort(key=_first_wait)
        for one in hungry:
            one.grow(now)

    def _recalled(self, share: Share, recall: Recall, now: float) -> None:
        for known in share.recalls:
            if known.number == recall.number:
                known.since = recall.since
                known.starving = recall.starving
                return
        if recall.number <= share.done:
            return  # news of one that has been answered meanwhile
        pool = self._pool(share)
        server = _spare(pool, recall.close) if pool is not None else None
        if pool is not None and server is not None:
            if self._owes(share, pool, server, recall, now):
                self._give_up(share, pool, server, recall, now)
                return
            self._note(share)  # in a moment, perhaps
        share.recalls.append(recall)
        if pool is not None:
            pool.recalls = len(share.recalls)
        self._wire.say_busy(share.database, share.user, int(recall.number))

    def _recall_over(self, share: Share, number: i64) -> None:
        share.recalls = [recall for recall in share.recalls if recall.number != number]
        pool = self._pool(share)
        if pool is not None:
            pool.recalls = len(share.recalls)

    def _owes(self, share: Share, pool: Pool, server: PoolServer, recall: Recall, now: float) -> bool:
        """Must the pool give up this server, which is idle, or was just released?"""
        member = pool.waiting.first
        waited = now - recall.since
        if member is None:
            if recall.close:
                return True
            if not recall.starving and pool.taken == 1 and now - server.request_time < KEEP_LAST_S:
                return False
            if self._mover.can_move(server):
                return True
            if recall.starving:
                return now - share.got_at >= KEEP_IDLE_S
            return waited >= WORTH_LOGIN_S and now - share.got_at >= KEEP_EVEN_S
        own_since = cast(PoolClient, member).wait_start
        if recall.close:
            return recall.starving and recall.since < own_since  # limits.owes, but for what the supervisor has looked at
        keep = KEEP_EVEN_S
        if recall.starving:
            if recall.since >= own_since:
                return False
            keep = min(KEEP_EVEN_S, max(KEEP_LEAST_S, waited * KEEP_PART))
        elif waited <= UNEVEN * (now - own_since) + UNEVEN_S:
            return False
        if keep < KEEP_LOGIN_S and not self._mover.can_move(server):
            keep = KEEP_LOGIN_S
        return now - share.got_at >= keep

    def _give_up(self, share: Share, pool: Pool, server: PoolServer, recall: Recall, now: float) -> None:
        """It is moved, or closed: the lease is not ours any more."""
        if recall.number > share.done:
            share.done = recall.number
        self._recall_over(share, recall.number)
        share.got_at = now
        self._leaving = server
        try:
            if not recall.close and self._mover.can_move(server):
                self._answering = 0
                if self._mover.move(server, recall.number, now):
                    return
            self._answering = recall.number
            server.disconnect(errors.EVICTED, now)
        finally:
            self._leaving = None
            self._answering = 0

    # --- servers that come ------------------------------------------------------------------------------------------------
    def arrived(self, server: PoolServer, parameters: dict[bytes, bytes], now: float) -> None:
        """A server (in state login) has moved here: it goes to the first waiter. `parameters`: what such servers report."""
        pool = server.pool
        self._came(self._share(pool), now)
        limits = pool.limits
        if limits.server_check_query is None or not 0 < limits.server_check_delay <= now - server.request_time:
            pool.opened(server, parameters, now)
            return
        if not server.close_needed:
            pool.learn(parameters, now)
        pool.move_server(server, SV_IDLE)
        pool.move_server(server, SV_USED)
        pool.grow(now)

    def lost(self, database: str, user: str, number: i64, now: float) -> None:
        """A server that was to move here could not be taken up, and is being closed."""
        self._came(self._share_of(database, user), now)
        self._wire.say_closing(database, user, int(number), 0)

    def _came(self, share: Share, now: float) -> None:
        share.received += 1
        share.got_at = now
        self._note(share)

    def learn(self, database: str, user: str, parameters: dict[bytes, bytes], now: float) -> None:
        """Another worker knows what the pool's servers report."""
        pool = self._pool(self._share_of(database, user))
        if pool is not None:
            pool.learn(parameters, now)

    # --- what we want -----------------------------------------------------------------------------------------------------
    def flush(self, now: float) -> None:
        """Say what is new: at the end of a loop turn when `is_dirty`, and every 10 ms while `is_wanting`."""
        self.is_dirty = False
        noted = self._open
        self._open = []
        for share in noted:
            if self._say(share, now):
                self._open.append(share)
            else:
                share.is_open = False

    def tick(self, now: float) -> None:
        """Every 100 ms: who has clients, for min_pool_size; what nobody wants any more is said so."""
        for key, share in list(self._shares.items()):
            pool = self._pool(share)
            keeps = False
            if pool is not None and share.least_of_all > 0:
                keeps = pool.has_clients or pool.database.forced_user == pool.user.name
            if keeps != share.has_clients:
                share.has_clients = keeps
                self._wire.say_has_clients(share.database, share.user, keeps)
            if share.minimum:
                self._note(share)
            elif pool is None and share.is_clean:
                del self._shares[key]

    def _say(self, share: Share, now: float) -> bool:
        """True: it stays noted, since somebody waits or there is more to say in a moment."""
        if share.grants:
            self._wire.say_given_back(share.database, share.user, int(share.grants))
            share.grants = 0
            share.from_reserve = 0
        waiting: i64 = 0
        logins: i64 = 0
        dedicated: i64 = 0
        minimum: i64 = 0
        since = 0.0
        pool = self._pool(share)
        puts_off = pool is not None and self._puts_off(share, pool, now)
        if pool is not None:
            wanted = pool.wanted_servers(now)
            if wanted > 0 and pool.may_grow(now):
                if pool.waiting.count:
                    waiting = max(min(wanted, pool.waiting.count - pool.opening.count), i64(0))
                    minimum = wanted - waiting
                elif pool.waiting_login.count and not pool.opening.count:
                    logins = 1
                    minimum = wanted - 1
                else:
                    minimum = wanted
                if waiting or logins:
                    since = _first_wait(pool)
            for one in pool.dedicated:
                if one.server_count == 0 and one.wanted_servers(now) > 0 and one.may_grow(now):
                    dedicated += 1
                    first = _first_wait(one)
                    if since == 0.0 or first < since:
                        since = first
        waits = waiting + logins + dedicated > 0
        is_same = (
            waiting == share.waiting
            and logins == share.logins
            and dedicated == share.dedicated
            and minimum == share.minimum
            and since == share.since
        )
        if is_same and not share.received:
            return waits or puts_off
        if now - share.said_at < SAY_S:
            return True
        share.waiting = waiting
        share.logins = logins
        share.dedicated = dedicated
        share.minimum = minimum
        share.since = since
        share.said_at = now
        self._wire.say_wants(
            share.database, share.user, int(waiting), int(logins), int(dedicated), int(minimum), since, int(share.received)
        )
        share.received = 0
        return waits or puts_off

    def _puts_off(self, share: Share, pool: Pool, now: float) -> bool:
        """Idle servers that were recalled too early go when it is time. True: some are left."""
        for recall in share.recalls[:]:
            server = _spare(pool, recall.close)
            if server is None:
                return False
            if self._owes(share, pool, server, recall, now):
                self._give_up(share, pool, server, recall, now)
        return bool(share.recalls) and _spare(pool, False) is not None

    def _note(self, share: Share) -> None:
        if not share.is_open:
            share.is_open = True
            self._open.append(share)
            self.is_dirty = True
            self._wire.wake()

    def _share(self, pool: Pool) -> Share:
        return self._share_of(pool.database.name, pool.user.name)

    def _share_of(self, database: str, user: str) -> Share:
        key = (database, user)
        share = self._shares.get(key)
        if share is None:
            share = Share(database, user)
            self._shares[key] = share
        return share

    def _pool(self, share: Share) -> Pool | None:
        registry = self._registry
        return registry.pools.get((share.database, share.user)) if registry is not None else None


def _first_wait(pool: Pool) -> float:
    member = pool.waiting.first or pool.waiting_login.first
    return cast(PoolClient, member).wait_start if member is not None else float("inf")


def _spare(pool: Pool, close: bool) -> PoolServer | None:
    """The server that was used longest ago, when nobody waits for one. To move, rather one that need not be checked first."""
    if pool.waiting.count:
        return None
    idle = cast("PoolServer | None", pool.idle.first)
    used = cast("PoolServer | None", pool.used.first)
    if idle is None or used is None:
        return idle if used is None else used
    return used if close and used.request_time < idle.request_time else idle
