"""The encrypted stream between two recorders: OpenSSL's own client or server at the other end, without a socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from pgpool_proxy.net.tls_transport import CLOSED, OPEN, RECORD, SHAKING, TlsTransport


class Below:
    """The transport of the loop."""

    def __init__(self) -> None:
        self.sent = b""
        self.said: list[str] = []
        self.protocol: Any = None
        self.kept = 0

    def write(self, data: bytes) -> None:
        assert data
        self.sent += data

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent

    def close(self) -> None:
        self.said.append("close")

    def abort(self) -> None:
        self.said.append("abort")

    def pause_reading(self) -> None:
        self.said.append("pause_reading")

    def resume_reading(self) -> None:
        self.said.append("resume_reading")

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5)}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return self.kept


class Above:
    """The connection that the bytes are for, and who waits for the handshake."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.said: list[str] = []
        self.on_data: Callable[[], None] = lambda: None

    def data_received(self, data: bytes) -> None:
        assert data
        self.received.append(data)
        self.on_data()

    def connection_lost(self, error: BaseException | None) -> None:
        self.said.append("lost")

    def pause_writing(self) -> None:
        self.said.append("pause_writing")

    def resume_writing(self) -> None:
        self.said.append("resume_writing")

    def tls_opened(self, transport: TlsTransport) -> None:
        self.said.append("opened")

    def tls_failed(self, error: Exception) -> None:
        self.said.append(f"failed {type(error).__name__}")

    def tls_lost(self, error: BaseException | None) -> None:
        self.said.append("tls_lost")


class Peer:
    """The other end, by OpenSSL itself."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, hostname: str | None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side, server_hostname=hostname)
        self.is_open = False

    def shake(self, data: bytes) -> bytes:
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
            self.is_open = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        return self.outgoing.read()

    def decrypt(self, data: bytes) -> bytes:
        """What is said, to the end of `data`."""
        self.incoming.write(data)
        said = b""
        try:
            while part := self.tls.read(RECORD):
                said += part
        except ssl.SSLWantReadError:
            pass
        return said


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(for a server, for a client)."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    server.num_tickets = 0
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


class Pair:
    """Our end in one of the two roles, and the other's."""

    def __init__(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], is_server: bool, hostname: str = "localhost") -> None:
        self.below, self.above = Below(), Above()
        ours, theirs = contexts if is_server else contexts[::-1]
        self.transport = TlsTransport(self.below, self.above, ours, self.above, None if is_server else hostname)
        self.peer = Peer(theirs, not is_server, hostname if is_server else None)

    def feed(self, data: bytes, size: int = 1 << 30) -> None:
        for at in range(0, len(data), size):
            self.transport.data_received(data[at : at + size])

    def shake_hands(self, size: int = 1 << 30) -> Pair:
        self.transport.begin()
        assert self.below.protocol is self.transport
        for _ in range(4):
            self.feed(self.peer.shake(self.below.take()), size)
        assert self.peer.is_open
        assert self.transport.state == OPEN
        if "pause_reading" in self.below.said:
            self.transport.begin_reading()
        return self


@pytest.fixture(params=["server", "client"])
def role(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "server"


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext], role: bool) -> Pair:
    return Pair(contexts, role).shake_hands()


@pytest.mark.parametrize("size", [1, 7, 1 << 30])
def test_what_is_said_arrives_whatever_the_pieces(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], role: bool, size: int
) -> None:
    pair = Pair(contexts, role).shake_hands(size)
    assert pair.above.said == ["opened"]
    for text in (b"x", b"select 1" * 10, bytes(range(256)) * 200):  # the last one is of several records
        pair.feed(pair.peer.encrypt(text), size)
        assert b"".join(pair.above.received) == text
        pair.above.received.clear()
        pair.transport.write(text)
        assert pair.peer.decrypt(pair.below.take()) == text


def test_a_chunk_of_many_records_is_handed_on_in_one_piece(pair: Pair) -> None:
    records = b"".join(pair.peer.encrypt(b"%04d" % number) for number in range(500))
    pair.feed(records)
    assert pair.above.received == [b"".join(b"%04d" % number for number in range(500))]


@pytest.mark.parametrize("length", [RECORD - 1, RECORD, RECORD + 1, 1_000_000])
def test_a_large_write_goes_out_whole(pair: Pair, length: int) -> None:
    data = bytes(length)
    pair.transport.write(data)
    assert pair.peer.decrypt(pair.below.take()) == data


def test_the_servers_first_bytes_behind_its_handshake_wait_until_the_owner_is_ready(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    pair = Pair(contexts, is_server=False)
    pair.transport.begin()
    answer = pair.peer.shake(pair.below.take())
    pair.feed(answer)
    pair.peer.shake(pair.below.take())
    assert pair.below.said == ["pause_reading"]
    pair.transport._incoming.write(pair.peer.encrypt(b"early"))
    assert pair.above.received == []
    pair.transport.begin_reading()
    assert pair.above.received == [b"early"]


def test_the_clients_first_bytes_behind_its_handshake_are_heard(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    pair = Pair(contexts, is_server=True)
    pair.transport.begin(pair.peer.shake(b""))  # direct TLS: the ClientHello was read already
    last = pair.peer.shake(pair.below.take())
    pair.feed(last + pair.peer.encrypt(b"startup"))
    assert (pair.above.said, pair.above.received) == (["opened"], [b"startup"])


# --- nothing in clear -----------------------------------------------------------------------------------------------------
def test_nothing_that_is_written_in_the_handshake_goes_out(contexts: tuple[ssl.SSLContext, ssl.SSLContext], role: bool) -> None:
    pair = Pair(contexts, role)
    pair.transport.begin()
    pair.below.take()
    pair.transport.write(b"in clear")
    assert pair.below.sent == b""
    pair.transport.close()
    assert (pair.below.sent, pair.below.said, pair.transport.state) == (b"", ["abort"], CLOSED)


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x08\x04\xd2\x16\x2f", b"GET / HTTP/1.0\r\n\r\n", bytes(300), b"\x15\x03\x01\0\2\2\x28"]
)
def test_bytes_in_clear_in_the_handshake_end_it_with_an_alert(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], role: bool, data: bytes
) -> None:
    pair = Pair(contexts, role)
    pair.transport.begin()
    pair.below.take()
    pair.feed(data)
    assert pair.above.said == ["failed SSLError"]
    assert pair.above.received == []
    assert pair.below.sent[:1] in (b"", b"\x15")
    assert pair.below.said == ["close"]
    pair.transport.connection_lost(None)
    assert pair.above.said[1:] == (["lost"] if role else [])


def test_a_certificate_of_another_name_fails_the_handshake(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    pair = Pair(contexts, is_server=False, hostname="elsewhere")
    pair.transport.begin()
    pair.feed(pair.peer.shake(pair.below.take()))
    assert pair.above.said == ["failed SSLCertVerificationError"]
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        pair.peer.shake(pair.below.take())


@pytest.mark.parametrize("data", [b"in clear", b"\x17\x03\x03\x00\x20" + bytes(32), b"\x17\x03\x03\xff\xff"])
def test_bytes_that_are_not_of_the_stream_end_it(pair: Pair, data: bytes) -> None:
    pair.feed(pair.peer.encrypt(b"good") + data)
    assert pair.above.received == [b"good"]
    assert pair.below.said[-1] == "close"
    assert pair.transport.state == CLOSED
    pair.feed(b"more")
    pair.transport.write(b"more")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        pair.peer.decrypt(pair.below.take())


# --- the end --------------------------------------------------------------------------------------------------------------
def test_a_peer_that_goes_in_the_handshake(contexts: tuple[ssl.SSLContext, ssl.SSLContext], role: bool) -> None:
    pair = Pair(contexts, role)
    pair.transport.begin()
    assert pair.transport.state == SHAKING
    assert pair.transport.eof_received() is False
    pair.transport.connection_lost(None)
    assert pair.above.said == ["tls_lost", *(["lost"] if role else [])]


def test_close_says_close_notify_and_waits_for_nobody(pair: Pair) -> None:
    pair.transport.write(b"last words")
    pair.transport.close()
    assert pair.below.said[-1] == "close"
    assert pair.peer.decrypt(pair.below.take()) == b"last words"
    pair.peer.tls.unwrap()  # which it can, since it has had ours
    pair.feed(pair.peer.outgoing.read() + b"more")
    pair.transport.close()
    assert pair.above.received == []
    assert pair.below.said.count("close") == 1
    pair.transport.connection_lost(None)
    assert pair.above.said[-1] == "lost"


def test_the_peers_close_notify_is_the_end_after_what_came_before_it(pair: Pair) -> None:
    said = pair.peer.encrypt(b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        pair.peer.tls.unwrap()
    pair.feed(said + pair.peer.outgoing.read() + b"anything")
    assert pair.above.received == [b"bye"]
    assert pair.below.said[-1] == "close"
    assert pair.transport.state == CLOSED


def test_a_record_that_is_cut_by_the_end_is_not_handed_on(pair: Pair) -> None:
    pair.feed(pair.peer.encrypt(b"whole") + pair.peer.encrypt(b"cut")[:-1])
    pair.transport.connection_lost(None)
    assert pair.above.received == [b"whole"]
    assert pair.above.said[-1] == "lost"


def test_a_connection_closed_from_within_the_data_it_brought(pair: Pair) -> None:
    pair.above.on_data = pair.transport.close
    pair.feed(pair.peer.encrypt(b"one") + pair.peer.encrypt(b"two"))
    assert pair.above.received == [b"onetwo"]
    assert pair.below.said.count("close") == 1


async def test_a_peer_that_does_not_read_the_end_is_left(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[tuple[float, Callable[[], None]]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *what: later.append(what))
    pair.below.kept = 1000
    pair.transport.close()
    monkeypatch.undo()
    ((seconds, then),) = later
    assert seconds == 2
    then()
    assert pair.below.said[-2:] == ["close", "abort"]


# --- flow -----------------------------------------------------------------------------------------------------------------
def test_pausing_is_passed_on_both_ways(pair: Pair) -> None:
    pair.below.said.clear()
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    assert pair.below.said == ["pause_reading", "resume_reading"]
    pair.transport.pause_writing()
    pair.transport.resume_writing()
    assert pair.above.said == ["opened", "pause_writing", "resume_writing"]
    pair.transport.abort()
    assert pair.below.said[-1] == "abort"
    pair.transport.pause_writing()
    assert pair.above.said[-1] == "resume_writing"


def test_what_is_asked_of_the_transport_below(pair: Pair) -> None:
    assert pair.transport.get_extra_info("ssl_object") is pair.transport.tls
    assert pair.transport.get_extra_info("peername") == ("192.0.2.1", 5)
    assert pair.transport.get_extra_info("nothing", 7) == 7
    pair.below.kept = 3
    assert pair.transport.get_write_buffer_size() == 3
