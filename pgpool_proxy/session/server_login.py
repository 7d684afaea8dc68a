"""A server before it is usable: StartupMessage, its authentication requests, what it reports, ReadyForQuery, connect_query.

What a server may send is bounded; it may be hostile (faults.md B4). Knows nothing of TCP and TLS: the connector has done that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.auth.exchange import Accepted, ClientExchange, Derive, Reply, Step, Wait
from pgpool_proxy.errors import AuthenticationFailed, Report
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.codes import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    COPY_BOTH_RESPONSE,
    COPY_IN_RESPONSE,
    ERROR_RESPONSE,
    HEADER_SIZE,
    NEGOTIATE_PROTOCOL_VERSION,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    PROTOCOL_3_0,
    READY_FOR_QUERY,
    STATUS_IDLE,
)
from pgpool_proxy.wire.framing import MessageReader, int32_at

if TYPE_CHECKING:
    from pgpool_proxy.pool.pool import Pool
    from pgpool_proxy.session.server_session import ServerSession

MAX_MESSAGE: Final = 65536  # no message of a login is longer; an error text may be long
MAX_PARAMETERS: Final = 500  # PostgreSQL reports some fifteen
MAX_KEY: Final = 260  # protocol 3.2: process id and a secret of up to 256 bytes
SOON_OVER: Final = ("57P03", "53300")  # the server is starting up, or is full for now: those who wait go on waiting


class ServerLogin:
    """One login; the session drops it when the server is ready."""

    def __init__(self, session: ServerSession) -> None:
        self.session: ServerSession = session
        self.reader: MessageReader = MessageReader(MAX_MESSAGE)
        self.exchange: ClientExchange | None = None
        self.channel_binding: bytes | None = None  # tls-server-end-point of the server's certificate
        self.is_in: bool = False
        self.connect_query: bytes = b""  # filled in by the connector; its answer is read while `querying`
        self.querying: bool = False
        self.minor: i64 = 0  # protocol 3.x that the server is asked for
        self.startup: list[tuple[bytes, bytes]] = []  # filled in by the connector
        self.reported: dict[bytes, bytes] = {}
        self.told: Report | None = None  # the server's own error

    def begin(self, now: float) -> None:
        """The connection stands: say who we are."""
        session = self.session
        self.exchange = session.context.host.server_exchange(session)
        self.minor = session.context.newest_minor
        session.write(frontend.startup(self.startup, PROTOCOL_3_0 | int(self.minor)))

    def received(self, data: bytes, now: float) -> None:
        """A chunk of a server that is not ready yet. Raises `ProtocolViolation`."""
        if self.querying:
            self._answer_of_query(data, now)
            return
        reader = self.reader
        reader.feed(data)
        while self.session.login is self and reader.next():
            kind = reader.kind
            if kind == AUTHENTICATION:
                self._authentication(reader.body, now)
            elif kind == ERROR_RESPONSE:
                self.told = backend.error_report(reader.body)
                self.session.disconnect(self.told, now)
            elif kind == NOTICE_RESPONSE:
                continue
            elif not self.is_in:
                self._negotiated(kind, reader.body)
            elif kind == PARAMETER_STATUS:
                self._parameter(reader.body)
            elif kind == BACKEND_KEY_DATA:
                if not 8 <= len(reader.body) <= MAX_KEY:
                    raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("broken BackendKeyData"))
                self.session.cancel_key = reader.body
            elif kind == READY_FOR_QUERY and self.connect_query:
                self.session.at_login = self.session.context.tracked.from_reported(self.reported)
                self.querying = True
                self.session.write(frontend.query(self.connect_query))
                rest = reader.rest()
                if rest:
                    self._answer_of_query(rest, now)
                return
            elif kind == READY_FOR_QUERY:
                self._ready(now)
            else:
                raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("a message before its turn"))

    def _negotiated(self, kind: i64, body: bytes) -> None:
        """Before AuthenticationOk, only NegotiateProtocolVersion may come: the server speaks an older 3.x, which is fine."""
        if kind != NEGOTIATE_PROTOCOL_VERSION:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("a message before its turn"))
        if len(body) < 8 or not PROTOCOL_3_0 <= int32_at(body, 0) <= PROTOCOL_3_0 | int(self.minor):
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("broken NegotiateProtocolVersion"))

    def _answer_of_query(self, data: bytes, now: float) -> None:
        """What connect_query is answered with: errors, for the log, and reported parameters count. Rows may be of any size."""
        session = self.session
        framer = session.link.from_server_framer
        if not framer.feed(data):
            return
        while framer.next():
            kind = framer.kind
            if kind != PARAMETER_STATUS and kind != ERROR_RESPONSE and kind != READY_FOR_QUERY:
                if kind == COPY_IN_RESPONSE or kind == COPY_BOTH_RESPONSE:
                    self._refuse_query("connect_query wants copy data", now)
                    return
                continue
            if not framer.hold():
                return
            body = framer.data[framer.start + HEADER_SIZE : framer.stop]
            if kind == PARAMETER_STATUS:
                self._parameter(body)
            elif kind == ERROR_RESPONSE:
                report = backend.error_report(body)
                if report.severity in ("FATAL", "PANIC"):
                    self.told = report
                    session.disconnect(report, now)
                    return
                session.context.host.connect_query_failed(session, report)
            elif body[:1] != bytes((STATUS_IDLE,)):
                self._refuse_query("connect_query left a transaction open", now)
                return
            else:
                framer.reset()
                self._ready(now)
                return

    def _refuse_query(self, reason: str, now: float) -> None:
        """No client could use a server that connect_query leaves like this."""
        self.told = errors.LOGIN_FAILED.with_detail(reason)
        self.session.disconnect(self.told, now)

    def _parameter(self, body: bytes) -> None:
        pair = backend.parameter_status_pair(body)
        if pair is None or len(self.reported) >= MAX_PARAMETERS:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("broken ParameterStatus"))
        self.reported[pair[0]] = pair[1]

    # --- proof ----------------------------------------------------------------------------------------------------------
    def _authentication(self, body: bytes, now: float) -> None:
        exchange = self.exchange
        if len(body) < 4 or exchange is None or self.is_in:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("authentication request out of turn"))
        try:
            step = exchange.receive(int(int32_at(body, 0)), body[4:])
        except AuthenticationFailed as failure:
            self._refuse(failure, now)
            return
        self._do(step, now)

    def _do(self, step: Step, now: float) -> None:
        session = self.session
        if isinstance(step, Reply):
            session.write(frontend.password(step.payload))
        elif isinstance(step, Derive):
            session.context.host.derive(step, self.derived)
        elif isinstance(step, Accepted):
            self.is_in = True
        elif not isinstance(step, Wait):
            raise errors.IllegalTransition(f"server login: {type(step).__name__}")

    def derived(self, salted_password: bytes, now: float) -> None:
        """Told by the host: the key that a `Derive` step asked for."""
        exchange = self.exchange
        if self.session.login is not self or exchange is None or self.session.is_closed:
            return
        try:
            step = exchange.derived(salted_password)
        except AuthenticationFailed as failure:
            self._refuse(failure, now)
            return
        self._do(step, now)

    def _refuse(self, failure: AuthenticationFailed, now: float) -> None:
        self.told = failure.report.with_detail(failure.reason)
        self.session.disconnect(self.told, now)

    # --- ends -----------------------------------------------------------------------------------------------------------
    def _ready(self, now: float) -> None:
        session = self.session
        session.login = None
        session.connect_query = self.connect_query
        session.parameters = session.context.tracked.from_reported(self.reported)
        if not self.querying:
            session.at_login = session.parameters
        session.pool.stats.connects.add(i64((now - session.connect_time) * 1_000_000))
        session.context.host.server_opened(session, now)
        if session.generation != session.pool.generation:
            session.close_needed = True
        session.pool.opened(session, self.reported, now)

    def failed(self, report: Report, now: float) -> None:
        """The connection has ended before it was ready: whoever waits for it is told, or goes on waiting."""
        session = self.session
        session.login = None
        pool = session.pool
        host = session.context.host
        if report.severity == "LOG":
            return  # closed on purpose: that says nothing about the server
        session.failed_login = True
        pause = host.retry_pause(session, report)
        no_server(pool, report, self.told, pause, now)
        host.server_failed(session, report, self.told, pause)


def no_server(pool: Pool, report: Report, told: Report | None, retry_in: float, now: float) -> None:
    """A server could not be had, for the reason `report`, which the server itself has `told`: nothing is opened for so many
    seconds, and those who wait for it are told, or go on waiting."""
    pool.open_failed(report, retry_in, now)
    if told is None:
        pool.send_away(errors.cached_failure(report), now, waiting_too=False)
    elif told.sqlstate not in SOON_OVER:
        pool.send_away(replace(told, severity="FATAL"), now, waiting_too=True)
