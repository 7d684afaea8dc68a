"""What an operator does while clients work: none of them notices."""

from __future__ import annotations

import re
import signal
import subprocess

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, run, settle, value
from fix_dns import OwnLoopback
from fix_postgres import environment
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, startup_message
from fix_tcp import MakeMiddleman
from fix_wait import LOOPBACK, wait_until


def bench(proxy: Proxy, *arguments: str) -> subprocess.Popen[str]:
    command = ["pgbench", "-n", "-h", proxy.host, "-p", str(proxy.port), "-U", "trust_user", *arguments, "app"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())


def assert_nothing_failed(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 0, output
    assert re.search(r"number of failed transactions: 0 ", output), output


@pytest.fixture
def loaded(make_proxy: MakeProxy, database: Database) -> Proxy:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=4)
    tables = bench(proxy, "-i", "-q", "-s", "1")
    output, _ = tables.communicate(timeout=30)
    assert tables.returncode == 0, output
    return proxy


@pytest.mark.parametrize(
    "commands",
    [["PAUSE", "RESUME"], ["PAUSE app", "RESUME app"], ["RECONNECT", "WAIT_CLOSE"], ["RELOAD"], ["SET server_lifetime = 0"]],
    ids=" ".join,
)
def test_under_load_it_costs_no_transaction(loaded: Proxy, commands: list[str]) -> None:
    running = bench(loaded, "-c", "8", "-T", "3", "-M", "extended")
    rounds = 0
    while running.poll() is None:
        for command in commands:
            loaded.admin(command)
        rounds += 1
    assert_nothing_failed(running)
    assert rounds > 3


def test_suspend_holds_everybody_and_resume_loses_nobody(loaded: Proxy, make_raw_client: MakeRawClient) -> None:
    running = bench(loaded, "-c", "4", "-T", "3", "-M", "extended")
    wait_until(lambda: loaded.show("POOLS", database="app")["cl_active"] == 4)
    console = loaded.connect(
        dbname="pgbouncer", user=ADMIN_USER, password=ADMIN_PASSWORD, cursor_factory=psycopg.ClientCursor
    )
    console.execute("SUSPEND")
    late = make_raw_client(loaded.port)  # is in the kernel's queue
    late.send(startup_message("trust_user", "app"))
    before = console.execute("SHOW STATS_TOTALS").fetchall()
    assert late.is_silent(0.3)
    after = console.execute("SHOW STATS_TOTALS").fetchall()
    assert [row for row in before if row[0] == "app"] == [row for row in after if row[0] == "app"]
    assert dict(console.execute("SHOW STATE").fetchall())["suspended"] == "yes"
    console.execute("RESUME")
    late.read_until(b"Z")
    assert value(late, "select 1") == "1"
    assert_nothing_failed(running)


def test_suspend_ends_with_its_console(loaded: Proxy, login: Login) -> None:
    loaded.admin("SUSPEND")  # and the connection is closed
    loaded.wait_log("admin disappeared when suspended, doing RESUME")
    assert value(login(loaded), "select 1") == "1"


def test_sigterm_while_suspended_ends_at_once(loaded: Proxy, login: Login) -> None:
    run(login(loaded), "begin")
    console = loaded.connect(
        dbname="pgbouncer", user=ADMIN_USER, password=ADMIN_PASSWORD, cursor_factory=psycopg.ClientCursor
    )
    console.execute("SUSPEND")
    loaded.signal(signal.SIGTERM)
    assert loaded.wait_exit() == 0


def test_a_rolling_restart_by_so_reuseport_fails_no_transaction(make_proxy: MakeProxy, database: Database) -> None:
    """Two processes on one port, each with its own unix socket; the old one lets nobody in and ends with its last client. Those
    who were connecting to it at that moment are served."""
    settings: dict[str, object] = {"pool_mode": "transaction", "so_reuseport": 1}
    old = make_proxy(databases={"app": database.entry()}, **settings)
    tables = bench(old, "-i", "-q", "-s", "1")
    tables.communicate(timeout=30)
    staying = bench(old, "-c", "4", "-T", "4", "-M", "extended")
    wait_until(lambda: old.show("POOLS", database="app")["cl_active"] == 4)
    new = make_proxy(databases={"app": database.entry()}, listen_port=old.port, **settings)
    new.wait_log("process up")
    coming = bench(new, "-c", "4", "-T", "3", "-S", "-C")
    for one in (old, new):
        wait_until(lambda: one.log_contains("login attempt: db=app"))  # noqa: B023 - in this round
    old.signal(signal.SIGTERM)
    assert_nothing_failed(coming)
    assert not old.log_contains("pooler error")
    assert_nothing_failed(staying)
    assert old.wait_exit(10) == 0
    assert new.sql("select 1") == [(1,)]


def test_reconnect_replaces_servers_as_they_are_released(loaded: Proxy, login: Login) -> None:
    client, other = login(loaded), login(loaded)
    run(client, "begin")
    held = backend_pid(client)
    free = backend_pid(other)
    loaded.admin("RECONNECT app")
    assert backend_pid(client) == held
    assert backend_pid(other) != free
    run(client, "commit")
    assert backend_pid(client) != held


def test_reconnect_after_a_failover_moves_every_server_and_costs_no_transaction(
    make_proxy: MakeProxy, database: Database, make_middleman: MakeMiddleman, own_loopback: OwnLoopback
) -> None:
    """The first host of two lets nobody in any more, as one that is shut down in order: transactions there may end."""
    first = make_middleman(database.server.port, host=own_loopback(5), port=database.server.port)
    entry = database.entry(host=f"{first.host},{LOOPBACK}", load_balance_hosts="disable")
    proxy = make_proxy(databases={"app": entry}, pool_mode="transaction", default_pool_size=4, server_login_retry=600)

    def hosts() -> set[str]:
        return {row["addr"] for row in proxy.admin("SHOW SERVERS")}

    bench(proxy, "-i", "-q", "-s", "1").communicate(timeout=30)
    running = bench(proxy, "-c", "8", "-T", "3", "-M", "extended")
    wait_until(lambda: proxy.show("POOLS", database="app")["sv_active"] == 4)
    assert hosts() == {first.host}
    first.refuse()
    proxy.admin("RECONNECT app")
    proxy.admin("WAIT_CLOSE app")
    wait_until(lambda: not first.open)
    assert hosts() <= {LOOPBACK}  # it may still be making them
    moved = proxy.show("STATS_TOTALS", database="app")["xact_count"]
    assert_nothing_failed(running)
    assert proxy.show("STATS_TOTALS", database="app")["xact_count"] > moved
    assert hosts() == {LOOPBACK}
    assert not proxy.log_contains("pooler error")
    assert proxy.log_contains(f"host {first.host} of app is passed over for 600s", times=1)


def test_pause_waits_for_transactions_and_holds_queries(loaded: Proxy, login: Login) -> None:
    busy, waiting = login(loaded), login(loaded)
    run(busy, "begin")
    with pytest.raises(psycopg.Error, match="PAUSE timed out"):
        loaded.admin("PAUSE app TIMEOUT 0.3")
    run(busy, "commit")
    loaded.admin("PAUSE app")
    ask(waiting, "select 'held'")
    settle(loaded)
    assert waiting.is_silent(0.1)
    loaded.admin("RESUME app")
    assert answer(waiting) == "held"
