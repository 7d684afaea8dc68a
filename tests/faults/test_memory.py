"""Memory and file descriptors stay where they are, whatever a peer does not read, and whatever comes and goes."""

from __future__ import annotations

import resource
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_clients import Database, Login, ask, assert_whole, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import RawClient, bind, execute, message, parse, query, startup_message, sync
from fix_tcp import MakeMiddleman
from fix_wait import cpu_seconds, wait_until

pytestmark = pytest.mark.cold_start

MB = 1_000_000
SIZE = 4
FLAT = 12 * MB  # what buffers of the kernel's size and the allocator's habits may add


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database, login: Login) -> Proxy:
    """A daemon that has done everything once."""
    database.sql("create table t (x text)")
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE, max_client_conn=500
    )
    for _ in range(3):
        client = login(proxy)
        client.send(parse("select 1", "s"), bind("s"), execute(), sync())
        client.read_until(b"Z")
        run(client, "select repeat('x', 1000) from generate_series(1, 20000)")
        client.close()
    return proxy


class Watch:
    """The highest memory of the daemon while the block ran, above where it was."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = proxy.rss()
        self.most = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._proxy.rss() - self.before)


@pytest.fixture
def slow_reader() -> Iterator[Callable[[Proxy], RawClient]]:
    """Makes clients whose window is small and which have not begun to read."""
    made: list[RawClient] = []

    def make(proxy: Proxy) -> RawClient:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(60)
        sock.connect((proxy.host, proxy.port))
        made.append(RawClient(sock, 60))
        made[-1].login()
        return made[-1]

    yield make
    for client in made:
        client.close()


def blocked_servers(database: Database) -> int:
    """Backends that wait until somebody takes what they send."""
    return len(database.servers(wait_event="ClientWrite"))


def test_a_client_that_does_not_read_200_mb_stops_its_server_and_nothing_else(
    pooled: Proxy, database: Database, login: Login, slow_reader: Callable[[Proxy], RawClient]
) -> None:
    reader = slow_reader(pooled)
    with Watch(pooled) as watch:
        ask(reader, "select repeat('x', 1000) from generate_series(1, 200000)")
        wait_until(lambda: blocked_servers(database) == 1, what="back-pressure reaches the server")
        other = login(pooled)
        for _ in range(50):
            assert value(other, "select 1") == "1"
        reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MB)
        total = 0
        tail = b""
        while not tail.endswith(message(b"C", b"SELECT 200000\0") + message(b"Z", b"I")):
            chunk = reader.socket.recv(MB)
            assert chunk
            total += len(chunk)
            tail = (tail + chunk)[-100:]
    assert total > 200 * MB
    assert watch.most < FLAT
    reader.close()
    assert_whole(pooled, database, login, SIZE)


def test_many_clients_that_do_not_read_hold_little_memory_each(
    make_proxy: MakeProxy, database: Database, login: Login, slow_reader: Callable[[Proxy], RawClient]
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=30)
    value(login(proxy), "select 1")
    readers = [slow_reader(proxy) for _ in range(20)]
    with Watch(proxy) as watch:
        for reader in readers:
            ask(reader, "copy (select repeat('x', 1000) from generate_series(1, 100000)) to stdout")
        wait_until(lambda: blocked_servers(database) == 20)
        assert value(login(proxy), "select 1") == "1"
        for reader in readers:
            reader.reset()
        settle(proxy)
    assert watch.most < FLAT + 20 * MB // 2
    wait_until(lambda: not database.servers(state="active"), 20)


def test_a_flooding_pipeline_is_slowed_down_and_answered_in_full(
    pooled: Proxy, database: Database, login: Login, slow_reader: Callable[[Proxy], RawClient]
) -> None:
    """A client that sends 15,000 queries without reading is stopped by back-pressure; then both ways are drained at once."""
    count = 15_000
    client = slow_reader(pooled)
    one = parse(f"select repeat('x', 5000) -- {'?' * 1500}") + bind() + execute() + sync()
    flood = memoryview(one * count)
    client.socket.setblocking(False)
    sent = 0
    with Watch(pooled) as watch:
        while select.select([], [client.socket], [], 0.5)[1]:
            sent += client.socket.send(flood[sent : sent + MB])
            assert sent < len(flood), "nothing slowed it down"
        other = login(pooled)
        assert value(other, "select 1") == "1"
        received = ready = 0
        tail = b""
        deadline = time.monotonic() + 60
        while ready < count:
            assert time.monotonic() < deadline, f"stuck: {sent} of {len(flood)} sent, {ready} answers"
            readable, writable, _ = select.select([client.socket], [client.socket] if sent < len(flood) else [], [], 10)
            if readable:
                chunk = client.socket.recv(MB)
                assert chunk
                received += len(chunk)
                window = tail + chunk
                ready += window.count(b"Z\0\0\0\x05I")
                tail = b"" if window.endswith(b"Z\0\0\0\x05I") else window[-5:]
            if writable:
                sent += client.socket.send(flood[sent : sent + 65_536])
    assert ready == count
    assert received > count * 5000
    assert watch.most < FLAT
    client.close()


def test_copy_in_to_a_server_that_does_not_read_is_slowed_down(
    make_proxy: MakeProxy, database: Database, login: Login, make_middleman: MakeMiddleman
) -> None:
    middleman = make_middleman(database.server.port)
    database.sql("create table t (x text)")
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=SIZE,
    )
    client, other = login(proxy), login(proxy)
    run(other, "begin")
    ask(client, "copy t from stdin")
    client.read_message()
    middleman.up.pause()
    rows = message(b"d", (b"x" * 999 + b"\n") * 60)
    flood = memoryview(rows * 1700)
    client.socket.setblocking(False)
    sent = 0
    with Watch(proxy) as watch:
        while select.select([], [client.socket], [], 0.3)[1]:
            sent += client.socket.send(flood[sent : sent + MB])
            assert sent < len(flood), "nothing slowed it down"
        middleman.up.resume()
        client.socket.setblocking(True)
        client.socket.settimeout(60)
        client.socket.sendall(flood[sent:])
        client.send_message(b"c")
        client.read_until(b"Z")
    assert value(other, "select count(*) from t") == str(60 * 1700)
    assert watch.most < FLAT


def test_a_single_message_of_100_mb_passes_without_being_kept(pooled: Proxy, login: Login) -> None:
    client = login(pooled, timeout=60)
    sql = b"select length('" + b"x" * (100 * MB) + b"')\0"
    with Watch(pooled) as watch:
        client.send(message(b"Q", sql))
        assert b"".join(found.type for found in client.read_until(b"Z")) == b"TDCZ"
        assert len(value(client, f"select repeat('x', {100 * MB})") or "") == 100 * MB
        client.send(parse("select length($1)"), bind("", "", "x" * (50 * MB)), execute(), sync())
        assert client.read_until(b"Z")[2].values() == [str(50 * MB).encode()]
    assert watch.most < FLAT


def test_a_thousand_connections_leave_nothing_behind(pooled: Proxy, database: Database, login: Login) -> None:
    def come_and_go(times: int) -> None:
        for number in range(times):
            client = login(pooled)
            client.send(parse(f"select {number % 10}", "s"), bind("s"), execute(), sync())
            client.read_until(b"Z")
            client.reset() if number % 3 else client.close()
        settle(pooled)

    come_and_go(300)
    memory, files = pooled.rss(), open_files(pooled)
    come_and_go(1000)
    assert open_files(pooled) <= files + SIZE
    assert pooled.rss() - memory < 3 * MB
    assert_whole(pooled, database, login, SIZE)


def test_statements_of_many_texts_are_forgotten_with_their_clients_and_servers(pooled: Proxy, login: Login) -> None:
    def prepare(first: int) -> None:
        for client_number in range(4):
            client = login(pooled)
            for start in range(0, 1000, 100):
                numbers = range(first + client_number * 1000 + start, first + client_number * 1000 + start + 100)
                client.send(*(parse(f"select {number} -- {'x' * 2000}", f"s{number}") for number in numbers), sync())
                assert client.read_types() == b"1" * 100 + b"Z"
            client.close()
        settle(pooled)

    prepare(0)
    memory = pooled.rss()
    for turn in range(1, 4):
        prepare(turn * 10_000)
    assert pooled.rss() - memory < 8 * MB  # 24 MB of texts went through


def open_files(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))


@pytest.fixture
def few_files(make_proxy: MakeProxy, database: Database) -> Iterator[Proxy]:
    """A daemon that may have 60 files open."""
    proxy = make_proxy(start=False, databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE)
    command = proxy.command()
    limited = "import os, sys, resource as r; r.setrlimit(r.RLIMIT_NOFILE, (60, 60)); os.execv(sys.argv[1], sys.argv[1:])"
    proxy.command = lambda: [sys.executable, "-c", limited, *command]  # type: ignore[method-assign]
    return proxy.start()


def test_without_a_free_file_descriptor_those_who_are_in_are_served_and_others_come_in_later(
    few_files: Proxy, database: Database, login: Login
) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    few_files.wait_log("too low|file descriptor")
    client = login(few_files)
    run(client, "begin")
    crowd = []
    for _ in range(100):
        sock = socket.create_connection((few_files.host, few_files.port), timeout=10)
        sock.sendall(startup_message())
        crowd.append(sock)
    for _ in range(20):
        assert value(client, "select 1") == "1"
    wait_until(lambda: open_files(few_files) >= 55)
    before, started = cpu_seconds(few_files.pid), time.monotonic()
    wait_until(lambda: time.monotonic() - started > 1)
    assert cpu_seconds(few_files.pid) - before < 0.6, "it spins"
    assert value(client, "select 2") == "2"
    for sock in crowd:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def lets_in_again() -> bool:
        try:
            return value(login(few_files), "select 3") == "3"
        except (OSError, EOFError):
            return False

    wait_until(lets_in_again)
    run(client, "commit")
    client.close()
    assert value(login(few_files), "select 4") == "4"


def test_a_query_that_is_abandoned_again_and_again_leaks_nothing(pooled: Proxy, database: Database, login: Login) -> None:
    def abandon(times: int) -> None:
        for _ in range(times):
            client = login(pooled)
            client.send(query("select repeat('x', 100000) from generate_series(1, 100)"))
            client.read_bytes(1000)
            client.reset()
        settle(pooled)
        wait_until(lambda: not database.servers(state="active"))

    abandon(50)
    memory, files = pooled.rss(), open_files(pooled)
    abandon(150)
    assert pooled.rss() - memory < 4 * MB
    assert open_files(pooled) <= files + SIZE
    assert_whole(pooled, database, login, SIZE)


@pytest.mark.parametrize("text", ["select %d", "select %d /*" + "x" * 1000 + "*/"], ids=["short", "long"])
def test_statements_that_a_client_piles_up_are_bounded(
    make_proxy: MakeProxy, database: Database, login: Login, text: str
) -> None:
    limit = 16 * MB
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=SIZE, max_prepared_memory=limit
    )
    client, bystander = login(proxy), login(proxy)
    made = refused = 0
    with Watch(proxy) as watch:
        for first in range(0, 40_000, 100):
            client.send(b"".join([parse(text % at, f"s{at}") + sync() for at in range(first, first + 100)]))
            for _ in range(100):
                found = client.read_until(b"Z")
                made += found[0].type == b"1"
                if found[0].type == b"E":
                    refused += 1
                    assert found[0].fields()["C"] == "53400"
    assert made > 4000
    assert refused > 10_000
    assert made * (len(text) + 300) < limit / 2
    assert watch.most < limit / 2 + FLAT
    client.send(bind("s1"), execute(), sync())
    assert client.read_types() == b"2DCZ"
    bystander.send(parse("select 'another'", "s"), bind("s"), execute(), sync())
    assert bystander.read_types() == b"12DCZ"
    client.close()
    settle(proxy)
    bystander.send(*(parse(text % at, f"t{at}") for at in range(3000)), sync())
    assert bystander.read_types() == b"1" * 3000 + b"Z"
