"""What a daemon that follows another one takes over from it, as takeover.py reads it: put into its place in this process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from pgpool_proxy import errors, log
from pgpool_proxy.net.listener import Listener
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.process import moving
from pgpool_proxy.process.arrivals import Arrivals
from pgpool_proxy.settings.config import Config
from pgpool_proxy.wire import backend, frontend

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker


class Receiver(Protocol):
    """Who takes it. Sockets are the receiver's from then on; `client` is how the old process knows a client."""

    @property
    def config(self) -> Config: ...

    @property
    def listener(self) -> Listener: ...

    def share(self, state: moving.State) -> None:
        """What is true of all (handover.py, `shared_state`), or at the end its totals."""
        ...

    def take_server(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None: ...

    def take_client(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None: ...

    def end(self) -> None:
        """Nobody comes any more."""
        ...


def refuse(sock: socket.socket, database: str, *, is_client: bool) -> None:
    """Of a database that is not configured any more."""
    log.get_logger().warning(f"takeover: database {database} is not configured any more")
    try:
        sock.send(backend.error_response(errors.DATABASE_REMOVED) if is_client else frontend.TERMINATE_MESSAGE)
    except OSError:
        pass
    sock.close()


class WorkerReceiver:
    """The one process of a daemon."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._arrivals = Arrivals(worker)

    @property
    def config(self) -> Config:
        return self._worker.config

    @property
    def listener(self) -> Listener:
        return self._worker.listener

    def share(self, state: moving.State) -> None:
        worker = self._worker
        worker.host.take_secrets_over(state["secrets"])
        if "totals" in state:
            worker.stats.go_on_from({name: tuple(values) for name, values in state["totals"].items()})
            return
        worker.registry.number_from(state["number"])
        worker.context.statements.number_from(state["statement"])
        for name in state["disabled"]:
            database = worker.registry.database(name)
            if database is not None:
                database.disabled = True
        for name, user, reported in state["reported"]:
            pool = self._pool(name, user)
            if pool is not None and pool.server_parameters is None:
                pool.server_parameters = {key.encode("latin-1"): value.encode("latin-1") for key, value in reported}

    def take_server(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None:
        pool = self._pool(database, state["pool_user"])
        if pool is None:
            refuse(sock, database, is_client=False)
        else:
            self._arrivals.take_server(sock, state, pool, client)

    def take_client(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None:
        pool = self._pool(database, state["pool_user"])
        if pool is None:
            refuse(sock, database, is_client=True)
        else:
            self._arrivals.take_client(sock, state, pool, client)

    def _pool(self, database: str, user: str) -> Pool | None:
        registry = self._worker.registry
        found = registry.database(database)
        return registry.pool_of(found, user) if found is not None else None

    def end(self) -> None:
        self._arrivals.end()
