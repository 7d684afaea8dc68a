"""Who comes to a process that serves nobody itself: each connection goes to the worker that has the fewest."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from pgpool_proxy import log
from pgpool_proxy.net.listener import Listener, ListeningSocket

AT_A_TIME: Final = 64  # connections that are accepted before anything else has its turn
NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_S: Final = 0.1  # when the process has no descriptor left


class _Watch:
    """The loop's watch over one listening socket."""

    def __init__(self, listening: ListeningSocket, arrived: Callable[[ListeningSocket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._number = listening.sock.fileno()
        self._loop.add_reader(self._number, arrived, listening)

    def close(self) -> None:
        self._loop.remove_reader(self._number)


class Doorman:
    """`take(connection, is_unix)` gives it to a worker. When `can_take` says that there is none, nobody is let in until the
    listener's `go_on_accepting`: who comes waits in the kernel's queue."""

    def __init__(self, can_take: Callable[[], bool], take: Callable[[socket.socket, bool], None]) -> None:
        self.listener = Listener(None, self._give, self._watch)
        self._can_take = can_take
        self._take = take

    def _watch(self, listening: ListeningSocket) -> _Watch:
        listening.sock.setblocking(False)
        return _Watch(listening, self._arrived)

    def _arrived(self, listening: ListeningSocket) -> None:
        """Told by the loop: somebody is at the door."""
        for _ in range(AT_A_TIME):
            if not self._can_take():
                self.listener.stop_accepting()
                return
            try:
                connection, _ = listening.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    log.get_logger().error(f"cannot accept: {error.strerror}")
                    self._pause()
                    return
                continue  # it has left already
            self._give(connection, not listening.is_tcp)

    def _give(self, connection: socket.socket, is_unix: bool) -> None:
        with connection:
            self._take(connection, is_unix)

    def _pause(self) -> None:
        self.listener.stop_accepting()
        loop = asyncio.get_running_loop()
        loop.call_later(PAUSE_S, lambda: loop.create_task(self.listener.go_on_accepting()))
