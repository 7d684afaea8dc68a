"""What is counted for the process as a whole, for /metrics. Compiled: each login and each end is counted.

Reasons are texts of errors.py, or SQLSTATEs where a text says more than that: what peers say in their own words never becomes a
label.
"""

from __future__ import annotations

from typing import Final

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.stats import Histogram

KNOWN_REASONS: Final = frozenset([value.message for value in vars(errors).values() if isinstance(value, Report)])


class Counters:
    """One for the process."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.disconnects: dict[tuple[str, str], int] = {}
        self.tls_handshakes: dict[str, int] = {}
        self.cancels: int = 0
        self.loop_lag: Histogram = Histogram()

    def error(self, report: Report) -> None:
        name = report.sqlstate[:2]
        self.errors[name] = self.errors.get(name, 0) + 1

    def ended(self, side: str, report: Report) -> None:
        message = report.message
        key = side, message if message in KNOWN_REASONS else report.sqlstate
        self.disconnects[key] = self.disconnects.get(key, 0) + 1

    def handshake(self, side: str) -> None:
        self.tls_handshakes[side] = self.tls_handshakes.get(side, 0) + 1
