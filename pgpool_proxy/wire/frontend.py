"""Client-to-server messages: build the few that we send. Bodies are laid out as on the protocol page "Message Formats"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pgpool_proxy.wire.codes import BYTES, CANCEL_REQUEST, CLOSE, PARSE, PASSWORD, PROTOCOL_3_0, QUERY, SSL_REQUEST

TERMINATE_MESSAGE: Final = b"X\x00\x00\x00\x04"
SYNC_MESSAGE: Final = b"S\x00\x00\x00\x04"
FLUSH_MESSAGE: Final = b"H\x00\x00\x00\x04"
SSL_REQUEST_PACKET: Final = (8).to_bytes(4, "big") + SSL_REQUEST.to_bytes(4, "big")
CLOSE_UNNAMED_MESSAGE: Final = b"C\x00\x00\x00\x06S\x00"


def message(kind: int, body: bytes) -> bytes:
    """A whole message of type `kind`."""
    return BYTES[kind] + (len(body) + 4).to_bytes(4, "big") + body


def startup(parameters: Sequence[tuple[bytes, bytes]], version: int = PROTOCOL_3_0) -> bytes:
    """StartupMessage with (name, value) pairs in their order."""
    body = version.to_bytes(4, "big") + b"".join([n + b"\0" + v + b"\0" for n, v in parameters]) + b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


def cancel_request(key: bytes) -> bytes:
    """CancelRequest for a BackendKeyData body (process id and secret)."""
    return (len(key) + 8).to_bytes(4, "big") + CANCEL_REQUEST.to_bytes(4, "big") + key


def query(text: bytes) -> bytes:
    return message(QUERY, text + b"\0")


def password(body: bytes) -> bytes:
    """PasswordMessage, SASLInitialResponse or SASLResponse: the body is the exchange's."""
    return message(PASSWORD, body)


def parse(name: bytes, rest: bytes) -> bytes:
    """Parse under `name`; `rest` is query text, NUL and the parameter types, as they stood in the client's message."""
    return message(PARSE, name + b"\0" + rest)


def close_statement(name: bytes) -> bytes:
    return message(CLOSE, b"S" + name + b"\0")


def bind_head(portal: bytes, statement: bytes, rest_size: int) -> bytes:
    """The head of a Bind: type, length and both names; `rest_size` bytes of body follow. HOT: once for each Bind."""
    size = len(portal) + len(statement) + 2 + rest_size + 4
    return b"".join([b"B", size.to_bytes(4, "big"), portal, b"\0", statement, b"\0"])
