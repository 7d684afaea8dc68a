"""A CancelRequest on its way to a server: a connection of its own that says one thing and waits for the server to close it.

Theory of operation
-------------------
The server that is to be cancelled is remembered with the number of its assignment: a request that could not be sent before the
query ended is dropped, so it never meets the next client's query. Once it is sent, `cancels` of the server keeps the pool from
giving it to anybody until the server has closed the cancel connection, since only then it is sure that no late signal comes.
Several requests for one server share one connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolServer
from pgpool_proxy.pool.states import CL_ACTIVE_CANCEL, CL_CLOSED, CL_WAITING_CANCEL, SV_ACTIVE_CANCEL, SV_CLOSED, SV_LOGIN
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.wire import frontend

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.server_session import ServerSession


class CancelSession(PoolServer):
    """The connection of one CancelRequest. It is not counted against pool_size."""

    def __init__(self, context: Context, target: ServerSession, now: float) -> None:
        super().__init__(context.registry.next_number(), target.pool, now)
        self.context: Context = context
        self.target: ServerSession | None = target
        self.lease: i64 = target.link.lease  # whose query is to be cancelled
        self.requesters: list[ClientSession] = []
        self.transport: Transport | None = None
        self.host: str = target.host
        self.port: int = target.port
        self.key: bytes = target.cancel_key
        self.address: str = ""
        target.cancel = self

    def add(self, requester: ClientSession, now: float) -> None:
        """A connection that brought a CancelRequest for our server waits for its end."""
        pool = self.pool
        self.context.registry.login_clients.remove(requester)
        requester.pool = pool
        requester.request_time = now
        pool.move_client(requester, CL_WAITING_CANCEL)
        if self.state == SV_ACTIVE_CANCEL:
            pool.move_client(requester, CL_ACTIVE_CANCEL)
        self.requesters.append(requester)

    def connected(self, transport: Transport, now: float) -> None:
        """The connection stands."""
        self.transport = transport
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Speak, unless the query has ended. It may not have begun: a query of our own before it (a SET, mostly) must not be
        cancelled in its place, so the link comes back here when that is done."""
        transport = self.transport
        if transport is None or self.state != SV_LOGIN:
            return
        target = self.target
        if target is None or target.is_closed or target.link.lease != self.lease or target.link.is_over:
            self.disconnect(errors.CANCEL_NOT_NEEDED, now)
            return
        if target.link.runs_own:
            return
        pool = self.pool
        target.cancels += 1
        pool.move_server(self, SV_ACTIVE_CANCEL)
        for requester in self.requesters:
            if requester.state == CL_WAITING_CANCEL:
                pool.move_client(requester, CL_ACTIVE_CANCEL)
        transport.write(frontend.cancel_request(self.key))

    def received(self, data: bytes, now: float) -> None:
        """A server answers a CancelRequest with nothing; whatever comes is left unread."""

    def connection_lost(self, now: float) -> None:
        self.gone(errors.CANCEL_SENT if self.state == SV_ACTIVE_CANCEL else errors.CONNECT_FAILED, now)

    def target_gone(self, now: float) -> None:
        """The server is closed: there is nothing to cancel any more."""
        self.target = None
        if self.state != SV_ACTIVE_CANCEL:
            self.disconnect(errors.CANCEL_NOT_NEEDED, now)

    def disconnect(self, report: Report, now: float) -> None:
        transport = self.transport
        self.gone(report, now)
        if transport is not None:
            transport.abort()

    def gone(self, report: Report, now: float) -> None:
        if self.state == SV_CLOSED:
            return
        sent = self.state == SV_ACTIVE_CANCEL
        self.pool.move_server(self, SV_CLOSED)
        requesters = self.requesters
        self.requesters = []
        for requester in requesters:
            if requester.state != CL_CLOSED:
                requester.leave(report, now)
        target = self.target
        self.target = None
        if target is not None:
            if target.cancel is self:
                target.cancel = None
            if sent and not target.is_closed:
                self.pool.cancel_ended(target, now)
