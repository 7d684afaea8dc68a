"""A server that breaks the protocol loses its connection and its client's, and nothing else."""

from __future__ import annotations

import struct

import pytest
from fix_clients import Login, answer, ask, error, refusal, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import CANCEL_REQUEST, MakeRawClient, Peer, RawClient, RawServer, message, startup_message

READY = message(b"Z", b"I")
WELCOME = message(b"R", struct.pack("!i", 0)) + message(b"S", b"TimeZone\0UTC\0") + message(b"K", b"12345678") + READY
ONE_ROW = (
    message(b"T", struct.pack("!h", 1) + b"a\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0))
    + message(b"D", struct.pack("!hi", 1, 1) + b"1")
    + message(b"C", b"SELECT 1\0")
    + READY
)


@pytest.fixture
def fake(make_proxy: MakeProxy, raw_server: RawServer) -> Proxy:
    """Database `other` is real, behind every other name there is a server played by hand."""
    proxy = make_proxy(start=False)
    proxy.databases = {"other": proxy.databases["*"], "*": f"host={raw_server.host} port={raw_server.port}"}
    proxy.settings |= {"pool_mode": "transaction", "default_pool_size": 1, "server_login_retry": 0.2}
    proxy.settings["server_tls_sslmode"] = "disable"  # the first that the server sees is the StartupMessage
    return proxy.start()


def served(fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient) -> tuple[RawClient, Peer]:
    """A client is logged in and has asked; the server has read its query."""
    client = make_raw_client(fake.port)
    client.send(startup_message())
    peer = living(raw_server)
    client.read_until(b"Z")
    ask(client, "select 1")
    assert peer.read_message().type == b"Q"
    return client, peer


def living(raw_server: RawServer) -> Peer:
    """The next connection that logs in; CancelRequests, and connections that were given up, are passed over."""
    while True:
        peer = raw_server.accept()
        try:
            startup = raw_server.read_startup(peer)
        except (EOFError, ConnectionResetError):
            continue
        if struct.unpack("!i", startup[:4])[0] == CANCEL_REQUEST:
            peer.close()
            continue
        peer.send(WELCOME)
        return peer


ANSWERS = {
    "an error without SQLSTATE and severity": message(b"E", b"Mwhat?\0\0") + READY,
    "an error of nothing": message(b"E", b"\0") + READY,
    "an error without any terminator": message(b"E", b"SERROR") + READY,
    "an error without a body": message(b"E") + READY,
    "an unknown type": message(b"\x01", b"x") + READY,
    "a type beyond ASCII": message(b"\xff", b"x") + READY,
    "length 0": b"D\0\0\0\0" + READY,
    "length 3": b"D\0\0\0\x03" + READY,
    "length -1": b"D\xff\xff\xff\xff" + READY,
    "length 2**31": b"D\x80\0\0\0" + READY,
    "two ReadyForQuery": ONE_ROW + READY,
    "ReadyForQuery with status X": message(b"Z", b"X"),
    "ReadyForQuery without status": message(b"Z"),
    "ReadyForQuery that is too long": message(b"Z", b"II"),
    "an authentication request": message(b"R", struct.pack("!i", 3)) + READY,
    "a second BackendKeyData": message(b"K", b"12345678") + READY,
    "ParseComplete for a simple query": message(b"1") + READY,
    "PortalSuspended for a simple query": message(b"s") + READY,
    "FunctionCallResponse for a simple query": message(b"V", struct.pack("!i", -1)) + READY,
    "a ParameterStatus without its end": message(b"S", b"TimeZone\0UTC") + READY,
    "an empty ParameterStatus": message(b"S") + READY,
}


def test_each_broken_answer_costs_its_server_and_its_client_only(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient, login: Login
) -> None:
    other = login(fake, database="other")
    client, peer = served(fake, raw_server, make_raw_client)
    for name, sent in ANSWERS.items():
        peer.send(sent)
        if name.startswith("an error "):  # its body is the client's affair
            assert client.read_types() == b"EZ", name
        else:
            try:
                messages = client.read_to_end()
            except TimeoutError:
                pytest.fail(f"{name}: the connection stays")
            assert any(found.type == b"E" for found in messages), name
        client.close()
        peer.close()
        assert value(other, "select 'unharmed'") == "unharmed", name
        client = make_raw_client(fake.port)
        client.login()
        ask(client, "select 1")
        peer = living(raw_server)
        assert peer.read_message().type == b"Q", name
        peer.send(ONE_ROW)
        assert answer(client) == "1", name
        ask(client, "select 1")
        assert peer.read_message().type == b"Q", name


@pytest.mark.parametrize("name", ["an unknown type", "length -1", "ReadyForQuery with status X", "an authentication request"])
def test_the_client_of_a_server_that_breaks_the_protocol_is_told(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient, name: str
) -> None:
    client, peer = served(fake, raw_server, make_raw_client)
    peer.send(ANSWERS[name])
    fields = error([found for found in client.read_to_end() if found.type == b"E"])
    assert fields["S"] == "FATAL"
    assert fields["C"] in ("08P01", "08006")
    assert {found.type for found in peer.read_to_end()} <= {b"X"}


WHILE_IDLE = {
    "a notice": (message(b"N", b"SNOTICE\0C00000\0Mpsst\0\0"), False),
    "an error": (message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mgoing\0\0"), False),
    "a row": (message(b"D", struct.pack("!h", 0)), False),
    "copy data": (message(b"d", b"data"), False),
    "a part of a row": (message(b"D", struct.pack("!h", 0) + b"x" * 100)[:50], False),
    "a row behind a parameter": (message(b"S", b"TimeZone\0UTC\0") + message(b"D", struct.pack("!h", 0)), False),
    "a row before a parameter": (message(b"D", struct.pack("!h", 0)) + message(b"S", b"TimeZone\0UTC\0"), False),
    "ReadyForQuery": (READY, False),
    "a broken length": (b"N\0\0\0\0", False),
    "nonsense": (b"\0\0\0\0\0\0\0\0", False),
    "a parameter": (message(b"S", b"TimeZone\0Asia/Tokyo\0"), True),
    "two parameters": (message(b"S", b"TimeZone\0Asia/Tokyo\0") + message(b"S", b"TimeZone\0Asia/Seoul\0"), True),
    "a notification": (message(b"A", struct.pack("!i", 1) + b"channel\0payload\0"), True),
}


@pytest.mark.parametrize("name", WHILE_IDLE)
def test_what_a_server_says_while_it_is_idle_is_never_heard_by_the_next_client(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient, name: str
) -> None:
    sent, kept = WHILE_IDLE[name]
    client, peer = served(fake, raw_server, make_raw_client)
    peer.send(ONE_ROW)
    assert answer(client) == "1"
    peer.send(sent)
    if not kept:
        assert {found.type for found in peer.read_to_end()} <= {b"X"}
    following = make_raw_client(fake.port)
    following.login()
    ask(following, "select 1")
    if not kept:
        peer = living(raw_server)
    asked = peer.read_message()
    if asked.body.startswith(b"SET "):  # it puts the parameter back first
        peer.send(message(b"S", b"TimeZone\0UTC\0"), message(b"C", b"SET\0"), READY)
        asked = peer.read_message()
    assert asked.body == b"select 1\0"
    peer.send(ONE_ROW)
    assert b"".join(found.type for found in following.read_until(b"Z")) == b"TDCZ"


IN_LOGIN = {
    "nothing but an end": b"",
    "an error": message(b"E", b"SFATAL\0VFATAL\0C28000\0Mgo away\0\0"),
    "an error without SQLSTATE": message(b"E", b"SFATAL\0Mgo away\0\0"),
    "an error of PostgreSQL 7": b"Egone\n\0",
    "ReadyForQuery at once": READY,
    "a row": message(b"R", struct.pack("!i", 0)) + message(b"D", b"\0\0"),
    "a broken parameter": message(b"R", struct.pack("!i", 0)) + message(b"S", b"no end"),
    "a thousand parameters": message(b"R", struct.pack("!i", 0))
    + b"".join(message(b"S", f"p{number}\0x\0".encode()) for number in range(1000)),
    "a huge parameter": message(b"R", struct.pack("!i", 0)) + message(b"S", b"p\0" + b"x" * 100_000 + b"\0"),
    "a short key": message(b"R", struct.pack("!i", 0)) + message(b"K", b"1234"),
    "a huge key": message(b"R", struct.pack("!i", 0)) + message(b"K", b"1" * 2000),
    "length -1": b"R\xff\xff\xff\xff",
    "length 0": b"R\0\0\0\0",
    "text": b"220 smtp.example.com ESMTP\r\n",
    "zeros": b"\0" * 5000,
}


def test_a_login_that_the_server_spoils_is_told_to_who_waits_for_it(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient
) -> None:
    for at, (name, sent) in enumerate(IN_LOGIN.items()):
        client = make_raw_client(fake.port)
        client.send(startup_message(database=f"fake{at}"))
        peer = raw_server.accept()
        raw_server.read_startup(peer)
        peer.send(sent)
        if name in ("nothing but an end", "text", "an error of PostgreSQL 7"):
            peer.close()
        fields = error(client.read_to_end())
        assert fields["S"] == "FATAL", name
        assert len(fields["C"]) == 5, name
        assert fields["M"], name


def test_a_server_that_reports_nothing_is_usable(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient
) -> None:
    client = make_raw_client(fake.port)
    client.send(startup_message())
    peer = raw_server.accept()
    raw_server.read_startup(peer)
    peer.send(message(b"R", struct.pack("!i", 0)), READY)
    client.read_until(b"Z")
    ask(client, "select 1")
    peer.read_message()
    peer.send(ONE_ROW)
    assert answer(client) == "1"
    refused = make_raw_client(fake.port)
    assert refusal(refused, nonsense="1")["C"] == "08P01"


def test_a_server_that_never_reads_is_left_when_its_client_leaves(
    fake: Proxy, raw_server: RawServer, make_raw_client: MakeRawClient, login: Login
) -> None:
    client, peer = served(fake, raw_server, make_raw_client)
    client.socket.setblocking(False)
    flood = memoryview(message(b"Q", b"x" * 60_000 + b"\0") * 1000)
    sent = stuck = 0
    while stuck < 3:
        try:
            sent += client.socket.send(flood[sent:])
            stuck = 0
        except BlockingIOError:
            stuck += 1
            assert value(login(fake, database="other"), "select 1") == "1"
    assert sent < len(flood)
    client.reset()
    peer.socket.settimeout(10)
    try:
        while peer.socket.recv(65_536):
            pass
    except ConnectionResetError:
        pass
