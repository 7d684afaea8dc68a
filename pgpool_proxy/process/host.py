"""What sessions ask of the process: who may come in and how, keys, consoles, cancels; and what the log says of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin.console import Console
from pgpool_proxy.auth.exchange import ClientExchange, ScramKeys, Secret, server_exchange
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.pool.pool import FIRST_RETRY_S
from pgpool_proxy.pool.states import CL_WAITING
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.client_login import ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Admission
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

ADMIN_DATABASE: Final = "pgbouncer"
NONCE_SIZE: Final = 18
MD5_SALT_SIZE: Final = 4
MAX_DERIVED: Final = 10_000  # salted passwords that are kept: 32 bytes each, for secrets of the configuration only


class WorkerHost:
    """The `Host` of a worker's sessions."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._process_secret = os.urandom(32)
        self._derived: dict[tuple[bytes, bytes, int], bytes] = {}
        self._waiting_for_key: dict[tuple[bytes, bytes, int], list[Callable[[bytes, float], None]]] = {}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="derive")
        self._scram_keys: dict[str, ScramKeys] = {}  # of users that logged in with SCRAM: to log in to servers as them

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def forget_keys(self) -> None:
        """The secrets may have changed (RELOAD)."""
        self._scram_keys.clear()
        self._derived.clear()

    # --- logins ---------------------------------------------------------------------------------------------------------
    def start_login(self, login: ClientLogin, now: float) -> None:
        """Decide how a client has to prove itself. What must not leak is told only after the proof."""
        worker = self._worker
        session = login.session
        settings = worker.config.settings
        refusal: Report | None = None
        is_admin = login.database_name == ADMIN_DATABASE
        if settings.log_connections:
            tls = session.tls or "no"
            self._logger(session).info(
                f"login attempt: db={login.database_name} user={login.user} tls={tls} replication=no"
            )
        if worker.closing is not None and not (is_admin and session.is_unix):
            session.fail(worker.closing, now)
            return
        if login.replication and login.replication.lower() not in (b"false", b"no", b"off", b"0"):
            session.fail(errors.UNSUPPORTED_PARAMETER.saying("unsupported startup parameter: replication"), now)
            return
        database = worker.registry.database(login.database_name)
        if database is None:
            refusal = errors.NO_SUCH_DATABASE.saying(f"no such database: {login.database_name}")
        else:
            report = worker.registry.admit(session, database, worker.registry.user(login.user))
            if report is not None:
                session.fail(report, now)
                return
            if database.disabled:
                refusal = errors.DATABASE_DISABLED.saying(f'database "{database.name}" is disabled')
        method = settings.auth_type
        known_secret = worker.users.get(login.user)
        if is_admin:
            admin = login.user in worker.admin_users
            login.is_admin = admin
            if session.is_unix and login.user == ADMIN_DATABASE and session.peer_uid == os.getuid():
                login.is_admin = True
                method = "any"
            elif not admin and login.user not in worker.stats_users:
                refusal = errors.NOT_ALLOWED
        elif method == "any" and database is not None and database.forced_user is None:
            refusal = errors.BOUNCER_CONFIG
        try:
            exchange = server_exchange(
                method,
                login.user,
                known_secret,
                known_secret is not None,
                salt=lambda: os.urandom(MD5_SALT_SIZE),
                nonce=lambda: os.urandom(NONCE_SIZE),
                process_secret=self._process_secret,
                scram_iterations=settings.scram_iterations,
                mock_kind=worker.usual_secret,
            )
        except ConfigError as error:
            self._logger(session).warning(str(error))
            session.fail(errors.BOUNCER_CONFIG, now)
            return
        login.admitted(Admission(exchange, database, refusal), now)

    def proved(self, login: ClientLogin) -> None:
        if login.keys is not None:
            self._scram_keys[login.user] = login.keys

    def derive(self, password: bytes, salt: bytes, iterations: int, done: Callable[[bytes, float], None]) -> None:
        """Once per secret, off the loop; logins that want the same key meanwhile share the work."""
        wanted = (password, salt, iterations)
        known = self._derived.get(wanted)
        if known is not None:
            done(known, monotonic())
            return
        waiting = self._waiting_for_key.get(wanted)
        if waiting is not None:
            waiting.append(done)
            return
        self._waiting_for_key[wanted] = [done]
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, hashlib.pbkdf2_hmac, "sha256", password, salt, iterations
        )
        future.add_done_callback(lambda _: self._key_derived(wanted, future))

    def _key_derived(self, wanted: tuple[bytes, bytes, int], future: asyncio.Future[bytes]) -> None:
        waiting = self._waiting_for_key.pop(wanted, [])
        if future.cancelled() or future.exception() is not None:
            return  # the process is ending
        if len(self._derived) >= MAX_DERIVED:
            self._derived.clear()
        key = future.result()
        self._derived[wanted] = key
        now = monotonic()
        for done in waiting:
            done(key, now)

    def start_tls(self, session: ClientSession) -> bool:
        return False

    def open_console(self, session: ClientSession, is_admin: bool) -> Console:
        return Console(session, self._worker.control, is_admin)

    # --- cancels --------------------------------------------------------------------------------------------------------
    def cancel(self, session: ClientSession, key: bytes, now: float) -> None:
        """A CancelRequest: to the server of the client whose key it is, or to the client's place in the queue."""
        worker = self._worker
        client = worker.keys.find(key)
        if not isinstance(client, ClientSession):
            session.leave(errors.CANCEL_UNKNOWN_KEY, now)
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
    def _logger(self, session: ClientSession) -> log.ConnectionLogger:
        return log.connection_logger(
            "C", session.number, session.database_name, session.user_name, session.address, session.port
        )

    def _server_logger(self, session: ServerSession) -> log.ConnectionLogger:
        pool = session.pool
        return log.connection_logger(
            "S", session.number, pool.database.name, pool.user.name, session.address or session.host, session.port
        )

    def client_logged_in(self, session: ClientSession, now: float) -> None:
        return None

    def client_closed(self, session: ClientSession, report: Report, now: float) -> None:
        if self._worker.config.settings.log_disconnections:
            age = int(now - session.connect_time)
            self._logger(session).info(f"closing because: {report.message} (age={age}s)", reason=report.message, age=age)

    def notify(self, session: ClientSession, report: Report) -> None:
        if self._worker.config.settings.log_pooler_errors:
            detail = f" ({report.detail})" if report.detail else ""
            self._logger(session).warning(f"pooler error: {report.message}{detail}", sqlstate=report.sqlstate)

    def server_opened(self, session: ServerSession, now: float) -> None:
        if self._worker.config.settings.log_connections:
            local = f"{session.local_address}:{session.local_port}"
            self._server_logger(session).info(f"new connection to server (from {local})")

    def server_closed(self, session: ServerSession, report: Report, now: float) -> None:
        worker = self._worker
        worker.connector.abandon(session)
        detail = f": {report.detail}" if report.detail else ""
        if session.failed_login:
            self._server_logger(session).warning(f"server login failed: {report.severity} {report.message}{detail}")
        if worker.config.settings.log_disconnections:
            age = int(now - session.connect_time)
            self._server_logger(session).info(
                f"closing because: {report.message}{detail} (age={age}s)", reason=report.message, age=age
            )

    # --- servers --------------------------------------------------------------------------------------------------------
    def server_exchange(self, session: ServerSession) -> ClientExchange:
        """The proof for a server: `password=` of the entry, else auth_file, else the keys of a client's own SCRAM login."""
        worker = self._worker
        pool = session.pool
        entry = worker.config.database(pool.database.name)
        user = pool.user.name
        secret: Secret | None = None
        if entry is not None and entry.password is not None:
            secret = Secret.of(entry.password)
        else:
            secret = worker.users.get(user)
        keys = self._scram_keys.get(user) if pool.database.forced_user is None else None
        return ClientExchange(user, secret, keys, lambda: os.urandom(NONCE_SIZE))

    def retry_pause(self, session: ServerSession, report: Report) -> float:
        """Growing pauses with jitter, up to server_login_retry; the first success opens the gate again."""
        pool = session.pool
        pause = FIRST_RETRY_S * 2 ** min(int(pool.failures), 20)
        return float(min(pool.limits.server_login_retry, pause) * random.uniform(0.75, 1.0))
