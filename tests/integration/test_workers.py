"""Several workers that are one pool: limits, console, cancels, deaths, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, error, rows, run, value
from fix_postgres import Postgres, environment
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, cancel_request
from fix_wait import await_until, descendants, is_running, wait_until

Make = Callable[..., Proxy]


@pytest.fixture
def make(make_proxy: MakeProxy, database: Database) -> Make:
    """Daemons with two workers in front of the test's own database."""

    def made(**settings: Any) -> Proxy:
        entry = database.entry(**settings.pop("entry", {}))
        settings = {"workers": 2, "pool_mode": "transaction", **settings}
        return make_proxy(databases={"app": entry, **settings.pop("databases", {})}, **settings)

    return made


def worker_of(proxy: Proxy, client: RawClient) -> int:
    """The worker that a client was given to."""
    port = client.socket.getsockname()[1]
    return next(int(row["worker"]) for row in proxy.admin("SHOW CLIENTS") if row["port"] == port)


def workers(proxy: Proxy) -> list[dict[str, Any]]:
    return proxy.admin("SHOW WORKERS")


def workers_clients(proxy: Proxy) -> list[dict[str, Any]]:
    """SHOW CLIENTS, without the console's."""
    return [row for row in proxy.admin("SHOW CLIENTS") if row["database"] != "pgbouncer"]


class Peak:
    """The highest number of backends of a database that pg_stat_activity ever shows, until `end`."""

    def __init__(self, database: Database) -> None:
        self._highest = 0
        self._database = database
        self._connection = database.server.connect(dbname="postgres")
        self._over = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self._look()
        self._looking = self._executor.submit(self._look_on)

    def _look(self) -> None:
        count = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
        row = self._connection.execute(count, [self._database.name]).fetchone()
        assert row is not None
        self._highest = max(self._highest, row[0])

    def _look_on(self) -> None:
        while not self._over.is_set():
            self._look()
        self._look()

    def end(self) -> int:
        self._over.set()
        self._looking.result(30)
        return self._highest

    def close(self) -> None:
        self._over.set()
        self._executor.shutdown()
        self._connection.close()


@contextmanager
def peak(database: Database) -> Iterator[Peak]:
    """Looked at from before the block to after it."""
    watch = Peak(database)
    try:
        yield watch
        watch.end()
    finally:
        watch.close()


async def keep_busy(
    proxy: Proxy, clients: int, transactions: int, seconds: float = 0.001, **who: object
) -> list[Exception]:
    """So many clients with so many transactions each: what went wrong."""
    problems: list[Exception] = []

    async def one() -> None:
        try:
            async with await proxy.aconnect(**who) as connection:
                for _ in range(transactions):
                    await connection.execute("select pg_sleep(%s)", [seconds])
        except psycopg.Error as problem:
            problems.append(problem)

    await asyncio.gather(*(one() for _ in range(clients)))
    return problems


# --- limits ---------------------------------------------------------------------------------------------------------------
async def test_a_pool_is_one_pool_whatever_the_number_of_workers(make: Make, database: Database) -> None:
    proxy = make(workers=4, default_pool_size=5, max_client_conn=500)
    with peak(database) as watch:
        assert await keep_busy(proxy, clients=400, transactions=5) == []
    assert watch.end() == 5


@pytest.mark.parametrize("workers", [2, 4])
async def test_a_pool_of_one_serves_all(make: Make, database: Database, workers: int) -> None:
    proxy = make(workers=workers, default_pool_size=1)
    with peak(database) as watch:
        assert await keep_busy(proxy, clients=12, transactions=20) == []
    assert watch.end() == 1


def test_an_idle_server_moves_to_where_somebody_waits(make: Make, database: Database, login: Login) -> None:
    proxy = make(default_pool_size=1)
    clients = [login(proxy) for _ in range(4)]
    pids = {value(client, "select pg_backend_pid()") for client in clients for client in (client, *clients)}
    assert len(pids) == 1
    assert len(database.pids()) == 1


def test_a_login_needs_no_server_of_its_own(make: Make, login: Login) -> None:
    """All servers are busy in one worker: clients of the other are let in all the same."""
    proxy = make(default_pool_size=1)
    holder = login(proxy)
    run(holder, "begin")
    for _ in range(4):
        login(proxy)


def test_the_reserve_is_one_reserve(make: Make, database: Database, login: Login) -> None:
    proxy = make(default_pool_size=1, reserve_pool_size=1, reserve_pool_timeout="0.2")
    clients = [login(proxy) for _ in range(4)]
    for client in clients:
        ask(client, "begin")
    wait_until(lambda: len(database.pids()) == 2, 10, "the reserve is used")
    wait_until(lambda: proxy.show("POOLS", database="app")["cl_waiting"] == 2, 10, "two wait")
    assert len(database.pids()) == 2
    assert proxy.log_contains("taking connection from reserve_pool", times=1)


def test_min_pool_size_is_kept_by_all_together(make: Make, database: Database, login: Login) -> None:
    proxy = make(default_pool_size=8, min_pool_size=5)
    login(proxy)
    wait_until(lambda: len(database.pids()) == 5, 10, "min_pool_size is there")
    for _ in range(3):
        login(proxy)
    wait_until(lambda: proxy.show("POOLS", database="app")["sv_idle"] == 5, 10, "all are idle")
    assert len(database.pids()) == 5


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("max_client_conn", "no more connections allowed (max_client_conn)"),
        ("max_db_client_connections", "client connections exceeded (max_db_client_connections)"),
        ("max_user_client_connections", "client connections exceeded (max_user_client_connections)"),
    ],
)
def test_clients_are_counted_together(
    make: Make, login: Login, make_raw_client: MakeRawClient, limit: str, message: str
) -> None:
    proxy = make(**{limit: 6 if limit == "max_client_conn" else 5})
    console = login(proxy, user="admin_user", database="pgbouncer")  # counts in max_client_conn
    clients = [login(proxy) for _ in range(5)]
    assert error(make_raw_client(proxy.port).login())["M"] == message
    clients.pop().close()
    wait_until(lambda: sum(int(row[3] or 0) for row in rows(console.query("SHOW WORKERS"))) == 5, 10, "four and the console")
    login(proxy)


def test_max_db_connections_is_shared_by_pools_and_workers(make: Make, database: Database, login: Login) -> None:
    """An idle server of one user's pool gives way to another user's, wherever the two are."""
    proxy = make(max_db_connections=2, users={"trust_user": "", "md5_user": "md5-secret"}, auth_type="trust")
    for client in [login(proxy) for _ in range(4)]:
        run(client, "select 1")
    for client in [login(proxy, user="md5_user") for _ in range(4)]:
        run(client, "select 1")
    wait_until(lambda: len(database.pids()) <= 2, 10, "those that gave way are gone")


@pytest.mark.parametrize(
    ("limit", "parties"),
    [
        ("max_db_connections", [{"user": "trust_user"}, {"user": "md5_user"}]),
        ("max_user_connections", [{"dbname": "app"}, {"dbname": "second"}]),
    ],
)
async def test_what_pools_share_is_never_exceeded(
    make: Make, database: Database, limit: str, parties: list[dict[str, object]]
) -> None:
    """Two pools, in two workers each, want three servers each, of three in all."""
    proxy = make(
        databases={"second": database.entry()}, default_pool_size=3, users={"trust_user": "", "md5_user": "md5-secret"},
        **{limit: 3},
    )  # fmt: skip
    with peak(database) as watch:
        assert await asyncio.gather(*(keep_busy(proxy, clients=8, transactions=25, **who) for who in parties)) == [[], []]
    assert watch.end() == 3


async def test_workers_with_as_many_who_wait_get_as_much(make: Make) -> None:
    """Twenty clients who never stop asking, two servers: which worker's were served, of the first 300."""
    proxy = make(default_pool_size=2)
    connections = [await proxy.aconnect(application_name=f"c{number}") for number in range(20)]
    places = {row["application_name"]: row["worker"] for row in workers_clients(proxy)}
    served: list[int] = []

    async def one(connection: Any, worker: int) -> None:
        while len(served) < 300:
            await connection.execute("select pg_sleep(0.01)")
            served.append(worker)

    await asyncio.gather(*(one(connection, places[f"c{number}"]) for number, connection in enumerate(connections)))
    for connection in connections:
        await connection.close()
    assert min(list(places.values()).count(worker) for worker in (1, 2)) >= 9
    assert 105 <= served[:300].count(1) <= 195


# --- clients --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["tcp", "unix"])
@pytest.mark.parametrize("count", [20, 1000])
def test_clients_are_spread_evenly(make: Make, login: Login, make_raw_client: MakeRawClient, by: str, count: int) -> None:
    proxy = make(max_client_conn=1100)
    for _ in range(count):
        if by == "tcp":
            login(proxy)
        else:
            make_raw_client(proxy.port, path=str(proxy.directory / f".s.PGSQL.{proxy.port}")).login()
    shares = [row["clients"] for row in workers(proxy)]
    assert sum(shares) == count + 1
    assert max(shares) <= 0.6 * count


def test_a_cancel_finds_its_client_in_any_worker(
    make: Make, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make()
    for _ in range(4):
        client = login(proxy)
        for _ in range(3):
            ask(client, "select pg_sleep(30)")
            wait_until(lambda: database.pids(state="active"), 10, "it runs")
            messenger = make_raw_client(proxy.port)
            messenger.send(cancel_request(client.pid, client.secret))
            assert messenger.read_to_end() == []
            assert error(client.read_until(b"Z"))["C"] == "57014"
        client.close()


def test_a_cancel_that_nobody_knows_is_no_success(make: Make, make_raw_client: MakeRawClient, login: Login) -> None:
    proxy = make()
    client = login(proxy)
    messenger = make_raw_client(proxy.port)
    messenger.send(cancel_request(client.pid ^ 1, client.secret[::-1]))
    assert messenger.read_to_end() == []
    proxy.wait_log("failed cancel request")
    assert not proxy.log_contains("successfully sent cancel request")


def test_a_cancel_that_another_daemon_has_got_finds_its_client_in_any_worker(
    make: Make, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    """[peers]: two daemons with two workers each."""
    proxies = [make(peer_id=number, start=False) for number in (1, 2)]
    for proxy in proxies:
        proxy.sections["peers"] = {str(n): f"host=127.0.0.1 port={one.port}" for n, one in enumerate(proxies, 1)}
        proxy.start()
    for here, there in (proxies, proxies[::-1]):
        for client in one_in_each(here, login):
            ask(client, "select pg_sleep(30)")
            wait_until(lambda: database.pids(state="active"), 10, "it runs")
            with make_raw_client(there.port) as messenger:
                messenger.send(cancel_request(client.pid, client.secret))
                assert messenger.read_to_end() == []
            assert error(client.read_until(b"Z"))["C"] == "57014"


# --- one console ------------------------------------------------------------------------------------------------------------
def test_show_tells_of_all(make: Make, login: Login) -> None:
    proxy = make()
    clients = [login(proxy) for _ in range(6)]
    for client in clients:
        run(client, "select 1")
    for _ in range(2):  # whichever worker has the console
        found = proxy.admin("SHOW CLIENTS")
        assert len(found) == 7
        assert len({row["id"] for row in found}) == 7
        assert {row["worker"] for row in found} == {1, 2}
        assert proxy.show("POOLS", database="app")["cl_active"] == 6
        assert proxy.show("STATS_TOTALS", database="app")["query_count"] == 6
        assert next(row["items"] for row in proxy.admin("SHOW LISTS") if row["list"] == "used_clients") == 7


def test_show_workers(make: Make, login: Login) -> None:
    proxy = make()
    for _ in range(2):
        run(login(proxy), "begin")
    found = workers(proxy)
    assert [row["worker"] for row in found] == [1, 2]
    assert sum(row["clients"] for row in found) == 3
    assert sum(row["servers"] for row in found) == sum(row["leases"] for row in found) == 2
    assert {row["pid"] for row in found} < set(descendants(proxy.pid))
    assert all(row["state"] == "active" and row["memory"] > 10_000_000 and row["restarts"] == 0 for row in found)


def test_kill_client_reaches_any_worker(make: Make, login: Login) -> None:
    proxy = make()
    clients = [login(proxy) for _ in range(4)]
    for row in proxy.admin("SHOW CLIENTS"):
        if row["database"] == "app":
            proxy.admin(f"KILL_CLIENT {row['id']}")
    for client in clients:
        assert error(client.read_to_end())["C"] == "57P01"
    with pytest.raises(psycopg.Error, match="client not found"):
        proxy.admin("KILL_CLIENT 123456")


def test_pause_waits_for_all_and_resume_wakes_all(make: Make, database: Database, login: Login) -> None:
    proxy = make()
    holders = [login(proxy) for _ in range(4)]
    for holder in holders:
        run(holder, "begin")
    with psycopg.connect(proxy.dsn(dbname="pgbouncer", user="admin_user"), autocommit=True) as console:
        done = threading.Thread(target=lambda: console.execute("PAUSE app"), daemon=True)
        done.start()
        for holder in holders:
            assert done.is_alive()
            run(holder, "commit")
        done.join(10)
        assert not done.is_alive()
    wait_until(lambda: database.pids() == [], 10, "the servers are closed")
    for holder in holders:
        ask(holder, "select 1")
    wait_until(lambda: proxy.show("POOLS", database="app")["cl_waiting"] == 4, 10, "all wait")
    proxy.admin("RESUME app")
    for holder in holders:
        assert answer(holder) == "1"


def test_a_pause_that_times_out_is_undone_everywhere(make: Make, login: Login) -> None:
    proxy = make()
    holder = login(proxy)
    run(holder, "begin")
    with pytest.raises(psycopg.Error, match="PAUSE timed out"):
        proxy.admin("PAUSE app TIMEOUT 0.3")
    assert proxy.show("DATABASES", name="app")["paused"] == 0
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


def test_settings_change_in_all(make: Make, login: Login) -> None:
    proxy = make(default_pool_size=2)
    proxy.admin("SET default_pool_size = 3")
    for _ in range(4):
        assert {row["value"] for row in proxy.admin("SHOW CONFIG") if row["key"] == "default_pool_size"} == {"3"}
    holders = [login(proxy) for _ in range(3)]
    for holder in holders:
        run(holder, "begin")
    with pytest.raises(psycopg.Error, match="SET failed"):
        proxy.admin("SET pool_mode = nonsense")
    proxy.settings["default_pool_size"] = 4
    proxy.reload()
    fourth = login(proxy)
    run(fourth, "begin")
    assert proxy.show("POOLS", database="app")["sv_active"] == 4


@pytest.mark.parametrize("busy", [0, 1])
def test_a_pool_that_is_made_smaller_closes_what_is_idle_wherever_it_is(
    make: Make, database: Database, login: Login, busy: int
) -> None:
    proxy = make(default_pool_size=2)
    clients = one_in_each(proxy, login)
    for client in clients:
        run(client, "begin")
    run(clients[1 - busy], "commit")
    proxy.admin("SET default_pool_size = 1")
    wait_until(lambda: len(database.pids()) == 1, 10, "the idle one is closed")
    assert value(clients[busy], "select 1") == "1"


def test_a_broken_file_keeps_the_old_state_in_all(make: Make, login: Login) -> None:
    proxy = make()
    proxy.ini.write_text(proxy.ini.read_text() + "\nno_such_key = 1\n")
    with pytest.raises(psycopg.Error, match="RELOAD failed"):
        proxy.admin("RELOAD")
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


def test_a_broken_file_at_sighup_is_logged_once(make: Make) -> None:
    proxy = make()
    proxy.ini.write_text(proxy.ini.read_text() + "\nno_such_key = 1\n")
    proxy.signal(signal.SIGHUP)
    proxy.wait_log("RELOAD failed")
    proxy.admin("SHOW VERSION")
    assert proxy.log_contains("RELOAD failed", times=1)


def test_disabled_and_removed_databases(make: Make, make_raw_client: MakeRawClient, database: Database) -> None:
    proxy = make(databases={"second": database.entry()})
    proxy.admin("DISABLE app")
    for _ in range(4):
        assert error(make_raw_client(proxy.port).login())["M"] == 'database "app" is disabled'
    proxy.admin("ENABLE app")
    del proxy.databases["second"]
    proxy.reload()
    for _ in range(4):
        assert error(make_raw_client(proxy.port).login(database="second"))["C"] == "3D000"


def test_a_server_that_refuses_is_tried_once_for_all_workers_and_is_back_for_all(
    make: Make, database: Database, make_raw_client: MakeRawClient, login: Login
) -> None:
    later = f"{database.name}_later"
    proxy = make(workers=4, entry={"dbname": later}, server_login_retry=60, server_login_retry_backoff=0)
    refused = f'database "{later}" does not exist'
    for _ in range(16):
        assert refused in error(make_raw_client(proxy.port).login())["M"]
    # The second client may have come before the first one's answer was known everywhere.
    assert 1 <= database.server.log().count(f"FATAL:  {refused}") <= 2
    database.server.create_database(later)
    # A new worker knows of no failure, and tries; the others hear from it, long before they would have tried.
    os.kill(workers(proxy)[0]["pid"], signal.SIGKILL)

    def is_let_in() -> bool:
        try:
            return all(message.type != b"E" for message in make_raw_client(proxy.port).login())
        except (OSError, EOFError):  # given to the one that was killed
            return False

    wait_until(is_let_in, 10, "one is let in")
    wait_until(lambda: all(is_let_in() for _ in range(8)), 10, "all are let in")
    proxy.stop()
    database.server.sql(f"drop database {later} with (force)", dbname="postgres")


def test_a_busy_worker_is_not_taken_for_one_that_hangs(make: Make, database: Database, tmp_path: Path) -> None:
    """Nor is anybody else when the supervisor itself has stood still for longer than that."""
    proxy = make(worker_timeout=2)
    script = tmp_path / "one.sql"
    script.write_text("select 1;\n")
    command = [database.server.bindir / "pgbench", "-n", "-h", proxy.host, "-p", str(proxy.port), "-U", "trust_user"]
    load = subprocess.Popen([*command, "-c", "8", "-T", "60", "-f", script, "app"], stdout=subprocess.PIPE, env=environment())
    try:
        wait_until(lambda: min(row["cpu_seconds"] for row in workers(proxy)) > 0.8, 60, "both have worked for a while")
        os.kill(proxy.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(proxy.pid, signal.SIGCONT)
        proxy.wait_log(r"stood still for [\d.]+ s")
        assert [row["restarts"] for row in workers(proxy)] == [0, 0]
        assert load.poll() is None
    finally:
        load.kill()
        load.communicate()


# --- workers that die -------------------------------------------------------------------------------------------------------
def test_a_worker_that_is_killed_is_replaced_and_its_servers_with_it(make: Make, database: Database, login: Login) -> None:
    proxy = make(default_pool_size=2)
    clients: dict[int, RawClient] = {}
    while len(clients) < 2:
        client = login(proxy)
        clients.setdefault(worker_of(proxy, client), client)
    for client in clients.values():
        run(client, "begin")
    victim = workers(proxy)[0]
    ask(clients[1], "select pg_sleep(60)")
    wait_until(lambda: database.pids(state="active"), 10, "it runs")
    with peak(database) as watch:
        os.kill(victim["pid"], signal.SIGKILL)
        assert clients[1].is_closed()
        proxy.wait_log(rf"worker 1 \(pid {victim['pid']}\) has ended, starting another one")
        others = [login(proxy) for _ in range(4)]
        for other in others:
            run(other, "select 1")
    assert watch.end() <= 2
    assert value(clients[2], "select 1") == "1"
    fresh = workers(proxy)[0]
    assert fresh["pid"] != victim["pid"]
    assert fresh["restarts"] == 1


def test_a_new_worker_knows_what_was_ordered(make: Make, make_raw_client: MakeRawClient, login: Login) -> None:
    proxy = make()
    proxy.admin("SET query_wait_timeout = 7")
    proxy.admin("DISABLE app")
    for row in workers(proxy):
        os.kill(row["pid"], signal.SIGKILL)
        proxy.wait_log(rf"worker \d \(pid {row['pid']}\) has ended")
    wait_until(lambda: [row["restarts"] for row in workers(proxy)] == [1, 1], 10, "both are replaced")
    for _ in range(4):
        assert error(make_raw_client(proxy.port).login())["M"] == 'database "app" is disabled'
    assert {row["value"] for row in proxy.admin("SHOW CONFIG") if row["key"] == "query_wait_timeout"} == {"7"}
    proxy.admin("ENABLE app")
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


def test_a_worker_that_hangs_is_replaced(make: Make, login: Login) -> None:
    proxy = make(worker_timeout=2.5)  # on a machine that has other things to do, a worker may be silent for a second
    hung = workers(proxy)[0]["pid"]
    os.kill(hung, signal.SIGSTOP)
    proxy.wait_log(rf"worker 1 \(pid {hung}\) was not heard of for [\d.]+ s: killed")
    wait_until(lambda: not is_running(hung), 10, "it is gone")
    wait_until(lambda: [row["restarts"] for row in workers(proxy)] == [1, 0], 10, "it is replaced")
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


def test_an_order_names_the_worker_that_does_not_answer(
    make: Make, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make(worker_timeout=60)
    console = login(proxy, user="admin_user", database="pgbouncer")
    own = worker_of(proxy, console)
    hung = next(row for row in workers(proxy) if row["worker"] != own)
    os.kill(hung["pid"], signal.SIGSTOP)
    assert error(console.query("DISABLE app"))["M"] == f"worker {hung['worker']} did not answer within 5 s"
    os.kill(hung["pid"], signal.SIGKILL)  # what takes its place is told
    proxy.wait_log(rf"worker \d \(pid {hung['pid']}\) has ended")
    wait_until(lambda: [row["restarts"] for row in workers(proxy) if row["worker"] != own] == [1], 10, "it is replaced")
    for _ in range(4):
        assert error(make_raw_client(proxy.port).login())["M"] == 'database "app" is disabled'


def one_in_each(proxy: Proxy, login: Login, **who: Any) -> list[RawClient]:
    """A client in worker 1, and one in worker 2."""
    found: dict[int, RawClient] = {}
    while len(found) < 2:
        client = login(proxy, **who)
        found.setdefault(worker_of(proxy, client), client)
    return [found[1], found[2]]


def replaced(proxy: Proxy, slot: int) -> None:
    """Kill a worker, and wait for the next."""
    pid = next(row["pid"] for row in workers(proxy) if row["worker"] == slot)
    os.kill(pid, signal.SIGKILL)
    proxy.wait_log(rf"worker \d \(pid {pid}\) has ended")
    wait_until(
        lambda: [row["restarts"] for row in workers(proxy) if row["worker"] == slot and row["pid"] not in (0, pid)] == [1],
        10,
        "it is replaced",
    )


def test_a_worker_that_comes_while_the_others_wait_for_a_pause_is_paused(make: Make, login: Login) -> None:
    proxy = make()
    holder = one_in_each(proxy, login)[1]
    run(holder, "begin")
    proxy.signal(signal.SIGUSR1)
    proxy.wait_log("got SIGUSR1")
    replaced(proxy, 1)
    client = one_in_each(proxy, login)[0]
    ask(client, "select 1")
    wait_until(lambda: proxy.show("POOLS", database="app")["cl_waiting"] == 1, 10, "it waits")
    proxy.admin("RESUME")
    assert answer(client) == "1"


def test_suspend_ends_with_the_worker_that_has_its_console(make: Make, login: Login) -> None:
    proxy = make()
    console = one_in_each(proxy, login, user="admin_user", database="pgbouncer")[0]
    pid = workers(proxy)[0]["pid"]
    rows(console.query("SUSPEND"))
    os.kill(pid, signal.SIGKILL)
    proxy.wait_log("admin disappeared when suspended, doing RESUME")
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


def test_suspend_outlives_every_worker_but_the_one_that_has_its_console(make: Make, login: Login) -> None:
    proxy = make()
    client = one_in_each(proxy, login)[0]
    console = one_in_each(proxy, login, user="admin_user", database="pgbouncer")[1]
    pid = workers(proxy)[0]["pid"]
    rows(console.query("SUSPEND"))
    os.kill(pid, signal.SIGKILL)
    assert client.is_closed()
    wait_until(lambda: rows(console.query("SHOW WORKERS"))[0][1:3] not in ([str(pid), "active"], [str(pid), "gone"]), 10)
    wait_until(lambda: rows(console.query("SHOW WORKERS"))[0][2] == "active", 10, "it is replaced")
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        psycopg.connect(proxy.dsn(connect_timeout=2))  # nobody is let in
    rows(console.query("RESUME"))
    for _ in range(4):
        assert value(login(proxy), "select 1") == "1"


@pytest.mark.parametrize("first", ["PAUSE", "SUSPEND"])
def test_a_console_whose_suspend_was_refused_resumes_nobody(make: Make, login: Login, first: str) -> None:
    proxy = make()
    owner, other = one_in_each(proxy, login, user="admin_user", database="pgbouncer")
    rows(owner.query(first))
    assert error(other.query("SUSPEND"))["M"] == "already suspended/paused"
    before = len(rows(owner.query("SHOW CLIENTS")))
    other.close()
    wait_until(lambda: len(rows(owner.query("SHOW CLIENTS"))) == before - 1, 10, "it has left")
    rows(owner.query("RESUME"))


def test_two_settings_at_the_same_time(make: Make, login: Login) -> None:
    proxy = make()
    consoles = one_in_each(proxy, login, user="admin_user", database="pgbouncer")
    for number in range(3, 8):
        ask(consoles[0], f"SET default_pool_size = {number}")
        ask(consoles[1], f"SET reserve_pool_size = {number}")
        for console in consoles:
            console.read_until(b"Z")
        found = {row["key"]: row["value"] for row in proxy.admin("SHOW CONFIG")}
        assert (found["default_pool_size"], found["reserve_pool_size"]) == (str(number), str(number))


def test_without_anything_that_makes_workers_the_daemon_gives_up_when_the_last_one_has_gone(make: Make) -> None:
    proxy = make()
    pids = [row["pid"] for row in workers(proxy)]
    spawner = next(pid for pid in descendants(proxy.pid) if pid not in pids)
    os.kill(spawner, signal.SIGKILL)
    os.kill(pids[0], signal.SIGKILL)
    proxy.wait_log("worker 1 does not start: the spawner has gone")
    assert proxy.sql("select 1") == [(1,)]  # by the other one
    os.kill(pids[1], signal.SIGKILL)
    assert proxy.wait_exit() == 1
    assert proxy.log_contains("FATAL no worker can be started")


def test_workers_end_with_their_supervisor(make: Make) -> None:
    proxy = make()
    workers(proxy)
    children = descendants(proxy.pid)
    assert len(children) == 3  # two workers, and what makes them
    proxy.signal(signal.SIGKILL)
    proxy.wait_exit()
    wait_until(lambda: not any(map(is_running, children)), 10, "nobody is left")


# --- the life of the daemon -------------------------------------------------------------------------------------------------
def test_sigterm_waits_for_the_clients_of_all(make: Make, login: Login) -> None:
    proxy = make()
    clients = [login(proxy) for _ in range(4)]
    proxy.signal(signal.SIGTERM)
    proxy.wait_log("got SIGTERM")
    for client in clients:
        assert value(client, "select 1") == "1"
        client.close()
    assert proxy.wait_exit() == 0


def test_sigint_ends_clients_that_wait_and_waits_for_servers(make: Make, login: Login) -> None:
    proxy = make(default_pool_size=1)
    holder, waiting = login(proxy), login(proxy)
    run(holder, "begin")
    ask(waiting, "select 1")
    wait_until(lambda: proxy.show("POOLS", database="app")["cl_waiting"] == 1, 10, "it waits")
    proxy.signal(signal.SIGINT)
    assert error(waiting.read_to_end())["C"] == "57P01"
    run(holder, "commit")
    assert proxy.wait_exit() == 0


async def test_restart_loses_no_transaction(make: Make, database: Database) -> None:
    proxy = make(default_pool_size=4)
    before = {row["pid"] for row in workers(proxy)}
    database.sql("create table counted (n int)")

    async def one(connection: Any, stop: asyncio.Event) -> int:
        done = 0
        while not stop.is_set():
            async with connection.transaction():
                await connection.execute("insert into counted values (1)")
                await connection.execute("select pg_sleep(0.002)")
            done += 1
        return done

    stop = asyncio.Event()
    connections = [await proxy.aconnect(prepare_threshold=2) for _ in range(12)]
    running = [asyncio.ensure_future(one(connection, stop)) for connection in connections]
    await asyncio.to_thread(proxy.admin, "RESTART")
    await await_until(lambda: not before & {row["pid"] for row in workers(proxy)}, 30, "the old ones have gone")
    await await_until(lambda: not any(map(is_running, before)), 30, "and ended")
    stop.set()
    done = sum(await asyncio.gather(*running))
    for connection in connections:
        await connection.close()
    assert not [pid for pid in descendants(proxy.pid) if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"]
    assert database.sql("select count(*) from counted") == [(done,)]
    assert proxy.show("STATS_TOTALS", database="app")["xact_count"] >= done


def test_a_broken_configuration_restarts_nobody(make: Make, login: Login) -> None:
    proxy = make()
    before = [row["pid"] for row in workers(proxy)]
    proxy.ini.write_text(proxy.ini.read_text() + "\nno_such_key = 1\n")
    with pytest.raises(psycopg.Error, match="RESTART failed"):
        proxy.admin("RESTART")
    assert [row["pid"] for row in workers(proxy)] == before
    assert value(login(proxy), "select 1") == "1"


def test_one_process_cannot_restart(make: Make) -> None:
    proxy = make(workers=1)
    with pytest.raises(psycopg.Error, match="RESTART needs workers > 1"):
        proxy.admin("RESTART")
    assert descendants(proxy.pid) == []


def test_a_bad_configuration_is_refused_at_start(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, workers=2, client_tls_sslmode="require",
        client_tls_cert_file="/nonexistent/cert", client_tls_key_file="/nonexistent/key", start=False,
    )  # fmt: skip
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("client_tls_key_file|client_tls_cert_file")


def test_statements_of_servers_that_move_keep_their_names(
    make: Make, database: Database, shared_postgres: Postgres
) -> None:
    """Each worker numbers statements for itself; a server that moves takes along what it has prepared."""
    proxy = make(default_pool_size=1)
    connections = [proxy.connect(prepare_threshold=0) for _ in range(4)]
    for turn in range(10):
        for at, connection in enumerate(connections):
            assert connection.execute(f"select {at} + %s::int", [turn]).fetchone() == (at + turn,)
            assert connection.execute("select 'shared' || %s::text", [at]).fetchone() == (f"shared{at}",)
