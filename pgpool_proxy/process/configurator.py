"""What the configuration allows databases, users and pools: settings/resolve.py, filled into the registry's objects."""

from __future__ import annotations

from typing import Protocol

from pgpool_proxy import log
from pgpool_proxy.pool.pool import IGNORE, POOL_MODES, SESSION, SESSION_STATES, Pool, PoolLimits
from pgpool_proxy.pool.registry import Database, Registry, User
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry

EMPTY_QUERY = "<empty>"
MAX_AUTO_NAME = 127  # characters; PostgreSQL's names have 63 bytes, but a stranger's may be as long as a StartupMessage


class ConfigSource(Protocol):
    """Where the configuration in force is found."""

    @property
    def config(self) -> Config: ...

    def known_parameters(self, pool: Pool) -> dict[bytes, bytes] | None:
        """What servers of the pool report, if another worker has learned it."""
        ...


class Configurator:
    """The registry's configurator; reads the configuration in force each time."""

    def __init__(self, source: ConfigSource) -> None:
        self._source = source

    def make_database(self, name: str, registry: Registry) -> Database | None:
        """The database for a name that is asked for the first time."""
        config = self._source.config
        entry = config.database(name)
        is_auto = name not in config.databases
        if entry is None or (is_auto and len(name) > MAX_AUTO_NAME):
            return None
        database = Database(name, registry)
        database.is_auto = is_auto
        if database.is_auto:
            log.get_logger().info(f"registered new auto-database: {name}")
        self.configure_database(database, entry)
        return database

    def configure_database(self, database: Database, entry: DatabaseEntry) -> None:
        config = self._source.config
        database.forced_user = entry.user
        database.max_connections = resolve.max_db_connections(config, entry)
        database.max_client_connections = resolve.max_db_client_connections(config, entry)

    def configure_user(self, user: User) -> None:
        config = self._source.config
        user.max_connections = resolve.max_user_connections(config, user.name)
        user.max_client_connections = resolve.max_user_client_connections(config, user.name)

    def configure_pool(self, pool: Pool) -> None:
        if pool.database.is_admin:
            return
        config = self._source.config
        settings = config.settings
        entry = config.database(pool.database.name)
        if entry is None:
            return  # removed: it is being closed
        user = pool.user.name
        pool.user.is_forced = pool.user.is_forced or entry.user is not None
        limits = pool.limits
        limits.pool_mode = POOL_MODES.index(resolve.pool_mode(config, entry, user))
        limits.session_state = SESSION_STATES.index(resolve.session_state(config, entry, user))
        limits.pool_size = resolve.pool_size(config, entry, user)
        limits.min_pool_size = resolve.min_pool_size(config, entry)
        limits.reserve_pool_size = resolve.reserve_pool_size(config, entry, user) if settings.reserve_pool_timeout > 0 else 0
        limits.reserve_pool_timeout = settings.reserve_pool_timeout
        limits.query_wait_timeout = resolve.query_wait_timeout(config, entry, user)
        limits.query_timeout = resolve.query_timeout(config, user)
        limits.transaction_timeout = resolve.transaction_timeout(config, user)
        limits.idle_transaction_timeout = resolve.idle_transaction_timeout(config, user)
        limits.client_idle_timeout = resolve.client_idle_timeout(config, user)
        limits.server_lifetime = resolve.server_lifetime(config, entry)
        limits.server_idle_timeout = settings.server_idle_timeout
        limits.server_login_retry = settings.server_login_retry
        limits.server_login_retry_backoff = settings.server_login_retry_backoff
        limits.server_check_delay = settings.server_check_delay
        limits.server_check_query = _check_query(settings.server_check_query)
        limits.server_reset_query = settings.server_reset_query.encode()
        limits.server_reset_query_always = settings.server_reset_query_always
        limits.server_round_robin = settings.server_round_robin
        limits.server_fast_close = settings.server_fast_close
        limits.query_wait_notify = float(settings.query_wait_notify)
        limits.max_prepared_statements = settings.max_prepared_statements
        limits.load_balance_hosts = entry.load_balance_hosts if len(entry.hosts) > 1 else None
        if pool.main is not None:
            _dedicate(limits)
        elif pool.server_parameters is None:
            pool.server_parameters = self._source.known_parameters(pool)

    def reserve_taken(self, pool: Pool) -> None:
        log.get_logger().info(
            f"taking connection from reserve_pool: {pool.database.name}/{pool.user.name}",
            database=pool.database.name,
            user=pool.user.name,
        )


def _dedicate(limits: PoolLimits) -> None:
    """What holds for a replication connection: a session with a server of its own, which streams for as long as it likes."""
    limits.pool_mode = SESSION
    limits.pool_size = 1
    limits.min_pool_size = 0
    limits.reserve_pool_size = 0
    limits.query_timeout = 0.0
    limits.transaction_timeout = 0.0
    limits.idle_transaction_timeout = 0.0
    limits.client_idle_timeout = 0.0
    limits.session_state = IGNORE
    limits.server_fast_close = True  # RECONNECT and changes of the entry end it at once


def _check_query(setting: str) -> bytes | None:
    """None: no check; an empty query for `<empty>`."""
    if not setting:
        return None
    return b"" if setting == EMPTY_QUERY else setting.encode()
