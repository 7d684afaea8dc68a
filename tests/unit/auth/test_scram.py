"""scram.py: the arithmetic, against Python's own HMAC and RFC 7677's example (test_scram_server.py has its messages)."""

from __future__ import annotations

import base64
import hmac
from random import Random

import pytest

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.secret import base64_of, strict_base64


@pytest.mark.parametrize("key_size", [0, 1, 32, 63, 64, 65, 200])
@pytest.mark.parametrize("size", [0, 1, 55, 56, 64, 1000])
def test_hmac_is_hmac(key_size: int, size: int) -> None:
    chance = Random(key_size * 1000 + size)
    key, message = chance.randbytes(key_size), chance.randbytes(size)
    assert scram.hmac_sha256(key, message) == hmac.digest(key, message, "sha256")


def test_two_keys_are_laid_over_each_other_bit_by_bit() -> None:
    chance = Random(1)
    left, right = chance.randbytes(32), chance.randbytes(32)
    both = scram.exclusive_or(left, right)
    assert int.from_bytes(both, "big") == int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
    assert scram.exclusive_or(both, right) == left


@pytest.mark.parametrize("size", range(40))
def test_base64_is_what_everybody_writes(size: int) -> None:
    raw = Random(size).randbytes(size)
    assert base64_of(raw) == base64.b64encode(raw)
    assert strict_base64(base64.b64encode(raw)) == raw


@pytest.mark.parametrize(
    "text", [b"=", b"A", b"AA", b"AAA", b"AB==", b"AAB=", b"AA==\n", b" AAAA", b"AA-_", b"AAAA====", b"AA==AAAA"]
)
def test_base64_that_is_not_canonical_is_none(text: bytes) -> None:
    assert strict_base64(text) is None
