"""What a server answers, settled against the queue of outstanding requests. HOT only in its branches for the extended protocol.

Each function handles the message that the server's framer stands at, and says False when it has to be whole first and is not
(it is then put aside and comes again).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.session import recovery, session_state
from pgpool_proxy.session.outstanding import (
    ACTION_MASK,
    CLOSE_FAKED,
    CLOSE_INJECTED,
    KIND_MASK,
    NAMED,
    NOTED,
    NOTHING,
    NUMBER_SHIFT,
    PARSE_FAKED,
    PARSE_INJECTED,
    PARSE_REFUSED,
    PARSED,
    SKIP,
    UNNAMED,
    UNNAMED_PARSED,
    Pending,
)
from pgpool_proxy.session.parameters import taken_by_reset
from pgpool_proxy.session.prepared_statements import server_name
from pgpool_proxy.session.requests import UNKNOWN
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.codes import (
    BIND,
    BIND_COMPLETE,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_BOTH_RESPONSE,
    COPY_DATA,
    COPY_DONE,
    COPY_IN_RESPONSE,
    COPY_OUT_RESPONSE,
    DATA_ROW,
    DESCRIBE,
    EMPTY_QUERY_RESPONSE,
    ERROR_RESPONSE,
    EXECUTE,
    FUNCTION_CALL,
    FUNCTION_CALL_RESPONSE,
    HEADER_SIZE,
    NO_DATA,
    PARAMETER_DESCRIPTION,
    PARSE,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    QUERY,
    ROW_DESCRIPTION,
    STATUS_FAILED,
    STATUS_IN_TRANSACTION,
    SYNC,
)

if TYPE_CHECKING:
    from pgpool_proxy.session.link import Link

EMPTIES_STATEMENTS: Final = (b"DEALLOCATE ALL\0", b"DISCARD ALL\0")
DISCARD_ALL_TAG: Final = b"DISCARD ALL\0"
RESET_TAG: Final = b"RESET\0"
RESETS: Final = (RESET_TAG, DISCARD_ALL_TAG)
CHANGES_TABLES: Final = (b"ALTER ", b"DROP ", b"CREATE VIEW", b"CREATE RULE")


def _telling() -> bytes:
    """1 for the first letters of the tags above."""
    table = bytearray(256)
    for tag in (*EMPTIES_STATEMENTS, RESET_TAG, *CHANGES_TABLES):
        table[tag[0]] = 1
    return bytes(table)


TELLING: Final[bytes] = _telling()


def in_query(link: Link, kind: i64) -> bool:
    """A message within the answer to the client's own simple Query."""
    if kind == COMMAND_COMPLETE:
        return _command_complete(link)
    if kind == ERROR_RESPONSE:
        if not link.from_server_framer.hold():
            return False
        link.copy_in = False
        _look_at_error(link, 0)
        return True
    if kind == COPY_IN_RESPONSE or kind == COPY_BOTH_RESPONSE:
        _copy_in_begins(link)
        return True
    if kind == COPY_OUT_RESPONSE or kind == EMPTY_QUERY_RESPONSE or kind == DATA_ROW or kind == COPY_DONE:
        return True
    if kind == COPY_DATA or kind == ROW_DESCRIPTION:
        return True
    raise errors.ProtocolViolation(_unexpected(kind))


def in_pipeline(link: Link, kind: i64, head: i64, now: float) -> bool:
    """A message within the answers to the extended protocol, to a FunctionCall, or to a request of our own."""
    framer = link.from_server_framer
    outstanding = link.outstanding
    request = head & KIND_MASK
    if kind == ERROR_RESPONSE:
        if not framer.hold():
            return False
        _error(link, head, now)
        return True
    if head & ACTION_MASK == SKIP and request == QUERY:
        if not framer.hold():
            return False
        if kind == COMMAND_COMPLETE and link.phase == session_state.PROBING:
            session_state.answered(link, framer.data[framer.start + HEADER_SIZE : framer.stop])
        link.leave_out(framer.start, framer.stop)  # our own query: anything but ReadyForQuery
        return True
    if (
        (kind == PARSE_COMPLETE
        and request == PARSE)
        or (kind == BIND_COMPLETE
        and request == BIND)
        or (kind == CLOSE_COMPLETE
        and request == CLOSE)
    ):
        if head & ACTION_MASK == SKIP:
            if not framer.hold():
                return False
            link.leave_out(framer.start, framer.stop)
        drop_note(link, head)
        outstanding.pop()
        link.settle_fakes()
        return True
    if request == DESCRIBE:
        if kind == PARAMETER_DESCRIPTION:
            return True
        if kind == ROW_DESCRIPTION or kind == NO_DATA:
            return _answered(link)
    elif request == EXECUTE:
        if kind == COMMAND_COMPLETE:
            if not _command_complete(link):
                return False
            return _answered(link)
        if kind == EMPTY_QUERY_RESPONSE or kind == PORTAL_SUSPENDED:
            return _answered(link)
        if kind == COPY_IN_RESPONSE or kind == COPY_BOTH_RESPONSE:
            _copy_in_begins(link)
            return True
        if kind == COPY_OUT_RESPONSE or kind == DATA_ROW or kind == COPY_DONE or kind == COPY_DATA:
            return True
    elif request == FUNCTION_CALL and kind == FUNCTION_CALL_RESPONSE:
        return True
    raise errors.ProtocolViolation(_unexpected(kind))


def _copy_in_begins(link: Link) -> None:
    link.copy_in = not link.outstanding.copy_in_begins()
    if link.copy_in and link.phase == recovery.RECOVERING:
        recovery.fail_copy(link)


def parameter_status(link: Link, head: i64) -> None:
    """The server reports a parameter. After a RESET the client is told the value that it asked for at connect."""
    framer = link.from_server_framer
    body = framer.data[framer.start + HEADER_SIZE : framer.stop]
    link.server.parameter_status(body)
    client = link.client
    if head != NOTHING and head & ACTION_MASK == SKIP:
        link.leave_out(framer.start, framer.stop)
    elif link.saw_reset and client is not None:
        pair = backend.parameter_status_pair(body)
        own = client.value_at_connect(pair[0]) if pair is not None else None
        if pair is not None and own is not None and own != pair[1] and link.server.had_at_login(pair[0], pair[1]):
            link.leave_out(framer.start, framer.stop)
            link.parts.append(backend.parameter_status(pair[0], own))


def after_reset(link: Link) -> None:
    """RESET gave the server its own values back; the client's are set before its next request."""
    link.saw_reset = False
    client = link.client
    if client is None:
        return
    tracked = client.context.tracked
    server = link.server
    before = link.before_reset
    link.before_reset = None
    client.parameters = tracked.restored(before, server.parameters, server.at_login, client.at_connect)
    taken = b""
    if client.parameters.extras and client.parameters.extras == server.parameters.extras and link.status != STATUS_FAILED:
        taken = taken_by_reset(client.parameters.extras)  # at once: the next client's depend on what the server has
    stays = link.keeps or link.status == STATUS_IN_TRANSACTION or taken != b""
    sql = taken + tracked.difference(client.parameters, server.parameters) if stays else b""
    if sql:
        link.prepare(sql)


def unexpected(link: Link, kind: i64) -> bool:
    """A message although nothing is outstanding: an error ends the connection, everything else breaks the protocol."""
    if kind == ERROR_RESPONSE:
        if not link.from_server_framer.hold():
            return False
        _look_at_error(link, NOTHING)
        return True
    raise errors.ProtocolViolation(_unexpected(kind))


def _unexpected(kind: i64) -> errors.Report:
    return errors.SERVER_PROTOCOL.with_detail(f"message 0x{int(kind):02x} was not expected")


def _answered(link: Link) -> bool:
    """The request at the head has its answer. It has to be whole when an answer of our own comes right behind it."""
    outstanding = link.outstanding
    if outstanding.fake_follows() and not link.from_server_framer.hold():
        return False
    outstanding.pop()
    link.settle_fakes()
    return True


def _command_complete(link: Link) -> bool:
    """Look at the tag, which tells what happened to the server's prepared statements."""
    framer = link.from_server_framer
    if not framer.hold():
        return False
    start = framer.start + HEADER_SIZE
    if framer.stop - start > 2 and (TELLING[framer.data[start]] or link.watch):
        _tag(link, framer.data[start : framer.stop])
    return True


def _tag(link: Link, tag: bytes) -> None:
    """A tag that may say that plans are stale, parameters were reset, or the server has no prepared statements left."""
    if link.watch:
        session_state.command(link, tag)
    if tag == RESET_TAG:
        if not link.saw_reset:
            link.saw_reset = True
            link.before_reset = link.server.parameters  # what changes is reported behind the tag
        return
    if tag.startswith(CHANGES_TABLES):
        link.saw_ddl = True
        link.server.context.statements.tables_changed()
        return
    if tag not in EMPTIES_STATEMENTS:
        return
    if tag == DISCARD_ALL_TAG:
        link.saw_reset = True
        link.before_reset = None
        link.server.lost_extras()
    link.server.statements.clear()
    link.server.unnamed = UNKNOWN
    client = link.client
    if client is not None and client.statements is not None:
        client.statements.clear()
        client.unnamed = None


# --- errors -----------------------------------------------------------------------------------------------------------------
def _error(link: Link, head: i64, now: float) -> None:
    """An ErrorResponse to the request at the head: everything up to the next Sync is discarded."""
    framer = link.from_server_framer
    outstanding = link.outstanding
    link.copy_in = False
    request = head & KIND_MASK
    if request == QUERY and head & ACTION_MASK == SKIP:
        report = backend.error_report(framer.data[framer.start + HEADER_SIZE : framer.stop])
        link.leave_out(framer.start, framer.stop)
        if link.phase != session_state.PROBING or report.severity != "ERROR":
            link.parameters_refused(report, now)
        return
    number = head >> NUMBER_SHIFT
    if number > 0 or (request == PARSE and head & NOTED):
        _correct_name(link, head, number)
    _look_at_error(link, number if head & NAMED else 0)
    if request == FUNCTION_CALL or request == SYNC:
        return
    restored = False
    if request == PARSE and head & UNNAMED:
        restored = True
        if link.client is not None:
            link.client.unnamed = None
    link.server.unnamed = UNKNOWN
    discarded: list[Pending] = []
    while head != NOTHING and head & KIND_MASK != SYNC:
        if head & NOTED:
            note = outstanding.pop_note()
            if note.what != UNNAMED_PARSED:
                discarded.append(note)
            elif not restored:
                restored = True
                if link.client is not None:
                    link.client.unnamed = note.unnamed
        outstanding.pop()
        head = outstanding.head()
    for note in reversed(discarded):  # the last belief first
        _take_back(link, note)
    if head == NOTHING:
        outstanding.skipping = True


def _take_back(link: Link, note: Pending) -> None:
    """The request of `note` failed or was discarded."""
    client = link.client
    what = note.what
    statement = note.statement
    if statement is not None:
        if what == PARSED or what == PARSE_INJECTED:
            link.server.statements.remove(statement.number)
        if client is not None and client.statements is not None:
            if (what == PARSED or what == PARSE_FAKED) and client.statements.get(note.name) is statement:
                client.statements.remove(note.name)
            elif what == CLOSE_FAKED:
                client.statements.put_back(note.name, statement)
        if what == CLOSE_FAKED:
            link.server.context.statements.let_go(statement)
    prepared = note.prepared
    if what == CLOSE_INJECTED and prepared is not None:
        link.server.statements.restore(prepared)
        link.server.context.statements.let_go(prepared.statement)


def drop_note(link: Link, head: i64) -> None:
    """The request at the head succeeded: what it did stands."""
    if head & NOTED:
        note = link.outstanding.pop_note()
        if note.what == CLOSE_FAKED and note.statement is not None:
            link.server.context.statements.let_go(note.statement)
        elif note.what == CLOSE_INJECTED and note.prepared is not None:
            link.server.context.statements.let_go(note.prepared.statement)


def _correct_name(link: Link, head: i64, number: i64) -> None:
    """An error that names the statement as the server knows it names it as the client does."""
    name = b""
    shared = b""
    if head & NAMED:
        name, shared = link.outstanding.first_name(), server_name(number)  # even if it is forgotten, or has another by now
    elif head & NOTED:
        note = link.outstanding.first_note()
        if note.what == PARSE_REFUSED:
            _say_no_room(link)
            return
        if note.statement is not None:
            name, shared = note.name, note.statement.name
    framer = link.from_server_framer
    body = framer.data[framer.start + HEADER_SIZE : framer.stop]
    quoted = b'"' + shared + b'"'
    if not name or quoted not in body:
        return
    link.leave_out(framer.start, framer.stop)
    link.parts.append(backend.message(ERROR_RESPONSE, body.replace(quoted, b'"' + name + b'"')))


def _say_no_room(link: Link) -> None:
    """The error of our Parse of nonsense stands for that of the client's; one that ends the connection is the server's own."""
    framer = link.from_server_framer
    if backend.error_report(framer.data[framer.start + HEADER_SIZE : framer.stop]).severity == "ERROR":
        link.leave_out(framer.start, framer.stop)
        link.parts.append(backend.error_response(errors.TOO_MANY_PREPARED))


def _look_at_error(link: Link, number: i64) -> None:
    """What an error says about the server itself: that it is going, or that it has lost a statement.

    `number` is that of the statement which was to be bound or described, and 0 for every other request.
    """
    link.session_state.failed = True
    framer = link.from_server_framer
    fields = backend.error_fields(framer.data[framer.start + HEADER_SIZE : framer.stop])
    severity = fields.get("V", fields.get("S", ""))
    if severity in ("FATAL", "PANIC"):
        link.server.last_words = backend.error_report(framer.data[framer.start + HEADER_SIZE : framer.stop])
        return
    code = fields.get("C", "")
    if number > 0 and code == "26000":
        link.server.statements.remove(number)  # somebody deallocated it behind our back
    elif number > 0 and is_stale(code, fields.get("M", ""), fields.get("R", "")):
        statement = link.server.context.statements.numbered(number)
        if statement is not None:
            link.server.context.statements.rename(statement)


def is_stale(code: str, message: str, routine: str) -> bool:
    """Does this error of a Bind or Describe mean that a prepared statement no longer fits the tables, types and functions?

    They were analysed once, with success, and are analysed again after they have changed: an error of that kind (class 42, but
    for privileges) says so, unless a parameter's value has caused it, and then it does no harm to prepare the statement again.
    """
    if code == "0A000":
        return routine == "RevalidateCachedQuery" or message.startswith("cached plan must not change result type")
    if code == "XX000":
        return message.startswith("cache lookup failed for")
    return code.startswith("42") and code != "42501"
