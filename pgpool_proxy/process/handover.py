"""The old process of an online restart (-R): gives its sockets to the one that follows, over the console's unix socket.

Theory of operation
-------------------
The new process logs in to the console as PgBouncer's does, and says SUSPEND, SHOW FDS, SHUTDOWN. The answer to SHOW FDS is one
DataRow a socket, and the socket itself beside it (SCM_RIGHTS). First come the listening sockets, then what both processes must
agree on, then servers and clients as they become quiet (moving.py): this process reads nothing more from a client that it is
about to give away, answers what is under way, and gives it away with the server that it holds. So the answer lasts until
everybody has moved or left; clients with TLS are served here until they leave. After suspend_timeout who is left is sent
away. Until SHUTDOWN, this process keeps everything that it needs to go on, should the new one vanish.
"""

from __future__ import annotations

import json
import os
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin import fds
from pgpool_proxy.admin.control import Done
from pgpool_proxy.errors import Report
from pgpool_proxy.process import moving
from pgpool_proxy.process.departure import LEISURE, TICK_S, Departure
from pgpool_proxy.process.row_sender import MAX_QUEUED, RowSender
from pgpool_proxy.process.source import descriptor, unsent
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

NUMBERS_AHEAD: Final = 1_000_000  # ids and statements that this process may still make while the new one makes its own


class HandOver(Departure):
    """One run of it, from SHOW FDS to its last row; the `Pending` of the console that asked."""

    def __init__(self, worker: Worker, console: ClientSession, done: Done) -> None:
        super().__init__(worker, worker.config.settings.suspend_timeout)
        self._console = console
        self._done: Done | None = done
        self._has_said_all = False
        self._rows = RowSender(os.dup(descriptor(console)))

    def start(self) -> None:
        log.get_logger().info("handing over to a new process")
        for listening in self._worker.listener.sockets:
            self._rows.put(fds.socket_row(listening.sock.fileno(), *listening.address), listening.sock.fileno())
        self._rows.put(fds.state_row(json.dumps(shared_state(self._worker))))
        self._worker.listener.is_handed_over = True
        self._worker.call_later(0.0, self._tick)  # what the console has said before goes first

    def cancel(self) -> None:
        """A CancelRequest, or RESUME."""
        self._end(errors.CANCELED)

    def abandon(self) -> None:
        """The new process has gone: go on as if nothing had been."""
        self._done = None
        self._close()

    def __repr__(self) -> str:
        return f"<HandOver moved={self.moved} queued={len(self._rows)}>"

    # --- one look after the other ---------------------------------------------------------------------------------------
    def _tick(self) -> None:
        if self._done is None:
            return
        began = perf_counter()
        try:
            if not unsent(self._console):
                self._rows.send()
                left = self.move_all(self._worker.clock())
                self._rows.send()
                if not left and not self._rows and self._say_all():
                    log.get_logger().info(f"handed over: {self.moved} connections")
                    self._end(None)
                    return
        except OSError as error:
            log.get_logger().error(f"the new process does not take our sockets: {error.strerror}")
            self._end(errors.INTERNAL_ERROR)
            return
        self._worker.call_later(max(TICK_S, LEISURE * (perf_counter() - began)), self._tick)

    def _say_all(self) -> bool:
        """The counters, which end here. True when they are on their way."""
        if not self._has_said_all:
            self._has_said_all = True
            totals = {name: list(values) for name, values in self._worker.stats.totals().items()}
            self._rows.put(fds.state_row(json.dumps({"totals": totals, "secrets": self._worker.host.secrets_to_hand_over()})))
            self._rows.send()
        return not self._rows

    def _end(self, report: Report | None) -> None:
        done = self._done
        self._done = None
        self._close()
        if done is not None:
            done(report)

    def _close(self) -> None:
        self._rows.close()
        self.let_go()
        self._worker.listener.is_handed_over = self._has_said_all

    # --- Departure --------------------------------------------------------------------------------------------------------
    @property
    def is_full(self) -> bool:
        return len(self._rows) >= MAX_QUEUED

    def put_client(self, client: ClientSession, own: int, linked: int, state: moving.State) -> None:
        self._rows.put(fds.client_row(client, own, linked, json.dumps(state)), own)

    def put_server(self, server: ServerSession, own: int, client: ClientSession | None, state: moving.State) -> None:
        linked = descriptor(client) if client is not None else 0
        self._rows.put(fds.server_row(server, own, linked, json.dumps(state)), own)


def shared_state(worker: Worker) -> dict[str, Any]:
    """What is true of all: from which numbers on the new process may make its own, and what it could not know."""
    registry = worker.registry
    return {
        "number": int(registry.next_number()) + NUMBERS_AHEAD,
        "statement": int(worker.context.statements.last_number()) + NUMBERS_AHEAD,
        "disabled": [name for name, database in registry.databases.items() if database.disabled],
        "reported": [
            [pool.database.name, pool.user.name, _as_text(pool.server_parameters)]
            for pool in registry.pools.values()
            if pool.server_parameters is not None and not pool.database.is_admin and pool.main is None
        ],
        "secrets": worker.host.secrets_to_hand_over(),
    }


def _as_text(reported: dict[bytes, bytes]) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in reported.items()]
