"""The console of a running daemon: what it shows of a load that is known, and what its commands do to clients."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, settle, value
from fix_postgres import environment
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, STATS_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, RawServer, cancel_request, message, startup_message
from fix_wait import unprivileged_account, wait_until

NOTHING = {
    "cl_active": 0, "cl_waiting": 0, "cl_active_cancel_req": 0, "cl_waiting_cancel_req": 0, "sv_active": 0,
    "sv_active_cancel": 0, "sv_being_canceled": 0, "sv_idle": 0, "sv_used": 0, "sv_tested": 0, "sv_login": 0,
}  # fmt: skip


def made(make_proxy: MakeProxy, database: Database, **settings: object) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2, **settings)


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    return made(make_proxy, database)


@pytest.fixture
def single(make_proxy: MakeProxy, database: Database) -> Proxy:
    """One process, for what several log or number each for itself."""
    return made(make_proxy, database, workers=1)


def counts(proxy: Proxy) -> dict[str, int]:
    """What SHOW POOLS counts of the pool of trust_user, as far as it is not 0."""
    row = proxy.show("POOLS", database="app", user="trust_user")
    return {name: row[name] for name in NOTHING if row[name]}


# --- what it shows --------------------------------------------------------------------------------------------------------
def test_what_is_shown_of_a_load_that_is_known(
    single: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    """Two clients have the two servers, two wait, one is idle (by the unix socket), one has begun to log in."""
    busy = [login(single, application_name=f"busy-{at}") for at in range(2)]
    for client in busy:
        run(client, "begin")
    waiting = [login(single) for _ in range(2)]
    for client in waiting:
        ask(client, "select 1")
    idle = make_raw_client(path=f"{single.directory}/.s.PGSQL.{single.port}")
    idle.login()
    logging_in = make_raw_client(single.port)
    logging_in.send(b"\0")
    settle(single)
    wait_until(lambda: single.show("LISTS", list="login_clients")["items"] == 1)

    assert counts(single) == {"cl_active": 3, "cl_waiting": 2, "sv_active": 2}
    clients = {row["port"]: row for row in single.admin("SHOW CLIENTS") if row["database"] == "app"}
    servers = {row["remote_pid"]: row for row in single.admin("SHOW SERVERS")}
    by_tcp = {client.socket.getsockname()[1]: client for client in busy + waiting}
    assert set(clients) == {*by_tcp, single.port}  # of a unix socket listen_port is shown
    for at, client in enumerate(busy):
        row = clients[client.socket.getsockname()[1]]
        server = servers[backend_pid(client)]
        assert (row["state"], row["link"], row["application_name"]) == ("active", server["ptr"], f"busy-{at}")
        assert (server["state"], server["link"], server["application_name"]) == ("active", row["ptr"], f"busy-{at}")
        assert (server["addr"], server["port"]) == (database.server.host, database.server.port)
        assert (row["local_addr"], row["local_port"], row["remote_pid"]) == (single.host, single.port, 0)
        assert (row["wait"], row["wait_us"], row["tls"], row["replication"]) == (0, 0, "", "none")
    for client in waiting:
        row = clients[client.socket.getsockname()[1]]
        assert (row["state"], row["link"]) == ("waiting", "")
        assert (row["wait"], row["wait_us"]) > (0, 0)
    row = clients[single.port]
    assert (row["state"], row["addr"], row["local_addr"], row["remote_pid"]) == ("idle", "unix", "unix", os.getpid())
    numbers = [one["id"] for one in (*clients.values(), *servers.values())]
    assert len(set(numbers)) == 7
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+", one["connect_time"]) for one in servers.values())

    found = single.show("DATABASES", name="app")
    assert (found["current_connections"], found["current_client_connections"], found["pool_size"]) == (2, 5, 2)
    found = single.show("USERS", name="trust_user")
    assert (found["current_connections"], found["current_client_connections"]) == (2, 5)
    lists = {row["list"]: row["items"] for row in single.admin("SHOW LISTS")}
    assert (lists["used_clients"], lists["login_clients"], lists["used_servers"], lists["free_servers"]) == (7, 1, 2, 0)
    states = sorted(row["state"] for row in single.admin("SHOW SOCKETS") if row["database"] != "pgbouncer")
    assert states == ["cl_active"] * 3 + ["cl_login"] + ["cl_waiting"] * 2 + ["sv_active"] * 2
    fds = {row["fd"]: row for row in single.admin("SHOW FDS")}
    tasks = sorted(row["task"] for row in fds.values())
    assert tasks == ["client"] * 5 + ["pooler"] * 2 + ["server"] * 2
    for row in fds.values():
        assert row["task"] == "pooler" or not row["link"] or fds[row["link"]]["link"] == row["fd"]

    for client in busy:
        run(client, "commit")
    assert [answer(client) for client in waiting] == ["1"] * 2
    wait_until(lambda: counts(single) == {"cl_active": 5, "sv_idle": 2})
    assert single.show("POOLS", database="app")["maxwait_us"] == 0


def test_the_longest_wait_is_maxwait(pooled: Proxy, login: Login) -> None:
    busy, waiting = [login(pooled), login(pooled)], login(pooled)
    for client in busy:
        run(client, "begin")
    ask(waiting, "select 1")
    row = wait_until(lambda: [row for row in pooled.admin("SHOW POOLS") if row["maxwait"] >= 1])[0]
    assert (row["database"], row["maxwait"]) == ("app", 1)
    assert 0 <= row["maxwait_us"] < 1_000_000


def test_cancel_requests_are_counted_while_they_are_under_way(
    make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: MakeRawClient
) -> None:
    databases = {"app": f"host={raw_server.host} port={raw_server.port}"}
    proxy = make_proxy(databases=databases, pool_mode="transaction", default_pool_size=1, server_tls_sslmode="disable")
    client = make_raw_client(proxy.port)
    client.send(startup_message("trust_user", "app"))
    server = raw_server.accept_login()
    (key,) = [found.body for found in client.read_until(b"Z") if found.type == b"K"]
    ask(client, "select pg_sleep(20)")
    server.read_message()
    assert counts(proxy) == {"cl_active": 1, "sv_active": 1}
    request = make_raw_client(proxy.port)
    request.send(cancel_request(int.from_bytes(key[:4], "big", signed=True), key[4:]))
    bearer = raw_server.accept()
    raw_server.read_startup(bearer)
    on_its_way = {"cl_active": 1, "cl_active_cancel_req": 1, "sv_active_cancel": 1}
    wait_until(lambda: counts(proxy) == on_its_way | {"sv_active": 1})
    states = [row["state"] for row in proxy.admin("SHOW CLIENTS") if row["database"] == "app"]
    assert sorted(states) == ["active", "active_cancel_req"]
    assert sorted(row["state"] for row in proxy.admin("SHOW SERVERS")) == ["active", "active_cancel"]
    server.send(message(b"C", b"SELECT 1\0"), message(b"Z", b"I"))  # it was too late: who knows whom the cancel meets now
    client.read_until(b"Z")
    wait_until(lambda: counts(proxy) == on_its_way | {"sv_being_canceled": 1})
    bearer.close()
    assert request.is_closed()
    wait_until(lambda: counts(proxy) == {"cl_active": 1, "sv_idle": 1})


# --- who may come in --------------------------------------------------------------------------------------------------------
def test_user_pgbouncer_is_an_admin_when_it_is_the_daemons_own_account_by_the_unix_socket(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(auth_type="scram-sha-256")
    account = unprivileged_account()

    def ask_as(own: bool, host: object, command: str) -> subprocess.CompletedProcess[str]:
        who = {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []} if own and account else {}
        conninfo = proxy.dsn(dbname="pgbouncer", user="pgbouncer", host=host)
        return subprocess.run(
            ["psql", "-X", "-w", "-At", "-c", command, conninfo],
            capture_output=True, text=True, check=False, timeout=20, env=environment(), cwd="/", **who,
        )  # fmt: skip

    for command, said in (("SHOW VERSION", "pgpool_proxy"), ("RELOAD", "RELOAD"), ("PAUSE", "PAUSE"), ("RESUME", "RESUME")):
        done = ask_as(True, proxy.directory, command)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(said)
    assert ask_as(True, proxy.host, "SHOW VERSION").returncode != 0  # by TCP it would have to prove it
    if account is not None:
        assert ask_as(False, proxy.directory, "SHOW VERSION").returncode != 0  # we are root, the daemon is not


# --- commands that wait -----------------------------------------------------------------------------------------------------
@contextmanager
def psql(proxy: Proxy, *commands: str) -> Iterator[subprocess.Popen[str]]:
    """psql on the console, which runs these, one after the other, until the first that fails."""
    arguments = [part for command in commands for part in ("-c", command)]
    process = subprocess.Popen(
        ["psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", *arguments, proxy.dsn(dbname="pgbouncer", user=ADMIN_USER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "PGPASSWORD": ADMIN_PASSWORD},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("command", ["PAUSE", "PAUSE app"])
def test_ctrl_c_undoes_a_pause_that_waits(pooled: Proxy, login: Login, command: str) -> None:
    busy, other = login(pooled), login(pooled)
    run(busy, "begin")
    with psql(pooled, command, "SHOW STATE") as process:
        pooled.wait_log(rf"{command.split(maxsplit=1)[0]}.* command issued")
        ask(other, "select 'held'")
        settle(pooled)
        assert other.is_silent(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert "canceling statement due to user request" in output
    assert answer(other) == "held"
    assert pooled.show("DATABASES", name="app")["paused"] == 0
    assert pooled.show("STATE", key="active")["value"] == "yes"
    run(busy, "commit")


def test_resume_wakes_every_pause_that_waits(single: Proxy, login: Login) -> None:
    busy = login(single)
    run(busy, "begin")
    with psql(single, "PAUSE app") as first, psql(single, "PAUSE app") as second:
        wait_until(lambda: single.log_contains("PAUSE '?app'? command issued", times=2))
        single.admin("RESUME app")
        for process in (first, second):
            assert "PAUSE was ended by RESUME" in process.communicate(timeout=10)[0]
    assert value(busy, "select 1") == "1"


def test_wait_close_waits_for_servers_that_are_in_use(pooled: Proxy, login: Login) -> None:
    busy = login(pooled)
    run(busy, "begin")
    with psql(pooled, "RECONNECT app", "WAIT_CLOSE app") as process:
        pooled.wait_log("WAIT_CLOSE .*command issued")
        (row,) = pooled.admin("SHOW SERVERS")
        assert row["close_needed"] == 1
        assert process.poll() is None
        run(busy, "commit")
        output, _ = process.communicate(timeout=10)
    assert (process.returncode, output.split()) == (0, ["RECONNECT", "WAIT_CLOSE"])


# --- commands that send clients away ------------------------------------------------------------------------------------------
def test_disable_lets_nobody_in_and_those_who_are_in_go_on(pooled: Proxy, login: Login, make_raw_client: MakeRawClient) -> None:
    client = login(pooled)
    pooled.admin("DISABLE app")
    told = error(make_raw_client(pooled.port).login())
    assert (told["S"], told["M"]) == ("FATAL", 'database "app" is disabled')
    assert value(client, "select 1") == "1"
    assert pooled.show("DATABASES", name="app")["disabled"] == 1
    pooled.admin("ENABLE app")
    assert value(login(pooled), "select 1") == "1"


def test_kill_drops_everybody_and_pauses(pooled: Proxy, database: Database, login: Login) -> None:
    busy, idle = login(pooled), login(pooled)
    run(busy, "begin")
    pooled.admin("KILL app")
    for client in (busy, idle):
        told = error(client.read_to_end())
        assert (told["S"], told["M"]) == ("FATAL", "database removed")
    wait_until(lambda: database.pids() == [])
    with pytest.raises(psycopg.Error, match="pooler is not paused/suspended"):
        pooled.admin("RESUME")
    assert pooled.show("DATABASES", name="app")["paused"] == 1
    pooled.admin("RESUME app")
    assert value(login(pooled), "select 1") == "1"


def test_kill_client_sends_one_away(pooled: Proxy, login: Login) -> None:
    victim, other = login(pooled, application_name="victim"), login(pooled)
    number = pooled.show("CLIENTS", application_name="victim")["id"]
    pooled.admin(f"KILL_CLIENT {number}")
    told = error(victim.read_to_end())
    assert (told["S"], told["C"], told["M"]) == ("FATAL", "57P01", "admin forced disconnect")
    assert value(other, "select 1") == "1"
    for argument, said in ((str(number), "client not found"), ("nonsense", "invalid client pointer supplied")):
        with pytest.raises(psycopg.Error, match=said):
            pooled.admin(f"KILL_CLIENT {argument}")


# --- the end ------------------------------------------------------------------------------------------------------------
def console(proxy: Proxy, login: Login, **keywords: Any) -> RawClient:
    return login(proxy, user=ADMIN_USER, database="pgbouncer", **keywords)


def test_shutdown_wait_for_clients_is_sigterm(pooled: Proxy, login: Login) -> None:
    client, order = login(pooled), console(pooled, login)
    assert [found.type for found in order.query("SHUTDOWN WAIT_FOR_CLIENTS")] == [b"C", b"Z"]
    assert value(client, "select 1") == "1"
    assert pooled.is_running()
    client.close()
    assert pooled.wait_exit() == 0  # the console is not waited for
    assert error(order.read_to_end())["M"] == "pooler is shutting down"
    assert pooled.log_contains("client connections dropped, exiting")


def test_shutdown_wait_for_servers_is_sigint(pooled: Proxy, login: Login) -> None:
    busy, idle, order = login(pooled), login(pooled), console(pooled, login)
    run(busy, "begin")
    assert [found.type for found in order.query("SHUTDOWN WAIT_FOR_SERVERS")] == [b"C", b"Z"]
    ask(idle, "select 1")
    assert error(idle.read_to_end())["M"] == "server shutting down"
    run(busy, "commit")
    assert pooled.wait_exit() == 0
    assert pooled.log_contains("server connections dropped, exiting")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shutdown_that_waits_for_clients_may_be_made_one_that_waits_for_servers(
    make_proxy: MakeProxy, database: Database, login: Login, workers: int
) -> None:
    proxy = made(make_proxy, database, workers=workers)
    busy, idle, order = login(proxy), login(proxy), console(proxy, login)
    run(busy, "begin")
    for mode in ("CLIENTS", "CLIENTS", "SERVERS"):
        assert value(idle, "select 1") == "1"
        assert [found.type for found in order.query(f"SHUTDOWN WAIT_FOR_{mode}")] == [b"C", b"Z"]
    assert [found.type for found in order.query("SHUTDOWN WAIT_FOR_SERVERS")] == [b"C", b"Z"]
    assert error(order.query("SHUTDOWN WAIT_FOR_CLIENTS"))["M"] == "pooler is shutting down"

    def told() -> str:
        """What a query is refused with, once its worker has heard of it."""
        ask(idle, "select 1")
        first = idle.read_message()
        if first.type == b"E":
            return first.fields()["M"]
        idle.read_until(b"Z")
        return ""

    assert wait_until(told) == "server shutting down"
    run(busy, "commit")
    assert proxy.wait_exit() == 0
    assert proxy.log_contains("server connections dropped, exiting")


def test_shutdown_is_the_end_at_once(pooled: Proxy, login: Login) -> None:
    busy, order = login(pooled), console(pooled, login)
    run(busy, "begin")
    ask(order, "SHUTDOWN")
    assert pooled.wait_exit() == 0
    assert not any(found.type == b"C" for found in order.read_to_end())
    assert error(busy.read_to_end())["C"] == "57P01"


def test_who_may_only_look_is_told_so_and_others_not_to_come(pooled: Proxy) -> None:
    with pytest.raises(psycopg.Error, match="admin access needed"):
        pooled.admin("SHUTDOWN", user=STATS_USER)
    with pytest.raises(psycopg.OperationalError, match="not allowed"):
        pooled.admin("SHOW STATE", user="trust_user")
    assert pooled.is_running()
