"""Clients and servers that come from another process (moving.py): their connections are made into what they were.

They come from the daemon that this one follows (takeover.py) or from the worker whose place this one takes (retirement.py).
A server that is linked comes before its client.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, cast

from pgpool_proxy import errors
from pgpool_proxy.net.client_connection import ClientConnection
from pgpool_proxy.net.server_connection import ServerConnection
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.process import moving
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.transport import Transport

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker


@dataclass
class Held:
    """A server that is linked to a client: `connecting` ends when its connection is ours."""

    server: ServerSession
    link: moving.State
    connecting: asyncio.Task[None]


class Arrivals:
    """All that come from one process. `client` is a number by which that process knows the client of a linked server."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._servers: dict[int, Held] = {}  # whose clients are still to come
        self.taken = 0

    def end(self) -> None:
        """Nobody comes any more."""
        for held in self._servers.values():
            held.server.disconnect(errors.CLIENT_LEFT_EARLY, monotonic())
        self._servers.clear()

    # --- servers ----------------------------------------------------------------------------------------------------------
    def take_server(self, sock: socket.socket, state: moving.State, pool: Pool, client: int) -> None:
        worker = self._worker
        server = moving.restore_server(worker.context, state, pool, monotonic())
        entry = worker.config.database(pool.database.name)
        if entry is not None and not moving.is_still_configured(state, entry, worker.config):
            server.close_needed = True
        self.taken += 1
        link = state["link"]
        connecting = worker.tasks.start(
            self._connect_server(sock, server, is_idle=link is None), f"server {server.number} taken over"
        )
        if link is not None:
            self._servers[client] = Held(server, link, connecting)

    async def _connect_server(self, sock: socket.socket, server: ServerSession, is_idle: bool) -> None:
        connection = ServerConnection(self._worker.connector, server)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: cast(asyncio.Protocol, connection), sock)
        except OSError as error:
            server.disconnect(errors.CONNECT_FAILED.with_detail(str(error)), monotonic())
            return
        if server.is_closed:
            transport.abort()
            return
        server.transport = transport
        if is_idle:
            server.pool.opened(server, server.pool.server_parameters or {}, monotonic())

    # --- clients ----------------------------------------------------------------------------------------------------------
    def take_client(self, sock: socket.socket, state: moving.State, pool: Pool, number: int) -> None:
        found = self._servers.pop(number, None)
        self.taken += 1
        arrival = Arrival(self._worker, state, pool, found)
        self._worker.tasks.start(arrival.connect(sock), f"client {state['number']} taken over")


class Arrival:
    """The gate of one client that was taken over: its connection is made into the session that it was."""

    def __init__(self, worker: Worker, state: moving.State, pool: Pool, held: Held | None) -> None:
        self._worker = worker
        self._state = state
        self._pool = pool
        self._held = held

    async def connect(self, sock: socket.socket) -> None:
        connection = ClientConnection(self)
        held = self._held
        if held is not None:
            await asyncio.wait([held.connecting])
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: cast(asyncio.Protocol, connection), sock)
        except OSError:
            if held is not None:
                held.server.disconnect(errors.CLIENT_LEFT_EARLY, monotonic())

    def accepted(self, connection: ClientConnection, transport: Transport, now: float) -> ClientSession:
        """The loop has made the connection."""
        worker, state, held = self._worker, self._state, self._held
        client = ClientSession(worker.context, transport, state["address"], state["port"], state["is_unix"], now)
        moving.restore_client(client, state, self._pool, now)
        if held is not None:
            if held.server.is_closed:
                client.fail(errors.SERVER_CRASHED, now)
                return client
            moving.restore_link(held.server, client, held.link)
        pending = state["pending"].encode("latin-1")
        if pending:
            try:
                client.received(pending, now)
            except errors.ProtocolViolation as violation:
                client.fail(violation.report, now)
        return client

    def crashed(self, session: ClientSession, error: BaseException, now: float) -> None:
        self._worker.listener.crashed(session, error, now)
