"""The advisories of poolers and their neighbours, each by name, with a hostile server or client. Those about TLS and auth_query
stand with these (test_tls_clients, test_tls_servers, test_auth_query); the codecs' own in tests/unit/auth/test_advisories.py.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, Message, Peer, RawClient, RawServer, message, startup_message

PLAIN = {"somebody": "secret"}


def sasl(code: int, payload: bytes) -> bytes:
    return message(b"R", struct.pack("!i", code) + payload)


OFFER = sasl(10, b"SCRAM-SHA-256\0\0")


@pytest.fixture
def leg(make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: MakeRawClient) -> Callable[..., tuple[RawClient, Peer]]:
    """A client that waits for its login, and the server that the proxy has sent its StartupMessage to."""

    def make(**settings: object) -> tuple[RawClient, Peer]:
        proxy = make_proxy(
            databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, users=PLAIN, server_tls_sslmode="disable",
            **settings,
        )  # fmt: skip
        client = make_raw_client(proxy.port)
        client.send(startup_message(user="somebody"))
        peer = raw_server.accept()
        raw_server.read_startup(peer)
        client.proxy = proxy  # type: ignore[attr-defined]  # for what a test wants to know afterwards
        return client, peer

    return make


def client_first(peer: Peer) -> bytes:
    """Our nonce."""
    found = peer.read_message()
    return found.body.split(b"r=")[1]


def refusal(client: RawClient) -> Message:
    found = client.read_until(b"E")[-1]
    assert found.type == b"E"
    return found


SALT = base64.b64encode(b"0123456789abcdef")
FIRST = {
    "CVE-2026-6665 a nonce of 60 kB": lambda nonce: b"r=" + nonce + b"x" * 60_000 + b",s=" + SALT + b",i=4096",
    "a salt of 60 kB": lambda nonce: b"r=" + nonce + b"x,s=" + base64.b64encode(bytes(45_000)) + b",i=4096",
    "CVE-2026-42198 two milliard iterations": lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=2147483647",
    "no iterations": lambda nonce: b"r=" + nonce + b"x,s=" + SALT,
    "iterations that are no number": lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096x",
    "a nonce that does not extend ours": lambda nonce: b"r=other,s=" + SALT + b",i=4096",
    "a mandatory extension": lambda nonce: b"m=x,r=" + nonce + b"x,s=" + SALT + b",i=4096",
    "nothing": lambda nonce: b"",
}


@pytest.mark.parametrize("case", FIRST)
def test_a_hostile_servers_first_scram_message_costs_a_refused_login_only(
    leg: Callable[..., tuple[RawClient, Peer]], case: str
) -> None:
    client, peer = leg()
    peer.send(OFFER)
    nonce = client_first(peer)
    start = time.monotonic()
    peer.send(sasl(11, FIRST[case](nonce)))
    assert "server login failed" in refusal(client).fields()["M"]
    assert time.monotonic() - start < 2
    assert peer.is_closed()


def test_a_message_of_a_megabyte_in_a_login_is_not_read(leg: Callable[..., tuple[RawClient, Peer]]) -> None:
    client, peer = leg()
    peer.send(b"R" + struct.pack("!i", 1_000_000) + struct.pack("!i", 10))
    refusal(client)
    assert peer.is_closed()


@pytest.mark.parametrize("final", [b"v=" + base64.b64encode(bytes(32)), b"", b"e=other-error", None])
def test_a_server_that_does_not_prove_itself_is_left(
    leg: Callable[..., tuple[RawClient, Peer]], final: bytes | None
) -> None:
    client, peer = leg()
    peer.send(OFFER)
    nonce = client_first(peer)
    peer.send(sasl(11, b"r=" + nonce + b"x,s=" + SALT + b",i=4096"))
    assert peer.read_message().type == b"p"
    if final is not None:
        peer.send(sasl(12, final))
    else:
        peer.send(message(b"R", struct.pack("!i", 0)))  # AuthenticationOk without a final message
    assert "server login failed" in refusal(client).fields()["M"]
    assert peer.is_closed()


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ("scram-sha-256", message(b"R", struct.pack("!i", 3))),
        ("scram-sha-256", message(b"R", struct.pack("!i", 5) + b"salt")),
        ("scram-sha-256", message(b"R", struct.pack("!i", 0))),
        ("!password", message(b"R", struct.pack("!i", 3))),
        ("!none", message(b"R", struct.pack("!i", 0))),
    ],
)
def test_server_require_auth_keeps_the_password_from_servers_that_ask_otherwise(
    leg: Callable[..., tuple[RawClient, Peer]], allowed: str, asked: bytes
) -> None:
    client, peer = leg(server_require_auth=allowed)
    peer.send(asked)
    assert "server login failed" in refusal(client).fields()["M"]
    assert peer.is_closed()


def test_cve_2026_6666_an_error_without_sqlstate_is_told_in_neutral_terms(
    leg: Callable[..., tuple[RawClient, Peer]],
) -> None:
    client, peer = leg()
    peer.send(message(b"E", b"SFATAL\0Mno code\0\0"))
    fields = refusal(client).fields()
    assert (fields["M"], fields["C"]) == ("no code", "XX000")


# --- hostile clients --------------------------------------------------------------------------------------------------------
@pytest.fixture
def scram_proxy(make_proxy: MakeProxy) -> Iterator[Proxy]:
    proxy = make_proxy(auth_type="scram-sha-256", users={"scram_user": "scram-secret"})
    yield proxy
    assert proxy.sql("select 1", user="scram_user", password="scram-secret") == [(1,)]


def initial(mechanism: bytes, data: bytes, length: int | None = None) -> bytes:
    return message(b"p", mechanism + b"\0" + struct.pack("!i", len(data) if length is None else length) + data)


@pytest.mark.parametrize(
    "data",
    [
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", -2),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", 2**31 - 1),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", 12),
        initial(b"SCRAM-SHA-256", b"n,,n=,r="),
        initial(b"SCRAM-SHA-256", b""),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=" + b"x" * 5000),
        initial(b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc"),
        initial(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
        initial(b"SCRAM-SHA-1", b"n,,n=,r=abc"),
        initial(b"SCRAM-SHA-256", b"n,a=postgres,n=,r=abc"),
        message(b"p", b"SCRAM-SHA-256"),
        message(b"p", b""),
        message(b"p", b"\0"),
        b"p" + struct.pack("!i", 2**31 - 1),
        b"p" + struct.pack("!i", -1),
        b"p" + struct.pack("!i", 3),
    ],
)
def test_cve_2026_6664_a_malformed_scram_message_ends_one_login(
    scram_proxy: Proxy, make_raw_client: MakeRawClient, data: bytes
) -> None:
    client = make_raw_client(scram_proxy.port)
    client.send(startup_message(user="scram_user"))
    assert client.read_message().type == b"R"
    client.send(data)
    found = client.read_to_end()
    assert [one.type for one in found] == [b"E"]


def test_a_replayed_proof_is_of_no_use(scram_proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    import scramp

    def exchange(replayed: bytes | None) -> tuple[bytes, Message]:
        client = make_raw_client(scram_proxy.port)
        client.send(startup_message(user="scram_user"))
        client.read_message()
        scram = scramp.ScramClient(["SCRAM-SHA-256"], "ignored", "scram-secret", c_nonce="fixed-nonce")
        client.send(initial(b"SCRAM-SHA-256", scram.get_client_first().encode()))
        scram.set_server_first(client.read_message().body[4:].decode())
        proof = replayed or scram.get_client_final().encode()
        client.send(message(b"p", proof))
        return proof, client.read_message()

    proof, answer = exchange(None)
    assert answer.type == b"R"
    assert exchange(proof)[1].fields()["M"] == "SASL authentication failed"


@pytest.mark.parametrize("size", [1, 996, 1023, 1024, 2047, 65530])
def test_pgbouncer_1215_a_password_of_any_size_is_compared(make_proxy: MakeProxy, size: int) -> None:
    proxy = make_proxy(auth_type="plain", users={"trust_user": "x" * size})
    assert proxy.sql("select 1", password="x" * size) == [(1,)]


def test_a_password_that_is_too_long_or_holds_a_zero_is_refused(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy(auth_type="plain", users={"trust_user": "secret"})
    for body in (b"x" * 65_535 + b"\0", b"secret\0secret\0", b"secret", b"\0", b"x" * 1_000_000 + b"\0"):
        client = make_raw_client(proxy.port)
        client.send(startup_message())
        assert client.read_message().type == b"R"
        try:
            client.send(message(b"p", body))
            assert client.read_message().type == b"E"
        except (ConnectionError, EOFError):
            pass
    assert proxy.sql("select 1", password="secret") == [(1,)]
