"""What clients leave behind on a server, seen by command tags: the setting session_state. Nothing here runs when it is ignore.

Theory of operation
-------------------
`Link.take` switches the watch on (`Link.watch`). From then on the hints of each text that is run (state_texts.py) are collected
until the answers to it are complete, and each CommandComplete is turned into bits of `held`, one bit a kind of state. `doubt`
has those bits of `held` that may be wrong in the safe direction: a RESET of one parameter leaves it open whether others remain.

Transactions: SET, LISTEN, cursors and temporary tables come and go with theirs, so `before` is what was held when the last one
ended, to return to at a rollback; PREPARE, LOAD and advisory locks stay. `ever` is what was held at any time since, to return
to at ROLLBACK TO SAVEPOINT, of which we cannot say what it takes back.

warn    counts what stays at the end of a transaction, and has it logged once for each client and kind
reset   has a server that holds anything cleaned before its next client (`Link.end`), by the statements that are enough
pin     makes the link keep its server (`Link.keeps`) while `held` is not 0. What is in doubt is asked of the server itself
        (`verify`, a query of our own whose answers nobody sees), so that pins end when their reason does. At the end the
        server is cleaned as with reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy.pool.pool import IGNORE, PIN, SESSION, WARN
from pgpool_proxy.pool.stats import STATE_KINDS
from pgpool_proxy.session import state_texts as texts
from pgpool_proxy.session.parameters import literal
from pgpool_proxy.wire.codes import HEADER_SIZE, STATUS_IDLE

if TYPE_CHECKING:
    from pgpool_proxy.pool.pool import PoolLimits
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.link import Link
    from pgpool_proxy.session.prepared_statements import Statement

# --- kinds, in the order of STATE_KINDS -----------------------------------------------------------------------------------
SETTINGS: Final = 1
ROLE: Final = 1 << 1
LISTENING: Final = 1 << 2
PREPARED: Final = 1 << 3
CURSORS: Final = 1 << 4
TEMP: Final = 1 << 5
LIBRARY: Final = 1 << 6
LOCKS: Final = 1 << 7
EVERYTHING: Final = 255
TRANSACTIONAL: Final = SETTINGS | ROLE | LISTENING | CURSORS | TEMP

LINKED: Final = 2  # of session/link.py
STALLED: Final = 4
PROBING: Final = 6

TRUNCATED: Final = texts.CUT
BOUNDARIES: Final = (b"BEGIN\0", b"START TRANSACTION\0", b"SAVEPOINT\0", b"RELEASE\0")
NO_ROWS: Final = b"SELECT 0\0"

CLEANING: Final = (
    (ROLE, b"RESET SESSION AUTHORIZATION; RESET ROLE"),  # first: the other statements may not be that user's to give
    (CURSORS, b"CLOSE ALL"),
    (SETTINGS, b"RESET ALL"),
    (PREPARED, b"DEALLOCATE ALL"),
    (LISTENING, b"UNLISTEN *"),
    (LOCKS, b"SELECT pg_catalog.pg_advisory_unlock_all()"),
    (TEMP, b"DISCARD TEMP"),
)
"""What DISCARD ALL does, in parts; in one query with others it is not allowed itself. A library stays."""

EVERYTHING_GOES: Final = b"DISCARD ALL"

QUESTIONS: Final = (
    (LISTENING, b"SELECT 1 FROM pg_catalog.pg_listening_channels() LIMIT 1"),
    (PREPARED, b"SELECT 1 FROM pg_catalog.pg_prepared_statements WHERE from_sql LIMIT 1"),
    (CURSORS, b"SELECT 1 FROM pg_catalog.pg_cursors WHERE is_holdable LIMIT 1"),
    (TEMP, b"SELECT 1 FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() LIMIT 1"),
    (LOCKS, b"SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid() LIMIT 1"),
)
"""A question for each kind: no row means that nothing of it remains. ROLE and SETTINGS depend on the client."""


class SessionState:
    """What the present client of one server has left there, as far as it can be seen."""

    def __init__(self) -> None:
        self.mode: i64 = IGNORE
        self.held: i64 = 0
        self.doubt: i64 = 0
        self.before: i64 = 0
        self.ever: i64 = 0
        self.remained: i64 = 0  # was held at the end of a transaction, and not plainly given back since: to be cleaned
        self.hints: i64 = 0  # of the texts whose answers are not complete
        self.gained: i64 = 0  # kinds that were met in this transaction
        self.counted: i64 = 0  # kinds that were met in transactions which have ended, and are not counted yet
        self.failed: bool = False  # an error since the last ReadyForQuery
        self.custom: bool = False  # a parameter was set which pg_settings does not show
        self.asked: list[int] = []  # the kinds of `verify`'s questions that are not answered yet
        self.unnamed: bytes | None = None  # the unnamed Parse that was looked at last
        self.unnamed_hints: i64 = 0

    def start(self, mode: i64) -> None:
        """Another client has the server."""
        self.mode = mode
        self.held = self.doubt = self.before = self.ever = self.remained = 0
        self.hints = self.gained = self.counted = 0
        self.failed = self.custom = False
        self.unnamed = None
        self.asked.clear()

    # --- bits -------------------------------------------------------------------------------------------------------------
    def gain(self, kinds: i64, in_doubt: bool = False) -> None:
        self.held |= kinds
        self.ever |= kinds
        self.gained |= kinds
        if in_doubt:
            self.doubt |= kinds

    def question(self, kinds: i64) -> None:
        """A part of it was given back: whether anything remains only the server knows."""
        self.doubt |= kinds & self.held

    def clear(self, kinds: i64) -> None:
        """All of it was given back."""
        self.held &= ~kinds
        self.doubt &= ~kinds
        self.remained &= ~kinds
        if kinds & SETTINGS:
            self.custom = False

    def commit(self) -> None:
        self.before = self.ever = self.held
        self.counted |= self.gained
        self.gained = 0

    def roll_back(self) -> None:
        """The transaction has left nothing but what is not transactional; what it gave back is there again, if it was there."""
        returned = self.before & ~self.held & TRANSACTIONAL
        self.held = (self.before & TRANSACTIONAL) | (self.held & ~TRANSACTIONAL)
        self.doubt = (self.doubt & self.held) | returned
        if returned & SETTINGS:
            self.custom = True
        self.before = self.ever = self.held
        self.counted |= self.gained & ~TRANSACTIONAL
        self.gained = 0

    def __repr__(self) -> str:
        return f"<SessionState {names(self.held)} doubt={names(self.doubt)}>"


def names(kinds: i64) -> str:
    """Kinds as SHOW and the log print them."""
    return ",".join([name for at, name in enumerate(STATE_KINDS) if int(kinds) >> at & 1])


def begin(link: Link, limits: PoolLimits) -> bool:
    """A link begins, and session_state is not ignore: is there anything to watch?

    In session mode a server has one client until it is reset, so that only warn has a meaning there.
    """
    mode = limits.session_state
    if limits.pool_mode == SESSION and mode != WARN:
        return False
    link.session_state.start(mode)
    return True


def pinned(link: Link) -> str:
    """Why the link keeps its server, although its pool does not say so; empty when it does not."""
    state = link.session_state
    return names(state.held) if link.watch and state.mode == PIN and link.keeps else ""


# --- what the client sends --------------------------------------------------------------------------------------------------
def query(link: Link, client: ClientSession) -> bool:
    """A simple Query. False: its first bytes are not all there."""
    framer = link.from_client_framer
    if not framer.hold_until(min(framer.stop - framer.start, HEADER_SIZE + texts.MAX_TEXT)):
        return False
    if not link.outstanding.skipping:
        text = framer.data[framer.start + HEADER_SIZE : min(framer.stop, framer.start + HEADER_SIZE + texts.MAX_TEXT + 1)]
        _runs(link, texts.scan(_up_to_nul(text), client.context.tracked))
    return True


def parsed(link: Link, client: ClientSession) -> bool:
    """A Parse on a link that does not turn names over, so that the Binds do not lead to its text. False: as above."""
    framer = link.from_client_framer
    if not framer.hold_until(min(framer.stop - framer.start, HEADER_SIZE + texts.MAX_TEXT)):
        return False
    body = framer.data[framer.start + HEADER_SIZE : min(framer.stop, framer.start + HEADER_SIZE + texts.MAX_TEXT + 1)]
    _runs(link, texts.scan(_up_to_nul(body.partition(b"\0")[2]), client.context.tracked))
    return True


def bound(link: Link, client: ClientSession, statement: Statement) -> None:
    """A Bind of a shared statement."""
    if statement.hints < 0:
        statement.hints = texts.scan(_up_to_nul(statement.rest[: texts.MAX_TEXT + 1]), client.context.tracked)
    _runs(link, statement.hints)


def bound_unnamed(link: Link, client: ClientSession) -> None:
    """A Bind of the unnamed statement, whose Parse is kept unless it is very long."""
    state = link.session_state
    own = client.unnamed
    if own is None:
        return
    if own is not state.unnamed:
        state.unnamed = own
        if len(own) <= HEADER_SIZE:
            state.unnamed_hints = TRUNCATED
        else:
            text = own[HEADER_SIZE + 1 : HEADER_SIZE + texts.MAX_TEXT + 2]
            state.unnamed_hints = texts.scan(_up_to_nul(text), client.context.tracked)
    _runs(link, state.unnamed_hints)


def _up_to_nul(text: bytes) -> bytes:
    return text.partition(b"\0")[0]


def _runs(link: Link, hints: i64) -> None:
    """A text with these hints is about to run. A lock outlives the error of its own statement, so it counts from now."""
    state = link.session_state
    state.hints |= hints
    if hints & texts.LOCKS:
        state.gain(LOCKS, in_doubt=True)


# --- what the server answers ------------------------------------------------------------------------------------------------
def command(link: Link, tag: bytes) -> None:
    """A CommandComplete; `tag` has its NUL."""
    state = link.session_state
    hints = state.hints
    if tag == b"SET\0":
        _set(link, state, hints)
    elif tag == b"RESET\0":
        _reset(state, hints)
    elif tag == b"COMMIT\0" or tag == b"PREPARE TRANSACTION\0":
        state.commit()
        return
    elif tag == b"ROLLBACK\0":
        if hints & (texts.ROLLS_BACK_TO | texts.CUT):
            if state.ever & ~state.held & SETTINGS:
                state.custom = True
            state.held |= state.ever
            state.question(state.held)
        else:
            state.roll_back()
        return
    elif tag in BOUNDARIES:
        return
    elif tag == b"LISTEN\0":
        state.gain(LISTENING)
    elif tag == b"UNLISTEN\0":
        if hints & texts.UNLISTENS_ALL and not hints & texts.UNLISTENS_ONE:
            state.clear(LISTENING)
        else:
            state.question(LISTENING)
    elif tag == b"PREPARE\0":
        state.gain(PREPARED)
    elif tag == b"DEALLOCATE\0":
        state.question(PREPARED)
    elif tag == b"DEALLOCATE ALL\0":
        state.clear(PREPARED)
    elif tag == b"DECLARE CURSOR\0":
        if hints & (texts.HOLDS | texts.CUT):
            state.gain(CURSORS, in_doubt=not hints & texts.HOLDS)
    elif tag == b"CLOSE CURSOR\0":
        state.question(CURSORS)
    elif tag == b"CLOSE CURSOR ALL\0":
        state.clear(CURSORS)
    elif tag == b"LOAD\0":
        state.gain(LIBRARY)
    elif tag == b"DISCARD ALL\0":
        state.clear(EVERYTHING & ~LIBRARY)
    elif tag == b"DISCARD TEMP\0":
        state.clear(TEMP)
    elif tag.startswith(b"DROP "):
        state.question(TEMP)
    elif tag.startswith((b"CREATE ", b"SELECT ")):
        if hints & texts.MAKES_TEMP:
            state.gain(TEMP)
        elif hints & texts.CUT and tag.startswith(b"CREATE "):
            state.gain(TEMP, in_doubt=True)
    _configured(link, state, hints)
    if hints & (texts.UNLOCKS | texts.UNLOCKS_ALL):
        if hints & (texts.UNLOCKS | texts.LOCKS):
            state.question(LOCKS)
        else:
            state.clear(LOCKS)


def _set(link: Link, state: SessionState, hints: i64) -> None:
    if hints & texts.SETS_ROLE:
        state.gain(ROLE)
    if hints & texts.RESETS_ROLE:
        state.question(ROLE)
    if hints & texts.SETS or not hints & texts.ALL_SETS:
        state.gain(SETTINGS)
        if hints & texts.SETS_CUSTOM or not hints & texts.SETS:
            state.custom = True
    elif (hints & texts.SETS_EXTRA and not _reports_all(link)) or (hints & texts.SETS_PATH and not _reports_path(link)):
        state.gain(SETTINGS)
    if hints & texts.RESETS_ONE:
        state.question(SETTINGS)


def _reset(state: SessionState, hints: i64) -> None:
    if hints & texts.RESETS_ALL and not hints & texts.RESETS_ONE:
        state.clear(SETTINGS)
    elif hints & texts.RESETS_ONE or not hints & texts.RESETS_ROLE:
        state.question(SETTINGS)
    if hints & texts.RESETS_ROLE or not hints & (texts.RESETS_ONE | texts.RESETS_ALL):
        state.question(ROLE)


def _configured(link: Link, state: SessionState, hints: i64) -> None:
    """A command that may have called set_config()."""
    if (
        hints & texts.CONFIGURES
        or (hints & texts.CONFIGURES_EXTRA and not _reports_all(link))
        or (hints & texts.CONFIGURES_PATH and not _reports_path(link))
    ):
        state.gain(SETTINGS, in_doubt=True)
        if hints & texts.CONFIGURES_CUSTOM:
            state.custom = True
    if hints & texts.CONFIGURES_ROLE:
        state.gain(ROLE, in_doubt=True)


def _reports_all(link: Link) -> bool:
    """Does the server report every parameter that is to follow the client because a setting says so?"""
    server = link.server
    return None not in server.parameters.values[: server.context.tracked.asked_for]


def _reports_path(link: Link) -> bool:
    """Does it report search_path (PostgreSQL 18), so that it follows the client?"""
    return link.server.parameters.values[-1] is not None


def ready(link: Link, status: i64, now: float) -> None:
    """A ReadyForQuery of the client's own; everything that is due at it is done here."""
    state = link.session_state
    if status == STATUS_IDLE:
        if state.failed:
            state.roll_back()
        else:
            state.commit()
        state.remained |= state.held & ~state.doubt
    state.failed = False
    if not link.outstanding.is_empty:
        return
    state.hints = 0
    if status == STATUS_IDLE:
        _count(link, state)
        if state.mode == PIN and (link.phase == LINKED or link.phase == STALLED):
            link.keeps = state.held != 0
    link.end_of_query(status, now)
    verify(link)


def _count(link: Link, state: SessionState) -> None:
    seen = state.counted & state.held
    state.counted = 0
    if not seen:
        return
    link.server.pool.stats.saw_state(seen)
    client = link.client
    if state.mode == WARN and client is not None:
        new = seen & ~client.states_seen
        if new:
            client.states_seen |= new
            client.context.host.state_seen(client, names(new))


# --- what is in doubt is asked of the server ----------------------------------------------------------------------------
def verify(link: Link) -> None:
    """Before a pinned link rests: ask the server what remains of what is in doubt."""
    state = link.session_state
    client = link.client
    if not state.doubt or state.mode != PIN or client is None or not link.keeps:
        return
    if link.phase != LINKED or not link.ready or link.copy_in or link.from_client_framer.remaining:
        return
    parts: list[bytes] = []
    for kind, sql in QUESTIONS:
        if state.doubt & kind:
            parts.append(sql)
            state.asked.append(kind)
    if state.doubt & ROLE:
        parts.append(
            b"SELECT 1 WHERE pg_catalog.current_setting('role') <> 'none' OR session_user <> "
            + literal(link.server.pool.user.name.encode())
        )
        state.asked.append(ROLE)
    if state.doubt & SETTINGS and not state.custom:
        values = link.server.parameters.values
        names = client.context.tracked.names
        tracked = b",".join([literal(name.lower()) for at, name in enumerate(names) if values[at] is not None])
        parts.append(
            b"SELECT 1 FROM pg_catalog.pg_settings WHERE source = 'session' AND pg_catalog.lower(name) NOT IN ("
            + tracked + b")" + _but_for(client.parameters.extras) + b" LIMIT 1"
        )
        state.asked.append(SETTINGS)
    state.doubt = 0
    if parts:
        link.phase = PROBING
        link.run(b";".join(parts))


def _but_for(extras: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Conditions that leave out what was set for the client itself, as long as it has that value, in the server's spelling."""
    parts: list[bytes] = []
    for name, value in extras:
        parts.append(
            b" AND NOT (pg_catalog.lower(name) = " + literal(name)
            + b" AND pg_catalog.current_setting(name) = " + literal(value) + b")"
        )
    return b"".join(parts)


def answered(link: Link, tag: bytes) -> None:
    """One of `verify`'s questions is answered."""
    state = link.session_state
    if state.asked:
        kind = state.asked.pop(0)
        if tag == NO_ROWS:
            state.held &= ~i64(kind)


def verified(link: Link, now: float) -> None:
    """All of them are, or one has failed: what was not answered counts as held."""
    state = link.session_state
    state.asked.clear()
    state.before = state.ever = state.held
    state.remained |= state.held
    link.phase = LINKED
    link.ready = link.status == STATUS_IDLE
    link.keeps = state.held != 0
    client = link.client
    if client is not None and client.pending:
        client.go_on(link, now)


# --- at the end of the link -------------------------------------------------------------------------------------------------
def touched(link: Link) -> i64:
    """The link ends: the kinds that have to be cleaned before the server's next client."""
    state = link.session_state
    return 0 if state.mode == WARN else state.held | state.remained


def cleaning(kinds: i64) -> bytes:
    """The statements that clean these kinds; a library cannot be unloaded."""
    return b"; ".join([sql for kind, sql in CLEANING if kinds & kind])
