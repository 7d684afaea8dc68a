"""Waiting for something to become true, the account that servers run as, free ports: what other fixtures stand on."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

RUN_DIR = "TEST_RUN_DIR"  # the variable that names this run's directory, which all workers share

LOOPBACK = "127.0.0.1"

# Below the range from which the kernel takes the ports of outgoing connections, so that none of them is in the way.
PORTS = range(12_000, 32_000)


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Ask `condition` until its answer is true, and return that answer; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition!r} (last answer: {answer!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def await_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """`wait_until` for tests that have an event loop to keep running."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition!r} (last answer: {answer!r})")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def unprivileged_account() -> str | None:
    """The account that servers run as: None when we are not root, else `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("neither the account postgres nor nobody exists, and servers refuse to run as root")


def hand_over(*paths: Path) -> None:
    """Give files to the account that servers run as; nothing to do when we are not root."""
    account = unprivileged_account()
    if account is not None:
        entry = pwd.getpwnam(account)
        for path in paths:
            os.chown(path, entry.pw_uid, entry.pw_gid)


def free_port() -> int:
    """A TCP port of the loopback address on which nobody listens. Given once in a run: another worker may ask before the one
    who got it listens there, and who stops listening for a while finds it as it was."""
    for port in random.SystemRandom().sample(PORTS, 200):
        if not _is_ours(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def _is_ours(port: int) -> bool:
    run_dir = os.environ.get(RUN_DIR)
    if run_dir is None:
        return True
    taken = Path(run_dir) / "ports"
    taken.mkdir(exist_ok=True)
    try:
        (taken / str(port)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def accepts(port: int) -> bool:
    """Whether somebody listens on this port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=2).close()
    except OSError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Whether this process lives; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def cpu_seconds(pid: int) -> float:
    """What a process has taken so far, in steps of 10 ms: other than time, it does not grow with the load of others."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The process ids of all children, and of theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found
