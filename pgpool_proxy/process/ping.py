"""`pgpool-proxy ping`: does the proxy serve? For health checks of containers, and for scripts.

Sends an SSLRequest and waits for the answer, which comes from the loop that serves everybody. So no password is needed, no
server and no place among the clients, and the log stays silent. Without a file only the environment is asked, and nothing
heavy is imported: this runs every few seconds.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from pgpool_proxy.errors import ConfigError

PORT: Final = 6432
LOOPBACK: Final = "127.0.0.1"
ANY: Final = {"*": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "::1"}  # where it listens -> where to ask
SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
TIMEOUT_S: Final = 3.0


def main(arguments: Sequence[str]) -> int:
    """0 when it serves, 1 when it does not; what was found is on stdout or stderr."""
    options = parser().parse_args(arguments)
    try:
        host, port = where(options.file, options.host, options.port, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"pgpool-proxy ping: {error}\n")
        return 1
    shown = f"unix:{socket_path(host, port)}" if is_unix(host) else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        ask(host, port, options.timeout)
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        sys.stderr.write(f"pgpool-proxy ping: {shown}: {reason}\n")
        return 1
    sys.stdout.write(f"{shown} serves\n")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="pgpool-proxy ping", description="Does the proxy serve? Exit code 0 or 1.")
    found.add_argument("--host", help="address or directory of the unix socket; default: the one it listens on")
    found.add_argument("--port", type=int, help="its port; default: the one it listens on")
    found.add_argument("--timeout", type=float, default=TIMEOUT_S, help=f"seconds to wait ({TIMEOUT_S:g})")
    found.add_argument("file", nargs="?", metavar="FILE.ini", help="its configuration; default: the environment")
    return found


def where(file: str | None, host: str | None, port: int | None, environ: Mapping[str, str]) -> tuple[str, int]:
    """Host (or directory of the unix socket) and port to ask. Raises ConfigError for a file that cannot be used."""
    if file is None:
        listens = environ.get("PGPOOL_PROXY_LISTEN_ADDR") or "*"
        given = environ.get("PGPOOL_PROXY_LISTEN_PORT") or str(PORT)
        if not given.isdecimal() and port is None:
            raise ConfigError(f'expected a port, got "{given}"', file="environment", key="listen_port")
        directory, default_port = "", int(given) if given.isdecimal() else PORT
    else:
        from pgpool_proxy.settings.config import load

        settings = load(file, {}, environ).settings
        listens, directory, default_port = settings.listen_addr, settings.unix_socket_dir, settings.listen_port
    first = listens.split(",")[0].strip()
    if ":" in first:
        from pgpool_proxy.settings.listen import listen_addresses

        try:
            ((first, default_port),) = listen_addresses(first, default_port)
        except ValueError as error:
            raise ConfigError(str(error), file="environment", key="listen_addr") from None
    return host or ANY.get(first, first) or directory, default_port if port is None else port


def ask(host: str, port: int, timeout: float) -> None:
    """Raises OSError when nobody answers as PostgreSQL does."""
    if is_unix(host):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
    else:
        connection = socket.create_connection((host, port), timeout)
    with connection:
        if is_unix(host):
            connection.connect(socket_path(host, port))
        connection.sendall(SSL_REQUEST)
        if connection.recv(1) not in (b"S", b"N"):
            raise OSError("no PostgreSQL protocol is spoken there")


def is_unix(host: str) -> bool:
    return host.startswith(("/", "@"))


def socket_path(host: str, port: int) -> str:
    """The file of a unix socket, or its abstract name."""
    path = f"{host}/.s.PGSQL.{port}"
    return f"\0{path[1:]}" if path.startswith("@") else path
