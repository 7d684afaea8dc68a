"""The new process of an online restart (-R): takes the sockets of the one that runs (handover.py has the theory).

The conversation is PgBouncer's: the old process's console by its unix socket, SUSPEND, SHOW FDS, SHUTDOWN. Clients are served
here from the moment that their row has come, while others are still on their way. The old process may be a PgBouncer: it gives
its listening sockets, and its clients, of whom it does not say enough, are closed.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin import fds
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.process import moving
from pgpool_proxy.process.receiver import Receiver
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.codes import COMMAND_COMPLETE, DATA_ROW, ERROR_RESPONSE, READY_FOR_QUERY
from pgpool_proxy.wire.framing import MessageReader

CONSOLE: Final = "pgbouncer"  # user and database
READ_SIZE: Final = 262144
MAX_ROW: Final = 1 << 30  # a client's statements and waiting bytes
PATIENCE_S: Final = 10.0  # for answers that should come at once, and for the old process's end


class Gone(OSError):
    """The old process closed the connection."""


class TakeOver:
    """One run of it. `begin` returns with the listening sockets; `go_on` takes the rest."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._reader = MessageReader(MAX_ROW)
        self._fds: deque[int] = deque()
        self._readable: asyncio.Future[None] | None = None
        self._listening: list[socket.socket] = []
        self._taken = 0
        self._is_over = False

    # --- the conversation ---------------------------------------------------------------------------------------------
    async def begin(self) -> bool:
        """False: nobody answers, so there is nothing to take over. Raises ConfigError when it does not work."""
        settings = self._receiver.config.settings
        if not settings.unix_socket_dir:
            raise ConfigError("an online restart needs unix_socket_dir", key="unix_socket_dir")
        path = f"{settings.unix_socket_dir}/.s.PGSQL.{settings.listen_port}"
        try:
            await self._connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            self._socket.close()
            log.get_logger().info(f"old process not found ({error.strerror}), a normal start")
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._say(frontend.startup([(b"user", CONSOLE.encode()), (b"database", CONSOLE.encode())]))
            async with asyncio.timeout(PATIENCE_S + settings.suspend_timeout if settings.suspend_timeout > 0 else None):
                await self._say(frontend.query(b"SUSPEND;"))
            await self._send(frontend.query(b"SHOW FDS;"))
            async with asyncio.timeout(PATIENCE_S):
                while await self._next() and not self._is_over:
                    if self._reader.kind == DATA_ROW and self._row() == fds.SHARED:
                        break
        except TimeoutError:
            raise ConfigError("the old process does not answer", key="-R") from None
        except errors.ProtocolViolation as violation:
            raise ConfigError(f"the old process: {violation.report.message}", key="-R") from violation
        except OSError as error:
            raise ConfigError(f"the old process has gone: {error.strerror or error}", key="-R") from error
        if not self._listening:
            raise ConfigError("the old process has no sockets to take over", key="-R")
        await self._receiver.listener.adopt(self._listening, settings, "taken over", own_files=True)
        return True

    async def go_on(self, ended: Callable[[], None]) -> None:
        """Take clients and servers as they come, then end the old process; `ended` is called when it has gone."""
        logger = log.get_logger()
        try:
            while not self._is_over:
                await self._next()
                if self._reader.kind == DATA_ROW:
                    self._row()
            logger.info(f"taken over: {self._taken} connections")
            await self._send(frontend.query(b"SHUTDOWN;"))
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await self._next()
        except Gone:
            logger.info("old process has ended" if self._is_over else "the old process has vanished")
        except TimeoutError:
            logger.error("takeover: the old process does not end")
        except (OSError, ConfigError, errors.ProtocolViolation) as error:
            logger.error(f"takeover: {error}")
        finally:
            self._socket.close()
            for own in self._fds:
                os.close(own)
            self._receiver.end()
            ended()

    async def _connect(self, path: str) -> None:
        await asyncio.get_running_loop().sock_connect(self._socket, path)

    async def _say(self, data: bytes) -> None:
        """Send, and read until ReadyForQuery. Raises ConfigError with the other's own words when it refuses."""
        await self._send(data)
        while True:
            await self._next()
            if self._reader.kind == READY_FOR_QUERY:
                return

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _next(self) -> bool:
        """The next message. Raises `Gone`, OSError, and ConfigError for an error."""
        while not self._reader.next():
            await self._wait_readable()
            try:
                data, rights, _, _ = self._socket.recvmsg(READ_SIZE, socket.CMSG_LEN(1024), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            for level, kind, payload in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(payload[: len(payload) // found.itemsize * found.itemsize])
                    self._fds.extend(found)
            if not data:
                raise Gone("the old process closed the connection")
            self._reader.feed(data)
        if self._reader.kind == ERROR_RESPONSE and not self._is_over:  # at its end it says goodbye
            report = backend.error_report(self._reader.body)
            raise ConfigError(f"the old process refuses: {report.message}", key="-R")
        if self._reader.kind == COMMAND_COMPLETE and self._reader.body == b"SHOW\0":
            self._is_over = True
        return True

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()

        def can_be_read() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(self._socket.fileno(), can_be_read)
        try:
            await readable
        finally:
            loop.remove_reader(self._socket.fileno())

    # --- rows -----------------------------------------------------------------------------------------------------------
    def _row(self) -> str:
        """What a row of SHOW FDS brings; its task."""
        cells = backend.data_row_values(self._reader.body)
        task = (cells[fds.AT_TASK] or b"").decode()
        own = self._fds.popleft() if cells[fds.AT_FD] is not None and self._fds else -1
        state: moving.State | None = json.loads(cells[fds.AT_STATE] or b"null") if len(cells) > fds.AT_STATE else None
        if task == fds.SHARED and state is not None:
            self._receiver.share(state)
        elif own < 0:
            log.get_logger().warning(f"takeover: a {task} came without its socket")
        elif task == fds.POOLER:
            self._listening.append(socket.socket(fileno=own))
        elif state is None:
            os.close(own)
        else:
            database = (cells[fds.AT_DATABASE] or b"").decode("utf-8", "surrogateescape")
            sock = socket.socket(fileno=own)
            sock.setblocking(False)
            self._taken += 1
            if task == fds.SERVER:
                self._receiver.take_server(sock, database, state, int(cells[fds.AT_LINK] or b"0"))
            else:
                self._receiver.take_client(sock, database, state, int(cells[fds.AT_FD] or b"0"))
        return task
