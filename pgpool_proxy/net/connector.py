"""Opens connections to servers: for pools (it is their launcher) and for CancelRequests."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol, cast

from pgpool_proxy import errors, log
from pgpool_proxy.errors import Report
from pgpool_proxy.net.dns import Dns
from pgpool_proxy.net.listener import tune
from pgpool_proxy.net.server_connection import ServerConnection
from pgpool_proxy.net.tasks import Tasks
from pgpool_proxy.net.tls import ServerTls, TlsRefused, described, secured, server_binding
from pgpool_proxy.pool.pool import REPLICATION_WORDS, Pool
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.peers import PeerCancel
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry

NOT_NOW: Final = frozenset({"08", "53", "57"})  # classes of login errors that another host of a list may not have
MAX_UNREAD: Final = 1 << 20  # bytes: last words, or the end of an answer


class ConfigSource(Protocol):
    """Where the configuration in force is found."""

    @property
    def config(self) -> Config: ...

    def server_connected(self, session: ServerSession, descriptor: int) -> None:
        """A connection to a server stands; it has not logged in yet."""
        ...


class CancelConnection(asyncio.Protocol):
    """asyncio's Protocol for one CancelRequest."""

    def __init__(self, session: CancelSession | PeerCancel) -> None:
        self._session = session

    def data_received(self, data: bytes) -> None:
        self._session.received(data, monotonic())

    def connection_lost(self, error: BaseException | None) -> None:
        self._session.connection_lost(monotonic())


class Connector:
    """The launcher of all pools of this process."""

    def __init__(self, source: ConfigSource, tasks: Tasks, tls: ServerTls, dns: Dns) -> None:
        self._source = source
        self._dns = dns
        self._tls = tls
        self._tasks = tasks
        self._context: Context | None = None
        self._turns: dict[str, int] = {}  # database -> place in its host list
        self._down: dict[tuple[str, str], float] = {}  # (database, host of a list) -> until when the others are preferred
        self._attempts: dict[int, asyncio.Task[None]] = {}

    def use(self, context: Context) -> None:
        """The context is made after its launcher."""
        self._context = context

    # --- servers of pools -----------------------------------------------------------------------------------------------
    def launch(self, pool: Pool, now: float) -> None:
        """Told by a pool: open one more server."""
        context = self._context
        entry = self._source.config.database(pool.database.name)
        if context is None or entry is None:
            raise errors.IllegalTransition(f"a server for {pool!r}, which has no entry")
        hosts = self._hosts_in_turn(entry, now)
        session = ServerSession(context, pool, hosts[0] if hosts else "", entry.port, now)
        if session.login is not None:
            session.login.startup = _startup(entry, pool.user.name)
            if pool.main is None:
                session.login.connect_query = (entry.connect_query or "").encode("utf-8", "surrogateescape")
            else:
                _add_replication(session.login.startup, pool)
        pool.add_server(session)
        task = self._tasks.start(self._open(session, hosts[1:]), f"server {session.number} of {pool.database.name}")
        self._attempts[session.number] = task
        task.add_done_callback(lambda _: self._attempts.pop(session.number, None))

    def abandon(self, session: ServerSession, report: Report) -> None:
        """The session is closed: an attempt that is still under way ends."""
        task = self._attempts.pop(session.number, None)
        if task is not None and session.transport is None:
            task.cancel()
        if session.failed_login and report.sqlstate[:2] in NOT_NOW:
            self._put_off(session)

    # --- host lists -------------------------------------------------------------------------------------------------------
    def _hosts_in_turn(self, entry: DatabaseEntry, now: float) -> list[str]:
        """All hosts in the order in which they are to be tried: those that are down come last."""
        hosts = resolve.hosts(self._source.config, entry)
        if len(hosts) < 2:
            return list(hosts)
        turn = self._turns.get(entry.name, 0) % len(hosts)
        if entry.load_balance_hosts == "round-robin":
            self._turns[entry.name] = turn + 1
        down = {host: self._down.get((entry.name, host), 0.0) for host in hosts}
        in_turn = [*hosts[turn:], *hosts[:turn]]
        return sorted(in_turn, key=lambda host: down[host] if down[host] > now else 0.0)

    def _put_off(self, session: ServerSession) -> None:
        """A host of a list does not serve: the others are preferred for a while. `disable` stays with the next one."""
        name = session.pool.database.name
        entry = self._source.config.database(name)
        hosts = resolve.hosts(self._source.config, entry) if entry is not None else ()
        if entry is None or len(hosts) < 2 or session.host not in hosts:
            return
        pause = self._source.config.settings.server_login_retry
        if self._down.get((name, session.host), 0.0) <= monotonic():
            log.get_logger().warning(f"host {session.host} of {name} is passed over for {pause:g}s: it does not serve")
        self._down[name, session.host] = monotonic() + pause
        turn = self._turns.get(name, 0)
        if entry.load_balance_hosts != "round-robin" and hosts[turn % len(hosts)] == session.host:
            self._turns[name] = turn + 1

    async def _open(self, session: ServerSession, others: list[str]) -> None:
        """Connect to the session's host, and when that fails to the others of its list; each has its share of the time."""
        share = self._source.config.settings.server_connect_timeout / (len(others) + 1) if others else 0.0
        while True:
            connection = ServerConnection(self, session)
            try:
                async with asyncio.timeout(share or None):
                    transport = await self._reach(connection, session.pool, session.host, session.port)
                break
            except (OSError, ValueError) as error:  # TimeoutError is an OSError
                self._put_off(session)
                if not others or session.is_closed:
                    self._failed(session, error)
                    return
                session.host = others.pop(0)
            except Exception as error:
                self.crashed(session, error, monotonic())
                return
        self._down.pop((session.pool.database.name, session.host), None)
        if session.is_closed:
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        session.address, session.local_address, session.local_port = _names(transport, session.host)
        if sock.family != socket.AF_UNIX:
            _tune(sock, self._source.config)
        if transport.get_extra_info("ssl_object") is not None:
            session.tls = described(transport)
            if session.login is not None:
                session.login.channel_binding = server_binding(transport)
        self._source.server_connected(session, sock.fileno())
        session.connected(transport, monotonic())

    async def _reach(self, connection: object, pool: Pool, host: str, port: int) -> asyncio.Transport:
        """A connection to a server of `pool`, with TLS where that is wanted; never over a unix socket. Raises OSError."""
        connect = partial(self._connect, host=host, port=port)
        setup = self._tls.setup(pool.database.name)
        if setup is None or host.startswith(("/", "@")):
            return await connect(connection)
        timeout = self._source.config.settings.server_connect_timeout
        return await secured(setup, host, connection, connect, timeout)

    async def _connect(self, connection: object, host: str, port: int) -> asyncio.Transport:
        """A plain connection to a TCP or unix address; of a name's addresses, to the first that takes it. Raises OSError."""
        loop = asyncio.get_running_loop()
        protocol = cast(Any, connection)  # native classes and asyncio.Protocol have the methods, not the base class
        if host.startswith(("/", "@")):
            path = f"{host}/.s.PGSQL.{port}"
            if path.startswith("@"):
                path = "\0" + path[1:]
            transport, _ = await loop.create_unix_connection(lambda: protocol, path)
            return transport
        addresses = await self._dns.addresses(host)
        for address in addresses[:-1]:
            try:
                transport, _ = await loop.create_connection(lambda: protocol, address, port)
            except OSError as error:
                log.get_logger().debug(f"{host}: {address}:{port}: {error}")
            else:
                return transport
        transport, _ = await loop.create_connection(lambda: protocol, addresses[-1], port)
        return transport

    def _failed(self, session: ServerSession, error: Exception) -> None:
        lookup = isinstance(error, socket.gaierror)
        report = errors.DNS_FAILED if lookup else errors.CONNECT_FAILED
        if isinstance(error, TlsRefused):
            report = errors.TLS_REFUSED
        session.is_away = isinstance(error, (ConnectionError, FileNotFoundError))
        session.disconnect(report.with_detail(f"{session.host}:{session.port}: {error}"), monotonic())

    def crashed(self, session: ServerSession, error: BaseException, now: float) -> None:
        """A bug: only this connection, and the client linked to it, pay for it."""
        pool = session.pool
        logger = log.connection_logger(
            "S", session.number, pool.database.name, pool.user.name, session.address or session.host, session.port
        )
        logger.error(f"internal error: {error}", error=error)
        try:
            session.disconnect(errors.INTERNAL_ERROR, now)
        except Exception as again:
            logger.error(f"internal error: {again}", error=again)
        finally:
            if session.transport is not None:
                session.transport.abort()

    def unread(self, session: ServerSession) -> bytes:
        return unread(session)

    # --- cancel requests --------------------------------------------------------------------------------------------------
    def send_cancel(self, session: CancelSession | PeerCancel) -> None:
        """Open the connection of a CancelRequest: to a server as its pool's are, to a peer without TLS, as PgBouncer."""
        self._tasks.start(self._open_cancel(session), f"cancel {session.number}")

    async def _open_cancel(self, session: CancelSession | PeerCancel) -> None:
        connection = CancelConnection(session)
        timeout = self._source.config.settings.server_connect_timeout
        try:
            async with asyncio.timeout(timeout or None):
                if isinstance(session, PeerCancel):
                    transport = await self._connect(connection, session.host, session.port)
                else:
                    transport = await self._reach(connection, session.pool, session.host, session.port)
        except TimeoutError:
            session.disconnect(errors.CONNECT_TIMEOUT, monotonic())
            return
        except Exception as error:
            session.disconnect(errors.CONNECT_FAILED.with_detail(str(error)), monotonic())
            if not isinstance(error, (OSError, ValueError)):
                raise
            return
        if session.is_closed:
            transport.abort()
            return
        session.connected(transport, monotonic())


def unread(session: ServerSession) -> bytes:
    """What is left in the receive buffer of a connection that broke while it was written to; nothing with TLS.

    The loop gives a transport up at the first write that fails, without a look at what came before the peer's RST. The
    kernel keeps that until the socket is closed, which follows `connection_lost`.
    """
    sock = cast(Any, session.transport).get_extra_info("socket") if session.transport is not None else None
    if sock is None or session.tls:
        return b""
    data = b""
    try:
        while len(data) < MAX_UNREAD:
            chunk = os.read(sock.fileno(), MAX_UNREAD)
            if not chunk:
                break
            data += chunk
    except (OSError, ValueError):
        pass  # nothing more
    return data


def _tune(pseudo: Any, config: Config) -> None:
    sock = socket.socket(pseudo.family, socket.SOCK_STREAM, 0, fileno=pseudo.fileno())
    try:
        tune(sock, config.settings)
    finally:
        sock.detach()


def _names(transport: asyncio.Transport, host: str) -> tuple[str, str, int]:
    """(address of the server, our own address, our own port)."""
    peer = transport.get_extra_info("peername")
    own = transport.get_extra_info("sockname")
    if isinstance(peer, tuple) and isinstance(own, tuple):
        return str(peer[0]), str(own[0]), int(own[1])
    return "unix", "unix", 0


def _add_replication(startup: list[tuple[bytes, bytes]], pool: Pool) -> None:
    """A replication client's own parameters, which go before those of the entry."""
    own = {name for name, _ in pool.startup}
    startup[:] = [(name, value) for name, value in startup if name not in own]
    startup += [*pool.startup, (b"replication", REPLICATION_WORDS[int(pool.replication)].encode())]


def _startup(entry: DatabaseEntry, user: str) -> list[tuple[bytes, bytes]]:
    """The parameters of our StartupMessage: who, where, and what the entry sets."""
    pairs = [(b"user", user), (b"database", entry.dbname or entry.name)]
    for name, value in (
        (b"client_encoding", entry.client_encoding),
        (b"datestyle", entry.datestyle),
        (b"timezone", entry.timezone),
        (b"application_name", entry.application_name),
    ):
        if value:
            pairs.append((name, value))
    return [(name, value.encode("utf-8", "surrogateescape")) for name, value in pairs]
