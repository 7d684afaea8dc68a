"""CancelRequests that are meant for another pooler behind the same address: `[peers]`.

Theory of operation
-------------------
Who accepts a CancelRequest may not be who gave its key. With peering, a key says whose it is (pool/cancel_keys.py); one of
another peer goes there as it came, but with one hop less, so that peers which name each other in a circle end it. Each peer
has a pool of its own: as many connections at a time as its pool_size allows, the others queue. A connection
carries one request and lasts until the peer closes it, and so does that of the client which brought it. A client may
leave before: its request goes on, since many drivers send it and hang up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.cancel_keys import one_hop_less, peer_of
from pgpool_proxy.pool.handles import PoolServer
from pgpool_proxy.pool.pool import Pool, PoolLimits
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.pool.states import CL_ACTIVE_CANCEL, CL_CLOSED, CL_WAITING_CANCEL, SV_ACTIVE_CANCEL, SV_CLOSED
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.wire import frontend

MAX_QUEUED: Final = 1000  # requests that wait for one peer: beyond that it is down, or somebody makes keys up


class PeerCancel(PoolServer):
    """The connection that carries one CancelRequest to a peer. Not launched yet, it stands in no container."""

    def __init__(self, number: i64, peer: PeerPool, requester: ClientSession, key: bytes, now: float) -> None:
        super().__init__(number, peer, now)
        self.peer: PeerPool = peer
        self.requester: ClientSession = requester
        self.key: bytes = key
        self.host: str = peer.host
        self.port: int = peer.port
        self.transport: Transport | None = None

    def connected(self, transport: Transport, now: float) -> None:
        """The connection stands: say the one thing that there is to say."""
        self.transport = transport
        self.request_time = now
        pool = self.pool
        pool.move_server(self, SV_ACTIVE_CANCEL)
        if self.requester.state == CL_WAITING_CANCEL:
            pool.move_client(self.requester, CL_ACTIVE_CANCEL)
        transport.write(frontend.cancel_request(self.key))

    def received(self, data: bytes, now: float) -> None:
        """A CancelRequest is answered with nothing; whatever comes is left unread."""

    def connection_lost(self, now: float) -> None:
        self.gone(errors.CANCEL_SENT if self.state == SV_ACTIVE_CANCEL else errors.CONNECT_FAILED, now)

    def disconnect(self, report: Report, now: float) -> None:
        transport = self.transport
        self.gone(report, now)
        if transport is not None:
            transport.abort()

    def gone(self, report: Report, now: float) -> None:
        if self.state == SV_CLOSED:
            return
        self.pool.move_server(self, SV_CLOSED)
        if self.requester.state != CL_CLOSED:
            self.requester.leave(report, now)
        self.peer.launch_next(now)


class PeerPool(Pool):
    """One peer: where it is, the connections to it, and the requests that wait for one."""

    def __init__(self, number: int, registry: Registry, launch: Callable[[PeerCancel], None]) -> None:
        database = Database(f"peer-{number}", registry)
        super().__init__(database, User(""), registry.ledger, registry.launcher, PoolLimits())
        self.host: str = ""
        self.port: int = 0
        self.size: i64 = 1
        self.wait_timeout: float = 0.0
        self.is_removed: bool = False
        self._launch: Callable[[PeerCancel], None] = launch
        self._queue: list[PeerCancel] = []

    def forward(self, requester: ClientSession, key: bytes, now: float) -> None:
        """`requester` has brought a key of this peer."""
        registry = self.database.registry
        if len(self._queue) >= MAX_QUEUED:
            requester.leave(errors.CANCEL_UNKNOWN_KEY.with_detail(f"too many wait for {self.database.name}"), now)
            return
        registry.login_clients.remove(requester)
        requester.pool = self
        requester.request_time = now
        self.move_client(requester, CL_WAITING_CANCEL)
        self._queue.append(PeerCancel(registry.next_number(), self, requester, key, now))
        self.launch_next(now)

    def launch_next(self, now: float) -> None:
        """As many as may go at a time. Who has waited for longer than cancel_wait_timeout does not go any more."""
        queue = self._queue
        size = self.size if self.size > 0 else i64(MAX_QUEUED)
        while queue and not self.is_removed and self.opening.count + self.servers[SV_ACTIVE_CANCEL].count < size:
            cancel = queue.pop(0)
            if 0 < self.wait_timeout <= now - cancel.connect_time:
                cancel.disconnect(errors.CANCEL_WAIT_TIMEOUT, now)
                continue
            cancel.host = self.host
            cancel.port = self.port
            cancel.request_time = now
            self.opening.append(cancel)
            self._launch(cancel)

    def remove(self, report: Report, now: float) -> None:
        """The peer is no peer any more, or nobody is: everything for it ends."""
        self.is_removed = True
        queue = self._queue
        self._queue = []
        for cancel in queue:
            cancel.disconnect(report, now)
        for members in (self.opening, self.servers[SV_ACTIVE_CANCEL]):
            for member in members.members():
                cast(PeerCancel, member).disconnect(report, now)


class Peers:
    """All peers of this process; their pools are the registry's `peer_pools`."""

    def __init__(self, context: Context, launch: Callable[[PeerCancel], None]) -> None:
        self._context: Context = context
        self._launch: Callable[[PeerCancel], None] = launch

    def configure(self, peers: dict[int, tuple[str, int, int]], wait_timeout: float, now: float) -> None:
        """What the configuration says: peer id -> (host, port, requests at a time). Seconds; 0 is without end."""
        pools = self._context.registry.peer_pools
        for number in [number for number in pools if number not in peers]:
            cast(PeerPool, pools.pop(number)).remove(errors.DATABASE_REMOVED, now)
        for number, (host, port, size) in peers.items():
            found = pools.get(number)
            pool = cast(PeerPool, found) if found is not None else PeerPool(number, self._context.registry, self._launch)
            pools[number] = pool
            pool.host = host
            pool.port = port
            pool.size = size
            pool.wait_timeout = wait_timeout
            pool.launch_next(now)

    def forward(self, requester: ClientSession, key: bytes, now: float) -> None:
        """A key that is none of ours: to the peer that gave it, if there is one; else the request is dropped."""
        own = self._context.cancel_keys.peer_id
        number = peer_of(key)
        found = self._context.registry.peer_pools.get(number)
        if own == 0 or number == own or found is None:
            requester.leave(errors.CANCEL_UNKNOWN_KEY, now)
            return
        onward = one_hop_less(key)
        if onward is None:
            requester.leave(errors.CANCEL_UNKNOWN_KEY.with_detail("has passed through too many peers"), now)
            return
        cast(PeerPool, found).forward(requester, onward, now)

    def close(self, now: float) -> None:
        """The process ends."""
        for pool in self._context.registry.peer_pools.values():
            cast(PeerPool, pool).remove(errors.SHUTDOWN, now)
