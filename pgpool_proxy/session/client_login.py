"""A client before it is logged in: first packets, startup parameters, proof, welcome.

Theory of operation
-------------------
stage     what arrives                              what follows
FIRST     SSLRequest, GSSENCRequest (once each)     an answer of one byte; the stage stays, or TLS when it is 'S'
          a TLS ClientHello                         TLS, without an answer
          CancelRequest                             handed to the host; the client says no more
          StartupMessage                            checked here, then the host decides how it must prove itself
TLS       nothing in clear                          `encrypted` brings back FIRST
HOST      nothing is expected                       `admitted` brings the exchange
PROOF     PasswordMessage and its kin               given to the exchange
DERIVE    nothing is expected                       a key is being derived, or somebody is asked, off the loop; or a secret that
                                                    was kept does not fit and is asked for anew
REFUSED   nothing is expected                       the proof failed, and the client is told in a moment
COUNT     nothing is expected                       clients are counted elsewhere: `let_in` says whether there is room
POOL      nothing is expected                       waits for the pool's first server (`finish`)

Bytes that come early are kept, up to a bound; they are never taken for anything else than what their turn will make of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.auth.exchange import Accepted, Challenge, Derive, Inquire, ScramKeys, Secret, ServerExchange, Step
from pgpool_proxy.errors import AuthenticationFailed, Report, WrongSecret
from pgpool_proxy.pool.ledger import LATER
from pgpool_proxy.pool.pool import LOGICAL, NO_REPLICATION, PHYSICAL
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.session.context import Admission
from pgpool_proxy.session.login_parameters import LoginAnswer, LoginParameters, Startup
from pgpool_proxy.session.parameters import Parameters
from pgpool_proxy.wire import backend, startup
from pgpool_proxy.wire.codes import AUTH_SASL_FINAL, HEADER_SIZE, PASSWORD, PROTOCOL_3_0
from pgpool_proxy.wire.framing import MessageReader

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession

FIRST: Final = 0
HOST: Final = 1
PROOF: Final = 2
DERIVE: Final = 3
POOL: Final = 4
TLS: Final = 5
REFUSED: Final = 6
COUNT: Final = 7

LONG_KEYS: Final = 2  # protocol 3.2 brought cancel keys of other sizes than 8 bytes
YES: Final = frozenset((b"1", b"on", b"t", b"tr", b"tru", b"true", b"y", b"ye", b"yes"))
NO: Final = frozenset((b"", b"0", b"of", b"off", b"f", b"fa", b"fal", b"fals", b"false", b"n", b"no"))
MAX_USERNAME: Final = 127  # PgBouncer's MAX_USERNAME without the terminator
MAX_EARLY: Final = 65536  # bytes that may come before their turn
MAX_PASSWORD_MESSAGE: Final = 65536 + HEADER_SIZE  # PgBouncer allows passwords of 65,530 bytes
NOTHING_ASKED: Final = LoginParameters()  # before there is a StartupMessage


def replication_kind(value: bytes) -> i64:
    """The startup parameter `replication`, as PostgreSQL reads it: `database`, or a boolean. Raises `ProtocolViolation`."""
    word = value.lower()
    if word == b"database":
        return LOGICAL
    if word in YES:
        return PHYSICAL
    if word in NO:
        return NO_REPLICATION
    shown = value.decode("utf-8", "replace")
    raise errors.ProtocolViolation(errors.BAD_PARAMETER.saying(f'invalid value for parameter "replication": "{shown}"'))


class ClientLogin:
    """One login attempt; the session drops it when the client is in."""

    def __init__(self, session: ClientSession) -> None:
        self.session: ClientSession = session
        self.stage: i64 = FIRST
        self.early: bytes = b""
        self.asked_ssl: bool = False
        self.asked_gss: bool = False
        self.minor: i64 = 0
        self.user: str = ""
        self.database_name: str = ""
        self.replication: i64 = NO_REPLICATION
        self.given: list[tuple[bytes, bytes]] | None = None  # of a replication client: what its server is told at startup
        self.parameters: LoginParameters = NOTHING_ASKED
        self.has_asked: bool = False  # a server has told how it spells them
        self.reader: MessageReader | None = None
        self.exchange: ServerExchange | None = None
        self.database: Database | None = None
        self.refusal: Report | None = None
        self.keys: ScramKeys | None = None
        self.is_admin: bool = False
        self.channel_binding: bytes | None = None  # tls-server-end-point of our certificate, with TLS
        self.certificate_names: list[str] = []  # of the client's certificate: its common name first
        self.outside: object = None  # what the host has noted about whom an `Inquire` step is for
        self.kept: object = None  # what the host has noted about a secret that it did not ask for just now
        self._final: bytes = b""  # the exchange's last word, which goes out with AuthenticationOk

    # --- bytes ----------------------------------------------------------------------------------------------------------
    def received(self, data: bytes, now: float) -> None:
        """A chunk of a client that is not logged in yet. Raises `ProtocolViolation`."""
        if self.stage == FIRST:
            self._first(self.early + data if self.early else data, now)
        elif self.stage == PROOF:
            self._proof(data, now)
        elif self.stage == TLS:
            raise errors.ProtocolViolation(errors.UNENCRYPTED_BYTES)
        else:
            self.early = self.early + data if self.early else data
            if len(self.early) > MAX_EARLY:
                raise errors.ProtocolViolation(errors.UNEXPECTED_PACKET)

    def _first(self, data: bytes, now: float) -> None:
        session = self.session
        if data[0] == startup.DIRECT_TLS and not self.early and not self.asked_ssl and not self.asked_gss and not session.tls:
            self.stage = TLS
            if session.context.host.start_tls(session, data, now):
                return
            self.stage = FIRST
        size = startup.packet_size(data)
        if size == 0 or len(data) < size:
            self.early = data
            return
        if len(data) == size:
            known = session.context.startups.find(data, session.context)
            if known is not None:
                self.early = b""
                self._start(known, now)
                return
        rest = data[size:]
        self.early = b""
        packet = startup.parse(data[:size])
        if packet.is_ssl_request or packet.is_gssenc_request:
            self._encryption(packet.is_ssl_request, rest, now)
        elif packet.is_cancel_request:
            self.stage = HOST
            session.context.host.cancel(session, packet.key, now)
        else:
            self.early = rest
            self._startup(packet, data[:size], now)

    def _encryption(self, is_ssl: bool, rest: bytes, now: float) -> None:
        if rest:  # bytes that were sent in clear before the answer are never taken for encrypted ones (CVE-2021-3935)
            raise errors.ProtocolViolation(errors.UNENCRYPTED_BYTES)
        if (self.asked_ssl and is_ssl) or (self.asked_gss and not is_ssl) or self.session.tls:
            raise errors.ProtocolViolation(errors.UNEXPECTED_PACKET)
        if is_ssl:
            self.asked_ssl = True
            self.stage = TLS
            if self.session.context.host.start_tls(self.session, b"", now):
                return
            self.stage = FIRST
        else:
            self.asked_gss = True
        self.session.write(b"N")

    def encrypted(self, tls: str, channel_binding: bytes | None, certificate_names: list[str]) -> None:
        """Told by the host: the handshake is done; from now on everything comes through it."""
        self.stage = FIRST
        self.session.tls = tls
        self.channel_binding = channel_binding
        self.certificate_names = certificate_names

    # --- startup --------------------------------------------------------------------------------------------------------
    def _startup(self, packet: startup.FirstPacket, data: bytes, now: float) -> None:
        session = self.session
        context = session.context
        newest = context.newest_minor
        self.minor = packet.minor
        if self.minor > newest or packet.options:
            self.minor = min(self.minor, newest)
            session.write(backend.negotiate_protocol_version(PROTOCOL_3_0 | int(self.minor), packet.options))
        user = packet.parameters.get("user", b"")
        if not user:
            raise errors.ProtocolViolation(errors.NO_USERNAME)
        if len(user) > MAX_USERNAME:
            raise errors.ProtocolViolation(errors.USERNAME_TOO_LONG)
        self.user = user.decode("utf-8", "surrogateescape")
        self.database_name = packet.parameters.get("database", b"").decode("utf-8", "surrogateescape") or self.user
        self.replication = replication_kind(packet.parameters.get("replication", b""))
        session.user_name = self.user
        session.database_name = self.database_name
        self.parameters = LoginParameters()
        if self.replication != NO_REPLICATION:
            self.given = [
                (name.encode("utf-8", "surrogateescape"), value)
                for name, value in packet.parameters.items()
                if name not in ("user", "database", "replication")
            ]
        else:
            self.parameters.collect(context, packet.parameters)
            if context.application_name_add_host:
                self.parameters.add_host(f"[{session.address}]" if ":" in session.address else session.address, session.port)
            elif packet.minor == self.minor and not packet.options:
                context.startups.keep(data, Startup(context, self.minor, self.user, self.database_name, self.parameters))
        self.stage = HOST
        context.host.start_login(self, now)

    def _start(self, known: Startup, now: float) -> None:
        """A StartupMessage that somebody else has sent before."""
        session = self.session
        self.minor = known.minor
        self.user = session.user_name = known.user
        self.database_name = session.database_name = known.database_name
        self.parameters = known.parameters
        self.stage = HOST
        session.context.host.start_login(self, now)

    # --- proof ----------------------------------------------------------------------------------------------------------
    def admitted(self, admission: Admission, now: float) -> None:
        """The host says how the client has to prove itself."""
        self.exchange = admission.exchange
        self.database = admission.database
        self.refusal = admission.refusal
        self._step(admission.exchange.start, now)

    def _step(self, next_step: Callable[[], Step], now: float) -> None:
        """Run one step of the exchange and do what it says; a proof that fails ends the login."""
        try:
            step = next_step()
        except AuthenticationFailed as failure:
            self.failed(failure, now)
            return
        self._do(step, now)

    def failed(self, failure: AuthenticationFailed, now: float) -> None:
        """The proof failed; the host's note that the secret may be out of date is good for one more look."""
        if self.kept is not None and isinstance(failure, WrongSecret):
            self.stage = DERIVE
            self.session.context.host.ask_anew(self, failure, now)
            return
        self.stage = REFUSED
        self.exchange = None
        self.reader = None
        self.session.context.host.refuse(self, failure, now)

    def _do(self, step: Step, now: float) -> None:
        if isinstance(step, Challenge):
            self.stage = PROOF
            if self.reader is None:
                self.reader = MessageReader(MAX_PASSWORD_MESSAGE)
            self.session.write(backend.authentication(step.code, step.payload))
            if self.early:
                early = self.early
                self.early = b""
                self._proof(early, now)
        elif isinstance(step, Derive):
            self.stage = DERIVE
            self.session.context.host.derive(step, self.derived)
        elif isinstance(step, Inquire):
            self.stage = DERIVE
            self.session.context.host.inquire(self, step.password, self.answered)
        elif isinstance(step, Accepted):
            if step.final is not None:
                self._final = backend.authentication(AUTH_SASL_FINAL, step.final)
            self.keys = step.keys
            self._proved(now)
        else:
            raise errors.IllegalTransition(f"client login: {type(step).__name__} in stage {int(self.stage)}")

    def derived(self, salted_password: bytes, now: float) -> None:
        """Told by the host: the key that a `Derive` step asked for."""
        exchange = self.exchange
        if self.session.login is not self or exchange is None:
            return  # the client has left meanwhile
        self._step(partial(exchange.derived, salted_password), now)

    def answered(self, proved: bool, now: float) -> None:
        """Told by the host: what those said whom an `Inquire` step wanted to be asked."""
        exchange = self.exchange
        if self.session.login is not self or exchange is None:
            return
        self._step(partial(exchange.answered, proved), now)

    def asked_anew(self, secret: Secret, now: float) -> None:
        """Told by the host: a newer secret, in the place of one that did not fit."""
        exchange = self.exchange
        if self.session.login is not self or exchange is None:
            return
        self._step(partial(exchange.again, secret), now)

    def _proof(self, data: bytes, now: float) -> None:
        reader = self.reader
        exchange = self.exchange
        if reader is None or exchange is None:
            raise errors.ProtocolViolation(errors.UNEXPECTED_PACKET)
        reader.feed(data)
        if reader.coming >= 0 and reader.coming != PASSWORD:  # whatever length it claims
            raise errors.ProtocolViolation(errors.UNEXPECTED_PACKET)
        if not reader.next():
            return
        self.stage = HOST
        proof = partial(exchange.receive, reader.body)
        self.early = reader.rest()
        self._step(proof, now)

    # --- in -------------------------------------------------------------------------------------------------------------
    def _proved(self, now: float) -> None:
        session = self.session
        database = self.database
        if self.refusal is not None or database is None:
            session.fail(self.refusal or errors.NO_SUCH_DATABASE, now)
            return
        registry = session.context.registry
        report = registry.ledger.admit(session, database, registry.user(self.user))
        if report is LATER:
            self.stage = COUNT
            return
        self._counted(database, report, now)

    def let_in(self, report: Report | None, now: float) -> None:
        """Told by the session: whether there is room for it. It may have left meanwhile."""
        database = self.database
        if self.stage == COUNT and database is not None and self.session.login is self:
            self._counted(database, report, now)

    def _counted(self, database: Database, report: Report | None, now: float) -> None:
        session = self.session
        if report is not None:
            session.fail(report, now)
            return
        registry = session.context.registry
        user = registry.user(self.user)
        session.context.host.proved(self)
        if self.replication == NO_REPLICATION:
            pool = registry.pool(database, self.user)
        else:
            pool = registry.dedicated_pool(database, self.user, self.replication, self.given or [])
        self.stage = POOL
        failure = pool.failure(now)
        if failure is not None:
            session.fail(failure, now)
            return
        if registry.settle(session, pool, user, now):
            self.finish(now)

    def finish(self, now: float) -> None:
        """The parameters of the pool's servers are known: say welcome, and take up what the client sent meanwhile."""
        session = self.session
        pool = session.pool
        if pool is None or pool.server_parameters is None:
            raise errors.IllegalTransition("client login: welcome before the server's parameters are known")
        context = session.context
        welcome = context.welcome_of(pool, pool.server_parameters)
        spellings = welcome.spellings
        told = self.parameters.answer
        if told is None or not told.is_of(spellings):
            session.parameters = spellings.parameters_of(self.parameters)
            is_open = spellings.must_ask(self.parameters) and not pool.database.is_admin
            if is_open and not self.has_asked:
                self.has_asked = True
                pool.request(session, now)  # `spelled` goes on
                return
            told = LoginAnswer(spellings, session.parameters, welcome.statuses_of(session.parameters))
            if not is_open:
                self.parameters.answer = told
        session.parameters = session.at_connect = told.parameters
        answer = [self._final] if self._final else []
        answer.append(backend.AUTHENTICATION_OK)
        answer.append(told.statuses)
        answer.append(backend.backend_key_data(context.cancel_keys.issue(session, self.minor >= LONG_KEYS)))
        if context.login_notify_message and not pool.database.is_admin:
            answer.append(backend.notice_response(Report(context.login_notify_message, "00000", "NOTICE")))
        answer.append(backend.READY_IDLE)
        session.login = None
        early = self.early
        session.write(b"".join(answer))
        if pool.database.is_admin:
            session.console = context.host.open_console(session, self.is_admin)
        else:
            pool.stats.client_login_count += 1
            pool.stats.logins.add(i64((now - session.connect_time) * 1_000_000))
        context.host.client_logged_in(session, now)
        if pool.main is not None:
            pool.request(session, now)  # its own server, from now on
        if early:
            try:
                session.received(early, now)
            except errors.ProtocolViolation as violation:  # its own affair: a server may have made the call
                session.violated(violation.report, now)

    def spelled(self, answered: Parameters, now: float) -> None:
        """A server has taken the client's parameters, and reports them in its own spelling."""
        session = self.session
        pool = session.pool
        if pool is not None and pool.server_parameters is not None:
            session.context.welcome_of(pool, pool.server_parameters).spellings.learn(self.parameters, answered)
        self.finish(now)

    def ended(self) -> None:
        """The client has left before it was in."""
        self.exchange = None
        self.reader = None
