"""Server-to-client messages: build the few that we send, decode the few that we inspect.

Bodies are what stands behind type and length (protocol page "Message Formats"). Text is bytes throughout: its encoding is
the affair of client and server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.wire.codes import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    BYTES,
    COMMAND_COMPLETE,
    DATA_ROW,
    ERROR_RESPONSE,
    NEGOTIATE_PROTOCOL_VERSION,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
)
from pgpool_proxy.wire.framing import int32_at

PARSE_COMPLETE_MESSAGE: Final = b"1\x00\x00\x00\x04"
CLOSE_COMPLETE_MESSAGE: Final = b"3\x00\x00\x00\x04"
EMPTY_QUERY_MESSAGE: Final = b"I\x00\x00\x00\x04"
NO_DATA_MESSAGE: Final = b"n\x00\x00\x00\x04"
BIND_COMPLETE_MESSAGE: Final = b"2\x00\x00\x00\x04"
READY_IDLE: Final = b"Z\x00\x00\x00\x05I"
AUTHENTICATION_OK: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x00"
SHORT_KEY_HEAD: Final = b"K\x00\x00\x00\x0c"  # of BackendKeyData before protocol 3.2


def message(kind: int, body: bytes) -> bytes:
    """A whole message of type `kind`."""
    return BYTES[kind] + (len(body) + 4).to_bytes(4, "big") + body


def authentication(code: int, payload: bytes = b"") -> bytes:
    """Authentication* with request `code` (0 is AuthenticationOk)."""
    return message(AUTHENTICATION, code.to_bytes(4, "big") + payload)


def parameter_status(name: bytes, value: bytes) -> bytes:
    return message(PARAMETER_STATUS, name + b"\0" + value + b"\0")


def backend_key_data(key: bytes) -> bytes:
    """BackendKeyData; `key` is process id (4 bytes) and secret (4 bytes, up to 256 in protocol 3.2)."""
    return SHORT_KEY_HEAD + key if len(key) == 8 else message(BACKEND_KEY_DATA, key)


def ready_for_query(status: int) -> bytes:
    return message(READY_FOR_QUERY, bytes((status,)))


def negotiate_protocol_version(newest_minor: int, unknown_options: Sequence[bytes]) -> bytes:
    """NegotiateProtocolVersion: the newest protocol that we speak, as the whole number 3 << 16 | minor."""
    body = newest_minor.to_bytes(4, "big") + len(unknown_options).to_bytes(4, "big")
    return message(NEGOTIATE_PROTOCOL_VERSION, body + b"".join([name + b"\0" for name in unknown_options]))


def command_complete(tag: bytes) -> bytes:
    return message(COMMAND_COMPLETE, tag + b"\0")


def _fields(report: Report, severity: str) -> bytes:
    parts = [
        b"S" + severity.encode(),
        b"V" + severity.encode(),
        b"C" + report.sqlstate.encode(),
        b"M" + _text(report.message),
    ]
    if report.detail:
        parts.append(b"D" + _text(report.detail))
    if report.hint:
        parts.append(b"H" + _text(report.hint))
    return b"\0".join(parts) + b"\0\0"


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"?")


def error_response(report: Report) -> bytes:
    """ErrorResponse with the fields S, V, C, M and, where there are any, D and H."""
    return message(ERROR_RESPONSE, _fields(report, report.severity))


def notice_response(report: Report) -> bytes:
    """NoticeResponse; severity NOTICE, SQLSTATE 00000 unless the report says otherwise."""
    return message(NOTICE_RESPONSE, _fields(report, "NOTICE"))


def row_description(columns: Sequence[tuple[str, int, int]]) -> bytes:
    """RowDescription for text columns given as (name, type OID, type size)."""
    parts = [len(columns).to_bytes(2, "big")]
    for name, type_oid, type_size in columns:
        parts.append(name.encode() + b"\0" + bytes(6))  # table OID and attribute number: none
        parts.append(type_oid.to_bytes(4, "big") + type_size.to_bytes(2, "big", signed=True))
        parts.append(b"\xff\xff\xff\xff\x00\x00")  # type modifier -1, format text
    return message(ROW_DESCRIPTION, b"".join(parts))


def data_row(values: Sequence[bytes | None]) -> bytes:
    """DataRow of text values; None is NULL."""
    parts = [len(values).to_bytes(2, "big")]
    for value in values:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(len(value).to_bytes(4, "big") + value)
    return message(DATA_ROW, b"".join(parts))


def data_row_values(body: bytes) -> list[bytes | None]:
    """The values of a DataRow's body; None is NULL. Raises `ProtocolViolation` when it is cut short."""
    values: list[bytes | None] = []
    at: i64 = 2
    size: i64 = len(body)
    while at + 4 <= size:
        length = int32_at(body, at)
        at += 4
        if length < 0 or length == 0xFFFFFFFF:
            values.append(None)
        elif at + length > size:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("broken DataRow"))
        else:
            values.append(body[at : at + length])
            at += length
    return values


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse body by their one-letter code; broken ones are left out.

    Nothing is promised to be there: a hostile server may send no SQLSTATE at all (CVE-2026-6666).
    """
    fields: dict[str, str] = {}
    for part in body.split(b"\0"):
        if len(part) > 1:
            code = chr(part[0])
            if code not in fields:
                fields[code] = part[1:].decode("utf-8", "replace")
    return fields


def error_report(body: bytes) -> Report:
    """An ErrorResponse as the report that it makes: what is missing has a neutral value."""
    fields = error_fields(body)
    return Report(
        message=fields.get("M", "(no message)"),
        sqlstate=fields.get("C", "XX000"),
        severity=fields.get("V", fields.get("S", "ERROR")),
        detail=fields.get("D", ""),
        hint=fields.get("H", ""),
    )


def parameter_status_pair(body: bytes) -> tuple[bytes, bytes] | None:
    """(name, value) of a ParameterStatus body, or None where it is broken."""
    parts = body.split(b"\0")
    if len(parts) != 3 or parts[2] or not parts[0]:
        return None
    return parts[0], parts[1]
