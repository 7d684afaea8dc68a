"""The listening sockets, and the session that each accepted connection gets."""

from __future__ import annotations

import asyncio
import ctypes
import grp
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from sys import intern
from typing import Any, Final, Protocol, cast

from pgpool_proxy import errors, log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.client_connection import ClientConnection
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.settings.listen import listen_addresses
from pgpool_proxy.settings.model import Settings

PEER_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid

#: from Python 3.13 on a server removes the file of its socket, which may be another process's by then
KEEPS_FILES: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
HALF_OPEN_S: Final = 0.9  # for those who have begun to connect; below the second after which kernels send a SYN again
SO_ATTACH_FILTER: Final = 26  # socket(7), not in Python's socket
NO_SYN: Final = ctypes.create_string_buffer(
    struct.pack(
        "HBBI" * 4,
        *(0x30, 0, 0, 13),  # the flags of the TCP header
        *(0x45, 0, 1, 0x02),  # SYN among them?
        *(0x06, 0, 0, 0),  # drop it
        *(0x06, 0, 0, 0xFFFFFFFF),  # keep the rest
    )
)  # struct sock_filter[4] and a byte; it lives as long as the module, since the kernel is told its address


class Closable(Protocol):
    def close(self) -> None: ...


class ListeningSocket:
    """One address that we listen on. `sock` is bound and keeps the queue of the kernel; asyncio gets a duplicate of it, so that
    accepting can stop and go on without anybody being refused in between."""

    def __init__(self, sock: socket.socket, path: str = "", port: int = 0) -> None:
        self.sock = sock
        self.port = port  # listen_port, of a unix socket
        self.path = path  # of a unix socket, `@` in front of an abstract one
        self.server: Closable | None = None  # what accepts on it

    @property
    def is_tcp(self) -> bool:
        return self.sock.family != socket.AF_UNIX

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, as SHOW FDS prints it: IP address and port, or `unix` and listen_port."""
        if not self.is_tcp:
            return "unix", self.port
        name = self.sock.getsockname()
        return str(name[0]), int(name[1])

    def __repr__(self) -> str:
        return f"<ListeningSocket {self.path or _shown(self.sock.getsockname())}>"


class Listener:
    """All listening sockets of this process. TCP options are set on them: accepted sockets inherit those on Linux."""

    def __init__(
        self,
        context: Context | None,
        take: Callable[[socket.socket, bool], None],
        watch: Callable[[ListeningSocket], Closable] | None = None,
    ) -> None:
        self._own_context = context
        self._take = take  # gets a connection that was accepted here, and whether it came by a unix socket
        self._watch = watch  # what accepts; None: asyncio does, and each connection is a session of ours
        self._closing: asyncio.Handle | None = None
        self.sockets: list[ListeningSocket] = []
        self._port = 0
        self._backlog = 128
        self.is_stopped = False  # SUSPEND
        self._removes_files = True
        self.is_handed_over = False  # another process listens on the same sockets: their files are its own now

    @property
    def _context(self) -> Context:
        if self._own_context is None:
            raise errors.IllegalTransition("a listener without sessions")
        return self._own_context

    async def open(self, settings: Settings) -> None:
        """Listen on everything that is configured. Raises ConfigError, which names the address that cannot be had."""
        self._port = settings.listen_port
        self._backlog = settings.listen_backlog
        try:
            for address, port in listen_addresses(settings.listen_addr, settings.listen_port):
                await self._open_tcp(address, port, settings)
            if settings.unix_socket_dir:
                await self._open_unix(settings)
            if not self.sockets:
                raise ConfigError(
                    "nothing to listen on: neither listen_addr nor unix_socket_dir is set", key="listen_addr"
                )
            await self._accept()
        except BaseException:
            self.close()
            raise

    async def adopt(self, sockets: list[socket.socket], settings: Settings, origin: str, *, own_files: bool) -> None:
        """Listen on sockets that were made elsewhere, by a process that we follow or by systemd, whatever the settings say.
        `own_files`: files of unix sockets are ours to remove at the end."""
        self._removes_files = own_files
        self._port = settings.listen_port
        self._backlog = settings.listen_backlog
        for sock in sockets:
            sock.setblocking(False)
            name = sock.getsockname()
            path = ""
            if sock.family == socket.AF_UNIX:
                path = f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name)
            self.sockets.append(ListeningSocket(sock, path, self._port))
            log.get_logger().info(f"listening on {'unix:' + path if path else _shown(name)} ({origin})")
        await self._accept()

    async def _accept(self) -> None:
        """Let asyncio accept, on every socket where it does not yet."""
        loop = asyncio.get_running_loop()
        for listening in list(self.sockets):
            if listening.server is not None or not self._wants(listening):
                continue
            if self._watch is not None:
                listening.server = self._watch(listening)
                continue
            sock = listening.sock.dup()
            if listening.is_tcp:
                server = await loop.create_server(self._connection, sock=sock, backlog=self._backlog)
            else:
                server = await loop.create_unix_server(self._connection, sock=sock, backlog=self._backlog, **KEEPS_FILES)
            listening.server = server
            if not self._wants(listening):  # meanwhile
                _stop(listening)

    def _connection(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, ClientConnection(self))

    def _wants(self, listening: ListeningSocket) -> bool:
        return not self.is_stopped and listening in self.sockets

    def stop_accepting(self) -> None:
        """Who connects from now on waits in the kernel's queue."""
        self.is_stopped = True
        for listening in self.sockets:
            _stop(listening)

    async def go_on_accepting(self) -> None:
        self.is_stopped = False
        self.is_handed_over = False
        await self._accept()

    def tune(self, settings: Settings) -> None:
        """The tcp_* settings have changed: for those who connect from now on."""
        self._port = settings.listen_port
        for listening in self.sockets:
            if listening.is_tcp:
                listening.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, settings.tcp_defer_accept)
                _untune(listening.sock)
                tune(listening.sock, settings)

    async def _open_tcp(self, address: str, port: int, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        host = None if address == "*" else address
        try:
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )
        except OSError as error:
            raise ConfigError(f'address "{address}" is not known: {error.strerror}', key="listen_addr") from error
        opened = 0
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                sock = _tcp_socket(family, kind, protocol, where, settings)
                self.sockets.append(ListeningSocket(sock))
                sock.listen(settings.listen_backlog)
            except OSError as error:
                if address == "*" and family == socket.AF_INET6:  # a machine without IPv6
                    continue
                raise ConfigError(f"cannot listen on {_shown(where)}: {error.strerror}", key="listen_addr") from error
            opened += 1
            log.get_logger().info(f"listening on {_shown(where)}")
        if not opened:
            raise ConfigError(f"cannot listen on {address}:{port}", key="listen_addr")

    async def _open_unix(self, settings: Settings) -> None:
        directory = settings.unix_socket_dir
        path = f"{directory}/.s.PGSQL.{settings.listen_port}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if directory.startswith("@"):
                sock.bind("\0" + path[1:])
                self.sockets.append(ListeningSocket(sock, path, self._port))
            else:
                if _is_in_the_way(Path(path), settings.listen_port):
                    await _remove_stale(Path(path))
                sock.bind(path)
                self.sockets.append(ListeningSocket(sock, path, self._port))
                if settings.unix_socket_group:
                    os.chown(path, -1, _group_id(settings.unix_socket_group))
                Path(path).chmod(settings.unix_socket_mode)  # noqa: ASYNC240 - one call at start
            sock.setblocking(False)
            sock.listen(settings.listen_backlog)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot listen on unix:{path}: {error.strerror}", key="unix_socket_dir") from error
        except BaseException:
            sock.close()
            raise
        log.get_logger().info(f"listening on unix:{path}")

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
        except Exception as again:
            logger.error(f"internal error: {again}", error=again)
        finally:
            session.transport.abort()

    # --- ends -----------------------------------------------------------------------------------------------------------
    def close_tcp(self, closed: Callable[[], None]) -> None:
        """No further connections by TCP; the unix socket stays for the console. `closed` is called when that is so.

        Closing a socket makes the kernel reset who is in its queue: they are let in before. Where another process listens on
        the same port (so_reuseport), nobody is to notice, so those who have begun to connect are waited for, and who comes
        meanwhile is not answered: its kernel tries again after a second, and gets to the other process.
        """
        shared = [one for one in self.sockets if one.is_tcp and self._removes_files and _is_shared(one.sock)]
        for listening in shared:
            _drop_syns(listening.sock)

        loop = asyncio.get_running_loop()

        def stop() -> None:
            """Whom the loop has accepted, we hear of in its next turn: nobody is to find the house empty before."""
            for listening in self.sockets:
                if listening.is_tcp:
                    _stop(listening)
            self._closing = loop.call_soon(close_now)

        def close_now() -> None:
            self._closing = None
            leaving = [listening for listening in self.sockets if listening.is_tcp]
            for listening in leaving:
                if self._removes_files:  # else systemd goes on with its own copy of the socket
                    self._let_in(listening)
            self._close(leaving)
            closed()

        if shared:
            self._closing = loop.call_later(HALF_OPEN_S, stop)
        else:
            stop()

    def _let_in(self, listening: ListeningSocket) -> None:
        """Who is in the queue of the kernel."""
        for _ in range(self._backlog + 1):
            try:
                connection, _ = listening.sock.accept()
            except ConnectionAbortedError:
                continue
            except OSError:  # there is nobody, or no descriptor for them
                return
            connection.setblocking(False)
            self._take(connection, not listening.is_tcp)

    def close(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._close(list(self.sockets))

    def _close(self, sockets: list[ListeningSocket]) -> None:
        for listening in sockets:
            self.sockets.remove(listening)
            _stop(listening)
            listening.sock.close()
            if listening.path.startswith("/") and self._removes_files and not self.is_handed_over:
                Path(listening.path).unlink(missing_ok=True)


def _stop(listening: ListeningSocket) -> None:
    server = listening.server
    listening.server = None
    if server is not None:
        server.close()


def _is_shared(sock: socket.socket) -> bool:
    """Whether other processes may listen on the same port."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _drop_syns(sock: socket.socket) -> None:
    """The kernel does not hear those who want to connect; where it cannot be told so, it does."""
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(NO_SYN) // 8, ctypes.addressof(NO_SYN))
        )
    except OSError as error:
        log.get_logger().debug(f"no filter on {_shown(sock.getsockname())}: {error.strerror}")


def _shown(where: tuple[object, ...]) -> str:
    host = str(where[0])
    return f"[{host}]:{where[1]}" if ":" in host else f"{host}:{where[1]}"


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


KEEPALIVE_OPTIONS: Final = (socket.TCP_KEEPCNT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)


def _untune(sock: socket.socket) -> None:
    """The system's values: what was set before may be 0 now. (Not of the buffers: once set, they cannot be given back.)"""
    with socket.socket(sock.family, socket.SOCK_STREAM) as fresh:
        for option in (*KEEPALIVE_OPTIONS, socket.TCP_USER_TIMEOUT):
            sock.setsockopt(socket.IPPROTO_TCP, option, fresh.getsockopt(socket.IPPROTO_TCP, option))


def tune(sock: socket.socket, settings: Settings) -> None:
    """The tcp_* settings, on a listening socket or on one to a server."""
    if settings.tcp_socket_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.tcp_socket_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.tcp_socket_buffer)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(settings.tcp_keepalive))
    if settings.tcp_keepalive:
        values = (settings.tcp_keepcnt, settings.tcp_keepidle, settings.tcp_keepintvl)
        for option, value in zip(KEEPALIVE_OPTIONS, values, strict=True):
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
