"""Settings that are about how the pooler listens, greets and logs: each does what it says, and follows SET and RELOAD."""

from __future__ import annotations

import grp
import os
import pwd
import re
import signal
import socket
import stat
from pathlib import Path

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, settle, value
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, STATS_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, startup_message
from fix_wait import LOOPBACK, free_port, hand_over, unprivileged_account, wait_until


@pytest.fixture
def proxy(keep_proxy: MakeProxy) -> Proxy:
    """One for all tests that change it by SET; each begins with what the file says."""
    proxy = keep_proxy(pool_mode="transaction")
    proxy.admin("RELOAD")
    return proxy


# --- where it listens ---------------------------------------------------------------------------------------------------
def test_it_listens_on_several_addresses_and_ports(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    other = free_port()
    proxy = make_proxy(listen_addr=f"{LOOPBACK}, 127.0.0.2, {LOOPBACK}:{other}, 127.0.0.3:{other}")
    places = [(LOOPBACK, proxy.port), ("127.0.0.2", proxy.port), (LOOPBACK, other), ("127.0.0.3", other)]
    for host, port in places:
        assert proxy.sql("select 1", host=host, port=port) == [(1,)]
        assert proxy.log_contains(rf"listening on {re.escape(host)}:{port}$", times=1)
    with socket.socket() as nobody:
        assert nobody.connect_ex(("127.0.0.3", proxy.port)) != 0
    found = {(row["addr"], row["port"]) for row in proxy.admin("SHOW FDS") if row["task"] == "pooler"}
    assert found == {*places, ("unix", proxy.port)}
    client = make_raw_client(other)
    client.login()
    shown = {(row["local_addr"], row["local_port"]) for row in proxy.admin("SHOW CLIENTS") if row["database"] == "app"}
    assert shown == {(LOOPBACK, other)}


def test_listen_addr_may_be_a_name_or_all(make_proxy: MakeProxy) -> None:
    named = make_proxy(listen_addr="localhost")
    assert named.sql("select 1", host="localhost") == [(1,)]
    everywhere = make_proxy(listen_addr="*")
    assert everywhere.sql("select 1", host="127.0.0.9") == [(1,)]


def test_listen_backlog_is_the_length_of_the_kernels_queue(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(listen_backlog=2, tcp_defer_accept=0)
    settle(proxy)
    proxy.signal(signal.SIGSTOP)
    queued: list[socket.socket] = []
    try:
        for _ in range(3):  # the kernel takes one more than it is told
            queued += [socket.create_connection((LOOPBACK, proxy.port), timeout=5)]
        with socket.socket() as late:
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.connect((LOOPBACK, proxy.port))
    finally:
        proxy.signal(signal.SIGCONT)
        for one in queued:
            one.close()


def test_unix_socket_group(make_proxy: MakeProxy) -> None:
    """Who is not root may give a file to any group that it is in."""
    account = unprivileged_account() or pwd.getpwuid(os.geteuid()).pw_name
    member_of = [group.gr_name for group in grp.getgrall() if account in group.gr_mem]
    name = [grp.getgrgid(pwd.getpwnam(account).pw_gid).gr_name, *member_of][-1]
    proxy = make_proxy(unix_socket_group=name, unix_socket_mode="0770")
    found = Path(proxy.directory / f".s.PGSQL.{proxy.port}").stat()
    assert (grp.getgrgid(found.st_gid).gr_name, stat.S_IMODE(found.st_mode)) == (name, 0o770)
    refused = make_proxy(start=False, unix_socket_group="no_group_of_this_name")
    assert refused.run_to_end() == 1
    assert refused.log_contains('there is no group "no_group_of_this_name"')


# --- what clients are told ----------------------------------------------------------------------------------------------
def test_login_notify_message_is_a_notice_after_each_login(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    def greetings(**parameters: str) -> list[dict[str, str]]:
        client = make_raw_client(proxy.port)
        found = client.login(**parameters)
        assert found[-1].type == b"Z"
        assert value(client, "select 1") == "1"
        return [message.fields() for message in found if message.type == b"N"]

    assert greetings() == []
    proxy.admin("SET login_notify_message = 'moves on Sunday'")
    (told,) = greetings()
    assert (told["S"], told["C"], told["M"]) == ("NOTICE", "00000", "moves on Sunday")
    proxy.admin("RELOAD")
    assert greetings() == []


def test_stats_users_look_and_admin_users_act(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    assert proxy.admin("SHOW POOLS", user=STATS_USER)
    for command in (
        "PAUSE", "RESUME", "SUSPEND", "DISABLE app", "ENABLE app", "RECONNECT", "WAIT_CLOSE", "KILL", "KILL_CLIENT 1",
        "RELOAD", "SHUTDOWN", "SET verbose = 1", "SHOW FDS",
    ):  # fmt: skip
        with pytest.raises(psycopg.Error, match="admin access needed"):
            proxy.admin(command, user=STATS_USER)
    with pytest.raises(psycopg.Error, match="not allowed"):
        proxy.admin("SHOW POOLS", user="trust_user")
    proxy.admin("SET stats_users = 'stats_user, trust_user'")
    assert proxy.admin("SHOW POOLS", user="trust_user")
    proxy.admin("SET admin_users = 'admin_user,trust_user'")
    proxy.admin("RELOAD", user="trust_user")


# --- what is logged -----------------------------------------------------------------------------------------------------
def test_logins_ends_and_errors_are_logged_unless_they_are_not_to_be(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    def log_of(**settings: int) -> str:
        """What a login, an error and a disconnection leave in the log."""
        for key, number in settings.items():
            proxy.admin(f"SET {key} = {number}")
        before = len(proxy.log())
        client = make_raw_client(proxy.port)
        client.send(startup_message("trust_user", "app", nonsense="1"))
        error(client.read_to_end())
        with make_raw_client(proxy.port) as client:
            client.login()
        settle(proxy)
        assert proxy.admin("SHOW STATE")
        return proxy.log()[before:]

    def has(text: str) -> tuple[bool, bool, bool]:
        return "login attempt: db=app" in text, "closing because" in text, "pooler error: unsupported startup" in text

    assert has(log_of()) == (True, True, True)
    assert has(log_of(log_connections=0)) == (False, True, True)
    assert has(log_of(log_disconnections=0)) == (False, False, True)
    assert has(log_of(log_pooler_errors=0)) == (False, False, False)


def test_logfile_may_be_changed(proxy: Proxy) -> None:
    """It has all that stderr has, from then on."""
    file = proxy.directory / "another.log"
    proxy.admin(f"SET logfile = '{file}'")
    before = len(proxy.log())
    proxy.sql("select 1")
    settle(proxy)
    assert "login attempt: db=app" in file.read_text()
    assert "login attempt: db=app" in proxy.log()[before:]
    proxy.admin("RELOAD")  # the file of settings names none
    size = file.stat().st_size
    proxy.sql("select 1")
    settle(proxy)
    assert file.stat().st_size == size


def test_verbose_and_log_stats_follow_set(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(stats_period=1, log_stats=0, verbose=1)
    proxy.sql("select 1")
    assert proxy.log_contains(" DEBUG ")
    wait_until(lambda: proxy.show("STATS", database="app")["avg_xact_time"] == 0)  # two periods later
    assert not proxy.log_contains(r"stats: \d+ xacts/s")
    proxy.admin("SET log_stats = 1")
    proxy.wait_log(r"stats: \d+ xacts/s")
    proxy.admin("SET verbose = 0")
    before = proxy.log().count(" DEBUG ")
    proxy.sql("select 1")
    assert proxy.log().count(" DEBUG ") == before


# --- files --------------------------------------------------------------------------------------------------------------
def test_set_conffile_is_what_the_next_reload_reads(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    assert proxy.show("CONFIG", key="conffile")["value"] == str(proxy.ini)
    second = proxy.directory / "second.ini"
    second.write_text(proxy.ini.read_text() + "\nquery_wait_timeout = 7\n")
    hand_over(second)
    proxy.admin(f"SET conffile = '{second}'")
    assert proxy.show("CONFIG", key="query_wait_timeout")["value"] == "120"
    proxy.admin("RELOAD")
    assert proxy.show("CONFIG", key="query_wait_timeout")["value"] == "7"
    proxy.admin("RELOAD")  # sticky: its default is NULL
    assert proxy.show("CONFIG", key="query_wait_timeout")["value"] == "7"


def test_what_the_operator_has_paused_or_disabled_stays_so_over_a_reload(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    """Even when the entry leads elsewhere meanwhile, which is what it was paused for."""
    proxy = make_proxy(databases={"app": database.entry(dbname="postgres")}, pool_mode="transaction")
    client = login(proxy)
    assert value(client, "select current_database()") == "postgres"
    proxy.admin("PAUSE app")
    ask(client, "select current_database()")
    proxy.databases["app"] = database.entry()
    proxy.reload()
    assert client.is_silent(0.2)
    assert proxy.show("DATABASES", name="app")["paused"] == 1
    proxy.admin("RESUME app")
    assert answer(client) == database.name
    proxy.admin("DISABLE app")
    proxy.reload()
    assert "disabled" in error(make_raw_client(proxy.port).login())["M"]


def test_a_database_that_was_removed_may_come_back(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy)
    run(client, "select 1")
    proxy.databases = {}
    proxy.reload()
    assert error(client.read_to_end())["M"] == "database removed"
    proxy.databases = {"app": database.entry()}
    proxy.reload()
    assert value(login(proxy), "select 1") == "1"
    assert proxy.show("DATABASES", name="app")["paused"] == 0


# --- clients that vanish --------------------------------------------------------------------------------------------------
def test_without_cancel_on_disconnect_the_server_of_a_client_that_vanishes_is_closed(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", cancel_on_disconnect=0)
    client = login(proxy)
    pid = backend_pid(client)
    ask(client, "select pg_sleep(0.4)")
    wait_until(lambda: database.pids(state="active") == [pid])
    client.close()
    proxy.wait_log("closing because: client disconnected with query in progress")
    other = login(proxy)
    run(other, "begin")
    assert backend_pid(other) != pid
    other.close()
    proxy.wait_log("closing because: client disconnect while server was not ready")
    wait_until(lambda: database.pids() == [])


# --- whose settings count -------------------------------------------------------------------------------------------------
def test_query_wait_timeout_of_a_database_comes_before_that_of_all(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    databases = {"app": database.entry(pool_size=1), "patient": database.entry(pool_size=1, query_wait_timeout=0)}
    proxy = make_proxy(databases=databases, pool_mode="transaction", query_wait_timeout=0.2)
    holders = {name: login(proxy, database=name) for name in databases}
    waiting = {name: login(proxy, database=name) for name in databases}
    for name in databases:
        run(holders[name], "begin")
        ask(waiting[name], "select 1")
    assert error(waiting["app"].read_to_end())["M"] == "query_wait_timeout"
    assert waiting["patient"].is_silent(0.1)
    run(holders["patient"], "commit")
    assert waiting["patient"].read_types() == b"TDCZ"


@pytest.mark.parametrize(
    ("key", "begin", "message"),
    [
        ("query_timeout", "select pg_sleep(5)", "canceling statement"),
        ("idle_transaction_timeout", "begin", "idle transaction timeout"),
        ("transaction_timeout", "begin; select pg_sleep(5)", "transaction timeout"),
        ("client_idle_timeout", "select 1", "client_idle_timeout"),
        ("query_wait_timeout", "", "query_wait_timeout"),
    ],
)
def test_timeouts_of_a_user_are_its_own(
    keep_proxy: MakeProxy, make_raw_client: MakeRawClient, key: str, begin: str, message: str
) -> None:
    """md5_user may do for a fifth of a second what trust_user, of the same database, may do for as long as it likes."""
    users = {"trust_user": "", "md5_user": "md5-secret", ADMIN_USER: ADMIN_PASSWORD}
    proxy = keep_proxy(users=users, pool_mode="transaction", default_pool_size=1, sections={"users": {"md5_user": ""}})
    proxy.sections["users"] = {"md5_user": f"{key}=0.2"}
    proxy.reload()
    short, long = make_raw_client(proxy.port), make_raw_client(proxy.port)
    short.login("md5_user")
    long.login("trust_user")
    if key == "query_wait_timeout":
        holders = make_raw_client(proxy.port), make_raw_client(proxy.port)
        for holder, user in zip(holders, ("md5_user", "trust_user"), strict=True):
            holder.login(user)
            run(holder, "begin")
        begin = "select 1"
    ask(long, begin)
    ask(short, begin)
    if begin in ("begin", "select 1") and key != "query_wait_timeout":
        assert short.read_types()[-1:] == long.read_types()[-1:] == b"Z"
    told = short.read_until(b"E")[-1].fields()
    assert message in told["M"]
    assert long.is_silent(0.1)


def test_a_notification_that_nobody_can_hear_is_dropped_with_a_warning(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    """LISTEN in transaction mode: the sign that an application needs session mode. Once a server, however many come."""
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy)
    run(client, "listen news")
    for text in ("first", "second"):
        database.sql("select pg_notify('news', %s)", [text])
    line = proxy.wait_log("got packet 'A' from server when not linked")
    assert re.search(r" WARNING S-\d+: app/trust_user@\S+ got packet 'A' from server when not linked$", line)
    database.sql("notify news, 'third'")
    assert value(client, "select 1") == "1"
    assert proxy.log_contains("when not linked", times=1)
    assert len(database.pids()) == 1


# --- what stands in an entry of [databases] or [users] --------------------------------------------------------------------
def test_parameters_of_an_entry_are_sent_to_its_servers(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    own = {"client_encoding": "LATIN1", "datestyle": "German", "timezone": "Asia/Tokyo", "application_name": "pool"}
    proxy = make_proxy(databases={"app": database.entry(**own), "plain": database.entry()}, pool_mode="transaction")
    client = make_raw_client(proxy.port)
    client.login()
    for name, text in own.items():
        assert (value(client, f"show {name}") or "").startswith(text)
    told = {name.lower(): text for name, text in client.parameters.items()}
    assert (told["client_encoding"], told["timezone"], told["application_name"]) == ("LATIN1", "Asia/Tokyo", "pool")
    named = make_raw_client(proxy.port)
    named.login(application_name="mine", timezone="UTC")  # what a client says comes first
    assert (value(named, "show application_name"), value(named, "show timezone")) == ("mine", "UTC")
    assert value(client, "show application_name") == "pool"


def test_entries_are_shown_and_follow_reload(make_proxy: MakeProxy, database: Database) -> None:
    """The keys of SHOW DATABASES and SHOW USERS, as in the file; then others, or none."""
    first = {
        "pool_size": 3, "min_pool_size": 1, "reserve_pool_size": 2, "server_lifetime": 77, "pool_mode": "statement",
        "max_connections": 11, "max_client_connections": 13, "force_user": "trust_user", "load_balance_hosts": None,
    }  # fmt: skip
    names = {
        "max_connections": "max_db_connections", "max_client_connections": "max_db_client_connections", "force_user": "user",
    }  # fmt: skip
    entry = {names.get(name, name): text for name, text in first.items() if text is not None}
    limits = {
        "pool_size": 4, "reserve_pool_size": 5, "pool_mode": "session", "max_user_connections": 6,
        "max_user_client_connections": 7,
    }  # fmt: skip
    users = {"md5_user": " ".join(f"{name}={text}" for name, text in limits.items())}
    proxy = make_proxy(databases={"app": database.entry(**entry)}, sections={"users": users}, default_pool_size=9)
    assert {name: proxy.show("DATABASES", name="app")[name] for name in first} == first
    shown = {name: str(number).rjust(9) if "pool_size" in name else number for name, number in limits.items()}
    assert {name: proxy.show("USERS", name="md5_user")[name] for name in limits} == shown
    wait_until(lambda: len(database.pids()) == 1)  # min_pool_size of a forced user needs no client
    assert proxy.show("POOLS", database="app")["pool_mode"] == "statement"

    proxy.databases["app"] = database.entry(host=f"{database.server.host},{database.server.host}")
    proxy.sections["users"] = {}
    proxy.reload()
    others = {
        "pool_size": 9, "min_pool_size": 0, "reserve_pool_size": 0, "server_lifetime": 3600, "pool_mode": None,
        "max_connections": 0, "max_client_connections": 0, "force_user": None, "load_balance_hosts": "round-robin",
    }  # fmt: skip
    assert {name: proxy.show("DATABASES", name="app")[name] for name in others} == others
    nothing = {
        "pool_size": "", "reserve_pool_size": "", "pool_mode": None, "max_user_connections": 0,
        "max_user_client_connections": 0,
    }  # fmt: skip
    assert {name: proxy.show("USERS", name="md5_user")[name] for name in nothing} == nothing
    assert proxy.sql("select current_user", user="md5_user", password="md5-secret") == [("md5_user",)]
