"""A worker gives its clients and servers away, over its channel to the supervisor: to the worker that takes its place
(RESTART), or to a new daemon (-R).

Who cannot move (clients with TLS, replication clients, consoles) is served here until it leaves: the process ends then. For a
new daemon, which waits for that, no longer than suspend_timeout.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from pgpool_proxy import log
from pgpool_proxy.process import moving
from pgpool_proxy.process.departure import LEISURE, TICK_S, Departure
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.membership import Membership
    from pgpool_proxy.process.worker import Worker

FULL: Final = 1 << 20  # bytes on the channel that the supervisor has not read yet
LONGEST_TICK_S: Final = 0.2


class Retirement(Departure):
    """One run of it; ends with the process."""

    def __init__(self, worker: Worker, membership: Membership, *, is_abroad: bool) -> None:
        super().__init__(worker, worker.config.settings.suspend_timeout if is_abroad else 0.0)
        self._is_abroad = is_abroad
        self._is_over = False
        self._membership = membership
        self._pause = TICK_S

    def start(self) -> None:
        log.get_logger().info(f"handing over to a new {'process' if self._is_abroad else 'worker'}")
        self._membership.say({"is": "secrets", "secrets": self._worker.host.secrets_to_hand_over()})
        self._tick()

    def cancel(self) -> None:
        """There is nobody to give them to."""
        self._is_over = True
        self.let_go()

    def _tick(self) -> None:
        if self._is_over:
            return
        began = perf_counter()
        moved = self.moved
        left = self.move_all(self._worker.clock())
        if not left and (self._is_abroad or not self._consoles()):
            self._is_over = True
            log.get_logger().info(f"handed over: {self.moved} connections")
            totals = {name: list(values) for name, values in self._worker.stats.totals().items()}
            secrets = self._worker.host.secrets_to_hand_over()
            self._membership.say({"is": "retired", "totals": totals, "secrets": secrets})
            return
        self._pause = TICK_S if self.moved > moved else min(self._pause * 2, LONGEST_TICK_S)  # who stays may stay for long
        self._worker.call_later(max(self._pause, LEISURE * (perf_counter() - began)), self._tick)

    def _consoles(self) -> int:
        pools = self._worker.registry.pools.values()
        return sum(pool.client_count for pool in pools if pool.database.is_admin)

    # --- Departure --------------------------------------------------------------------------------------------------------
    @property
    def is_full(self) -> bool:
        return self._membership.channel.backlog >= FULL

    def put_client(self, client: ClientSession, own: int, linked: int, state: moving.State) -> None:
        pool = client.pool
        if pool is not None:
            key = [pool.database.name, state["login_user"]]
            message = {"is": "hand_client", "key": key, "client": int(client.number), "state": state}
            self._membership.say(message, (own,))

    def put_server(self, server: ServerSession, own: int, client: ClientSession | None, state: moving.State) -> None:
        key = [server.pool.database.name, server.pool.user.name]
        linked = int(client.number) if client is not None else 0
        self._membership.say(
            {"is": "hand_server", "key": key, "server": int(server.number), "client": linked, "state": state}
        )
