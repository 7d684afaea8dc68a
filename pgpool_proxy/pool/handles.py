"""Clients and servers as the pool sees them: their state and their numbers, not their bytes.

The sessions are these handles (they inherit), and the pool speaks to them through the methods marked "told by the pool".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import i64

from pgpool_proxy.errors import Report
from pgpool_proxy.pool.containers import Member
from pgpool_proxy.pool.states import CL_CLOSED, CL_LOGIN, SV_CLOSED, SV_LOGIN, ClientState, ServerState

if TYPE_CHECKING:
    from pgpool_proxy.pool.pool import Pool
    from pgpool_proxy.pool.registry import User


class PoolClient(Member):
    """A client; `state` is a CL_* number. Times are seconds of the monotonic clock."""

    def __init__(self, number: i64, now: float) -> None:
        super().__init__()
        self.number: i64 = number  # one counter for clients and servers: the id of SHOW CLIENTS
        self.state: i64 = CL_LOGIN
        self.pool: Pool | None = None
        self.server: PoolServer | None = None
        self.connect_time: float = now
        self.request_time: float = now
        self.wait_start: float = 0.0  # 0: does not wait
        self.cancel_key: bytes = b""
        self.wait_notified: bool = False
        self.login_user: User | None = None  # counted there while logged in
        self.is_counted: bool = False  # against max_client_conn: a connection from outside
        self.is_over: bool = False  # there were more than max_client_conn when it came, over all workers

    @property
    def is_closed(self) -> bool:
        return self.state == CL_CLOSED

    def assigned(self, server: PoolServer, now: float) -> None:
        """Told by the pool: `server` is yours from now on."""
        raise NotImplementedError

    def welcome(self, now: float) -> None:
        """Told by the pool: the parameters of its servers are known, so the login can be finished."""
        raise NotImplementedError

    def let_in(self, report: Report | None, now: float) -> None:
        """Told by the ledger, which has said `LATER` first: whether one more client is allowed."""
        raise NotImplementedError

    def disconnect(self, report: Report, now: float) -> None:
        """Told by the pool or the janitor: say `report` and go."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<C-{self.number} {ClientState(int(self.state)).name}>"


class PoolServer(Member):
    """A server connection; `state` is an SV_* number. Times are seconds of the monotonic clock."""

    def __init__(self, number: i64, pool: Pool, now: float) -> None:
        super().__init__()
        self.number: i64 = number
        self.state: i64 = SV_LOGIN
        self.pool: Pool = pool
        self.client: PoolClient | None = None
        self.connect_time: float = now
        self.request_time: float = now
        self.close_needed: bool = False
        self.cancels: i64 = 0  # CancelRequests under way to this server
        self.tested_since: float = 0.0  # when the janitor first saw it in state tested; 0: it is not
        self.cancel_key: bytes = b""  # the BackendKeyData that the server gave
        self.is_unclean: bool = False  # released, but what is to clean it waits for the end of `cancels`

    @property
    def is_closed(self) -> bool:
        return self.state == SV_CLOSED

    def check(self, query: bytes, now: float) -> None:
        """Told by the pool: run server_check_query, then come back through `Pool.checked`."""
        raise NotImplementedError

    def clean(self, now: float) -> None:
        """Told by the pool: the cancels have ended; clean yourself now, then come back through `Pool.checked`."""
        raise NotImplementedError

    def cancels_ended(self, now: float) -> None:
        """Told by the pool, of a linked server: no CancelRequest for it is under way any more."""
        raise NotImplementedError

    def overdue(self, now: float) -> Report | None:
        """Asked by the janitor of a linked server: which of the timeouts on queries and transactions has passed."""
        raise NotImplementedError

    def disconnect(self, report: Report, now: float) -> None:
        """Told by the pool or the janitor: close, `report` is the reason."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<S-{self.number} {ServerState(int(self.state)).name}>"
