"""One process put together: configuration, registry, sessions, sockets, and the clock that drives the janitor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pgpool_proxy import errors, log
from pgpool_proxy.admin.console import CONSOLE_PARAMETERS
from pgpool_proxy.admin.control import Control, Done
from pgpool_proxy.auth.exchange import Secret
from pgpool_proxy.auth.userlist import parse_userlist
from pgpool_proxy.auth.usual import UsualSecrets
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.net.client_connection import ClientConnection, Gate
from pgpool_proxy.net.connector import Connector
from pgpool_proxy.net.dns import Dns
from pgpool_proxy.net.listener import Listener
from pgpool_proxy.net.tasks import Tasks
from pgpool_proxy.net.tls import ClientSetup, ClientTls, ServerSetup, ServerTls
from pgpool_proxy.pool import janitor as orders
from pgpool_proxy.pool.cancel_keys import CancelKeys
from pgpool_proxy.pool.janitor import Janitor, Order
from pgpool_proxy.pool.ledger import LocalLedger
from pgpool_proxy.pool.pool import STATEMENT, Pool
from pgpool_proxy.pool.registry import Database, Registry
from pgpool_proxy.pool.states import SV_IDLE, SV_USED
from pgpool_proxy.process.configurator import Configurator
from pgpool_proxy.process.control import WorkerControl
from pgpool_proxy.process.handover import HandOver
from pgpool_proxy.process.host import ADMIN_DATABASE, WorkerHost
from pgpool_proxy.process.observation import Observation
from pgpool_proxy.process.receiver import WorkerReceiver
from pgpool_proxy.process.rules import RuleFiles, read_rules
from pgpool_proxy.process.statistics import Statistics
from pgpool_proxy.process.systemd import Systemd
from pgpool_proxy.process.takeover import TakeOver
from pgpool_proxy.process.watch import Watch
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.parameters import TrackedParameters
from pgpool_proxy.session.peers import Peers
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings import config as configuration
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import AUTODB
from pgpool_proxy.settings.reload import ReloadPlan, plan
from pgpool_proxy.wire import backend

if TYPE_CHECKING:
    from pgpool_proxy.process.membership import Membership

TICK_S: Final = 0.1  # granularity of all timeouts (PgBouncer: 0.333)
QUEUED: Final = Report("No server connection available in postgres backend, client being queued", "00000", "NOTICE")


class NamedFiles(NamedTuple):
    """What the files hold that a configuration names, all but users."""

    rules: RuleFiles
    client_tls: ClientSetup
    server_tls: dict[str, ServerSetup | None]


class Worker:
    """See the module's docstring. `run` returns when the process has to end."""

    def __init__(
        self,
        config: Config,
        overrides: Mapping[str, str],
        environ: Mapping[str, str],
        membership: Membership | None = None,
    ) -> None:
        self.config: Config = config
        self.membership: Membership | None = membership  # of several workers that are one pool; None: it is all there is
        self._overrides = overrides
        self._environ = environ
        self.started_at: float = time()
        self._wall_offset = time() - monotonic()
        self.tasks = Tasks()
        self.systemd = Systemd(environ if membership is None else {})
        self.client_tls = ClientTls()
        self.server_tls = ServerTls()
        self.dns = Dns(self.tasks, self.addresses_gone)
        self.connector = Connector(self, self.tasks, self.server_tls, self.dns)
        self.configurator = Configurator(self)
        ledger = LocalLedger() if membership is None else membership.leases.ledger
        self.registry = Registry(ledger, self.connector, self.configurator)
        self.keys = CancelKeys(os.urandom, config.settings.peer_id)
        self.observation = Observation(self)
        self.host = WorkerHost(self)
        self.watch = Watch(self)
        tracked = [name.strip().encode() for name in config.settings.track_extra_parameters.split(",")]
        self.context = Context(self.host, self.registry, self.keys, TrackedParameters(tracked))
        self.connector.use(self.context)
        self.peers = Peers(self.context, self.connector.send_cancel)
        self.janitor = Janitor(self.registry)
        self.listener = Listener(self.context, lambda connection, _: self.take(connection, self.listener))
        self._arriving = 0
        self.stats = Statistics(self.registry)
        self.control = WorkerControl(self)
        self.console_control: Control = self.control
        self.users: dict[str, Secret] = {}
        self.usual = UsualSecrets()  # of auth_file
        self.admin_users: frozenset[str] = frozenset()
        self.stats_users: frozenset[str] = frozenset()
        self.closing: Report | None = None  # set while shutting down: what new clients are told
        self.is_taking_over = False
        self._waits_for_servers = False
        self._stopped: asyncio.Event | None = None
        self._stats_due = 0.0
        if membership is not None:
            membership.join(self)
        self._make_admin_database()
        self.read_users()
        self.apply(config)

    # --- clocks ---------------------------------------------------------------------------------------------------------
    def clock(self) -> float:
        return monotonic()

    def wall(self, at: float) -> datetime:
        """A time of the monotonic clock as one of the calendar, in local time."""
        return datetime.now().astimezone() - timedelta(seconds=monotonic() - at)

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, call)

    def server_connected(self, session: ServerSession, descriptor: int) -> None:
        """Told by the connector: a connection to a server stands."""
        self.host.server_connected(session)
        if self.membership is not None:
            self.membership.leases.connected(session, descriptor)

    def known_parameters(self, pool: Pool) -> dict[bytes, bytes] | None:
        """Told to the configurator: what servers of a new pool report, if another worker has learned it."""
        return self.membership.known_parameters(pool) if self.membership is not None else None

    # --- configuration ----------------------------------------------------------------------------------------------------
    def _make_admin_database(self) -> None:
        database = Database(ADMIN_DATABASE, self.registry)
        database.is_admin = True
        database.forced_user = ADMIN_DATABASE
        self.registry.databases[ADMIN_DATABASE] = database
        pool = self.registry.pool(database, ADMIN_DATABASE)
        pool.limits.pool_mode = STATEMENT
        pool.limits.pool_size = 2
        pool.server_parameters = dict(CONSOLE_PARAMETERS)

    def read_users(self) -> None:
        """auth_file, and the users that DATABASE_URL implies. A broken line is logged; what stood before it counts."""
        users = {name: Secret.of(password) for name, password in self.config.implied_users.items() if password}
        name = self.config.settings.auth_file
        if name:
            path = configuration.beside(self.config, name)
            try:
                text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
            except OSError as error:
                log.get_logger().error(f"could not open auth_file {path}: {error.strerror}")
            else:
                found, problems = parse_userlist(text, path)
                users |= found
                for problem in problems:
                    log.get_logger().error(f"broken auth file: {problem}")
        self.users = users
        self.usual = UsualSecrets()
        for secret in users.values():
            self.usual.count(secret)
        self.host.forget_keys()

    def read_files(self, config: Config) -> NamedFiles:
        """Changes nothing. Raises ConfigError when a file that the configuration names cannot be used."""
        return NamedFiles(read_rules(config), self.client_tls.read(config), self.server_tls.read(config))

    def apply(self, config: Config, files: NamedFiles | None = None) -> None:
        """Put a configuration into force; `files`: they have been read. Raises ConfigError, changing nothing, when a file that
        it names cannot be used."""
        rules, client_tls, server_tls = files or self.read_files(config)
        if _about_log(config) != _about_log(self.config):
            log.configure(config.settings)
        self.config = config
        self.host.logins.rules.use(rules)
        self.host.configure(config)
        self.observation.configure(config)
        self.client_tls.use(client_tls)
        stale = self.server_tls.use(server_tls)
        settings = config.settings
        context = self.context
        context.max_packet_size = settings.max_packet_size
        context.disable_pqexec = settings.disable_pqexec
        context.ignored_parameters = frozenset(_names(settings.ignore_startup_parameters))
        context.application_name_add_host = settings.application_name_add_host
        context.cancel_on_disconnect = settings.cancel_on_disconnect
        context.statements.limit = settings.max_prepared_memory
        context.newest_minor = int(settings.protocol_version_max.removeprefix("3."))
        context.track_startup_parameters = settings.track_startup_parameters
        context.login_notify_message = settings.login_notify_message
        self.dns.configure(settings)
        context.slow_query_us = settings.log_slow_queries * 1000
        wants_texts = settings.log_slow_queries > 0 or settings.leak_detection_threshold > 0
        context.text_chars = settings.log_statement_chars if wants_texts else 0
        self.listener.tune(settings)
        self.registry.max_client_conn = settings.max_client_conn
        self.janitor.client_login_timeout = settings.client_login_timeout
        self.janitor.server_connect_timeout = settings.server_connect_timeout
        self.janitor.cancel_wait_timeout = settings.cancel_wait_timeout
        self.peers.configure(resolve.peers(config), settings.cancel_wait_timeout, monotonic())
        self.janitor.pool_idle_timeout = settings.pool_idle_timeout
        self.janitor.autodb_idle_timeout = settings.autodb_idle_timeout
        self.admin_users = frozenset(_names(settings.admin_users))
        self.stats_users = frozenset(_names(settings.stats_users))
        for database in self.registry.databases.values():
            entry = config.database(database.name)
            if entry is not None and not database.is_admin:
                self.configurator.configure_database(database, entry)
        self.registry.reconfigure()
        for name, entry in config.databases.items():
            database_of_entry = self.registry.database(name)
            if entry.user is not None and database_of_entry is not None and resolve.min_pool_size(config, entry) > 0:
                self.registry.pool(database_of_entry, entry.user)  # it needs no client then
        for database in list(self.registry.databases.values()):
            if database.name in stale or (database.is_auto and AUTODB in stale):
                self.control.reconnect_database(database, errors.DATABASE_CHANGED, monotonic())

    def reload(self) -> None:
        """RELOAD: read everything again. Raises ConfigError; the old state stays in force then."""
        log.reopen()
        self.systemd.reloading()
        try:
            path = self.config.settings.conffile or self.config.path
            fresh = configuration.load(path, self._overrides, self._environ)
            self.carry_out(plan(self.config, fresh))
        finally:
            self.systemd.ready()

    def carry_out(self, change: ReloadPlan, files: NamedFiles | None = None) -> None:
        """RELOAD, when the configuration has been read. Raises ConfigError; the old state stays in force then."""
        now = monotonic()
        self.apply(change.config, files)
        if change.auth_file_changed or self.config.implied_users:
            self.read_users()
        else:
            self.host.logins.forget()
        for name in change.databases_removed:
            database = self.registry.databases.get(name)
            if database is not None:
                self.control.remove_database(database, now)
        stale = set(change.close_needed)
        if change.autodb_changed:
            stale |= {name for name, database in self.registry.databases.items() if database.is_auto}
        for name in stale:
            database = self.registry.databases.get(name)
            if database is not None:
                self.control.reconnect_database(database, errors.DATABASE_CHANGED, now)

    # --- life -----------------------------------------------------------------------------------------------------------
    async def run(self, ready: Callable[[], None]) -> None:
        """Listen and serve until told to stop. Raises ConfigError when it cannot even begin."""
        self._stopped = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(loop_failed)
        self._stats_due = monotonic() + self.config.settings.stats_period
        if self.membership is None:
            await self._listen()
        ready()
        self.systemd.ready()
        if self.membership is None:
            self.tasks.start(self.observation.listen(self.config.settings), "metrics")
        ticking = self.tasks.start(self._tick_forever(), "janitor")
        try:
            await self._stopped.wait()
        finally:
            ticking.cancel()
            self._close_everybody()
            self.listener.close()
            self.observation.close()
            await self.tasks.stop()
            self.host.close()
            await asyncio.sleep(0)  # what was written last goes out

    async def _listen(self) -> None:
        """Raises ConfigError."""
        inherited = self.systemd.sockets()
        if inherited:
            await self.listener.adopt(inherited, self.config.settings, "from systemd", own_files=False)
        elif not self.listener.sockets:  # else they were taken over
            await self.listener.open(self.config.settings)
        for warning in self.config.warnings:
            log.get_logger().warning(warning)

    def _close_everybody(self) -> None:
        now = monotonic()
        self.registry.closing = errors.SHUTTING_DOWN
        self.peers.close(now)
        for client in self.registry.all_clients():
            if isinstance(client, ClientSession):
                client.disconnect(self.closing or errors.SHUTTING_DOWN, now)
        for server in self.registry.all_servers():
            server.disconnect(errors.SHUTDOWN, now)

    async def _tick_forever(self) -> None:
        while True:
            due = monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            try:
                now = monotonic()
                self.tick(now)
                self.observation.tick(now, now - due)
            except Exception as error:
                log.get_logger().error(f"the janitor failed: {error}", error=error)

    def tick(self, now: float) -> None:
        """Everything that time brings."""
        for order in self.janitor.tick(now):
            try:
                self._obey(order, now)
            except Exception as error:  # the others' are carried out
                log.get_logger().error(f"{order!r} failed: {error}", error=error)
        self.control.tick(now)
        self.dns.tick(now)
        self.watch.tick(now)
        if self.membership is not None:
            self.membership.leases.ledger.tick(now)
        if now >= self._stats_due:
            period = self.config.settings.stats_period
            self._stats_due = now + period
            self.stats.snapshot(now)
            if self.config.settings.log_stats and self.membership is None:
                log.get_logger().info(self.stats.line())
        if self.closing is not None:
            self._look_for_end()

    def _obey(self, order: Order, now: float) -> None:
        if order.action == orders.CLOSE_CLIENT and order.client is not None:
            order.client.disconnect(order.report, now)
        elif order.action == orders.CLOSE_SERVER and order.server is not None:
            order.server.disconnect(order.report, now)
        elif order.action == orders.NOTIFY_CLIENT and isinstance(order.client, ClientSession):
            order.client.write(backend.notice_response(QUEUED))
        elif order.action == orders.GROW and order.pool is not None:
            order.pool.grow(now)
        elif order.action == orders.DROP_POOL and order.pool is not None:
            pool = order.pool
            log.get_logger().info(
                f"cleaning up idle pool for user {pool.user.name} on db {pool.database.name} because: pool idle timeout "
                f"(age= {int(now - pool.last_used)}s)"
            )
            self.stats.keep(pool)
            self.registry.drop_pool(pool)
            self.context.forget_pool(pool)
        elif order.action == orders.DROP_DATABASE and order.database is not None:
            self.control.remove_database(order.database, now)

    def addresses_gone(self, host: str, gone: frozenset[str]) -> None:
        """A host name has other addresses now: servers at those that it has no more are obsolete."""
        log.get_logger().info(f"DNS: {host} is not at {', '.join(sorted(gone))} any more")
        now = monotonic()
        for server in self.registry.all_servers():
            if isinstance(server, ServerSession) and server.host == host and server.address in gone:
                server.close_needed = True
                if server.state in (SV_IDLE, SV_USED):
                    server.disconnect(errors.OBSOLETE_CONNECTION, now)

    def take(self, connection: socket.socket, gate: Gate, vanished: Callable[[], None] | None = None) -> None:
        """A connection that was accepted by hand; `vanished`: it has gone already."""
        self._arriving += 1
        self.tasks.start(self._connect(connection, gate, vanished), "client")

    @property
    def has_arrivals(self) -> bool:
        """Connections that are no sessions yet."""
        return self._arriving > 0

    async def _connect(self, connection: socket.socket, gate: Gate, vanished: Callable[[], None] | None) -> None:
        protocol = cast(asyncio.Protocol, ClientConnection(gate))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            if vanished is not None:
                vanished()
        finally:
            self._arriving -= 1

    # --- online restart ---------------------------------------------------------------------------------------------------
    def stop_accepting(self) -> None:
        """SUSPEND."""
        self.listener.stop_accepting()

    def go_on_accepting(self) -> None:
        """RESUME."""
        self.tasks.start(self.listener.go_on_accepting(), "accepting again")

    def hand_over(self, session: ClientSession, done: Done) -> HandOver:
        """The console of a new process has said SHOW FDS."""
        hand_over = HandOver(self, session, done)
        hand_over.start()
        return hand_over

    async def take_over(self, ended: Callable[[], None]) -> bool:
        """-R: before `run`. False: there is no process to take over from. `ended` is called when it has ended. Raises
        ConfigError."""
        if self.systemd.sockets():
            raise ConfigError("an online restart is not for a service whose sockets systemd holds", key="-R")
        take_over = TakeOver(WorkerReceiver(self))
        if not await take_over.begin():
            return False
        self.is_taking_over = True

        def is_over() -> None:
            self.is_taking_over = False
            ended()

        self.tasks.start(take_over.go_on(is_over), "takeover")
        return True

    # --- shutting down ------------------------------------------------------------------------------------------------
    def shutdown(self, mode: str) -> None:
        """`now`, `wait_for_servers` (SIGINT) or `wait_for_clients` (SIGTERM). A second call ends at once, and so does the first
        while the process is suspended or taking over from another.

        With shutdown_ready_delay, /readyz says first that this process is going, and clients come in for that long.
        """
        is_moving = self.control.is_suspended or self.is_taking_over
        if mode == "now" or self.is_shutting_down or is_moving:
            self._stop()
            return
        delay = self.config.settings.shutdown_ready_delay
        if delay > 0:
            self.observation.is_draining = True
            log.get_logger().info(f"not ready any more, shutting down in {delay:g} s")
            self.call_later(delay, partial(self.begin_shutdown, mode))
        else:
            self.begin_shutdown(mode)

    @property
    def is_shutting_down(self) -> bool:
        """From the first signal or SHUTDOWN on."""
        return self.closing is not None or self.observation.is_draining

    def begin_shutdown(self, mode: str) -> None:
        """`wait_for_servers` or `wait_for_clients`, without the delay. The first may follow the second: it waits for less."""
        self.systemd.stopping(f"Waiting for {mode.removeprefix('wait_for_')}")
        is_first, self.closing = self.closing is None, errors.SHUTTING_DOWN
        if mode == "wait_for_servers":
            self._waits_for_servers = True
            self.registry.closing = errors.SERVER_SHUTTING_DOWN
            self.registry.paused = True
            self._send_waiting_away(monotonic())
        if is_first:
            self.listener.close_tcp(self._look_for_end)

    def may_go_over_to(self, mode: str) -> bool:
        """Is the shutdown that is under way this one, or can it become it? Whom wait_for_servers has sent away stays away, and
        what the delay is for cannot be had twice."""
        return self.closing is not None and (mode == "wait_for_servers" or not self._waits_for_servers)

    def refusal(self, is_unix: bool, is_console: bool) -> Report | None:
        """What a client that logs in is told while shutting down; None: it may. Who has come by TCP was there before, and
        wait_for_clients waits for it; by the unix socket, only the console lets in."""
        if is_unix:
            return None if is_console else self.closing
        return self.closing if self._waits_for_servers else None

    def _send_waiting_away(self, now: float) -> None:
        for pool in list(self.registry.pools.values()):
            for client in pool.waiting.members() + pool.waiting_login.members():
                if isinstance(client, ClientSession):
                    client.disconnect(errors.SERVER_SHUTTING_DOWN, now)
            for server in pool.idle.members():
                if isinstance(server, ServerSession):
                    server.disconnect(errors.PAUSE_MODE, now)

    def _look_for_end(self) -> None:
        if self.has_arrivals or any(listening.is_tcp for listening in self.listener.sockets):
            return  # those who are at the door are told something yet
        if self._waits_for_servers:
            if not any(pool.server_count for pool in self.registry.pools.values()):
                self._drained("server connections dropped, exiting")
        elif not self._has_clients():
            self._drained("client connections dropped, exiting")

    def _has_clients(self) -> bool:
        """Those who are logging in, too, unless they came by the unix socket: that is for the console now."""
        if any(pool.client_count for pool in self.registry.pools.values() if not pool.database.is_admin):
            return True
        logins = self.registry.login_clients.members()
        return any(isinstance(client, ClientSession) and not client.is_unix for client in logins)

    def _drained(self, message: str) -> None:
        """Of several workers, the last one that is done ends them all: a console may be anywhere."""
        if self.membership is not None:
            self.membership.drained()
        else:
            log.get_logger().info(message)
            self._stop()

    def _stop(self) -> None:
        if self._stopped is not None:
            self.systemd.stopping("Exiting")
            self._stopped.set()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _about_log(config: Config) -> tuple[object, ...]:
    """The settings that the log obeys."""
    settings = config.settings
    return (
        settings.logfile,
        settings.verbose,
        settings.log_format,
        settings.syslog,
        settings.syslog_ident,
        settings.syslog_facility,
    )


def loop_failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What no connection and no task has caught: the loop goes on."""
    error = context.get("exception")
    log.get_logger().error(f"internal error: {context.get('message', error)}", error=error)
