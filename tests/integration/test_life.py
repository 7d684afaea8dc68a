"""The process: its command line, its signals, its files."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, refusal, run, settle, value
from fix_postgres import environment
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy, daemon_command
from fix_raw import SSL_REQUEST, MakeRawClient, request, startup_message
from fix_wait import LOOPBACK, accepts, free_port, hand_over, is_running, unprivileged_account, wait_until

import pgpool_proxy
from pgpool_proxy.process.about import UVLOOP, build, package_version


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*daemon_command(), *arguments], capture_output=True, text=True, check=False, env=environment(), timeout=30, cwd="/"
    )


# --- the command line ---------------------------------------------------------------------------------------------------
def test_version_says_what_runs() -> None:
    done = command_line("--version")
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"pgpool_proxy \S+", first)
    assert re.search(r"compiled|plain Python", "\n".join(rest))
    assert re.search(r"Python 3\.\d+\.\d+", "\n".join(rest))
    assert re.search(r"uvloop \d+\.\d+", "\n".join(rest))
    assert command_line("-V").stdout == done.stdout


def test_the_build_that_runs_is_the_one_that_is_tested() -> None:
    build = os.environ.get("TESTED_BUILD")
    if build:
        assert ("compiled" in command_line("--version").stdout) == (build == "compiled")


def test_help_names_the_options_of_pgbouncer() -> None:
    done = command_line("--help")
    assert done.returncode == 0
    for option in ("-d", "--daemon", "-q", "--quiet", "-v", "--verbose", "-u", "--user", "demo", "check", "DATABASE_URL"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--nonsense"], "--nonsense"),
        (["-x"], "-x"),
        (["-u"], "-u"),
        (["--verbose=3", "a.ini"], "--verbose"),
        (["a.ini", "b.ini"], "b.ini"),
        ([], "no configuration file specified"),
        (["-d", "-q"], "no configuration file specified"),
        (["-d", "-q", "missing.ini"], "missing.ini"),
        (["-R", "missing.ini"], "missing.ini"),
    ],
)
def test_a_command_line_that_is_wrong_is_refused_with_1(arguments: list[str], word: str) -> None:
    done = command_line(*arguments)
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "verbose"), [((), "0"), (("-v",), "1"), (("-vvv",), "3"), (("-v", "--verbose"), "2"), (("-qv",), "1")]
)
def test_each_v_makes_it_say_more(make_proxy: MakeProxy, arguments: tuple[str, ...], verbose: str) -> None:
    proxy = make_proxy(arguments=arguments)
    assert proxy.show("CONFIG", key="verbose")["value"] == verbose
    proxy.admin("RELOAD")
    assert proxy.show("CONFIG", key="verbose")["value"] == verbose
    if "-qv" not in arguments:
        assert proxy.log_contains(" DEBUG ") == (verbose != "0")
    else:
        assert proxy.log() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_u_beats_the_user_of_the_file(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(user="nobody_of_this_name")
    assert Path(f"/proc/{proxy.pid}").stat().st_uid == pwd.getpwnam(unprivileged_account() or "").pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_root_becomes_the_user_of_the_file_and_all_that_it_makes_is_the_users(make_proxy: MakeProxy) -> None:
    account = unprivileged_account() or ""
    proxy = make_proxy(start=False, user=account)
    proxy.settings |= {"pidfile": proxy.directory / "proxy.pid", "logfile": proxy.directory / "daemon.log"}
    proxy.command = lambda: [*daemon_command(), str(proxy.ini)]  # type: ignore[method-assign]
    proxy.start()
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    entry = pwd.getpwnam(account)
    assert re.search(rf"^Uid:(\s+{entry.pw_uid}){{4}}$", status, re.MULTILINE)  # real, effective, saved, of files
    assert re.search(rf"^Gid:(\s+{entry.pw_gid}){{4}}$", status, re.MULTILINE)
    for name in ("proxy.pid", "daemon.log", f".s.PGSQL.{proxy.port}"):
        assert (proxy.directory / name).stat().st_uid == entry.pw_uid, name
    assert proxy.show("CONFIG", key="user")["value"] == account


def test_a_taken_port_is_named(make_proxy: MakeProxy) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        proxy = make_proxy(start=False, listen_port=port)
        assert proxy.run_to_end() == 1
    assert proxy.log_contains(f"{LOOPBACK}:{port}.*[Aa]ddress already in use")
    assert not proxy.log_contains("Traceback")


def test_quiet_says_nothing_on_stderr_but_why_it_cannot_begin(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(arguments=("-q",))
    proxy.sql("select 1")
    assert proxy.log() == ""
    with socket.create_server((LOOPBACK, free_port())) as taken:
        second = make_proxy(start=False, arguments=("-q",), listen_port=taken.getsockname()[1])
        assert second.run_to_end() == 1
    assert second.log_contains("already in use")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_account_need_not_be_able_to_read_the_program(make_proxy: MakeProxy, database: Database, workers: int) -> None:
    """Installed below root's home, for instance: what it is made of is read before it becomes somebody else."""
    metrics = free_port()
    settings = {"workers": workers, "metrics_listen_addr": LOOPBACK, "metrics_port": metrics}
    proxy = make_proxy(start=False, databases={"app": database.entry()}, **settings)
    home = proxy.directory / "home"
    home.mkdir(0o700)
    package = Path(pgpool_proxy.__file__).parent
    for path in [*Path(psycopg.__file__).parents[1].iterdir(), *package.parent.glob("*__mypyc*.so"), package]:
        if path.suffix != ".pth" and not (home / path.name).is_symlink():
            (home / path.name).symlink_to(path)
    words = [word for word in proxy.command() if word != "-P"]
    proxy.command = lambda: [words[0], "-S", "-P", *words[1:]]  # type: ignore[method-assign]
    proxy.environ["PYTHONPATH"] = str(home)
    proxy.start()
    version = f"pgpool_proxy {package_version()}"
    assert f"process up: {version} ({build()}), uvloop {UVLOOP}," in proxy.log()
    assert proxy.admin("SHOW VERSION") == [{"version": version}]
    assert proxy.sql("select 1") == [(1,)]
    with pytest.raises(psycopg.OperationalError):
        proxy.connect(dbname="nowhere")
    proxy.admin("RELOAD")
    for path in ("", "metrics", "status.json"):
        with urlopen(f"http://{LOOPBACK}:{metrics}/{path}", timeout=10) as answered:
            assert answered.status == 200
    proxy.signal(signal.SIGINT)
    assert proxy.wait_exit() == 0


def test_root_is_refused_without_a_user_to_become(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    proxy.command = lambda: [*daemon_command(), str(proxy.ini)]  # type: ignore[method-assign]
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("should not run as root")
    proxy.command = lambda: [*daemon_command(), "-u", "root", str(proxy.ini)]  # type: ignore[method-assign]
    assert proxy.run_to_end() == 1


# --- signals ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_before_it_serves(tmp_path: Path, number: signal.Signals) -> None:
    """As process 1 of a container, too, where a signal that nobody handles is lost; and INT leaves no traceback."""
    (tmp_path / "uvloop.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(30)\nprint('goes on')\n"
    )
    path = f"{tmp_path}:{Path(pgpool_proxy.__file__).parents[1]}"
    command = [sys.executable, "-P", "-m", "pgpool_proxy", "nothing.ini"]
    environ = environment() | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sigterm_lets_no_client_in_and_ends_when_the_last_has_left(pooled: Proxy, login: Login) -> None:
    first, second = login(pooled), login(pooled)
    pooled.signal(signal.SIGTERM)
    pooled.wait_log("got SIGTERM")
    wait_until(lambda: not accepts(pooled.port))
    assert value(first, "select 1") == "1"
    first.close()
    run(second, "begin")
    assert value(second, "select 2") == "2"
    run(second, "commit")
    assert pooled.is_running()
    second.close()
    assert pooled.wait_exit() == 0


def test_who_has_connected_before_sigterm_is_served(pooled: Proxy, make_raw_client: MakeRawClient) -> None:
    """Whether it is in the kernel's queue, or has not yet said who it is: to it, the connection has been made."""
    halfway = make_raw_client(pooled.port)
    halfway.send(request(SSL_REQUEST))
    assert halfway.read_bytes(1) == b"N"
    pooled.signal(signal.SIGSTOP)
    queued = [make_raw_client(pooled.port) for _ in range(5)]
    for client in queued:
        client.send(startup_message("trust_user", "app"))
    pooled.signal(signal.SIGTERM)
    pooled.signal(signal.SIGCONT)
    for client in queued:
        client.read_until(b"Z")
        assert value(client, "select 1") == "1"
    wait_until(lambda: not accepts(pooled.port))
    for client in queued:
        client.close()
    halfway.login()
    assert value(halfway, "select 2") == "2"
    assert pooled.is_running()
    halfway.close()
    assert pooled.wait_exit() == 0


def test_a_second_sigterm_ends_at_once(pooled: Proxy, login: Login) -> None:
    client = login(pooled)
    pooled.signal(signal.SIGTERM)
    pooled.wait_log("got SIGTERM")
    settle_by(client)
    pooled.signal(signal.SIGTERM)
    assert pooled.wait_exit() == 0
    assert pooled.log_contains("got SIGTERM while shutting down, fast exit")
    assert error(client.read_to_end())["C"] == "57P01"


def settle_by(client: object) -> None:
    """The daemon takes no connections any more: a query through it shows that it has seen the signal."""
    assert value(client, "select 1") == "1"  # type: ignore[arg-type]


def test_sigterm_without_clients_ends_at_once(pooled: Proxy) -> None:
    pooled.signal(signal.SIGTERM)
    assert pooled.wait_exit() == 0


def test_sigint_lets_transactions_end_and_sends_away_who_waits(pooled: Proxy, database: Database, login: Login) -> None:
    busy, waiting, idle = login(pooled), login(pooled), login(pooled)
    run(busy, "begin")
    run(busy, "create table t (x int)")
    ask(waiting, "select 1")
    settle(pooled)
    pooled.signal(signal.SIGINT)
    fields = error(waiting.read_to_end())
    assert (fields["S"], fields["C"], fields["M"]) == ("FATAL", "57P01", "server shutting down")
    wait_until(lambda: not accepts(pooled.port))
    ask(idle, "select 1")
    assert error(idle.read_to_end())["M"] == "server shutting down"
    run(busy, "insert into t values (1)")
    run(busy, "commit")
    assert pooled.wait_exit() == 0
    assert database.sql("select x from t") == [(1,)]


def test_a_second_sigint_ends_at_once(pooled: Proxy, login: Login) -> None:
    client = login(pooled)
    run(client, "begin")
    pooled.signal(signal.SIGINT)
    pooled.wait_log("got SIGINT")
    settle_by(client)
    pooled.signal(signal.SIGINT)
    assert pooled.wait_exit() == 0
    assert pooled.log_contains("got SIGINT while shutting down, fast exit")


def test_sigquit_ends_at_once_and_says_so_to_everybody(pooled: Proxy, database: Database, login: Login) -> None:
    busy, waiting, idle = login(pooled), login(pooled), login(pooled)
    run(busy, "begin")
    ask(waiting, "select 1")
    settle(pooled)
    pooled.signal(signal.SIGQUIT)
    assert pooled.wait_exit() == 0
    assert pooled.log_contains("got SIGQUIT, fast exit")
    for client in (busy, waiting, idle):
        fields = error(client.read_to_end())
        assert (fields["S"], fields["C"]) == ("FATAL", "57P01")
    wait_until(lambda: database.pids() == [])


def test_sigusr1_pauses_and_sigusr2_resumes(pooled: Proxy, database: Database, login: Login) -> None:
    busy, other = login(pooled), login(pooled)
    run(busy, "begin")
    server = backend_pid(busy)
    pooled.signal(signal.SIGUSR1)
    pooled.wait_log("got SIGUSR1")
    settle(pooled)
    assert backend_pid(busy) == server
    run(busy, "commit")
    wait_until(lambda: database.pids() == [], what="a paused pool has no servers")
    for client in (busy, other):
        ask(client, "select 'resumed'")
    settle(pooled)
    assert other.is_silent(0.1)
    assert database.pids() == []
    pooled.signal(signal.SIGUSR2)
    assert [answer(client) for client in (busy, other)] == ["resumed"] * 2


def test_logins_succeed_while_paused(pooled: Proxy, login: Login) -> None:
    value(login(pooled), "select 1")
    pooled.signal(signal.SIGUSR1)
    pooled.wait_log("got SIGUSR1")
    settle(pooled)
    client = login(pooled)
    ask(client, "select 1")
    settle(pooled)
    pooled.signal(signal.SIGUSR2)
    assert answer(client) == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_every_end_leaves_no_socket_no_pidfile_and_no_server(
    make_proxy: MakeProxy, database: Database, number: signal.Signals
) -> None:
    proxy = make_proxy(start=False, databases={"app": database.entry()}, pool_mode="transaction")
    pidfile = proxy.directory / "proxy.pid"
    proxy.settings["pidfile"] = pidfile
    proxy.start()
    proxy.sql("select 1")
    assert pidfile.read_text() == f"{proxy.pid}\n"
    sock = proxy.directory / f".s.PGSQL.{proxy.port}"
    assert stat.S_ISSOCK(sock.stat().st_mode)
    wait_until(lambda: len(database.servers(state="idle")) == 1)
    proxy.signal(number)
    assert proxy.wait_exit() == 0
    assert not sock.exists()
    assert not pidfile.exists()
    wait_until(lambda: database.pids() == [])


# --- pidfile and -d -----------------------------------------------------------------------------------------------------
def test_a_stale_pidfile_is_replaced_and_a_living_ones_daemon_is_respected(make_proxy: MakeProxy) -> None:
    first = make_proxy(start=False)
    pidfile = first.directory / "proxy.pid"
    gone = subprocess.Popen(["true"])
    gone.wait()
    pidfile.write_text(f"{gone.pid}\n")
    hand_over(pidfile)
    first.settings["pidfile"] = pidfile
    first.start()
    assert pidfile.read_text() == f"{first.pid}\n"
    second = make_proxy(start=False, pidfile=pidfile)
    assert second.run_to_end() == 1
    assert second.log_contains(str(pidfile))
    assert pidfile.read_text() == f"{first.pid}\n"
    first.sql("select 1")


def test_a_pidfile_that_cannot_be_written_is_named(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, pidfile="/nonexistent/proxy.pid")
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("/nonexistent/proxy.pid")
    assert not proxy.log_contains("Traceback")


def test_d_runs_in_the_background(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(start=False, arguments=("-d",), databases={"app": database.entry()})
    pidfile, logfile = proxy.directory / "proxy.pid", proxy.directory / "daemon.log"
    proxy.settings |= {"pidfile": pidfile, "logfile": logfile}
    assert proxy.run_to_end() == 0
    wait_until(lambda: accepts(proxy.port))
    pid = int(pidfile.read_text())
    try:
        assert is_running(pid)
        assert os.getsid(pid) not in (pid, os.getsid(0))  # in a session of its own, which it does not lead
        assert all(Path(f"/proc/{pid}/fd/{fd}").readlink() == Path("/dev/null") for fd in (0, 1, 2))
        assert proxy.sql("select 1") == [(1,)]
        assert "process up" in logfile.read_text()
        assert f"[{pid}]" in logfile.read_text()
    finally:
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not is_running(pid))
    assert not pidfile.exists()
    assert proxy.log() == ""


def test_d_needs_a_pidfile(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, arguments=("-d",))
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("daemon needs pidfile configured")


# --- the unix socket ----------------------------------------------------------------------------------------------------
def test_clients_come_by_the_unix_socket_too(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, unix_socket_mode="0700", auth_type="md5")
    path = proxy.directory / f".s.PGSQL.{proxy.port}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with psycopg.connect(proxy.dsn(host=proxy.directory, user="md5_user", password="md5-secret")) as connection:
        assert connection.execute("select current_user").fetchone() == ("md5_user",)
    client = make_raw_client(path=str(path))
    client.login("md5_user", password="md5-secret")
    assert value(client, "select 1") == "1"
    proxy.wait_log(rf"C-\w+: app/md5_user@unix\({os.getpid()}\):{proxy.port} login attempt")


def test_an_abstract_socket_has_no_file(make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient) -> None:
    name = f"@pgpool_proxy-test-{free_port()}"
    proxy = make_proxy(databases={"app": database.entry()}, unix_socket_dir=name)
    client = make_raw_client(path=f"\0{name[1:]}/.s.PGSQL.{proxy.port}")
    client.login()
    assert value(client, "select 1") == "1"
    second = make_proxy(start=False, listen_port=proxy.port, listen_addr="", unix_socket_dir=name)
    assert second.run_to_end() == 1
    assert second.log_contains("cannot listen on unix:@.*already in use")


def test_while_shutting_down_the_unix_socket_is_the_consoles(
    pooled: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    staying = login(pooled)
    pooled.signal(signal.SIGTERM)
    pooled.wait_log("got SIGTERM")
    wait_until(lambda: not accepts(pooled.port))
    path = f"{pooled.directory}/.s.PGSQL.{pooled.port}"
    told = refusal(make_raw_client(path=path))
    assert (told["C"], told["M"]) == ("57P01", "pooler is shutting down")
    console = {"host": pooled.directory, "user": ADMIN_USER, "password": ADMIN_PASSWORD}
    assert pooled.admin("SHOW STATE", **console)
    with pytest.raises(psycopg.Error, match="pooler is shutting down"):
        pooled.admin("RESUME", **console)
    with pytest.raises(psycopg.Error):  # it ends without an answer
        pooled.admin("SHUTDOWN", **console)
    assert pooled.wait_exit() == 0
    assert error(staying.read_to_end())["C"] == "57P01"


def test_servers_are_reached_by_their_unix_socket(make_proxy: MakeProxy, database: Database) -> None:
    server = database.server
    proxy = make_proxy(databases={"app": f"host={server.socket_dir} port={server.port} dbname={database.name}"})
    assert proxy.sql("select inet_server_addr()") == [(None,)]


def test_a_socket_file_that_nobody_answers_at_is_replaced_and_a_living_one_respected(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, listen_addr="")
    path = proxy.directory / f".s.PGSQL.{proxy.port}"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    hand_over(path)
    proxy.launch()
    proxy.wait_log("process up")
    with psycopg.connect(proxy.dsn(host=proxy.directory)) as connection:
        connection.execute("select 1")
    second = make_proxy(start=False, listen_addr="", listen_port=proxy.port, unix_socket_dir=proxy.directory)
    assert second.run_to_end() == 1
    assert second.log_contains("unix socket is in use, cannot continue")
    with psycopg.connect(proxy.dsn(host=proxy.directory)) as connection:
        connection.execute("select 1")


def test_a_file_in_the_place_of_the_socket_is_not_overwritten(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    path = Path(proxy.directory / f".s.PGSQL.{proxy.port}")
    path.write_text("precious")
    assert proxy.run_to_end() == 1
    assert proxy.log_contains(str(path))
    assert path.read_text() == "precious"


# --- the log ------------------------------------------------------------------------------------------------------------
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \S+ \[(?P<pid>\d+)\] (?P<level>FATAL|ERROR|WARNING|LOG|DEBUG|NOISE) (?P<text>.*)"
)


def test_log_lines_are_those_of_pgbouncer(pooled: Proxy, login: Login) -> None:
    client = login(pooled)
    port = client.socket.getsockname()[1]
    value(client, "select 1")
    client.close()
    pooled.wait_log(rf":{port} closing because: client unexpected eof")
    lines = [LINE.fullmatch(line) for line in pooled.log().splitlines()]
    assert None not in lines, pooled.log()
    assert {line["pid"] for line in lines if line} == {str(pooled.pid)}
    texts = "\n".join(line["text"] for line in lines if line)
    for pattern in (
        rf"listening on 127\.0\.0\.1:{pooled.port}",
        rf"C-\w+: app/trust_user@127\.0\.0\.1:{port} login attempt: db=app user=trust_user tls=no replication=no",
        r"S-\w+: app/trust_user@127\.0\.0\.1:\d+ new connection to server \(from 127\.0\.0\.1:\d+\)",
        rf"C-\w+: app/trust_user@127\.0\.0\.1:{port} closing because: client unexpected eof \(age=\d+s\)",
    ):
        assert re.search(f"^{pattern}$", texts, re.MULTILINE), (pattern, texts)


def test_json_lines_have_the_same_messages_and_named_fields(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(log_format="json")
    client = login(proxy)
    port = client.socket.getsockname()[1]
    client.close()
    proxy.wait_log(r'"app".*client unexpected eof|client unexpected eof.*"app"')
    lines = [json.loads(line) for line in proxy.log().splitlines()]
    (closing,) = [line for line in lines if line.get("reason") == "client unexpected eof" and line["database"] == "app"]
    assert closing["user"] == "trust_user"
    assert closing["port"] == port
    assert re.fullmatch(r"closing because: client unexpected eof \(age=\d+s\)", closing["message"])


def test_what_comes_from_outside_cannot_break_a_line_of_the_log(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy()
    for name in ("new\nline", "escape\x1b[31m", "tab\tand\rreturn", "bell\a"):
        client = make_raw_client(proxy.port)
        client.login(user=name, database=name)
    proxy.wait_log("bell")
    assert all(LINE.fullmatch(line) or line.startswith("\t") for line in proxy.log().splitlines()), proxy.log()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", proxy.log())


# --- what the console and the operator may still do while it ends -----------------------------------------------------------
def test_sigusr2_does_nothing_while_shutting_down(pooled: Proxy, login: Login) -> None:
    busy, idle = login(pooled), login(pooled)
    run(busy, "begin")
    pooled.signal(signal.SIGINT)
    pooled.wait_log("got SIGINT")
    pooled.signal(signal.SIGUSR2)
    settle_by(busy)
    ask(idle, "select 1")
    assert error(idle.read_to_end())["M"] == "server shutting down"
    run(busy, "commit")
    assert pooled.wait_exit() == 0
    assert not pooled.log_contains("got SIGUSR2")


def test_a_lock_file_beside_the_socket_is_respected(make_proxy: MakeProxy) -> None:
    """PostgreSQL's: a server listens there."""
    proxy = make_proxy(start=False)
    (proxy.directory / f".s.PGSQL.{proxy.port}.lock").touch()
    assert proxy.run_to_end() == 1
    assert proxy.log_contains(f"unix port {proxy.port} is in use")


def test_show_version_is_the_first_line_of_version(pooled: Proxy) -> None:
    first = command_line("-V").stdout.splitlines()[0]
    assert [row["version"] for row in pooled.admin("SHOW VERSION")] == [first]
    assert pooled.admin("SELECT version") == [{"version": first}]
