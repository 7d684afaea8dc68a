"""What /metrics, /readyz and the status page speak of: plain values, copied from the living objects in one go.

`process` makes a `Snapshot` on the loop, which takes microseconds a pool; everything slow (one snapshot of several, the text of
thousands of samples) is then made from it in a thread, while the loop goes on. Nothing in here holds on to a client, a server
or a pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

HistoryRow: TypeAlias = tuple[float, ...]
Counts: TypeAlias = tuple[tuple[int, ...], int]  # of a pool.stats.Histogram: its buckets, and the sum in µs

CLIENT_STATES: Final = ("active", "waiting", "active_cancel", "waiting_cancel")
SERVER_STATES: Final = ("active", "active_cancel", "being_canceled", "idle", "used", "tested", "login")


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool. `totals` are pool.stats.FIELDS; `clients` and `servers` are counted by state."""

    database: str
    user: str
    mode: str
    size: int
    clients: tuple[int, ...]
    servers: tuple[int, ...]
    longest_wait: float  # seconds
    totals: tuple[int, ...]
    reserve_uses: int
    waits: Counts
    queries: Counts
    transactions: Counts
    logins: Counts
    connects: Counts
    pinned: int  # servers that are kept with their clients (session_state)
    states_seen: tuple[int, ...]  # transactions that left something behind, by pool.stats.STATE_KINDS


@dataclass(frozen=True, slots=True)
class DatabaseSnapshot:
    name: str
    servers: int
    max_servers: int  # 0: no limit
    clients: int
    paused: bool
    disabled: bool


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One process that serves. None: whoever says the rest does not know it."""

    number: int
    is_up: bool
    clients: int | None = None
    servers: int | None = None
    leases: int | None = None  # servers that it may have
    cpu_seconds: float | None = None
    memory: int | None = None  # bytes
    restarts: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One process at one moment, or several of them."""

    version: str
    build: str
    started_at: float  # seconds since 1970
    pools: list[PoolSnapshot]
    databases: list[DatabaseSnapshot]
    clients: int
    max_clients: int
    login_clients: int
    users: frozenset[str]  # that have logged in
    errors: dict[str, int] = field(default_factory=dict)  # by class of SQLSTATE
    disconnects: dict[tuple[str, str], int] = field(default_factory=dict)  # by side (client, server) and reason
    cancels: int = 0
    tls_handshakes: dict[str, int] = field(default_factory=dict)  # by side
    loop_lag: Counts = ((), 0)
    lost_log_lines: int = 0
    servers: int = 0
    peers: int = 0
    peer_pools: frozenset[str] = frozenset()
    dns_names: frozenset[str] = frozenset()
    dns_zones: frozenset[str] = frozenset()
    dns_queries: int = 0  # under way
    workers: tuple[WorkerSnapshot, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """`reasons`: why not; ready when there are none."""

    reasons: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        return not self.reasons


class Source(Protocol):
    """What `process` answers."""

    def snapshot(self, done: Callable[[Callable[[], Snapshot]], None]) -> None:
        """`done` is called, at once or later, with what makes the snapshot from plain values: that is called in a thread."""
        ...

    def history(self, done: Callable[[list[HistoryRow]], None]) -> None:
        """The last minutes, oldest first: see `HISTORY`. `done` as above."""
        ...

    def readiness(self, done: Callable[[Readiness], None]) -> None:
        """`done` is called at once, or when a server has answered or not."""
        ...

    def token(self) -> str:
        """What a request has to carry as a bearer token; empty where none is asked for."""
        ...


HISTORY: Final = (
    "at",  # seconds since 1970
    "transactions",  # per second
    "queries",  # per second
    "received",  # bytes per second
    "sent",  # bytes per second
    "query_ms",  # mean
    "wait_ms",  # mean, of those that waited
    "clients",
    "waiting",
    "servers_active",
    "servers_idle",
    "waits",  # per second: how many had to wait
)
