"""The BackendKeyData that we hand out, and whose each is. Knows nothing of what a cancel does.

A key is 8 bytes from the system's random source, 36 for a client that speaks protocol 3.2: process id and secret of the
protocol are not told apart, as in PgBouncer. Bit 7 of byte 0 is clear, so that drivers which read the process id as a signed
Int32 see it positive. With a peer id, bytes 1 and 2 hold it in little-endian order and the low two bits of byte 7 the hops that
are left (PgBouncer's encoding, in keys of both lengths).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from pgpool_proxy.pool.handles import PoolClient

KEY_SIZE: Final = 8
LONG_KEY_SIZE: Final = 36  # for clients that speak protocol 3.2: PostgreSQL 18's secret has 32 bytes
FIRST_TTL: Final = 3
STOCK: Final = 128
NOBODYS: Final = bytes(KEY_SIZE)
ONE_BYTE: Final = [bytes((byte,)) for byte in range(128)]


def peer_of(key: bytes) -> int:
    """The peer id in a key of a CancelRequest. Without peering these are random bits."""
    return key[1] | key[2] << 8


def one_hop_less(key: bytes) -> bytes | None:
    """The key as it is passed on to a peer; None when it has been passed on too often."""
    if not key[7] & 3:
        return None
    return key[:7] + bytes((key[7] - 1,)) + key[8:]


class CancelKeys:
    """Keys handed out by this process."""

    def __init__(self, random_bytes: Callable[[int], bytes], peer_id: int = 0) -> None:
        self.peer_id = peer_id
        self._random_bytes = random_bytes
        self._stock: bytes = b""  # random bytes drawn ahead: a system call for each login would be felt
        self._drawn: i64 = 0
        self._clients: dict[bytes, PoolClient] = {}

    def issue(self, client: PoolClient, long: bool = False) -> bytes:
        """A fresh key for `client`, which stays valid until `revoke`; `long`: of protocol 3.2."""
        if not long and self.peer_id == 0:
            short = self._draw_short()
            while short in self._clients or short == NOBODYS:
                short = self._draw_short()
            client.cancel_key = short
            self._clients[short] = client
            return short
        while True:
            key = bytearray(self._draw())
            while long and len(key) < LONG_KEY_SIZE:
                key += self._draw()[: LONG_KEY_SIZE - len(key)]
            key[0] &= 0x7F
            if self.peer_id:
                key[1] = self.peer_id & 0xFF
                key[2] = self.peer_id >> 8
                key[7] = key[7] & 0xFC | FIRST_TTL
            if bytes(key) not in self._clients and any(key):
                break
        client.cancel_key = bytes(key)
        self._clients[client.cancel_key] = client
        return client.cancel_key

    def keep(self, client: PoolClient, key: bytes) -> None:
        """`client` was given its key by the process that we have taken it over from."""
        client.cancel_key = key
        self._clients[key] = client

    def _draw(self) -> bytes:
        if self._drawn >= len(self._stock):
            self._stock = self._random_bytes(KEY_SIZE * STOCK)
            self._drawn = 0
        drawn = self._stock[self._drawn : self._drawn + KEY_SIZE]
        self._drawn += KEY_SIZE
        return drawn

    def _draw_short(self) -> bytes:
        key = self._draw()
        first: i64 = key[0]
        return key if first < 128 else ONE_BYTE[first & 0x7F] + key[1:]

    def revoke(self, client: PoolClient) -> None:
        if client.cancel_key:
            self._clients.pop(client.cancel_key, None)
            client.cancel_key = b""

    def find(self, key: bytes) -> PoolClient | None:
        """The client that the key was given to; None for every other key, whatever its length."""
        found = self._clients.get(key)
        if found is None and self.peer_id and len(key) >= KEY_SIZE:
            return self._clients.get(key[:7] + bytes((key[7] & 0xFC | FIRST_TTL,)) + key[8:])
        return found
