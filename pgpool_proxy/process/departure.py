"""Clients and servers leave this process for another one, each as soon as it is quiet (moving.py).

The walk over everybody, for the two ways in which they go: to a new daemon (handover.py), and to the worker that takes this
one's place (retirement.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgpool_proxy import errors
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.process import moving
from pgpool_proxy.process.source import descriptor, unsent
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

BY_HANDOVER: Final = 16  # why a client is not read: the bits below are the session's own and SUSPEND's
TICK_S: Final = 0.005
LEISURE: Final = 4  # a look at everybody may cost a fifth of the time


class Departure:
    """`timeout_s` > 0: who has not gone by then is sent away."""

    def __init__(self, worker: Worker, timeout_s: float) -> None:
        self._worker = worker
        self._began = worker.clock()
        self._stopped: dict[int, ClientSession] = {}
        self.timeout_s = timeout_s
        self.moved = 0

    # --- where they go ----------------------------------------------------------------------------------------------------
    @property
    def is_full(self) -> bool:
        """So many are on their way that the others have to wait."""
        raise NotImplementedError

    def put_client(self, client: ClientSession, own: int, linked: int, state: moving.State) -> None:
        """`own` and `linked` are the descriptors of its connection and of its server's (0: it has none)."""
        raise NotImplementedError

    def put_server(self, server: ServerSession, own: int, client: ClientSession | None, state: moving.State) -> None:
        """It goes before the client that holds it, if one does."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Who was stopped, and has not gone, goes on here."""
        for client in self._stopped.values():
            if not client.is_closed:
                client.unblock(BY_HANDOVER)
        self._stopped.clear()

    # --- who moves --------------------------------------------------------------------------------------------------------
    def move_all(self, now: float) -> bool:
        """Everybody who can move now. True: somebody is left."""
        worker = self._worker
        is_over = 0 < self.timeout_s <= now - self._began
        left = (worker.has_arrivals or worker.registry.login_clients.count > 0) and not is_over
        for pool in list(worker.registry.pools.values()):
            if pool.database.is_admin:
                continue
            stays = False
            for client in _clients(pool):
                if client.is_closed:
                    continue  # gone while we were at the others
                if self.is_full:
                    return True
                if not moving.may_move(client):
                    stays = True
                elif moving.is_quiet(client):
                    self._move(client, now)
                elif moving.will_be_quiet(client):
                    client.block(BY_HANDOVER)
                    self._stopped[id(client)] = client
                else:
                    client.unblock(BY_HANDOVER)  # the rest of what it says is needed first
                if is_over and not client.is_closed:
                    client.disconnect(errors.SUSPEND_TIMEOUT, now)
                left = left or not client.is_closed
            if not stays:
                self._move_idle(pool, now)
        return left

    def _move(self, client: ClientSession, now: float) -> None:
        """A quiet client, behind the server that it holds."""
        own = descriptor(client)
        server = client.link.server if client.link is not None else None
        linked = descriptor(server) if server is not None else 0
        state = moving.client_state(client)
        if server is not None:
            self._move_server(server, client, now)
        self.put_client(client, own, linked, state)
        self.moved += 1
        self._stopped.pop(id(client), None)
        client.leave(errors.TAKEN_OVER, now)

    def _move_server(self, server: ServerSession, client: ClientSession | None, now: float) -> None:
        own = descriptor(server)
        entry = self._worker.config.database(server.pool.database.name)
        state = moving.server_state(server, (entry.dbname or entry.name) if entry is not None else "")
        self.put_server(server, own, client, state)
        self.moved += 1
        transport = server.transport
        server.link.part()
        server.gone(errors.TAKEN_OVER, now)  # without a Terminate: it goes on elsewhere
        if transport is not None:
            transport.close()

    def _move_idle(self, pool: Pool, now: float) -> None:
        for member in pool.idle.members() + pool.used.members():
            if isinstance(member, ServerSession) and not member.is_closed and not self.is_full:
                if member.tls or member.close_needed or unsent(member):
                    member.disconnect(errors.TAKEN_OVER, now)
                elif member.link.from_server_framer.at_boundary:
                    self._move_server(member, None, now)


def _clients(pool: Pool) -> list[ClientSession]:
    return [
        member for members in pool.clients for member in members.members() if isinstance(member, ClientSession)
    ]
