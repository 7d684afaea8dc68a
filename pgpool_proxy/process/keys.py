"""SCRAM's slow keys: derived once per secret, off the loop, shared by logins that want the same one meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final

from pgpool_proxy.auth.exchange import Derive

Wanted = tuple[bytes, bytes, int]  # password, salt, iterations
MAX_DERIVED: Final = 10_000  # salted passwords that are kept: 32 bytes each


class KeyDerivation:
    """PBKDF2-HMAC-SHA-256 in two threads (hashlib lets go of the GIL), and in a third for users that there are not."""

    def __init__(self) -> None:
        self._derived: dict[Wanted, bytes] = {}
        self._waiting: dict[Wanted, list[Callable[[bytes, float], None]]] = {}
        self._of_nobody: dict[Wanted, bytes] = {}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="derive")
        self._last_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="derive-for-nobody")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._last_thread.shutdown(wait=False, cancel_futures=True)

    def forget(self) -> None:
        """The secrets may have changed."""
        self._derived.clear()
        self._of_nobody.clear()

    def derive(self, step: Derive, done: Callable[[bytes, float], None]) -> None:
        """`done(salted_password, now)` is called on the loop, at once or later."""
        wanted = (step.password, step.salt, step.iterations)
        kept = self._of_nobody if step.for_nobody else self._derived
        known = kept.get(wanted)
        if known is not None:
            done(known, monotonic())
            return
        waiting = self._waiting.get(wanted)
        if waiting is not None:
            waiting.append(done)
            return
        self._waiting[wanted] = [done]
        threads = self._last_thread if step.for_nobody else self._threads
        future = asyncio.get_running_loop().run_in_executor(threads, hashlib.pbkdf2_hmac, "sha256", *wanted)
        future.add_done_callback(lambda _: self._key_derived(wanted, kept if step.cacheable else None, future))

    def _key_derived(self, wanted: Wanted, kept: dict[Wanted, bytes] | None, future: asyncio.Future[bytes]) -> None:
        waiting = self._waiting.pop(wanted, [])
        if future.cancelled() or future.exception() is not None:
            return  # the process is ending
        key = future.result()
        if kept is not None:
            if len(kept) >= MAX_DERIVED:
                kept.clear()
            kept[wanted] = key
        now = monotonic()
        for done in waiting:
            done(key, now)
