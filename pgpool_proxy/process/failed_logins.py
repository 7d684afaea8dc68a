"""Addresses whose logins fail: auth_failure_delay slows them down, auth_failure_ban refuses them for a while.

An IPv6 network of 64 bits counts as one address, since a single machine may take any in it. Knows addresses and times only.
Clients of the unix socket are no strangers: they are neither counted nor refused.
"""

from __future__ import annotations

import ipaddress
from typing import Final

FAILURES: Final = 10  # failed logins in a row until an address is refused
MAX_ADDRESSES: Final = 10_000  # what is remembered at most: an attacker with more addresses than that is not slowed down


class FailedLogins:
    """How often the last logins of an address failed."""

    def __init__(self) -> None:
        self.delay_s: float = 0.0
        self.ban_s: float = 0.0
        self._failed: dict[str, tuple[int, float]] = {}  # address -> failures in a row, when the last one was

    def __repr__(self) -> str:
        return f"<FailedLogins addresses={len(self._failed)}>"

    def configure(self, delay_s: float, ban_s: float) -> None:
        self.delay_s = delay_s
        self.ban_s = ban_s
        if ban_s <= 0:
            self._failed.clear()

    def is_banned(self, address: str, now: float) -> bool:
        """True while logins of this address are refused unheard."""
        if not self._failed:
            return False
        address = origin_of(address)
        failures, last = self._failed.get(address, (0, 0.0))
        if failures < FAILURES:
            return False
        if now - last < self.ban_s:
            return True
        del self._failed[address]
        return False

    def failed(self, address: str, now: float) -> bool:
        """Count a failed login. True: this one was the last straw."""
        if self.ban_s <= 0:
            return False
        address = origin_of(address)
        failures, last = self._failed.pop(address, (0, now))
        failures = 1 if now - last >= self.ban_s else failures + 1
        if len(self._failed) >= MAX_ADDRESSES:
            del self._failed[next(iter(self._failed))]  # the one that failed longest ago
        self._failed[address] = failures, now
        return failures == FAILURES

    def succeeded(self, address: str) -> bool:
        """Forget the failures. True: there were any."""
        return bool(self._failed) and self._failed.pop(origin_of(address), None) is not None


def origin_of(address: str) -> str:
    """Whose failures those of `address` are: its own, or those of its IPv6 network."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
