"""What all sessions of a process share, and what they ask of the world outside (`Host`).

`Context` has plain attributes because HOT code reads them; `Host` is implemented by process/worker.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from mypy_extensions import i64

from pgpool_proxy.auth.exchange import ClientExchange, Derive, ServerExchange
from pgpool_proxy.errors import AuthenticationFailed, Report
from pgpool_proxy.pool.cancel_keys import CancelKeys
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Database, Registry
from pgpool_proxy.session.login_parameters import Spellings, Startups
from pgpool_proxy.session.parameters import Parameters, TrackedParameters
from pgpool_proxy.session.prepared_statements import Statements
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.codes import MAX_PACKET_SIZE

if TYPE_CHECKING:
    from pgpool_proxy.session.client_login import ClientLogin
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.link import Link
    from pgpool_proxy.session.server_session import ServerSession

MAX_WELCOMES: Final = 1000  # sets of values (application names, mostly) whose messages are kept for one pool


class Admission:
    """How a client that has sent its StartupMessage is to prove itself.

    `refusal` is told only after a successful proof (an unknown database must not leak); `database` is None with it.
    """

    def __init__(self, exchange: ServerExchange, database: Database | None, refusal: Report | None) -> None:
        self.exchange = exchange
        self.database = database
        self.refusal = refusal


class Console(Protocol):
    """What answers the clients of database `pgbouncer`."""

    def received(self, data: bytes, now: float) -> None: ...

    def cancel(self, now: float) -> None: ...

    def closed(self) -> None: ...


class Host(Protocol):
    """The process around the sessions."""

    def start_login(self, login: ClientLogin, now: float) -> None:
        """A StartupMessage is complete: answer with `login.admitted` or `login.session.fail`, now or later."""
        ...

    def proved(self, login: ClientLogin) -> None:
        """The client has proved who it is; `login.keys` are what a SCRAM proof leaves."""
        ...

    def derive(self, step: Derive, done: Callable[[bytes, float], None]) -> None:
        """Do what `step` says off the loop; `done(salted_password, now)` is called on it, later or at once."""
        ...

    def inquire(self, login: ClientLogin, password: bytes, done: Callable[[bool, float], None]) -> None:
        """Ask LDAP or PAM off the loop whether this is the user's password; `done(proved, now)` is called on it, later."""
        ...

    def ask_anew(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        """What `login.kept` stands for does not fit, and may be out of date: answer with `login.asked_anew` or, with
        `failure`, `login.failed`, now or later."""
        ...

    def refuse(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        """The proof failed: log it, and tell the client (`session.fail`), now or later."""
        ...

    def start_tls(self, session: ClientSession, early: bytes, now: float) -> bool:
        """The client asks for TLS, by SSLRequest or, with `early`, by the beginning of its ClientHello. False: there is
        none; True: the answer 'S' and the handshake are taken care of, and `login.encrypted` tells of its end."""
        ...

    def open_console(self, session: ClientSession, is_admin: bool) -> Console: ...

    def cancel(self, session: ClientSession, key: bytes, now: float) -> None:
        """A CancelRequest came; `session` is the connection that brought it."""
        ...

    def cancel_server(self, server: ServerSession, now: float) -> None:
        """Cancel what the server does, on our own account."""
        ...

    def client_logged_in(self, session: ClientSession, now: float) -> None: ...

    def client_closed(self, session: ClientSession, report: Report, now: float) -> None: ...

    def notify(self, session: ClientSession, report: Report) -> None:
        """A pooler error that the client was told of: for the log."""
        ...

    def state_seen(self, session: ClientSession, kinds: str) -> None:
        """The client has left state of these kinds behind (session_state = warn); told once for each of its kinds."""
        ...

    def slow_query(self, session: ClientSession, link: Link, took: i64) -> None:
        """A query took longer than `Context.slow_query_us`: `took` microseconds."""
        ...

    def server_exchange(self, session: ServerSession) -> ClientExchange:
        """How to prove ourselves to the server of this session's pool."""
        ...

    def connect_query_failed(self, session: ServerSession, report: Report) -> None:
        """The server answered connect_query with an error: for the log."""
        ...

    def notification_unheard(self, session: ServerSession) -> None:
        """The first NotificationResponse of a server that no client had: for the log."""
        ...

    def server_opened(self, session: ServerSession, now: float) -> None: ...

    def server_closed(self, session: ServerSession, report: Report, now: float) -> None: ...

    def server_failed(self, session: ServerSession, report: Report, told: Report | None, retry_in: float) -> None:
        """A connect or a login failed: see no_server()."""
        ...

    def retry_pause(self, session: ServerSession, report: Report) -> float:
        """Seconds until the pool may open servers again after this failure."""
        ...



class Welcome:
    """The ParameterStatus messages that a login to one pool is answered with, made once for each set of values."""

    def __init__(self, tracked: TrackedParameters, reported: dict[bytes, bytes]) -> None:
        self.reported = reported
        self._tracked: TrackedParameters = tracked
        self.base: Parameters = tracked.from_reported(reported)  # of a client that asks for nothing
        self.spellings: Spellings = Spellings(tracked, self.base)
        self._statuses: dict[Parameters, bytes] = {}

    def statuses_of(self, parameters: Parameters) -> bytes:
        found = self._statuses.get(parameters)
        if found is None:
            parts: list[bytes] = []
            for name, value in self.reported.items():
                at = self._tracked.index(name)
                own = parameters.values[at] if at >= 0 else None
                parts.append(backend.parameter_status(name, value if own is None else own))
            found = b"".join(parts)
            if len(self._statuses) >= MAX_WELCOMES:
                self._statuses.clear()
            self._statuses[parameters] = found
        return found


class Context:
    """One per process."""

    def __init__(self, host: Host, registry: Registry, cancel_keys: CancelKeys, tracked: TrackedParameters) -> None:
        self.host: Host = host
        self.registry: Registry = registry
        self.cancel_keys: CancelKeys = cancel_keys
        self.tracked: TrackedParameters = tracked
        self.statements: Statements = Statements()
        self.startups: Startups = Startups()
        self.max_packet_size: i64 = MAX_PACKET_SIZE
        self.disable_pqexec: bool = False
        self.ignored_parameters: frozenset[str] = frozenset()
        self.application_name_add_host: bool = False
        self.newest_minor: i64 = 0  # protocol 3.x that is spoken with clients, and that servers are asked for
        self.login_notify_message: str = ""
        self.text_chars: i64 = 0  # how much of each statement's text is kept for the log; 0: none
        self.slow_query_us: i64 = 0  # queries that take that long are told to the host; 0: none
        self.cancel_on_disconnect: bool = True
        self.track_startup_parameters: bool = False
        self._welcomes: dict[Pool, Welcome] = {}

    def welcome_of(self, pool: Pool, reported: dict[bytes, bytes]) -> Welcome:
        """What logins to `pool` are told; made anew when its servers report something else."""
        if pool.main is not None:
            return Welcome(self.tracked, reported)  # of one client
        found = self._welcomes.get(pool)
        if found is None or found.reported is not reported:
            found = Welcome(self.tracked, reported)
            self._welcomes[pool] = found
        return found

    def forget_pool(self, pool: Pool) -> None:
        self._welcomes.pop(pool, None)
