"""The ledger of one worker among several: what it says to the supervisor, and how servers move from worker to worker.

Implements the `Wire` and the `Mover` of pool/shared_ledger.py; the other end is lease_desk.py.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from pgpool_proxy import errors, log
from pgpool_proxy.net.server_connection import ServerConnection
from pgpool_proxy.pool.handles import PoolServer
from pgpool_proxy.pool.shared_ledger import SharedLedger
from pgpool_proxy.process import moving
from pgpool_proxy.process.channel import Message
from pgpool_proxy.process.source import unsent
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.membership import Membership
    from pgpool_proxy.process.worker import Worker

FRESH_S: Final = 0.01  # how often the supervisor is told who waits for how long, while somebody does


class LeaseWire:
    """See the module's docstring."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._worker: Worker | None = None
        self._flush_due = False
        self._is_telling = False
        self.ledger = SharedLedger(self, self)

    def use(self, worker: Worker) -> None:
        self._worker = worker
        self.ledger.use(worker.registry)

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            raise errors.IllegalTransition("a ledger without a worker")
        return self._worker

    # --- Wire ---------------------------------------------------------------------------------------------------------
    def say_wants(
        self,
        database: str,
        user: str,
        waiting: int,
        logins: int,
        dedicated: int,
        minimum: int,
        since: float,
        received: int,
    ) -> None:
        numbers = [int(waiting), int(logins), int(dedicated), int(minimum), float(since), int(received)]
        self._say("wants", database, user, wants=numbers)

    def say_has_clients(self, database: str, user: str, yes: bool) -> None:
        self._say("has_clients", database, user, yes=bool(yes))

    def say_busy(self, database: str, user: str, recall: int) -> None:
        self._say("busy", database, user, recall=int(recall))

    def say_closing(self, database: str, user: str, number: int, recall: int) -> None:
        self._say("closing", database, user, server=int(number), recall=int(recall))

    def say_given_back(self, database: str, user: str, number: int) -> None:
        self._say("given_back", database, user, number=int(number))

    def ask_admission(self, ticket: int, database: str, user: str, over: bool) -> None:
        self._say("admit", database, user, ticket=int(ticket), over=bool(over))

    def say_settled(self, database: str, user: str) -> None:
        self._say("settled", database, user)

    def say_withdrawn(self, database: str, user: str) -> None:
        self._say("withdrawn", database, user)

    def say_ended(self, database: str, user: str) -> None:
        self._say("ended", database, user)

    def _say(self, what: str, database: str, user: str, **more: object) -> None:
        self._membership.say({"is": what, "key": [database, user], **more})

    # --- its clock ----------------------------------------------------------------------------------------------------
    def wake(self) -> None:
        """The ledger has something to say: at the end of this turn of the loop, and again while somebody waits."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        self.ledger.flush(monotonic())
        if self.ledger.is_wanting and not self._is_telling:
            self._is_telling = True
            self.worker.call_later(FRESH_S, self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        self._flush()

    # --- Mover --------------------------------------------------------------------------------------------------------
    def can_move(self, server: PoolServer) -> bool:
        """Nothing holds it here: no TLS, no bytes on their way, nothing that only this process knows."""
        return (
            isinstance(server, ServerSession)
            and not server.is_closed
            and not server.tls
            and not server.close_needed
            and server.cancels == 0
            and server.cancel is None
            and server.transport is not None
            and server.link.client is None
            and server.link.from_server_framer.at_boundary
            and not unsent(server)
            and server.pool.main is None
        )

    def move(self, server: PoolServer, recall: int, now: float) -> bool:
        if not isinstance(server, ServerSession) or not self.can_move(server):
            return False
        pool = server.pool
        entry = self.worker.config.database(pool.database.name)
        state = moving.server_state(server, (entry.dbname or entry.name) if entry is not None else "")
        reported = pool.server_parameters or {}
        self._say(
            "offered",
            pool.database.name,
            pool.user.name,
            server=int(server.number),
            recall=int(recall),
            state=state,
            parameters=[[name.decode("latin-1"), value.decode("latin-1")] for name, value in reported.items()],
        )
        transport = server.transport
        server.gone(errors.MOVED, now)  # without a Terminate: it goes on elsewhere
        if transport is not None:
            transport.close()
        return True

    # --- told by the supervisor ---------------------------------------------------------------------------------------
    def received(self, message: Message, descriptors: list[int]) -> None:
        kind = message["is"]
        if kind == "lease":
            kind, database, user, number, from_reserve, recall, since, starving, close = message["fields"]
            now = monotonic()
            self.ledger.obey(kind, database, user, number, from_reserve, recall, since, starving, close, now)
        elif kind == "admitted":
            self.ledger.admitted(message["ticket"], message["code"], monotonic())
        elif kind == "server":
            self._arrived(message, descriptors[0])
        elif kind == "lost":
            database, user = message["key"]
            self.ledger.lost(database, user, message["server"], monotonic())
        else:
            log.get_logger().error(f"the supervisor says what nobody understands: {kind}")

    def _arrived(self, message: Message, own: int) -> None:
        """A server of another worker."""
        worker = self.worker
        database, user = message["key"]
        found = worker.registry.database(database)
        sock = socket.socket(fileno=own)
        if found is None:
            sock.close()
            self.ledger.lost(database, user, message["state"]["number"], monotonic())
            return
        pool = worker.registry.pool_of(found, user)
        server = moving.restore_server(worker.context, message["state"], pool, monotonic())
        parameters = {name.encode("latin-1"): value.encode("latin-1") for name, value in message["parameters"]}
        worker.tasks.start(self._connect(sock, server, parameters), f"server {server.number} from another worker")

    async def _connect(self, sock: socket.socket, server: ServerSession, parameters: dict[bytes, bytes]) -> None:
        connection = ServerConnection(self.worker.connector, server)
        sock.setblocking(False)
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: cast(asyncio.Protocol, connection), sock
            )
        except OSError as error:
            sock.close()
            server.disconnect(errors.CONNECT_FAILED.with_detail(str(error)), monotonic())
            return
        if server.is_closed:
            transport.abort()
            return
        server.transport = transport
        self.ledger.arrived(server, parameters, monotonic())

    # --- sockets ------------------------------------------------------------------------------------------------------
    def connected(self, session: ServerSession, own: int) -> None:
        """A connection to a server stands: the supervisor gets a duplicate of its descriptor."""
        pool = session.pool
        key = [pool.database.name, pool.user.name]
        self._membership.say({"is": "connected", "key": key, "server": int(session.number)}, (own,))

    def keyed(self, session: ServerSession) -> None:
        """It has logged in: what a CancelRequest for it needs."""
        self._membership.say({"is": "keyed", "server": int(session.number), "cancel": session.cancel_key.hex()})
