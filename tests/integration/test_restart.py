"""An online restart: `-R` takes over sockets, clients and servers from the process that runs; nobody notices."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, settle, value
from fix_postgres import environment
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, bind, execute, parse, query, sync
from fix_tls import Certificates
from fix_wait import free_port, is_running, wait_until

TakeOver = Callable[..., Proxy]


@pytest.fixture
def take_over(make_proxy: MakeProxy) -> TakeOver:
    """`take_over(old)`: a second daemon with the same files and -R; returns when it has taken everything over."""

    def start(old: Proxy, *, wait: bool = True, arguments: tuple[str, ...] = ("-R",)) -> Proxy:
        new = make_proxy(start=False, arguments=arguments)
        new.settings, new.databases, new.sections, new.users = old.settings, old.databases, old.sections, old.users
        new.port, new.ini, new.auth_file = old.port, old.ini, old.auth_file
        new.launch()
        if wait:
            wait_taken_over(old, new)
        return new

    return start


def wait_taken_over(old: Proxy, new: Proxy) -> None:
    """The old process ends, in good order."""
    try:
        assert old.wait_exit(20) == 0, old.log()
    except subprocess.TimeoutExpired:
        pytest.fail(f"the old process does not end\n{old.log()}\n---\n{new.log()}")
    new.wait_log("old process has ended")


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    proxy = make_proxy(
        start=False, databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=5, suspend_timeout=10
    )
    proxy.settings["pidfile"] = proxy.directory / "proxy.pid"
    return proxy.start()


# --- the whole --------------------------------------------------------------------------------------------------------
def test_idle_clients_move_with_their_parameters_and_prepared_statements(
    pooled: Proxy, login: Login, take_over: TakeOver, make_raw_client: MakeRawClient
) -> None:
    client = make_raw_client(pooled.port)
    client.login(application_name="mover", TimeZone="Asia/Tokyo")
    client.send(parse("select $1::int + 1", "plus"), bind("plus", "", "4"), execute(), sync())
    assert answer(client) == "5"
    by_unix = make_raw_client(path=f"{pooled.directory}/.s.PGSQL.{pooled.port}")
    by_unix.login()
    old_pid = pooled.pid
    new = take_over(pooled)
    assert not is_running(old_pid)
    client.send(bind("plus", "", "41"), execute(), sync())
    assert answer(client) == "42"
    assert value(client, "show timezone") == "Asia/Tokyo"
    assert value(client, "show application_name") == "mover"
    assert value(by_unix, "select 1") == "1"
    assert (pooled.directory / "proxy.pid").read_text() == f"{new.pid}\n"
    assert value(login(new), "select 2") == "2"  # the listening sockets
    shown = [row for row in new.admin("SHOW CLIENTS") if row["application_name"] == "mover"]
    assert [row["port"] for row in shown] == [client.socket.getsockname()[1]]


def test_servers_move_too(pooled: Proxy, database: Database, login: Login, take_over: TakeOver) -> None:
    client = login(pooled)
    pid = backend_pid(client)
    take_over(pooled)
    assert backend_pid(client) == pid
    assert database.pids() == [pid]


def test_a_transaction_goes_on_in_the_new_process(pooled: Proxy, database: Database, login: Login, take_over: TakeOver) -> None:
    database.sql("create table t (a int)")
    client = login(pooled)
    run(client, "begin")
    run(client, "insert into t values (1)")
    new = take_over(pooled)
    assert new.show("POOLS", database="app")["sv_active"] == 1
    run(client, "insert into t values (2)")
    run(client, "commit")
    assert database.sql("select sum(a) from t") == [(3,)]
    assert new.show("POOLS", database="app")["sv_active"] == 0


def test_a_session_moves_with_what_it_has_made(
    make_proxy: MakeProxy, database: Database, login: Login, take_over: TakeOver
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session")
    client = login(proxy)
    run(client, "create temp table mine as select 7 as a")
    take_over(proxy)
    assert value(client, "select a from mine") == "7"


def test_a_reset_still_gives_back_what_was_asked_for_at_connect(pooled: Proxy, login: Login, take_over: TakeOver) -> None:
    client = login(pooled, application_name="mine")
    run(client, "set application_name = 'changed'; set time zone 'Asia/Tokyo'")
    take_over(pooled)
    run(client, "reset application_name")
    assert (value(client, "show application_name"), value(client, "show timezone")) == ("mine", "Asia/Tokyo")


def test_what_a_client_has_left_on_its_server_is_still_known(
    make_proxy: MakeProxy, database: Database, login: Login, take_over: TakeOver
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", session_state="pin")
    client = login(proxy)
    run(client, "listen news")
    pid = backend_pid(client)
    new = take_over(proxy)
    assert new.show("CLIENTS", database="app")["pinned"] != ""
    database.sql("notify news")
    assert client.read_message().type == b"A"
    assert backend_pid(client) == pid
    run(client, "unlisten *")
    wait_until(lambda: new.show("CLIENTS", database="app")["pinned"] == "")


def test_a_client_with_tls_stays_with_the_old_process_until_it_leaves(
    make_proxy: MakeProxy, database: Database, certificates: Certificates, take_over: TakeOver, login: Login
) -> None:
    settings = certificates.settings()
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", client_tls_sslmode="allow", **settings)
    with_tls = proxy.connect(sslmode="require")
    plain = login(proxy)
    new = take_over(proxy, wait=False)
    wait_until(lambda: new.is_running() and new.log_contains("process up"))
    assert value(plain, "select 1") == "1"
    assert value(login(new), "select 2") == "2"
    for _ in range(3):
        assert with_tls.execute("select 3").fetchone() == (3,)
    assert proxy.is_running()
    with_tls.close()
    wait_taken_over(proxy, new)


def test_after_suspend_timeout_who_is_left_is_sent_away(
    make_proxy: MakeProxy, database: Database, certificates: Certificates, take_over: TakeOver, login: Login
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", client_tls_sslmode="allow", suspend_timeout=1,
        **certificates.settings(),
    )  # fmt: skip
    with_tls = proxy.connect(sslmode="require")
    busy = login(proxy)
    ask(busy, "select pg_sleep(30)")
    wait_until(lambda: proxy.show("POOLS", database="app")["sv_active"] == 1)
    take_over(proxy)
    assert error(busy.read_to_end())["M"] == "suspend_timeout"
    with pytest.raises(psycopg.OperationalError, match="suspend_timeout"):
        with_tls.execute("select 1")


def test_a_query_under_way_is_answered_and_its_client_moves_after_it(
    pooled: Proxy, login: Login, take_over: TakeOver
) -> None:
    client = login(pooled)
    ask(client, "select pg_sleep(1), 'late'")
    wait_until(lambda: pooled.show("POOLS", database="app")["sv_active"] == 1)
    new = take_over(pooled)
    assert client.read_types() == b"TDCZ"
    assert value(client, "select 'on'") == "on"
    assert new.show("LISTS", list="used_clients")["items"] >= 1


def test_waiting_clients_take_their_places_along(
    make_proxy: MakeProxy, database: Database, login: Login, take_over: TakeOver
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    holder = login(proxy)
    run(holder, "begin")
    waiting = [login(proxy) for _ in range(3)]
    for client in waiting:
        ask(client, "select 'served'")
    settle(proxy)
    take_over(proxy)
    assert waiting[0].is_silent(0.1)
    run(holder, "commit")
    assert [answer(client) for client in waiting] == ["served"] * 3


def test_half_a_message_is_no_obstacle(pooled: Proxy, login: Login, take_over: TakeOver) -> None:
    early, late = login(pooled), login(pooled)
    message = query("select '" + "x" * 200000 + "'")
    early.send(message[:3])
    late.send(message[:100000])
    settle(pooled)

    def rest() -> None:
        pooled.wait_log("handing over")
        late.send(message[100000:])

    thread = threading.Thread(target=rest)
    thread.start()
    take_over(pooled)
    thread.join()
    early.send(message[3:])
    assert len(answer(early) or "") == len(answer(late) or "") == 200000


def test_a_cancel_key_keeps_its_worth(pooled: Proxy, login: Login, take_over: TakeOver, make_raw_client: MakeRawClient) -> None:
    from fix_raw import cancel_request

    client = login(pooled)
    new = take_over(pooled)
    ask(client, "select pg_sleep(30)")
    wait_until(lambda: new.show("POOLS", database="app")["sv_active"] == 1)
    make_raw_client(new.port).send(cancel_request(client.pid, client.secret))
    assert error(client.read_until(b"Z"))["C"] == "57014"


def test_counters_and_ids_go_on(pooled: Proxy, login: Login, take_over: TakeOver) -> None:
    client = login(pooled)
    for _ in range(5):
        run(client, "select 1")
    before = pooled.show("STATS_TOTALS", database="app")
    number = pooled.show("CLIENTS", database="app")["id"]
    pooled.admin("DISABLE app")
    new = take_over(pooled)
    run(client, "select 1")
    after = new.show("STATS_TOTALS", database="app")
    assert (before["query_count"], after["query_count"]) == (5, 6)
    assert new.show("CLIENTS", database="app")["id"] == number
    assert new.show("DATABASES", name="app")["disabled"] == 1


def test_with_d_the_new_process_goes_into_the_background(pooled: Proxy, login: Login, take_over: TakeOver) -> None:
    client = login(pooled)
    pidfile = pooled.directory / "proxy.pid"
    before = pidfile.read_text()
    new = take_over(pooled, wait=False, arguments=("-R", "-d"))
    assert new.wait_exit() == 0  # the one that was started has only made the one that stays
    assert pooled.wait_exit(20) == 0
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text() != before and pidfile.read_text()))
    try:
        assert value(client, "select 1") == "1"
        assert value(login(new), "select 2") == "2"
    finally:
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not is_running(pid))
    assert not pidfile.exists()


def test_an_abstract_socket_will_do(
    make_proxy: MakeProxy, database: Database, login: Login, take_over: TakeOver, make_raw_client: MakeRawClient
) -> None:
    name = f"@pgpool_proxy-test-{free_port()}"
    proxy = make_proxy(databases={"app": database.entry()}, unix_socket_dir=name)
    client = login(proxy)
    take_over(take_over(proxy))  # and again, from one that has taken over itself
    assert value(client, "select 1") == "1"
    by_unix = make_raw_client(path=f"\0{name[1:]}/.s.PGSQL.{proxy.port}")
    by_unix.login()
    assert value(by_unix, "select 2") == "2"


def test_without_an_old_process_it_is_a_normal_start(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(arguments=("-R",))
    assert proxy.sql("select 1") == [(1,)]
    assert proxy.log_contains("old process not found")


def test_it_is_refused_while_databases_are_paused(pooled: Proxy, take_over: TakeOver) -> None:
    pooled.admin("PAUSE app")
    new = take_over(pooled, wait=False)
    assert new.wait_exit() == 1
    assert new.log_contains("cannot suspend with paused databases")
    pooled.admin("RESUME app")
    assert pooled.sql("select 1") == [(1,)]


def test_the_old_process_goes_on_when_the_new_one_vanishes(
    pooled: Proxy, login: Login, take_over: TakeOver, database: Database
) -> None:
    busy = login(pooled)
    with database.server.connect(dbname=database.name) as holder:
        holder.execute("select pg_advisory_lock(1)")
        ask(busy, "select pg_advisory_xact_lock(1)")  # busy until we say so, so that it does not move before the new one dies
        wait_until(lambda: pooled.show("POOLS", database="app")["sv_active"] == 1)
        new = take_over(pooled, wait=False)
        pooled.wait_log("handing over")
        new.signal(signal.SIGKILL)
        new.wait_exit()
        pooled.wait_log("doing RESUME")
        assert value(login(pooled), "select 1") == "1"
    assert busy.read_types() == b"TDCZ"
    assert value(busy, "select 2") == "2"


def bench(proxy: Proxy, dbname: str, *arguments: str) -> subprocess.Popen[str]:
    """pgbench through the proxy."""
    command = ["pgbench", "-n", "-h", proxy.host, "-p", str(proxy.port), "-U", "trust_user"]
    return subprocess.Popen(
        [*command, *arguments, dbname], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def test_restart_under_load_fails_no_transaction(
    make_proxy: MakeProxy, database: Database, take_over: TakeOver
) -> None:
    entries = {"tight": database.entry(pool_size=5), "roomy": database.entry(pool_size=10)}
    now = make_proxy(databases=entries, pool_mode="transaction")
    tables = bench(now, "roomy", "-i", "-q", "-s", "1")
    output, _ = tables.communicate(timeout=30)
    assert tables.returncode == 0, output
    loads = [
        ("tight", "-c", "10", "-M", "extended"),
        ("roomy", "-c", "4", "-M", "prepared"),  # pgbench blocks in PQprepare: it needs a server for each
        ("tight", "-c", "2", "-S", "-C"),
    ]
    running = [bench(now, *load, "-T", "4") for load in loads]

    def check(process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate(timeout=40)
        assert process.returncode == 0, output
        assert re.search(r"number of failed transactions: 0 ", output), output
        assert "FATAL" not in output

    def transactions() -> int:
        """How many there were. Loads that have ended begin anew: however long a restart takes, it is under load."""
        for at, load in enumerate(loads):
            if running[at].poll() is not None:
                check(running[at])
                running[at] = bench(now, *load, "-T", "4")
        return sum(row["xact_count"] for row in now.admin("SHOW STATS_TOTALS") if row["database"] == "tight")

    for _ in range(3):
        count = transactions()
        wait_until(lambda: transactions() > count + 50, 30)  # noqa: B023 - in this round
        now = take_over(now)
    assert transactions() > count
    for process in running:
        check(process)
