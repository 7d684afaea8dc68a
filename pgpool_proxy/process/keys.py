"""SCRAM's slow keys: derived once per secret, off the loop, shared by logins that want the same one meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

from pgpool_proxy.auth.steps import Derive
from pgpool_proxy.process.threads import Threads

Wanted = tuple[bytes, bytes, int]  # password, salt, iterations
MAX_DERIVED: Final = 10_000  # salted passwords that are kept: 32 bytes each


class KeyDerivation:
    """PBKDF2-HMAC-SHA-256 in two threads (hashlib lets go of the GIL), and in a third for logins that are refused anyway."""

    def __init__(self) -> None:
        self._derived: dict[Wanted, bytes] = {}
        self._waiting: dict[tuple[Wanted, bool], list[Callable[[bytes, float], None]]] = {}
        self._threads = Threads(2, "derive")
        self._last_thread = Threads(1, "derive-for-nobody")

    def close(self) -> None:
        self._threads.close()
        self._last_thread.close()

    def forget(self) -> None:
        """The secrets may have changed."""
        self._derived.clear()

    def derive(self, step: Derive, done: Callable[[bytes, float], None]) -> None:
        """`done(salted_password, now)` is called on the loop, at once or later."""
        wanted = (step.password, step.salt, step.iterations)
        known = None if step.for_nobody else self._derived.get(wanted)
        if known is not None:
            step.was_kept = True
            done(known, monotonic())
            return
        waiting = self._waiting.get((wanted, step.for_nobody))
        if waiting is not None:
            waiting.append(done)
            return
        self._waiting[wanted, step.for_nobody] = [done]
        threads = self._last_thread if step.for_nobody else self._threads
        threads.run(partial(hashlib.pbkdf2_hmac, "sha256", *wanted), partial(self._key_derived, wanted, step))

    def _key_derived(self, wanted: Wanted, step: Derive, key: bytes) -> None:
        waiting = self._waiting.pop((wanted, step.for_nobody), [])
        if step.cacheable and not step.for_nobody:
            if len(self._derived) >= MAX_DERIVED:
                self._derived.clear()
            self._derived[wanted] = key
        now = monotonic()
        for done in waiting:
            done(key, now)
