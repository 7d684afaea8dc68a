"""pgpool_proxy with 1, 2 and 4 workers in one run, interleaved: what several processes cost, and how fair they are.

    python bench/workers.py                          everything, about 6 minutes
    python bench/workers.py --only select --rounds 1

CPU is that of all processes of the daemon per transaction; ratios are to one process. In the `stub` rows a server that answers
at once takes PostgreSQL's place, pinned to one core together with the load, and the daemon has the others: what is left when
the server costs nothing. In the `wait` row a pool of 5 servers of 5 ms each has 60 clients: p99/p50 is how evenly they wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from compare import medians, say
from servers import LOOPBACK, BenchError, PgpoolProxy, Postgres, Server, environment, machine, wait_until
from workloads import Sample, pgbench

WORKERS = (1, 2, 4)
Run = Callable[[Postgres, Server, float], Sample]


@dataclass
class Row:
    """One workload; `stub`: without PostgreSQL, `service_s` seconds a query."""

    name: str
    run: Run
    settings: dict[str, object] = field(default_factory=dict)
    stub: bool = False
    service_s: float = 0.0


ROWS = (
    Row("select-simple-20", pgbench("-S", clients=20)),
    Row("select-simple-100", pgbench("-S", clients=100)),
    Row("select-prepared-20", pgbench("-S", "-M", "prepared", clients=20)),
    Row("reconnect-trust-20", pgbench("-S", "-C", clients=20, latencies=False)),
    Row("stub-simple-20", pgbench(clients=20, script="select 1;\n"), stub=True),
    Row("stub-wait-60", pgbench(clients=60, script="select 1;\n"), {"default_pool_size": 5}, stub=True, service_s=0.005),
)


# --- the stub -------------------------------------------------------------------------------------------------------------
class Stub(asyncio.Protocol):
    """A server that lets everybody in and has one answer."""

    ANSWER = (
        b"T" + struct.pack("!ih", 33, 1) + b"?column?\0" + struct.pack("!ihihih", 0, 0, 23, 4, -1, 0)
        + b"D" + struct.pack("!ihi", 11, 1, 1) + b"1" + b"C" + struct.pack("!i", 13) + b"SELECT 1\0" + b"Z\0\0\0\x05I"
    )  # fmt: skip

    def __init__(self, service_s: float) -> None:
        self.service_s = service_s
        self.buffer = b""
        self.is_in = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self._take():
            pass

    def _take(self) -> bool:
        at = 1 if self.is_in else 0
        if len(self.buffer) < at + 4:
            return False
        (length,) = struct.unpack_from("!i", self.buffer, at)
        if len(self.buffer) < at + length:
            return False
        kind, self.buffer = self.buffer[:1], self.buffer[at + length :]
        if not self.is_in:
            if length == 8:  # SSLRequest
                self.transport.write(b"N")
                return True
            self.is_in = True
            parameters = b"".join(
                b"S" + struct.pack("!i", len(name) + len(value) + 6) + name + b"\0" + value + b"\0"
                for name, value in ((b"server_version", b"15.0"), (b"client_encoding", b"UTF8"), (b"DateStyle", b"ISO, MDY"))
            )
            self.transport.write(b"R\0\0\0\x08\0\0\0\0" + parameters + b"K" + struct.pack("!iii", 12, 1, 1) + b"Z\0\0\0\x05I")
        elif kind == b"Q":
            if self.service_s:
                asyncio.get_running_loop().call_later(self.service_s, self.transport.write, self.ANSWER)
            else:
                self.transport.write(self.ANSWER)
        elif kind == b"X":
            self.transport.close()
        return True


def serve_stub(port: int, service_s: float) -> None:
    """The stub's process."""
    import uvloop

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Stub(service_s), LOOPBACK, port)
        await server.serve_forever()

    uvloop.run(serve())


class StubServer(Server):
    """Stands where PostgreSQL stands."""

    scram_secret = ""
    stop_by = signal.SIGTERM

    def __init__(self, directory: Path, service_s: float, bindir: Path) -> None:
        super().__init__("stub", directory)
        self.bindir = bindir
        self._service_s = service_s

    def start(self) -> None:
        command = [sys.executable, __file__, "--stub", str(self.port), str(self._service_s)]
        self.process = subprocess.Popen(command, env=environment())
        wait_until(self._answers, 10, "the stub listens")

    def _answers(self) -> bool:
        import socket

        try:
            socket.create_connection((LOOPBACK, self.port), 1).close()
        except OSError:
            return False
        return True


# --- rows -------------------------------------------------------------------------------------------------------------------
def measure(row: Row, postgres: Postgres, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one row: {workers: {"median": ..., "rounds": ...}}."""
    samples: dict[int, list[Sample]] = {count: [] for count in WORKERS}
    for number in range(options.rounds):
        for count in WORKERS if number % 2 == 0 else WORKERS[::-1]:
            place = Path(tempfile.mkdtemp(prefix=f"workers-{count}-", dir=directory))
            settings = {"workers": count, "metrics_listen_addr": "", **row.settings}
            if row.stub:
                sample = on_stub(row, postgres, place, settings, options)
            else:
                sample = with_daemon(row, postgres, postgres, place, settings, options)
            samples[count].append(sample)
            say(f"    workers={count}  {describe(sample)}")
    return {str(count): {"median": medians(found), "rounds": len(found)} for count, found in samples.items()}


def with_daemon(
    row: Row, server: Any, postgres: Postgres, place: Path, settings: dict[str, object], options: argparse.Namespace
) -> Sample:
    daemon = PgpoolProxy("pgpool_proxy", place, server, settings)
    try:
        daemon.start()
        return row.run(postgres, daemon, options.seconds)
    finally:
        daemon.stop()


def on_stub(row: Row, postgres: Postgres, place: Path, settings: dict[str, object], options: argparse.Namespace) -> Sample:
    """The stub and the load on the first core, the daemon on the rest."""
    cores = sorted(os.sched_getaffinity(0))
    stub = StubServer(place / "stub", row.service_s, postgres.bindir)
    try:
        os.sched_setaffinity(0, cores[:1])
        stub.start()
        os.sched_setaffinity(0, cores[1:] or cores)
        daemon = PgpoolProxy("pgpool_proxy", place, stub, settings)  # type: ignore[arg-type]
        try:
            daemon.start()
            os.sched_setaffinity(0, cores[:1])
            return row.run(postgres, daemon, options.seconds)
        finally:
            daemon.stop()
    finally:
        stub.stop()
        os.sched_setaffinity(0, cores)


def describe(sample: Sample) -> str:
    parts = [f"{sample.per_second or 0:10,.0f} tx/s"]
    if sample.cpu_us is not None:
        parts.append(f"CPU {sample.cpu_us:.1f} µs")
    if sample.p50_us and sample.p99_us:
        p50, p99 = sample.p50_us / 1000, sample.p99_us / 1000
        parts.append(f"p50 {p50:.2f} ms  p99 {p99:.2f} ms  ({p99 / p50:.2f})")
    return "  ".join(parts)


def print_table(results: dict[str, Any]) -> None:
    print(f"{'workload':20}  {'workers':7}  {'tx/s':>10}  {'CPU µs':>16}  {'p50 ms':>8}  {'p99 ms':>8}  {'p99/p50':>14}")
    for name, result in results.items():
        one = result["1"]["median"]
        for count, found in result.items():
            now = found["median"]
            cpu = f"{now['cpu_us']:.1f} ({now['cpu_us'] / one['cpu_us']:.2f}x)"
            times = ""
            if "p50_us" in now:
                spread, first = now["p99_us"] / now["p50_us"], one["p99_us"] / one["p50_us"]
                times = f"{now['p50_us'] / 1000:8.2f}  {now['p99_us'] / 1000:8.2f}  {spread:6.2f} ({spread / first:.2f}x)"
            print(f"{name:20}  {count:7}  {now['per_second']:10,.0f}  {cpu:>16}  {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3); the median counts")
    parser.add_argument("--seconds", type=float, default=4, help="how long each round takes (4)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where results are written")
    parser.add_argument("--stub", nargs=2, metavar=("PORT", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stub:
        serve_stub(int(options.stub[0]), float(options.stub[1]))
        return
    directory = Path(tempfile.mkdtemp(prefix="pgpool_proxy-bench-"))
    directory.chmod(0o755)
    postgres = Postgres(directory)
    results: dict[str, Any] = {}
    try:
        say(f"setting up PostgreSQL {postgres.version}")
        postgres.start()
        postgres.fill(10)
        for row in ROWS:
            if not options.only or any(part in row.name for part in options.only):
                say(row.name)
                results[row.name] = measure(row, postgres, directory, options)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    finally:
        postgres.stop()
        shutil.rmtree(directory)
    print(f"\n{PgpoolProxy.version()}; {options.rounds} rounds of {options.seconds:g} s, median; {machine()}\n")
    print_table(results)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / datetime.now(UTC).strftime("workers-%Y%m%d-%H%M%S.json")
    file.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
