"""The protocol by hand: a client, and a server, that send exactly the bytes that a test writes.

Knows nothing of pgpool_proxy.wire on purpose: two independent readings of the protocol page must agree.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from fix_wait import LOOPBACK, free_port

PROTOCOL_3_0 = 196_608
SSL_REQUEST = 80_877_103
GSSENC_REQUEST = 80_877_104
CANCEL_REQUEST = 80_877_102


class Message(NamedTuple):
    """A message: its type (one byte) and its body without the length."""

    type: bytes
    body: bytes

    def fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse or NoticeResponse by their letters: S, C, M, D, H."""
        parts = [part for part in self.body.split(b"\0") if part]
        return {part[:1].decode(): part[1:].decode() for part in parts}

    def values(self) -> list[bytes | None]:
        """The columns of a DataRow."""
        (count,) = struct.unpack_from("!h", self.body)
        at, values = 2, list[bytes | None]()
        for _ in range(count):
            (size,) = struct.unpack_from("!i", self.body, at)
            at += 4
            values.append(None if size < 0 else self.body[at : at + size])
            at += max(size, 0)
        return values


# --- building bytes --------------------------------------------------------------------------------------------------


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def startup_message(
    user: str = "trust_user", database: str = "app", protocol: int = PROTOCOL_3_0, **parameters: str
) -> bytes:
    pairs = {"user": user, "database": database, **parameters}
    text = b"".join(f"{key}\0{value}\0".encode() for key, value in pairs.items()) + b"\0"
    return struct.pack("!ii", len(text) + 8, protocol) + text


def request(code: int, body: bytes = b"") -> bytes:
    """SSLRequest, GSSENCRequest, CancelRequest."""
    return struct.pack("!ii", len(body) + 8, code) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    return request(CANCEL_REQUEST, struct.pack("!i", pid) + secret)


def query(sql: str) -> bytes:
    return message(b"Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "") -> bytes:
    return message(b"P", f"{name}\0{sql}\0".encode() + b"\0\0")


def bind(statement: str = "", portal: str = "", *values: str) -> bytes:
    encoded = [value.encode() for value in values]
    body = f"{portal}\0{statement}\0".encode() + struct.pack("!hh", 0, len(encoded))
    body += b"".join(struct.pack("!i", len(value)) + value for value in encoded)
    return message(b"B", body + struct.pack("!h", 0))


def describe(kind: str = "P", name: str = "") -> bytes:
    return message(b"D", f"{kind}{name}\0".encode())


def execute(portal: str = "", limit: int = 0) -> bytes:
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", limit))


def close(kind: str = "S", name: str = "") -> bytes:
    return message(b"C", f"{kind}{name}\0".encode())


def sync() -> bytes:
    return message(b"S")


def flush() -> bytes:
    return message(b"H")


def terminate() -> bytes:
    return message(b"X")


# --- peers -----------------------------------------------------------------------------------------------------------


class Peer:
    """One end of a connection."""

    def __init__(self, sock: socket.socket, timeout: float = 10) -> None:
        self.socket = sock
        self.socket.settimeout(timeout)
        if sock.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def send_message(self, kind: bytes, body: bytes = b"") -> None:
        self.send(message(kind, body))

    def send_chopped(self, data: bytes, size: int = 1) -> None:
        """`size` bytes per write."""
        for start in range(0, len(data), size):
            self.socket.sendall(data[start : start + size])

    def read_bytes(self, count: int) -> bytes:
        """Exactly so many bytes; EOFError when the peer ends before."""
        data = b""
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise EOFError(f"the peer closed after {data!r}, {count - len(data)} bytes before the end")
            data += chunk
        return data

    def read_message(self) -> Message:
        head = self.read_bytes(5)
        return Message(head[:1], self.read_bytes(struct.unpack("!i", head[1:])[0] - 4))

    def read_until(self, kind: bytes) -> list[Message]:
        """All messages up to and with the first of this type."""
        messages = [self.read_message()]
        while messages[-1].type != kind:
            messages.append(self.read_message())
        return messages

    def read_types(self, until: bytes = b"Z") -> bytes:
        """The types of all messages up to and with the first of type `until`, as one string: b"TDCZ"."""
        return b"".join(found.type for found in self.read_until(until))

    def read_to_end(self) -> list[Message]:
        """All messages until the peer closes, by FIN or by RST."""
        messages: list[Message] = []
        while True:
            try:
                messages.append(self.read_message())
            except (EOFError, ConnectionResetError):
                return messages

    def is_closed(self) -> bool:
        """Wait until the peer closes: False when it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing arrives for so long: the only proof of silence is time."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK) and False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class RawClient(Peer):
    """A client."""

    #: what the server said at login
    parameters: dict[str, str]
    pid: int
    secret: bytes

    def login(
        self, user: str = "trust_user", database: str = "app", password: str = "", **parameters: str
    ) -> list[Message]:
        """Startup to the first ReadyForQuery, with trust, password or md5: all messages but the authentication's."""
        self.send(startup_message(user, database, **parameters))
        self.parameters = {}
        messages: list[Message] = []
        while True:
            found = self.read_message()
            if found.type == b"R":
                self._authenticate(found.body, user, password)
                continue
            messages.append(found)
            if found.type == b"S":
                name, value = found.body.split(b"\0")[:2]
                self.parameters[name.decode()] = value.decode()
            elif found.type == b"K":
                self.pid, self.secret = struct.unpack_from("!i", found.body)[0], found.body[4:]
            elif found.type in b"ZE":
                return messages

    def _authenticate(self, body: bytes, user: str, password: str) -> None:
        (code,) = struct.unpack_from("!i", body)
        if code == 3:
            self.send_message(b"p", password.encode() + b"\0")
        elif code == 5:
            inner = hashlib.md5(password.encode() + user.encode()).hexdigest()
            self.send_message(b"p", b"md5" + hashlib.md5(inner.encode() + body[4:8]).hexdigest().encode() + b"\0")
        elif code != 0:
            raise AssertionError(f"RawClient does not know authentication {code}")

    def query(self, sql: str) -> list[Message]:
        """A simple query: all messages up to ReadyForQuery."""
        self.send(query(sql))
        return self.read_until(b"Z")


class RawServer:
    """Listens like PostgreSQL; a test accepts a connection and plays the server by hand."""

    host = LOOPBACK

    def __init__(self) -> None:
        self.port = free_port()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((LOOPBACK, self.port))
        self.listener.listen(50)
        self.listener.settimeout(10)
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        """The next connection, before a byte of it is read."""
        self.peers.append(Peer(self.listener.accept()[0]))
        return self.peers[-1]

    def accept_login(self, *extra: bytes) -> Peer:
        """The next connection, let in by trust: it has read ReadyForQuery, after the messages `extra`."""
        peer = self.accept()
        startup = self.read_startup(peer)
        if struct.unpack("!i", startup[:4])[0] in (SSL_REQUEST, GSSENC_REQUEST):
            peer.send(b"N")
            self.read_startup(peer)
        parameters = {"server_version": "16.0", "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC"}
        peer.send(
            message(b"R", struct.pack("!i", 0)),
            *(message(b"S", f"{key}\0{value}\0".encode()) for key, value in parameters.items()),
            *extra,
            message(b"K", struct.pack("!ii", 4711, 42)),
            message(b"Z", b"I"),
        )
        return peer

    @staticmethod
    def read_startup(peer: Peer) -> bytes:
        """A packet without a type byte: what stands after the length."""
        (size,) = struct.unpack("!i", peer.read_bytes(4))
        return peer.read_bytes(size - 4)

    def stop(self) -> None:
        for peer in self.peers:
            peer.close()
        self.listener.close()


MakeRawClient = Callable[..., RawClient]


@pytest.fixture
def make_raw_client() -> Iterator[MakeRawClient]:
    """Makes clients: `make_raw_client(proxy.port)`, or with `path=` to a unix socket. Closed after the test."""
    made: list[RawClient] = []

    def make(port: int = 0, *, path: str = "", timeout: float = 10) -> RawClient:
        if path:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
        else:
            sock = socket.create_connection((LOOPBACK, port), timeout=timeout)
        made.append(RawClient(sock, timeout))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def raw_server() -> Iterator[RawServer]:
    """A server that is played by hand."""
    server = RawServer()
    yield server
    server.stop()
