"""A server's socket: what the loop calls, handed to the session with the time. HOT.

An exception in here never reaches the loop: it closes this connection and is logged with its context by the `Dock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from pgpool_proxy.errors import ProtocolViolation, Report
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.transport import Transport

monotonic: Final[Callable[[], float]] = time.monotonic


class Dock(Protocol):
    """The connector's side."""

    def crashed(self, session: ServerSession, error: BaseException, now: float) -> None:
        """A bug: log it with its context and close the connection."""
        ...

    def unread(self, session: ServerSession) -> bytes:
        """The connection broke: what had arrived before that and was not read."""
        ...


class ServerConnection:
    """asyncio's Protocol for one server."""

    def __init__(self, dock: Dock, session: ServerSession) -> None:
        self.dock: Dock = dock
        self.session: ServerSession | None = session

    def connection_made(self, transport: Transport) -> None:
        """The connector tells the session itself, when TLS (if any) stands."""

    def data_received(self, data: bytes) -> None:
        session = self.session
        if session is None:
            return
        now = monotonic()
        try:
            session.received(data, now)
        except ProtocolViolation as violation:
            self._violated(session, violation.report, now)
        except Exception as error:
            self.dock.crashed(session, error, now)

    def _violated(self, session: ServerSession, report: Report, now: float) -> None:
        try:
            session.violated(report, now)
        except Exception as bug:
            self.dock.crashed(session, bug, now)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        session = self.session
        self.session = None
        if session is not None:
            now = monotonic()
            try:
                if error is not None:  # writing failed, perhaps before its last words were read
                    self._last_words(session, now)
                session.connection_lost(now)
            except Exception as bug:
                self.dock.crashed(session, bug, now)

    def _last_words(self, session: ServerSession, now: float) -> None:
        data = self.dock.unread(session)
        if data:
            try:
                session.received(data, now)
            except ProtocolViolation as violation:
                session.violated(violation.report, now)

    def pause_writing(self) -> None:
        session = self.session
        if session is not None:
            try:
                session.writing_paused()
            except Exception as bug:
                self.dock.crashed(session, bug, monotonic())

    def resume_writing(self) -> None:
        session = self.session
        if session is not None:
            try:
                session.writing_resumed()
            except Exception as bug:
                self.dock.crashed(session, bug, monotonic())
