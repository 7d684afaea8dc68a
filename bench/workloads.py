"""What is run: each workload drives one address for some seconds and says what it saw.

A workload knows how its poolers must be configured (`settings`), and what to say in the table about a pooler that
cannot do it as it should (`note`).
"""

from __future__ import annotations

import re
import resource
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servers import (
    DATABASE,
    LOOPBACK,
    MAX_SERVERS,
    SCRAM_PASSWORD,
    SCRAM_USER,
    TRUST_USER,
    BenchError,
    PgBouncer,
    Postgres,
    Server,
    environment,
)

IDLE_CLIENTS = 9_000
TLS: dict[str, object] = {"client_tls_sslmode": "require"}


@dataclass
class Sample:
    """One round of one workload on one target. Times in microseconds, memory in bytes per client."""

    per_second: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_user_us: float | None = None
    cpu_system_us: float | None = None
    rss_per_client: float | None = None
    pss_per_client: float | None = None

    @property
    def cpu_us(self) -> float | None:
        return None if self.cpu_user_us is None else self.cpu_user_us + (self.cpu_system_us or 0.0)


Run = Callable[[Postgres, Server, float], Sample]


@dataclass
class Workload:
    """`run(postgres, target, seconds)`; `unit` is what is counted."""

    name: str
    run: Run
    unit: str = "tx"
    settings: dict[str, object] = field(default_factory=dict)
    direct: bool = True
    #: settings for a PgBouncer that does not know protocol-level prepared statements, and the words for the table
    old_pgbouncer: dict[str, object] = field(default_factory=dict)
    note: str = ""
    timed: bool = True

    def settings_for(self, kind: type[Server]) -> tuple[dict[str, object], str]:
        if kind is PgBouncer and self.old_pgbouncer and PgBouncer.version() < (1, 21, 0):
            return self.old_pgbouncer, self.note
        return self.settings, ""


# --- pgbench ---------------------------------------------------------------------------------------------------------

PROGRESS = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps")


def pgbench(
    *options: str, clients: int, user: str = TRUST_USER, script: str = "", latencies: bool = True, sslmode: str = "disable"
) -> Run:
    """pgbench with one thread. The first second (connecting, launching servers) does not count."""

    # pgbench's clock runs while it connects, and PostgreSQL may take 10 ms to launch a process
    ramp = 1 + clients // 100

    def run(postgres: Postgres, target: Server, seconds: float) -> Sample:
        with tempfile.TemporaryDirectory(prefix="pgpool_proxy-bench-log-") as directory:
            command = [str(postgres.bindir / "pgbench"), "-n", "-h", LOOPBACK, "-p", str(target.port), "-U", user]
            command += ["-c", str(clients), "-j", "1", "-T", str(round(seconds) + ramp), "-P", "1", *options]
            command += ["--log", f"--log-prefix={directory}/log"] if latencies else []
            if script:
                file = Path(directory) / "script.sql"
                file.write_text(script)
                command += ["-f", str(file)]
            sample = drive([*command, DATABASE], target, seconds, sslmode)
            if latencies:
                sample.p50_us, sample.p99_us = percentiles(Path(directory))
        return sample

    return run


def drive(command: list[str], target: Server, seconds: float, sslmode: str) -> Sample:
    """Start pgbench and read the pooler's CPU time at its first and its last progress line."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PGPASSWORD=SCRAM_PASSWORD, PGSSLMODE=sslmode, PGGSSENCMODE="disable"),
    )
    assert process.stderr is not None
    first: tuple[float, float] | None = None
    last = (0.0, 0.0)
    begin = end = done = 0.0
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := PROGRESS.match(line):
                cpu, at = target.cpu_seconds(), float(found[1])
                if first is None:
                    first, begin = cpu, at
                else:
                    done += float(found[2]) * (at - end)
                    last = cpu
                end = at
        if process.wait(60) != 0:
            raise BenchError("pgbench: " + "".join(line for line in said if not PROGRESS.match(line))[-600:])
        if first is None or done == 0:
            raise BenchError(f"pgbench got nothing done in {seconds:g} s after its first second: give it more --seconds")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    sample = Sample(per_second=done / (end - begin))
    if not isinstance(target, Postgres):
        sample.cpu_user_us = (last[0] - first[0]) / done * 1e6
        sample.cpu_system_us = (last[1] - first[1]) / done * 1e6
    return sample


def percentiles(directory: Path) -> tuple[float, float]:
    """p50 and p99 of pgbench's log, in microseconds, without the first second."""
    latencies: list[int] = []
    begin = 0.0
    for file in directory.glob("log.*"):
        with file.open() as lines:
            for line in lines:
                fields = line.split()
                at = int(fields[4]) + int(fields[5]) / 1e6
                begin = begin or at
                if at - begin >= 1.0:
                    latencies.append(int(fields[2]))
    if len(latencies) < 2:
        return (float("nan"), float("nan"))
    latencies.sort()
    return float(latencies[len(latencies) // 2]), float(latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)])


STATEMENTS: Final = 100  # of the script below; its poolers keep half of them on each server
MANY_STATEMENTS: Final = "\\set aid random(1, 100000)\n" + "".join(
    f"select {number}, abalance from pgbench_accounts where aid = :aid;\n" for number in range(STATEMENTS)
)
PIPELINE: Final = (
    "\\set aid random(1, 100000)\n\\startpipeline\n"
    + "select abalance from pgbench_accounts where aid = :aid;\n" * 10
    + "\\endpipeline\n"
)


# --- COPY ------------------------------------------------------------------------------------------------------------

COPIES = 5
COPY_OUT = """\\timing on
COPY rows_100000 TO STDOUT;
\\timing off
"""
COPY_IN = """BEGIN;
CREATE TEMP TABLE copied (i int, t text) ON COMMIT DROP;
\\timing on
\\copy copied FROM '{file}'
\\timing off
COMMIT;
"""


def copy(statement: str) -> Run:
    """psql, COPY after COPY, some in each session; the latencies are psql's \\timing of the COPY itself."""

    def run(postgres: Postgres, target: Server, seconds: float) -> Sample:
        with tempfile.TemporaryDirectory(prefix="pgpool_proxy-bench-copy-") as directory:
            file = Path(directory) / "rows"
            file.write_text("".join(f"{i}\t{i:032x}\n" for i in range(100_000)))
            script = Path(directory) / "script.sql"
            script.write_text("\\o /dev/null\n" + statement.format(file=file) * COPIES)
            command = [str(postgres.bindir / "psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-h", LOOPBACK]
            command += ["-p", str(target.port), "-U", TRUST_USER, "-d", DATABASE, "-f", str(script)]
            times: list[float] = []
            before, begin = target.cpu_seconds(), time.monotonic()
            while time.monotonic() - begin < seconds:
                done = subprocess.run(command, text=True, capture_output=True, check=False, env=environment())
                if done.returncode:
                    raise BenchError(f"psql: {done.stderr[-600:]}")
                found = re.findall(r"^Time: ([\d.]+) ms", done.stdout, re.MULTILINE)
                times += [float(value) * 1000 for value in found]
            elapsed, after = time.monotonic() - begin, target.cpu_seconds()
        times.sort()
        count = len(times)
        sample = Sample(per_second=count / elapsed, p50_us=statistics.median(times), p99_us=times[count * 99 // 100])
        if not isinstance(target, Postgres):
            sample.cpu_user_us = (after[0] - before[0]) / count * 1e6
            sample.cpu_system_us = (after[1] - before[1]) / count * 1e6
        return sample

    return run


# --- idle clients ----------------------------------------------------------------------------------------------------


def idle_clients(count: int) -> Run:
    """So many clients log in, ask one thing each, and stay: what the pooler's memory grows by for each of them."""

    def run(_: Postgres, target: Server, __: float) -> Sample:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < count + 200:
            raise BenchError(f"ulimit -n is {limit}: {count} clients need {count + 200}")
        warm = [login(target.port) for _ in range(50)]  # the first ones pay for what all share
        before = target.memory()
        clients = [login(target.port) for _ in range(count)]
        after = target.memory()
        for client in (*warm, *clients):
            client.close()
        return Sample(
            rss_per_client=(after["rss"] - before["rss"]) / count, pss_per_client=(after["pss"] - before["pss"]) / count
        )

    return run


def login(port: int) -> socket.socket:
    """A client that is logged in and has had the answer to a query."""
    client = socket.create_connection((LOOPBACK, port), timeout=30)
    body = struct.pack("!i", 196_608) + f"user\0{TRUST_USER}\0database\0{DATABASE}\0\0".encode()
    client.sendall(struct.pack("!i", len(body) + 4) + body)
    read_to_ready(client)
    client.sendall(b"Q" + struct.pack("!i", 13) + b"select 1\0")
    read_to_ready(client)
    return client


def read_to_ready(client: socket.socket) -> None:
    data = b""
    while not data.endswith(b"Z\x00\x00\x00\x05I"):
        chunk = client.recv(65_536)
        if not chunk:
            raise BenchError(f"a client was turned away: {data!r}")
        data += chunk


# --- the list --------------------------------------------------------------------------------------------------------


def prepared(name: str, run: Run, clients: int, kept: int = 200) -> Workload:
    servers = min(max(clients, 20), MAX_SERVERS - 50)
    return Workload(
        name,
        run,
        settings={"max_prepared_statements": kept},
        old_pgbouncer={"pool_mode": "session", "default_pool_size": servers},
        note=f"PgBouncer before 1.21 cannot: session pooling, {servers} servers",
    )


def all_workloads() -> list[Workload]:
    """In the order in which they run."""
    workloads: list[Workload] = []
    for mode in ("simple", "extended", "prepared"):
        for clients in (1, 20, 100, 1_000):
            name, run = f"select-{mode}-{clients}", pgbench("-S", "-M", mode, clients=clients)
            workloads.append(prepared(name, run, clients) if mode == "prepared" else Workload(name, run))
    scram: dict[str, Any] = {"auth_type": "scram-sha-256"}
    workloads += [
        # each statement has left the server's LRU when its turn comes again: the worst that can happen to it
        prepared("prepared-beyond-lru-20", pgbench("-M", "prepared", clients=20, script=MANY_STATEMENTS), 20, STATEMENTS // 2),
        Workload("pipeline-extended-20", pgbench("-M", "extended", clients=20, script=PIPELINE)),
        prepared("pipeline-prepared-20", pgbench("-M", "prepared", clients=20, script=PIPELINE), 20),
        Workload("tpcb-20", pgbench(clients=20)),
        Workload("rows-20000", pgbench(clients=4, script="select * from rows_20000;\n")),
        Workload("copy-out-100000", copy(COPY_OUT), unit="copies"),
        Workload("copy-in-100000", copy(COPY_IN), unit="copies"),
        # pgbench's log leaves out the time to connect, which is all that matters here
        Workload("reconnect-trust-20", pgbench("-S", "-C", clients=20, latencies=False), unit="connects"),
        Workload(
            "reconnect-scram-20",
            pgbench("-S", "-C", clients=20, user=SCRAM_USER, latencies=False),
            unit="connects",
            settings=scram,
        ),
        # TLS on the clients' side only: that is where poolers meet it
        Workload("tls-select-simple-20", pgbench("-S", clients=20, sslmode="require"), settings=TLS, direct=False),
        Workload(
            "tls-rows-20000",
            pgbench(clients=4, script="select * from rows_20000;\n", sslmode="require"),
            settings=TLS,
            direct=False,
        ),
        Workload(
            "tls-reconnect-scram-20",
            pgbench("-S", "-C", clients=20, user=SCRAM_USER, latencies=False, sslmode="require"),
            unit="connects",
            settings=TLS | scram,
            direct=False,
        ),
        Workload(f"idle-{IDLE_CLIENTS}", idle_clients(IDLE_CLIENTS), unit="", direct=False, timed=False),
    ]
    return workloads
