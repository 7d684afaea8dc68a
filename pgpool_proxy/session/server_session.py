"""A server: startup -> authentication -> idle / in use / reset / being cancelled -> closed. HOT in `received`.

Until it has logged in, its bytes go to `login` (server_login.py); while it is linked, to the link. In between it should be
silent: a ParameterStatus is taken, an error or a notice makes it unfit for the next client, anything else breaks the protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolServer
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.states import SV_ACTIVE, SV_BEING_CANCELED, SV_CLOSED, SV_LOGIN, SV_TESTED
from pgpool_proxy.session.answers import EMPTIES_STATEMENTS, RESETS
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.link import LINKED, RECOVERING, Link
from pgpool_proxy.session.parameters import Parameters
from pgpool_proxy.session.prepared_statements import ServerStatements
from pgpool_proxy.session.server_login import ServerLogin
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.codes import (
    COMMAND_COMPLETE,
    COPY_IN_RESPONSE,
    ERROR_RESPONSE,
    HEADER_SIZE,
    NOTICE_RESPONSE,
    NOTIFICATION_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
    STATUS_IDLE,
)

if TYPE_CHECKING:
    from pgpool_proxy.session.cancel import CancelSession
    from pgpool_proxy.session.client_session import ClientSession


CANCEL_GRACE_S: Final = 5.0  # a server that does not heed a cancel within this time is closed
CANCEL_AGAIN_S: Final = 1.0


class ServerSession(PoolServer):
    """See the module's docstring. `host` and `port` are where it connects to, `address` what the host name became."""

    def __init__(self, context: Context, pool: Pool, host: str, port: int, now: float) -> None:
        super().__init__(context.registry.next_number(), pool, now)
        self.context: Context = context
        self.host: str = host
        self.port: int = port
        self.address: str = ""
        self.local_address: str = ""
        self.local_port: int = 0
        self.transport: Transport | None = None
        self.tls: str = ""
        self.generation: i64 = pool.generation
        self.link: Link = Link(self)
        self.login: ServerLogin | None = ServerLogin(self)
        self.parameters: Parameters = context.tracked.nothing
        self.at_login: Parameters = context.tracked.nothing  # what RESET leads to
        self.statements: ServerStatements = ServerStatements(context.statements)
        self.unnamed: bytes | None = None
        self.last_words: Report | None = None  # a FATAL that the server has sent
        self.cancel: CancelSession | None = None  # a CancelRequest for it that is under way
        self.cancelled_at: float = 0.0  # when it was sent another one
        self.write_full: bool = False
        self.blocked: bool = False
        self.failed_login: bool = False
        self.unheard: bool = False  # a NotificationResponse came when nobody was there to hear it
        self.is_away: bool = False  # nobody listens at its address
        self._failure: Report = errors.RESET_FAILED  # what it means when the query of state tested fails
        self._resets: list[bytes] = []  # queries that are to follow it
        self.connect_query: bytes = b""  # what was run when it was new, and is run again when all that is undone
        self._connecting_again: bool = False

    # --- what the connection says -----------------------------------------------------------------------------------
    def connected(self, transport: Transport, now: float) -> None:
        self.transport = transport
        if self.blocked:
            transport.pause_reading()
        if self.login is not None:
            self.login.begin(now)

    def received(self, data: bytes, now: float) -> None:
        """A chunk. Raises `ProtocolViolation` for bytes that no server sends."""
        if self.state == SV_ACTIVE:
            self.link.from_server(data, now)
        elif self.login is not None:
            self.login.received(data, now)
        elif self.state != SV_CLOSED:
            self._unlinked(data, now)

    def connection_lost(self, now: float) -> None:
        if self.state != SV_CLOSED:
            words = self.last_words
            self.gone(words if words is not None else errors.SERVER_TERMINATED, now)

    def writing_paused(self) -> None:
        self.write_full = True
        client = self.link.client
        if client is not None:
            client.block_for_server()

    def writing_resumed(self) -> None:
        self.write_full = False
        client = self.link.client
        if client is not None:
            client.unblock_for_server()

    # --- between two clients --------------------------------------------------------------------------------------------
    def reset(self, queries: list[bytes], now: float) -> None:
        """Run these one after the other, server_reset_query mostly; then the server goes back to its pool.

        A CancelRequest that is still under way must not meet them: then they wait for its end.
        """
        self._resets = queries
        if self.client is not None:
            self.client.server = None
            self.client = None
        if self.cancels:
            self.is_unclean = True
            self.request_time = now
            self.pool.move_server(self, SV_BEING_CANCELED)
        else:
            self.clean(now)

    def clean(self, now: float) -> None:
        """See `reset`; told by the pool when it had to wait."""
        self.is_unclean = False
        self._failure = errors.RESET_FAILED
        self._connecting_again = False
        self._test(self._resets.pop(0))

    def cancels_ended(self, now: float) -> None:
        """Told by the pool: what waits for that goes on."""
        self.link.cancels_ended()

    def check(self, query: bytes, now: float) -> None:
        """Told by the pool: run server_check_query."""
        self._failure = errors.CHECK_FAILED
        self._connecting_again = False
        self._send_test(query)

    def _test(self, query: bytes) -> None:
        self.pool.move_server(self, SV_TESTED)
        self._send_test(query)

    def _send_test(self, query: bytes) -> None:
        self.link.from_server_framer.reset()
        self.write(frontend.query(query))

    def _unlinked(self, data: bytes, now: float) -> None:
        """Idle, used, tested or being cancelled."""
        framer = self.link.from_server_framer
        if not framer.feed(data):
            return
        seen: i64 = 0
        while framer.next():
            kind = framer.kind
            if framer.start != seen and self.state != SV_TESTED:
                break
            seen = framer.stop
            if not framer.hold():
                return
            body = framer.data[framer.start + HEADER_SIZE : framer.stop]
            if kind == PARAMETER_STATUS:
                self.parameter_status(body)
            elif kind == NOTIFICATION_RESPONSE:
                if not self.unheard:  # LISTEN by a client that has gone, or that shares its servers
                    self.unheard = True
                    self.context.host.notification_unheard(self)
            elif kind == ERROR_RESPONSE:
                report = backend.error_report(body)
                if report.severity in ("FATAL", "PANIC"):
                    self.last_words = report
                elif self._connecting_again and self.state == SV_TESTED:
                    self.context.host.connect_query_failed(self, report)  # and ignored, as when it was new
                    continue
                reason = self._failure if self.state == SV_TESTED else errors.IDLE_SERVER_DIRTY
                self.disconnect(reason.with_detail(report.message), now)
                return
            elif self.state != SV_TESTED:
                if kind != NOTICE_RESPONSE:
                    raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("a message while it was idle"))
                self.disconnect(errors.IDLE_SERVER_DIRTY, now)
                return
            elif kind == COMMAND_COMPLETE:
                if body in EMPTIES_STATEMENTS:
                    self.statements.clear()
                    self.unnamed = None
                if body in RESETS:
                    self.lost_extras()
            elif kind == READY_FOR_QUERY:
                if len(body) != 1 or framer.stop != framer.size:
                    raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("ReadyForQuery was not its last word"))
                if body[0] != STATUS_IDLE:
                    self.disconnect(self._failure.with_detail("it left a transaction open"), now)
                elif self._resets:
                    query = self._resets.pop(0)
                    self._connecting_again = query is self.connect_query
                    self._send_test(query)
                else:
                    self.pool.checked(self, now)
                return
            elif kind == COPY_IN_RESPONSE:
                self.disconnect(self._failure.with_detail("it wants copy data"), now)
                return
        if framer.end != seen and self.state != SV_TESTED:  # the framer steps over rows and copy data by itself
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("a row while it was idle"))

    def parameter_status(self, body: bytes) -> None:
        """The server reports a parameter: the linked client follows it."""
        pair = backend.parameter_status_pair(body)
        if pair is None:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("broken ParameterStatus"))
        tracked = self.context.tracked
        at = tracked.index(pair[0])
        if at >= 0:
            link = self.link
            self.parameters = tracked.replaced(self.parameters, at, pair[1])
            client = link.client
            if client is not None and link.phase == LINKED:
                client.parameters = tracked.replaced(client.parameters, at, pair[1])

    def had_at_login(self, name: bytes, value: bytes) -> bool:
        at = self.context.tracked.index(name)
        return at >= 0 and self.at_login.values[at] == value

    def lost_extras(self) -> None:
        """Parameters that are not reported (track_startup_parameters) have the server's own values again."""
        self.parameters = self.context.tracked.with_extras(self.parameters, ())

    # --- writing and back-pressure --------------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        """Send; a connection that is already gone will say so itself."""
        transport = self.transport
        if transport is None:
            return
        try:
            transport.write(data)
        except RuntimeError:
            self.write_full = False

    def block(self, now: float) -> None:
        """Stop reading: the client does not take what we have already, or everything stands still (SUSPEND)."""
        if not self.blocked:
            self.blocked = True
            if self.transport is not None:
                self.transport.pause_reading()

    def unblock(self) -> None:
        if self.blocked:
            self.blocked = False
            if self.transport is not None and self.state != SV_CLOSED:
                self.transport.resume_reading()

    # --- ends -----------------------------------------------------------------------------------------------------------
    def overdue(self, now: float) -> Report | None:
        """Asked by the janitor of a linked server: which timeout has passed."""
        limits = self.pool.limits
        link = self.link
        if link.phase == RECOVERING:
            if now - link.cancel_time >= CANCEL_GRACE_S:
                return errors.CLIENT_LEFT_IN_QUERY
            if self.cancel is None and now - max(link.cancel_time, self.cancelled_at) >= CANCEL_AGAIN_S:
                self.cancelled_at = now  # the first may have overtaken the query
                self.context.host.cancel_server(self, now)
            return None
        if limits.query_timeout > 0 and link.query_start > 0.0 and now - link.query_start >= limits.query_timeout:
            if link.cancel_time == 0.0:
                link.cancel_time = now
                self.context.host.cancel_server(self, now)
            elif now - link.cancel_time >= CANCEL_GRACE_S:
                return errors.QUERY_TIMEOUT
        if self.close_needed and limits.server_fast_close and link.keeps and link.ready and link.outstanding.is_empty:
            return errors.DATABASE_CHANGED_FAST
        if link.xact_start > 0.0:
            if limits.transaction_timeout > 0 and now - link.xact_start >= limits.transaction_timeout:
                return errors.TRANSACTION_TIMEOUT
            idle = link.query_start == 0.0
            if idle and 0 < limits.idle_transaction_timeout <= now - link.status_time:
                return errors.IDLE_TRANSACTION_TIMEOUT
        return None

    def violated(self, report: Report, now: float) -> None:
        """`received` has raised: the client gets what stood before the broken message, then as `disconnect`."""
        if self.state == SV_ACTIVE:
            self.link.spare_from_server()
        self.disconnect(report, now)

    def disconnect(self, report: Report, now: float) -> None:
        """Told by the pool or the janitor, or because the server broke the protocol: close, `report` is the reason."""
        if self.state == SV_CLOSED:
            return
        transport = self.transport
        if transport is not None and self.login is None and not self.write_full:
            self.write(frontend.TERMINATE_MESSAGE)
        self.gone(report, now)
        if transport is not None:
            transport.close()

    def gone(self, report: Report, now: float) -> None:
        """The connection is over: its client is told, its place in the pool is free. Once."""
        if self.state == SV_CLOSED:
            return
        client: ClientSession | None = self.link.client
        cut = self.link.from_server_framer.remaining > 0
        self.link.part()
        self.link.outstanding.clear()
        pool = self.pool
        if self.state == SV_LOGIN and self.login is not None:
            self.login.failed(report, now)
        cancel = self.cancel
        self.cancel = None
        pool.server_gone(self, now)
        self.statements.clear()
        self.context.host.server_closed(self, report, now)
        if client is not None:
            if self.last_words is not None:
                client.leave(report, now)  # it has read the server's own words
            elif cut:
                client.leave(_to_client(report), now)  # half a message was passed on: an error would look like the rest of it
            else:
                client.fail(_to_client(report), now)
        if cancel is not None:
            cancel.target_gone(now)


def _to_client(report: Report) -> Report:
    """What the client of a lost server is told."""
    if report is errors.SERVER_TERMINATED or report.severity == "LOG":
        return errors.SERVER_CRASHED
    return report
