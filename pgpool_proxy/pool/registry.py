"""Databases, users and pools: find or create. Counts clients against their limits; knows no configuration file.

What a database, a user and a pool are allowed is filled in by the `Configurator`, which is asked when one is made and again
after every change of the configuration.
"""

from __future__ import annotations

from typing import Protocol, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool import limits
from pgpool_proxy.pool.containers import StateList
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.ledger import Ledger
from pgpool_proxy.pool.pool import Launcher, Pool, PoolLimits
from pgpool_proxy.pool.states import CL_ACTIVE, CL_CLOSED, CL_LOGIN, check_client_move


class Database:
    """One entry of [databases], or one that `*` made."""

    def __init__(self, name: str, registry: Registry) -> None:
        self.name = name
        self.registry: Registry = registry
        self.paused: bool = False
        self.disabled: bool = False
        self.is_admin: bool = False
        self.is_auto: bool = False
        self.is_removed: bool = False
        self.forced_user: str | None = None
        self.max_connections: i64 = 0
        self.max_client_connections: i64 = 0
        self.server_count: i64 = 0
        self.client_count: i64 = 0
        self.pools: list[Pool] = []
        self.last_used: float = 0.0

    def __repr__(self) -> str:
        return f"<Database {self.name} servers={self.server_count} clients={self.client_count}>"


class User:
    """A name that clients log in with or that pools log in with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_forced: bool = False
        self.max_connections: i64 = 0
        self.max_client_connections: i64 = 0
        self.server_count: i64 = 0
        self.client_count: i64 = 0
        self.pools: list[Pool] = []

    def __repr__(self) -> str:
        return f"<User {self.name} servers={self.server_count} clients={self.client_count}>"


class Configurator(Protocol):
    """Says what the configuration allows; the registry's side of settings/resolve.py."""

    def make_database(self, name: str, registry: Registry) -> Database | None:
        """The database for a name that has no entry yet: from `*`, or None."""
        ...

    def configure_user(self, user: User) -> None: ...

    def configure_pool(self, pool: Pool) -> None: ...

    def reserve_taken(self, pool: Pool) -> None:
        """A connection is opened from the reserve: worth a line in the log."""
        ...


class Registry:
    """All databases, users and pools of this process."""

    def __init__(self, ledger: Ledger, launcher: Launcher, configurator: Configurator) -> None:
        self.ledger: Ledger = ledger
        self.launcher: Launcher = launcher
        self.configurator: Configurator = configurator
        self.databases: dict[str, Database] = {}
        self.users: dict[str, User] = {}
        self.pools: dict[tuple[str, str], Pool] = {}
        self.peer_pools: dict[int, Pool] = {}  # by peer id; cancel requests on their way to peers (session/peers.py)
        self.login_clients: StateList = StateList("cl_login")
        self.client_count: i64 = 0
        self.max_client_conn: i64 = 100
        self.paused: bool = False
        self.suspended: bool = False  # SUSPEND: no servers are opened
        self.closing: Report | None = None  # set while shutting down: what clients that need a server are told
        self.starving: list[Pool] = []  # pools that were refused a server by a limit which they share with others
        self._numbers: i64 = 0
        self._step: i64 = 1

    def next_number(self) -> i64:
        """The next id of a client or server."""
        self._numbers += self._step
        return self._numbers

    def number_from(self, number: i64) -> None:
        """Ids up to `number` are in use in the process that we take over from."""
        while self._numbers < number:
            self._numbers += (number - self._numbers + self._step - 1) // self._step * self._step

    def number_by(self, first: i64, step: i64) -> None:
        """Several processes number together: `first`, `first` + `step`, and so on are ours."""
        self._numbers = first - step
        self._step = step

    def last_number(self) -> i64:
        return self._numbers

    # --- find or create ---------------------------------------------------------------------------------------------
    def database(self, name: str) -> Database | None:
        found = self.databases.get(name)
        if found is None:
            found = self.configurator.make_database(name, self)
            if found is not None:
                self.databases[name] = found
        return found

    def user(self, name: str) -> User:
        found = self.users.get(name)
        if found is None:
            found = User(name)
            self.configurator.configure_user(found)
            self.users[name] = found
        return found

    def pool(self, database: Database, user_name: str) -> Pool:
        """The pool of `database` for a login user; databases with a forced user have one pool for everybody."""
        return self.pool_of(database, database.forced_user or user_name)

    def pool_of(self, database: Database, name: str) -> Pool:
        """The pool of `database` whose servers log in as `name`, whatever user clients are forced to be (auth_user's)."""
        key = (database.name, name)
        found = self.pools.get(key)
        if found is None:
            user = self.user(name)
            found = Pool(database, user, self.ledger, self.launcher, PoolLimits())
            self.configurator.configure_pool(found)
            self.ledger.configured(found)
            self.pools[key] = found
            database.pools.append(found)
            user.pools.append(found)
        return found

    def dedicated_pool(
        self, database: Database, user_name: str, replication: i64, startup: list[tuple[bytes, bytes]]
    ) -> Pool:
        """A pool for one replication client, which leaves it with its server."""
        main = self.pool(database, user_name)
        made = Pool(database, main.user, self.ledger, self.launcher, PoolLimits())
        made.main = main
        made.replication = replication
        made.startup = startup
        made.number = self.next_number()
        made.stats = main.stats
        self.configurator.configure_pool(made)
        self.pools[_key(made)] = made
        database.pools.append(made)
        main.user.pools.append(made)
        main.dedicated.append(made)
        return made

    def drop_pool(self, pool: Pool) -> None:
        """Forget a pool that has neither clients nor servers."""
        self.pools.pop(_key(pool), None)
        if pool.main is not None and pool in pool.main.dedicated:
            pool.main.dedicated.remove(pool)
        if pool in pool.database.pools:
            pool.database.pools.remove(pool)
        if pool in pool.user.pools:
            pool.user.pools.remove(pool)
        if pool in self.starving:
            self.starving.remove(pool)

    def reconfigure(self) -> None:
        """The configuration has changed: ask for everything anew."""
        for user in self.users.values():
            self.configurator.configure_user(user)
        for pool in self.pools.values():
            self.configurator.configure_pool(pool)
            self.ledger.configured(pool)

    # --- clients ------------------------------------------------------------------------------------------------------
    def arrive(self, client: PoolClient) -> None:
        """A connection was accepted."""
        self.login_clients.append(client)
        client.is_counted = True
        self.client_count += 1

    def uncount(self, client: PoolClient) -> None:
        """It arrived, but is none of those who come from outside."""
        client.is_counted = False
        self.client_count -= 1

    def admit(self, client: PoolClient, database: Database, user: User) -> Report | None:
        """Count a client that has said whom it is against the limits; the report when one is exceeded."""
        if database.is_admin:
            return None
        if self.client_count > self.max_client_conn:
            return errors.MAX_CLIENT_CONN
        if database.max_client_connections > 0 and database.client_count >= database.max_client_connections:
            return errors.MAX_DB_CLIENT_CONN
        if user.max_client_connections > 0 and user.client_count >= user.max_client_connections:
            return errors.MAX_USER_CLIENT_CONN
        return None

    def settle(self, client: PoolClient, pool: Pool, user: User, now: float) -> bool:
        """A client has proved that it is `user` and joins its pool; see `Pool.join`."""
        self.login_clients.remove(client)
        client.login_user = user
        user.client_count += 1
        pool.database.client_count += 1
        self.ledger.settled(client, pool.database, user)
        return pool.join(client, now)

    def adopt(self, client: PoolClient, pool: Pool, user: User, now: float) -> None:
        """A client that another process has let in, and that is idle: no limit is asked about it."""
        client.is_counted = True
        self.client_count += 1
        client.login_user = user
        user.client_count += 1
        pool.database.client_count += 1
        self.ledger.settled(client, pool.database, user)
        client.pool = pool
        pool.last_used = now
        pool.move_client(client, CL_ACTIVE)

    def depart(self, client: PoolClient, now: float) -> None:
        """A connection has ended, at whatever stage."""
        if client.state == CL_CLOSED:
            return
        if client.is_counted:
            client.is_counted = False
            self.client_count -= 1
            self.ledger.departed(client)
        pool = client.pool
        if client.state == CL_LOGIN:
            check_client_move(client.state, CL_CLOSED)
            self.login_clients.remove(client)
            client.state = CL_CLOSED
        elif pool is not None:
            pool.leave(client, now)
            user = client.login_user
            if user is not None:
                client.login_user = None
                user.client_count -= 1
                pool.database.client_count -= 1

    # --- limits that pools share ------------------------------------------------------------------------------------
    def starve(self, pool: Pool) -> None:
        """`pool` was refused by a shared limit: it is asked again as soon as there is room."""
        if pool not in self.starving:
            self.starving.append(pool)

    def room_made(self, source: Pool, now: float) -> None:
        """A server was closed: the pools that a shared limit had refused ask again, longest wait first."""
        hungry = self.starving
        self.starving = []
        hungry.sort(key=_first_wait)
        for pool in hungry:
            if pool.waiting.count or pool.waiting_login.count:
                pool.grow(now)

    def owes(self, source: Pool, now: float) -> bool:
        """Must `source`, which has waiters, give up a server to a pool that has none at all?"""
        if source.waiting.count:
            for pool in self.starving:
                if limits.owes(source, pool, now):
                    return True
        return False

    def server_idled(self, source: Pool, now: float) -> None:
        """A server became idle, so one of the refused pools may evict it."""
        self.room_made(source, now)

    def reserve_taken(self, pool: Pool) -> None:
        pool.stats.reserve_uses += 1
        self.configurator.reserve_taken(pool)

    # --- walks --------------------------------------------------------------------------------------------------------
    def all_servers(self) -> list[PoolServer]:
        found: list[PoolServer] = []
        for pool in [*self.pools.values(), *self.peer_pools.values()]:
            for members in pool.servers:
                found.extend([cast(PoolServer, member) for member in members.members()])
        return found

    def all_clients(self) -> list[PoolClient]:
        found = [cast(PoolClient, member) for member in self.login_clients.members()]
        for pool in [*self.pools.values(), *self.peer_pools.values()]:
            for members in pool.clients:
                found.extend([cast(PoolClient, member) for member in members.members()])
        return found


def _key(pool: Pool) -> tuple[str, str]:
    """Its place in `Registry.pools`."""
    name = pool.user.name
    return pool.database.name, name if pool.main is None else f"{name}\0{int(pool.number)}"


def _first_wait(pool: Pool) -> float:
    member = pool.waiting.first or pool.waiting_login.first
    return cast(PoolClient, member).wait_start if member is not None else float("inf")
