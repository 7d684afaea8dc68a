"""docs/migration.md: the two poolers with one file, beside each other and on one port, as the page says it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_postgres import Postgres, as_account, environment
from fix_proxy import MakeProxy, Proxy, daemon_command
from fix_wait import accepts, free_port, hand_over, unprivileged_account, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
THEIR_INI = "/etc/pgbouncer/pgbouncer.ini"

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer")


@pytest.fixture
def ini(make_proxy: MakeProxy, postgres: Postgres) -> Iterator[Proxy]:
    """A pgbouncer.ini with all that such a file has, and a PgBouncer that runs with it."""
    proxy = make_proxy(start=False, so_reuseport=1, pool_mode="transaction")
    proxy.settings |= {"pidfile": proxy.directory / "pgbouncer.pid", "logfile": proxy.directory / "pgbouncer.log"}
    proxy.settings |= {"auth_type": "md5", "pkt_buf": 4096, "sbuf_loopcnt": 5}
    del proxy.settings["metrics_listen_addr"]  # our own key
    proxy.write_config()
    process = subprocess.Popen([str(PGBOUNCER), "-q", proxy.ini], cwd=proxy.directory, env=environment(), **as_account())
    try:
        wait_until(lambda: accepts(proxy.port))
        yield proxy
    finally:
        process.terminate()
        process.wait(20)


def ours(proxy: Proxy, line: str, **further: str) -> None:
    """Start our daemon with a command of the page; `further` goes on top of its environment."""
    assert line in PAGE
    words = line.split()
    assert words[-2:] == ["pgpool-proxy", THEIR_INI]
    proxy.environ = dict(word.split("=", 1) for word in words[:-2]) | {"PGPOOL_PROXY_METRICS_PORT": "0"} | further
    account = unprivileged_account()
    command = [*daemon_command(), *([] if account is None else ["-u", account]), str(proxy.ini)]
    proxy.command = lambda: command  # type: ignore[method-assign]
    proxy.write_config = lambda: None  # type: ignore[method-assign]


def versions(proxy: Proxy, port: int, times: int) -> set[str]:
    """Who answers: the names that `times` new connections to the console find."""
    found = set()
    for _ in range(times):
        dsn = proxy.dsn(dbname="pgbouncer", user="admin_user", password="admin-secret", port=port)
        with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor, prepare_threshold=None) as console:
            row = console.execute("SHOW VERSION").fetchone()
            assert row is not None
            found.add(row[0].split()[0])
    return found


def line_of_the_page(start: str) -> str:
    return next(line.strip() for line in PAGE.splitlines() if line.strip().startswith(start))


def test_check_takes_the_file(ini: Proxy) -> None:
    assert f"pgpool-proxy check {THEIR_INI}" in PAGE
    command = [*daemon_command(), "check", str(ini.ini)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=ini.directory)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing is wrong"), done.stdout


def test_both_run_beside_each_other_with_one_file(ini: Proxy) -> None:
    port = free_port()
    theirs = ini.port
    socket_dir = ini.directory / "sockets"  # in the test both have a port of their own, and so a socket
    socket_dir.mkdir()
    hand_over(socket_dir)
    ours(ini, line_of_the_page("PGPOOL_PROXY_LISTEN_PORT="), PGPOOL_PROXY_LISTEN_PORT=str(port))
    ini.port = port
    ini.start()
    assert versions(ini, theirs, 3) == {"PgBouncer"}
    assert versions(ini, port, 3) != {"PgBouncer"}
    for each in (theirs, port):
        with psycopg.connect(ini.dsn(user="md5_user", password="md5-secret", port=each)) as connection:
            assert connection.execute("select current_user").fetchone() == ("md5_user",)


def test_they_share_the_port_until_pgbouncer_has_gone(ini: Proxy) -> None:
    ours(ini, line_of_the_page("PGPOOL_PROXY_UNIX_SOCKET_DIR="))
    ini.launch()
    ini.wait_log("process up")
    deadline = time.monotonic() + 30
    found: set[str] = set()
    while len(found) < 2 and time.monotonic() < deadline:
        found |= versions(ini, ini.port, 5)
    assert "PgBouncer" in found
    assert len(found) == 2
    pid = int(re.sub(r"\s", "", (ini.directory / "pgbouncer.pid").read_text()))
    subprocess.run(["kill", "-INT", str(pid)], check=True)
    wait_until(lambda: not (ini.directory / "pgbouncer.pid").exists(), 20)
    assert "PgBouncer" not in versions(ini, ini.port, 10)
    with psycopg.connect(ini.dsn(user="md5_user", password="md5-secret")) as connection:
        assert connection.execute("select current_user").fetchone() == ("md5_user",)


def test_with_r_nobody_is_refused(ini: Proxy) -> None:
    """`-d` is left out, so that the process is ours to watch."""
    line = line_of_the_page("pgpool-proxy -R")
    assert line == f"pgpool-proxy -R -d {THEIR_INI}"
    account = unprivileged_account()
    command = [*daemon_command(), *([] if account is None else ["-u", account]), "-R", str(ini.ini)]
    ini.command = lambda: command  # type: ignore[method-assign]
    ini.write_config = lambda: None  # type: ignore[method-assign]
    ini.environ = {"PGPOOL_PROXY_METRICS_PORT": "0"}
    assert versions(ini, ini.port, 1) == {"PgBouncer"}
    refused: list[str] = []
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            try:
                socket.create_connection((ini.host, ini.port), timeout=10).close()
            except OSError as error:
                refused.append(str(error))

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        ini.launch()
        ini_log = ini.directory / "pgbouncer.log"
        wait_until(lambda: "process up: pgpool_proxy" in ini_log.read_text(), 30)
        pidfile = ini.directory / "pgbouncer.pid"

        def is_ours() -> bool:
            try:
                return pidfile.read_text() == f"{ini.pid}\n"
            except FileNotFoundError:  # between theirs and ours
                return False

        wait_until(is_ours, 20)
    finally:
        over.set()
        knocking.join()
    assert refused == []
    assert "PgBouncer" not in versions(ini, ini.port, 5)
    with psycopg.connect(ini.dsn(user="md5_user", password="md5-secret")) as connection:
        assert connection.execute("select current_user").fetchone() == ("md5_user",)
