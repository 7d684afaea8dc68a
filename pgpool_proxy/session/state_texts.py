"""What the text of a request may do to its session, as far as the command tag of the answer does not say it.

`scan` gives a mask of hints. A tag like SET does not tell `SET LOCAL` from `SET`, CREATE TABLE does not say that the table is
temporary, and a call of pg_advisory_lock() is a SELECT among others. Only the first `MAX_TEXT` bytes are looked at; a longer
text has the hint CUT. Strings, comments and bodies of functions are passed over, so nothing is found in them. No expression
below needs more than a bounded number of steps for each byte, whatever a client sends.
"""

from __future__ import annotations

import re
from typing import Final

from mypy_extensions import i64

from pgpool_proxy.session.parameters import ALWAYS_TRACKED, TrackedParameters

MAX_TEXT: Final = 4096  # bytes; statements that leave something behind are short, and each one is scanned

# --- hints --------------------------------------------------------------------------------------------------------------
SETS: Final = 1  # SET of a parameter that does not follow the client
SETS_CUSTOM: Final = 1 << 1  # among them one whose name has a dot: pg_settings does not show it
SETS_EXTRA: Final = 1 << 2  # SET of one of track_extra_parameters, which follows only if the server reports it
SETS_ROLE: Final = 1 << 3  # SET ROLE, SET SESSION AUTHORIZATION
SETS_NOTHING: Final = 1 << 4  # a SET that leaves nothing: LOCAL, TRANSACTION, CONSTRAINTS, TO DEFAULT, a tracked parameter
RESETS_ONE: Final = 1 << 5
RESETS_ALL: Final = 1 << 6
RESETS_ROLE: Final = 1 << 7
CONFIGURES: Final = 1 << 8  # set_config(..., false)
CONFIGURES_CUSTOM: Final = 1 << 9  # with a dotted name, or one that is not a literal
CONFIGURES_EXTRA: Final = 1 << 10
CONFIGURES_ROLE: Final = 1 << 11
MAKES_TEMP: Final = 1 << 12  # CREATE TEMP ..., SELECT INTO TEMP, CREATE ... pg_temp.x
HOLDS: Final = 1 << 13  # DECLARE ... WITH HOLD
LOCKS: Final = 1 << 14  # pg_advisory_lock() and its kin
UNLOCKS: Final = 1 << 15
UNLOCKS_ALL: Final = 1 << 16
UNLISTENS_ALL: Final = 1 << 17
UNLISTENS_ONE: Final = 1 << 18
ROLLS_BACK_TO: Final = 1 << 19  # ROLLBACK TO SAVEPOINT, whose tag is that of a whole ROLLBACK
CUT: Final = 1 << 20
SETS_PATH: Final = 1 << 21  # SET of search_path, which follows from PostgreSQL 18 on
CONFIGURES_PATH: Final = 1 << 22

ALL_SETS: Final = SETS | SETS_EXTRA | SETS_PATH | SETS_ROLE | SETS_NOTHING

WORDS: Final = (b"set", b"temp", b"hold", b"advisory", b"unlisten", b"rollback", b"abort")
"""A text without any of them has no hint: "set" is in RESET and set_config, too."""

_TOKEN: Final = re.compile(
    rb"""(?<!\w)[eE]'(?:[^'\\]|\\.)*+(?:'|\Z)
    | '[^']*(?:'|\Z)
    | "[^"]*(?:"|\Z)
    | --[^\n]*
    | /\*.*?(?:\*/|\Z)
    | (?<![\w$])\$((?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?)\$.*?(?:\$\1\$|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_SET_CONFIG: Final = re.compile(
    rb"\bset_config\s*\(\s*(?:e?'([^']*)'\s*,)?"
    rb"((?:[^()';]|'[^']*'){0,300}?,\s*(?:true|'t'|'true'|'on'|'1')(?:\s*::\s*bool\w*)?\s*\))?"
)
_NAME: Final = re.compile(rb'\s*"?([\w.$\x80-\xff]+)').match
_TO_DEFAULT: Final = re.compile(rb"(?:=|\bto\b)\s*default\s*\Z").search
_CREATE_TEMP: Final = re.compile(
    rb"create\s+(?:or\s+replace\s+)?(?:local\s+|global\s+)?(?:temp|temporary)\s|create\s[^(]*\bpg_temp\s*\."
).match
_INTO_TEMP: Final = re.compile(rb"\binto\s+(?:local\s+|global\s+)?(?:temp|temporary)\s").search
_DROPPED_AT_COMMIT: Final = re.compile(rb"\bon\s+commit\s+drop\b").search
_WITH_HOLD: Final = re.compile(rb"\bwith\s+hold\b").search
_LOCK: Final = re.compile(rb"\bpg_(?:try_)?advisory_lock(?:_shared)?\b").search
_UNLOCK: Final = re.compile(rb"\bpg_advisory_unlock(?:_shared)?\s*\(").search
_UNLOCK_ALL: Final = re.compile(rb"\bpg_advisory_unlock_all\b").search

_PASSING: Final = (b"local", b"transaction", b"constraints")  # SET of these ends with the transaction
_ROLES: Final = (b"role", b"session_authorization")
_NOBODY: Final = (b"none", b"default", b"=none", b"=default")


def scan(text: bytes, tracked: TrackedParameters) -> i64:
    """The hints of a text; 0 for most."""
    hints: i64 = 0
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT]
        hints = CUT
    low = text.lower()
    for word in WORDS:
        if word in low:
            break
    else:
        return hints
    if b"set_config" in low:
        hints |= _configures(low, tracked)
    for statement in _TOKEN.sub(_blank, text).lower().split(b";"):
        words = statement.split(None, 4)
        if not words:
            continue
        first = words[0]
        if first == b"set":
            hints |= _set(statement, words, tracked)
        elif first == b"reset":
            hints |= _reset(words)
        elif first == b"unlisten" or first == b"unlisten*":
            hints |= UNLISTENS_ALL if first == b"unlisten*" or words[1:2] == [b"*"] else UNLISTENS_ONE
        elif first == b"rollback" or first == b"abort":
            if b"to" in words[1:3]:
                hints |= ROLLS_BACK_TO
        elif first == b"declare":
            if _WITH_HOLD(statement) is not None:
                hints |= HOLDS
        elif b"temp" in statement:
            statement = statement.strip()
            if _CREATE_TEMP(statement) is not None or _INTO_TEMP(statement) is not None:
                hints |= 0 if _DROPPED_AT_COMMIT(statement) is not None else MAKES_TEMP
        if b"advisory" in statement:
            hints |= _locks(statement)
    return hints


def _blank(token: re.Match[bytes]) -> bytes:
    """What stands for a string, a comment or a quoted name: nothing in it ends a statement."""
    text = token.group()
    if text[:1] == b'"':
        return text.replace(b";", b"_")
    return b" " if text[:2] == b"--" or text[:2] == b"/*" else b"''"


def _set(statement: bytes, words: list[bytes], tracked: TrackedParameters) -> i64:
    """`SET [SESSION] name ...` and its other forms. 0: not understood."""
    rest = statement.lstrip()[3:]
    if len(words) < 2:
        return 0
    second = words[1]
    if second in _PASSING:
        return SETS_NOTHING
    third = words[2] if len(words) > 2 else b""
    if second == b"session":
        if third == b"characteristics":
            return SETS
        if third == b"authorization":
            return RESETS_ROLE | SETS_NOTHING if words[3:4] == [b"default"] else SETS_ROLE
        rest = rest.lstrip()[7:]
    match = _NAME(rest)
    if match is None:
        return 0
    name: bytes = match.group(1)
    if name in _ROLES:
        return RESETS_ROLE | SETS_NOTHING if words[-1].strip() in _NOBODY else SETS_ROLE
    if name == b"names" or name == b"time":
        return SETS_NOTHING  # client_encoding; TIME ZONE
    if name == b"schema":
        name = b"search_path"
    if _TO_DEFAULT(statement) is not None:
        return RESETS_ONE | SETS_NOTHING
    at = tracked.index(name)
    if at >= tracked.asked_for:
        return SETS_PATH
    if at >= len(ALWAYS_TRACKED):
        return SETS_EXTRA
    if at >= 0:
        return SETS_NOTHING
    return SETS | SETS_CUSTOM if b"." in name else SETS


def _reset(words: list[bytes]) -> i64:
    second = words[1] if len(words) > 1 else b""
    if second == b"all":
        return RESETS_ALL
    if second in _ROLES or second == b"session":
        return RESETS_ROLE
    return RESETS_ONE


def _configures(low: bytes, tracked: TrackedParameters) -> i64:
    """Calls of set_config() whose third argument is not plainly true."""
    hints: i64 = 0
    for match in _SET_CONFIG.finditer(low):
        if match.group(2) is not None:
            continue
        name = match.group(1)
        at = tracked.index(name) if name is not None else -1
        if at >= tracked.asked_for:
            hints |= CONFIGURES_PATH
        elif at >= len(ALWAYS_TRACKED):
            hints |= CONFIGURES_EXTRA
        elif name is not None and name in _ROLES:
            hints |= CONFIGURES_ROLE
        elif name is None or b"." in name:
            hints |= CONFIGURES | CONFIGURES_CUSTOM
        elif at < 0:
            hints |= CONFIGURES
    return hints


def _locks(statement: bytes) -> i64:
    hints: i64 = 0
    if _LOCK(statement) is not None:
        hints |= LOCKS
    if _UNLOCK(statement) is not None:
        hints |= UNLOCKS
    if _UNLOCK_ALL(statement) is not None:
        hints |= UNLOCKS_ALL
    return hints
