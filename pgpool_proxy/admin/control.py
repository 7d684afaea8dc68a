"""What the console may ask of the process, and what it is told when that cannot be done. No sockets, no event loop.

`Control` are the orders and the rows of a SHOW, `Source` is what those rows are made from. process/control.py implements both.
An order is answered through its `Done`, at once or later: with None when it is carried out, with a `Report` of severity ERROR
when it is not, and with one of severity NOTICE when it is, but. Until then the `Pending` that it returned can take it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Protocol, TypeAlias

from pgpool_proxy.errors import PgpoolError, Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.registry import Registry
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.settings.config import Config

Cell: TypeAlias = str | int | Decimal | None
Row: TypeAlias = tuple[Cell, ...]
Done: TypeAlias = Callable[[Report | None], None]

# --- modes of the process, as SHOW STATE names them --------------------------------------------------------------------
ACTIVE: Final = "active"
PAUSED: Final = "paused"
SUSPENDED: Final = "suspended"

# --- how SHUTDOWN ends the process --------------------------------------------------------------------------------------
AT_ONCE: Final = "now"
WAIT_FOR_SERVERS: Final = "wait_for_servers"
WAIT_FOR_CLIENTS: Final = "wait_for_clients"


class Refused(PgpoolError):
    """A statement that the console does not carry out; `report` is what its client is told, `logged` what the log is told."""

    def __init__(self, report: Report, logged: Report | None = None) -> None:
        self.report = report
        self.logged = logged if logged is not None else report
        super().__init__(report.message)


def error(message: str, sqlstate: str = "08P01", detail: str = "") -> Report:
    """An error after which the console goes on."""
    return Report(message, sqlstate, "ERROR", detail)


# --- what orders are refused with (texts are PgBouncer's; docs/console.md lists them) -----------------------------------
ADMIN_NEEDED: Final = error("admin access needed", "42501")
ALREADY_PAUSED: Final = error("already suspended/paused")
NOT_PAUSED: Final = error("pooler is not paused/suspended")
CANNOT_SUSPEND: Final = error("cannot suspend with paused databases")
POOLER_CLOSING: Final = error("pooler is shutting down")
DATABASE_NEEDED: Final = error("a database is required")
CLIENT_NOT_FOUND: Final = error("client not found")
BAD_CLIENT_ID: Final = error("invalid client pointer supplied")
BAD_ARGUMENTS: Final = error("bad arguments")
SET_FAILED: Final = error("SET failed")
RELOAD_FAILED: Final = error("RELOAD failed, see logs for additional details", "F0000")
NOT_NOW: Final = error("RESTART is not possible now")
RESTART_FAILED: Final = error("RESTART failed, see logs for additional details", "F0000")
NO_WORKERS: Final = error("RESTART needs workers > 1; this is one process: start the new one with -R")
ENDED_BY_RESUME: Final = error("PAUSE was ended by RESUME", "57014")
TIMED_OUT: Final = error("PAUSE timed out", "57014")


class Pending(Protocol):
    """An order that is not done yet."""

    def cancel(self) -> None:
        """The client cancels: what the order changed is undone, and its `Done` is called with an error before this returns."""
        ...

    def abandon(self) -> None:
        """The client is gone: the order goes on, its `Done` is not called any more."""
        ...


class Control(Protocol):
    """Database names are as the client wrote them; None means all of them."""

    def now(self) -> float:
        """The monotonic clock, in seconds."""
        ...

    def call_later(self, seconds: float, call: Callable[[], None]) -> object: ...

    def rows(self, table: str, done: Callable[[Iterable[Row]], None]) -> None:
        """The rows of a table of show.py, by its name; walking over them may go on while clients and servers come and go."""
        ...

    def pause(self, database: str | None, timeout_s: float, done: Done) -> Pending | None:
        """Done when no server is in use any more. `timeout_s` > 0: after that long it is given up and undone."""
        ...

    def resume(self, database: str | None, done: Done) -> None: ...

    def suspend(self, owner: object, done: Done) -> Pending | None:
        """Done when all buffers are flushed. `owner` is the console that asks: it is undone when that is closed."""
        ...

    def disable(self, database: str, done: Done) -> None: ...

    def enable(self, database: str, done: Done) -> None: ...

    def reconnect(self, database: str | None, done: Done) -> None: ...

    def wait_close(self, database: str | None, timeout_s: float, done: Done) -> Pending | None:
        """Done when no server is left that RECONNECT or RELOAD has made obsolete."""
        ...

    def kill(self, database: str | None, done: Done) -> None: ...

    def kill_client(self, number: int, done: Done) -> None: ...

    def reload(self, done: Done) -> None: ...

    def restart(self, done: Done) -> None:
        """Replace the workers, where there are several."""
        ...

    def shutdown(self, mode: str, done: Done) -> None:
        """`mode` is AT_ONCE (which is not answered), WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS."""
        ...

    def set(self, key: str, value: str, done: Done) -> None: ...

    def may_hand_over(self, session: ClientSession) -> bool:
        """True when SHOW FDS of this client is the beginning of an online restart: suspended, and our own account asks."""
        ...

    def hand_over(self, session: ClientSession, done: Done) -> Pending:
        """Send the rows of SHOW FDS with their sockets; done when nobody is left."""
        ...

    def console_closed(self, owner: object) -> None:
        """A console is gone."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """One worker. None: who says the rest does not know it; others may (`admin.workers.combined`)."""

    number: int
    pid: int | None = None
    state: str | None = None  # "active", or what else its supervisor says of it
    clients: int | None = None
    servers: int | None = None
    leases: int | None = None  # servers that it may have
    cpu_seconds: float | None = None
    memory: int | None = None  # bytes
    restarts: int | None = None


class Source(Protocol):
    """What the rows of a SHOW are made from."""

    @property
    def worker(self) -> int:
        """The number of this process among the workers, from 1."""
        ...

    @property
    def registry(self) -> Registry: ...

    @property
    def context(self) -> Context: ...

    @property
    def config(self) -> Config: ...

    @property
    def version(self) -> str: ...

    @property
    def mode(self) -> str:
        """ACTIVE, PAUSED or SUSPENDED."""
        ...

    def now(self) -> float: ...

    def wall(self, at: float) -> datetime:
        """A time of the monotonic clock as one of the calendar, in local time."""
        ...

    def known_users(self) -> Iterable[str]:
        """The users of auth_file."""
        ...

    def totals(self) -> dict[str, tuple[int, ...]]:
        """Counters of each database, in the order of pool.stats.FIELDS."""
        ...

    def base(self, database: str) -> tuple[tuple[int, ...], float]:
        """The same counters of one database at the beginning of the last whole stats_period, and the seconds since."""
        ...

    def local_name(self, member: PoolClient | PoolServer) -> tuple[str, int]:
        """Address and port of our end of a connection."""
        ...

    def unsent(self, member: PoolClient | PoolServer) -> int:
        """Bytes that were written to a connection and that the kernel has not taken yet."""
        ...

    def listening(self) -> Iterable[tuple[int, str, int]]:
        """File descriptor, address and port of each listening socket."""
        ...

    def descriptor(self, member: PoolClient | PoolServer) -> int:
        """The file descriptor of a connection; -1 when there is none yet."""
        ...

    def dns_hosts(self) -> Iterable[tuple[str, int, str]]:
        """Host names that were looked up: name, seconds that the answer is still good for, addresses."""
        ...

    def dns_zones(self) -> Iterable[tuple[str, int, int]]:
        """Zones of these names: name, serial (0: not known yet), how many names."""
        ...

    def dns_queries(self) -> int:
        """Questions to name servers that are not answered yet."""
        ...

    def resident_bytes(self) -> int:
        """Memory of the process."""
        ...

    def workers(self) -> Iterable[WorkerFigures]:
        """What is known here of the workers; a process alone is worker 1."""
        ...
