"""A chunk in, message boundaries out. Knows headers and lengths; never copies a body that passes through.

Theory of operation
-------------------
A connection delivers chunks whose borders have nothing to do with those of messages. A `Framer` walks over one chunk at
a time; `next()` steps to the next message that begins in it. `data[start:stop]` is that message, as far as it is there:
when `stop > size`, its tail comes in later chunks and, unless the owner asks for the whole (`hold()`), these bytes belong
to the same message and are walked over without being looked at. What may be passed on is `data[:end]`: everything, less a
header that was cut (at most 4 bytes, put in front of the next chunk) or a message that is being held until it is whole.

Messages of the `bulk` type (DataRow from servers, CopyData both ways) are stepped over inside `next()`: nobody inspects them.
A held message is collected as a list of chunks and joined once, so its cost is linear, and nothing is allocated by a
claimed length. HOT.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.wire.codes import COPY_DATA, HEADER_SIZE, MAX_PACKET_SIZE

NO_BULK: Final = -1  # no message has this type


def int32_at(data: bytes, at: i64) -> i64:
    """The unsigned Int32 in network order at `data[at:at + 4]`; the caller has checked that it is there."""
    first: i64 = data[at]
    second: i64 = data[at + 1]
    third: i64 = data[at + 2]
    fourth: i64 = data[at + 3]
    return first << 24 | second << 16 | third << 8 | fourth


def nul_at(data: bytes, at: i64, stop: i64) -> i64:
    """Index of the first NUL in `data[at:stop]`, or -1."""
    while at < stop:
        if data[at] == 0:
            return at
        at += 1
    return -1


class Framer:
    """Message boundaries of one direction of one connection; see the module's theory of operation.

    `max_length` bounds what a length field may claim (max_packet_size). Raises `errors.ProtocolViolation` on a length below 4
    or over the bound; `start` is then where that message begins, and `put_back` leaves what stands before it.
    """

    def __init__(self, bulk: i64 = NO_BULK, max_length: i64 = MAX_PACKET_SIZE) -> None:
        self.bulk: i64 = bulk
        self.max_length: i64 = max_length
        self.data: bytes = b""
        self.size: i64 = 0
        self.pos: i64 = 0  # where the next header is looked for
        self.end: i64 = 0  # data[:end] may be passed on
        self.kind: i64 = 0
        self.start: i64 = 0
        self.stop: i64 = 0
        self.remaining: i64 = 0  # bytes of the current message that later chunks bring
        self._kept: list[bytes] = []
        self._kept_size: i64 = 0
        self._wanted: i64 = 0

    def feed(self, data: bytes) -> bool:
        """Take a chunk. False: all of it was put aside, for a header or a held message that is still not whole."""
        size: i64 = len(data)
        if self._kept_size:
            self._kept.append(data)
            self._kept_size += size
            if self._kept_size < self._wanted:
                self.data = b""
                self.size = self.pos = self.end = 0
                return False
            data = b"".join(self._kept)
            size = self._kept_size
            self._kept = []
            self._kept_size = 0
        self.data = data
        self.size = size
        self.end = size
        if self.remaining:
            if self.remaining >= size:
                self.remaining -= size
                self.pos = size
                return True
            self.pos = self.remaining
            self.remaining = 0
        else:
            self.pos = 0
        return True

    def next(self) -> bool:
        """Step to the next message that begins in this chunk; False when there is none left."""
        data = self.data
        size = self.size
        pos = self.pos
        bulk = self.bulk
        while size - pos >= HEADER_SIZE:
            kind: i64 = data[pos]
            length = int32_at(data, pos + 1)
            if length < 4 or length > self.max_length:
                self.pos = size
                self.start = self.stop = self.end = pos
                raise errors.ProtocolViolation(errors.BAD_PACKET if length < 4 else errors.PACKET_TOO_LONG)
            stop = pos + 1 + length
            if kind == bulk or kind == COPY_DATA:
                if stop <= size:
                    pos = stop
                    continue
                self.remaining = stop - size
                self.pos = size
                return False
            self.kind = kind
            self.start = pos
            self.stop = stop
            if stop > size:
                self.remaining = stop - size
                self.pos = size
            else:
                self.pos = stop
            return True
        self.pos = size
        if pos < size:
            self._keep(pos, HEADER_SIZE)
        return False

    def may_be(self, offset: i64, letter: i64) -> bool:
        """Is the byte at `offset` of the current message this letter (a capital), in either case? True as well when it is not
        there yet: then only the whole message tells (`hold`)."""
        at = self.start + offset
        if at >= self.size:
            return True
        byte: i64 = self.data[at]
        return byte & 0xDF == letter

    def hold(self) -> bool:
        """Ask for the current message whole. False: it is not yet; it is put aside and comes again when it is."""
        if self.stop <= self.size:
            return True
        self.remaining = 0
        self._keep(self.start, self.stop - self.start)
        return False

    def hold_until(self, wanted: i64) -> bool:
        """Ask for the first `wanted` bytes of the current message; as `hold`, for messages whose head is enough."""
        if self.size - self.start >= wanted:
            return True
        self.remaining = 0
        self._keep(self.start, wanted)
        return False

    def _keep(self, start: i64, wanted: i64) -> None:
        kept = self.data[start : self.size]
        self._kept = [kept]
        self._kept_size = self.size - start
        self._wanted = wanted
        self.end = start
        self.pos = self.size

    def put_back(self) -> bytes:
        """The chunk from the current message on, which from now on is the caller's."""
        self.remaining = 0
        self.end = self.start
        self.pos = self.size
        return self.data[self.start : self.size]

    @property
    def at_boundary(self) -> bool:
        """True when no message is under way and nothing is put aside."""
        return self.remaining == 0 and self._kept_size == 0

    @property
    def is_holding(self) -> bool:
        """True while a message is put aside, not just a cut header."""
        return self._kept_size >= HEADER_SIZE

    def take_kept(self) -> bytes:
        """What was put aside, which from now on is the caller's."""
        if not self._kept_size:
            return b""
        kept = b"".join(self._kept)
        self._kept = []
        self._kept_size = 0
        return kept

    def reset(self) -> None:
        """Forget everything: the next chunk begins with a message."""
        if self._kept_size:
            self._kept = []
            self._kept_size = 0
        self.remaining = 0
        self.data = b""
        self.size = self.pos = self.end = 0


class MessageReader:
    """Whole messages out of chunks, for phases in which each is inspected: logins and the console.

    `limit` bounds one message in bytes, type and length included; a longer one raises `errors.ProtocolViolation` as soon as
    its header says so.
    """

    def __init__(self, limit: i64) -> None:
        self.limit: i64 = limit
        self.kind: i64 = 0
        self.body: bytes = b""
        self._buffer: bytes = b""
        self._pos: i64 = 0

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer[self._pos :] + data if self._pos < len(self._buffer) else data
        self._pos = 0

    def next(self) -> bool:
        """Step to the next whole message (`kind`, `body` without its header); False when there is none yet."""
        data = self._buffer
        pos = self._pos
        size: i64 = len(data)
        if size - pos < HEADER_SIZE:
            return False
        length = int32_at(data, pos + 1)
        if length < 4:
            raise errors.ProtocolViolation(errors.BAD_PACKET)
        if length + 1 > self.limit:
            raise errors.ProtocolViolation(errors.PACKET_TOO_LONG)
        if size - pos < length + 1:
            return False
        self.kind = data[pos]
        self.body = data[pos + HEADER_SIZE : pos + 1 + length]
        self._pos = pos + 1 + length
        return True

    @property
    def coming(self) -> i64:
        """Type of the message that `next` waits for the rest of, or -1 when nothing of it is there."""
        if self._pos >= len(self._buffer):
            return -1
        return self._buffer[self._pos]

    def rest(self) -> bytes:
        """The bytes after the last message that `next` gave; from now on they are the caller's."""
        left = self._buffer[self._pos :]
        self._buffer = b""
        self._pos = 0
        return left
