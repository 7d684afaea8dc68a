"""A client's socket: what the loop calls, handed to the session with the time. HOT.

An exception in here never reaches the loop: it closes this connection and is logged with its context by the `Gate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from pgpool_proxy.errors import ProtocolViolation, Report
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.transport import Transport

monotonic: Final[Callable[[], float]] = time.monotonic


class Gate(Protocol):
    """The listener's side."""

    def accepted(self, connection: ClientConnection, transport: Transport, now: float) -> ClientSession:
        """A connection was accepted: make its session."""
        ...

    def crashed(self, session: ClientSession, error: BaseException, now: float) -> None:
        """A bug: log it with its context and close the connection."""
        ...


class ClientConnection:
    """asyncio's Protocol for one client."""

    def __init__(self, gate: Gate) -> None:
        self.gate: Gate = gate
        self.session: ClientSession | None = None

    def connection_made(self, transport: Transport) -> None:
        session = self.session
        if session is None:
            self.session = self.gate.accepted(self, transport, monotonic())
        else:  # the TLS handshake is done
            session.transport = transport

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
            self.gate.crashed(session, error, now)

    def _violated(self, session: ClientSession, report: Report, now: float) -> None:
        try:
            session.violated(report, now)
        except Exception as bug:
            self.gate.crashed(session, bug, now)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        session = self.session
        self.session = None
        if session is not None:
            now = monotonic()
            try:
                session.connection_lost(now)
            except Exception as bug:
                self.gate.crashed(session, bug, now)

    def pause_writing(self) -> None:
        session = self.session
        if session is not None:
            now = monotonic()
            try:
                session.writing_paused(now)
            except Exception as bug:
                self.gate.crashed(session, bug, now)

    def resume_writing(self) -> None:
        session = self.session
        if session is not None:
            try:
                session.writing_resumed()
            except Exception as bug:
                self.gate.crashed(session, bug, monotonic())
