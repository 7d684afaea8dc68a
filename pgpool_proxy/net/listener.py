"""The listening sockets, and the session that each accepted connection gets."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import struct
from pathlib import Path
from sys import intern
from typing import Final, cast

from pgpool_proxy import errors, log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.client_connection import ClientConnection
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.settings.model import Settings

PEER_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Listener:
    """All listening sockets of this process. TCP options are set on them: accepted sockets inherit those on Linux."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tcp: list[asyncio.Server] = []
        self._unix: list[asyncio.Server] = []
        self._files: list[Path] = []
        self._port = 0

    async def open(self, settings: Settings) -> None:
        """Listen on everything that is configured. Raises ConfigError, which names the address that cannot be had."""
        self._port = settings.listen_port
        try:
            for address in _addresses(settings.listen_addr):
                await self._open_tcp(address, settings)
            if settings.unix_socket_dir:
                await self._open_unix(settings)
        except BaseException:
            self.close()
            raise
        if not self._tcp and not self._unix:
            raise ConfigError("nothing to listen on: neither listen_addr nor unix_socket_dir is set", key="listen_addr")

    async def _open_tcp(self, address: str, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        host = None if address == "*" else address
        try:
            found = await loop.getaddrinfo(
                host, settings.listen_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )
        except OSError as error:
            raise ConfigError(f'address "{address}" is not known: {error.strerror}', key="listen_addr") from error
        opened = 0
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                sock = _tcp_socket(family, kind, protocol, where, settings)
            except OSError as error:
                if address == "*" and family == socket.AF_INET6:  # a machine without IPv6
                    continue
                raise ConfigError(f"cannot listen on {_shown(where)}: {error.strerror}", key="listen_addr") from error
            server = await loop.create_server(
                lambda: cast(asyncio.Protocol, ClientConnection(self)), sock=sock, backlog=settings.listen_backlog
            )
            self._tcp.append(server)
            opened += 1
            log.get_logger().info(f"listening on {_shown(where)}")
        if not opened:
            raise ConfigError(f"cannot listen on {address}:{settings.listen_port}", key="listen_addr")

    async def _open_unix(self, settings: Settings) -> None:
        directory = settings.unix_socket_dir
        name = f".s.PGSQL.{settings.listen_port}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if directory.startswith("@"):
                path = f"{directory}/{name}"
                sock.bind("\0" + path[1:])
            else:
                path = f"{directory}/{name}"
                if _is_in_the_way(Path(path), settings.listen_port):
                    await _remove_stale(Path(path))
                self._bind_unix(sock, Path(path), settings)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot listen on unix:{path}: {error.strerror}", key="unix_socket_dir") from error
        except BaseException:
            sock.close()
            raise
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: cast(asyncio.Protocol, ClientConnection(self)), sock=sock, backlog=settings.listen_backlog
        )
        self._unix.append(server)
        log.get_logger().info(f"listening on unix:{path}")

    def _bind_unix(self, sock: socket.socket, path: Path, settings: Settings) -> None:
        sock.bind(str(path))
        self._files.append(path)
        if settings.unix_socket_group:
            os.chown(path, -1, _group_id(settings.unix_socket_group))
        path.chmod(settings.unix_socket_mode)

    # --- told by the connections ----------------------------------------------------------------------------------------
    def accepted(self, connection: ClientConnection, transport: Transport, now: float) -> ClientSession:
        """A connection was accepted: make its session."""
        name = cast(asyncio.Transport, transport).get_extra_info("peername")
        if isinstance(name, tuple):
            session = ClientSession(self._context, transport, intern(name[0]), name[1], False, now)
        else:
            pid, uid = _unix_peer(cast(asyncio.Transport, transport))
            session = ClientSession(self._context, transport, f"unix({pid})", self._port, True, now)
            session.peer_uid = uid
        self._context.registry.arrive(session)
        return session

    def crashed(self, session: ClientSession, error: BaseException, now: float) -> None:
        """A bug: only this connection pays for it."""
        logger = log.connection_logger(
            "C", session.number, session.database_name, session.user_name, session.address, session.port
        )
        logger.error(f"internal error: {error}", error=error)
        try:
            session.fail(errors.INTERNAL_ERROR, now)
        finally:
            session.transport.abort()

    # --- ends -----------------------------------------------------------------------------------------------------------
    def close_tcp(self) -> None:
        """No further connections by TCP; the unix socket stays for the console."""
        for server in self._tcp:
            server.close()
        self._tcp.clear()

    def close(self) -> None:
        self.close_tcp()
        for server in self._unix:
            server.close()
        self._unix.clear()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files.clear()


def _shown(where: tuple[object, ...]) -> str:
    host = str(where[0])
    return f"[{host}]:{where[1]}" if ":" in host else f"{host}:{where[1]}"


def _addresses(listen_addr: str) -> list[str]:
    return [address.strip() for address in listen_addr.split(",") if address.strip()]


def _tcp_socket(
    family: int, kind: int, protocol: int, where: tuple[object, ...], settings: Settings
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.so_reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if settings.tcp_defer_accept:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, settings.tcp_defer_accept)
        tune(sock, settings)
        sock.bind(where)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket, settings: Settings) -> None:
    """The tcp_* settings, on a listening socket or on one to a server."""
    if settings.tcp_socket_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.tcp_socket_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.tcp_socket_buffer)
    if settings.tcp_keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for value, option in (
            (settings.tcp_keepcnt, socket.TCP_KEEPCNT),
            (settings.tcp_keepidle, socket.TCP_KEEPIDLE),
            (settings.tcp_keepintvl, socket.TCP_KEEPINTVL),
        ):
            if value:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if settings.tcp_user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.tcp_user_timeout)


def _unix_peer(transport: asyncio.Transport) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a unix socket; (0, -1) when it is gone already."""
    pseudo = transport.get_extra_info("socket")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=pseudo.fileno())
    try:
        pid, uid, _ = PEER_CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
        )
    except OSError:
        return 0, -1
    else:
        return pid, uid
    finally:
        sock.detach()


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f'there is no group "{name}"', key="unix_socket_group") from None


def _is_in_the_way(path: Path, port: int) -> bool:
    """True when a socket file, living or stale, stands at `path`. Raises ConfigError for anything else there."""
    if path.with_name(path.name + ".lock").exists():
        raise ConfigError(f"unix port {port} is in use", key="unix_socket_dir")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is in the way, and it is no socket", key="unix_socket_dir")
    return True


async def _remove_stale(path: Path) -> None:
    """A socket file that nobody answers at is removed; a living one is respected. Raises ConfigError."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(path)), 5)
    except (OSError, TimeoutError):
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call at start
        return
    writer.close()
    raise ConfigError("unix socket is in use, cannot continue", key="unix_socket_dir")
