"""Bodies of the extended protocol's messages, decoded for the console. Everything is checked before it is sliced.

A body that does not hold what its type promises raises `Refused`: the message's borders are known, so the conversation goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgpool_proxy.admin.control import Refused, error

BROKEN: Final = error("invalid message format")


@dataclass(frozen=True, slots=True)
class Bind:
    """`formats` are those of the results: none, one for all columns, or one for each; `parameters` is how many there are."""

    portal: str
    statement: str
    parameters: int
    formats: list[int]


class _Body:
    """Walks over a body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def string(self) -> str:
        stop = self._body.find(b"\0", self._at)
        if stop < 0:
            raise Refused(BROKEN)
        found = self._body[self._at : stop]
        self._at = stop + 1
        return found.decode("utf-8", "surrogateescape")

    def number(self, size: int) -> int:
        """A signed number of `size` bytes."""
        return int.from_bytes(self.take(size), "big", signed=True)

    def numbers(self) -> list[int]:
        """As many Int16 as an Int16 says."""
        return [self.number(2) for _ in range(self.number(2))]

    def take(self, size: int) -> bytes:
        if size > len(self._body) - self._at:
            raise Refused(BROKEN)
        self._at += size
        return self._body[self._at - size : self._at]

    def end(self) -> None:
        if self._at != len(self._body):
            raise Refused(BROKEN)


def read_query(body: bytes) -> str:
    """Query: the statement."""
    reader = _Body(body)
    text = reader.string()
    reader.end()
    return text


def read_parse(body: bytes) -> tuple[str, str]:
    """Parse: (name, statement). Types of parameters are of no interest."""
    reader = _Body(body)
    name, text = reader.string(), reader.string()
    for _ in range(reader.number(2)):
        reader.take(4)
    reader.end()
    return name, text


def read_bind(body: bytes) -> Bind:
    reader = _Body(body)
    portal, statement = reader.string(), reader.string()
    reader.numbers()
    parameters = reader.number(2)
    for _ in range(parameters):
        reader.take(max(reader.number(4), 0))
    formats = reader.numbers()
    reader.end()
    return Bind(portal, statement, parameters, formats)


def read_execute(body: bytes) -> tuple[str, int]:
    """Execute: (portal, most rows that are wanted); 0 is all of them."""
    reader = _Body(body)
    portal = reader.string()
    limit = reader.number(4)
    reader.end()
    return portal, max(limit, 0)


def read_target(body: bytes) -> tuple[str, str]:
    """Describe and Close: ("S" or "P", name)."""
    reader = _Body(body)
    kind = reader.take(1)
    name = reader.string()
    reader.end()
    if kind not in (b"S", b"P"):
        raise Refused(BROKEN)
    return kind.decode(), name
