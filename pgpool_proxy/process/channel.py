"""What the supervisor and a worker say to each other: JSON objects, and descriptors beside them, over a unix stream socket.

A frame is `length:u32 descriptors:u8 json`, in network order; its descriptors travel with its first byte (SCM_RIGHTS) and so
arrive in the order of the frames. Both ends are processes of ours: a frame that cannot be read ends the channel.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

Message: TypeAlias = dict[str, Any]  # of JSON; "is" says what it is

HEADER: Final = struct.Struct("!IB")
READ_SIZE: Final = 262144
MAX_FRAME: Final = 1 << 30
MAX_DESCRIPTORS: Final = 8  # of one frame
MAX_DRAINED: Final = 1000  # reads
BATCH: Final = 262144  # bytes of frames that are written together
BUSY: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)
BUSY_S: Final = 0.002  # until the other end has taken some of the descriptors that are on their way


class Channel:
    """One end. `received(message, descriptors)` owns the descriptors; `lost` is called once, when the other end has gone."""

    def __init__(
        self, sock: socket.socket, received: Callable[[Message, list[int]], None], lost: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._in = bytearray()
        self._descriptors: deque[int] = deque()
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._flushing = False  # a flush is due
        self._writing = False  # the socket is full: the loop tells when it is not
        self.backlog = 0  # bytes that are still to be written
        self.is_closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def __repr__(self) -> str:
        return f"<Channel fd={self._socket.fileno()} backlog={self.backlog}>"

    # --- out ----------------------------------------------------------------------------------------------------------
    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """The caller keeps its descriptors, and may close them at once. What is said in one turn of the loop goes together."""
        if self.is_closed:
            return
        data = json.dumps(message, separators=(",", ":")).encode()
        frame = HEADER.pack(len(data), len(descriptors)) + data
        self._out.append((frame, [os.dup(one) for one in descriptors]))
        self.backlog += len(frame)
        if not self._flushing and not self._writing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what there is, as far as the kernel takes it."""
        self._flushing = False
        while self._out and not self.is_closed:
            data, descriptors = self._out[0]
            if not descriptors:
                data = self._batch()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except OSError as error:
                if error.errno not in BUSY:
                    self._end()
                    return
                self._wait(error.errno)
                return
            for one in descriptors:
                os.close(one)
            self.backlog -= sent
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()

    def _batch(self) -> bytes:
        """The frames at the front that have no descriptors, made into one."""
        parts: list[bytes] = []
        size = 0
        while self._out and not self._out[0][1] and size < BATCH:
            data, _ = self._out.popleft()
            parts.append(data)
            size += len(data)
        data = b"".join(parts)
        self._out.appendleft((data, []))
        return data

    def _wait(self, reason: int | None) -> None:
        if reason == errno.EAGAIN:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._writable)
        else:
            self._flushing = True
            self._loop.call_later(BUSY_S, self.flush)

    def _writable(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._socket.fileno())
        self.flush()

    # --- in -----------------------------------------------------------------------------------------------------------
    def _readable(self) -> None:
        try:
            data, rights, flags, _ = self._socket.recvmsg(
                READ_SIZE, socket.CMSG_LEN(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        for level, kind, payload in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(payload[: len(payload) // found.itemsize * found.itemsize])
                self._descriptors.extend(found)
        if not data or flags & socket.MSG_CTRUNC:
            self._end()
            return
        self._in += data
        self._take()

    def _take(self) -> None:
        """Every whole frame that has come."""
        buffer, at = self._in, 0
        while len(buffer) - at >= HEADER.size and not self.is_closed:
            length, count = HEADER.unpack_from(buffer, at)
            if length > MAX_FRAME or count > MAX_DESCRIPTORS:
                self._end()
                return
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            message: Message = json.loads(bytes(buffer[at + HEADER.size : end]))
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            at = end
            self._received(message, descriptors)
        del buffer[:at]

    def drain(self) -> None:
        """Take what the other end has said before it ended."""
        for _ in range(MAX_DRAINED):
            if self.is_closed:
                return
            self._readable()

    # --- ends ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Without a word to anybody here."""
        if self.is_closed:
            return
        self.is_closed = True
        number = self._socket.fileno()
        self._loop.remove_reader(number)
        if self._writing:
            self._loop.remove_writer(number)
        self._socket.close()
        for _, descriptors in self._out:
            for one in descriptors:
                os.close(one)
        self._out.clear()
        for one in self._descriptors:
            os.close(one)
        self._descriptors.clear()

    def _end(self) -> None:
        """The other end has gone."""
        if not self.is_closed:
            self.close()
            self._lost()


def receive_first(sock: socket.socket) -> Message:
    """The first message of a channel whose loop does not run yet; blocks. Raises EOFError."""
    sock.setblocking(True)
    length, count = HEADER.unpack(_exactly(sock, HEADER.size))
    if count:
        raise EOFError("the first message carries descriptors")
    message: Message = json.loads(_exactly(sock, length))
    return message


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError("the supervisor has gone")
        data += chunk
    return data
