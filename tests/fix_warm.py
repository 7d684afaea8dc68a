"""Daemons that start by a fork: a process that has imported the program, and nothing else, makes one for each request.

Three quarters of what a test costs, that starts a daemon of its own, is Python importing the program. What the child does is
all that `python -m pgpool_proxy` does after its imports, with a session, a directory, an environment and files of its own.
PGPOOL_PROXY_TEST_START=cold starts every daemon from nothing, as do tests with the mark `cold_start`: those that look at the
memory of a process, of which a forked one has only what it has touched.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

MAX_NOTE = 1 << 17  # bytes of a request or an answer
STARTED, ENDED = "started", "ended"


# --- the tests' side ------------------------------------------------------------------------------------------------------


class WarmProcess:
    """What tests use of subprocess.Popen, for a process that is not our child."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self._nursery.collect(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["pgpool-proxy"], timeout or 0)
            self._nursery.collect(0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(SIGKILL)


class Nursery:
    """The process that forks daemons, and what it tells of their ends."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__)), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._living: dict[int, WarmProcess] = {}
        self._started: list[int] = []

    def start(self, arguments: list[str], *, cwd: Path, env: dict[str, str], log: int) -> WarmProcess:
        """`pgpool-proxy ARGUMENTS`, whose output goes to the file descriptor `log`."""
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
        with self._lock:
            socket.send_fds(self._socket, [request], [log])
            while not self._started:
                self._receive(None)
            pid = self._started.pop()
            self._living[pid] = process = WarmProcess(self, pid)
            return process

    def collect(self, timeout: float) -> None:
        """Hear of processes that have ended, for so many seconds at most."""
        with self._lock:
            while self._receive(timeout):
                timeout = 0

    def _receive(self, timeout: float | None) -> bool:
        if not select.select([self._socket], [], [], timeout)[0]:
            return False
        answer = self._socket.recv(MAX_NOTE)
        assert answer, f"the process that starts daemons ended with {self._process.wait()}"
        what, pid, code = json.loads(answer)
        if what == STARTED:
            self._started.append(pid)
        else:
            self._living.pop(pid).returncode = code
        return True

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)


_nursery: Nursery | None = None


def nursery() -> Nursery:
    """One for each process that runs tests, from its first daemon on."""
    global _nursery
    if _nursery is None:
        _nursery = Nursery()
    return _nursery


def pytest_unconfigure() -> None:
    global _nursery
    if _nursery is not None:
        _nursery.close()
        _nursery = None


# --- the other side: this file as a program -------------------------------------------------------------------------------


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns in each child, with its request, and when the tests have gone, with None."""
    heard, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([channel, heard], [], [])
        if channel in ready:
            request, files, _, _ = socket.recv_fds(channel, MAX_NOTE, 1)
            if not request:
                return None
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return {**json.loads(request), "log": files[0]}
            os.close(files[0])
            channel.send(json.dumps([STARTED, pid, 0]).encode())
        if heard in ready:
            os.read(heard, 1 << 12)
        report_ended(channel)


def report_ended(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        channel.send(json.dumps([ENDED, pid, os.waitstatus_to_exitcode(status)]).encode())


def become(request: dict[str, Any]) -> None:
    """What a shell, or subprocess, and the interpreter's start would have made."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for standard in (1, 2):
        os.dup2(request["log"], standard)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv[1:] = request["arguments"]


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    from pgpool_proxy import __main__, cli  # noqa: F401 - the rest is imported by those who need it

    request = serve(channel)
    channel.detach()
    if request is None:
        return 0
    become(request)
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
