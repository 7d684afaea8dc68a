"""Real sessions and pools without a network: transports that record, a host that says yes, and a small PostgreSQL in memory.

    world = World(pool_mode=TRANSACTION, pool_size=1)
    client = world.client()                  # logged in
    client.send(frontend.query(b"select 1"))
    world.servers[0].answer()                # the server reads what it was sent, and answers
    assert client.take() == ...

Nothing runs by itself: `server.answer()` and `world.settle()` move bytes, `world.pass_time()` moves the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgpool_proxy import errors
from pgpool_proxy.auth.exchange import ClientExchange, Derive
from pgpool_proxy.auth.plain import OpenExchange
from pgpool_proxy.errors import AuthenticationFailed, ProtocolViolation, Report
from pgpool_proxy.pool import janitor as orders
from pgpool_proxy.pool.cancel_keys import CancelKeys
from pgpool_proxy.pool.janitor import Janitor, Order
from pgpool_proxy.pool.ledger import Ledger, LocalLedger
from pgpool_proxy.pool.pool import TRANSACTION, Pool, PoolLimits
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.client_login import ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Admission, Context
from pgpool_proxy.session.parameters import TrackedParameters
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.framing import MessageReader

REPORTED = {
    b"client_encoding": b"UTF8",
    b"DateStyle": b"ISO, MDY",
    b"TimeZone": b"UTC",
    b"standard_conforming_strings": b"on",
    b"application_name": b"",
    b"server_version": b"18.0",
}


def messages(data: bytes | bytearray) -> list[tuple[str, bytes]]:
    """(type, body) of each message; the last may be cut."""
    found: list[tuple[str, bytes]] = []
    reader = MessageReader(1 << 30)
    reader.feed(bytes(data))
    while reader.next():
        found.append((chr(int(reader.kind)), reader.body))
    rest = reader.rest()
    return [*found, ("cut", rest)] if rest else found


def kinds(data: bytes | bytearray) -> str:
    """The types of the messages, one letter each."""
    return "".join(kind for kind, _ in messages(data))


def error_code(data: bytes) -> str:
    """SQLSTATE of the first ErrorResponse in `data`; empty when there is none."""
    for kind, body in messages(data):
        if kind == "E":
            return backend.error_report(body).sqlstate
    return ""


def parse(name: bytes, text: bytes) -> bytes:
    return frontend.parse(name, text + b"\0\0\0")


def bind(statement: bytes, portal: bytes = b"") -> bytes:
    return frontend.message(ord("B"), portal + b"\0" + statement + b"\0" + bytes(6))


def describe(name: bytes, what: bytes = b"S") -> bytes:
    return frontend.message(ord("D"), what + name + b"\0")


def execute(portal: bytes = b"") -> bytes:
    return frontend.message(ord("E"), portal + b"\0" + bytes(4))


def close(name: bytes) -> bytes:
    return frontend.close_statement(name)


def copy_data(data: bytes = b"row\n") -> bytes:
    return frontend.message(ord("d"), data)


def function_call() -> bytes:
    return frontend.message(ord("F"), bytes(12))


COPY_DONE = frontend.message(ord("c"), b"")
COPY_FAIL = frontend.message(ord("f"), b"no\0")
SYNC = frontend.SYNC_MESSAGE
FLUSH = frontend.FLUSH_MESSAGE
TERMINATE = frontend.TERMINATE_MESSAGE


# --- a small PostgreSQL ----------------------------------------------------------------------------------------------
class Backend:
    """What one PostgreSQL process answers, as far as pooling can tell the difference.

    Statements: `select X`, begin, commit, rollback, `error`, `copy in`, `copy out`, `set a='b'`, reset, deallocate all,
    discard all, prepare/deallocate NAME; anything else is answered with its first word as the tag.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.status = b"I"
        self.statements: dict[bytes, bytes] = {}
        self.portals: dict[bytes, bytes] = {}
        self.parameters = dict(REPORTED)
        self.skipping = False
        self.copying: str = ""  # "query" or "execute" while COPY IN runs
        self.rows = 0
        self.seen: list[str] = []
        self._reader = MessageReader(1 << 30)
        self._unsent = b""

    def answer(self, data: bytes) -> bytes:
        """What it sends: at the end of a request, at Flush, at an error, and when it wants copy data."""
        self._reader.feed(data)
        sent = b""
        while self._reader.next():
            kind, body = chr(int(self._reader.kind)), self._reader.body
            self.seen.append(kind)
            out = self._message(kind, body)
            self._unsent += out
            if kind in "SHQF" or out[:1] == b"E" or kinds(out)[-1:] in ("E", "G", "Z"):
                sent += self._unsent
                self._unsent = b""
        return sent

    def _message(self, kind: str, body: bytes) -> bytes:
        if kind in "dcf":
            return self._copy(kind)
        if self.copying:
            if kind in "SH":
                return b""
            return self._copy_ends(self._error("08P01"))
        if kind == "S":
            self.skipping = False
            return self._ready()
        if self.skipping or kind in "HX":
            return b""
        if kind == "Q":
            return self._query(body[:-1])
        if kind == "F":
            return (
                self._error("25P02") if self.status == b"E" else backend.message(ord("V"), b"\xff\xff\xff\xff")
            ) + self._ready()
        out = self._extended(kind, body)
        if out[:1] == b"E":
            self.skipping = True
        return out

    def _ready(self) -> bytes:
        if self.status == b"I":
            self.portals.clear()
        return backend.ready_for_query(self.status[0])

    def _error(self, code: str, text: str = "no") -> bytes:
        if self.status == b"T":
            self.status = b"E"
        return backend.error_response(Report(text, code, "ERROR"))

    # --- simple ---
    def _query(self, text: bytes) -> bytes:
        self.statements.pop(b"", None)
        out = b""
        for one in text.split(b";") if text.strip() else [b""]:
            if not one.strip() and text.strip():
                continue
            done = self._run(one.strip(), describes=True)
            if done[:1] == b"G":
                self.copying = "query"
                return out + done
            out += done
            if kinds(done)[-1:] == "E":
                break
        return out + self._ready()

    def _run(self, text: bytes, *, describes: bool) -> bytes:
        word, _, rest = text.lower().partition(b" ")
        if self.status == b"E" and word not in (b"rollback", b"commit"):
            return self._error("25P02")
        if not text:
            return backend.EMPTY_QUERY_MESSAGE
        if word == b"error":
            return self._error("22012")
        if word == b"begin":
            self.status = b"T"
        elif word in (b"commit", b"rollback"):
            word = b"rollback" if self.status == b"E" else word
            self.status = b"I"
        elif word == b"select":
            columns = backend.row_description([("x", 25, -1)]) if describes else b""
            return columns + backend.data_row([rest]) + backend.command_complete(b"SELECT 1")
        elif word == b"copy" and rest == b"in":
            self.rows = 0
            return backend.message(ord("G"), bytes(3))
        elif word == b"copy":
            return backend.message(ord("H"), bytes(3)) + copy_data() * 2 + COPY_DONE + backend.command_complete(b"COPY 2")
        elif word == b"set":
            name, _, value = text[4:].partition(b"=")
            return backend.command_complete(b"SET") + self._set(name, value.strip(b"'"))
        elif word == b"deallocate" and rest != b"all":
            rest = rest.partition(b" --")[0]
            if self.statements.pop(rest, None) is None:
                return self._error("26000")
        elif word == b"prepare":
            self.statements[rest] = b"select prepared"
        elif word in (b"discard", b"deallocate"):
            self.statements.clear()
            word = text.upper()
        return backend.command_complete(word.upper())

    def _set(self, name: bytes, value: bytes) -> bytes:
        for known in self.parameters:
            if known.lower() == name.lower() and self.parameters[known] != value:
                self.parameters[known] = value
                return backend.parameter_status(known, value)
        return b""

    # --- extended ---
    def _extended(self, kind: str, body: bytes) -> bytes:
        if kind == "P":
            name, text, _ = body.split(b"\0", 2)
            if self.status == b"E" and text.lower() not in (b"rollback", b"commit"):
                return self._error("25P02")
            if name and name in self.statements:
                return self._error("42P05", f'prepared statement "{name.decode()}" already exists')
            if text == b"syntax error" or text.startswith(b"too many"):
                self.statements.pop(b"", None)
                return self._error("42601")
            self.statements[name] = text
            return backend.PARSE_COMPLETE_MESSAGE
        if kind == "B":
            portal, name, _ = body.split(b"\0", 2)
            if name not in self.statements:
                return self._error("26000")
            if self.status == b"E" and self.statements[name].lower() not in (b"rollback", b"commit"):
                return self._error("25P02")
            self.portals[portal] = self.statements[name]
            return backend.BIND_COMPLETE_MESSAGE
        if kind == "D":
            return self._describe(body)
        if kind == "C":
            (self.statements if body[:1] == b"S" else self.portals).pop(body[1:-1], None)
            return backend.CLOSE_COMPLETE_MESSAGE
        if kind == "E":
            portal = body.split(b"\0", 1)[0]
            if portal not in self.portals:
                return self._error("34000")
            out = self._run(self.portals[portal], describes=False)
            if out[:1] == b"G":
                self.copying = "execute"
            return out
        raise AssertionError(f"the proxy sent {kind!r}")

    def _describe(self, body: bytes) -> bytes:
        named = self.statements if body[:1] == b"S" else self.portals
        text = named.get(body[1:-1])
        if text is None:
            return self._error("26000" if body[:1] == b"S" else "34000")
        if self.status == b"E":
            return self._error("25P02")
        out = backend.message(ord("t"), bytes(2)) if body[:1] == b"S" else b""
        if text.lower().startswith(b"select"):
            return out + backend.row_description([("x", 25, -1)])
        return out + backend.NO_DATA_MESSAGE

    # --- COPY IN ---
    def _copy(self, kind: str) -> bytes:
        if not self.copying:
            return b""  # what comes late is ignored
        if kind == "d":
            self.rows += 1
            return b""
        if kind == "f":
            return self._copy_ends(self._error("57014"))
        return self._copy_ends(backend.command_complete(b"COPY %d" % self.rows))

    def copy_fails(self) -> bytes:
        """The server finds an error in the data."""
        return self._copy_ends(self._error("22P02"))

    def _copy_ends(self, out: bytes) -> bytes:
        by_query = self.copying == "query"
        self.copying = ""
        if by_query:
            return out + self._ready()
        if out[:1] == b"E":
            self.skipping = True
        return out


# --- what the sessions see ---------------------------------------------------------------------------------------------
class FakeTransport:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.writes = 0
        self.is_closed = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        assert not self.is_closed
        self.sent += data
        self.writes += 1

    def take(self) -> bytes:
        sent = bytes(self.sent)
        self.sent.clear()
        return sent

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True


class FakeHost:
    """Lets everybody in; keeps what it is told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cancelled: list[ServerSession] = []
        self.closed: dict[int, Report] = {}
        self.crashes: list[BaseException] = []
        self.states_seen: list[tuple[int, str]] = []

    def start_login(self, login: ClientLogin, now: float) -> None:
        database = self.world.registry.database(login.database_name)
        refusal = errors.NO_SUCH_DATABASE if database is None else None
        login.admitted(Admission(OpenExchange(None), database, refusal), now)

    def proved(self, login: ClientLogin) -> None: ...

    def derive(self, step: Derive, done: Callable[[bytes, float], None]) -> None:
        raise AssertionError("nobody has a password here")

    def inquire(self, login: ClientLogin, password: bytes, done: Callable[[bool, float], None]) -> None:
        raise AssertionError("nobody is asked here")

    def ask_anew(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        login.kept = None
        login.failed(failure, now)

    def refuse(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        login.session.fail(failure.report, now)

    def start_tls(self, session: ClientSession, early: bytes, now: float) -> bool:
        return False

    def open_console(self, session: ClientSession, is_admin: bool) -> object:
        raise AssertionError("there is no console here")

    def cancel(self, session: ClientSession, key: bytes, now: float) -> None:
        session.leave(errors.CANCEL_UNKNOWN_KEY, now)

    def cancel_server(self, server: ServerSession, now: float) -> None:
        self.cancelled.append(server)

    def client_logged_in(self, session: ClientSession, now: float) -> None: ...

    def client_closed(self, session: ClientSession, report: Report, now: float) -> None:
        assert session.number not in self.closed, "closed twice"
        self.closed[session.number] = report

    def notify(self, session: ClientSession, report: Report) -> None: ...

    def state_seen(self, session: ClientSession, kinds: str) -> None:
        self.states_seen.append((int(session.number), kinds))

    def server_exchange(self, session: ServerSession) -> ClientExchange:
        return ClientExchange("u", None, None, lambda: bytes(18), None, frozenset(), tls=False)

    def connect_query_failed(self, session: ServerSession, report: Report) -> None: ...

    def notification_unheard(self, session: ServerSession) -> None: ...

    def server_opened(self, session: ServerSession, now: float) -> None: ...

    def server_closed(self, session: ServerSession, report: Report, now: float) -> None:
        assert session.number not in self.closed, "closed twice"
        self.closed[session.number] = report

    def server_failed(self, session: ServerSession, report: Report, told: Report | None, retry_in: float) -> None:
        pass

    def retry_pause(self, session: ServerSession, report: Report) -> float:
        return 1.0


class Client:
    """A client and its end of the wire."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transport = FakeTransport()
        self.session = ClientSession(world.context, self.transport, "127.0.0.1", 1, False, world.now)
        world.registry.arrive(self.session)
        world.arrived(self.session)

    def send(self, data: bytes, size: int = 0) -> None:
        """Bytes arrive, in chunks of `size` (0: all at once), as net/client_connection hands them over."""
        for at in range(0, len(data), size or len(data) or 1):
            if self.session.is_closed:
                return
            try:
                self.session.received(data[at : at + size] if size else data, self.world.now)
            except ProtocolViolation as violation:
                self.session.violated(violation.report, self.world.now)

    def take(self) -> bytes:
        """What the client has got since it was asked last."""
        return self.transport.take()

    def vanish(self) -> None:
        self.transport.is_closed = False
        self.session.connection_lost(self.world.now)
        self.transport.is_closed = True

    @property
    def is_closed(self) -> bool:
        return self.session.is_closed

    @property
    def reason(self) -> Report:
        """Why it was closed."""
        return self.world.host.closed[self.session.number]

    def __repr__(self) -> str:
        return f"<Client {self.session!r}>"


class Server:
    """A server session, its end of the wire and the PostgreSQL behind it."""

    def __init__(self, world: World, session: ServerSession) -> None:
        self.world = world
        self.session = session
        self.transport = FakeTransport()
        self.backend = Backend(int(session.number))
        self.is_open = False

    def open(self, parameters: dict[bytes, bytes] | None = None) -> Server:
        """The connection stands and the login succeeds."""
        self.session.connected(self.transport, self.world.now)
        self.transport.take()
        self.backend.parameters.update(parameters or {})
        self.is_open = True
        statuses = [backend.parameter_status(name, value) for name, value in self.backend.parameters.items()]
        key = backend.backend_key_data(self.session.number.to_bytes(8, "big"))
        self.send(backend.AUTHENTICATION_OK + b"".join(statuses) + key + backend.READY_IDLE)
        return self

    def refuse(self, code: str = "28P01") -> None:
        """The login fails."""
        self.session.connected(self.transport, self.world.now)
        self.send(backend.error_response(Report("no", code)))

    def fail(self) -> None:
        """The connection does not come about."""
        self.session.disconnect(errors.CONNECT_FAILED, self.world.now)

    def send(self, data: bytes, size: int = 0) -> None:
        """Bytes of the server arrive, as net/server_connection hands them over."""
        for at in range(0, len(data), size or len(data) or 1):
            if self.session.is_closed:
                return
            try:
                self.session.received(data[at : at + size] if size else data, self.world.now)
            except ProtocolViolation as violation:
                self.session.violated(violation.report, self.world.now)

    def take(self) -> bytes:
        """What the server has been sent since it was asked last; nobody answers it."""
        return self.transport.take()

    def answer(self, size: int = 0) -> bool:
        """The PostgreSQL reads what it was sent, and answers in chunks of `size`. False: there was nothing. Like the real one,
        it leaves without a word when it is told of a message of a gigabyte or more."""
        data = self.transport.take()
        if not data or not self.is_open or self.session.is_closed:
            return False
        try:
            answer = self.backend.answer(data)
        except ProtocolViolation:
            self.die()
        else:
            self.send(answer, size)
        return True

    def die(self) -> None:
        """The connection breaks without a word."""
        self.session.connection_lost(self.world.now)

    @property
    def is_closed(self) -> bool:
        return self.session.is_closed

    @property
    def reason(self) -> Report:
        return self.world.host.closed[self.session.number]

    def __repr__(self) -> str:
        return f"<Server {self.session!r}>"


class FakeLauncher:
    def __init__(self, world: World) -> None:
        self.world = world

    def launch(self, pool: Pool, now: float) -> None:
        session = ServerSession(self.world.context, pool, "127.0.0.1", 5432, now)
        pool.add_server(session)
        self.world.servers.append(Server(self.world, session))


class FakeConfigurator:
    def __init__(self, world: World) -> None:
        self.world = world
        self.reserve_count = 0

    def make_database(self, name: str, registry: Registry) -> Database | None:
        keys = self.world.database_keys.get(name)
        if keys is None:
            return None
        database = Database(name, registry)
        for key, value in keys.items():
            assert hasattr(database, key), key
            setattr(database, key, value)
        return database

    def configure_user(self, user: User) -> None:
        for key, value in self.world.user_keys.get(user.name, {}).items():
            assert hasattr(user, key), key
            setattr(user, key, value)

    def configure_pool(self, pool: Pool) -> None:
        fill(pool.limits, {**self.world.limit_keys, **self.world.pool_keys.get((pool.database.name, pool.user.name), {})})
        if pool.database.forced_user is not None:
            pool.user.is_forced = True

    def reserve_taken(self, pool: Pool) -> None:
        self.reserve_count += 1


def fill(limits: PoolLimits, keys: dict[str, object]) -> None:
    for key, value in keys.items():
        assert hasattr(limits, key), key
        setattr(limits, key, value)


class World:
    """One process without sockets. Keywords are those of `PoolLimits`; `databases` and `users` give attributes by name."""

    def __init__(
        self,
        *,
        databases: dict[str, dict[str, object]] | None = None,
        users: dict[str, dict[str, object]] | None = None,
        pools: dict[tuple[str, str], dict[str, object]] | None = None,
        extra_parameters: tuple[bytes, ...] = (),
        ledger: Ledger | None = None,
        **limits: object,
    ) -> None:
        self.now = 1000.0
        self.servers: list[Server] = []
        self.clients: list[Client] = []
        self.database_keys = databases if databases is not None else {"app": {}, "other": {}}
        self.user_keys = users or {}
        self.pool_keys = pools or {}
        self.limit_keys: dict[str, object] = {"pool_mode": TRANSACTION, "pool_size": 2, **limits}
        self.host = FakeHost(self)
        self.configurator = FakeConfigurator(self)
        self.registry = Registry(ledger or LocalLedger(), FakeLauncher(self), self.configurator)
        self.registry.max_client_conn = 10_000
        self.janitor = Janitor(self.registry)
        self.arrived: Callable[[ClientSession], None] = lambda session: None
        self._random = 0
        self.keys = CancelKeys(self._random_bytes)
        self.context = Context(self.host, self.registry, self.keys, TrackedParameters(extra_parameters))

    def _random_bytes(self, size: int) -> bytes:
        self._random += 1
        return b"".join([(self._random * 1000 + at).to_bytes(8, "big") for at in range(size // 8)])

    # --- who there is ---
    def pool(self, database: str = "app", user: str = "alice") -> Pool:
        found = self.registry.database(database)
        assert found is not None
        return self.registry.pool(found, user)

    def connect(self, database: str = "app", user: str = "alice", **parameters: str) -> Client:
        """A client that has sent its StartupMessage."""
        client = Client(self)
        self.clients.append(client)
        pairs = [(b"user", user.encode()), (b"database", database.encode())]
        client.send(frontend.startup([*pairs, *((name.encode(), value.encode()) for name, value in parameters.items())]))
        return client

    def client(self, database: str = "app", user: str = "alice", **parameters: str) -> Client:
        """A client that is in: servers that its login needs are opened."""
        client = self.connect(database, user, **parameters)
        self.settle()
        assert kinds(client.take()).endswith("Z"), "the login did not succeed"
        return client

    # --- what happens ---
    @property
    def opening(self) -> list[Server]:
        return [server for server in self.servers if not server.is_open and not server.is_closed]

    @property
    def open_servers(self) -> list[Server]:
        return [server for server in self.servers if server.is_open and not server.is_closed]

    def settle(self, size: int = 0) -> None:
        """Servers open and answer until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            for server in self.opening:
                server.open()
                moved = True
            for server in list(self.servers):
                moved = server.answer(size) or moved

    def pass_time(self, seconds: float) -> list[Order]:
        """Time passes; the janitor's orders are carried out as process/worker does."""
        self.now += seconds
        given = self.janitor.tick(self.now)
        for order in given:
            if order.action == orders.CLOSE_CLIENT and order.client is not None:
                order.client.disconnect(order.report, self.now)
            elif order.action == orders.CLOSE_SERVER and order.server is not None:
                order.server.disconnect(order.report, self.now)
            elif order.action == orders.GROW and order.pool is not None:
                order.pool.grow(self.now)
            elif order.action == orders.DROP_POOL and order.pool is not None:
                self.registry.drop_pool(order.pool)
        return given

    def cancel(self, server: ServerSession) -> tuple[CancelSession, FakeTransport]:
        """A CancelRequest for a server is on its way; `connected` sends it, `connection_lost` ends it."""
        return CancelSession(self.context, server, self.now), FakeTransport()

    def all_servers(self) -> Iterator[ServerSession]:
        for server in self.servers:
            yield server.session
