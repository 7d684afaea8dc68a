"""One client of database `pgbouncer`: messages in, answers out. Knows the protocol; what is asked for is done by `Control`.

Theory of operation
-------------------
`received` collects whole messages and takes them one after the other. A statement that takes time (PAUSE, a long SHOW, a client
that does not read its answers) makes the console busy: the messages behind it wait until it is done, and reading stops when
they become many. Statements come by simple Query, one each, or by the extended protocol: Parse checks the statement, Describe
knows its columns from the tables of show.py, Execute carries it out. After an error, messages of the extended protocol are
skipped up to Sync. There are no transactions: BEGIN and COMMIT are accepted, since drivers send them unasked, and
ReadyForQuery says 'I' throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from pgpool_proxy import errors
from pgpool_proxy.admin.control import Control, Pending, Refused, Row, error
from pgpool_proxy.admin.grammar import STATEMENTS
from pgpool_proxy.admin.messages import read_bind, read_execute, read_parse, read_query, read_target
from pgpool_proxy.admin.results import TEXT_FORMAT, data_row, row_description
from pgpool_proxy.admin.show import FDS
from pgpool_proxy.admin.statements import Portal, Prepared, formats_of, prepare
from pgpool_proxy.errors import ProtocolViolation, Report
from pgpool_proxy.session.client_session import BY_PENDING, ClientSession
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.codes import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    FUNCTION_CALL,
    PARAMETER_DESCRIPTION,
    PARSE,
    PORTAL_SUSPENDED,
    QUERY,
    SYNC,
    TERMINATE,
)
from pgpool_proxy.wire.framing import MessageReader

CONSOLE_PARAMETERS: Final[dict[bytes, bytes]] = {
    b"server_version": b"1.25.2/bouncer",
    b"client_encoding": b"UTF8",
    b"server_encoding": b"UTF8",
    b"DateStyle": b"ISO",
    b"TimeZone": b"GMT",
    b"standard_conforming_strings": b"on",
    b"is_superuser": b"on",
}
"""What a login to the console reports; drivers read the version of PgBouncer's contract from it."""

MAX_MESSAGE: Final = 65536  # bytes of one message: far more than any statement of the console needs
MAX_WAITING: Final = 65536  # bytes that may wait behind a statement that takes time before reading stops
MAX_STATEMENTS: Final = 1000  # prepared statements and portals of one client; drivers' caches hold some hundreds
ROWS_AT_A_TIME: Final = 50  # rows that are made before the data path gets its turn (about 2 ms)
WRITE_SIZE: Final = 65536  # bytes that are collected before they are written
LOOK_AGAIN_S: Final = 0.05  # pause while the client does not read its answers

TOO_LONG: Final = errors.PACKET_TOO_LONG.saying(f"message is longer than the {MAX_MESSAGE} bytes that the console takes")
NO_PARAMETERS: Final = error("the console's statements take no parameters")
STATEMENT_UNKNOWN: Final = error("prepared statement does not exist", "26000")
PORTAL_UNKNOWN: Final = error("portal does not exist", "34000")
PORTAL_USED: Final = error("portal cannot be run again", "55000")
NAME_IN_USE: Final = error("a statement or portal of this name exists already", "42P05")
TOO_MANY: Final = error(f"more than {MAX_STATEMENTS} prepared statements or portals", "54000")
NO_FUNCTIONS: Final = error("function call protocol is not supported by the console", "0A000")


class Console:
    """See the module's theory of operation."""

    def __init__(self, session: ClientSession, control: Control, is_admin: bool) -> None:
        self._session = session
        self._control = control
        self._is_admin = is_admin
        self._reader = MessageReader(MAX_MESSAGE)
        self._statements: dict[str, Prepared] = {}
        self._portals: dict[str, Portal] = {}
        self._out: list[bytes] = []
        self._out_size = 0
        self._waiting = 0  # bytes that came since the console has been busy
        self._busy = False
        self._pending: Pending | None = None
        self._streaming: Portal | None = None
        self._by_query = False  # the statement under way came by simple Query
        self._skipping = False
        self._closed = False
        self._working = False
        self._looking = False
        self._started_at = 0.0
        pool = session.pool
        self._stats = pool.stats if pool is not None else None
        if self._stats is not None:
            self._stats.client_login_count += 1
        self._handlers: dict[int, Callable[[bytes], None]] = {
            QUERY: self._query,
            PARSE: self._parse,
            BIND: self._bind,
            DESCRIBE: self._describe,
            EXECUTE: self._execute,
            CLOSE: self._close,
            SYNC: self._sync,
            FLUSH: self._ignore,
            COPY_DATA: self._ignore,
            COPY_DONE: self._ignore,
            COPY_FAIL: self._ignore,
            FUNCTION_CALL: self._function_call,
            TERMINATE: self._terminate,
        }

    # --- told by the session ---------------------------------------------------------------------------------------------
    def received(self, data: bytes, now: float) -> None:
        self._reader.feed(data)
        self._session.request_time = now
        if self._stats is not None:
            self._stats.bytes_received += len(data)
        if self._busy:
            self._waiting += len(data)
            if self._waiting > MAX_WAITING:
                self._session.block(BY_PENDING)
            return
        self._work()

    def cancel(self, now: float) -> None:
        """A CancelRequest for this client: what takes time is over, with 57014."""
        if self._pending is not None:
            self._pending.cancel()
        elif self._streaming is not None:
            self._streaming.rows = None
            self._streaming = None
            self._finish(errors.CANCELED)

    def closed(self) -> None:
        self._closed = True
        self._streaming = None
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.abandon()
        self._control.console_closed(self)

    # --- messages --------------------------------------------------------------------------------------------------------
    def _work(self) -> None:
        """Take messages until there is none left, or until one takes time."""
        reader = self._reader
        self._working = True
        try:
            while not self._busy and not self._closed:
                if self._session.write_full:
                    self._look_again()
                    break
                if not reader.next():
                    break
                self._take(reader.kind, reader.body)
            self._flush()
        except ProtocolViolation as violation:
            self._flush()
            report = TOO_LONG if violation.report is errors.PACKET_TOO_LONG else violation.report
            self._session.fail(report, self._control.now())
        finally:
            self._working = False

    def _take(self, kind: int, body: bytes) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            raise ProtocolViolation(errors.UNKNOWN_PACKET)
        if self._skipping and kind not in (SYNC, TERMINATE):
            return
        try:
            handler(body)
        except Refused as refused:
            self._refuse(refused.report, refused.logged, by_query=kind == QUERY)

    def _refuse(self, report: Report, logged: Report, by_query: bool) -> None:
        self._say(backend.error_response(report))
        self._session.context.host.notify(self._session, logged)
        if by_query:
            self._ready()
        else:
            self._skipping = True

    def _ready(self) -> None:
        self._say(backend.READY_IDLE)
        if self._stats is not None:
            self._stats.query_count += 1
            self._stats.xact_count += 1

    def _say(self, data: bytes) -> None:
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > WRITE_SIZE:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        if data and not self._closed:
            if self._stats is not None:
                self._stats.bytes_sent += len(data)
            self._session.write(data)

    # --- later ------------------------------------------------------------------------------------------------------------
    def _look_again(self) -> None:
        """The client does not read its answers: go on when it does."""
        if not self._looking:
            self._looking = True
            self._later(LOOK_AGAIN_S, self._looked)

    def _looked(self) -> None:
        self._looking = False
        if self._streaming is not None:
            self._stream()
        elif not self._busy:
            self._work()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._control.call_later(seconds, lambda: self._called(call))

    def _called(self, call: Callable[[], None]) -> None:
        """A fault in what is called later costs this client its connection, and nobody else anything."""
        if self._closed:
            return
        try:
            call()
        except Exception:
            self._session.fail(errors.INTERNAL_ERROR, self._control.now())
            raise

    # --- the simple protocol ----------------------------------------------------------------------------------------------
    def _query(self, body: bytes) -> None:
        self._portals.clear()
        self._statements.pop("", None)
        prepared = prepare(read_query(body), self._is_admin)
        portal = Portal(prepared, [TEXT_FORMAT] * len(prepared.columns))
        if prepared.table is not None:
            self._say(row_description(prepared.columns, portal.formats))
        self._run(portal, by_query=True)

    # --- the extended protocol --------------------------------------------------------------------------------------------
    def _parse(self, body: bytes) -> None:
        name, text = read_parse(body)
        if name and name in self._statements:
            raise Refused(NAME_IN_USE)
        if len(self._statements) >= MAX_STATEMENTS:
            raise Refused(TOO_MANY)
        self._statements[name] = prepare(text, self._is_admin)
        self._say(backend.PARSE_COMPLETE_MESSAGE)

    def _bind(self, body: bytes) -> None:
        bind = read_bind(body)
        prepared = self._statement(bind.statement)
        if bind.parameters:
            raise Refused(NO_PARAMETERS)
        if bind.portal and bind.portal in self._portals:
            raise Refused(NAME_IN_USE)
        if len(self._portals) >= MAX_STATEMENTS:
            raise Refused(TOO_MANY)
        self._portals[bind.portal] = Portal(prepared, formats_of(bind, len(prepared.columns)))
        self._say(backend.BIND_COMPLETE_MESSAGE)

    def _describe(self, body: bytes) -> None:
        kind, name = read_target(body)
        if kind == "S":
            prepared = self._statement(name)
            formats = [TEXT_FORMAT] * len(prepared.columns)
            self._say(backend.message(PARAMETER_DESCRIPTION, b"\0\0"))
        else:
            portal = self._portal(name)
            prepared, formats = portal.prepared, portal.formats
        if prepared.table is None:
            self._say(backend.NO_DATA_MESSAGE)
        else:
            self._say(row_description(prepared.columns, formats))

    def _execute(self, body: bytes) -> None:
        name, limit = read_execute(body)
        portal = self._portal(name)
        portal.left, portal.limited = limit, limit > 0
        if portal.has_run and portal.prepared.table is None:
            raise Refused(PORTAL_USED)
        self._run(portal, by_query=False)

    def _close(self, body: bytes) -> None:
        kind, name = read_target(body)
        if kind == "S":
            self._statements.pop(name, None)
        else:
            self._portals.pop(name, None)
        self._say(backend.CLOSE_COMPLETE_MESSAGE)

    def _sync(self, body: bytes) -> None:
        self._skipping = False
        self._portals.clear()
        self._ready()

    def _statement(self, name: str) -> Prepared:
        found = self._statements.get(name)
        if found is None:
            raise Refused(STATEMENT_UNKNOWN)
        return found

    def _portal(self, name: str) -> Portal:
        found = self._portals.get(name)
        if found is None:
            raise Refused(PORTAL_UNKNOWN)
        return found

    # --- messages without an answer -----------------------------------------------------------------------------------------
    def _ignore(self, body: bytes) -> None:
        """Flush: answers are never kept. Copy data: of a COPY that failed."""

    def _function_call(self, body: bytes) -> None:
        self._say(backend.error_response(NO_FUNCTIONS))
        self._ready()

    def _terminate(self, body: bytes) -> None:
        self._flush()
        self._session.leave(errors.CLIENT_CLOSE_REQUEST, self._control.now())

    # --- statements -------------------------------------------------------------------------------------------------------
    def _run(self, portal: Portal, by_query: bool) -> None:
        prepared = portal.prepared
        self._by_query = by_query
        self._busy = True
        self._waiting = 0
        self._started_at = self._control.now()
        has_run = portal.has_run
        portal.has_run = True
        if prepared.table is not None:
            if by_query and prepared.table.name == FDS and self._control.may_hand_over(self._session):
                self._pending = self._control.hand_over(self._session, self._once(prepared))
                self._flush()
                return
            self._streaming = portal
            if has_run:
                self._stream()
            else:
                self._control.rows(prepared.table.name, lambda rows: self._rows_found(portal, rows))
        elif prepared.command is not None:
            pending = prepared.command.start(self._control, prepared.statement, self._once(prepared), self)
            if self._busy and not self._closed:
                self._pending = pending
                self._flush()
        else:
            if prepared.notice is not None:
                self._say(backend.notice_response(prepared.notice))
            if prepared.statement.verb == "RESET" and prepared.statement.argument == STATEMENTS:
                self._statements.clear()
            self._complete(prepared.tag)

    def _once(self, prepared: Prepared) -> Callable[[Report | None], None]:
        """The `Done` of a command."""

        def done(report: Report | None) -> None:
            if self._closed:
                return
            self._pending = None
            if report is None:
                self._complete(prepared.tag)
            elif report.severity == "NOTICE":
                self._say(backend.notice_response(report))
                self._complete(prepared.tag)
            else:
                self._finish(report)

        return done

    # --- rows -------------------------------------------------------------------------------------------------------------
    def _rows_found(self, portal: Portal, rows: Iterable[Row]) -> None:
        if not self._closed and self._streaming is portal:
            portal.rows = iter(rows)
            self._stream()

    def _stream(self) -> None:
        """Send rows, a few at a time; the rest when the others had their turn and the client has read what it got."""
        portal = self._streaming
        if self._closed or portal is None:
            return
        if self._session.write_full:
            self._look_again()
            return
        wanted = min(ROWS_AT_A_TIME, portal.left) if portal.limited else ROWS_AT_A_TIME
        rows = list(islice(portal.rows, wanted)) if portal.rows is not None else []
        columns = portal.prepared.columns
        self._say(b"".join([data_row(columns, portal.formats, row) for row in rows]))
        portal.left -= len(rows)
        if len(rows) < wanted:
            portal.rows = None
            self._streaming = None
            self._complete(portal.prepared.tag)
        elif portal.limited and portal.left == 0:
            self._streaming = None
            self._say(backend.message(PORTAL_SUSPENDED, b""))
            self._end()
        else:
            self._flush()
            self._later(0.0, self._stream)

    # --- ends -------------------------------------------------------------------------------------------------------------
    def _complete(self, tag: bytes) -> None:
        self._say(backend.command_complete(tag) if tag else backend.EMPTY_QUERY_MESSAGE)
        if self._by_query:
            self._ready()
        self._end()

    def _finish(self, report: Report) -> None:
        self._refuse(report, report, self._by_query)
        self._end()

    def _end(self) -> None:
        """The statement under way is over: go on with what came meanwhile."""
        if self._stats is not None:
            self._stats.query_time += int((self._control.now() - self._started_at) * 1_000_000)
        self._busy = False
        self._session.unblock(BY_PENDING)
        if not self._working:
            self._work()
