"""Several workers as the new side of an online restart (-R): what comes is dealt out to them; see receiver.py."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from pgpool_proxy.net.listener import Listener
from pgpool_proxy.process import moving
from pgpool_proxy.process.receiver import refuse
from pgpool_proxy.process.worker_process import WorkerProcess
from pgpool_proxy.settings.config import Config

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor


class FleetReceiver:
    """The supervisor's `Receiver`. A client goes where the server is that it holds."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._owners: dict[int, WorkerProcess] = {}  # of servers whose clients are still to come, by client

    @property
    def config(self) -> Config:
        return self._supervisor.config

    @property
    def listener(self) -> Listener:
        return self._supervisor.listener

    def share(self, state: moving.State) -> None:
        self._supervisor.share(state)

    def take_server(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None:
        worker = self._supervisor.least_busy()
        with sock:
            if worker is None or self.config.database(database) is None:
                refuse(sock, database, is_client=False)
                return
            if client:
                self._owners[client] = worker
            self._supervisor.leases.adopt(worker, database, state, sock.fileno())
            key = [database, state["pool_user"]]
            message = {"is": "hand_server", "key": key, "server": state["number"], "client": client, "state": state}
            worker.send(message, (sock.fileno(),))

    def take_client(self, sock: socket.socket, database: str, state: moving.State, client: int) -> None:
        worker = self._owners.pop(client, None) or self._supervisor.least_busy()
        with sock:
            if worker is None or self.config.database(database) is None:
                refuse(sock, database, is_client=True)
                return
            self._supervisor.leases.client_arrived(worker)
            key = [database, state["login_user"]]
            worker.send({"is": "hand_client", "key": key, "client": client, "state": state}, (sock.fileno(),))

    def end(self) -> None:
        self._owners.clear()
