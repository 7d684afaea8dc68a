"""What takes too long, told in the log: servers that a transaction holds on to, and clients that wait for a server.

Looked at once a second. Each transaction is told of once, each pool's queue once a minute: the log shall not drown in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from pgpool_proxy import log
from pgpool_proxy.pool.limits import longest_wait, reason_to_wait
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.states import SV_ACTIVE
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

PERIOD_S: Final = 1.0
AGAIN_S: Final = 60.0  # until the same pool's queue is told of again


class Watch:
    """See the module's docstring."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._due = 0.0
        self._told: dict[int, float] = {}  # server -> the beginning of the transaction that was told of
        self._queues: dict[tuple[str, str], float] = {}  # (database, user) -> when its queue was told of

    def tick(self, now: float) -> None:
        if now < self._due:
            return
        self._due = now + PERIOD_S
        settings = self._worker.config.settings
        if settings.leak_detection_threshold > 0:
            self._find_leaks(settings.leak_detection_threshold, now)
        if settings.log_long_waits > 0:
            self._find_waits(settings.log_long_waits, now)

    # --- servers that are held --------------------------------------------------------------------------------------------
    def _find_leaks(self, threshold: float, now: float) -> None:
        still: dict[int, float] = {}
        for pool in self._worker.registry.pools.values():
            for server in _held(pool):
                began = float(server.link.xact_start)
                if now - began < threshold:
                    continue
                still[int(server.number)] = began
                if self._told.get(int(server.number)) != began:
                    self._tell_leak(server, began, now)
        self._told = still

    def _tell_leak(self, server: ServerSession, began: float, now: float) -> None:
        link = server.link
        client = link.client
        if client is None:
            return
        text = shown(link.text, int(self._worker.context.text_chars))
        running = link.query_start > 0
        since = now - (link.query_start if running else link.status_time)
        doing = f"running a query for {since:.1f} s" if running else f"idle in transaction for {since:.1f} s"
        last = f", last statement: {text}" if text else ""
        self._worker.host.logger(client).warning(
            f"server S-{server.number} has been held for {now - began:.1f} s, {doing}{last}",
            server=int(server.number), held_s=round(now - began, 1), idle_in_transaction=not running, statement=text,
        )  # fmt: skip

    # --- clients that wait ------------------------------------------------------------------------------------------------
    def _find_waits(self, threshold: float, now: float) -> None:
        waiting: dict[tuple[str, str], float] = {}
        for pool in self._worker.registry.pools.values():
            waited = longest_wait(pool, now)
            if waited < threshold:
                continue
            key = pool.database.name, pool.user.name
            told = self._queues.get(key, 0.0)
            if not told or now - told >= AGAIN_S:
                told = now
                queue = int(pool.waiting.count + pool.waiting_login.count)
                log.get_logger().warning(
                    f"pool {key[0]}/{key[1]}: {queue} waiting for a server, the first for {waited:.1f} s: "
                    f"{reason_to_wait(pool, now)}{self._busiest(pool, now)}",
                    database=key[0], user=key[1], waiting=queue, longest_wait_s=round(waited, 1),
                )  # fmt: skip
            waiting[key] = told
        self._queues = waiting

    def _busiest(self, pool: Pool, now: float) -> str:
        """The client that has held a server of the pool for longest."""
        held = min(_held(pool), key=lambda server: float(server.link.xact_start), default=None)
        if held is None or held.link.client is None:
            return ""
        client = held.link.client
        return f" (longest: C-{client.number} at {client.address}:{client.port}, for {now - held.link.xact_start:.1f} s)"


def _held(pool: Pool) -> list[ServerSession]:
    """The servers that are in a transaction of a client."""
    servers = [cast(ServerSession, member) for member in pool.servers[SV_ACTIVE].members()]
    return [server for server in servers if server.link.client is not None and server.link.xact_start > 0]


def shown(text: bytes, most: int) -> str:
    """A statement's text for the log: at most so many characters; the log escapes what could harm it."""
    return text.decode("utf-8", "replace")[:most]
