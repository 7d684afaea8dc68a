"""Whatever a stranger sends, it costs the stranger its connection and nobody else anything."""

from __future__ import annotations

import os
import random
import struct

import pytest
from fix_clients import Database, Login, assert_whole, error, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    CANCEL_REQUEST,
    GSSENC_REQUEST,
    SSL_REQUEST,
    MakeRawClient,
    RawClient,
    message,
    query,
    request,
    startup_message,
    sync,
    terminate,
)
from fix_wait import wait_until

SIZE = 2
LENGTHS = (0, 1, 3, 4, 5, 7, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)


def ends(client: RawClient, what: object) -> None:
    """The daemon closes the connection, and says nothing but an error before it does."""
    try:
        found = client.read_to_end()
    except TimeoutError:
        pytest.fail(f"the connection stays: {what!r}")
    assert {one.type for one in found} <= {b"E"}, (what, found)
    client.close()


@pytest.mark.cold_start
def test_every_length_of_a_first_packet_is_survived(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, login: Login
) -> None:
    proxy = make_proxy(client_login_timeout=1)
    before = proxy.rss()
    waiting: list[RawClient] = []
    for length in (*LENGTHS, 9, 10_000, 10_001, 65_536):
        for rest in (b"", b"\0", struct.pack("!i", 196_608), os.urandom(50)):
            client = make_raw_client(proxy.port)
            client.send(struct.pack("!I", length) + rest)
            waiting.append(client)
    for client in waiting:
        ends(client, "a first packet")
    assert proxy.rss() - before < 10_000_000
    assert value(login(proxy), "select 1") == "1"


FIRST_PACKETS = {
    "only a protocol": request(196_608),
    "no terminator": request(196_608, b"user\0x\0"),
    "an odd number of strings": request(196_608, b"user\0x\0database\0\0"),
    "an empty name": request(196_608, b"\0x\0\0"),
    "no user": request(196_608, b"database\0app\0\0"),
    "the largest packet": request(196_608, b"user\0" + b"x" * 9_980 + b"\0\0"),
    "very many parameters": request(196_608, b"user\0trust_user\0" + b"a\0b\0" * 2000 + b"\0"),
    "protocol 1": request(1 << 16),
    "protocol 2 as psql 6 has it": request(2 << 16, b"\0" * 288),
    "protocol 4": request(4 << 16, b"user\0x\0\0"),
    "an unknown request": request(1234 << 16 | 9999),
    "an SSLRequest that is too long": request(SSL_REQUEST, b"x"),
    "two SSLRequests at once": request(SSL_REQUEST) * 2,
    "a short CancelRequest": request(CANCEL_REQUEST, b"1234"),
    "a long CancelRequest": request(CANCEL_REQUEST, b"1" * 1000),
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a query": query("select 1"),
    "a TLS ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(100),
}


def test_every_malformed_first_packet_ends_its_connection(pooled: Proxy, make_raw_client: MakeRawClient, login: Login) -> None:
    bystander = login(pooled)
    for name, packet in FIRST_PACKETS.items():
        client = make_raw_client(pooled.port)
        client.send(packet)
        ends(client, name)
        assert value(bystander, "select 1") == "1"


def test_an_ssl_request_comes_only_once(pooled: Proxy, make_raw_client: MakeRawClient) -> None:
    for code in (SSL_REQUEST, GSSENC_REQUEST):
        client = make_raw_client(pooled.port)
        for _ in range(2):
            client.send(request(code))
            answered = client.socket.recv(1)
        assert answered in (b"", b"E")


def test_every_byte_as_a_message_type_with_every_odd_length(
    pooled: Proxy, database: Database, make_raw_client: MakeRawClient, login: Login
) -> None:
    bystander = login(pooled)
    run(bystander, "begin")
    for kind in range(256):
        for body in (b"", b"\0", b"x" * 20, b"\0" * 20):
            client = login(pooled)
            client.send(message(bytes([kind]), body), sync(), message(b"c"), terminate())
            try:
                client.read_to_end()
            except TimeoutError:
                pytest.fail(f"the connection stays: type {kind} body {body!r}")
            client.close()
    for kind in b"QPBEDCSHFXdcfp\0\xff":
        for length in LENGTHS:
            if 4 <= length < 0x80000000:
                continue
            client = login(pooled)
            client.send(bytes([kind]) + struct.pack("!I", length))
            ends(client, (kind, length))
    assert value(bystander, "select 'unharmed'") == "unharmed"
    run(bystander, "commit")
    settle(pooled)
    assert_whole(pooled, database, login, SIZE)


def test_every_byte_as_a_message_type_before_the_login(pooled: Proxy, make_raw_client: MakeRawClient, login: Login) -> None:
    for kind in range(256):
        client = make_raw_client(pooled.port)
        client.send(message(bytes([kind]), b"x" * 8) + bytes(20_000))
        ends(client, kind)
    assert value(login(pooled), "select 1") == "1"


def test_garbage_behind_a_login_ends_the_connection_only(
    pooled: Proxy, database: Database, make_raw_client: MakeRawClient, login: Login
) -> None:
    bystander = login(pooled)
    chance = random.Random(4711)
    for _ in range(100):
        client = login(pooled)
        client.send(chance.randbytes(chance.choice((5, 50, 500, 5000))))
        client.send(chance.randbytes(10))
        client.reset() if chance.random() < 0.5 else client.close()
        assert value(bystander, "select 1") == "1"
    settle(pooled)
    assert_whole(pooled, database, login, SIZE)


@pytest.mark.cold_start
def test_a_promise_of_a_huge_message_costs_no_memory(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=20, max_client_conn=100
    )
    clients = [login(proxy) for _ in range(50)]
    before = proxy.rss()
    for number, client in enumerate(clients):
        client.send(bytes([b"QPBDCEFd"[number % 8]]) + struct.pack("!i", 2**30) + b"x" * 1000)
    settle(proxy)
    assert proxy.rss() - before < 20_000_000
    for client in clients:
        client.close()
    settle(proxy)
    wait_until(lambda: not database.servers(state="active"))
    assert value(login(proxy), "select 1") == "1"


def test_slow_strangers_hold_nobody_up_and_are_ended(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, auth_type="scram-sha-256", max_client_conn=500, client_login_timeout=0
    )
    stages = (b"", b"\0", startup_message("scram_user")[:20], request(SSL_REQUEST), startup_message("scram_user"))
    slow = []
    for number in range(200):
        client = make_raw_client(proxy.port)
        client.send(stages[number % len(stages)])
        slow.append(client)
    for _ in range(10):
        connection = proxy.connect(user="scram_user", password="scram-secret")
        assert connection.execute("select 1").fetchone() == (1,)
        connection.close()
    proxy.admin("SET client_login_timeout = 1")  # not before: it is not that they had been ended
    for client in slow:
        data = b""
        while chunk := client.socket.recv(65_536):
            data += chunk
        assert b"client_login_timeout" in data
    assert proxy.is_running()


def test_strangers_beyond_max_client_conn_cannot_lock_out_who_is_in(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, max_client_conn=20, client_login_timeout=1)
    client = login(proxy)
    strangers = [make_raw_client(proxy.port) for _ in range(100)]
    for stranger in strangers:
        stranger.send(b"\0\0")
    assert value(client, "select 1") == "1"
    for stranger in strangers:
        ends(stranger, "a stranger")
    assert value(login(proxy), "select 2") == "2"


def test_five_hundred_wrong_cancel_keys_occupy_nothing(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    bystander = login(pooled)
    run(bystander, "begin")
    before = proxy_lines(pooled)
    for _ in range(500):
        with make_raw_client(pooled.port) as stranger:
            stranger.send(request(CANCEL_REQUEST, os.urandom(8)))
    settle(pooled)
    assert value(bystander, "select 1") == "1"
    run(bystander, "commit")
    assert proxy_lines(pooled) - before < 1500
    assert_whole(pooled, database, login, SIZE)


def proxy_lines(proxy: Proxy) -> int:
    return proxy.log().count("\n")


def test_a_password_message_of_any_shape_is_survived(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy(auth_type="scram-sha-256", client_login_timeout=1)
    initial = b"n,,n=,r=abcdefghijklmnop"
    for body in (
        b"SCRAM-SHA-256\0" + struct.pack("!i", -1),
        b"SCRAM-SHA-256\0" + struct.pack("!i", 2**31 - 1) + initial,
        b"SCRAM-SHA-256\0" + struct.pack("!i", len(initial)) + b"y" + initial[1:],
        b"SCRAM-SHA-256-PLUS\0" + struct.pack("!i", len(initial)) + initial,
        b"SCRAM-SHA-1\0" + struct.pack("!i", len(initial)) + initial,
        b"SCRAM-SHA-256\0" + struct.pack("!i", 3) + b"n,,",
        b"SCRAM-SHA-256\0" + struct.pack("!i", 100_000) + b"n,,n=,r=" + b"x" * 60_000,
        b"SCRAM-SHA-256",
        b"",
        b"\0",
        b"\xff" * 1000,
    ):
        client = make_raw_client(proxy.port)
        client.send(startup_message("scram_user"))
        client.read_message()
        client.send_message(b"p", body)
        found = client.read_to_end()
        assert all(one.type in b"ER" for one in found), body[:40]
    fields = error([one for one in found if one.type == b"E"])
    assert fields["S"] == "FATAL"


@pytest.mark.parametrize("auth_type", ["plain", "md5", "scram-sha-256"])
def test_what_is_no_password_is_refused_at_once_whatever_length_it_claims(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, auth_type: str
) -> None:
    proxy = make_proxy(auth_type=auth_type, client_login_timeout=60)
    for kind in b"QXdR\0\xff":
        client = make_raw_client(proxy.port)
        client.send(startup_message())
        client.read_message()
        client.send(bytes((kind,)))
        found = client.read_to_end()
        assert [one.type for one in found] == [b"E"], kind
        assert found[0].fields()["C"] == "08P01"
