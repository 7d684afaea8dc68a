"""A server's socket: what arrived before it broke is read, even when it breaks under our own write."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop
from fix_sessions import World, error_code, kinds
from fix_wait import await_until

from pgpool_proxy.errors import Report
from pgpool_proxy.net.connector import unread
from pgpool_proxy.net.server_connection import ServerConnection
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.wire import backend, frontend

FATAL = backend.error_response(Report("terminating connection due to administrator command", "57P01", "FATAL"))
BROKEN = backend.message(0x01, b"")


class Dock:
    def crashed(self, session: ServerSession, error: BaseException, now: float) -> None:
        raise error

    def unread(self, session: ServerSession) -> bytes:
        return unread(session)


class Nudge(asyncio.Protocol):
    """Calls back from within the loop's look at its sockets: the next look comes after what is written there has gone out."""

    def __init__(self, called: Any) -> None:
        self.called = called

    def data_received(self, data: bytes) -> None:
        self.called()


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 10))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    ("last", "expected", "code"),
    [
        (FATAL, "E", "57P01"),
        (backend.command_complete(b"SELECT 1") + FATAL, "CE", "57P01"),
        (b"", "E", "08006"),
        (backend.notice_response(Report("bye", "00000", "NOTICE")) + BROKEN, "NE", "08P01"),
    ],
    ids=["its last words", "an answer and its last words", "nothing", "what no server says"],
)
def test_what_a_server_said_before_it_went_is_read_although_a_write_to_it_failed(
    loop: str, last: bytes, expected: str, code: str
) -> None:
    async def main() -> None:
        world = World(pool_size=1)
        client = world.client()
        client.send(frontend.query(b"begin"))
        world.settle()
        assert kinds(client.take()) == "CZ"
        session = world.servers[0].session
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connection: Any = ServerConnection(Dock(), session)
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: connection, *listener.getsockname())
            session.transport = transport
            peer = listener.accept()[0]
        client.send(frontend.query(b"select 1"))
        await asyncio.get_running_loop().sock_recv(unblocked(peer), 100)

        def break_off() -> None:
            if last:
                peer.send(last)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            client.send(frontend.query(b"select 2"))

        ours, theirs = socket.socketpair()
        nudged, _ = await asyncio.get_running_loop().create_connection(lambda: Nudge(break_off), sock=ours)
        theirs.send(b"now")
        try:
            await await_until(lambda: client.is_closed)
            answer = client.take()
            assert (kinds(answer), error_code(answer)) == (expected, code)
            assert session.is_closed
        finally:  # a loop does not close over connections that are open
            transport.abort()
            nudged.abort()
            theirs.close()
            await asyncio.sleep(0)

    run(main(), loop)


def unblocked(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock
