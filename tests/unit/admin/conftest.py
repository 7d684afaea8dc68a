"""A house without sockets: real registry, sessions, console and control; clock, process and transports are not real."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from fix_raw import Message

from pgpool_proxy.admin.console import CONSOLE_PARAMETERS, Console
from pgpool_proxy.admin.control import error
from pgpool_proxy.admin.show import find_table
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.pool.cancel_keys import CancelKeys
from pgpool_proxy.pool.ledger import LocalLedger
from pgpool_proxy.pool.pool import SESSION, STATEMENT, TRANSACTION, Pool
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.pool.stats import ZERO, merge
from pgpool_proxy.process.control import WorkerControl
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.parameters import TrackedParameters
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry, PeerEntry, UserEntry
from pgpool_proxy.settings.model import Settings

REPORTED = {b"server_version": b"18.1", b"client_encoding": b"UTF8", b"application_name": b""}
READY = b"Z\0\0\0\x05I"


class Wire:
    """A transport that keeps what is written; `unsent` is what it pretends to have in its buffer."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def fileno(self) -> int:
        return 17

    def get_extra_info(self, name: str) -> object:
        if name == "socket":
            return self
        return ("10.9.8.7", 6432) if name == "sockname" else None

    def take(self) -> list[Message]:
        """The messages that were written since the last time."""
        messages: list[Message] = []
        data = self.written
        while data:
            size = struct.unpack("!i", data[1:5])[0] + 1
            assert len(data) >= size, "half a message"
            messages.append(Message(data[:1], data[5:size]))
            data = data[size:]
        self.written = b""
        return messages


class House:
    """A process: `clock` is its time, `later` what it was asked to call, `orders` what the worker was told."""

    def __init__(self) -> None:
        self.clock_now = 1000.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.orders: list[object] = []
        self.kept: dict[str, tuple[int, ...]] = {}
        self.listener = SimpleNamespace(sockets=[SimpleNamespace(sock=Wire(), address=("10.9.8.7", 6432))])
        self.notified: list[Report] = []
        self.closing: Report | None = None
        self.users = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
        self.reload_fails: ConfigError | None = None
        self.config = Config(
            settings=Settings(listen_port=6432),
            databases={
                "app": DatabaseEntry("app", "app_on_server", ("10.0.0.1",), 5433, pool_mode="transaction"),
                "twin": DatabaseEntry("twin", "twin", ("h1", "h2"), user="forced", password="hidden"),
            },
            users={"alice": UserEntry("alice", pool_size=7, pool_mode="session", max_user_connections=9)},
            peers={3: PeerEntry(3, "10.0.0.3"), 2: PeerEntry(2, "/sockets", 6433, 5)},
        )
        self.dns = SimpleNamespace(
            queries=1, hosts=lambda: iter([("db.internal", 12, "10.0.0.1")]), zones=lambda: iter([("internal", 7, 1)])
        )
        self.registry = Registry(LocalLedger(), self, self)
        self.context = Context(self, self.registry, CancelKeys(Random(1).randbytes), TrackedParameters())
        self.stats = self.host = self.logins = self.lookups = self
        self.control = WorkerControl(self)
        admin = Database("pgbouncer", self.registry)
        admin.is_admin = True
        admin.forced_user = "pgbouncer"
        self.registry.databases["pgbouncer"] = admin
        pool = self.registry.pool(admin, "pgbouncer")
        pool.limits.pool_mode = STATEMENT
        pool.server_parameters = dict(CONSOLE_PARAMETERS)
        for name in self.config.databases:
            self.registry.database(name)

    # --- the worker -----------------------------------------------------------------------------------------------------
    def clock(self) -> float:
        return self.clock_now

    def wall(self, at: float) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) + timedelta(seconds=at - 1000)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append((seconds, call))

    def run_later(self) -> None:
        """Everything that was to be called later, once."""
        calls, self.later = self.later, []
        for _, call in calls:
            call()

    def pass_time(self, seconds: float) -> None:
        self.clock_now += seconds
        self.control.tick(self.clock_now)

    def reload(self) -> None:
        if self.reload_fails is not None:
            raise self.reload_fails
        self.orders.append("reload")

    def forget(self, database: str | None = None) -> None:
        self.orders.append("forget lookups" if database is None else f"forget {database}")

    def stop_accepting(self) -> None:
        self.orders.append("stop accepting")

    def go_on_accepting(self) -> None:
        self.orders.append("accept")

    def keep(self, pool: Pool) -> None:
        """Statistics of a pool that is dropped."""
        name = pool.database.name
        self.kept[name] = merge([self.kept.get(name, ZERO), pool.stats.totals()])

    def shutdown(self, mode: str) -> None:
        self.orders.append(("shutdown", mode))

    @property
    def is_shutting_down(self) -> bool:
        return self.closing is not None

    def may_go_over_to(self, mode: str) -> bool:
        return mode == "wait_for_servers"

    def begin_shutdown(self, mode: str) -> None:
        self.orders.append(("begin shutdown", mode))

    def apply(self, config: Config) -> None:
        self.config = config

    # --- statistics -----------------------------------------------------------------------------------------------------
    def totals(self) -> dict[str, tuple[int, ...]]:
        pools = list(self.registry.pools.values())
        return {
            name: merge([pool.stats.totals() for pool in pools if pool.database.name == name])
            for name in {pool.database.name for pool in pools}
        }

    def base(self, name: str, now: float) -> tuple[tuple[int, ...], float]:
        return ZERO, 2.0

    # --- the registry's configurator and launcher -------------------------------------------------------------------------
    def make_database(self, name: str, registry: Registry) -> Database | None:
        entry = self.config.database(name)
        if entry is None:
            return None
        database = Database(name, registry)
        database.is_auto = name not in self.config.databases
        database.forced_user = entry.user
        return database

    def configure_user(self, user: User) -> None:
        user.is_forced = user.name == "forced"

    def configure_pool(self, pool: Pool) -> None:
        pool.limits.pool_mode = TRANSACTION if pool.database.name == "app" else SESSION
        pool.limits.load_balance_hosts = "round-robin" if pool.database.name == "twin" else None

    def reserve_taken(self, pool: Pool) -> None:
        raise AssertionError("there is no reserve here")

    def launch(self, pool: Pool, now: float) -> None:
        pool.add_server(ServerSession(self.context, pool, "10.0.0.1", 5433, now))

    # --- the sessions' host -----------------------------------------------------------------------------------------------
    def notify(self, session: ClientSession, report: Report) -> None:
        self.notified.append(report)

    def client_closed(self, session: ClientSession, report: Report, now: float) -> None:
        self.orders.append(("client closed", int(session.number), report.message))

    def server_opened(self, session: ServerSession, now: float) -> None: ...

    def server_closed(self, session: ServerSession, report: Report, now: float) -> None:
        self.orders.append(("server closed", int(session.number), report.message))

    def cancel_server(self, server: ServerSession, now: float) -> None:
        self.orders.append(("cancel", int(server.number)))

    def server_failed(self, session: ServerSession, report: Report, told: Report | None, retry_in: float) -> None:
        pass

    def retry_pause(self, session: ServerSession, report: Report) -> float:
        return 1.0

    # --- who is there -----------------------------------------------------------------------------------------------------
    def client(self, database: str = "app", user: str = "alice", address: str = "192.0.2.1", port: int = 4000) -> ClientSession:
        """A client that has logged in, to a pool whose parameters are known."""
        found = self.registry.database(database)
        assert found is not None
        session = ClientSession(self.context, Wire(), address, port, address.startswith("unix"), self.clock_now)
        session.user_name, session.database_name = user, database
        session.login = None
        self.registry.arrive(session)
        pool = self.registry.pool(found, user)
        if pool.server_parameters is None:
            pool.server_parameters = dict(REPORTED)
        self.registry.settle(session, pool, self.registry.user(user), self.clock_now)
        self.context.cancel_keys.issue(session)
        return session

    def arriving(self) -> ClientSession:
        """A client that is logging in."""
        session = ClientSession(self.context, Wire(), "192.0.2.9", 4009, False, self.clock_now)
        self.registry.arrive(session)
        return session

    def asks(self, client: ClientSession) -> None:
        """It sends a query; when it has to wait, a server is opened for it unless something is in the way."""
        client.received(b"Q\0\0\0\x0dselect 1\0", self.clock_now)
        pool = client.pool
        assert pool is not None
        for server in pool.opening.members():
            assert isinstance(server, ServerSession)
            self.opens(server)

    def opens(self, server: ServerSession) -> None:
        server.transport = Wire()
        server.login = None
        server.cancel_key = b"\0\0\x10\x01\x12\x34\x56\x78"
        server.local_address, server.local_port = "10.9.8.7", 50000 + int(server.number)
        server.pool.opened(server, dict(REPORTED), self.clock_now)

    def answers(self, client: ClientSession) -> None:
        """The server of the client says that its query is over."""
        assert client.link is not None
        client.link.server.received(READY, self.clock_now)

    def busy(self, database: str = "app", user: str = "alice") -> ClientSession:
        """A client whose query runs."""
        client = self.client(database, user)
        self.asks(client)
        assert client.link is not None
        return client

    def idle_server(self, database: str = "app", user: str = "alice") -> ServerSession:
        """A server that nobody uses, in a transaction pool."""
        client = self.busy(database, user)
        assert client.link is not None
        server = client.link.server
        self.answers(client)
        assert client.link is None
        return server

    # --- consoles -------------------------------------------------------------------------------------------------------
    def console(self, is_admin: bool = True, control: Any = None) -> Talk:
        session = self.client("pgbouncer", "admin" if is_admin else "stats", port=5000)
        session.console = Console(session, control if control is not None else self.control, is_admin)
        return Talk(self, session)


class Talk:
    """A client of the console."""

    def __init__(self, house: House, session: ClientSession) -> None:
        self.house = house
        self.session = session

    @property
    def wire(self) -> Any:
        return self.session.transport

    def send(self, *parts: bytes) -> list[Message]:
        """What is answered to these bytes at once."""
        self.session.received(b"".join(parts), self.house.clock_now)
        return self.heard()

    def heard(self) -> list[Message]:
        return self.wire.take()

    def ask(self, sql: str) -> list[Message]:
        data = sql.encode() + b"\0"
        return self.send(b"Q" + struct.pack("!i", len(data) + 4) + data)

    def ask_whole(self, sql: str) -> list[Message]:
        """The same, with the parts of a long answer that come later."""
        messages = self.ask(sql)
        while self.house.later:
            self.house.run_later()
            messages += self.heard()
        return messages

    def rows(self, sql: str) -> list[dict[str, str | None]]:
        """The rows of a SHOW by column name, in text."""
        messages = self.ask_whole(sql)
        assert messages[0].type == b"T", messages[0].fields()
        names = columns(messages[0])
        return [
            {name: cell if cell is None else cell.decode() for (name, _, _), cell in zip(names, found.values(), strict=True)}
            for found in messages
            if found.type == b"D"
        ]

    def outcome(self, sql: str) -> str:
        """The tag of CommandComplete, or `SQLSTATE text` of the error, or nothing when there is no answer yet."""
        return outcome(self.ask_whole(sql))

    def cancel(self) -> None:
        assert self.session.console is not None
        self.session.console.cancel(self.house.clock_now)

    def leaves(self) -> None:
        self.session.connection_lost(self.house.clock_now)


def columns(description: Message) -> list[tuple[str, int, int]]:
    """(name, type OID, format code) of a RowDescription."""
    (count,) = struct.unpack_from("!h", description.body)
    at, found = 2, list[tuple[str, int, int]]()
    for _ in range(count):
        stop = description.body.index(b"\0", at)
        oid, _, _, code = struct.unpack_from("!ihih", description.body, stop + 7)
        found.append((description.body[at:stop].decode(), oid, code))
        at = stop + 19
    assert at == len(description.body)
    return found


def outcome(messages: Iterable[Message]) -> str:
    for found in messages:
        if found.type == b"C":
            return found.body.rstrip(b"\0").decode()
        if found.type == b"E":
            return f"{found.fields()['C']} {found.fields()['M']}"
    return ""


class Orders:
    """A control that writes down what it is asked for, and answers when the test says so."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.asked: list[tuple[object, ...]] = []
        self.answer: Report | None = None
        self.done: Callable[[Report | None], None] | None = None
        self.waits = False
        self.undone = 0
        self.abandoned = 0
        self.closed: list[object] = []
        self.row_source: Iterable[tuple[object, ...]] | None = None

    def now(self) -> float:
        return self.house.clock_now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.house.call_later(seconds, call)

    def rows(self, table: str, done: Callable[[Any], None]) -> None:
        done(self.row_source if self.row_source is not None else find_table(table, table).rows(self.house.control))

    def console_closed(self, owner: object) -> None:
        self.closed.append(owner)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def order(*arguments: Any) -> Any:
            done = next(argument for argument in arguments if callable(argument))
            plain = [argument for argument in arguments if not callable(argument) and not isinstance(argument, Console)]
            self.asked.append((name, *plain))
            if self.waits:
                self.done = done
                return self
            done(self.answer)
            return None

        if name.startswith("_"):
            raise AttributeError(name)
        return order

    # --- Pending ----------------------------------------------------------------------------------------------------------
    def cancel(self) -> None:
        self.undone += 1
        assert self.done is not None
        self.done(error("canceling statement due to user request", "57014"))

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def make_house() -> Callable[[], House]:
    return House


@pytest.fixture
def orders(house: House) -> Orders:
    return Orders(house)


@pytest.fixture
def columns_of() -> Callable[[Message], list[tuple[str, int, int]]]:
    return columns


@pytest.fixture
def outcome_of() -> Callable[[Iterable[Message]], str]:
    return outcome
