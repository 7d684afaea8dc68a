"""Leases: the right to have one server connection, as the supervisor of several workers keeps account of it.

Theory of operation
-------------------
An `Account` is what is known of one pool (database, user) over all workers. A lease is always in one of three places:

    free        it is not counted; it may be granted while every limit has room
    a worker's  granted, or taken over with a server that moved: `leases` counts it until the worker says that its server closes
    limbo       the worker has let go of it, or has died, and the connection still stands: it counts until it has `gone`

So servers and leases to come never exceed a limit, whatever messages are under way. A worker says what its waiters want
(`wants`). While there is room, the one whose first waiter has waited longest is granted a lease. When there is none, those who
hold leases are asked for one, a `Recall` each: a holder gives up an idle server, or says that it is `busy` and remembers; the
first one that releases a server whose own next waiter is younger gives that (pool/shared_ledger.py decides so, since only it
knows). A server moves to whoever has waited longest by then (`offered`), or is closed, when the room is for another pool:
limits.py has the rules of a single process, and these are the same, as far as they can be known from outside.

What was granted and has not been received must not be granted again: a worker says with each `wants` how many leases have
reached it since the last one, and what is still `in_flight` counts as if it had it. Nothing here acts: events return orders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import IllegalTransition
from pgpool_proxy.pool.limits import STARVED_S

GRANT: Final = 0
RECALL: Final = 1
RECALL_OFF: Final = 2
MINIMUM: Final = 3
KINDS: Final = ("grant", "recall", "recall off", "minimum")

NOBODY: Final = -1

UNEVEN: Final = 1.25  # a worker that has servers is served from another's when it waits this much longer than that one
UNEVEN_S: Final = 0.010  # and this long
ASK_S: Final = 0.020  # a holder that does not answer for so long is as good as busy
FLIGHT_S: Final = 1.0  # a lease that is not confirmed for so long is not counted on: the server that moved did not get there
COMING_S: Final = 0.2  # a connection that ends later than so is not counted on to make room
SURPLUS_S: Final = 0.2  # a server that is handed from a worker to its successor counts twice for a moment
NEWS_S: Final = 0.005  # smaller changes of `since` are not worth a message

FULL: Final = 0
OPEN: Final = 1
FROM_RESERVE: Final = 2


class LeaseLimits:
    """What the configuration allows one pool, over all workers. 0 is no limit, for min_pool_size and the reserve: none."""

    def __init__(self) -> None:
        self.pool_size: i64 = 20
        self.min_pool_size: i64 = 0
        self.reserve_pool_size: i64 = 0
        self.reserve_pool_timeout: float = 5.0
        self.max_db_connections: i64 = 0
        self.max_user_connections: i64 = 0


class Order:
    """One message for a worker. `kind` is GRANT (number, from_reserve), RECALL (recall, since, starving, close; again with the
    same `recall`: news), RECALL_OFF (recall) or MINIMUM (number)."""

    def __init__(
        self,
        kind: i64,
        worker: i64,
        database: str,
        user: str,
        number: i64 = 0,
        from_reserve: bool = False,
        recall: i64 = 0,
        since: float = 0.0,
        starving: bool = False,
        close: bool = False,
    ) -> None:
        self.kind: i64 = kind
        self.worker: i64 = worker
        self.database: str = database
        self.user: str = user
        self.number: i64 = number
        self.from_reserve: bool = from_reserve
        self.recall: i64 = recall
        self.since: float = since
        self.starving: bool = starving
        self.close: bool = close

    def fields(self) -> tuple[int, str, str, int, bool, int, float, bool, bool]:
        """What `SharedLedger.obey` takes, but for the time."""
        return (
            int(self.kind), self.database, self.user, int(self.number), self.from_reserve, int(self.recall), self.since,
            self.starving, self.close,
        )  # fmt: skip

    def __repr__(self) -> str:
        about = f"{int(self.number)}" if self.kind in (GRANT, MINIMUM) else f"{int(self.recall)}"
        more = f"{' from_reserve' * self.from_reserve}{' starving' * self.starving}{' close' * self.close}"
        return f"<Order {KINDS[int(self.kind)]} {about}{more} for {int(self.worker)} {self.database}/{self.user}>"


class Scope:
    """A database or a user: what the limits that pools share are counted by."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.taken: i64 = 0
        self.accounts: list[Account] = []

    def __repr__(self) -> str:
        return f"<Scope {self.name} {int(self.taken)}>"


class Want:
    """What one worker wants of one pool: servers for its waiters, for logins that wait for the pool's first server, for
    replication clients, and for its part of min_pool_size. `since`: when its first waiter began to wait."""

    def __init__(self) -> None:
        self.waiting: i64 = 0
        self.logins: i64 = 0
        self.dedicated: i64 = 0
        self.minimum: i64 = 0
        self.since: float = 0.0
        self.in_flight: i64 = 0  # leases that the worker had not received when it said so
        self.sent_at: float = 0.0  # when the last of them was

    @property
    def movable(self) -> i64:
        """Servers that it wants, and that may be another worker's."""
        return max(self.waiting + self.logins - self.in_flight, i64(0))

    @property
    def alone(self) -> i64:
        """Servers for replication clients: these log in by themselves."""
        return min(self.dedicated, self.needs)

    @property
    def needs(self) -> i64:
        return max(self.waiting + self.logins + self.dedicated - self.in_flight, i64(0))

    @property
    def spare(self) -> i64:
        """Servers that it would like to keep ready."""
        return max(self.minimum - max(self.in_flight - self.waiting - self.logins - self.dedicated, i64(0)), i64(0))

    @property
    def says_something(self) -> bool:
        return self.waiting + self.logins + self.dedicated + self.minimum > 0

    def sent(self, now: float) -> None:
        """One more is on its way."""
        self.in_flight += 1
        self.sent_at = now

    def __repr__(self) -> str:
        return f"<Want {self.waiting}+{self.logins}+{self.dedicated}+{self.minimum} since {self.since} -{self.in_flight}>"


class Recall:
    """A holder was asked to give up one server. `cause` is the pool that it is for; None: the pool has too many."""

    def __init__(self, number: i64, source: Account, worker: i64, cause: Account | None, close: bool, now: float) -> None:
        self.number: i64 = number
        self.source: Account = source
        self.worker: i64 = worker
        self.cause: Account | None = cause
        self.close: bool = close
        self.since: float = 0.0
        self.starving: bool = False
        self.asked_at: float = now
        self.is_busy: bool = False

    def is_asked(self, now: float) -> bool:
        """It has not answered yet, and may be counted on to do so."""
        return not self.is_busy and now - self.asked_at < ASK_S

    def __repr__(self) -> str:
        return f"<Recall {self.number} at {self.worker} of {self.source!r}{' close' * self.close}{' busy' * self.is_busy}>"


class Account:
    """One pool over all workers. Dictionaries are by worker."""

    def __init__(self, database: Scope, user: Scope) -> None:
        self.database: Scope = database
        self.user: Scope = user
        self.leases: dict[int, int] = {}
        self.limbo: i64 = 0
        self.limbo_at: float = 0.0  # when the last one got there
        self.surplus_at: float = 0.0  # since when it has been over its size; 0: it is not
        self.wants: dict[int, Want] = {}
        self.keepers: list[int] = []  # workers that have clients, so min_pool_size holds for them
        self.shares: dict[int, int] = {}  # of min_pool_size
        self.recalls: list[Recall] = []  # out at those who hold its leases
        self.asked: list[Recall] = []  # made for it, at its own holders and at those of others

    @property
    def granted(self) -> i64:
        total: i64 = 0
        for number in self.leases.values():
            total += number
        return total

    @property
    def taken(self) -> i64:
        """What counts against every limit."""
        return self.granted + self.limbo

    @property
    def is_empty(self) -> bool:
        return not (self.leases or self.limbo or self.wants or self.keepers or self.shares or self.recalls or self.asked)

    def first_wait(self) -> float:
        """Since when its first waiter has waited, over all workers; infinity when nobody waits."""
        first = float("inf")
        for want in self.wants.values():
            if want.needs and want.since < first:
                first = want.since
        return first

    def is_too_big(self, now: float) -> bool:
        """It has been over its size for longer than a moment."""
        return self.surplus_at > 0.0 and now - self.surplus_at >= SURPLUS_S

    def coming(self, now: float) -> i64:
        """Connections that end in a moment."""
        return self.limbo if now - self.limbo_at < COMING_S else 0

    def __repr__(self) -> str:
        return f"<Account {self.database.name}/{self.user.name} {self.leases} limbo={int(self.limbo)} {self.wants}>"


class LeaseBook:
    """See the module's theory of operation. Every event returns the orders that follow from it."""

    def __init__(self, limits_of: Callable[[str, str], LeaseLimits]) -> None:
        self._limits_of: Callable[[str, str], LeaseLimits] = limits_of
        self._accounts: dict[tuple[str, str], Account] = {}
        self._databases: dict[str, Scope] = {}
        self._users: dict[str, Scope] = {}
        self._workers: list[int] = []
        self._wanting: list[Account] = []
        self._too_big: list[Account] = []
        self._recalls: dict[int, Recall] = {}
        self._last_recall: i64 = 0
        self._orders: list[Order] = []

    # --- what is known ------------------------------------------------------------------------------------------------
    @property
    def is_wanted(self) -> bool:
        """Somebody waits for a lease: `tick` is worth its while."""
        return any(_waits(account) for account in self._wanting)

    def leases(self, worker: i64, database: str, user: str) -> int:
        account = self._accounts.get((database, user))
        return account.leases.get(int(worker), 0) if account is not None else 0

    def leases_of(self, worker: i64) -> list[tuple[str, str, int]]:
        """(database, user, number) of all that a worker has."""
        return [
            (account.database.name, account.user.name, account.leases[int(worker)])
            for account in self._accounts.values()
            if int(worker) in account.leases
        ]

    def limbo(self, database: str, user: str) -> int:
        account = self._accounts.get((database, user))
        return int(account.limbo) if account is not None else 0

    def account(self, database: str, user: str) -> Account | None:
        return self._accounts.get((database, user))

    def accounts(self) -> list[Account]:
        return list(self._accounts.values())

    def take_orders(self) -> list[Order]:
        orders = self._orders
        self._orders = []
        return orders

    # --- workers ------------------------------------------------------------------------------------------------------
    def joined(self, worker: i64, now: float) -> list[Order]:
        if int(worker) not in self._workers:
            self._workers.append(int(worker))
        return self.take_orders()

    def left(self, worker: i64, now: float) -> list[Order]:
        """It died, or ended: what it had is in limbo, what it said is forgotten."""
        own = int(worker)
        if own in self._workers:
            self._workers.remove(own)
        touched: list[Account] = []
        for account in list(self._accounts.values()):
            number = account.leases.pop(own, 0)
            if number:
                account.limbo += number
                account.limbo_at = now
            account.wants.pop(own, None)
            account.shares.pop(own, None)
            if own in account.keepers:
                account.keepers.remove(own)
                self._share_minimum(account)
            for recall in account.recalls[:]:
                if recall.worker == worker:
                    self._forget_recall(recall)
            touched.append(account)
        for account in touched:
            self._pursue(account, now)
        return self.take_orders()

    # --- what workers say -----------------------------------------------------------------------------------------------
    def wants(
        self,
        worker: i64,
        database: str,
        user: str,
        waiting: i64,
        logins: i64,
        dedicated: i64,
        minimum: i64,
        since: float,
        received: i64,
        now: float,
    ) -> list[Order]:
        """How many more servers its waiters want; see `Want`. `received`: leases that have reached it since it last said so."""
        if int(worker) not in self._workers:
            return self.take_orders()
        account = self._open(database, user)
        want = account.wants.get(int(worker))
        if want is None:
            want = Want()
            account.wants[int(worker)] = want
        want.in_flight = max(want.in_flight - received, i64(0))
        want.waiting = waiting
        want.logins = logins
        want.dedicated = dedicated
        want.minimum = minimum
        want.since = since
        if not want.says_something and want.in_flight == 0:
            del account.wants[int(worker)]
        self._pursue(account, now)
        return self.take_orders()

    def has_clients(self, worker: i64, database: str, user: str, yes: bool, now: float) -> list[Order]:
        """The worker's part of the pool has clients, or needs none (a forced user): min_pool_size holds there, or does not."""
        if int(worker) not in self._workers:
            return self.take_orders()
        account = self._open(database, user)
        if yes != (int(worker) in account.keepers):
            if yes:
                account.keepers.append(int(worker))
            else:
                account.keepers.remove(int(worker))
        self._share_minimum(account)
        self._close(account)
        return self.take_orders()

    def busy(self, worker: i64, database: str, user: str, recall: i64, now: float) -> list[Order]:
        """It has nothing to give up now. It remembers."""
        asked = self._recalls.get(int(recall))
        if asked is not None and not asked.is_busy:
            asked.is_busy = True
            self._pursue(asked.source if asked.cause is None else asked.cause, now)
        return self.take_orders()

    def closing(self, worker: i64, database: str, user: str, recall: i64, now: float) -> list[Order]:
        """It closes a server, because of `recall` or (0) for reasons of its own; the connection may stand for a while yet."""
        if int(worker) in self._workers:
            account = self._take(worker, database, user, 1)
            account.limbo += 1
            account.limbo_at = now
            self._answered(recall)
            self._freed(account, now)
        return self.take_orders()

    def given_back(self, worker: i64, database: str, user: str, number: i64, now: float) -> list[Order]:
        """Grants that it had no use for."""
        if int(worker) in self._workers and number > 0:
            account = self._take(worker, database, user, number)
            self._count(account, -number)
            self._freed(account, now)
        return self.take_orders()

    def offered(self, worker: i64, database: str, user: str, recall: i64, now: float) -> int:
        """It has let go of a server that can move. Who gets it: possibly the same worker again; NOBODY: it has to be closed.

        The orders that follow are left for `take_orders`.
        """
        if int(worker) not in self._workers:
            return NOBODY  # its leases are in limbo already
        known = self._accounts.get((database, user))
        is_surplus = known is not None and known.is_too_big(now)
        account = self._take(worker, database, user, 1)
        self._answered(recall)
        if is_surplus:
            account.limbo += 1
            account.limbo_at = now
            self._freed(account, now)
            return NOBODY
        getter = int(worker)
        want: Want | None = None
        for other, wanted in account.wants.items():
            if other != int(worker) and wanted.movable and (want is None or wanted.since < want.since):
                want = wanted
                getter = other
        account.leases[getter] = account.leases.get(getter, 0) + 1
        if want is None:
            want = account.wants.get(getter)
        if want is None:
            want = Want()
            account.wants[getter] = want
        want.sent(now)
        self._pursue(account, now)
        return getter

    def adopted(self, worker: i64, database: str, user: str, number: i64, now: float) -> list[Order]:
        """Connections that another process has opened: they are there, whatever the limits say."""
        account = self._open(database, user)
        account.leases[int(worker)] = account.leases.get(int(worker), 0) + int(number)
        self._count(account, number)
        self._pursue(account, now)
        return self.take_orders()

    # --- what the supervisor sees -----------------------------------------------------------------------------------------
    def gone(self, database: str, user: str, now: float) -> list[Order]:
        """A connection in limbo has ended."""
        account = self._accounts.get((database, user))
        if account is None or account.limbo <= 0:
            raise IllegalTransition(f"leases: nothing of {database}/{user} is in limbo")
        account.limbo -= 1
        self._count(account, -1)
        self._freed(account, now)
        return self.take_orders()

    def limits_changed(self, now: float) -> list[Order]:
        for account in list(self._accounts.values()):
            self._share_minimum(account)
        for account in _by_wait(list(self._accounts.values())):
            self._pursue(account, now)
        return self.take_orders()

    def tick(self, now: float) -> list[Order]:
        """Time passes: the reserve is due, somebody starves, somebody does not answer."""
        for account in self._too_big[:]:
            self._pursue(account, now)
        for account in _by_wait(self._wanting[:]):
            self._pursue(account, now)
        return self.take_orders()

    # --- counting -------------------------------------------------------------------------------------------------------
    def _open(self, database: str, user: str) -> Account:
        """The account of a pool, found or made."""
        key = (database, user)
        found = self._accounts.get(key)
        if found is None:
            of_database = self._databases.get(database)
            if of_database is None:
                of_database = Scope(database)
                self._databases[database] = of_database
            of_user = self._users.get(user)
            if of_user is None:
                of_user = Scope(user)
                self._users[user] = of_user
            found = Account(of_database, of_user)
            self._accounts[key] = found
            of_database.accounts.append(found)
            of_user.accounts.append(found)
        return found

    def _close(self, account: Account) -> None:
        """Forget an account of which nothing is left."""
        if not account.is_empty:
            return
        database = account.database
        user = account.user
        if self._accounts.pop((database.name, user.name), None) is None:
            return
        database.accounts.remove(account)
        user.accounts.remove(account)
        if not database.accounts:
            self._databases.pop(database.name, None)
        if not user.accounts:
            self._users.pop(user.name, None)

    def _count(self, account: Account, number: i64) -> None:
        account.database.taken += number
        account.user.taken += number

    def _take(self, worker: i64, database: str, user: str, number: i64) -> Account:
        """Leases leave a worker. Raises `IllegalTransition` when it does not have them."""
        account = self._accounts.get((database, user))
        has = account.leases.get(int(worker), 0) if account is not None else 0
        if account is None or has < number:
            raise IllegalTransition(f"leases: worker {int(worker)} gives {number} of {database}/{user} and has {has}")
        left = has - int(number)
        if left:
            account.leases[int(worker)] = left
        else:
            del account.leases[int(worker)]
        return account

    def _freed(self, account: Account, now: float) -> None:
        """There is more room, or will be: those who share a limit with this pool have their turn, longest wait first."""
        database = account.database
        user = account.user
        others = [one for one in self._wanting if one is not account and (one.database is database or one.user is user)]
        for one in _by_wait([account, *others]):
            self._pursue(one, now)

    # --- min_pool_size ----------------------------------------------------------------------------------------------------
    def _share_minimum(self, account: Account) -> None:
        """Every worker that has clients of the pool keeps its part ready; the parts make min_pool_size."""
        limits = self._limits_of(account.database.name, account.user.name)
        least = int(limits.min_pool_size)
        if 0 < limits.pool_size < least:
            least = int(limits.pool_size)
        keepers = sorted(account.keepers, key=lambda worker: (-account.leases.get(worker, 0), worker))
        shares: dict[int, int] = {}
        for at, worker in enumerate(keepers):
            share = least // len(keepers) + (1 if at < least % len(keepers) else 0)
            if share:
                shares[worker] = share
        for worker in self._workers:
            if shares.get(worker, 0) != account.shares.get(worker, 0):
                self._order(MINIMUM, worker, account, number=shares.get(worker, 0))
        account.shares = shares

    # --- granting ---------------------------------------------------------------------------------------------------------
    def _pursue(self, account: Account, now: float) -> None:
        """Grant what there is room for, and ask for the rest."""
        limits = self._limits_of(account.database.name, account.user.name)
        for want in account.wants.values():
            if want.in_flight and now - want.sent_at >= FLIGHT_S:
                want.in_flight = 0
        if account.wants:
            self._grant(account, limits, now)
        self._recall_surplus(account, limits, now)
        self._recall_servers(account, limits, now)
        is_wanting = False
        for want in account.wants.values():
            if want.says_something:
                is_wanting = True
        if is_wanting != (account in self._wanting):
            if is_wanting:
                self._wanting.append(account)
            else:
                self._wanting.remove(account)
        self._close(account)

    def _grant(self, account: Account, limits: LeaseLimits, now: float) -> None:
        granted: dict[tuple[int, bool], int] = {}
        given: dict[int, int] = {}  # for waiters, in this call
        while True:
            found = -1
            found_room: i64 = FULL
            first = float("inf")
            for worker, want in account.wants.items():
                if not want.needs:
                    continue
                room = self._room(account, limits, want.since, want.waiting > 0 and want.movable > 0, now)
                if room == FULL:
                    continue
                # nothing is known of those behind its first waiter: as if they had come one by one since then
                had = given.get(worker, 0)
                turn = want.since + (now - want.since) * had / (had + int(want.needs))
                if turn < first:
                    first = turn
                    found = worker
                    found_room = room
            if found < 0:
                break
            account.wants[found].sent(now)
            given[found] = given.get(found, 0) + 1
            self._hand_out(account, found, found_room == FROM_RESERVE, granted)
        for worker, want in account.wants.items():
            while want.spare and account.taken < limits.min_pool_size and self._room(account, limits, now, False, now) == OPEN:
                want.sent(now)
                self._hand_out(account, worker, False, granted)
        for (worker, from_reserve), number in granted.items():
            self._order(GRANT, worker, account, number=number, from_reserve=from_reserve)

    def _hand_out(self, account: Account, worker: int, from_reserve: bool, granted: dict[tuple[int, bool], int]) -> None:
        account.leases[worker] = account.leases.get(worker, 0) + 1
        self._count(account, 1)
        key = (worker, from_reserve)
        granted[key] = granted.get(key, 0) + 1

    def _room(self, account: Account, limits: LeaseLimits, since: float, may_reserve: bool, now: float) -> i64:
        """OPEN or FROM_RESERVE when one more server may be opened, for somebody who has waited since then."""
        room: i64 = OPEN
        taken = account.taken
        if 0 < limits.pool_size <= taken:
            if not may_reserve or taken >= limits.pool_size + limits.reserve_pool_size:
                return FULL
            if now - since < limits.reserve_pool_timeout:
                return FULL
            room = FROM_RESERVE
        if _is_full(account.database, limits.max_db_connections) or _is_full(account.user, limits.max_user_connections):
            return FULL
        return room

    # --- recalls ------------------------------------------------------------------------------------------------------------
    def _surplus(self, account: Account, limits: LeaseLimits) -> i64:
        """Servers that it has beyond its size and the reserve: a limit was lowered, or they were taken over."""
        if limits.pool_size <= 0:
            return 0
        return account.granted - limits.pool_size - limits.reserve_pool_size

    def _recall_surplus(self, account: Account, limits: LeaseLimits, now: float) -> None:
        surplus = self._surplus(account, limits)
        out = [recall for recall in account.recalls if recall.cause is None]
        asked = [recall for recall in out if not recall.is_busy]  # who is busy remembers; somebody else may have an idle one
        for recall in out if surplus <= 0 else asked[int(surplus) :]:
            self._call_off(recall)
        if surplus <= 0:
            asked = []
        if (surplus > 0) != (account.surplus_at > 0.0):
            account.surplus_at = now if surplus > 0 else 0.0
            if surplus > 0:
                self._too_big.append(account)
            else:
                self._too_big.remove(account)
        if not account.is_too_big(now):
            return
        for worker, number in account.leases.items():
            mine = len([recall for recall in out if recall.worker == worker])
            while len(asked) < surplus and mine < number:
                recall = self._ask(account, worker, None, True, now)
                self._tell(recall, 0.0, False)
                asked.append(recall)
                mine += 1

    def _recall_servers(self, account: Account, limits: LeaseLimits, now: float) -> None:
        """See to it that as many recalls are out as it needs, at those who may owe it a server."""
        movable: i64 = 0
        alone: i64 = 0
        for want in account.wants.values():
            movable += want.movable
            alone += want.alone
        coming = account.coming(now)
        if movable + alone <= coming:
            for recall in account.asked[:]:
                self._call_off(recall)
            return
        movable = max(movable - coming, i64(0))
        asked = self._recall_own(account, movable, now)
        self._recall_others(account, limits, movable - asked, alone, now)

    def _recall_own(self, account: Account, movable: i64, now: float) -> i64:
        """Ask those who hold leases of the same pool for servers to move. Returns how many may be counted on."""
        asked: i64 = 0
        caps: dict[int, i64] = {}
        outs: dict[int, list[Recall]] = {worker: [] for worker in account.leases}
        most: i64 = 0  # that are wanted by anybody who may ask already
        for recall in account.asked[:]:
            if not recall.close:
                if recall.worker in outs:
                    outs[int(recall.worker)].append(recall)
                else:
                    self._call_off(recall)
        for worker, number in account.leases.items():
            asker, need = self._first_asker(account, worker, now)
            if need > most:
                most = need
            cap = min(need, i64(number), movable)
            own = account.wants.get(worker)
            if own is not None and own.movable and cap > 1:
                cap = 1  # who has waiters, too, gives up one after the other
            caps[worker] = cap
            out = outs[worker]
            while len(out) > cap:
                self._call_off(out.pop())
            for recall in out:
                if recall.is_asked(now):
                    asked += 1
                if asker is not None:
                    self._tell(recall, account.wants[asker].since, account.leases.get(asker, 0) == 0)
        for worker in sorted(caps, key=lambda one: _reluctance(account, one)):
            out = outs[worker]
            if out and out[-1].is_busy:
                continue  # it gives what it can as soon as it can
            while asked < movable and asked < most and len(out) < caps[worker]:
                asker, need = self._first_asker(account, worker, now)
                if asker is None:
                    break
                recall = self._ask(account, worker, account, False, now)
                self._tell(recall, account.wants[asker].since, account.leases.get(asker, 0) == 0)
                out.append(recall)
                asked += 1
        return asked

    def _first_asker(self, account: Account, holder: int, now: float) -> tuple[int | None, i64]:
        """Of those to whom `holder` may owe a server, who has waited longest; and how many they want together."""
        held = account.wants.get(holder)
        held_wait = now - held.since if held is not None and held.movable else 0.0
        found: int | None = None
        first = float("inf")
        need: i64 = 0
        for worker, want in account.wants.items():
            if worker == holder or not want.movable:
                continue
            waited = now - want.since
            if account.leases.get(worker, 0) and waited <= UNEVEN * held_wait + UNEVEN_S:
                continue
            need += want.movable
            if want.since < first:
                first = want.since
                found = worker
        return found, need

    def _recall_others(self, account: Account, limits: LeaseLimits, movable: i64, alone: i64, now: float) -> None:
        """Ask for servers to be closed: those of pools that share a limit, and for a replication client the pool's own."""
        first = account.first_wait()
        is_full = 0 < limits.pool_size <= account.taken
        by_database = _is_full(account.database, limits.max_db_connections)
        by_user = _is_full(account.user, limits.max_user_connections)
        sources: list[Account] = []
        wanted: i64 = 0
        if alone > 0 and is_full:
            sources = [account]
            wanted = alone
        elif by_database or by_user:
            wanted = alone
            if not is_full or self._room_in_reserve(account, limits, now):
                wanted += max(movable, i64(0))
            sources = self._sources(account, by_database, by_user, alone > 0, first, now)
            wanted -= self._coming_of(sources, now)
        out: list[Recall] = []
        for recall in account.asked[:]:
            if recall.close:
                if wanted > 0 and recall.source in sources:
                    out.append(recall)
                else:
                    self._call_off(recall)
        if wanted <= 0:
            return
        starves = account.granted == 0 and now - first >= STARVED_S
        asked: i64 = 0
        for recall in out:
            self._tell(recall, first, starves)
            if recall.is_asked(now):
                asked += 1
        for source in sources:
            for worker in sorted(source.leases, key=lambda one: _reluctance(source, one)):
                if asked >= wanted:
                    return
                if any(recall.source is source and recall.worker == worker for recall in out):
                    continue
                recall = self._ask(source, worker, account, True, now)
                self._tell(recall, first, starves)
                out.append(recall)
                asked += 1

    def _room_in_reserve(self, account: Account, limits: LeaseLimits, now: float) -> bool:
        if account.taken >= limits.pool_size + limits.reserve_pool_size:
            return False
        for want in account.wants.values():
            if want.waiting and want.movable and now - want.since >= limits.reserve_pool_timeout:
                return True
        return False

    def _sources(
        self, account: Account, by_database: bool, by_user: bool, own_too: bool, first: float, now: float
    ) -> list[Account]:
        """Pools that may have to close a server, those with the most first. None when both limits are in the way and one of
        them can not be met: a server would be closed for nothing."""
        starves = account.granted == 0 and now - first >= STARVED_S
        found: list[Account] = []
        scopes: list[Scope] = []
        if by_user:
            scopes.append(account.user)
        if by_database:
            scopes.append(account.database)
        for scope in scopes:
            some = False
            for source in scope.accounts:
                if not source.leases or (source is account and not own_too):
                    continue
                waits_since = source.first_wait()
                if source is not account and waits_since != float("inf") and not (starves and first < waits_since):
                    continue  # it has waiters itself
                some = True
                if source not in found:
                    found.append(source)
            if not some and not self._coming_of(scope.accounts, now):
                return []
        found.sort(key=_size, reverse=True)
        found.sort(key=_waits)
        return found

    def _coming_of(self, accounts: list[Account], now: float) -> i64:
        total: i64 = 0
        for account in accounts:
            total += account.coming(now)
        return total

    def _ask(self, source: Account, worker: i64, cause: Account | None, close: bool, now: float) -> Recall:
        self._last_recall += 1
        recall = Recall(self._last_recall, source, worker, cause, close, now)
        recall.since = -1.0  # `_tell` has something to say
        self._recalls[int(recall.number)] = recall
        source.recalls.append(recall)
        if cause is not None:
            cause.asked.append(recall)
        return recall

    def _tell(self, recall: Recall, since: float, starving: bool) -> None:
        """Say who waits since when, if the holder does not know."""
        if starving == recall.starving and abs(since - recall.since) < NEWS_S:
            return
        recall.since = since
        recall.starving = starving
        self._order(
            RECALL, recall.worker, recall.source, recall=recall.number, since=since, starving=starving, close=recall.close
        )

    def _call_off(self, recall: Recall) -> None:
        self._order(RECALL_OFF, recall.worker, recall.source, recall=recall.number)
        self._forget_recall(recall)

    def _answered(self, number: i64) -> None:
        """A server was given up for it."""
        recall = self._recalls.get(int(number))
        if recall is not None:
            self._forget_recall(recall)

    def _forget_recall(self, recall: Recall) -> None:
        self._recalls.pop(int(recall.number), None)
        recall.source.recalls.remove(recall)
        if recall.cause is not None:
            recall.cause.asked.remove(recall)

    def _order(
        self,
        kind: i64,
        worker: i64,
        account: Account,
        number: i64 = 0,
        from_reserve: bool = False,
        recall: i64 = 0,
        since: float = 0.0,
        starving: bool = False,
        close: bool = False,
    ) -> None:
        self._orders.append(
            Order(
                kind, worker, account.database.name, account.user.name, number, from_reserve, recall, since, starving, close
            )
        )


def _is_full(scope: Scope, limit: i64) -> bool:
    return 0 < limit <= scope.taken


def _by_wait(accounts: list[Account]) -> list[Account]:
    accounts.sort(key=_first_wait)
    return accounts


def _first_wait(account: Account) -> float:
    return account.first_wait()


def _waits(account: Account) -> bool:
    return account.first_wait() != float("inf")


def _size(account: Account) -> int:
    return int(account.granted)


def _reluctance(account: Account, worker: int) -> tuple[bool, int, int]:
    """Whom to ask first: who has no waiters, then who has most."""
    want = account.wants.get(worker)
    return (want is not None and want.needs > 0, -account.leases.get(worker, 0), worker)


# --- clients --------------------------------------------------------------------------------------------------------------
ADMITTED: Final = 0
OVER_CLIENTS: Final = 1
OVER_DATABASE: Final = 2
OVER_USER: Final = 3
REFUSALS: Final = (None, errors.MAX_CLIENT_CONN, errors.MAX_DB_CLIENT_CONN, errors.MAX_USER_CLIENT_CONN)


class ClientLimits:
    """What the configuration allows, over all workers; 0 is no limit for the latter two."""

    def __init__(self, max_client_conn: i64, max_db_client_connections: i64, max_user_client_connections: i64) -> None:
        self.max_client_conn: i64 = max_client_conn
        self.max_db_client_connections: i64 = max_db_client_connections
        self.max_user_client_connections: i64 = max_user_client_connections


class WorkersClients:
    """The clients of one worker."""

    def __init__(self) -> None:
        self.total: i64 = 0
        self.databases: dict[str, int] = {}
        self.users: dict[str, int] = {}


class ClientBook:
    """How many clients there are: all that were accepted, and by database and by user those that were let in."""

    def __init__(self) -> None:
        self.total: i64 = 0
        self._workers: dict[int, WorkersClients] = {}
        self._databases: dict[str, int] = {}
        self._users: dict[str, int] = {}

    def of_worker(self, worker: i64) -> int:
        found = self._workers.get(int(worker))
        return int(found.total) if found is not None else 0

    def of_database(self, name: str) -> int:
        return self._databases.get(name, 0)

    def of_user(self, name: str) -> int:
        return self._users.get(name, 0)

    def arrived(self, worker: i64, max_client_conn: i64) -> bool:
        """A connection was accepted and is the worker's. True: it is one too many, unless others leave before it is proved."""
        own = self._workers.get(int(worker))
        if own is None:
            own = WorkersClients()
            self._workers[int(worker)] = own
        own.total += 1
        self.total += 1
        return self.total > max_client_conn

    def admit(self, worker: i64, database: str, user: str, over: bool, limits: ClientLimits) -> int:
        """A client has proved who it is. ADMITTED: it is counted; else what it exceeds."""
        if over and self.total > limits.max_client_conn:
            return OVER_CLIENTS
        if 0 < limits.max_db_client_connections <= self.of_database(database):
            return OVER_DATABASE
        if 0 < limits.max_user_client_connections <= self.of_user(user):
            return OVER_USER
        self.settled(worker, database, user)
        return ADMITTED

    def settled(self, worker: i64, database: str, user: str) -> None:
        """A client was let in by the worker itself: no limit is set."""
        self._add(worker, database, user, 1)

    def withdrawn(self, worker: i64, database: str, user: str) -> None:
        """A client that was admitted is not logged in after all."""
        self._add(worker, database, user, -1)

    def ended(self, worker: i64, database: str, user: str) -> None:
        """A connection has ended; the names are empty where it was not let in."""
        own = self._workers.get(int(worker))
        if own is None:
            return
        if database or user:
            self._add(worker, database, user, -1)
        own.total -= 1
        self.total -= 1

    def left(self, worker: i64) -> None:
        """The worker is gone, and its clients with it."""
        own = self._workers.pop(int(worker), None)
        if own is None:
            return
        self.total -= own.total
        for name, number in own.databases.items():
            _add(self._databases, name, -number)
        for name, number in own.users.items():
            _add(self._users, name, -number)

    def _add(self, worker: i64, database: str, user: str, number: int) -> None:
        own = self._workers.get(int(worker))
        if own is not None:  # else it has died, and this came late
            _add(own.databases, database, number)
            _add(own.users, user, number)
            _add(self._databases, database, number)
            _add(self._users, user, number)


def _add(counts: dict[str, int], name: str, number: int) -> None:
    total = counts.get(name, 0) + number
    if total:
        counts[name] = total
    else:
        counts.pop(name, None)
