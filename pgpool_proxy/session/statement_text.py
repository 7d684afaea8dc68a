"""The text of the statement that a client runs, for the log: the first of what it has sent in one go.

Asked for only where `Context.text_chars` is not 0 (log_slow_queries, leak_detection_threshold). Values of Bind are never read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy.wire.codes import BIND, HEADER_SIZE, PARSE, QUERY
from pgpool_proxy.wire.framing import int32_at, nul_at

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession

MAX_MESSAGES: Final = 8  # that are looked at: a Close or two may stand before what is run
BYTES_A_CHARACTER: Final = 4


def text_of(client: ClientSession, data: bytes, at: i64) -> bytes:
    """The text in the messages from `at` on, cut off at `text_chars` characters, as bytes of whatever encoding; empty where
    none is seen."""
    size: i64 = len(data)
    limit = client.context.text_chars * BYTES_A_CHARACTER
    seen: i64 = 0
    while seen < MAX_MESSAGES and at + HEADER_SIZE < size:
        kind: i64 = data[at]
        if kind == QUERY:
            return _cut(data, at + HEADER_SIZE, limit)
        if kind == PARSE:
            return _parsed(data, at, limit)
        if kind == BIND:
            return _bound(client, data, at, limit)
        at += int32_at(data, at + 1) + 1
        seen += 1
    return b""


def _cut(data: bytes, start: i64, limit: i64) -> bytes:
    stop: i64 = len(data)
    if stop > start + limit:
        stop = start + limit
    end = nul_at(data, start, stop)
    return data[start : stop if end < 0 else end]


def _parsed(message: bytes, at: i64, limit: i64) -> bytes:
    """Of a Parse message at `at`."""
    end = nul_at(message, at + HEADER_SIZE, len(message))
    return b"" if end < 0 else _cut(message, end + 1, limit)


def _bound(client: ClientSession, data: bytes, at: i64, limit: i64) -> bytes:
    """Of the statement that a Bind names."""
    portal_end = nul_at(data, at + HEADER_SIZE, len(data))
    if portal_end < 0:
        return b""
    name_end = nul_at(data, portal_end + 1, len(data))
    if name_end < 0:
        return b""
    name = data[portal_end + 1 : name_end]
    if not name:
        return b"" if client.unnamed is None else _parsed(client.unnamed, 0, limit)
    statement = None if client.statements is None else client.statements.get(name)
    return b"" if statement is None else _cut(statement.rest, 0, limit)
