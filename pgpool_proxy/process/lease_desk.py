"""The supervisor's ledger at work: what workers say of servers and clients is entered in the books, whose orders they are told.

The books (pool/leases.py) decide; here is what they must not know: channels, sockets, the configuration, the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pgpool_proxy.pool.leases import NOBODY, ClientBook, ClientLimits, LeaseBook, LeaseLimits, Order
from pgpool_proxy.process.channel import Message
from pgpool_proxy.process.server_sockets import Key, ServerSockets
from pgpool_proxy.process.worker_process import WorkerProcess
from pgpool_proxy.settings import resolve

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor

Handler = Callable[[WorkerProcess, Message, list[int]], None]
UNWANTED_S: Final = 0.1  # between two looks at the clock while nobody waits for a lease


class LeaseDesk:
    """See the module's docstring."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._book = LeaseBook(self._limits_of)
        self._clients = ClientBook()
        self._sockets = ServerSockets(supervisor.tasks, self._gone)
        self._looked_at = 0.0
        self._handlers: dict[str, Handler] = {
            "wants": self._wants,
            "has_clients": self._has_clients,
            "busy": self._busy,
            "given_back": self._given_back,
            "closing": self._closing,
            "offered": self._offered,
            "connected": self._connected,
            "keyed": self._keyed,
            "hand_server": self._hand_server,
            "hand_client": self._hand_client,
            "admit": self._admit,
            "settled": self._settled,
            "withdrawn": self._withdrawn,
            "ended": self._ended,
        }

    def received(self, worker: WorkerProcess, message: Message, descriptors: list[int]) -> bool:
        """True: it was about a lease or a client."""
        handler = self._handlers.get(message["is"])
        if handler is None:
            return False
        handler(worker, message, descriptors)
        return True

    def close(self) -> None:
        self._sockets.close()

    # --- limits -------------------------------------------------------------------------------------------------------
    def _limits_of(self, database: str, user: str) -> LeaseLimits:
        config = self._supervisor.config
        limits = LeaseLimits()
        entry = config.database(database)
        if entry is not None:
            settings = config.settings
            limits.pool_size = resolve.pool_size(config, entry, user)
            limits.min_pool_size = resolve.min_pool_size(config, entry)
            limits.reserve_pool_timeout = settings.reserve_pool_timeout
            if settings.reserve_pool_timeout > 0:
                limits.reserve_pool_size = resolve.reserve_pool_size(config, entry, user)
            limits.max_db_connections = resolve.max_db_connections(config, entry)
            limits.max_user_connections = resolve.max_user_connections(config, user)
        return limits

    def limits_changed(self) -> None:
        """There is another configuration."""
        self._send(self._book.limits_changed(monotonic()))

    # --- workers ------------------------------------------------------------------------------------------------------
    def joined(self, worker: WorkerProcess) -> None:
        self._send(self._book.joined(worker.number, monotonic()))

    def left(self, worker: WorkerProcess) -> None:
        """Its process has ended. What it held is free when it has really gone."""
        self._clients.left(worker.number)
        holdings = {(database, user): number for database, user, number in self._book.leases_of(worker.number)}
        self._send(self._book.left(worker.number, monotonic()))
        for server in self._sockets.of(worker.number):
            holdings[server.key] = holdings.get(server.key, 0) - 1
        self._sockets.orphaned(worker.number)
        for key, number in holdings.items():
            for _ in range(number):  # grants that were not used, servers that were never reached
                self._gone(key)

    def leases_of(self, worker: WorkerProcess) -> int:
        return sum(number for _, _, number in self._book.leases_of(worker.number))

    def tick(self, now: float) -> None:
        if self._book.is_wanted or now - self._looked_at >= UNWANTED_S:
            self._looked_at = now
            self._send(self._book.tick(now))

    @property
    def is_wanted(self) -> bool:
        """Somebody waits for a lease: `tick` is wanted soon."""
        return bool(self._book.is_wanted)

    def _send(self, orders: list[Order]) -> None:
        for order in orders:
            self._supervisor.tell(int(order.worker), {"is": "lease", "fields": list(order.fields())})

    # --- leases -------------------------------------------------------------------------------------------------------
    def _wants(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        waiting, logins, dedicated, minimum, since, received = said["wants"]
        now = monotonic()
        self._send(
            self._book.wants(worker.number, database, user, waiting, logins, dedicated, minimum, since, received, now)
        )

    def _has_clients(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        self._send(self._book.has_clients(worker.number, database, user, said["yes"], monotonic()))

    def _busy(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        self._send(self._book.busy(worker.number, database, user, said["recall"], monotonic()))

    def _given_back(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        self._send(self._book.given_back(worker.number, database, user, said["number"], monotonic()))

    def _closing(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        self._send(self._book.closing(worker.number, database, user, said["recall"], monotonic()))
        if self._sockets.is_elsewhere(said["server"], worker.number):
            self._gone((database, user))  # the lease went with the server (`_hand_server`)
        else:
            self._sockets.closing(said["server"], (database, user), has_said_goodbye=True)

    def _gone(self, key: Key) -> None:
        """A connection that was let go of has ended."""
        self._send(self._book.gone(*key, monotonic()))

    def _offered(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        """A server that can move: its connection is here, in duplicate."""
        database, user = said["key"]
        number: int = said["server"]
        receiver = int(self._book.offered(worker.number, database, user, said["recall"], monotonic()))
        if receiver == NOBODY:
            self._sockets.closing(number, (database, user), has_said_goodbye=False)
        else:
            descriptor = self._sockets.moved(number, receiver)
            if descriptor is None:
                self._supervisor.tell(receiver, {"is": "lost", "key": [database, user], "server": number})
            else:
                message: dict[str, Any] = {"is": "server", "key": [database, user], "state": said["state"]}
                message["parameters"] = said["parameters"]
                self._supervisor.tell(receiver, message, (descriptor,))
        self._send(self._book.take_orders())

    def _hand_server(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        """To the worker that takes this one's place; this one says `closing` next."""
        database, user = said["key"]
        hand_over = self._supervisor.hand_over
        if hand_over is not None:
            own = self._sockets.released(said["server"])
            if own is not None:
                hand_over.server(said, own)
                os.close(own)
            return
        successor = self._supervisor.successor(worker)
        descriptor = self._sockets.moved(said["server"], successor.number) if successor is not None else None
        if successor is not None and descriptor is not None:
            self._send(self._book.adopted(successor.number, database, user, 1, monotonic()))
            successor.send(said, (descriptor,))

    def adopt(self, worker: WorkerProcess, database: str, state: dict[str, Any], descriptor: int) -> None:
        """A worker gets a server of the daemon that this one follows."""
        key, number = (database, str(state["pool_user"])), int(state["number"])
        self._sockets.connected(number, worker.number, key, os.dup(descriptor))
        self._sockets.keyed(number, bytes.fromhex(state["key"]))
        self._send(self._book.adopted(worker.number, key[0], key[1], 1, monotonic()))

    def _hand_client(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        hand_over = self._supervisor.hand_over
        if hand_over is not None:
            hand_over.client(said, descriptors[0])
            os.close(descriptors[0])
            return
        successor = self._supervisor.successor(worker)
        if successor is not None:
            self._clients.arrived(successor.number, 0)  # the worker says `settled` when it has it
            successor.send(said, tuple(descriptors))
        for one in descriptors:
            os.close(one)

    # --- server sockets -----------------------------------------------------------------------------------------------
    def _connected(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        self._sockets.connected(said["server"], worker.number, (database, user), descriptors[0])

    def _keyed(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        self._sockets.keyed(said["server"], bytes.fromhex(said["cancel"]))

    # --- clients ------------------------------------------------------------------------------------------------------
    def client_arrived(self, worker: WorkerProcess) -> bool:
        """A connection is given to this worker. True: there are too many."""
        return self._clients.arrived(worker.number, self._supervisor.config.settings.max_client_conn)

    @property
    def clients(self) -> int:
        return int(self._clients.total)

    def clients_of(self, worker: WorkerProcess) -> int:
        return int(self._clients.of_worker(worker.number))

    def _admit(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        database, user = said["key"]
        config = self._supervisor.config
        entry = config.database(database)
        limits = ClientLimits(
            config.settings.max_client_conn,
            resolve.max_db_client_connections(config, entry) if entry is not None else 0,
            resolve.max_user_client_connections(config, user),
        )
        code = int(self._clients.admit(worker.number, database, user, said["over"], limits))
        worker.send({"is": "admitted", "ticket": said["ticket"], "code": code})

    def _settled(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        self._clients.settled(worker.number, *said["key"])

    def _withdrawn(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        self._clients.withdrawn(worker.number, *said["key"])

    def _ended(self, worker: WorkerProcess, said: Message, descriptors: list[int]) -> None:
        self._clients.ended(worker.number, *said["key"])
