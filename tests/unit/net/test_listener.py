"""The listening sockets at their end: nobody who has connected is reset."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from fix_wait import LOOPBACK, await_until, free_port

from pgpool_proxy.net.listener import Closable, Listener, ListeningSocket
from pgpool_proxy.settings.model import Settings


class Door:
    """A listener whose connections are kept here. `is_deaf`: those that come stay in the kernel's queue."""

    def __init__(self, *, is_deaf: bool = False) -> None:
        self.is_deaf = is_deaf
        self.accepted: list[socket.socket] = []
        self.listener = Listener(None, self.accepted_by_listener, self._watch)
        self.port = free_port()

    async def open(self, **settings: object) -> Door:
        values = {"listen_addr": LOOPBACK, "listen_port": self.port, "unix_socket_dir": "", **settings}
        await self.listener.open(Settings.model_validate(values))
        return self

    def accepted_by_listener(self, connection: socket.socket, is_unix: bool) -> None:
        assert not is_unix
        self.accepted.append(connection)

    def _watch(self, listening: ListeningSocket) -> Closable:
        loop = asyncio.get_running_loop()
        number = listening.sock.fileno()

        class Watch:
            def close(self) -> None:
                loop.remove_reader(number)

        if not self.is_deaf:
            loop.add_reader(number, lambda: self.accepted.append(listening.sock.accept()[0]))
        return Watch()


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for one in opened:
        one.close()


def connect(port: int, clients: list[socket.socket], said: bytes = b"") -> socket.socket:
    clients.append(socket.create_connection((LOOPBACK, port), timeout=5))
    clients[-1].sendall(said)
    return clients[-1]


def peers(door: Door, clients: list[socket.socket]) -> set[object]:
    """Who was accepted, as its address. The connections are closed after the test."""
    clients += [one for one in door.accepted if one not in clients]
    return {one.getpeername() for one in door.accepted}


@pytest.mark.parametrize("so_reuseport", [False, True])
def test_who_is_in_the_queue_is_let_in_before_the_socket_closes(
    so_reuseport: bool, clients: list[socket.socket]
) -> None:
    async def scene() -> None:
        door = await Door(is_deaf=True).open(so_reuseport=so_reuseport)
        queued = [connect(door.port, clients, b"hello") for _ in range(5)]
        closed = False

        def is_closed() -> None:
            nonlocal closed
            closed = True

        door.listener.close_tcp(is_closed)
        await await_until(lambda: closed)
        assert peers(door, clients) == {one.getsockname() for one in queued}
        assert door.listener.sockets == []
        assert [one.recv(5) for one in door.accepted] == [b"hello"] * 5

    asyncio.run(scene())


def test_of_several_that_share_a_port_the_one_that_goes_resets_nobody(clients: list[socket.socket]) -> None:
    """Until a client has spoken, the kernel keeps it to itself (tcp_defer_accept): it is waited for. Those who begin to connect
    meanwhile get to the other, when the kernel of the client tries again after a second."""

    async def scene() -> None:
        old = await Door().open(so_reuseport=True)
        silent = [connect(old.port, clients) for _ in range(8)]
        await asyncio.sleep(0)
        assert old.accepted == []
        new = Door()
        new.port = old.port
        await new.open(so_reuseport=True)
        old.listener.close_tcp(lambda: None)
        late = [socket.socket() for _ in range(16)]  # the kernel would give half of them to the old one
        clients.extend(late)
        for one in late:
            one.setblocking(False)
            one.connect_ex((LOOPBACK, old.port))
        for _ in range(5):
            await asyncio.sleep(0)  # it has not closed at once
        for one in silent:
            one.sendall(b"hello")
        await await_until(lambda: len(peers(old, clients)) == 8 and not old.listener.sockets)
        assert peers(old, clients) == {one.getsockname() for one in silent}
        for one in late:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(one, (LOOPBACK, old.port)), 10)
            one.sendall(b"hello")
        await await_until(lambda: len(new.accepted) == 16)
        assert peers(new, clients) == {one.getsockname() for one in late}
        new.listener.close()

    asyncio.run(scene())
