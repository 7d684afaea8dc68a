"""PBKDF2 off the loop: once for each secret, and what is derived for nobody delays nobody."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator

import pytest

from pgpool_proxy.auth.exchange import Derive
from pgpool_proxy.process import keys

ITERATIONS = 20_000


@pytest.fixture
def derivation() -> Iterator[keys.KeyDerivation]:
    found = keys.KeyDerivation()
    yield found
    found.close()


def step(password: bytes, *, for_nobody: bool = False, cacheable: bool = True) -> Derive:
    return Derive(password, b"salt", ITERATIONS, cacheable, for_nobody)


def test_a_key_is_the_passwords_and_is_derived_once(derivation: keys.KeyDerivation) -> None:
    async def main() -> None:
        found: list[bytes] = []
        done = asyncio.Event()

        def take(key: bytes, _: float) -> None:
            found.append(key)
            done.set()

        derivation.derive(step(b"secret"), take)
        derivation.derive(step(b"secret"), take)
        assert found == []
        await done.wait()
        derivation.derive(step(b"secret"), take)
        assert found == [hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", ITERATIONS)] * 3

    asyncio.run(asyncio.wait_for(main(), 30))


def test_no_key_is_derived_in_the_loops_thread(derivation: keys.KeyDerivation, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def note(*_: object) -> bytes:
        threads.append(threading.get_ident())
        return bytes(32)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", note)

    async def main() -> None:
        for number in range(6):
            done = asyncio.Event()
            derivation.derive(step(b"%d" % number, for_nobody=bool(number & 1), cacheable=number < 3), lambda *_: done.set())  # noqa: B023
            await done.wait()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(threads) == 6
    assert threading.get_ident() not in threads


def test_nobodies_are_not_remembered_and_drive_nobody_out(
    derivation: keys.KeyDerivation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_DERIVED", 3)

    async def main() -> None:
        async def derived(wanted: Derive) -> bool:
            """Whether it was known."""
            done = asyncio.Event()
            derivation.derive(wanted, lambda *_: done.set())
            known = done.is_set()
            await done.wait()
            return known

        assert not await derived(step(b"secret"))
        for number in range(5):
            assert not await derived(step(b"%d" % number, for_nobody=True))
        assert not await derived(step(b"4", for_nobody=True)), "as slow the second time"
        assert not await derived(step(b"secret", for_nobody=True)), "whether somebody has it or not"
        again = step(b"secret")
        assert await derived(again)
        assert again.was_kept

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_crowd_of_nobodies_delays_no_login_not_even_one_that_wants_the_same_key(
    derivation: keys.KeyDerivation, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def derive(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        if threading.current_thread().name.startswith("derive-for-nobody"):
            over.wait(60)
        return password

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", derive)

    async def main() -> None:
        order: list[str] = []
        done = asyncio.Event()
        for number in range(50):
            derivation.derive(step(b"%d" % number, for_nobody=True), lambda *_: order.append("nobody"))
        derivation.derive(step(b"secret", for_nobody=True), lambda *_: order.append("refused"))
        derivation.derive(step(b"secret"), lambda *_: done.set())
        try:
            await done.wait()
            assert order == []
        finally:
            over.set()

    asyncio.run(asyncio.wait_for(main(), 60))
