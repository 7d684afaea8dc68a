"""The process that makes workers: forked before anything else runs, so that what it forks is clean.

Theory of operation
-------------------
The supervisor has a loop, threads and sockets, none of which a fork survives well, and may have given up root's rights. So it
forks this process first. It has one thread, no loop, and waits for orders on a socket: `spawn` comes with one end of a channel
and is answered by a pidfd; the child takes on the account that was configured and becomes a worker. `renew` starts another
such process from the files on the disk, with their new code, which takes this one's place. It ends with the supervisor: its
socket is closed then. Signals mean nothing to it.
"""

from __future__ import annotations

import array
import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from pgpool_proxy.errors import ConfigError

SPAWN: Final = b"spawn"
RENEW: Final = b"renew"
READY: Final = b"ready"
ANSWER_SIZE: Final = 256
RENEW_S: Final = 30.0  # for a new interpreter to start
IGNORED: Final = (
    signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN,
    signal.SIGPIPE,
)  # fmt: skip
Work = Callable[[socket.socket], int]
"""What a worker does with its end of the channel: its exit code."""


class SpawnFailed(OSError):
    """There is no new process, and why."""


# --- the supervisor's side ----------------------------------------------------------------------------------------------
class Spawner:
    """Speaks to the process. One order at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._turn = asyncio.Lock()

    @classmethod
    def fork(cls, work: Work, user: str | None, *, silent: bool) -> Spawner:
        """Before the loop runs. `user` is whom workers become when this is root; `silent`: they have no stderr."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.collect()
        gc.freeze()  # what stands now is shared by all workers: the collector must not write to it
        if os.fork() == 0:
            ours.close()
            _serve(its, work, user, silent)
        its.close()
        ours.setblocking(False)
        return cls(ours)

    async def spawn(self, channel: socket.socket) -> int:
        """A worker at the other end of `channel`: its pidfd. Raises SpawnFailed."""
        async with self._turn:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [channel.fileno()]))]
            return await self._order(SPAWN, rights)

    async def renew(self) -> None:
        """Take the code that is on the disk now for the workers to come. Raises SpawnFailed; the old one goes on then."""
        async with self._turn:
            fresh = socket.socket(fileno=await self._order(RENEW, []))
            fresh.setblocking(False)
            try:
                async with asyncio.timeout(RENEW_S):
                    said = await asyncio.get_running_loop().sock_recv(fresh, ANSWER_SIZE)
            except TimeoutError:
                said = b"it does not start"
            if said != READY:
                fresh.close()
                raise SpawnFailed(said.decode(errors="replace") or "it ended at once, see the log")
            self._socket.close()  # the old process ends
            self._socket = fresh

    async def _order(self, order: bytes, rights: list[tuple[int, int, array.array[int]]]) -> int:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            if not answered.done():
                answered.set_result(None)

        try:
            self._socket.sendmsg([order], rights, socket.MSG_NOSIGNAL)
            loop.add_reader(self._socket.fileno(), readable)
            try:
                await answered
            finally:
                loop.remove_reader(self._socket.fileno())
            answer, found, _, _ = self._socket.recvmsg(ANSWER_SIZE, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise SpawnFailed(f"the spawner has gone: {error.strerror}") from error
        for _, kind, payload in found:
            if kind == socket.SCM_RIGHTS:
                return int.from_bytes(payload[:4], sys.byteorder)
        raise SpawnFailed(answer.decode(errors="replace") or "the spawner has gone")

    def close(self) -> None:
        self._socket.close()


# --- the process itself ---------------------------------------------------------------------------------------------------
def _serve(sock: socket.socket, work: Work, user: str | None, silent: bool) -> NoReturn:
    """Until the supervisor has gone."""
    try:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: their pidfds tell of their ends
        if silent:
            _be_silent()
        while True:
            order, rights, _, _ = sock.recvmsg(ANSWER_SIZE, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
            if not order:
                os._exit(0)
            try:
                if order == SPAWN:
                    channel = socket.socket(fileno=int.from_bytes(rights[0][2][:4], sys.byteorder))
                    _answer(sock, _spawn(sock, channel, work, user))
                elif order == RENEW:
                    _answer(sock, _renew(sock, user, silent))
            except OSError as error:
                sock.send(f"{error.strerror}".encode())
    finally:
        os._exit(1)


def _answer(sock: socket.socket, descriptor: int) -> None:
    sock.sendmsg([READY], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
    os.close(descriptor)


def _spawn(sock: socket.socket, channel: socket.socket, work: Work, user: str | None) -> int:
    """A worker: its pidfd."""
    go, wait = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sock.close()
            os.close(wait)
            os.read(go, 1)  # until its pidfd exists: it must not be gone before
            os.close(go)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(user)
            code = work(channel)
        except BaseException as error:
            sys.stderr.write(f"pgpool-proxy: a worker could not start: {error}\n")
        finally:
            os._exit(code)
    channel.close()
    os.close(go)
    try:
        return os.pidfd_open(pid)
    finally:
        os.close(wait)


def _become(user: str | None) -> None:
    from pgpool_proxy.process import daemon

    if os.geteuid() == 0:
        daemon.switch_user(user)


def _renew(sock: socket.socket, user: str | None, silent: bool) -> int:
    """Another spawner, with the code that is on the disk now: the supervisor's end of its socket."""
    theirs, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            its.set_inheritable(True)
            arguments = [str(its.fileno()), user or "", "silent" if silent else ""]
            os.execv(sys.executable, [sys.executable, "-P", "-m", "pgpool_proxy.process.spawner", *arguments])
        except OSError as error:
            its.send(f"{sys.executable}: {error.strerror}".encode())
        finally:
            os._exit(1)
    its.close()
    return theirs.detach()


def _be_silent() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def main(arguments: list[str]) -> NoReturn:
    """What `renew` starts."""
    from pgpool_proxy.process import membership, outside

    sock = socket.socket(fileno=int(arguments[0]))
    try:
        outside.load_all_libraries()
        membership.load_everything()
        "localhost".encode("idna")
        gc.collect()
        gc.freeze()
        sock.send(READY)
    except (OSError, ConfigError) as error:
        sock.send(str(error).encode())
        os._exit(1)
    _serve(sock, membership.work, arguments[1] or None, arguments[2] == "silent")


if __name__ == "__main__":
    main(sys.argv[1:])
