"""Clients that are easy to reason about, and a database of its own for a test that counts the servers it causes.

`login` makes raw clients, so that a test decides what is sent when and needs no thread for a client that waits. `settle` is
how a test knows that the daemon has seen what was sent before: it never sleeps to be sure of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from fix_postgres import PASSING, Postgres
from fix_proxy import Proxy
from fix_raw import GSSENC_REQUEST, SSL_REQUEST, MakeRawClient, Message, RawClient, query, request
from fix_wait import wait_until


class Database:
    """A database on the shared server that no other test knows. trust_user owns it."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server = server
        self.name = name

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    def entry(self, **keywords: object) -> str:
        """The right side of a line in [databases] for it."""
        pairs = {"host": self.server.host, "port": self.server.port, "dbname": self.name, **keywords}
        return " ".join(f"{key}={value}" for key, value in pairs.items())

    def servers(self, **equals: object) -> list[dict[str, Any]]:
        """Its backends, oldest first: those that the daemon under test has opened."""
        return self.server.stat_activity(datname=self.name, **equals)

    def pids(self, **equals: object) -> list[int]:
        return [row["pid"] for row in self.servers(**equals)]

    def sql(self, text: str, parameters: object = None, **keywords: object) -> list[tuple[Any, ...]]:
        """A query past the proxy, as trust_user."""
        return self.server.sql(text, parameters, **{"dbname": self.name, "user": "trust_user", **keywords})

    def kill(self, pid: int) -> None:
        """pg_terminate_backend()."""
        self.server.sql("select pg_terminate_backend(%s)", [pid])


@pytest.fixture
def database(shared_postgres: Postgres) -> Iterator[Database]:
    """A fresh database; dropped after the test with whoever is still in it."""
    name = f"t_{uuid4().hex[:12]}"
    shared_postgres.create_database(name, "trust_user")
    yield Database(shared_postgres, name)
    shared_postgres.sql(f"drop database {name} with (force)", dbname="postgres")


class Gate:
    """Queries that run until the test lets them: `ask(client, gate.sql("'done'"))`, `gate.wait()`, ..., `gate.open()`."""

    LOCK = 4711

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keeper = database.server.connect(dbname=database.name, application_name=PASSING)
        self._keeper.execute("select pg_advisory_lock(%s)", [self.LOCK])

    def sql(self, columns: str = "'done'") -> str:
        """A query that waits before the gate and then returns this."""
        return f"select {columns} from pg_advisory_xact_lock_shared({self.LOCK})"

    def wait(self, count: int = 1) -> None:
        """Return when so many servers stand before the gate."""
        wait_until(lambda: len(self._database.servers(state="active", wait_event="advisory")) == count, what="servers wait")

    def open(self) -> None:
        self._keeper.close()


@pytest.fixture
def gate(database: Database) -> Iterator[Gate]:
    """A gate in the test's own database, shut."""
    made = Gate(database)
    yield made
    made.open()


Login = Callable[..., RawClient]


@pytest.fixture
def login(make_raw_client: MakeRawClient) -> Login:
    """Raw clients that have logged in: `login(proxy)`, `login(proxy, user="md5_user")`."""

    def make(proxy: Proxy, **keywords: Any) -> RawClient:
        timeout = keywords.pop("timeout", 10)
        client = make_raw_client(proxy.port, timeout=timeout)
        last = client.login(**keywords)[-1]
        assert last.type == b"Z", f"the login failed: {last.fields()}"
        return client

    return make


def settle(proxy: Proxy) -> None:
    """Return when the daemon has read everything that arrived at it before this call.

    Two questions, one after the other: even if the loop found the first one together with what came before it, it has dealt
    with all of that when it reads the second.
    """
    import socket

    with socket.create_connection((proxy.host, proxy.port), timeout=10) as probe:
        for code in (SSL_REQUEST, GSSENC_REQUEST):
            probe.sendall(request(code))
            assert probe.recv(1) in b"NSG"


def ask(client: RawClient, sql: str) -> None:
    """Send a simple query without waiting for its answer."""
    client.send(query(sql))


def rows(messages: list[Message]) -> list[list[str | None]]:
    """The DataRows among these messages, as text. An ErrorResponse among them fails the test."""
    failed = [found.fields() for found in messages if found.type == b"E"]
    assert not failed, failed
    return [
        [None if value is None else value.decode() for value in found.values()]
        for found in messages
        if found.type == b"D"
    ]


def answer(client: RawClient) -> str | None:
    """The first value of the answer to a query that was sent before."""
    return rows(client.read_until(b"Z"))[0][0]


def value(client: RawClient, sql: str) -> str | None:
    """The first value that a query returns."""
    return rows(client.query(sql))[0][0]


def run(client: RawClient, sql: str) -> None:
    """A query that has to succeed."""
    rows(client.query(sql))


def backend_pid(client: RawClient) -> int:
    """The server process that serves the client now."""
    return int(value(client, "select pg_backend_pid()") or 0)


def error(messages: list[Message]) -> dict[str, str]:
    """The fields of the only ErrorResponse among these messages."""
    found = [message.fields() for message in messages if message.type == b"E"]
    assert len(found) == 1, messages
    return found[0]


def refusal(client: RawClient, **keywords: Any) -> dict[str, str]:
    """Log in, be refused and be closed: the fields of the ErrorResponse."""
    fields = error(client.login(**keywords)[-1:])
    assert client.is_closed()
    return fields


def assert_whole(proxy: Proxy, database: Database, login: Login, size: int) -> None:
    """The pool of trust_user has lost nothing: `size` clients can hold a server each, and none was left in a transaction."""
    assert proxy.is_running()
    wait_until(lambda: {row["state"] for row in database.servers()} <= {"idle"}, what="no server is at work")
    clients = [login(proxy) for _ in range(size)]
    for client in clients:
        ask(client, "begin; select pg_backend_pid()")
    assert len({answer(client) for client in clients}) == size
    for client in clients:
        run(client, "rollback")
        client.close()
    wait_until(lambda: len(database.pids()) <= size, what="those that were replaced are gone")
