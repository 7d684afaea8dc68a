"""Protocol 3.2: who speaks it with whom, and the cancel keys that it brings."""

from __future__ import annotations

import struct
import threading

import psycopg
import pytest
from fix_clients import Database, ask, error, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, Message, RawClient, RawServer, cancel_request, message, startup_message
from fix_wait import LOOPBACK, wait_until

V3 = 3 << 16
OPTION = {"_pq_.fancy": "1"}


@pytest.fixture
def proxy(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", protocol_version_max="3.2")


def start(client: RawClient, minor: int, **parameters: str) -> list[Message]:
    """Messages up to ReadyForQuery."""
    client.send(startup_message(protocol=V3 | minor, **parameters))
    messages = client.read_until(b"Z")
    (key,) = [found.body for found in messages if found.type == b"K"]
    client.pid, client.secret = struct.unpack_from("!i", key)[0], key[4:]
    return messages


def negotiated(messages: list[Message]) -> tuple[int, bytes] | None:
    """Minor version and names that NegotiateProtocolVersion gives; it has to be the first message."""
    if messages[0].type != b"v":
        assert not any(found.type == b"v" for found in messages)
        return None
    newest, count = struct.unpack_from("!ii", messages[0].body)
    assert newest >> 16 == 3
    names: bytes = messages[0].body[8:]
    assert names.count(b"\0") == count
    return newest & 0xFFFF, names


def cancels(make_raw_client: MakeRawClient, proxy: Proxy, database: Database, client: RawClient) -> None:
    """A CancelRequest with the client's key, over another connection, ends its query."""
    ask(client, "select pg_sleep(30)")
    wait_until(lambda: database.servers(state="active"))
    with make_raw_client(proxy.port) as messenger:
        messenger.send(cancel_request(client.pid, client.secret))
        assert messenger.is_closed()
    assert error(client.read_until(b"Z"))["C"] == "57014"
    assert value(client, "select 1") == "1"


@pytest.mark.parametrize(
    ("minor", "options", "answer", "secret"),
    [
        (0, {}, None, 4),
        (0, OPTION, (0, b"_pq_.fancy\0"), 4),
        (1, {}, None, 4),
        (2, {}, None, 32),
        (2, OPTION, (2, b"_pq_.fancy\0"), 32),
        (3, {}, (2, b""), 32),
        (9999, OPTION, (2, b"_pq_.fancy\0"), 32),
    ],
)
def test_a_client_gets_the_version_that_it_asks_for_up_to_3_2(
    proxy: Proxy,
    database: Database,
    make_raw_client: MakeRawClient,
    minor: int,
    options: dict[str, str],
    answer: tuple[int, bytes] | None,
    secret: int,
) -> None:
    direct = make_raw_client(database.server.port)
    client = make_raw_client(proxy.port)
    assert negotiated(start(client, minor, **options)) == answer
    assert len(client.secret) == secret
    if database.sql("show server_version_num")[0][0] >= "180000":
        assert negotiated(start(direct, minor, **{"database": database.name, **options})) == answer
        assert len(direct.secret) == secret
    cancels(make_raw_client, proxy, database, client)


@pytest.mark.parametrize(("minor", "options"), [(1, {}), (2, {}), (9999, {}), (2, OPTION)])
def test_by_default_3_0_is_spoken(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, minor: int, options: dict[str, str]
) -> None:
    proxy = make_proxy(databases={"app": database.entry()})
    client = make_raw_client(proxy.port)
    assert negotiated(start(client, minor, **options)) == (0, b"".join(name.encode() + b"\0" for name in options))
    assert len(client.secret) == 4
    cancels(make_raw_client, proxy, database, client)


def test_reload_changes_what_is_spoken_with_those_who_come_then(
    proxy: Proxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    former, later = make_raw_client(proxy.port), make_raw_client(proxy.port)
    start(former, 2)
    proxy.settings["protocol_version_max"] = "3.0"
    proxy.reload()
    assert negotiated(start(later, 2)) == (0, b"")
    cancels(make_raw_client, proxy, database, former)
    cancels(make_raw_client, proxy, database, later)


@pytest.mark.parametrize("allowed", ["3.0", "3.2"])
def test_libpq_speaks_3_2_with_whoever_allows_it_and_cancels(
    make_proxy: MakeProxy, database: Database, allowed: str
) -> None:
    if psycopg.pq.version() < 180000:
        pytest.skip("libpq knows max_protocol_version from 18 on")
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", auth_type="scram-sha-256", protocol_version_max=allowed
    )
    dsn = proxy.dsn(user="scram_user", password="scram-secret")
    connection = psycopg.connect(dsn, max_protocol_version="3.2", autocommit=True)

    def cancel_when_it_runs() -> None:
        wait_until(lambda: database.servers(state="active"))
        connection.cancel_safe(timeout=10)

    thread = threading.Thread(target=cancel_when_it_runs)
    thread.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("select pg_sleep(30)")
    thread.join()
    assert connection.execute("select 1").fetchone() == (1,)
    connection.close()
    if allowed == "3.2":
        psycopg.connect(dsn, min_protocol_version="3.2", max_protocol_version="3.2").close()
    else:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, min_protocol_version="3.2", max_protocol_version="3.2")


@pytest.mark.parametrize("hops", [0, 3])
def test_a_long_key_crosses_peers(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, hops: int
) -> None:
    owner, other = [
        make_proxy(
            databases={"app": database.entry()}, peer_id=number, protocol_version_max=version, start=False
        )
        for number, version in ((1, "3.2"), (2, "3.0"))
    ]
    for proxy in (owner, other):
        proxy.sections["peers"] = {"1": f"host={LOOPBACK} port={owner.port}", "2": f"host={LOOPBACK} port={other.port}"}
        proxy.start()
    client = make_raw_client(owner.port)
    start(client, 2)
    assert struct.pack("!i", client.pid)[1:3] == (1).to_bytes(2, "little")
    assert client.secret[3] & 3 == 3
    if hops:
        cancels(make_raw_client, other, database, client)
    else:  # and the peer finds it whatever is left
        client.secret = client.secret[:3] + bytes((client.secret[3] & 0xFC,)) + client.secret[4:]
        cancels(make_raw_client, owner, database, client)


def before(make_proxy: MakeProxy, server: RawServer, allowed: str) -> Proxy:
    return make_proxy(
        databases={"app": f"host={LOOPBACK} port={server.port}"},
        protocol_version_max=allowed,
        server_tls_sslmode="disable",
    )


@pytest.mark.parametrize(
    ("allowed", "answer", "key"),
    [
        ("3.0", None, 8),
        ("3.2", None, 36),
        ("3.2", None, 8),
        ("3.2", None, 260),
        ("3.2", struct.pack("!ii", V3, 0), 8),
        ("3.2", struct.pack("!ii", V3 | 1, 0), 8),
    ],
)
def test_a_server_is_asked_for_the_newest_and_its_key_is_kept_whatever_its_length(
    make_proxy: MakeProxy,
    raw_server: RawServer,
    make_raw_client: MakeRawClient,
    allowed: str,
    answer: bytes | None,
    key: int,
) -> None:
    proxy = before(make_proxy, raw_server, allowed)
    client = make_raw_client(proxy.port)
    client.send(startup_message())
    peer = raw_server.accept()
    (version,) = struct.unpack_from("!i", raw_server.read_startup(peer))
    assert version == V3 | int(allowed[2:])
    secret = bytes(range(1, key + 1)) if key < 256 else b"\7" * key
    if answer is not None:
        peer.send_message(b"v", answer)
    peer.send(message(b"R", bytes(4)), message(b"K", secret), message(b"Z", b"I"))
    found = client.read_until(b"Z")
    (own,) = [one.body for one in found if one.type == b"K"]
    ask(client, "select pg_sleep(30)")
    assert peer.read_message().type == b"Q"
    with make_raw_client(proxy.port) as messenger:
        messenger.send(cancel_request(struct.unpack_from("!i", own)[0], own[4:]))
        assert raw_server.read_startup(raw_server.accept())[4:] == secret


@pytest.mark.parametrize(
    ("allowed", "answer"),
    [
        ("3.0", struct.pack("!ii", V3 | 2, 0)),
        ("3.2", struct.pack("!ii", V3 | 3, 0)),
        ("3.2", struct.pack("!ii", 2 << 16, 0)),
        ("3.2", struct.pack("!i", V3)),
        ("3.2", b""),
    ],
)
def test_a_server_that_answers_with_a_version_that_nobody_asked_for_is_left(
    make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: MakeRawClient, allowed: str, answer: bytes
) -> None:
    proxy = before(make_proxy, raw_server, allowed)
    client = make_raw_client(proxy.port)
    client.send(startup_message())
    peer = raw_server.accept()
    raw_server.read_startup(peer)
    peer.send_message(b"v", answer)
    assert peer.is_closed()
    proxy.wait_log("broken NegotiateProtocolVersion")
