"""What a client asks about prepared statements, turned over for servers that it shares with others. HOT.

What was sent before may still fail and take names back with it. Behind a Sync or a Query that is not answered yet, a message
that depends on names waits for that answer (`Link.stall`); within one pipeline an error discards it, too.

`note` is called for each Parse, Bind, Describe and Close. In session mode they only enter the queue. Otherwise names of the
client become names of the server (`prepared_statements`), what the server lacks is put in before (its answer is skipped), and
what it need not do is left out (its answer is faked). A Bind's body is not copied beyond the two names.

The unnamed statement belongs to a client, too: the last unnamed Parse is kept (up to `MAX_UNNAMED` bytes) and sent again
before a Bind or Describe that would meet a server without it, or with another client's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.session import session_state
from pgpool_proxy.session.outstanding import (
    CLOSE_FAKED,
    CLOSE_INJECTED,
    FAKE,
    NUMBER_SHIFT,
    PARSE_DUPLICATE,
    PARSE_FAKED,
    PARSE_INJECTED,
    PARSE_REFUSED,
    PARSED,
    SKIP,
    UNNAMED,
    UNNAMED_INJECTED,
    UNNAMED_PARSED,
    Pending,
)
from pgpool_proxy.session.prepared_statements import ClientStatements, Statement
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.backend import CLOSE_COMPLETE_MESSAGE, PARSE_COMPLETE_MESSAGE
from pgpool_proxy.wire.codes import BIND, CLOSE, DESCRIBE, HEADER_SIZE, PARSE, STATUS_FAILED
from pgpool_proxy.wire.framing import nul_at

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.link import Link

MAX_NAME: Final = 8192  # bytes of a statement's and a portal's name together; PostgreSQL's identifiers have 63
MAX_UNNAMED: Final = 65536  # an unnamed Parse up to this size outlives its Sync
UNNAMED_HEAD: Final = 5  # a longer one is only known to have been there: this many bytes of it are kept
OF_STATEMENT: Final = 0x53  # 'S' in Describe and Close

LETTER_D: Final = 0x44
LETTER_E: Final = 0x45
MAX_DEALLOCATE: Final = 512  # bytes of a Query that is worth a look
DEALLOCATE: Final = re.compile(
    rb'\s*DEALLOCATE\s+(?:PREPARE\s+)?(?:"((?:[^"]|"")+)"|([A-Za-z_\x80-\xff][\w$\x80-\xff]*))\s*;?\s*', re.IGNORECASE
).fullmatch
DEALLOCATED_MESSAGE: Final = backend.command_complete(b"DEALLOCATE")

GONE_NAME: Final = b"pgpool_gone"
GONE_MESSAGES: Final = frontend.close_statement(GONE_NAME) + frontend.parse(GONE_NAME, b"\0\0\0")  # an empty text
DEALLOCATE_GONE: Final = b"DEALLOCATE pgpool_gone --"  # the client's name follows
TEXT_AT: Final = HEADER_SIZE + 1  # of the text in an unnamed Parse

NO_ROOM_NAME: Final = b"PGPOOL_NO_ROOM"
NO_ROOM_TEXT: Final = b"too many prepared statements (max_prepared_memory)\0\0\0"  # no SQL: the server refuses it
VERDICT_NAME: Final = b"PGPOOL_VERDICT"
UNKNOWN: Final = b"?"  # a server's unnamed statement is nobody's or somebody else's


def _table() -> bytes:
    table = bytearray(256)
    for kind in (PARSE, BIND, DESCRIBE, CLOSE):
        table[kind] = 1
    return bytes(table)


CONCERNS_STATEMENTS: Final[bytes] = _table()


def note(link: Link, client: ClientSession) -> bool:
    """Handle the Parse, Bind, Describe or Close that the client's framer stands at. False: it is not whole enough yet."""
    framer = link.from_client_framer
    kind = framer.kind
    outstanding = link.outstanding
    if not link.rewrites or outstanding.skipping:
        if not outstanding.skipping:
            if link.watch and kind == PARSE and not session_state.parsed(link, client):
                return False
            outstanding.push(kind)
        return True
    if outstanding.is_uncertain:
        if link.copy_in:  # out of place: the server says so, and closes
            outstanding.push(kind)
            return True
        link.stall(client)
        return False
    if kind == PARSE:
        return _parse(link, client)
    if kind == BIND:
        return _bind(link, client)
    return _describe_or_close(link, client)


def query(link: Link, client: ClientSession) -> bool:
    """A simple Query that begins with a D: `DEALLOCATE name` of a statement that was prepared by protocol is answered here.

    Drivers send it (PDO, DBD::Pg, ruby-pg), and no server knows the client's names. False: it is not whole yet, or waits.
    """
    framer = link.from_client_framer
    if not link.rewrites or framer.stop - framer.start > MAX_DEALLOCATE or not framer.may_be(HEADER_SIZE + 1, LETTER_E):
        return True
    if not framer.hold():
        return False
    known = client.statements
    if known is None or link.outstanding.skipping or link.copy_in:
        return True
    name = deallocated(framer.data[framer.start + HEADER_SIZE : framer.stop - 1])
    if not name or known.get(name) is None:
        return True
    if not link.outstanding.is_empty:
        link.stall(client)
        return False
    if link.status != STATUS_FAILED:
        known.remove(name)
        leave_out(link, framer.start, framer.stop)
        client.write(DEALLOCATED_MESSAGE + backend.ready_for_query(int(link.status)))
    return True


def deallocated(text: bytes) -> bytes:
    """The name in `DEALLOCATE [PREPARE] name`, folded as PostgreSQL does; empty for every other text."""
    match = DEALLOCATE(text)
    if match is None:
        return b""
    quoted, plain = match.group(1), match.group(2)
    if quoted is not None:
        return bytes(quoted.replace(b'""', b'"'))
    return b"" if plain.lower() == b"all" else bytes(plain.lower())


# --- Parse ----------------------------------------------------------------------------------------------------------------
def _parse(link: Link, client: ClientSession) -> bool:
    framer = link.from_client_framer
    if framer.stop - framer.start == HEADER_SIZE:
        link.outstanding.push(PARSE)  # without any body: the server says so
        return True
    if not framer.hold_until(HEADER_SIZE + 1):
        return False
    if framer.data[framer.start + HEADER_SIZE] == 0:
        return _parse_unnamed(link, client)
    if not framer.hold():
        return False
    link.server.pool.stats.client_parse_count += 1
    start = framer.start
    stop = framer.stop
    name_end = nul_at(framer.data, start + HEADER_SIZE, stop)
    if name_end < 0 or name_end - start > MAX_NAME:
        raise errors.ProtocolViolation(errors.BAD_PACKET.with_detail("Parse without the end of its name"))
    name = framer.data[start + HEADER_SIZE : name_end]
    rest = framer.data[name_end + 1 : stop]
    leave_out(link, start, stop)
    known = client.statements
    if not client.context.statements.has_room(known, name, rest):
        link.parts.append(frontend.parse(NO_ROOM_NAME, NO_ROOM_TEXT))
        link.outstanding.push_noted(PARSE, Pending(PARSE_REFUSED))
        return True
    statement = client.context.statements.find_fresh(rest)
    if known is None:
        known = ClientStatements(client.context.statements)
        client.statements = known
    older = known.get(name)
    if older is not None:
        _refuse_duplicate(link, name, older, statement.rest)
        client.context.statements.let_go(statement)
        return True
    known.put(name, statement)
    server = link.server
    if server.statements.has(statement):
        if link.status == STATUS_FAILED or link.outstanding.status_is_open:
            _parse_for_verdict(link, name, statement)
        elif link.outstanding.is_empty:
            client.write(PARSE_COMPLETE_MESSAGE)
        else:
            link.outstanding.push_noted(PARSE | FAKE, Pending(PARSE_FAKED, name, statement))
        return True
    _make_room(link)
    server.pool.stats.server_parse_count += 1
    server.statements.add(statement)
    link.parts.append(frontend.parse(statement.name, statement.rest))
    link.outstanding.push_noted(PARSE | statement.number << NUMBER_SHIFT, Pending(PARSED, name, statement))
    return True


def _parse_for_verdict(link: Link, name: bytes, statement: Statement) -> None:
    """In a transaction that has failed, or may have, a Parse is refused unless it ends the transaction: the server tells, by
    one that is thrown away."""
    link.parts.append(frontend.parse(VERDICT_NAME, statement.rest))
    link.outstanding.push_noted(PARSE, Pending(PARSE_FAKED, name, statement))
    link.parts.append(frontend.close_statement(VERDICT_NAME))
    link.outstanding.push(CLOSE | SKIP)


def _refuse_duplicate(link: Link, name: bytes, older: Statement, rest: bytes) -> None:
    """The name is taken: let the server say so (42P05), or what else is wrong with the text, by a Parse under a name that it
    has; the error's text is corrected on the way."""
    _ensure(link, older)
    link.parts.append(frontend.parse(older.name, rest))
    link.outstanding.push_noted(PARSE, Pending(PARSE_DUPLICATE, name, older))


def _parse_unnamed(link: Link, client: ClientSession) -> bool:
    framer = link.from_client_framer
    size = framer.stop - framer.start
    if size <= MAX_UNNAMED and not framer.hold():
        return False
    old = client.unnamed
    if size <= MAX_DEALLOCATE and framer.may_be(HEADER_SIZE + 1, LETTER_D) and _parse_deallocate(link, client):
        return True
    if size <= MAX_UNNAMED:
        client.unnamed = framer.data[framer.start : framer.stop]
    else:
        client.unnamed = framer.data[framer.start : framer.start + UNNAMED_HEAD]
    link.server.unnamed = client.unnamed
    if link.outstanding.is_empty:
        link.outstanding.push(PARSE | UNNAMED)
    else:
        link.outstanding.push_noted(PARSE | UNNAMED, Pending(UNNAMED_PARSED, unnamed=old))
    return True


def _parse_deallocate(link: Link, client: ClientSession) -> bool:
    """Is it `DEALLOCATE name` of a statement that the client has prepared by protocol? No server knows that name: it gets a
    statement of the kind that it has, so that everything about it is its own answer. The client's name goes with the Bind."""
    framer = link.from_client_framer
    known = client.statements
    if known is None or framer.data[framer.start + HEADER_SIZE + 2] & 0xDF != LETTER_E:
        return False
    text, _, types = framer.data[framer.start + HEADER_SIZE + 1 : framer.stop].partition(b"\0")
    name = deallocated(text)
    if not name or b"\n" in name or b"\r" in name or known.get(name) is None:
        return False
    old = client.unnamed
    own = frontend.parse(b"", DEALLOCATE_GONE + name + b"\0" + types)
    leave_out(link, framer.start, framer.stop)
    _put_gone(link)
    link.parts.append(own)
    client.unnamed = link.server.unnamed = own
    link.outstanding.push_noted(PARSE | UNNAMED, Pending(UNNAMED_PARSED, unnamed=old))
    return True


def _put_gone(link: Link) -> None:
    """Make sure that the server has the statement that a client's DEALLOCATE is to be about."""
    link.parts.append(GONE_MESSAGES)
    link.outstanding.push(CLOSE | SKIP)
    link.outstanding.push(PARSE | SKIP)


def _deallocates(own: bytes | None) -> bytes:
    """The client's name that its unnamed statement, as `_parse_deallocate` has made it, deallocates; empty for any other."""
    if own is None or len(own) <= TEXT_AT or own[TEXT_AT] != LETTER_D or not own.startswith(DEALLOCATE_GONE, TEXT_AT):
        return b""
    return own[TEXT_AT + len(DEALLOCATE_GONE) : own.index(b"\0", TEXT_AT)]


# --- Bind, Describe, Close ----------------------------------------------------------------------------------------------
def _bind(link: Link, client: ClientSession) -> bool:
    framer = link.from_client_framer
    start = framer.start
    stop = min(framer.size, framer.stop)
    portal_end = nul_at(framer.data, start + HEADER_SIZE, stop)
    name_end: i64 = -1
    if portal_end >= 0:
        name_end = nul_at(framer.data, portal_end + 1, stop)
    if name_end < 0:
        return _names_missing(link)
    if name_end == portal_end + 1:
        if link.watch:
            session_state.bound_unnamed(link, client)
        _ensure_unnamed(link, client)
        own = client.unnamed
        if own is None or len(own) <= TEXT_AT or own[TEXT_AT] != LETTER_D:
            link.outstanding.push(BIND)
        else:
            _bind_deallocate(link, client, own)
        return True
    known = client.statements
    name = framer.data[portal_end + 1 : name_end]
    statement = known.get(name) if known is not None else None
    if statement is None:
        link.outstanding.push(BIND)  # the server says 26000, or knows it from an SQL PREPARE
        return True
    link.server.pool.stats.bind_count += 1
    if link.watch:
        session_state.bound(link, client, statement)
    _ensure(link, statement)
    leave_out(link, start, name_end + 1)
    rest = framer.stop - name_end - 1
    if portal_end != start + HEADER_SIZE:
        portal = framer.data[start + HEADER_SIZE : portal_end]
        link.parts.append(frontend.bind_head(portal, statement.name, int(rest)))
    else:
        link.parts.append(statement.bind_head(rest))
    link.outstanding.push_named(BIND | statement.number << NUMBER_SHIFT, name)
    return True


def _bind_deallocate(link: Link, client: ClientSession, own: bytes) -> None:
    """A Bind of an unnamed statement that begins with a D."""
    name = _deallocates(own)
    known = client.statements
    statement = known.get(name) if known is not None and name else None
    if statement is None or known is None:
        link.outstanding.push(BIND)
        return
    link.outstanding.push_noted(BIND, Pending(CLOSE_FAKED, name, statement))
    statement.holders += 1
    known.remove(name)


def _describe_or_close(link: Link, client: ClientSession) -> bool:
    framer = link.from_client_framer
    if framer.stop - framer.start > MAX_NAME:
        raise errors.ProtocolViolation(errors.BAD_PACKET.with_detail("a name is too long"))
    if not framer.hold():
        return False
    start = framer.start
    stop = framer.stop
    kind = framer.kind
    outstanding = link.outstanding
    if stop - start < HEADER_SIZE + 2 or framer.data[stop - 1] != 0 or framer.data[start + HEADER_SIZE] != OF_STATEMENT:
        outstanding.push(kind)  # a portal's, or a broken one: the server's affair
        return True
    name = framer.data[start + HEADER_SIZE + 1 : stop - 1]
    if not name:
        if kind == DESCRIBE:
            _ensure_unnamed(link, client)
            outstanding.push(DESCRIBE)
        else:
            old = client.unnamed
            client.unnamed = None
            link.server.unnamed = None
            outstanding.push_noted(CLOSE | UNNAMED, Pending(UNNAMED_PARSED, unnamed=old))
        return True
    known = client.statements
    statement = known.get(name) if known is not None else None
    if kind == CLOSE:
        if statement is None or known is None:
            outstanding.push(CLOSE)  # PostgreSQL answers CloseComplete; it may be an SQL PREPARE's
            return True
        leave_out(link, start, stop)
        if outstanding.is_empty:
            known.remove(name)
            client.write(CLOSE_COMPLETE_MESSAGE)
        else:
            outstanding.push_noted(CLOSE | FAKE, Pending(CLOSE_FAKED, name, statement))
            statement.holders += 1  # the note holds it until the Close cannot be taken back any more
            known.remove(name)
        return True
    if statement is None:
        outstanding.push(DESCRIBE)
        return True
    _ensure(link, statement)
    leave_out(link, start, stop)
    link.parts.append(frontend.message(DESCRIBE, b"S" + statement.name + b"\0"))
    outstanding.push_named(DESCRIBE | statement.number << NUMBER_SHIFT, name)
    return True


def _names_missing(link: Link) -> bool:
    """The names of a Bind are not all there: wait for them, within reason."""
    framer = link.from_client_framer
    if framer.stop <= framer.size:
        link.outstanding.push(BIND)  # broken: the server says so
        return True
    have = framer.size - framer.start
    if have > MAX_NAME:
        raise errors.ProtocolViolation(errors.BAD_PACKET.with_detail("Bind without the end of its names"))
    framer.hold_until(have + 1)
    return False


# --- what the server needs first ----------------------------------------------------------------------------------------
def leave_out(link: Link, start: i64, stop: i64) -> None:
    """Bytes of the client's chunk that the server must not see."""
    if start > link.mark:
        link.parts.append(link.from_client_framer.data[link.mark : start])
    link.mark = stop


def _flush_before(link: Link) -> None:
    """What stands before the message under way goes before what is put in now."""
    leave_out(link, link.from_client_framer.start, link.from_client_framer.start)


def _ensure(link: Link, statement: Statement) -> None:
    """Put a Parse in when the server does not have `statement`."""
    server = link.server
    if server.statements.has(statement):
        return
    _flush_before(link)
    _make_room(link)
    server.statements.add(statement)
    server.pool.stats.server_parse_count += 1
    link.parts.append(frontend.parse(statement.name, statement.rest))
    link.outstanding.push_noted(
        PARSE | SKIP | statement.number << NUMBER_SHIFT, Pending(PARSE_INJECTED, statement=statement)
    )


def _make_room(link: Link) -> None:
    """One statement is about to be added: close what is too much, least recently used first."""
    server = link.server
    limit = server.pool.limits.max_prepared_statements - 1
    prepared = server.statements.surplus(limit)
    while prepared is not None:
        prepared.statement.holders += 1  # the note holds it until the Close is known to have happened
        link.parts.append(frontend.close_statement(prepared.name))
        link.outstanding.push_noted(CLOSE | SKIP, Pending(CLOSE_INJECTED, prepared=prepared))
        prepared = server.statements.surplus(limit)


def _ensure_unnamed(link: Link, client: ClientSession) -> None:
    """The server's unnamed statement has to be the client's own, or none."""
    server = link.server
    own = client.unnamed
    if own is server.unnamed:
        return
    _flush_before(link)
    if own is not None and len(own) > UNNAMED_HEAD:
        if _deallocates(own):
            _put_gone(link)
        link.parts.append(own)
        link.outstanding.push_noted(PARSE | SKIP | UNNAMED, Pending(UNNAMED_INJECTED))
        server.unnamed = own
    else:
        link.parts.append(frontend.CLOSE_UNNAMED_MESSAGE)
        link.outstanding.push_noted(CLOSE | SKIP, Pending(UNNAMED_INJECTED))
        server.unnamed = None
