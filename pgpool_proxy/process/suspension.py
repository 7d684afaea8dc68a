"""SUSPEND: nothing is read from clients and servers until what was read before has gone out, and beyond, until RESUME."""

from __future__ import annotations

from typing import Final

from pgpool_proxy import errors
from pgpool_proxy.pool.registry import Registry
from pgpool_proxy.process.source import unsent
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession

BY_SUSPEND: Final = 8  # why a client is not read: the bits below are the session's own (session/client_session.py)


class Suspension:
    """Those that are stopped, from `freeze` to `thaw`. Consoles are left alone; who logs in meanwhile is stopped after it."""

    def __init__(self, registry: Registry, now: float) -> None:
        self._registry = registry
        self._began = now
        self._stopped: list[ClientSession | ServerSession] = []

    def freeze(self, timeout_s: float, now: float) -> None:
        """Stop everybody who is there; drop those who have not taken their data after `timeout_s` (0: never)."""
        known = set(map(id, self._stopped))
        for pool in list(self._registry.pools.values()):
            if pool.database.is_admin:
                continue
            for members in pool.clients:
                for client in members.members():
                    if isinstance(client, ClientSession) and id(client) not in known:
                        client.block(BY_SUSPEND)
                        self._stopped.append(client)
            for members in pool.servers:
                for server in members.members():
                    if isinstance(server, ServerSession):
                        server.block(now)  # again: a client that has caught up may have set it free
                        if id(server) not in known:
                            self._stopped.append(server)
        self._stopped = [member for member in self._stopped if not member.is_closed]
        if 0 < timeout_s <= now - self._began:
            for member in list(self._stopped):
                if unsent(member):
                    member.disconnect(errors.SUSPEND_TIMEOUT, now)

    @property
    def is_flushed(self) -> bool:
        return not any(unsent(member) for member in self._stopped)

    def thaw(self) -> None:
        stopped = self._stopped
        self._stopped = []
        for member in stopped:
            if member.is_closed:
                continue
            if isinstance(member, ClientSession):
                member.unblock(BY_SUSPEND)
            elif member.link.client is None or not member.link.client.write_full:
                member.unblock()
