"""Rows as bytes: RowDescription and DataRow in text and binary format. Knows column types, not where values come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from pgpool_proxy.admin.control import Cell, Row
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.codes import ROW_DESCRIPTION

TEXT_FORMAT: Final = 0
BINARY_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Type:
    """A PostgreSQL type: its OID and its size in bytes, -1 when that varies."""

    name: str
    oid: int
    size: int


TEXT: Final = Type("text", 25, -1)
INT4: Final = Type("int4", 23, 4)
INT8: Final = Type("int8", 20, 8)
NUMERIC: Final = Type("numeric", 1700, -1)
BYTEA: Final = Type("bytea", 17, -1)


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: Type


def row_description(columns: Sequence[Column], formats: Sequence[int]) -> bytes:
    """RowDescription; `formats` has one code for each column."""
    parts = [len(columns).to_bytes(2, "big")]
    for column, code in zip(columns, formats, strict=True):
        parts.append(column.name.encode() + b"\0" + bytes(6))  # table OID and attribute number: none
        parts.append(column.type.oid.to_bytes(4, "big") + column.type.size.to_bytes(2, "big", signed=True))
        parts.append(b"\xff\xff\xff\xff" + code.to_bytes(2, "big"))  # type modifier -1
    return backend.message(ROW_DESCRIPTION, b"".join(parts))


def data_row(columns: Sequence[Column], formats: Sequence[int], row: Row) -> bytes:
    """DataRow of one row."""
    return backend.data_row(
        [
            binary(column.type, cell) if code == BINARY_FORMAT else text(column.type, cell)
            for column, code, cell in zip(columns, formats, row, strict=True)
        ]
    )


def text(kind: Type, cell: Cell) -> bytes | None:
    """A value in text format. client_encoding is UTF8: bytes of a name that are none become question marks."""
    if isinstance(cell, str):
        return cell.encode("utf-8", "replace")
    if cell is None:
        return None
    if isinstance(cell, Decimal):
        return f"{cell:f}".encode()
    return b"%d" % _bounded(kind, cell)


def binary(kind: Type, cell: Cell) -> bytes | None:
    """A value in binary format; that of text is the same in both."""
    if cell is None or isinstance(cell, str):
        return text(kind, cell)
    if isinstance(cell, Decimal) or kind is NUMERIC:
        return _binary_numeric(Decimal(cell))
    return _bounded(kind, cell).to_bytes(kind.size, "big", signed=True)


def _bounded(kind: Type, value: int) -> int:
    """What does not fit is printed as the largest value that does: an int4 counter of bytes does not wrap around."""
    if kind.size < 0:
        return value
    top = (1 << 8 * kind.size - 1) - 1
    return max(-top - 1, min(top, value))


def _binary_numeric(value: Decimal) -> bytes:
    """As numeric_send writes it: count of digits, weight of the first one, sign, scale, then digits to the base of 10,000."""
    sign, decimals, exponent = value.as_tuple()
    scale = max(-int(exponent), 0)
    behind = -(-scale // 4)  # digits behind the point
    rest = int("".join(map(str, decimals))) * 10 ** (int(exponent) + 4 * behind)
    digits: list[int] = []
    while rest:
        rest, digit = divmod(rest, 10_000)
        digits.append(digit)
    weight = len(digits) - 1 - behind if digits else 0
    while digits and digits[0] == 0:
        digits.pop(0)  # zeros at the end are not sent
    head = [
        len(digits).to_bytes(2, "big"), weight.to_bytes(2, "big", signed=True), b"\x40\0" if sign else b"\0\0",
        scale.to_bytes(2, "big"),
    ]  # fmt: skip
    return b"".join(head + [digit.to_bytes(2, "big") for digit in reversed(digits)])
