"""How clients have to prove themselves: auth_type or a rule, what is known of the user, and the exchange that follows.

The way of a login: `start` (may it try at all?) -> a method, by auth_type or by an HBA rule -> the user's secret, from
auth_file or by auth_query -> `ClientLogin.admitted` with the exchange. Each arrow may take a while (host names, look-ups), so
the login is asked at each whether it still lives. What must not leak (an unknown user, an unknown database) is told only
after the proof, in the words of a wrong password. Must not know messages nor sockets.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pgpool_proxy import errors
from pgpool_proxy.auth.exchange import Secret, ServerExchange, server_exchange
from pgpool_proxy.auth.hba import HbaRule
from pgpool_proxy.auth.plain import OpenExchange, OutsideExchange
from pgpool_proxy.errors import AuthenticationFailed, ConfigError, Report
from pgpool_proxy.pool.pool import NO_REPLICATION
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.process.auth_query import Lookups
from pgpool_proxy.process.failed_logins import FAILURES, FailedLogins, origin_of
from pgpool_proxy.process.outside import Outside, Question
from pgpool_proxy.process.rules import Rules
from pgpool_proxy.process.threads import Threads
from pgpool_proxy.session.client_login import DERIVE, HOST, PROOF, ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Admission
from pgpool_proxy.settings.config import Config

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

ADMIN_DATABASE: Final = "pgbouncer"
NONCE_SIZE: Final = 18
MD5_SALT_SIZE: Final = 4
TLS_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})
NEEDS_NO_SECRET: Final = frozenset({"any", "reject", "ldap", "pam"})
UNPROVED: Final = frozenset({HOST, PROOF, DERIVE})  # stages of a login that may yet become one
MAX_TYPED: Final = 10_000  # passwords that LDAP or PAM said are right, kept to log in to servers


class Method:
    """How a login has to prove itself, as far as it is decided."""

    def __init__(self, name: str, database: Database | None, refusal: Report | None) -> None:
        self.name: str = name
        self.database: Database | None = database
        self.refusal: Report | None = refusal
        self.rule: HbaRule | None = None
        self.is_looked_up: bool = False  # by auth_query

    @property
    def map(self) -> str:
        return self.rule.map if self.rule is not None else ""


@dataclass(frozen=True)
class Kept:
    """A login's note: the secret is an answer of auth_query that was kept, for a login to `database`."""

    database: Database | None
    secret: Secret


class Logins:
    """The logins of a worker's clients."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._registry: Registry = worker.registry
        self._auth_type: str = "md5"
        self._needs_tls: bool = False
        self._may_look_up: bool = False  # some database, or all, have an auth_user
        self._scram_iterations: int = 4096
        self._process_secret = worker.membership.secret if worker.membership is not None else os.urandom(32)
        self._threads = Threads(1, "accounts")
        self.rules = Rules(worker.tasks, worker.dns.addresses)
        self.lookups = Lookups(worker)
        self.failed = FailedLogins()
        self.outside = Outside()
        self._typed: dict[str, Secret] = {}

    def configure(self, config: Config) -> None:
        """Put a configuration into force: what each login wants to know is at hand."""
        settings = config.settings
        self.failed.configure(settings.auth_failure_delay, settings.auth_failure_ban)
        self._auth_type = settings.auth_type
        self._needs_tls = settings.client_tls_sslmode in TLS_MODES
        entries = [*config.databases.values(), *([config.autodb] if config.autodb is not None else [])]
        self._may_look_up = bool(settings.auth_user) or any(entry.auth_user for entry in entries)
        self._scram_iterations = settings.scram_iterations

    def close(self) -> None:
        self._threads.close()
        self.outside.close()

    def forget(self) -> None:
        """The secrets may have changed."""
        self.lookups.forget()
        self._typed.clear()

    def secrets_to_hand_over(self) -> dict[str, Any]:
        """What auth_query and LDAP or PAM have brought, for logins to servers: to the process that takes over."""
        typed = {user: secret.value.decode("latin-1") for user, secret in self._typed.items()}
        return {"typed": typed, "found": self.lookups.secrets_to_hand_over()}

    def take_secrets_over(self, state: dict[str, Any]) -> None:
        for user, value in state["typed"].items():
            self._typed[user] = Secret.of(value.encode("latin-1"))
        self.lookups.take_secrets_over(state["found"])

    def typed(self, user: str) -> Secret | None:
        """The password that LDAP or PAM found right at the user's last login."""
        return self._typed.get(user)

    # --- may it try at all? -----------------------------------------------------------------------------------------------
    def start(self, login: ClientLogin, now: float) -> None:
        """A StartupMessage is complete."""
        worker = self._worker
        registry = self._registry
        session = login.session
        is_admin = login.database_name == ADMIN_DATABASE
        report = worker.refusal(session.is_unix, is_admin)
        database = registry.database(login.database_name)
        if report is not None:
            pass
        elif self._needs_tls and not session.tls and not session.is_unix:
            report = errors.SSL_REQUIRED
        elif not session.is_unix and self.failed.is_banned(session.address, now):
            report = errors.TOO_MANY_FAILURES
        elif is_admin and login.replication != NO_REPLICATION:
            report = errors.UNSUPPORTED_PARAMETER.saying("unsupported startup parameter: replication")
        elif database is not None:
            # Strangers may make up as many names as they like: the registry keeps those that have proved themselves.
            report = registry.admit(session, database, registry.users.get(login.user) or User(login.user))
        if report is not None:
            session.fail(report, now)
            return
        refusal: Report | None = None
        if database is None:
            refusal = errors.NO_SUCH_DATABASE.saying(f"no such database: {login.database_name}")
        elif database.disabled:
            refusal = errors.DATABASE_DISABLED.saying(f'database "{database.name}" is disabled')
        method = Method(self._auth_type, database, refusal)
        if is_admin:
            login.is_admin = login.user in worker.admin_users
            if session.is_unix and login.user == ADMIN_DATABASE and session.peer_uid == os.getuid():
                login.is_admin = True
                self._admit(login, OpenExchange(None), method, now)
                return
            if not login.is_admin and login.user not in worker.stats_users:
                method.refusal = errors.NOT_ALLOWED
        self._find_method(login, method, now)

    # --- the method -------------------------------------------------------------------------------------------------------
    def _find_method(self, login: ClientLogin, method: Method, now: float) -> None:
        if method.name != "hba":
            self._find_secret(login, method, now)
            return

        def found(rule: HbaRule | None) -> None:
            at = monotonic()
            if rule is None:
                login.session.fail(errors.NO_AUTH_METHOD, at)
            else:
                method.name = rule.method
                method.rule = rule
                self._find_secret(login, method, at)

        self.rules.find(login, found)

    # --- the secret -------------------------------------------------------------------------------------------------------
    def _find_secret(self, login: ClientLogin, method: Method, now: float) -> None:
        known = self._worker.users.get(login.user)
        database = method.database
        if method.name in NEEDS_NO_SECRET or (known is not None and not known.is_empty):
            self._prove(login, method, known, now)
            return
        question = self.lookups.question(login.database_name, login.user) if self._may_look_up else None
        if question is None or (known is not None and method.name in {"trust", "cert", "peer"}):
            self._prove(login, method, known, now)
            return
        if isinstance(question, Report):
            login.session.fail(question, now)
            return

        method.is_looked_up = True

        def told(secret: Secret | None, report: Report | None, at: float) -> None:
            if not is_alive(login):
                return
            if report is not None:
                login.session.fail(report, at)
            else:
                self._prove(login, method, secret, at)

        kept = self.lookups.kept(question, database, now)
        if kept is not None:
            login.kept = Kept(database, kept)
            self._prove(login, method, kept, now)
        else:
            self.lookups.ask(question, database, told)

    def ask_anew(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        """What the client has sent does not fit a kept answer of auth_query: hold it against a new one, once."""
        noted, login.kept = login.kept, None
        if not isinstance(noted, Kept):
            raise errors.IllegalTransition("logins: nothing was kept")
        stale = noted.secret

        def told(secret: Secret | None, report: Report | None, at: float) -> None:
            if not is_alive(login):
                return
            if secret is None or secret == stale:  # it has gone, or nothing has changed: what the client was told stays
                login.failed(failure, at)
            else:
                login.asked_anew(secret, at)

        database = noted.database
        question = self.lookups.question(login.database_name, login.user)
        if not isinstance(question, tuple):  # by a RELOAD meanwhile
            login.failed(failure, now)
            return
        newer = self.lookups.kept(question, database, now)
        if newer is not None and newer is not stale:  # another login has asked already
            told(newer, None, now)
            return
        self.lookups.forget_user(login.user)
        if self._worker.membership is not None:
            self._worker.membership.say({"is": "doubted", "user": login.user})
        self.lookups.ask(question, database, told)

    # --- the exchange -----------------------------------------------------------------------------------------------------
    def _prove(self, login: ClientLogin, method: Method, secret: Secret | None, now: float) -> None:
        if method.name == "peer":
            self._prove_by_account(login, method, secret is not None)
        elif method.name == "cert":
            names = login.certificate_names
            proved = secret is not None and self._certificate_is_for(login.user, names, method.map)
            self._admit(login, OpenExchange(None if proved else errors.CERT_FAILED), method, now)
        elif method.name in {"ldap", "pam"}:
            report = errors.LDAP_FAILED if method.name == "ldap" else errors.PAM_FAILED
            login.outside = self._question(login, method)
            self._admit(login, OutsideExchange(report), method, now)
        else:
            self._prove_by_secret(login, method, secret, now)

    def _prove_by_secret(self, login: ClientLogin, method: Method, secret: Secret | None, now: float) -> None:
        worker = self._worker
        name = method.name
        if name == "any" and method.database is not None and method.database.forced_user is None:
            method.refusal = errors.BOUNCER_CONFIG  # the user's name means nothing, so there is nobody to log in to servers as
        lookups, usual = self.lookups, worker.usual
        try:
            exchange = server_exchange(
                name,
                login.user,
                secret,
                secret is not None,
                salt=lambda: os.urandom(MD5_SALT_SIZE),
                nonce=lambda: os.urandom(NONCE_SIZE),
                process_secret=self._process_secret,
                scram_iterations=self._scram_iterations,
                channel_binding=login.channel_binding,
                mock_kind=lookups.usual_kind(name) if method.is_looked_up else usual.kind(name),
                mock_iterations=(lookups.usual if method.is_looked_up else usual).iterations(self._scram_iterations),
            )
        except ConfigError as error:
            worker.host.logger(login.session).warning(str(error))
            login.session.fail(errors.BOUNCER_CONFIG, now)
            return
        self._admit(login, exchange, method, now)

    def _admit(self, login: ClientLogin, exchange: ServerExchange, method: Method, now: float) -> None:
        login.admitted(Admission(exchange, method.database, method.refusal), now)

    def _certificate_is_for(self, user: str, names: list[str], map_name: str) -> bool:
        if map_name:
            return bool(names) and self.rules.ident.match(map_name, names[0], user)
        return any(matches(name, user) for name in names)

    def _prove_by_account(self, login: ClientLogin, method: Method, known: bool) -> None:
        """peer: the account at the other end of the unix socket; the user database may be slow to ask."""
        uid = int(login.session.peer_uid)

        def told(name: str) -> None:
            if not is_alive(login):
                return
            proved = known and uid >= 0 and self.rules.ident.match(method.map, name, login.user)
            self._admit(login, OpenExchange(None if proved else errors.PEER_FAILED), method, monotonic())

        self._threads.run(lambda: account_name(uid), told)

    # --- LDAP and PAM -----------------------------------------------------------------------------------------------------
    def _question(self, login: ClientLogin, method: Method) -> Question:
        options = dict(method.rule.options) if method.rule is not None else {}
        text = self._worker.config.settings.auth_ldap_options if method.rule is None else None
        return Question(method.name, login.user, login.session.address, options, text or "")

    def inquire(self, login: ClientLogin, password: bytes, done: Callable[[bool, float], None]) -> None:
        question = login.outside
        if not isinstance(question, Question):
            raise errors.IllegalTransition("logins: nobody to ask")
        logger = self._worker.host.logger(login.session)

        def told(proved: bool, problem: str) -> None:
            if problem:
                logger.warning(f"{question.method}: {problem}")
            if proved:
                if len(self._typed) >= MAX_TYPED:
                    self._typed.clear()
                self._typed[login.user] = Secret.of(password)
            done(proved, monotonic())

        self.outside.ask(question, password, told)

    # --- the end ----------------------------------------------------------------------------------------------------------
    def refuse(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        """The proof failed: at once or, with auth_failure_delay, a little later the client is told."""
        session = login.session
        logger = self._worker.host.logger(session)
        logger.info(f"login failed: db={login.database_name} user={login.user}", reason=failure.reason)
        logger.debug(f"why the login failed: {failure.reason}")
        if not session.is_unix and self._count_failure(session.address, now):
            whose = origin_of(session.address)
            logger.warning(f"{FAILURES} failed logins in a row: {whose} is refused for {self.failed.ban_s:g} s")
        delay = self.failed.delay_s
        if delay <= 0 or session.is_unix:
            session.fail(failure.report, now)
            return
        asyncio.get_running_loop().call_later(delay, self._tell, session, failure.report)

    def _tell(self, session: ClientSession, report: Report) -> None:
        session.fail(report, monotonic())

    def _count_failure(self, address: str, now: float) -> bool:
        membership = self._worker.membership
        if membership is not None and self.failed.ban_s > 0:
            membership.say({"is": "login_failed", "address": address})
        return self.count_failure(address, now)

    def count_failure(self, address: str, now: float) -> bool:
        """A login failed, here or at another worker. True: its address is refused from now on, and so are the logins that it
        has begun, each of which would be good for one more guess."""
        if not self.failed.failed(address, now):
            return False
        origin = origin_of(address)
        for member in self._registry.login_clients.members():
            if not isinstance(member, ClientSession) or member.is_unix or origin_of(member.address) != origin:
                continue
            login = member.login
            if login is not None and login.stage in UNPROVED:
                member.fail(errors.TOO_MANY_FAILURES, now)
        return True

    def proved(self, login: ClientLogin) -> None:
        session = login.session
        if not session.is_unix and self.failed.succeeded(session.address) and self._worker.membership is not None:
            self._worker.membership.say({"is": "login_succeeded", "address": session.address})


def is_alive(login: ClientLogin) -> bool:
    """False when the client has left while somebody was asked about it."""
    return login.session.login is login and not login.session.is_closed


def account_name(uid: int) -> str:
    """The system user's name, or nothing."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


def matches(name: str, user: str) -> bool:
    """A name of a certificate and a user: the same, or *.example.com and one label before .example.com."""
    if not name or "\0" in name:
        return False
    if name == user:
        return True
    if not name.startswith("*.") or name.count(".") < 2:
        return False
    label, dot, rest = user.partition(".")
    return bool(label and dot) and rest == name[2:]
