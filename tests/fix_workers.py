"""Several workers and their supervisor without processes: a `World` each, one book, and messages that are delivered by hand.

    workers = Workers(2, pool_size=1)
    one, two = workers.worlds                 # fix_sessions.World, with clients and servers as ever
    one.client().send(frontend.query(b"select 1"))
    workers.settle()                          # messages and servers move until nothing does any more
    workers.pass_time(0.01)

Messages keep their order in each direction, and are delivered one at a time by `to_supervisor(worker)` and `to_worker(worker)`,
so a test can hold them back. `connections` are what PostgreSQL sees: one stands from `launch` until `end`, whatever its worker
believes.
"""

from __future__ import annotations

from collections import deque

from fix_sessions import FakeTransport, Server, World

from pgpool_proxy import errors
from pgpool_proxy.pool.handles import PoolServer
from pgpool_proxy.pool.leases import NOBODY, ClientBook, ClientLimits, LeaseBook, LeaseLimits, Order
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.shared_ledger import SharedLedger
from pgpool_proxy.process import moving
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession

Key = tuple[str, str]
CONFIGURED = ("pool_size", "min_pool_size", "reserve_pool_size", "reserve_pool_timeout")


class Connection:
    """A server connection as PostgreSQL sees it."""

    def __init__(self, key: Key, server: Server) -> None:
        self.key = key
        self.server = server
        self.is_ending = False  # its worker has closed it
        self.is_said = False  # and has said so

    def __repr__(self) -> str:
        return f"<Connection {self.key} {self.server!r}{' ending' * self.is_ending}>"


class CountingLauncher:
    """Opens servers, of which PostgreSQL knows from then on."""

    def __init__(self, workers: Workers, worker: Worker) -> None:
        self.workers = workers
        self.worker = worker

    def launch(self, pool: Pool, now: float) -> None:
        world = self.worker.world
        session = ServerSession(world.context, pool, "127.0.0.1", 5432, now)
        pool.add_server(session)
        server = Server(world, session)
        world.servers.append(server)
        self.workers.connections.append(Connection((pool.database.name, pool.user.name), server))
        self.workers.logins += 1


class Worker:
    """One worker, its wire and its mover."""

    def __init__(self, workers: Workers, number: int) -> None:
        self.workers = workers
        self.number = number
        self.up: deque[tuple] = deque()
        self.down: deque[tuple] = deque()
        self.is_alive = True
        self.can_move_servers = True
        self.said: list[object] = []  # the kinds of all its messages
        self.ledger = SharedLedger(self, self)
        keys = {name: value for name, value in workers.keys.items() if name != "max_client_conn"}
        self.world = World(ledger=self.ledger, **keys)
        self.world.registry.launcher = CountingLauncher(workers, self)
        self.world.registry.number_from(number * 1_000_000)
        self.world.now = workers.now
        self.world.arrived = self.arrived
        self.ledger.use(self.world.registry)

    def arrived(self, session: ClientSession) -> None:
        """The supervisor has accepted a connection, and given it to this worker."""
        session.is_over = self.workers.client_book.arrived(self.number, self.workers.keys.get("max_client_conn", 10_000))

    # --- Wire ---
    def _say(self, *message: object) -> None:
        self.said.append(message[0])
        self.up.append(message)

    def say_wants(self, *fields: object) -> None:
        self._say("wants", *fields)

    def say_has_clients(self, *fields: object) -> None:
        self._say("has_clients", *fields)

    def wake(self) -> None:
        """The tests flush when it is a worker's turn."""

    def say_busy(self, *fields: object) -> None:
        self._say("busy", *fields)

    def say_closing(self, *fields: object) -> None:
        self._say("closing", *fields)

    def say_given_back(self, *fields: object) -> None:
        self._say("given_back", *fields)

    def ask_admission(self, *fields: object) -> None:
        self._say("admit", *fields)

    def say_settled(self, *fields: object) -> None:
        self._say("settled", *fields)

    def say_withdrawn(self, *fields: object) -> None:
        self._say("withdrawn", *fields)

    def say_ended(self, *fields: object) -> None:
        self._say("ended", *fields)

    # --- Mover ---
    def can_move(self, server: PoolServer) -> bool:
        return self.can_move_servers

    def move(self, server: PoolServer, recall: int, now: float) -> bool:
        pool = server.pool
        own = next(one for one in self.world.servers if one.session is server)
        parameters = dict(pool.server_parameters or {})
        state = moving.server_state(server, pool.database.name)
        self.world.servers.remove(own)
        server.gone(errors.EVICTED, now)
        self._say("offered", pool.database.name, pool.user.name, int(recall), state, parameters, own)
        return True

    def arrive(self, database: str, user: str, state: dict, parameters: dict, old: Server, now: float) -> None:
        """A server has moved here."""
        world = self.world
        pool = world.pool(database, user)
        session = moving.restore_server(world.context, state, pool, now)
        server = Server(world, session)
        server.backend = old.backend
        server.transport = FakeTransport()
        server.is_open = True
        session.transport = server.transport
        for connection in self.workers.connections:
            if connection.server is old:
                connection.server = server
        world.servers.append(server)
        world.host.closed.pop(int(session.number), None)  # it has been here before
        self.ledger.arrived(session, parameters, now)

    def __repr__(self) -> str:
        return f"<Worker {self.number} up={list(self.up)} down={list(self.down)}>"


class Workers:
    """The supervisor and its workers. Keywords are those of `World`."""

    def __init__(self, number: int, **keys: object) -> None:
        self.now = 1000.0
        self.keys = keys
        self.connections: list[Connection] = []
        self.logins = 0
        self.moves = 0
        self.book = LeaseBook(self.limits_of)
        self.client_book = ClientBook()
        self.workers: list[Worker] = []
        self.started = 0
        for _ in range(number):
            self.start()

    @property
    def worlds(self) -> list[World]:
        return [worker.world for worker in self.workers]

    def start(self) -> Worker:
        worker = Worker(self, self.started)
        self.started += 1
        self.workers.append(worker)
        self._post(self.book.joined(worker.number, self.now))
        return worker

    def limits_of(self, database: str, user: str) -> LeaseLimits:
        limits = LeaseLimits()
        limits.pool_size = 2
        found = {**self.keys, **self.keys.get("pools", {}).get((database, user), {})}
        for key in CONFIGURED:
            if key in found:
                setattr(limits, key, found[key])
        limits.max_db_connections = self.keys.get("databases", {}).get(database, {}).get("max_connections", 0)
        limits.max_user_connections = self.keys.get("users", {}).get(user, {}).get("max_connections", 0)
        return limits

    # --- what the supervisor does ---
    def _post(self, orders: list[Order]) -> None:
        for order in orders:
            worker = self.worker(int(order.worker))
            if worker is not None:
                worker.down.append(("order", *order.fields()))

    def worker(self, number: int) -> Worker | None:
        return next((worker for worker in self.workers if worker.number == number), None)

    def to_supervisor(self, worker: Worker) -> bool:
        """The supervisor reads one message. False: there is none."""
        if not worker.up:
            return False
        kind, *fields = worker.up.popleft()
        book = self.book
        number = worker.number
        if kind == "closing":
            database, user, server, recall = fields
            self._post(book.closing(number, database, user, recall, self.now))
            connection = next(one for one in self.connections if int(one.server.session.number) == server)
            connection.is_ending = connection.is_said = True
        elif kind == "offered":
            database, user, recall, state, parameters, server = fields
            getter = book.offered(number, database, user, recall, self.now)
            self.moves += 1
            to = self.worker(getter)
            if getter == NOBODY or to is None:
                connection = next(one for one in self.connections if one.server is server)
                connection.is_ending = connection.is_said = True
            else:
                to.down.append(("arrive", database, user, state, parameters, server))
            self._post(book.take_orders())
        elif kind == "admit":
            ticket, database, user, over = fields
            code = self.client_book.admit(number, database, user, over, self.client_limits(database, user))
            worker.down.append(("admitted", ticket, code))
        elif kind in ("settled", "withdrawn", "ended"):
            getattr(self.client_book, kind)(number, *fields)
        else:
            self._post(getattr(book, kind)(number, *fields, self.now))
        return True

    def client_limits(self, database: str, user: str) -> ClientLimits:
        return ClientLimits(
            self.keys.get("max_client_conn", 10_000),
            self.keys.get("databases", {}).get(database, {}).get("max_client_connections", 0),
            self.keys.get("users", {}).get(user, {}).get("max_client_connections", 0),
        )

    def to_worker(self, worker: Worker) -> bool:
        """The worker reads one message. False: there is none."""
        if not worker.down:
            return False
        kind, *fields = worker.down.popleft()
        if kind == "order":
            worker.ledger.obey(*fields, self.now)
        elif kind == "admitted":
            worker.ledger.admitted(*fields, self.now)
        else:
            worker.arrive(*fields, self.now)
        return True

    def end(self, connection: Connection) -> None:
        """PostgreSQL has seen its end, and the supervisor with it."""
        self.connections.remove(connection)
        self._post(self.book.gone(*connection.key, self.now))

    def kill(self, worker: Worker) -> None:
        """It dies; what it said before is still read."""
        while self.to_supervisor(worker):
            pass
        self.workers.remove(worker)
        worker.is_alive = False
        leases = {(database, user): number for database, user, number in self.book.leases_of(worker.number)}
        coming = [message[5] for message in worker.down if message[0] == "arrive"]
        self._post(self.book.left(worker.number, self.now))
        self.client_book.left(worker.number)
        for connection in self.connections:
            if not connection.is_said and (connection.server.world is worker.world or connection.server in coming):
                connection.is_ending = connection.is_said = True
                leases[connection.key] -= 1
        for key, number in leases.items():
            assert number >= 0
            for _ in range(number):
                self._post(self.book.gone(*key, self.now))

    # --- what happens ---
    def turn(self) -> None:
        """The end of a turn of every worker's loop."""
        for worker in self.workers:
            if worker.ledger.is_dirty:
                worker.ledger.flush(self.now)

    def deliver(self) -> bool:
        """All messages, until there are none. False: there were none."""
        moved = False
        again = True
        while again:
            again = False
            self.turn()
            for worker in self.workers:
                again = self.to_supervisor(worker) or again
            for worker in list(self.workers):
                again = self.to_worker(worker) or again
            moved = moved or again
        return moved

    def end_all(self) -> bool:
        ending = [connection for connection in self.connections if connection.is_ending]
        for connection in ending:
            self.end(connection)
        return bool(ending)

    def settle(self) -> None:
        """Everything moves until nothing does; time stands still."""
        moved = True
        while moved:
            moved = self.deliver()
            moved = self.end_all() or moved
            for world in self.worlds:
                for server in world.opening:
                    server.open()
                    moved = True
                for server in list(world.servers):
                    moved = server.answer() or moved

    def pass_time(self, seconds: float) -> None:
        """Time passes; the timers of supervisor and workers go off once."""
        self.now += seconds
        for worker in list(self.workers):
            worker.world.pass_time(self.now - worker.world.now)
            worker.ledger.tick(self.now)
            if worker.ledger.is_wanting:
                worker.ledger.flush(self.now)
        self._post(self.book.tick(self.now))

    def in_turns(self, seconds: float, step: float = 0.01) -> None:
        for _ in range(round(seconds / step)):
            self.pass_time(step)
            self.settle()

    # --- what is there ---
    def standing(self, database: str = "app", user: str = "alice") -> int:
        """Connections of a pool, as pg_stat_activity shows them."""
        return len([one for one in self.connections if one.key == (database, user)])

    def reload(self, *, of_app: int = 0, **keys: object) -> None:
        """The configuration changes, everywhere at once."""
        self.keys.update(keys)
        databases = self.keys.get("databases")
        if isinstance(databases, dict):
            databases["app"]["max_connections"] = of_app
        for world in self.worlds:
            world.limit_keys.update(keys)
            world.registry.reconfigure()
        self._post(self.book.limits_changed(self.now))

    def check(self) -> None:
        """No limit is exceeded, by leases or by connections."""
        for account in self.book.accounts():
            limits = self.limits_of(account.database.name, account.user.name)
            if limits.pool_size:
                assert account.taken <= limits.pool_size + limits.reserve_pool_size, account
            if limits.max_db_connections:
                assert account.database.taken <= limits.max_db_connections, account
            if limits.max_user_connections:
                assert account.user.taken <= limits.max_user_connections, account
        self.check_sums()

    def check_sums(self) -> None:
        """Every connection has a lease, and what is shared is the sum of its parts."""
        of_database: dict[str, int] = {}
        of_user: dict[str, int] = {}
        accounts = self.book.accounts()
        for account in accounts:
            database, user = account.database.name, account.user.name
            assert self.standing(database, user) <= account.taken, (account, self.connections)
            of_database[database] = of_database.get(database, 0) + int(account.taken)
            of_user[user] = of_user.get(user, 0) + int(account.taken)
        for connection in self.connections:
            assert self.book.account(*connection.key) is not None, connection
        for account in accounts:
            assert account.database.taken == of_database[account.database.name]
            assert account.user.taken == of_user[account.user.name]
