"""A client: startup -> authentication -> ready -> linked -> closed. HOT in `received`.

Theory of operation
-------------------
Until it has logged in, its bytes go to `login` (client_login.py). Logged in and without a server, the first bytes of a
request make it ask the pool for one; what arrives until it has one is kept in `pending`, and reading stops only when that is
a lot, so that a waiting client which leaves is noticed. With a server, everything goes to the link. Clients of database
`pgbouncer` have a console instead of servers.

Reading from the client stops while `blocked` has a bit: each reason has its own, so that no two of them must agree.
"""

from __future__ import annotations

from typing import Final, cast

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.states import CL_ACTIVE, CL_CLOSED, CL_WAITING
from pgpool_proxy.session.client_login import ClientLogin
from pgpool_proxy.session.context import Console, Context
from pgpool_proxy.session.link import Link
from pgpool_proxy.session.parameters import Parameters
from pgpool_proxy.session.prepared_statements import ClientStatements
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.session.usage import ClientUse
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.codes import (
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    HEADER_SIZE,
    QUERY,
    SYNC,
    TERMINATE,
)
from pgpool_proxy.wire.framing import int32_at

BY_SERVER: Final = 1  # the server's socket takes no more
BY_SELF: Final = 2  # the client does not read what it is sent
BY_PENDING: Final = 4  # it has sent a lot while it waits
MAX_PENDING: Final = 65536  # bytes of a waiting client that are kept before reading stops


class ClientSession(PoolClient):
    """See the module's theory of operation. `address` is the peer's IP address, or `unix(PID)`."""

    def __init__(self, context: Context, transport: Transport, address: str, port: int, is_unix: bool, now: float) -> None:
        super().__init__(context.registry.next_number(), now)
        self.context: Context = context
        self.transport: Transport = transport
        self.address: str = address
        self.port: int = port
        self.is_unix: bool = is_unix
        self.peer_uid: i64 = -1
        self.tls: str = ""
        self.user_name: str = ""
        self.database_name: str = ""
        self.link: Link | None = None
        self.login: ClientLogin | None = ClientLogin(self)
        self.console: Console | None = None
        self.pending: bytes = b""
        self.unneeded: i64 = 0  # bytes of a late CopyData that are still to come
        self.parameters: Parameters = context.tracked.nothing
        self.at_connect: Parameters = context.tracked.nothing  # what it had after its login
        self.statements: ClientStatements | None = None
        self.unnamed: bytes | None = None
        self.use: ClientUse | None = None  # see usage.py
        self.states_seen: i64 = 0  # kinds of session state that were logged for it
        self.voice: object = None  # what the host keeps to speak of it in the log
        self.blocked: i64 = 0
        self.write_full: bool = False
        self.discarding: bool = False  # its pipeline was cancelled while it waited: up to Sync everything is discarded

    # --- what the connection says -----------------------------------------------------------------------------------
    def received(self, data: bytes, now: float) -> None:
        """A chunk. Raises `ProtocolViolation` for bytes that no client sends."""
        link = self.link
        if link is not None:
            link.from_client(data, now)
        elif self.login is not None:
            self.login.received(data, now)
        elif self.state == CL_ACTIVE:
            if self.console is not None:
                self.console.received(data, now)
            else:
                self.ask(data, now)
        elif self.state != CL_CLOSED:
            self.put_aside(data)

    def connection_lost(self, now: float) -> None:
        self.gone(errors.CLIENT_UNEXPECTED_EOF, now)

    def writing_paused(self, now: float) -> None:
        """The peer does not read what was written."""
        self.write_full = True
        self.block(BY_SELF)
        if self.link is not None:
            self.link.server.block(now)

    def writing_resumed(self) -> None:
        self.write_full = False
        self.unblock(BY_SELF)
        if self.link is not None:
            self.link.server.unblock()

    # --- requests -----------------------------------------------------------------------------------------------------
    def ask(self, data: bytes, now: float) -> None:
        """Bytes of a logged-in client that has no server: get one, or queue for it."""
        if self.pending:
            data = self.pending + data
            self.pending = b""
        if self.unneeded:
            if self.unneeded >= len(data):
                self.unneeded -= len(data)
                return
            data = data[self.unneeded :]
            self.unneeded = 0
        if self.discarding:
            data = self._discard(data)
        pool = self.pool
        while len(data) >= HEADER_SIZE and pool is not None:
            kind: i64 = data[0]
            if kind == TERMINATE:
                self.leave(errors.CLIENT_CLOSE_REQUEST, now)
                return
            if kind != COPY_DATA and kind != COPY_DONE and kind != COPY_FAIL:
                closing = self.context.registry.closing
                if closing is not None:
                    self.fail(closing, now)
                    return
                self.request_time = now
                self.pending = data
                pool.request(self, now)
                return
            size = int32_at(data, 1) + 1  # copy data behind a COPY that failed: PostgreSQL ignores it, too
            if size < HEADER_SIZE or size > self.context.max_packet_size:
                raise errors.ProtocolViolation(errors.BAD_PACKET if size < HEADER_SIZE else errors.PACKET_TOO_LONG)
            if size > len(data):
                self.unneeded = size - len(data)
                return
            data = data[size:]
        self.pending = data

    def assigned(self, server: PoolServer, now: float) -> None:
        """Told by the pool."""
        cast(ServerSession, server).link.take(self, now)

    def go_on(self, link: Link, now: float) -> None:
        """The link can take what was kept. A fault in it is this client's, whoever made the call."""
        if self.login is not None:
            self.login.spelled(link.server.parameters, now)
            if self.link is link and not self.pending and link.ready:
                link.end(now)
                return
        pending = self.take_pending()
        if pending:
            try:
                link.from_client(pending, now)
            except errors.ProtocolViolation as violation:
                self.violated(violation.report, now)

    def welcome(self, now: float) -> None:
        """Told by the pool: the login can be finished."""
        if self.login is not None:
            self.login.finish(now)

    def let_in(self, report: Report | None, now: float) -> None:
        """Told by the ledger: whether one more client is allowed."""
        if self.login is not None:
            self.login.let_in(report, now)

    def take_pending(self) -> bytes:
        pending = self.pending
        if pending:
            self.pending = b""
            if self.blocked & BY_PENDING:
                self.unblock(BY_PENDING)
        return pending

    def value_at_connect(self, name: bytes) -> bytes | None:
        """The value that a tracked parameter had after the login."""
        at = self.context.tracked.index(name)
        return self.at_connect.values[at] if at >= 0 else None

    def put_aside(self, data: bytes) -> None:
        """Keep bytes until there is a server for them."""
        self.pending = self.pending + data if self.pending else data
        if len(self.pending) > MAX_PENDING:
            self.block(BY_PENDING)

    def cancel_waiting(self, now: float) -> None:
        """A CancelRequest for a client that waits for a server: the request at the front is over, with 57014."""
        pool = self.pool
        if self.state != CL_WAITING or pool is None:
            return
        pool.withdraw(self)
        data = self.take_pending()
        self.write(backend.error_response(errors.CANCELED))
        if data[0] == QUERY:
            size = int32_at(data, 1) + 1
            self.write(backend.READY_IDLE)
            if size > len(data):
                self.unneeded = size - len(data)
                data = b""
            else:
                data = data[size:]
        else:
            self.discarding = True
        if data:
            self.ask(data, now)

    def _discard(self, data: bytes) -> bytes:
        """What follows the Sync that ends a cancelled pipeline; the Sync is answered here."""
        while len(data) >= HEADER_SIZE:
            size = int32_at(data, 1) + 1
            if size < HEADER_SIZE or size > self.context.max_packet_size:
                raise errors.ProtocolViolation(errors.BAD_PACKET if size < HEADER_SIZE else errors.PACKET_TOO_LONG)
            if data[0] == SYNC and size == HEADER_SIZE:
                self.discarding = False
                self.write(backend.READY_IDLE)
                return data[HEADER_SIZE:]
            if data[0] == TERMINATE:
                return data
            if size > len(data):
                self.unneeded = size - len(data)
                return b""
            data = data[size:]
        return data

    # --- writing and back-pressure --------------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        """Send; a connection that is already gone will say so itself."""
        try:
            self.transport.write(data)
        except RuntimeError:
            self.write_full = False

    def block(self, reason: i64) -> None:
        if not self.blocked:
            self.transport.pause_reading()
        self.blocked |= reason

    def unblock(self, reason: i64) -> None:
        if self.blocked & reason:
            self.blocked &= ~reason
            if not self.blocked and self.state != CL_CLOSED:
                self.transport.resume_reading()

    def block_for_server(self) -> None:
        self.block(BY_SERVER)

    def unblock_for_server(self) -> None:
        self.unblock(BY_SERVER)

    # --- ends -----------------------------------------------------------------------------------------------------------
    def fail(self, report: Report, now: float) -> None:
        """Tell the client why, and close. The reason is logged as a pooler error."""
        if self.state == CL_CLOSED:
            return
        link = self.link
        if link is None or link.from_server_framer.remaining == 0:  # else it would be taken for the rest of a message
            self.write(backend.error_response(report))
        self.context.host.notify(self, report)
        self.leave(report, now)

    def violated(self, report: Report, now: float) -> None:
        """`received` has raised: what stood before the broken message counts, then as `fail`."""
        if self.link is not None:
            self.link.spare_from_client()
        self.fail(report, now)

    def disconnect(self, report: Report, now: float) -> None:
        """Told by the pool or the janitor."""
        self.fail(report, now)

    def leave(self, report: Report, now: float) -> None:
        """Close without a word; `report` is the reason for the log."""
        if self.state != CL_CLOSED:
            self.gone(report, now)
            self.transport.close()

    def gone(self, report: Report, now: float) -> None:
        """The connection is over: everything that the client held is given back. Once."""
        if self.state == CL_CLOSED:
            return
        link = self.link
        if link is not None:
            link.client_gone(now)
        self.context.cancel_keys.revoke(self)
        self.context.registry.depart(self, now)
        if self.statements is not None:
            self.statements.clear()
            self.statements = None
        if self.console is not None:
            self.console.closed()
            self.console = None
        login = self.login
        self.login = None
        if login is not None:
            login.ended()
        self.pending = b""
        self.unnamed = None
        self.context.host.client_closed(self, report, now)
