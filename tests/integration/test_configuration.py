"""Where settings come from, what is refused at start, and what RELOAD changes in a living daemon."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
from pathlib import Path

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, refusal, run, settle, value
from fix_postgres import USERS, Postgres
from fix_proxy import MakeProxy, Proxy, daemon_command
from fix_raw import MakeRawClient, RawClient
from fix_wait import hand_over, unprivileged_account, wait_until

#: what people have: to run as it is
USUAL_INI = """\
[databases]
mydb = host=localhost dbname=mydb

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
auth_type = md5
auth_file = userlist.txt

pool_mode = transaction  # or session
max_client_conn = 1000
default_pool_size = 20
min_pool_size = 5
reserve_pool_size = 5
reserve_pool_timeout = 5
max_db_connections = 50
max_user_connections = 50
"""


def use_ini(proxy: Proxy, text: str) -> Proxy:
    """Run with this text instead of what the fixture would write."""
    proxy.write_config()
    proxy.ini.write_text(text)
    proxy.write_config = lambda: None  # type: ignore[method-assign]
    return proxy


def without_ini(proxy: Proxy, *arguments: str, **environ: str) -> Proxy:
    """Run with the environment alone."""
    account = unprivileged_account()
    drop = [] if account is None else ["-u", account]
    proxy.command = lambda: [*daemon_command(), *drop, *arguments]  # type: ignore[method-assign]
    proxy.environ = environ
    return proxy


def hup(proxy: Proxy) -> None:
    """SIGHUP, and wait until it is carried out."""
    seen = len(re.findall("got SIGHUP", proxy.log()))
    proxy.signal(signal.SIGHUP)
    wait_until(lambda: len(re.findall("got SIGHUP", proxy.log())) > seen)
    settle(proxy)


# --- where settings come from -------------------------------------------------------------------------------------------
def test_the_usual_ini_runs_as_it_is(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    """Only the ports are not those of the file, since other tests run on this machine."""
    proxy = make_proxy(start=False)
    server = database.server
    text = USUAL_INI.replace("6432", str(proxy.port)).replace(
        "host=localhost dbname=mydb", f"host=localhost port={server.port} dbname={database.name}"
    )
    use_ini(proxy, text + f"unix_socket_dir = {proxy.directory}\n").start()
    connection = proxy.connect(dbname="mydb", user="md5_user", password="md5-secret")
    assert connection.execute("select current_database(), current_user").fetchone() == (database.name, "md5_user")
    wait_until(lambda: len(database.pids()) == 5, what="min_pool_size")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        proxy.connect(dbname="mydb", user="md5_user", password="wrong")
    clients = [login(proxy, database="mydb", user="md5_user", password="md5-secret") for _ in range(30)]
    for client in clients[:20]:
        run(client, "begin")
    ask(clients[20], "select 'from the reserve'")
    settle(proxy)
    assert len(database.pids()) == 20
    assert answer(clients[20]) == "from the reserve"
    assert len(database.pids()) == 21


def test_the_usual_ini_is_accepted_word_for_word(make_proxy: MakeProxy) -> None:
    """All that may stop it is a port that somebody has."""
    proxy = use_ini(make_proxy(start=False), USUAL_INI)
    proxy.environ = {"PGPOOL_PROXY_LISTEN_PORT": str(proxy.port), "PGPOOL_PROXY_UNIX_SOCKET_DIR": str(proxy.directory)}
    proxy.start()
    assert proxy.log_contains("process up")


@pytest.mark.parametrize("user", ["plain_user", "md5_user", "scram_user"])
def test_database_url_alone_makes_a_sidecar(make_proxy: MakeProxy, postgres: Postgres, user: str) -> None:
    password = USERS[user][1]
    proxy = make_proxy(start=False)
    without_ini(
        proxy,
        DATABASE_URL=f"postgresql://{user}:{password}@127.0.0.1:{postgres.port}/app",
        PGPOOL_PROXY_LISTEN_PORT=str(proxy.port),
        PGPOOL_PROXY_UNIX_SOCKET_DIR=str(proxy.directory),
    ).start()
    assert proxy.sql("select current_user", user=user, password=password) == [(user,)]
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        proxy.connect(user=user, password="wrong")
    assert password not in proxy.log()


def test_without_ini_and_url_it_says_what_is_missing(make_proxy: MakeProxy) -> None:
    proxy = without_ini(make_proxy(start=False))
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("no configuration file specified")


def test_the_environment_beats_the_file(make_proxy: MakeProxy, make_raw_client: MakeRawClient, login: Login) -> None:
    proxy = make_proxy(max_client_conn=100, environ={"PGPOOL_PROXY_MAX_CLIENT_CONN": "1"})
    client = login(proxy)
    assert refusal(make_raw_client(proxy.port))["C"] == "53300"
    assert value(client, "select 1") == "1"


def test_the_command_line_beats_the_environment(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(arguments=("-v",), environ={"PGPOOL_PROXY_VERBOSE": "0"}, verbose=0)
    assert proxy.show("CONFIG", key="verbose")["value"] == "1"
    proxy.sql("select 1")
    assert proxy.log_contains(" DEBUG ")


# --- what is refused ----------------------------------------------------------------------------------------------------
HEAD = "[databases]\napp = host=127.0.0.1\n[pgbouncer]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "pool_moed = session\n", [":4: ", "pool_moed", "pool_mode"]),
        (HEAD + "pool_mode = sessions\n", [":4: ", "pool_mode", "session, transaction"]),
        (HEAD + "\n\nlisten_port = many\n", [":6: ", "listen_port"]),
        (HEAD + "default_pool_size = -1\n", [":4: ", "default_pool_size"]),
        (HEAD + "server_idle_timeout = soon\n", [":4: ", "server_idle_timeout"]),
        (HEAD + "tcp_keepalive = maybe\n", [":4: ", "tcp_keepalive"]),
        ("[databases]\napp = host=127.0.0.1 prot=1\n[pgbouncer]\n", [":2: ", "prot"]),
        ("[databases]\napp = host=127.0.0.1 port=x\n[pgbouncer]\n", [":2: ", "port"]),
        ("[database]\n[pgbouncer]\n", [":1: ", "database", "databases"]),
        (HEAD + "this is no line\n", [":4: "]),
        ("[databases]\napp = host=127.0.0.1\n", ["pgbouncer", "missing"]),
        (HEAD + "%include nowhere.ini\n", [":4: ", "nowhere.ini"]),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_file_line_and_key(
    make_proxy: MakeProxy, text: str, words: list[str]
) -> None:
    proxy = use_ini(make_proxy(start=False), text)
    assert proxy.run_to_end() == 1
    (line,) = proxy.log().splitlines()
    assert str(proxy.ini) in line
    for word in words:
        assert word in line, line


def test_a_file_that_cannot_be_read_is_named(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    missing = proxy.directory / "missing.ini"
    without_ini(proxy, str(missing))
    assert proxy.run_to_end() == 1
    (line,) = proxy.log().splitlines()
    assert str(missing) in line
    assert "No such file" in line


def test_a_mistake_in_the_environment_is_refused_with_its_name(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, environ={"PGPOOL_PROXY_POOL_MODE": "nonsense"})
    assert proxy.run_to_end() == 1
    (line,) = proxy.log().splitlines()
    assert "environment" in line
    assert "pool_mode" in line.lower()


def test_a_missing_auth_file_is_logged_and_nobody_gets_in(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy(auth_file="/nonexistent/userlist.txt")
    proxy.wait_log("/nonexistent/userlist.txt")
    assert refusal(make_raw_client(proxy.port))["C"] == "28000"


# --- RELOAD -------------------------------------------------------------------------------------------------------------
def test_sighup_puts_new_settings_into_force(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    first, second = login(proxy), login(proxy)
    run(first, "begin")
    ask(second, "select 'a second server'")
    settle(proxy)
    assert second.is_silent(0.05)
    proxy.settings["default_pool_size"] = 2
    proxy.write_config()
    hup(proxy)
    assert answer(second) == "a second server"
    proxy.settings["default_pool_size"] = 1
    proxy.write_config()
    hup(proxy)
    wait_until(lambda: len(database.pids()) == 1)
    run(first, "commit")


def test_sighup_reads_the_auth_file_again(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(auth_type="md5", users={"md5_user": "md5-secret"})
    with pytest.raises(psycopg.OperationalError):
        proxy.connect(user="scram_user", password="scram-secret")
    proxy.users = {"scram_user": "scram-secret"}
    proxy.write_config()
    hup(proxy)
    assert proxy.sql("select current_user", user="scram_user", password="scram-secret") == [("scram_user",)]
    with pytest.raises(psycopg.OperationalError):
        proxy.connect(user="md5_user", password="md5-secret")


def test_a_broken_file_at_sighup_leaves_everything_as_it_was(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(pool_mode="transaction")
    client = login(proxy)
    good = proxy.ini.read_text()
    for broken in (good + "pool_moed = x\n", good + "pool_mode = x\n", "nonsense\n", ""):
        proxy.ini.write_text(broken)
        hup(proxy)
        assert value(client, "select 1") == "1"
        assert value(login(proxy), "select 2") == "2"
    proxy.ini.unlink()
    hup(proxy)
    assert value(login(proxy), "select 3") == "3"
    assert proxy.log_contains("RELOAD failed", times=5)
    assert proxy.log_contains(rf"{re.escape(str(proxy.ini))}:\d+: pool_moed")


def test_a_database_that_leaves_the_file_takes_its_clients_with_it(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry(), "gone": database.entry()}, pool_mode="transaction")
    stays, goes = login(proxy), login(proxy, database="gone")
    value(goes, "select 1")
    del proxy.databases["gone"]
    proxy.write_config()
    hup(proxy)
    fields = error(goes.read_to_end())
    assert (fields["S"], fields["C"], fields["M"]) == ("FATAL", "57P01", "database removed")
    assert proxy.log_contains("WARNING dropping database 'gone' as it does not exist anymore or inactive auto-database")
    assert value(stays, "select 1") == "1"
    assert refusal(make_raw_client(proxy.port), database="gone")["C"] == "3D000"
    proxy.databases["gone"] = database.entry()
    proxy.write_config()
    hup(proxy)
    assert value(login(proxy, database="gone"), "select 2") == "2"


def test_an_entry_that_leads_elsewhere_moves_its_clients_when_their_transactions_end(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    idle, busy = login(proxy), login(proxy)
    value(idle, "select 1")
    run(busy, "begin")
    assert value(busy, "select current_database()") == database.name
    proxy.databases["app"] = f"host={database.server.host} port={database.server.port} dbname=app"
    proxy.write_config()
    hup(proxy)
    assert value(idle, "select current_database()") == "app"
    assert value(busy, "select current_database()") == database.name
    run(busy, "commit")
    assert value(busy, "select current_database()") == "app"
    wait_until(lambda: database.pids() == [])


def test_a_hundred_reloads_under_load_lose_nothing(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    clients = [login(proxy) for _ in range(5)]
    pid = backend_pid(clients[0])
    for number in range(100):
        proxy.signal(signal.SIGHUP)
        for client in clients:
            ask(client, f"select {number}")
        assert [answer(client) for client in clients] == [str(number)] * 5
    assert pid in database.pids()
    assert len(database.pids()) <= 2


def test_the_log_file_is_opened_anew_at_sighup(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    log = proxy.directory / "daemon.log"
    proxy.settings["logfile"] = log
    proxy.start()
    wait_until(log.exists)
    hand_over(log)
    moved = Path(log.rename(proxy.directory / "daemon.log.1"))
    hup(proxy)
    proxy.sql("select 1")
    wait_until(lambda: log.exists() and "login attempt" in log.read_text())
    assert "login attempt" not in moved.read_text()


# --- settings that change what a server is told ---------------------------------------------------------------------------
def test_application_name_add_host_says_where_a_client_comes_from(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", application_name_add_host=1)
    named, nameless = make_raw_client(proxy.port), make_raw_client(proxy.port)
    for client, parameters, name in ((named, {"application_name": "shop"}, "shop"), (nameless, {}, "app")):
        client.login(**parameters)
        host, port = client.socket.getsockname()
        assert client.parameters["application_name"] == f"{name} - {host}:{port}"
        assert value(client, "show application_name") == f"{name} - {host}:{port}"
    by_unix = make_raw_client(path=f"{proxy.directory}/.s.PGSQL.{proxy.port}")
    by_unix.login(application_name="shop")
    assert value(by_unix, "show application_name") == f"shop - unix({os.getpid()}):{proxy.port}"
    proxy.admin("SET application_name_add_host = 0")
    plain = make_raw_client(proxy.port)
    plain.login(application_name="shop")
    assert value(plain, "show application_name") == "shop"


def test_server_fast_close_ends_a_session_when_its_transaction_ends(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, server_fast_close=1)
    in_transaction, idle = login(proxy), login(proxy)
    run(in_transaction, "begin")
    run(idle, "select 1")
    proxy.admin("RECONNECT")
    told = error(idle.read_to_end())
    assert (told["S"], told["C"], told["M"]) == ("FATAL", "57P01", "database configuration changed")
    assert value(in_transaction, "select 1") == "1"
    ask(in_transaction, "commit")
    assert in_transaction.read_types() == b"CZ"
    assert error(in_transaction.read_to_end())["M"] == "database configuration changed"
    assert value(login(proxy), "select 1") == "1"


def test_without_server_fast_close_a_session_keeps_its_server(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()})
    client = login(proxy)
    pid = backend_pid(client)
    proxy.admin("RECONNECT")
    run(client, "select pg_sleep(0.5)")  # five looks of the janitor
    assert backend_pid(client) == pid


# --- options of sockets -------------------------------------------------------------------------------------------------
PIDFD_GETFD = 438  # a system call that has no name in Python


def sockets_of(pid: int) -> list[socket.socket]:
    """Duplicates of a process's TCP sockets."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    pidfd = os.pidfd_open(pid)
    found = []
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                is_socket = entry.readlink().name.startswith("socket:")
            except FileNotFoundError:
                continue
            number = call(PIDFD_GETFD, pidfd, int(entry.name), 0) if is_socket else -1
            if is_socket and number < 0:
                pytest.skip(f"sockets of another process cannot be looked at: {os.strerror(ctypes.get_errno())}")
            if number >= 0:
                one = socket.socket(fileno=number)
                if one.family == socket.AF_INET and one.type == socket.SOCK_STREAM:
                    found.append(one)
                else:
                    one.close()
    finally:
        os.close(pidfd)
    return found


def options(proxy: Proxy, client: RawClient, server_port: int) -> tuple[dict[str, int], dict[str, int]]:
    """The options of the daemon's socket to this client, and of the newest to a server."""
    asked = {
        "tcp_keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "tcp_keepcnt": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        "tcp_keepidle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        "tcp_keepintvl": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        "tcp_user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        "buffer": (socket.SOL_SOCKET, socket.SO_RCVBUF),
    }
    (row,) = proxy.admin("SHOW SERVERS")
    seen: dict[str, dict[str, int]] = {}
    for one in sockets_of(proxy.pid):
        with one:
            try:
                peer = one.getpeername()[1]
            except OSError:  # it listens
                continue
            values = {name: one.getsockopt(*option) for name, option in asked.items()}
            if peer == client.socket.getsockname()[1]:
                seen["client"] = values
            elif peer == server_port and one.getsockname()[1] == row["local_port"]:
                seen["server"] = values
    return seen["client"], seen["server"]


def test_tcp_options_are_those_of_the_settings_and_follow_set_and_reload(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    with socket.socket() as fresh:
        systems = {
            name: fresh.getsockopt(socket.IPPROTO_TCP, getattr(socket, name.upper()))
            for name in ("tcp_keepcnt", "tcp_keepidle", "tcp_keepintvl")
        }
    first = {"tcp_keepalive": 1, "tcp_keepcnt": 3, "tcp_keepidle": 77, "tcp_keepintvl": 11, "tcp_user_timeout": 30000}
    proxy = make_proxy(
        databases={"app": database.entry(host="127.0.0.1")}, pool_mode="transaction", default_pool_size=1,
        tcp_socket_buffer=20000, **first,
    )  # fmt: skip

    def both(**wanted: int) -> None:
        """A client that comes now, and a server that is opened for it, have these."""
        with login(proxy) as client:
            proxy.admin("RECONNECT app")
            wait_until(lambda: not proxy.admin("SHOW SERVERS"), 10, "the old server has gone")
            run(client, "select 1")
            for which in options(proxy, client, database.server.port):
                assert {name: which[name] for name in wanted} == wanted
                assert which["nodelay"]

    both(**first, buffer=40000)
    proxy.admin("SET tcp_keepidle = 88")
    both(**{**first, "tcp_keepidle": 88})
    for key in (*systems, "tcp_user_timeout"):
        proxy.admin(f"SET {key} = 0")
    both(tcp_keepalive=1, tcp_user_timeout=0, **systems)
    proxy.admin("SET tcp_keepalive = 0")
    both(tcp_keepalive=0)
    proxy.admin("RELOAD")
    both(**first)
