"""What operators order of several workers: RELOAD, RECONNECT, KILL, SHUTDOWN, SIGRTMIN; and what systemd hears of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_clients import Database, Login, backend_pid, error, run, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient
from fix_systemd import Manager
from fix_tls import Certificates
from fix_wait import descendants, hand_over, is_running, wait_until

Make = Callable[..., Proxy]

ALL = "local all all trust\nhost all all 127.0.0.1/32 trust\n"
NOBODY = "host all pgbouncer 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 reject\n"
BROKEN = "host all all 127.0.0.1/32 nonsense\n"


@pytest.fixture
def make(make_proxy: MakeProxy, database: Database) -> Make:
    """Daemons with two workers in front of the test's own database."""

    def made(**settings: Any) -> Proxy:
        return make_proxy(databases={"app": database.entry()}, workers=2, pool_mode="transaction", **settings)

    return made


@pytest.fixture
def by_rules(make: Make, make_proxy: MakeProxy) -> Proxy:
    """One that reads hba.conf, which lets everybody in."""
    proxy = make(start=False, auth_type="hba")
    rules = proxy.directory / "hba.conf"
    rules.write_text(ALL)
    hand_over(rules)
    proxy.settings["auth_hba_file"] = rules
    return proxy.start()


def pids(proxy: Proxy) -> list[int]:
    return [row["pid"] for row in proxy.admin("SHOW WORKERS")]


def one_in_each(proxy: Proxy, login: Login, **who: Any) -> list[RawClient]:
    """A client in worker 1, and one in worker 2, and nobody else."""
    found: dict[int, RawClient] = {}
    others: list[RawClient] = []
    while len(found) < 2:
        client = login(proxy, **who)
        port = client.socket.getsockname()[1]
        worker = next(row["worker"] for row in proxy.admin("SHOW CLIENTS") if row["port"] == port)
        others += [client] if worker in found else []
        found.setdefault(worker, client)
    for client in others:
        client.close()
    return [found[1], found[2]]


# --- RELOAD ---------------------------------------------------------------------------------------------------------------
def test_broken_rules_at_reload_keep_the_old_ones_in_all(by_rules: Proxy, login: Login) -> None:
    by_rules.settings["query_wait_timeout"] = 77
    (by_rules.directory / "hba.conf").write_text(BROKEN)
    with pytest.raises(psycopg.Error, match="RELOAD failed"):
        by_rules.reload()
    for _ in range(4):
        assert value(login(by_rules), "select 1") == "1"
        found = {row["key"]: row["value"] for row in by_rules.admin("SHOW CONFIG")}
        assert found["query_wait_timeout"] == "120"


@pytest.mark.parametrize("late", [0, 1])
def test_rules_that_break_while_they_are_read_change_nothing_anywhere(by_rules: Proxy, login: Login, late: int) -> None:
    """One worker reads good rules, the other a moment later what somebody has broken meanwhile."""
    stopped = pids(by_rules)[late]
    os.kill(stopped, signal.SIGSTOP)
    try:
        rules = by_rules.directory / "hba.conf"
        rules.unlink()
        os.mkfifo(rules)
        hand_over(rules)
        by_rules.signal(signal.SIGHUP)
        with rules.open("w") as pipe:  # opened when the one that runs reads it
            broken = by_rules.directory / "broken.conf"
            broken.write_text(BROKEN)
            hand_over(broken)
            broken.replace(rules)
            pipe.write(NOBODY)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert "done by" not in by_rules.wait_log(r"ERROR RELOAD failed, the old configuration stays: .*hba\.conf:1")
    for _ in range(4):
        assert value(login(by_rules), "select 1") == "1"


def test_a_broken_tls_key_at_reload_keeps_the_old_one_in_all(
    make: Make, certificates: Certificates, database: Database
) -> None:
    """And clients come in by TLS, in either worker."""
    proxy = make(start=False, client_tls_sslmode="require")
    key = proxy.directory / "own.key"
    certificate, good = certificates.server
    key.write_bytes(good.read_bytes())
    hand_over(key)
    proxy.settings |= {"client_tls_cert_file": certificate, "client_tls_key_file": key}
    proxy.start()
    tls = {"sslmode": "verify-full", "sslrootcert": str(certificates.ca), "host": "localhost"}

    def come_in() -> None:
        connections = [proxy.connect(**tls) for _ in range(4)]
        for connection in connections:
            assert connection.execute("select 1").fetchone() == (1,)
        seen = [row for row in proxy.admin("SHOW CLIENTS", **tls) if row["database"] == "app"]
        assert {row["worker"] for row in seen} == {1, 2}
        assert all(row["tls"].startswith("TLSv1") for row in seen)
        for connection in connections:
            connection.close()

    come_in()
    key.write_text("no key at all")
    proxy.settings["query_wait_timeout"] = 77
    proxy.write_config()
    with pytest.raises(psycopg.Error, match="RELOAD failed"):
        proxy.admin("RELOAD", **tls)
    come_in()
    key.write_bytes(good.read_bytes())
    proxy.admin("RELOAD", **tls)
    come_in()


# --- servers and clients --------------------------------------------------------------------------------------------------
def test_reconnect_closes_the_servers_of_all_as_they_come_free(make: Make, database: Database, login: Login) -> None:
    proxy = make()
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    before = [backend_pid(client) for client in clients]
    proxy.admin("RECONNECT app")
    assert [backend_pid(client) for client in clients] == before
    for client in clients:
        run(client, "commit")
    wait_until(lambda: not set(before) & set(database.pids()), 10, "the old ones are gone")
    for client in clients:
        assert backend_pid(client) not in before


def test_kill_ends_the_clients_and_servers_of_all(make: Make, database: Database, login: Login) -> None:
    proxy = make()
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    proxy.admin("KILL app")
    for client in clients:
        assert error(client.read_to_end())["C"] == "57P01"
    wait_until(lambda: database.pids() == [], 10, "the servers are closed")
    proxy.admin("RESUME app")
    for client in one_in_each(proxy, login):
        assert value(client, "select 1") == "1"


# --- shutdown ---------------------------------------------------------------------------------------------------------------
def test_shutdown_at_once_ends_all(make: Make, database: Database, login: Login) -> None:
    proxy = make()
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    children = descendants(proxy.pid)
    with pytest.raises(psycopg.OperationalError):
        proxy.admin("SHUTDOWN")
    assert proxy.wait_exit() == 0
    for client in clients:
        client.read_to_end()
    wait_until(lambda: not any(map(is_running, children)), 10, "nobody is left")
    wait_until(lambda: database.pids() == [], 10, "the servers are closed")


@pytest.mark.parametrize(("mode", "ends_idle"), [("WAIT_FOR_CLIENTS", False), ("WAIT_FOR_SERVERS", True)])
def test_shutdown_that_waits_waits_for_those_of_all(
    make: Make, login: Login, make_raw_client: MakeRawClient, mode: str, ends_idle: bool
) -> None:
    proxy = make()
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    proxy.admin(f"SHUTDOWN {mode}")
    with pytest.raises(OSError):
        wait_until(lambda: make_raw_client(proxy.port).close(), 10)  # until nobody listens
    for client in clients:
        assert proxy.is_running()
        assert value(client, "select 1") == "1"
        run(client, "commit")
        if not ends_idle:
            client.close()
    assert proxy.wait_exit() == 0


# --- rolling restart --------------------------------------------------------------------------------------------------------
def test_sigrtmin_replaces_the_workers_and_loses_nobody(make: Make, login: Login) -> None:
    proxy = make()
    before = pids(proxy)
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    servers = [backend_pid(client) for client in clients]
    proxy.signal(signal.SIGRTMIN)  # type: ignore[arg-type]
    proxy.wait_log("got SIGRTMIN, replacing the workers")
    wait_until(lambda: not any(map(is_running, before)), 30, "the old ones have ended")
    assert [backend_pid(client) for client in clients] == servers
    for client in clients:
        run(client, "commit")
    found = proxy.admin("SHOW WORKERS")
    assert [(row["worker"], row["state"], row["restarts"]) for row in found] == [(1, "active", 1), (2, "active", 1)]


# --- systemd ----------------------------------------------------------------------------------------------------------------
def test_systemd_hears_of_one_daemon(make: Make, login: Login) -> None:
    """Each thing once, whatever the number of workers: the next message is always about the next thing."""
    proxy = make(start=False)
    path = proxy.directory / "notify"
    manager = Manager(path)
    with manager.socket:
        proxy.environ["NOTIFY_SOCKET"] = str(path)
        proxy.start()
        assert manager.heard() == {"READY": "1", "MAINPID": str(proxy.pid), "STATUS": "Serving"}
        proxy.signal(signal.SIGHUP)
        assert manager.heard()["RELOADING"] == "1"
        assert manager.heard()["READY"] == "1"
        clients = one_in_each(proxy, login)
        proxy.signal(signal.SIGTERM)
        assert manager.heard() == {"STOPPING": "1", "STATUS": "Waiting for clients"}
        for client in clients:
            client.close()
        assert manager.heard() == {"STOPPING": "1", "STATUS": "Exiting"}
        assert proxy.wait_exit() == 0
        manager.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.heard()
