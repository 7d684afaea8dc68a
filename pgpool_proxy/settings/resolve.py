"""What applies where user, database and `[pgbouncer]` may each say something: one function a setting.

Nobody else walks user > database > global. `user` is the pool's user (the forced user where there is one) for limits on
servers and for pool_mode, and the user who logged in for limits on clients and for client_idle_timeout.
"""

from __future__ import annotations

from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry, UserEntry

_NOBODY = UserEntry("")


def _user(config: Config, user: str) -> UserEntry:
    return config.users.get(user, _NOBODY)


# --- whom a login becomes ---------------------------------------------------------------------------------------------
def pool_user(database: DatabaseEntry, user: str) -> str:
    """The user that servers log in as: the forced user, else the one who logged in."""
    return user if database.user is None else database.user


def hosts(config: Config, database: DatabaseEntry) -> tuple[str, ...]:
    """Where the database is; no host= means unix_socket_dir. Empty when that is empty too."""
    if database.hosts:
        return database.hosts
    return (config.settings.unix_socket_dir,) if config.settings.unix_socket_dir else ()


# --- user > database > global -----------------------------------------------------------------------------------------
def pool_mode(config: Config, database: DatabaseEntry, user: str) -> str:
    return _user(config, user).pool_mode or database.pool_mode or config.settings.pool_mode


def session_state(config: Config, database: DatabaseEntry, user: str) -> str:
    return _user(config, user).session_state or database.session_state or config.settings.session_state


def pool_size(config: Config, database: DatabaseEntry, user: str) -> int:
    """0 = unlimited."""
    return _given(_user(config, user).pool_size, database.pool_size, config.settings.default_pool_size)


def reserve_pool_size(config: Config, database: DatabaseEntry, user: str) -> int:
    return _given(_user(config, user).reserve_pool_size, database.reserve_pool_size, config.settings.reserve_pool_size)


def query_wait_timeout(config: Config, database: DatabaseEntry, user: str) -> float:
    """Seconds; 0 = never, and a 0 at the user or the database counts."""
    entry = _user(config, user)
    if entry.query_wait_timeout is not None:
        return entry.query_wait_timeout
    if database.query_wait_timeout is not None:
        return database.query_wait_timeout
    return config.settings.query_wait_timeout


def peers(config: Config) -> dict[int, tuple[str, int, int]]:
    """Peer id -> (host, port, cancel requests at a time; 0 = unlimited)."""
    size = config.settings.default_pool_size
    return {number: (peer.host, peer.port, _given(None, peer.pool_size, size)) for number, peer in config.peers.items()}


# --- database > global ------------------------------------------------------------------------------------------------
def min_pool_size(config: Config, database: DatabaseEntry) -> int:
    return _given(None, database.min_pool_size, config.settings.min_pool_size)


def server_lifetime(config: Config, database: DatabaseEntry) -> float:
    """Seconds; 0 = once. A 0 at the database means that it says nothing."""
    return database.server_lifetime or config.settings.server_lifetime


def max_db_connections(config: Config, database: DatabaseEntry) -> int:
    """0 = unlimited. A 0 at the database means that it says nothing."""
    return database.max_db_connections or config.settings.max_db_connections


def max_db_client_connections(config: Config, database: DatabaseEntry) -> int:
    """0 = unlimited. A 0 at the database means that it says nothing."""
    return database.max_db_client_connections or config.settings.max_db_client_connections


def auth_user(config: Config, database: DatabaseEntry) -> str | None:
    return database.auth_user or config.settings.auth_user or None


def auth_query(config: Config, database: DatabaseEntry) -> str:
    return database.auth_query or config.settings.auth_query


def auth_dbname(config: Config, database: DatabaseEntry) -> str:
    """The entry to run auth_query in: the one of the client when nothing else is said."""
    return database.auth_dbname or config.settings.auth_dbname or database.name


# --- user > global; a 0 at the user means that it says nothing -------------------------------------------------------
def max_user_connections(config: Config, user: str) -> int:
    """0 = unlimited."""
    return _user(config, user).max_user_connections or config.settings.max_user_connections


def max_user_client_connections(config: Config, user: str) -> int:
    """0 = unlimited."""
    return _user(config, user).max_user_client_connections or config.settings.max_user_client_connections


def query_timeout(config: Config, user: str) -> float:
    """Seconds; 0 = never."""
    return _user(config, user).query_timeout or config.settings.query_timeout


def idle_transaction_timeout(config: Config, user: str) -> float:
    """Seconds; 0 = never."""
    return _user(config, user).idle_transaction_timeout or config.settings.idle_transaction_timeout


def transaction_timeout(config: Config, user: str) -> float:
    """Seconds; 0 = never."""
    return _user(config, user).transaction_timeout or config.settings.transaction_timeout


def client_idle_timeout(config: Config, user: str) -> float:
    """Seconds; 0 = never."""
    return _user(config, user).client_idle_timeout or config.settings.client_idle_timeout


def _given(user: int | None, database: int | None, otherwise: int) -> int:
    """The first that is given; 0 is a value."""
    if user is not None:
        return user
    return otherwise if database is None else database
