"""A CancelRequest that reached the wrong pooler of several behind one address goes to the one that gave its key."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from signal import SIGTERM

import pytest
from fix_clients import Database, Gate, Login, ask, error, settle, value
from fix_postgres import environment
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, cancel_request
from fix_tcp import MakeMiddleman
from fix_wait import LOOPBACK, free_port, wait_until

MakePeers = Callable[..., list[Proxy]]


@pytest.fixture
def make_peers(make_proxy: MakeProxy, database: Database) -> MakePeers:
    """Poolers with peer ids from 1 that know each other by TCP, or by unix socket when they share `listen_port`."""

    def make(count: int, **settings: object) -> list[Proxy]:
        made = [
            make_proxy(
                databases={"app": database.entry()}, pool_mode="transaction", peer_id=number, start=False, **settings
            )
            for number in range(1, count + 1)
        ]
        places = {
            number: f"host={proxy.directory if 'listen_port' in settings else LOOPBACK} port={proxy.port}"
            for number, proxy in enumerate(made, 1)
        }
        for proxy in made:
            proxy.sections["peers"] = dict(places)
            proxy.start()
            proxy.wait_log("process up")  # where they share a port, that of another one answers before
        return made

    return make


def runs(database: Database, text: str) -> bool:
    return any(text in row["query"] and row["state"] == "active" for row in database.servers())


def sleep(database: Database, client: RawClient, name: str) -> None:
    ask(client, f"select pg_sleep(30), '{name}'")
    wait_until(lambda: runs(database, f"'{name}'"))


def key_of(peer: int, hops: int) -> tuple[int, bytes]:
    """A key that nobody has."""
    key = bytearray(b"\x11" * 8)
    key[1:3] = peer.to_bytes(2, "little")
    key[7] = key[7] & 0xFC | hops
    return struct.unpack("!i", key[:4])[0], bytes(key[4:])


def send(make_raw_client: MakeRawClient, port: int, pid: int, secret: bytes) -> None:
    """A CancelRequest, until its connection is closed."""
    with make_raw_client(port) as messenger:
        messenger.send(cancel_request(pid, secret))
        assert messenger.is_closed()


def forwarded(proxy: Proxy) -> int:
    """Requests that the pooler has got rid of by passing them on."""
    return proxy.log().count("successfully sent cancel request")


@pytest.mark.parametrize("count", [2, 3])
def test_a_cancel_sent_to_another_pooler_cancels_the_right_query(
    make_peers: MakePeers, database: Database, login: Login, make_raw_client: MakeRawClient, count: int
) -> None:
    proxies = make_peers(count)
    clients = [login(proxy) for proxy in proxies]
    for number, client in enumerate(clients):
        sleep(database, client, f"q{number}")
    for number, client in enumerate(clients):
        wrong = proxies[(number + 1) % count]
        send(make_raw_client, wrong.port, client.pid, client.secret)
        assert error(client.read_until(b"Z"))["C"] == "57014"
        assert [runs(database, f"'q{other}'") for other in range(count)] == [other > number for other in range(count)]
    for client in clients:
        assert value(client, "select 1") == "1"
    assert [proxy.admin("SHOW PEER_POOLS") for proxy in proxies] == [
        [
            {"peer_id": peer, "cl_active_cancel_req": 0, "cl_waiting_cancel_req": 0, "sv_active_cancel": 0, "sv_login": 0}
            for peer in range(1, count + 1)
        ]
    ] * count


def test_poolers_that_share_one_port_cancel_for_each_other(
    make_peers: MakePeers, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxies = make_peers(2, listen_port=free_port(), so_reuseport=1, default_pool_size=12)
    assert proxies[0].port == proxies[1].port
    clients: list[RawClient] = []
    while len(clients) < 12 or {client.pid >> 16 & 0xFF for client in clients[:12]} != {1, 2}:  # the kernel chooses who accepts
        clients.insert(0, login(proxies[0]))
    for client in clients[12:]:
        client.close()
    del clients[12:]
    for number, client in enumerate(clients):
        sleep(database, client, f"q{number}")
    for client in clients:
        send(make_raw_client, proxies[0].port, client.pid, client.secret)
        assert error(client.read_until(b"Z"))["C"] == "57014"


def test_a_pooler_that_finishes_behind_its_successor_still_hears_of_cancels(
    make_peers: MakePeers, database: Database, make_raw_client: MakeRawClient
) -> None:
    old, new = make_peers(2, listen_port=free_port(), so_reuseport=1)
    client = make_raw_client(path=f"{old.directory}/.s.PGSQL.{old.port}")
    assert client.login()[-1].type == b"Z"
    sleep(database, client, "long")
    old.signal(SIGTERM)
    old.wait_log("SIGTERM")
    old.admin("SHOW STATE", host=old.directory)  # it has done what it does at that: it listens for its console only
    send(make_raw_client, new.port, client.pid, client.secret)
    assert error(client.read_until(b"Z"))["C"] == "57014"
    client.close()
    assert old.wait_exit() == 0


def test_a_rolling_restart_by_port_and_peers_loses_no_transaction_and_no_cancel(
    make_peers: MakePeers, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    """The old one gets SIGTERM under load: its clients stay, who comes is the new one's, and cancels find both."""
    old, new = make_peers(2, listen_port=free_port(), so_reuseport=1, tcp_defer_accept=0, default_pool_size=10)
    clients = [login(old) for _ in range(12)]  # the kernel chooses who accepts
    of_old = [client for client in clients if client.pid >> 16 & 0xFF == 1]
    assert 0 < len(of_old) < 12
    for client in clients:
        if client not in of_old:
            client.close()
    bench = ["pgbench", "-n", "-h", old.host, "-p", str(old.port), "-U", "trust_user"]
    subprocess.run([*bench, "-i", "-q", "-s", "1", "app"], check=True, capture_output=True, env=environment(), timeout=60)
    with ExitStack() as stack:

        def load(*more: str) -> subprocess.Popen[str]:
            command = [*bench, "-c", "6", "-T", "3", *more, "app"]
            return stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
            )

        staying = load("-M", "prepared")
        wait_until(lambda: sum(int(proxy.show("POOLS", database="app")["cl_active"]) for proxy in (old, new)) > 6)
        old.signal(SIGTERM)
        old.wait_log("waiting for all clients")
        coming = load("-S", "-C")
        for number, client in enumerate(of_old[:3]):
            sleep(database, client, f"q{number}")
            send(make_raw_client, new.port, client.pid, client.secret)
            assert error(client.read_until(b"Z"))["C"] == "57014"
            assert value(client, "select 1") == "1"
        for process in (staying, coming):
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output
            assert "number of failed transactions: 0 " in output
    for client in of_old:
        client.close()
    assert old.wait_exit(20) == 0
    assert new.sql("select 1") == [(1,)]


def test_a_driver_that_hangs_up_at_once_is_served(
    make_peers: MakePeers, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    first, second = make_peers(2)
    client = login(first)
    sleep(database, client, "long")
    messenger = make_raw_client(second.port)
    messenger.send(cancel_request(client.pid, client.secret))
    messenger.close()
    assert error(client.read_until(b"Z"))["C"] == "57014"


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_a_request_is_passed_on_as_often_as_its_key_says(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, hops: int
) -> None:
    """Three poolers, each of which believes the next one to be peer 9."""
    proxies = [
        make_proxy(databases={"app": database.entry()}, peer_id=number, start=False) for number in (1, 2, 3)
    ]
    for number, proxy in enumerate(proxies):
        proxy.sections["peers"] = {"9": f"host={LOOPBACK} port={proxies[(number + 1) % 3].port}"}
        proxy.start()
    send(make_raw_client, proxies[0].port, *key_of(9, hops))
    wait_until(lambda: sum(proxy.log_contains("has passed through too many peers") for proxy in proxies) == 1)
    assert [forwarded(proxy) for proxy in proxies] == [int(hops > at) for at in range(3)]
    assert proxies[hops % 3].log_contains("has passed through too many peers")


@pytest.mark.parametrize("peer", [0, 1, 7, 0xFFFF])
def test_a_key_of_nobody_is_dropped(make_peers: MakePeers, make_raw_client: MakeRawClient, peer: int) -> None:
    first, second = make_peers(2)
    send(make_raw_client, first.port, *key_of(peer, 3))
    first.wait_log("failed cancel request")
    assert (forwarded(first), "C-" in second.log()) == (0, False)


def test_without_a_peer_id_nothing_is_passed_on(
    make_proxy: MakeProxy, make_peers: MakePeers, make_raw_client: MakeRawClient
) -> None:
    (peer,) = make_peers(1)
    proxy = make_proxy(sections={"peers": {"1": f"host={LOOPBACK} port={peer.port}"}})
    send(make_raw_client, proxy.port, *key_of(1, 3))
    proxy.wait_log("failed cancel request")
    assert "C-" not in peer.log()


def test_a_peer_that_is_down_costs_nothing(
    make_peers: MakePeers, gate: Gate, login: Login, make_raw_client: MakeRawClient
) -> None:
    first, second = make_peers(2)
    client, former = login(first), login(second)
    second.stop()
    ask(client, gate.sql())
    gate.wait()
    started = time.monotonic()
    send(make_raw_client, first.port, former.pid, former.secret)
    assert time.monotonic() - started < 9  # not cancel_wait_timeout
    gate.open()
    assert not any(found.type == b"E" for found in client.read_until(b"Z"))
    assert value(client, "select 1") == "1"
    first.wait_log("connect failed")


def test_a_peer_that_does_not_take_connections_is_given_up_after_server_connect_timeout(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind((LOOPBACK, 0))
        deaf.listen(0)
        for filler in (first, second):  # its queue is full: the kernel answers no further SYN
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        peers = {"2": f"host={LOOPBACK} port={deaf.getsockname()[1]}"}
        proxy = make_proxy(peer_id=1, sections={"peers": peers}, server_connect_timeout=1, cancel_wait_timeout=0)
        messengers = [make_raw_client(proxy.port) for _ in range(3)]
        for messenger in messengers:
            messenger.send(cancel_request(*key_of(2, 3)))
        wait_until(lambda: proxy.show("PEER_POOLS")["sv_login"] == 3)
        assert all(messenger.is_closed() for messenger in messengers)
        assert proxy.show("PEER_POOLS")["sv_login"] == 0
        proxy.wait_log("closing because: connect timeout")


def silent_peer(make_proxy: MakeProxy, make_middleman: MakeMiddleman, database: Database, **settings: object) -> Proxy:
    """A pooler whose peer 2 accepts connections and does nothing with them."""
    target = make_proxy(databases={"app": database.entry()}, peer_id=2)
    middleman = make_middleman(target.port)
    middleman.up.pause()
    middleman.down.pause()
    size = settings.pop("peer_size")
    peers = {"2": f"host={LOOPBACK} port={middleman.port} pool_size={size}"}
    return make_proxy(databases={"app": database.entry()}, peer_id=1, sections={"peers": peers}, **settings)


def test_pool_size_of_a_peer_bounds_what_is_on_its_way_and_the_others_wait(
    make_proxy: MakeProxy, make_middleman: MakeMiddleman, database: Database, make_raw_client: MakeRawClient
) -> None:
    proxy = silent_peer(make_proxy, make_middleman, database, peer_size=2, cancel_wait_timeout=2)
    messengers = [make_raw_client(proxy.port) for _ in range(5)]
    for messenger in messengers:
        messenger.send(cancel_request(*key_of(2, 3)))
    wait_until(lambda: proxy.show("PEER_POOLS")["sv_active_cancel"] == 2)
    assert proxy.show("PEER_POOLS") == {
        "peer_id": 2, "cl_active_cancel_req": 2, "cl_waiting_cancel_req": 3, "sv_active_cancel": 2, "sv_login": 0,
    }  # fmt: skip
    assert [row["state"] for row in proxy.admin("SHOW CLIENTS") if row["database"] == "peer-2"] == [
        "active_cancel_req", "active_cancel_req", *["waiting_cancel_req"] * 3,
    ]  # fmt: skip
    assert proxy.show("LISTS", list="peer_pools")["items"] == 1
    settle(proxy)
    for messenger in messengers:
        messenger.read_to_end()  # cancel_wait_timeout
    wait_until(lambda: not proxy.show("PEER_POOLS")["sv_active_cancel"])


def test_reload_adds_changes_and_removes_peers(
    make_proxy: MakeProxy,
    make_middleman: MakeMiddleman,
    database: Database,
    login: Login,
    make_raw_client: MakeRawClient,
) -> None:
    proxy = silent_peer(make_proxy, make_middleman, database, peer_size=1, cancel_wait_timeout=0)
    stuck = [make_raw_client(proxy.port) for _ in range(3)]
    for messenger in stuck:
        messenger.send(cancel_request(*key_of(2, 3)))
    wait_until(lambda: proxy.show("PEER_POOLS")["sv_active_cancel"] == 1)
    other = make_proxy(databases={"app": database.entry()}, peer_id=3)
    client = login(other)
    proxy.sections["peers"] = {"3": f"host={LOOPBACK} port={other.port} pool_size=7"}
    proxy.reload()
    for messenger in stuck:
        assert messenger.is_closed()
    assert proxy.admin("SHOW PEERS") == [{"peer_id": 3, "host": LOOPBACK, "port": other.port, "pool_size": 7}]
    assert proxy.show("PEER_POOLS")["peer_id"] == 3
    sleep(database, client, "removed")
    send(make_raw_client, proxy.port, client.pid, client.secret)
    assert error(client.read_until(b"Z"))["C"] == "57014"

    proxy.sections["peers"] = {"3": f"host={LOOPBACK} port={free_port()}"}
    proxy.reload()
    assert proxy.show("PEERS")["pool_size"] == 20
    send(make_raw_client, proxy.port, client.pid, client.secret)
    proxy.wait_log("connect failed")
