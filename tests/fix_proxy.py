"""The daemon under test: a real process with an ini of its own, watched for tracebacks and for what it leaves behind.

    def test_it(make_proxy):
        proxy = make_proxy(pool_mode="transaction", default_pool_size=2)
        assert proxy.sql("select 1") == [(1,)]
        assert proxy.admin("SHOW POOLS")[0]["cl_active"] == 0

The environment variable PGPOOL_PROXY_TEST_DAEMON names another daemon to run with the same ini, PgBouncer for example:
a test that passes on both states what the two have in common.

PGPOOL_PROXY_TEST_WORKERS=2 gives every daemon two workers whose test does not say how many: from outside they are one daemon,
so what fails then, and does not look at the insides of a single process, is a fault.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL, SIGQUIT, Signals
from typing import Any

import psycopg
import pytest
from fix_postgres import USERS, Postgres, environment
from fix_wait import (
    LOOPBACK,
    accepts,
    descendants,
    free_port,
    hand_over,
    is_running,
    unprivileged_account,
    wait_until,
)
from fix_warm import WarmProcess, nursery
from psycopg.rows import dict_row

ADMIN_USER = "admin_user"
STATS_USER = "stats_user"
ADMIN_PASSWORD = "admin-secret"

TROUBLE = re.compile(
    r"Traceback \(most recent call last\)|was never (awaited|retrieved)|Segmentation fault|Fatal Python"
)


# -P: the package that is installed, not the one in the current directory
OURS = [sys.executable, "-P", "-m", "pgpool_proxy"]


def daemon_command() -> list[str]:
    other = os.environ.get("PGPOOL_PROXY_TEST_DAEMON")
    return shlex.split(other) if other else OURS


def default_workers() -> dict[str, object]:
    number = os.environ.get("PGPOOL_PROXY_TEST_WORKERS")
    return {"workers": number} if number else {}


class Proxy:
    """One daemon. `settings` are the keys of [pgbouncer]; change them and call `reload()` or `restart()`."""

    host = LOOPBACK

    def __init__(
        self,
        directory: Path,
        databases: Mapping[str, str],
        settings: Mapping[str, object],
        users: Mapping[str, str],
        sections: Mapping[str, Mapping[str, object]],
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.databases = dict(databases)
        self.users = dict(users)
        self.sections = {name: dict(keys) for name, keys in sections.items()}
        self.arguments = arguments
        self.environ = dict(environ or {})
        self.ini = directory / "proxy.ini"
        self.auth_file = directory / "userlist.txt"
        self.log_file = directory / "proxy.log"
        self.settings: dict[str, object] = {
            "listen_addr": LOOPBACK,
            "listen_port": self.port,
            "unix_socket_dir": directory,
            "auth_type": "trust",
            "auth_file": self.auth_file,
            "admin_users": ADMIN_USER,
            "stats_users": STATS_USER,
            "metrics_listen_addr": "",
            **default_workers(),
            **settings,
        }
        self.port = int(str(self.settings["listen_port"]))
        #: a test that provokes a traceback says here what its text matches
        self.expected_trouble: str | None = None
        self.cold = cold
        self._process: subprocess.Popen[bytes] | WarmProcess | None = None
        self._opened: list[psycopg.Connection[Any]] = []

    def __repr__(self) -> str:
        return f"<Proxy port={self.port} pid={self._process and self._process.pid}>"

    # --- configuration ---

    def write_config(self) -> None:
        """Write the ini and the file of users as the attributes say."""
        lines = ["[databases]", *(f"{name} = {value}" for name, value in self.databases.items()), "", "[pgbouncer]"]
        lines += [f"{key} = {value}" for key, value in self.settings.items()]
        for name, keys in self.sections.items():
            lines += ["", f"[{name}]", *(f"{key} = {value}" for key, value in keys.items())]
        self.ini.write_text("\n".join(lines) + "\n")
        self.auth_file.write_text("".join(f'"{user}" "{secret}"\n' for user, secret in self.users.items()))
        hand_over(self.ini, self.auth_file)

    @contextmanager
    def run_with_config(self, **settings: object) -> Iterator[Proxy]:
        """Reload with these settings, and with the former ones afterwards."""
        before = dict(self.settings)
        self.settings.update(settings)
        self.reload()
        try:
            yield self
        finally:
            self.settings = before
            self.reload()

    def reload(self) -> None:
        """Write the files again and RELOAD."""
        self.write_config()
        self.admin("RELOAD")

    # --- the process ---

    @property
    def pid(self) -> int:
        assert self._process is not None, "the proxy was not started"
        return self._process.pid

    def command(self) -> list[str]:
        account = unprivileged_account()
        drop = [] if account is None else ["-u", account]
        return [*daemon_command(), *drop, *self.arguments, str(self.ini)]

    def starts_warm(self) -> bool:
        """Whether a fork will do (fix_warm): not where the start itself, or more than one process, is what is looked at."""
        is_plain = not self.arguments and not self.environ and str(self.settings.get("workers", 1)) == "1"
        is_ours = self.command()[: len(OURS)] == OURS
        return is_plain and is_ours and not self.cold and os.environ.get("PGPOOL_PROXY_TEST_START") != "cold"

    def launch(self) -> subprocess.Popen[bytes] | WarmProcess:
        """Start the process without waiting for anything: for tests of starts that fail."""
        self.write_config()
        with self.log_file.open("ab") as log:
            if self.starts_warm():
                arguments = self.command()[len(OURS) :]
                self._process = nursery().start(arguments, cwd=self.directory, env=environment(), log=log.fileno())
                return self._process
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**environment(), **self.environ},
                start_new_session=True,
            )
        return self._process

    def start(self) -> Proxy:
        """Start, and wait until it listens, everywhere: it does so by TCP a moment before it has made its unix socket."""
        before = self.log().count("process up")
        is_quiet = any(re.fullmatch(r"-\w*q\w*|--quiet", argument) for argument in self.arguments)
        process = self.launch()

        def is_up() -> bool:
            assert process.poll() is None, f"the proxy ended with {process.returncode}:\n{self.log()}"
            return accepts(self.port) and (is_quiet or self.log().count("process up") > before)

        wait_until(is_up, 30, "the proxy listens")
        return self

    def run_to_end(self, timeout: float = 30) -> int:
        """Start it and wait until it ends by itself: its exit code. For configurations that it must refuse."""
        return self.launch().wait(timeout)

    def signal(self, number: Signals) -> None:
        os.kill(self.pid, number)

    def wait_exit(self, timeout: float = 10) -> int:
        """Wait until the process has ended: its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, number: Signals = SIGQUIT, timeout: float = 10) -> None:
        """End it (at once: SIGQUIT), see that its children go with it and that its log has no traceback."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        process = self._process
        if process is None:
            return
        children = descendants(process.pid)
        stuck = False
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                stuck = True
                process.kill()
                process.wait()
        try:
            wait_until(lambda: not any(map(is_running, children)), 5)
        except AssertionError:
            left = [pid for pid in children if is_running(pid)]
            for pid in left:
                os.kill(pid, SIGKILL)
            pytest.fail(f"the proxy left processes behind: {left}\n{self.log()[-4000:]}")
        finally:
            self._process = None
        if stuck:
            pytest.fail(f"the proxy did not stop within {timeout} s of {number.name}:\n{self.log()[-4000:]}")
        self.check_log()

    def restart(self) -> None:
        self.stop()
        self.start()

    # --- the log ---

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_contains(self, pattern: str, times: int | None = None) -> bool:
        """Whether the regular expression is found in the log (exactly `times` times, if given)."""
        found = len(re.findall(pattern, self.log(), re.MULTILINE))
        return found > 0 if times is None else found == times

    def wait_log(self, pattern: str, timeout: float = 10) -> str:
        """Wait for a line of the log that has this: the line."""

        def line() -> str:
            return next((line for line in self.log().splitlines() if re.search(pattern, line)), "")

        try:
            return wait_until(line, timeout)
        except AssertionError:
            raise AssertionError(f"not logged within {timeout} s: {pattern}\n{self.log()[-4000:]}") from None

    def check_log(self) -> None:
        """Fail on a traceback that the test did not announce."""
        log = self.log()
        trouble = TROUBLE.search(log)
        if trouble and not (self.expected_trouble and re.search(self.expected_trouble, log)):
            start = max(0, trouble.start() - 500)
            pytest.fail(f"trouble in the proxy's log:\n{log[start:][:6000]}")

    # --- memory ---

    def rss(self) -> int:
        """Resident bytes of the process and its children."""
        return self._memory("status", r"^VmRSS:\s+(\d+) kB")

    def pss(self) -> int:
        """The same with shared pages divided by those who share them."""
        return self._memory("smaps_rollup", r"^Pss:\s+(\d+) kB")

    def _memory(self, file: str, pattern: str) -> int:
        total = 0
        for pid in (self.pid, *descendants(self.pid)):
            try:
                text = Path(f"/proc/{pid}/{file}").read_text()
            except (FileNotFoundError, ProcessLookupError):
                if pid == self.pid:
                    raise
                continue  # a child that has ended meanwhile
            found = re.search(pattern, text, re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
        return total

    # --- talking to it ---

    def dsn(self, **keywords: object) -> str:
        parameters: dict[str, Any] = {"host": self.host, "port": self.port, "user": "trust_user", "dbname": "app"}
        parameters.update(keywords)
        parameters.setdefault("connect_timeout", 10)
        return psycopg.conninfo.make_conninfo(**parameters)

    def connect(self, *, cursor_factory: Any = None, prepare_threshold: int | None = None, **keywords: object) -> Any:
        """A connection of psycopg, autocommit, as trust_user to `app`; closed after the test if not before."""
        connection = psycopg.connect(
            self.dsn(**keywords), autocommit=True, cursor_factory=cursor_factory, prepare_threshold=prepare_threshold
        )
        self._opened.append(connection)
        return connection

    async def aconnect(self, *, prepare_threshold: int | None = None, **keywords: object) -> Any:
        """The same for async tests: `async with await proxy.aconnect() as connection`."""
        return await psycopg.AsyncConnection.connect(
            self.dsn(**keywords), autocommit=True, prepare_threshold=prepare_threshold
        )

    def sql(self, query: str, parameters: object = None, **keywords: object) -> list[tuple[Any, ...]]:
        """The rows of one query on a connection of its own."""
        with self.connect(**keywords) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def admin(self, command: str, user: str = ADMIN_USER, **keywords: object) -> list[dict[str, Any]]:
        """A command on the console: its rows, one dict each, by the simple protocol."""
        keywords = {"dbname": "pgbouncer", "user": user, "password": ADMIN_PASSWORD, **keywords}
        connection = psycopg.connect(
            self.dsn(**keywords),
            autocommit=True,
            prepare_threshold=None,
            cursor_factory=psycopg.ClientCursor,
        )
        with connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(command)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def show(self, what: str, **equals: object) -> dict[str, Any]:
        """The one row of SHOW `what` whose columns have these values: `show("POOLS", database="app")`."""
        rows = [row for row in self.admin(f"SHOW {what}") if all(row[key] == value for key, value in equals.items())]
        assert len(rows) == 1, f"SHOW {what} has {len(rows)} rows with {equals}"
        return rows[0]


MakeProxy = Callable[..., Proxy]


@pytest.fixture
def make_proxy(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[MakeProxy]:
    """Makes daemons for one test. Keywords are those of `making`."""
    yield from making(run_dir, request)


@pytest.fixture(scope="module")
def keep_proxy(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[MakeProxy]:
    """The same for tests that only log in and look at what they get: who asks for the same daemon in one module shares it."""
    kept: dict[str, Proxy] = {}
    fresh = making(run_dir, request)
    make = next(fresh)

    def keep(**keywords: Any) -> Proxy:
        key = repr(sorted(keywords.items()))
        if key not in kept:
            kept[key] = make(**keywords)
        return kept[key]

    yield keep
    next(fresh, None)


def making(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[MakeProxy]:
    """What makes daemons, and their end. Keywords that are not named below are settings of the ini.

    databases   name -> connection string; `app`, `other` and `*` on the shared server unless given
    server      the Postgres behind the default databases, the shared one unless given
    users       name -> secret in the auth_file; USERS and the two users of the console unless given
    sections    further sections of the ini
    arguments   of the command line; environ: further environment variables
    start       False: made but not started
    """
    made: list[Proxy] = []

    def make(
        *,
        databases: Mapping[str, str] | None = None,
        server: Postgres | None = None,
        users: Mapping[str, str] | None = None,
        sections: Mapping[str, Mapping[str, object]] | None = None,
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        start: bool = True,
        **settings: object,
    ) -> Proxy:
        if databases is None:
            server = server or request.getfixturevalue("shared_postgres")
            databases = {"*": f"host={server.host} port={server.port}"}
        if users is None:
            users = {user: secret for user, (_, secret) in USERS.items()}
            users |= {ADMIN_USER: ADMIN_PASSWORD, STATS_USER: ADMIN_PASSWORD}
        directory = Path(tempfile.mkdtemp(prefix="proxy-", dir=run_dir))
        directory.chmod(0o755)
        hand_over(directory)
        cold = request.node.get_closest_marker("cold_start") is not None
        proxy = Proxy(directory, databases, settings, users, sections or {}, arguments, environ, cold)
        made.append(proxy)
        return proxy.start() if start else proxy

    yield make
    troubles: list[str] = []
    for proxy in reversed(made):
        try:
            proxy.stop()
        except (pytest.fail.Exception, AssertionError) as failure:
            troubles.append(str(failure))
        shutil.rmtree(proxy.directory)
    if troubles:
        pytest.fail("\n".join(troubles))


@pytest.fixture
def proxy(make_proxy: MakeProxy) -> Proxy:
    """A daemon with default settings (session pooling) before the shared server."""
    return make_proxy()
