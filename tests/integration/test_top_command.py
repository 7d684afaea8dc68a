"""`pgpool-proxy top`: what SHOW POOLS, WAITS and TOP say, in a terminal."""

from __future__ import annotations

import getpass
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from fix_clients import Database, Login, ask, run
from fix_postgres import environment
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, STATS_USER, MakeProxy, Proxy, daemon_command
from fix_wait import LOOPBACK, free_port, wait_until
from psycopg.conninfo import conninfo_to_dict

from pgpool_proxy.process.top import CLEAR, printable, seconds, shortened, size, table, where

COMMAND = [*daemon_command(), "top"]


def top(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=30, cwd="/", env={**environment(), **environ},
    )  # fmt: skip


class Screen:
    """A terminal, and what was written there."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._written = b""

    def shows(self, pattern: str) -> bool:
        """Whether the newest screen has this."""
        try:
            self._written += os.read(self._ours, 1 << 16)
        except OSError:  # nothing new, or nobody there any more
            pass
        return re.search(pattern, self._written.decode("utf-8", "replace").rpartition(CLEAR)[2]) is not None

    def close(self) -> None:
        os.close(self._ours)


@contextmanager
def terminal(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], Screen]]:
    """The program in a terminal of its own."""
    screen = Screen()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=screen.theirs, stdout=screen.theirs, stderr=screen.theirs,
        cwd="/", env=environment(), start_new_session=True,
    )  # fmt: skip
    os.close(screen.theirs)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        screen.close()


@pytest.fixture
def proxy(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)


def test_it_looks_once_where_there_is_no_terminal(proxy: Proxy, login: Login) -> None:
    holder, waiter = login(proxy, application_name="holder"), login(proxy)
    run(holder, "begin")
    ask(waiter, "select 1")
    wait_until(lambda: proxy.show("POOLS", database="app")["cl_waiting"] == 1)
    done = top(proxy.ini)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pgpool_proxy {LOOPBACK}:{proxy.port}  ")
    assert re.search(r"^clients 2, 1 waiting for up to [\d.]+ s; servers 1, 1 active$", done.stdout, re.MULTILINE)
    assert re.search(r"^app/trust_user +1 +1 +1 +0 +0 +[\d.]+ s  transaction$", done.stdout, re.MULTILINE)
    assert re.search(r"^ *\d+  app/trust_user  127\.0\.0\.1:\d+ +[\d.]+ s  all 1 servers? ", done.stdout, re.MULTILINE)
    assert re.search(r"^ *\d+  app/trust_user  active +[\d.]+ s +1 +1 .* holder$", done.stdout, re.MULTILINE)


def test_in_a_terminal_it_looks_again_and_again_until_ctrl_c(proxy: Proxy, login: Login) -> None:
    with terminal("-n", "0.1", proxy.ini) as (process, screen):
        wait_until(lambda: screen.shows(r"clients 0, 0 waiting"), 20, "nobody is there")
        run(login(proxy), "begin")
        wait_until(lambda: screen.shows(r"app/trust_user +1 +0 +1 +0"), 10, "somebody is")
        proxy.stop()
        wait_until(lambda: screen.shows("trying again"), 10, "the daemon has gone")
        proxy.start()
        wait_until(lambda: screen.shows(r"clients 0, 0 waiting"), 10, "it is back")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert not screen.shows("Traceback")


def test_whom_it_is(proxy: Proxy) -> None:
    conninfo = f"host={LOOPBACK} port={proxy.port}"
    assert top(conninfo, "-U", ADMIN_USER).returncode == 0
    assert top(conninfo, PGUSER=STATS_USER).returncode == 0
    assert top(f"postgresql://{STATS_USER}:{ADMIN_PASSWORD}@{LOOPBACK}:{proxy.port}", PGUSER="trust_user").returncode == 0
    done = top(proxy.ini, "-U", "trust_user")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not allowed" in done.stderr


@pytest.mark.parametrize(
    ("keys", "user"),
    [
        ("admin_users = ann, bob", "ann"),
        ("stats_users = sue, tom\nadmin_users = ann", "sue"),
        ("stats_users = , tom", "tom"),
        ("", getpass.getuser()),
    ],
)
def test_without_a_word_it_is_the_first_of_those_who_may(tmp_path: Path, keys: str, user: str) -> None:
    ini = tmp_path / "proxy.ini"
    ini.write_text(f"[databases]\n[pgbouncer]\nlisten_addr = {LOOPBACK}\n{keys}\n")
    assert conninfo_to_dict(where(str(ini), None, {}))["user"] == user


def test_what_cannot_be_reached_is_said() -> None:
    port = free_port()
    done = top(f"host={LOOPBACK} port={port} user=x")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"pgpool-proxy top: .*Connection refused.*\n", done.stderr)
    assert top("/nowhere.ini").returncode == 1
    assert top("host").returncode == 1
    assert top("-n", "0").returncode == 2


def test_names_cannot_speak_to_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202e\x00é") == "a?[2Jb??é"
    assert shortened("a" * 28) == "a" * 28
    assert shortened("a" * 29) == "a" * 27 + "…"
    assert table([("A", "<", ["x\n", "long"]), ("B", ">", ["1", "200"])]) == ["A       B", "x?      1", "long  200"]


def test_amounts() -> None:
    assert [size(number) for number in (0, 999, 1000, 15_500, 2_000_000, Decimal(3 * 10**15))] == [
        "0 B", "999 B", "1 kB", "15.5 kB", "2 MB", "3,000 TB",
    ]  # fmt: skip
    assert [size(number) for number in (999_400, 999_500, 999_999_999)] == ["999 kB", "1 MB", "1 GB"]
    assert [seconds(micros) for micros in (0, 1500, 12_340_000, 3_600_000_000)] == ["0.000 s", "0.002 s", "12.3 s", "3,600.0 s"]
