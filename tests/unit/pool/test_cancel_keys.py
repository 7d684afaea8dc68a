"""The keys that we hand out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fix_sessions import World

from pgpool_proxy.pool.cancel_keys import FIRST_TTL, KEY_SIZE, LONG_KEY_SIZE, STOCK, CancelKeys, one_hop_less, peer_of


def random_of(*draws: bytes) -> tuple[CancelKeys, Iterator[bytes]]:
    left = iter(draws)
    return CancelKeys(lambda size: next(left)), left


def test_a_key_finds_its_client_until_it_is_revoked() -> None:
    client = World().client().session
    keys = CancelKeys(os.urandom)
    key = keys.issue(client)
    assert client.cancel_key == key
    assert keys.find(key) is client
    keys.revoke(client)
    assert keys.find(key) is None
    assert client.cancel_key == b""
    keys.revoke(client)


def test_a_process_id_is_positive_for_every_driver() -> None:
    keys, _ = random_of(b"\xff" * KEY_SIZE * STOCK)
    assert keys.issue(World().client().session) == b"\x7f" + b"\xff" * 7


def test_a_key_that_somebody_has_and_the_key_of_nobody_are_not_given() -> None:
    taken, free = b"\1" * KEY_SIZE, b"\2" * KEY_SIZE
    keys, _ = random_of(taken + bytes(KEY_SIZE) + taken + free)
    world = World()
    assert keys.issue(world.client().session) == taken
    assert keys.issue(world.client().session) == free


def test_random_bytes_are_drawn_for_many_keys_at_a_time() -> None:
    asked: list[int] = []

    def draw(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    keys = CancelKeys(draw)
    client = World().client().session
    issued = {keys.issue(client) for _ in range(STOCK + 1)}
    assert len(issued) == STOCK + 1
    assert asked == [KEY_SIZE * STOCK] * 2


@pytest.mark.parametrize("key", [b"", b"x", b"1234567", b"123456789", b"x" * 260])
def test_a_key_of_another_length_finds_nobody(key: bytes) -> None:
    for peer in (0, 7):
        assert CancelKeys(os.urandom, peer).find(key) is None


@pytest.mark.parametrize("peer", [1, 255, 256, 65535])
def test_a_key_says_which_peer_gave_it_and_how_many_hops_are_left(peer: int) -> None:
    keys = CancelKeys(os.urandom, peer)
    client = World().client().session
    key = keys.issue(client)
    assert int.from_bytes(key[1:3], "little") == peer
    assert key[7] & 3 == FIRST_TTL
    for hops in range(4):  # it may have come through other peers
        assert keys.find(key[:7] + bytes((key[7] & 0xFC | hops,))) is client


@pytest.mark.parametrize("long", [False, True])
def test_a_key_that_was_passed_on_finds_its_client_until_no_hop_is_left(long: bool) -> None:
    keys = CancelKeys(os.urandom, 0x1234)
    client = World().client().session
    key: bytes | None = keys.issue(client, long)
    hops = 0
    while key is not None:
        assert (peer_of(key), keys.find(key)) == (0x1234, client)
        key = one_hop_less(key)
        hops += 1
    assert hops == FIRST_TTL + 1


@pytest.mark.parametrize("peer", [0, 300])
def test_a_long_key_is_as_random_as_it_is_long_and_found_as_a_whole_only(peer: int) -> None:
    keys = CancelKeys(os.urandom, peer)
    world = World()
    first, second = world.client().session, world.client().session
    key, other = keys.issue(first, True), keys.issue(second, True)
    assert len(key) == len(other) == LONG_KEY_SIZE
    assert key[8:16] != key[16:24] != other[16:24]
    assert keys.find(key) is first
    assert [keys.find(wrong) for wrong in (key[:8], key[:-1], key + b"\0", key[:8] + other[8:])] == [None] * 4
