"""What sessions ask of the process: who may come in and how, keys, consoles, cancels; and what the log says of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import i64

from pgpool_proxy import errors, log
from pgpool_proxy.admin.console import Console
from pgpool_proxy.auth.exchange import ClientExchange, Derive, ScramKeys, Secret, parse_require_auth
from pgpool_proxy.errors import AuthenticationFailed, Report
from pgpool_proxy.log_lines import ConnectionLogger
from pgpool_proxy.pool.pool import REPLICATION_WORDS, retry_pause
from pgpool_proxy.pool.states import CL_WAITING
from pgpool_proxy.process.counters import KNOWN_REASONS, Counters
from pgpool_proxy.process.keys import KeyDerivation
from pgpool_proxy.process.logins import ADMIN_DATABASE, NONCE_SIZE, Logins
from pgpool_proxy.process.watch import shown
from pgpool_proxy.session.auth_query import AuthQuery
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.client_login import ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.link import Link
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings.config import Config

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

__all__ = ["ADMIN_DATABASE", "WorkerHost"]

CANNOT_CONNECT_NOW: Final = "57P03"  # the server starts or goes


class WorkerHost:
    """The `Host` of a worker's sessions."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.logins = Logins(worker)
        self._keys = KeyDerivation()
        self._scram_keys: dict[str, ScramKeys] = {}  # of users that logged in with SCRAM: to log in to servers as them
        self._require: frozenset[str] = frozenset()
        self._counters: Counters = worker.observation.counters
        self._logs_connections = True
        self._logs_disconnections = True
        self._logs_errors = True

    def close(self) -> None:
        self._keys.close()
        self.logins.close()

    def configure(self, config: Config) -> None:
        """Put a configuration into force."""
        settings = config.settings
        self.logins.configure(config)
        self._logs_connections = settings.log_connections
        self._logs_disconnections = settings.log_disconnections
        self._logs_errors = settings.log_pooler_errors
        self._require = parse_require_auth(settings.server_require_auth)

    def forget_keys(self) -> None:
        """The secrets may have changed (RELOAD)."""
        self._scram_keys.clear()
        self._keys.forget()
        self.logins.forget()

    # --- an online restart ------------------------------------------------------------------------------------------------
    def secrets_to_hand_over(self) -> dict[str, Any]:
        """What logins have left, and what logins to servers need: for the process that takes over, and nobody else."""
        keys = {user: [found.client_key.hex(), found.server_key.hex()] for user, found in self._scram_keys.items()}
        return {"keys": keys, **self.logins.secrets_to_hand_over()}

    def take_secrets_over(self, state: dict[str, Any]) -> None:
        for user, (client_key, server_key) in state["keys"].items():
            self._scram_keys[user] = ScramKeys(bytes.fromhex(client_key), bytes.fromhex(server_key))
        self.logins.take_secrets_over(state)

    # --- logins ---------------------------------------------------------------------------------------------------------
    def start_login(self, login: ClientLogin, now: float) -> None:
        session = login.session
        if session.tls:
            self._counters.handshake("client")
        if self._logs_connections:
            replication = REPLICATION_WORDS[int(login.replication)]
            self.logger(session).info(
                f"login attempt: db={login.database_name} user={login.user} tls={session.tls or 'no'} replication={replication}"
            )
        self.logins.start(login, now)

    def proved(self, login: ClientLogin) -> None:
        if login.keys is not None:
            self._scram_keys[login.user] = login.keys
        self.logins.proved(login)

    def ask_anew(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        self.logins.ask_anew(login, failure, now)

    def refuse(self, login: ClientLogin, failure: AuthenticationFailed, now: float) -> None:
        self.logins.refuse(login, failure, now)

    def inquire(self, login: ClientLogin, password: bytes, done: Callable[[bool, float], None]) -> None:
        self.logins.inquire(login, password, done)

    def derive(self, step: Derive, done: Callable[[bytes, float], None]) -> None:
        self._keys.derive(step, done)

    def start_tls(self, session: ClientSession, early: bytes, now: float) -> bool:
        worker = self._worker
        if session.is_unix or not worker.client_tls.is_on:
            return False
        if self.logins.failed.is_banned(session.address, now):  # before the handshake, which costs more than the rest
            session.fail(errors.TOO_MANY_FAILURES, now)
            return True
        return worker.client_tls.begin(session, early, worker.config.settings.client_login_timeout)

    def open_console(self, session: ClientSession, is_admin: bool) -> Console:
        return Console(session, self._worker.console_control, is_admin)

    # --- cancels --------------------------------------------------------------------------------------------------------
    def cancel(self, session: ClientSession, key: bytes, now: float) -> None:
        """A CancelRequest: to the server of the client whose key it is, to the client's place in the queue, or to a peer."""
        worker = self._worker
        self._counters.cancels += 1
        client = worker.keys.find(key)
        if not isinstance(client, ClientSession):
            if worker.membership is None or not worker.membership.pass_cancel_on(session, key):
                worker.peers.forward(session, key, now)
        elif client.console is not None:
            client.console.cancel(now)
            session.leave(errors.CANCEL_SENT, now)
        elif client.state == CL_WAITING:
            client.cancel_waiting(now)
            session.leave(errors.CANCEL_QUEUED, now)
        elif client.link is None or not client.link.server.cancel_key:
            session.leave(errors.CANCEL_NOT_NEEDED, now)
        else:
            self._cancel_for(session, client.link.server, now)

    def cancel_server(self, server: ServerSession, now: float) -> None:
        """On our own account: for a timeout, or because the client has left."""
        if server.cancel is None:
            self._worker.connector.send_cancel(CancelSession(self._worker.context, server, now))

    def _cancel_for(self, session: ClientSession, server: ServerSession, now: float) -> None:
        """On behalf of a client: its connection stays open until the server has closed ours."""
        under_way = server.cancel
        if under_way is None:
            under_way = CancelSession(self._worker.context, server, now)
            under_way.add(session, now)
            self._worker.connector.send_cancel(under_way)
        else:
            under_way.add(session, now)

    # --- what is logged -----------------------------------------------------------------------------------------------
    def logger(self, session: ClientSession) -> ConnectionLogger:
        """Made for its first line, and again when it has said who it is."""
        kept = session.voice
        if isinstance(kept, ConnectionLogger) and kept.user == session.user_name and kept.database == session.database_name:
            return kept
        made = log.connection_logger(
            "C", session.number, session.database_name, session.user_name, session.address, session.port
        )
        session.voice = made
        return made

    def _server_logger(self, session: ServerSession) -> ConnectionLogger:
        pool = session.pool
        return log.connection_logger(
            "S", session.number, pool.database.name, pool.user.name, session.address or session.host, session.port
        )

    def client_logged_in(self, session: ClientSession, now: float) -> None:
        return None

    def client_closed(self, session: ClientSession, report: Report, now: float) -> None:
        if isinstance(session.transport, AuthQuery):
            return
        self._counters.ended("client", report)
        if self._logs_disconnections:
            age = int(now - session.connect_time)
            detail = f": {report.detail}" if report.detail else ""
            text = f"closing because: {report.message}{detail} (age={age}s)"
            if session.user_name or report is not errors.CLIENT_UNEXPECTED_EOF:
                self.logger(session).info(text, reason=report.message, age=age)
            else:  # a health check that looks in every few seconds and never says who it is
                self.logger(session).debug(text, reason=report.message, age=age)

    def notify(self, session: ClientSession, report: Report) -> None:
        self._counters.error(report)
        if self._logs_errors:
            detail = f" ({report.detail})" if report.detail else ""
            self.logger(session).warning(f"pooler error: {report.message}{detail}", sqlstate=report.sqlstate)

    def connect_query_failed(self, session: ServerSession, report: Report) -> None:
        text = f"error in connect_query: {report.severity} {report.message}"
        self._server_logger(session).warning(text, sqlstate=report.sqlstate)

    def notification_unheard(self, session: ServerSession) -> None:
        self._server_logger(session).warning("got packet 'A' from server when not linked")

    def state_seen(self, session: ClientSession, kinds: str) -> None:
        self.logger(session).warning(f"leaves session state on its server: {kinds} (session_state = warn)", kinds=kinds)

    def slow_query(self, session: ClientSession, link: Link, took: i64) -> None:
        text = shown(link.text, int(self._worker.context.text_chars))
        self.logger(session).warning(
            f"slow query: {took / 1000:.1f} ms{': ' if text else ''}{text}", duration_ms=took / 1000, statement=text
        )

    def server_opened(self, session: ServerSession, now: float) -> None:
        if self._worker.membership is not None:
            self._worker.membership.server_opened(session)

    def server_failed(self, session: ServerSession, report: Report, told: Report | None, retry_in: float) -> None:
        if self._worker.membership is not None:
            self._worker.membership.server_failed(session.pool, report, told, retry_in)

    def server_connected(self, session: ServerSession) -> None:
        """Told by the worker: the login begins."""
        if session.tls:
            self._counters.handshake("server")
        if self._logs_connections:
            local = f"{session.local_address}:{session.local_port}"
            self._server_logger(session).info(f"new connection to server (from {local})")
            if session.tls:
                self._server_logger(session).info(f"SSL established: {session.tls}")

    def server_closed(self, session: ServerSession, report: Report, now: float) -> None:
        worker = self._worker
        worker.connector.abandon(session, report)
        if report is errors.MOVED:
            self._server_logger(session).debug(report.message)
            return
        self._counters.ended("server", report)
        detail = f": {report.detail}" if report.detail else ""
        reason = report.message
        if session.failed_login:
            self._server_logger(session).warning(f"server login failed: {report.severity} {report.message}{detail}")
            if reason not in KNOWN_REASONS:  # the server's own words
                reason, detail = errors.LOGIN_FAILED.message, ""
        if self._logs_disconnections:
            age = int(now - session.connect_time)
            self._server_logger(session).info(f"closing because: {reason}{detail} (age={age}s)", reason=reason, age=age)

    # --- servers --------------------------------------------------------------------------------------------------------
    def server_exchange(self, session: ServerSession) -> ClientExchange:
        """The proof for a server: `password=` of the entry for its own user; else auth_file; else what auth_query, LDAP or PAM
        has found; and the keys of a client's own SCRAM login."""
        worker = self._worker
        pool = session.pool
        database, user = pool.database.name, pool.user.name
        entry = worker.config.database(database)
        secret: Secret | None = None
        if entry is not None and entry.password is not None and entry.user == user:
            secret = Secret.of(entry.password)
        else:
            secret = worker.users.get(user)
            if secret is None or secret.is_empty:
                secret = self.logins.lookups.secret(database, user) or self.logins.typed(user) or secret
        keys = self._scram_keys.get(user) if pool.database.forced_user is None else None
        binding = session.login.channel_binding if session.login is not None else None
        return ClientExchange(
            user, secret, keys, lambda: os.urandom(NONCE_SIZE), binding, self._require, tls=bool(session.tls)
        )

    def retry_pause(self, session: ServerSession, report: Report) -> float:
        """Growing pauses with jitter, up to server_login_retry; the first success opens the gate again. Without
        server_login_retry_backoff, that setting itself."""
        pool = session.pool
        if not pool.limits.server_login_retry_backoff:
            return pool.limits.server_login_retry
        is_away = session.is_away or report.sqlstate == CANNOT_CONNECT_NOW or report.message == errors.SERVER_TERMINATED.message
        pause = retry_pause(pool.failures, is_away, pool.limits.server_login_retry)
        return float(pause * random.uniform(0.75, 1.0))
