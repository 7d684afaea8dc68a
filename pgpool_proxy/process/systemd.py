"""What systemd is told, and what it gives: sd_notify(3) and sd_listen_fds(3), spoken directly. Without it nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from time import clock_gettime_ns
from typing import Final

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError

FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START


class Systemd:
    """The service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._environ = environ

    def ready(self) -> None:
        """It listens; after -R, it is the main process from now on."""
        self._tell("READY=1", f"MAINPID={os.getpid()}", "STATUS=Serving")

    def reloading(self) -> None:
        """`ready` has to follow, whatever becomes of it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={clock_gettime_ns(1) // 1000}", "STATUS=Reloading")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", f"STATUS={status}")

    def _tell(self, *lines: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.get_logger().warning(f"could not notify systemd: {error.strerror}")

    def sockets(self) -> list[socket.socket]:
        """Listening sockets that it has opened for us, instead of listen_addr and unix_socket_dir. Raises ConfigError."""
        try:
            if int(self._environ.get("LISTEN_PID", "0")) != os.getpid():
                return []
            count = int(self._environ.get("LISTEN_FDS", "0"))
        except ValueError:
            return []
        found: list[socket.socket] = []
        for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count):
            try:
                sock = socket.socket(fileno=number)
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.type == socket.SOCK_STREAM
            except OSError as error:
                problem = f"descriptor {number} from systemd is no socket: {error.strerror}"
                raise ConfigError(problem, key="LISTEN_FDS") from error
            if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                raise ConfigError(f"descriptor {number} from systemd is no listening stream socket", key="LISTEN_FDS")
            os.set_inheritable(number, False)
            found.append(sock)
        return found
