"""Duplicates of all workers' server sockets: they tell when a connection has really ended, and let it move.

Theory of operation
-------------------
A lease is free when the server's backend has gone, not when a worker has let go of its connection: a backend that still runs a
query does not notice that, and one that was killed with its worker even less. As long as a duplicate is open here, the kernel
says nothing to the server when a worker closes its own; so when a worker is done with one, this end is shut down, and read
until the server closes. What a dead worker's backends were doing is cancelled. Since the duplicate is the connection, another
worker can have it as well: that is how a lease moves.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

from pgpool_proxy import log
from pgpool_proxy.net.tasks import Tasks
from pgpool_proxy.wire import frontend

READ_SIZE: Final = 262144
TERMINATE_S: Final = 0.05  # for the worker's Terminate to go out before this end is shut down
CLOSING_S: Final = 5.0  # after that, a connection that a worker has closed counts as gone: its query runs on
ORPHAN_S: Final = 60.0  # the same for a dead worker's, which is cancelled
CANCEL_EVERY_S: Final = 1.0
CANCEL_S: Final = 5.0  # for the connection that carries the CancelRequest

Key = tuple[str, str]  # database, user


class ServerSocket:
    """One server connection of a worker."""

    def __init__(self, number: int, worker: int, key: Key, descriptor: int) -> None:
        self.number = number
        self.worker = worker
        self.key = key
        self.descriptor = descriptor
        self.cancel_key = b""
        self.is_ending = False

    def __repr__(self) -> str:
        return f"<ServerSocket S-{self.number} worker={self.worker}{' ending' if self.is_ending else ''}>"


class ServerSockets:
    """All of them, by the server's id. `gone(key)` is called when a connection that was let go of has ended."""

    def __init__(self, tasks: Tasks, gone: Callable[[Key], None]) -> None:
        self._tasks = tasks
        self._gone = gone
        self._sockets: dict[int, ServerSocket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def of(self, worker: int) -> list[ServerSocket]:
        return [one for one in self._sockets.values() if one.worker == worker and not one.is_ending]

    def connected(self, number: int, worker: int, key: Key, descriptor: int) -> None:
        """A worker has connected to a server; the descriptor is ours now."""
        old = self._sockets.get(number)
        if old is not None:  # it moved here from another process, which has told us of it
            os.close(old.descriptor)
        self._sockets[number] = ServerSocket(number, worker, key, descriptor)

    def keyed(self, number: int, cancel_key: bytes) -> None:
        """It has logged in."""
        found = self._sockets.get(number)
        if found is not None:
            found.cancel_key = cancel_key

    def moved(self, number: int, worker: int) -> int | None:
        """It belongs to another worker now: the descriptor to send there. None: there is no such connection."""
        found = self._sockets.get(number)
        if found is None or found.is_ending:
            return None
        found.worker = worker
        return found.descriptor

    def released(self, number: int) -> int | None:
        """It leaves this daemon as it is: the descriptor, which is the caller's now."""
        found = self._sockets.pop(number, None)
        return found.descriptor if found is not None else None

    def is_elsewhere(self, number: int, worker: int) -> bool:
        """It has moved from this worker to another one."""
        found = self._sockets.get(number)
        return found is not None and found.worker != worker

    def closing(self, number: int, key: Key, *, has_said_goodbye: bool) -> None:
        """A worker is done with it, and has sent a Terminate or not."""
        found = self._sockets.get(number)
        if found is None:  # it never was connected
            self._gone(key)
        elif not found.is_ending:
            found.is_ending = True
            if not has_said_goodbye:
                _say_goodbye(found.descriptor)
            self._tasks.start(self._see_out(found, is_orphan=False), f"end of server {number}")

    def orphaned(self, worker: int) -> None:
        """The worker died: its backends are still there."""
        for found in self.of(worker):
            found.is_ending = True
            self._tasks.start(self._see_out(found, is_orphan=True), f"end of server {found.number}")

    def close(self) -> None:
        """The process ends: so do all connections."""
        for found in self._sockets.values():
            os.close(found.descriptor)
        self._sockets.clear()

    # --- seeing one out -----------------------------------------------------------------------------------------------
    async def _see_out(self, server: ServerSocket, *, is_orphan: bool) -> None:
        sock = socket.socket(fileno=os.dup(server.descriptor))
        sock.setblocking(False)
        cancelling = None
        try:
            if is_orphan:
                cancelling = self._tasks.start(self._cancel(sock, server), f"cancel of server {server.number}")
            else:
                await asyncio.sleep(TERMINATE_S)
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has gone
            async with asyncio.timeout(ORPHAN_S if is_orphan else CLOSING_S):
                await _read_to_end(sock)
        except TimeoutError:
            if is_orphan:
                log.get_logger().warning(f"server S-{server.number} of a dead worker does not end: it is given up")
        finally:
            if cancelling is not None:
                cancelling.cancel()
            sock.close()
            if self._sockets.get(server.number) is server:
                del self._sockets[server.number]
                os.close(server.descriptor)
                self._gone(server.key)

    async def _cancel(self, sock: socket.socket, server: ServerSocket) -> None:
        """Again and again: a query may have begun after the first."""
        try:
            family, address = sock.family, sock.getpeername()
        except OSError:
            return
        if not server.cancel_key:
            return  # it was logging in
        while True:
            try:
                async with asyncio.timeout(CANCEL_S):
                    await _send_cancel(family, address, server.cancel_key)
            except (OSError, TimeoutError):
                pass  # the server is going, or will be asked again
            await asyncio.sleep(CANCEL_EVERY_S)


def _say_goodbye(descriptor: int) -> None:
    try:
        os.write(descriptor, frontend.TERMINATE_MESSAGE)
    except OSError:
        pass  # its end is seen without


async def _read_to_end(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(sock, READ_SIZE):
            pass
    except OSError:
        pass


async def _send_cancel(family: int, address: object, key: bytes) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)  # type: ignore[arg-type]  # as getpeername gave it
        await loop.sock_sendall(sock, frontend.cancel_request(key))
        await _read_to_end(sock)
