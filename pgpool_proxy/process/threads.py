"""Threads for what takes long and asks nobody: they keep neither the loop busy nor the process from ending.

The standard library's ThreadPoolExecutor waits at the end of the process for what its threads are at, however long that takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Work: TypeAlias = tuple[asyncio.AbstractEventLoop, Callable[[], Any], Callable[[Any], None]]


class Threads:
    """At most `most` threads, started when there is work. A queue without a bound: who asks has one."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._started = 0
        self._under_way = 0  # asked for and not told yet
        self._closed = False
        self._queue: SimpleQueue[Work | None] = SimpleQueue()

    def __repr__(self) -> str:
        return f"<Threads {self._name} started={self._started} under_way={self._under_way}>"

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """`done(work())` is called on the loop, unless the threads are closed by then. `work` must not raise."""
        if self._closed:
            return
        self._under_way += 1
        self._queue.put((asyncio.get_running_loop(), work, done))
        if self._started < min(self._most, self._under_way):
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}_{self._started}", daemon=True).start()

    def close(self) -> None:
        """What waits is not begun, and nobody is told any more."""
        self._closed = True
        for _ in range(self._started):
            self._queue.put(None)

    def _work(self) -> None:
        while (asked := self._queue.get()) is not None and not self._closed:
            loop, work, done = asked
            result = work()
            try:
                loop.call_soon_threadsafe(self._told, done, result)
            except RuntimeError:  # the loop has ended meanwhile
                return

    def _told(self, done: Callable[[Any], None], result: Any) -> None:
        self._under_way -= 1
        if not self._closed:
            done(result)
