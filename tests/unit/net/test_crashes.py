"""A bug in what one connection calls costs that connection, is logged with whose it was, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_sessions import FakeTransport, World, error_code, kinds
from fix_wait import await_until

from pgpool_proxy import errors, log
from pgpool_proxy.net.client_connection import ClientConnection
from pgpool_proxy.net.connector import Connector
from pgpool_proxy.net.listener import Listener
from pgpool_proxy.net.server_connection import ServerConnection
from pgpool_proxy.process import worker
from pgpool_proxy.settings import Settings
from pgpool_proxy.wire import backend, frontend

STARTUP = frontend.startup([(b"user", b"alice"), (b"database", b"app")])
QUERY = frontend.query(b"select 1")


class Bug(RuntimeError):
    pass


def fails(*_: object) -> Any:
    raise Bug("not thought of")


class Transport(FakeTransport):
    def get_extra_info(self, name: str) -> tuple[str, int]:
        return {"peername": ("192.0.2.7", 4711)}[name]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """The lines of the log."""
    path = tmp_path / "the.log"
    log.configure(Settings(logfile=str(path)), quiet=True)
    yield lambda: path.read_text().splitlines()
    log.configure(Settings(), quiet=False)


class Outsider:
    """A client as the loop has it: a real ClientConnection of a real Listener."""

    def __init__(self, world: World) -> None:
        self.transport = Transport()
        self.connection = ClientConnection(Listener(world.context, lambda *_: None))
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def log_in(self, world: World) -> Outsider:
        self.connection.data_received(STARTUP)
        world.settle()
        assert kinds(self.transport.take())[-1] == "Z"
        return self


def assert_alive(world: World) -> None:
    """Others are served."""
    client = world.client()
    client.send(QUERY)
    world.settle()
    assert kinds(client.take()) == "TDCZ"


def test_a_bug_in_a_clients_data_ends_it_with_xx000(lines: Callable[[], list[str]]) -> None:
    world = World()
    world.client()
    good = world.host.start_login
    world.host.start_login = fails  # type: ignore[method-assign]
    victim = Outsider(world)
    victim.connection.data_received(STARTUP)
    assert error_code(victim.transport.take()) == errors.INTERNAL_ERROR.sqlstate == "XX000"
    assert victim.transport.is_closed
    text = "\n".join(lines())
    assert "app/alice@192.0.2.7:4711 internal error: not thought of" in text
    assert "Bug: not thought of" in text, "where it was"
    world.host.start_login = good  # type: ignore[method-assign]
    assert_alive(world)


@pytest.mark.parametrize("callback", ["violated", "connection_lost", "crashed twice"])
def test_a_bug_on_the_way_out_is_caught_too(lines: Callable[[], list[str]], callback: str) -> None:
    world = World()
    victim = Outsider(world).log_in(world)
    good = world.host.notify, world.host.client_closed
    world.host.notify = fails  # type: ignore[method-assign]
    if callback == "violated":
        victim.connection.data_received(b"!\0\0\0\4")
        assert victim.transport.is_closed
    elif callback == "connection_lost":
        world.host.client_closed = fails  # type: ignore[method-assign]
        victim.connection.connection_lost(None)
    else:
        world.host.client_closed = fails  # type: ignore[method-assign]
        victim.connection.data_received(b"!\0\0\0\4")
        assert victim.transport.is_closed
    assert any("internal error: not thought of" in line for line in lines())
    world.host.notify, world.host.client_closed = good  # type: ignore[method-assign]
    assert_alive(world)


def test_a_bug_in_a_servers_data_ends_that_server(lines: Callable[[], list[str]]) -> None:
    world = World()
    client = world.connect()
    connector: Any = Connector.__new__(Connector)  # its callbacks alone
    server = world.servers[0]
    connection = ServerConnection(connector, server.session)
    server.session.connected(server.transport, world.now)
    good = world.host.server_opened
    world.host.server_opened = fails  # type: ignore[method-assign]
    connection.data_received(backend.AUTHENTICATION_OK + backend.backend_key_data(bytes(8)) + backend.READY_IDLE)
    assert server.is_closed
    assert server.transport.is_closed
    assert any("app/alice@" in line and "internal error: not thought of" in line for line in lines())
    world.host.server_opened = good  # type: ignore[method-assign]
    world.pass_time(20.0)
    world.settle()
    assert client.is_closed or kinds(client.take())[-1] == "Z"
    assert_alive(world)


def test_a_bug_in_a_callback_of_the_loop_is_logged_and_the_loop_goes_on(lines: Callable[[], list[str]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(worker.loop_failed)
        loop.call_soon(fails)
        await await_until(lambda: any("not thought of" in line for line in lines()))

    asyncio.run(main())
