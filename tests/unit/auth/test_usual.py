"""A user that does not exist looks like most of those that do, by each method."""

from __future__ import annotations

import random

import pytest

from pgpool_proxy.auth.exchange import Challenge, Derive, Secret, server_exchange
from pgpool_proxy.auth.scram import build_secret
from pgpool_proxy.auth.usual import UsualSecrets

PLAIN = Secret.of("secret")
MD5 = Secret.of("md5" + "0" * 32)
EMPTY = Secret.of("")


def scram(iterations: int) -> Secret:
    return Secret.of_scram(build_secret(bytes(32), b"salt" * 4, iterations))


def usual(*secrets: Secret) -> UsualSecrets:
    found = UsualSecrets()
    for secret in secrets:
        found.count(secret)
    return found


@pytest.mark.parametrize(
    ("secrets", "by_md5", "by_scram"),
    [
        ([], "plain", "plain"),
        ([scram(4096)] * 2 + [PLAIN], "scram", "scram"),
        ([scram(4096)] + [PLAIN] * 2, "plain", "plain"),
        ([scram(4096)] * 3 + [PLAIN] * 2 + [MD5] * 2, "plain", "scram"),  # four are asked for an md5 answer
        ([scram(4096)] + [MD5] * 5, "plain", "scram"),  # with a hash nobody gets in by SCRAM
        ([MD5] * 3, "plain", "plain"),
        ([scram(4096), PLAIN], "scram", "scram"),
        ([scram(4096)] + [EMPTY] * 5, "scram", "scram"),  # who has no password looks like who does not exist
    ],
)
def test_the_commoner_look_counts_by_each_method(secrets: list[Secret], by_md5: str, by_scram: str) -> None:
    for _ in range(5):
        random.shuffle(secrets)
        found = usual(*secrets)
        assert (found.kind("md5"), found.kind("plain"), found.kind("scram-sha-256")) == (by_md5, by_md5, by_scram)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([], 4096), ([10_000], 10_000), ([4096, 10_000, 10_000], 10_000), ([4096, 4096, 10_000], 4096), ([4096, 10_000], 10_000)],
)
def test_the_commoner_iteration_count_is_told(counts: list[int], expected: int) -> None:
    for _ in range(5):
        random.shuffle(counts)
        assert usual(PLAIN, MD5, *(scram(count) for count in counts)).iterations(4096) == expected


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_an_unknown_users_exchange_is_that_of_most(method: str) -> None:
    """As far as it goes without a proof: what is asked for, and the iteration count that is told or derived with."""

    def shown(secret: Secret | None) -> list[object]:
        exchange = server_exchange(
            method, "alice", secret, secret is not None,
            salt=lambda: bytes(4), nonce=lambda: bytes(18), process_secret=bytes(32), scram_iterations=5000,
            mock_kind=found.kind(method), mock_iterations=found.iterations(5000),
        )  # fmt: skip
        step = exchange.start()
        assert isinstance(step, Challenge)
        if step.code == 3:
            derived = exchange.receive(b"wrong\0") if found.kind(method) == "scram" else None
            return [step.code, derived.iterations if isinstance(derived, Derive) else derived]
        if step.code == 10:
            first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"
            challenge = exchange.receive(b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first)
            assert isinstance(challenge, Challenge)
            return [step.code, challenge.payload.rpartition(b",")[2]]
        return [step.code]

    found = usual(scram(20_000), scram(20_000), scram(4096), PLAIN)
    assert shown(None) == shown(scram(20_000))
    found = usual(scram(20_000), PLAIN, PLAIN)
    assert shown(None) == shown(PLAIN)
    found = usual(scram(20_000), PLAIN, PLAIN, MD5)
    assert shown(None) == shown(MD5)
