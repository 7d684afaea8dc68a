"""A worker as the supervisor sees it: its process, its channel, and what it has said of itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final

from pgpool_proxy.pool import stats
from pgpool_proxy.process.channel import Channel, Message
from pgpool_proxy.process.spawner import Spawner

STARTING: Final = "starting"
ACTIVE: Final = "active"
RETIRING: Final = "retiring"  # another one has taken its place; it gives away who is there
GONE: Final = "gone"
Totals = dict[str, list[int]]


def merged(one: Totals, other: Totals) -> Totals:
    """Added up, by database."""
    names = dict.fromkeys([*one, *other])
    return {name: list(stats.merge([tuple(totals[name]) for totals in (one, other) if name in totals])) for name in names}


class WorkerProcess:
    """`number` is its alone; `slot` is its place, which the worker that replaces it takes over."""

    def __init__(self, number: int, slot: int) -> None:
        self.number = number
        self.slot = slot
        self.state = STARTING
        self.pid = 0
        self.started_at = monotonic()
        self.heard_at = monotonic()
        self.servers = 0
        self.cpu_s = 0.0
        self.memory = 0  # bytes
        self.newest_id = 0  # of clients and servers
        self.newest_statement = 0
        self.totals: Totals = {}  # what it has counted, by database
        self.has_retired = False  # somebody else has that now
        self.is_drained = False  # it has no clients left, while the process shuts down
        self._channel: Channel | None = None
        self._pidfd = -1
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.slot} pid={self.pid} {self.state}>"

    async def start(
        self,
        spawner: Spawner,
        first: Callable[[], Message],
        received: Callable[[WorkerProcess, Message, list[int]], None],
        lost: Callable[[WorkerProcess], None],
    ) -> None:
        """Make the process, and tell it what it needs by then. Raises SpawnFailed. `lost` is called when it has ended."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._pidfd = await spawner.spawn(its)
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended, lost)
        self._channel = Channel(
            ours, lambda message, descriptors: received(self, message, descriptors), self._hung_up
        )
        self.send(first())

    async def ready(self) -> None:
        """Until it has said that it serves. Raises SpawnFailed when it ends before that."""
        await asyncio.shield(self._ready)

    @property
    def takes_orders(self) -> bool:
        """What it is told now it will see to, at the latest when it has started."""
        return self._channel is not None and self.state != GONE

    # --- what it says -------------------------------------------------------------------------------------------------
    def is_ready(self, pid: int) -> None:
        self.pid = pid
        self.state = ACTIVE
        if not self._ready.done():
            self._ready.set_result(None)

    def has_failed(self, error: BaseException) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # it may be that nobody asks

    # --- what it is told ----------------------------------------------------------------------------------------------
    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        if self._channel is not None:
            self._channel.send(message, descriptors)

    @property
    def backlog(self) -> int:
        """Bytes that it has not read yet: many mean that it hangs."""
        return self._channel.backlog if self._channel is not None else 0

    def kill(self) -> None:
        """At once (SIGKILL)."""
        if self._pidfd >= 0 and self.state != GONE:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    # --- its end ------------------------------------------------------------------------------------------------------
    def bequeath(self, heir: WorkerProcess) -> None:
        """What it has counted is the other one's from here on, though that should die before it has said anything again."""
        self.has_retired = True
        heir.send({"is": "retired", "totals": self.totals})
        heir.totals = merged(heir.totals, self.totals)

    def _hung_up(self) -> None:
        """It has closed the channel: nothing can be said to it any more, so it must not live."""
        self.kill()

    def _ended(self, lost: Callable[[WorkerProcess], None]) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._channel is not None:
            self._channel.drain()
            self._channel.close()
        self.state = GONE
        lost(self)
