"""The entries of `[databases]`, `[users]` and `[peers]`: their keys, and the frozen objects that a line becomes.

An entry holds what its line says and nothing else: a value that is not given is None (or empty), and resolve.py, not
this module, decides what then applies. Knows no file reading. No repr and no error shows a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pgpool_proxy.settings.ini import Entry, pairs
from pgpool_proxy.settings.keys import INT_MAX, Key, Seconds, Text, Value, Whole, Word
from pgpool_proxy.settings.model import POOL_MODES, SESSION_STATES, SSL_MODES, unknown

NAME_MAX: Final = 63
"""PostgreSQL's NAMEDATALEN less its terminator."""
USER_NAME_MAX: Final = 127
"""PgBouncer's MAX_USERNAME less its terminator."""
RESERVED: Final = "pgbouncer"
AUTODB: Final = "*"
PEER_MAX: Final = 65535
LOAD_BALANCE: Final = ("disable", "round-robin")
SECRETS: Final = frozenset({"password"})


def _count(doc: str) -> Whole:
    """-1 is how PgBouncer itself writes "not given"."""
    return Whole(doc, low=-1, high=INT_MAX)


DATABASE_KEYS: Final[dict[str, Key]] = {
    "dbname": Text("name on the server; default: the entry's own name", required=True),
    "host": Text("host, address, /directory or @abstract, or a comma list; default: unix_socket_dir", required=True),
    "port": Whole("port on the server; default: 5432", low=1, high=65535),
    "user": Text("log in to the server as this user, whoever the client is: one pool for all", required=True),
    "password": Text("password of user; default: the one in auth_file", required=True, secret=True),
    "auth_user": Text("user that runs auth_query for this database", required=True),
    "auth_query": Text("auth_query for this database", required=True),
    "auth_dbname": Text("database entry that auth_query runs in", required=True),
    "pool_size": _count("server connections per pool"),
    "min_pool_size": _count("server connections kept per pool"),
    "reserve_pool_size": _count("further server connections per pool for clients that wait too long"),
    "connect_query": Text("query run on every new server connection; its errors are logged and ignored", required=True),
    "pool_mode": Word("when a server goes back to the pool", words=POOL_MODES),
    "session_state": Word("what to do about state that is left on a shared server", words=SESSION_STATES),
    "query_wait_timeout": Seconds("disconnect a client that waited that long for a server"),
    "load_balance_hosts": Word("when a host list moves on: every connection, or after a failure", words=LOAD_BALANCE),
    "max_db_connections": _count("server connections of this database; 0 = as in [pgbouncer]"),
    "max_db_client_connections": _count("client connections to this database; 0 = as in [pgbouncer]"),
    "server_lifetime": Seconds("close a released server that is older; 0 = as in [pgbouncer]"),
    "client_encoding": Text("sent to the server at login", required=True),
    "datestyle": Text("sent to the server at login", required=True),
    "timezone": Text("sent to the server at login", required=True),
    "application_name": Text("sent to the server at login", required=True),
    "sslmode": Word("TLS with the servers of this database; default: server_tls_sslmode", words=SSL_MODES),
    "sslrootcert": Text("root certificates for this database; default: server_tls_ca_file", required=True),
    "sslcert": Text("certificate shown to the servers of this database; default: server_tls_cert_file", required=True),
    "sslkey": Text("private key of sslcert; default: server_tls_key_file", required=True),
}  # fmt: skip
USER_KEYS: Final[dict[str, Key]] = {
    "pool_size": _count("server connections of every pool of this user"),
    "reserve_pool_size": _count("further server connections of every pool of this user"),
    "pool_mode": Word("when a server goes back to this user's pools", words=POOL_MODES),
    "session_state": Word("what to do about state that is left on this user's servers", words=SESSION_STATES),
    "max_user_connections": _count("server connections of this user; 0 = as in [pgbouncer]"),
    "max_user_client_connections": _count("client connections of this user; 0 = as in [pgbouncer]"),
    "query_timeout": Seconds("close client and server when a query runs longer; 0 = as in [pgbouncer]"),
    "query_wait_timeout": Seconds("disconnect a client of this user that waited that long for a server"),
    "idle_transaction_timeout": Seconds("close a client idle in a transaction that long; 0 = as in [pgbouncer]"),
    "transaction_timeout": Seconds("close a client whose transaction lasts longer; 0 = as in [pgbouncer]"),
    "client_idle_timeout": Seconds("close a client that was idle that long; 0 = as in [pgbouncer]"),
}
PEER_KEYS: Final[dict[str, Key]] = {
    "host": Text("host name, address or /directory of the peer", required=True),
    "port": Whole("port of the peer; default: 6432", low=1, high=65535),
    "pool_size": _count("cancel requests forwarded at the same time; default: default_pool_size"),
}
ALIASES: Final = {"reserve_pool": "reserve_pool_size"}


@dataclass(frozen=True, slots=True)
class DatabaseEntry:
    """A line of `[databases]`. `name` is `*` and `dbname` may be empty in the template of automatic databases."""

    name: str
    dbname: str = ""
    hosts: tuple[str, ...] = ()
    port: int = 5432
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    auth_user: str | None = None
    auth_query: str | None = None
    auth_dbname: str | None = None
    pool_size: int | None = None
    min_pool_size: int | None = None
    reserve_pool_size: int | None = None
    connect_query: str | None = field(default=None, repr=False)
    pool_mode: str | None = None
    session_state: str | None = None
    query_wait_timeout: float | None = None
    load_balance_hosts: str = "round-robin"
    max_db_connections: int | None = None
    max_db_client_connections: int | None = None
    server_lifetime: float | None = None
    client_encoding: str | None = None
    datestyle: str | None = None
    timezone: str | None = None
    application_name: str | None = None
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    file: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)

    def for_name(self, name: str) -> DatabaseEntry:
        """The entry of a database that a client asked for and that only the `*` template covers."""
        return replace(self, name=name, dbname=self.dbname or name)


@dataclass(frozen=True, slots=True)
class UserEntry:
    """A line of `[users]`: limits for a user. It gives no password."""

    name: str
    pool_size: int | None = None
    reserve_pool_size: int | None = None
    pool_mode: str | None = None
    session_state: str | None = None
    max_user_connections: int | None = None
    max_user_client_connections: int | None = None
    query_timeout: float | None = None
    query_wait_timeout: float | None = None
    idle_transaction_timeout: float | None = None
    transaction_timeout: float | None = None
    client_idle_timeout: float | None = None
    file: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """A line of `[peers]`: another pooler that cancel requests may be meant for."""

    id: int
    host: str
    port: int = 6432
    pool_size: int | None = None
    file: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)


def database(entry: Entry) -> DatabaseEntry:
    """The database of a `[databases]` line. Raises ConfigError."""
    name = _name(entry, NAME_MAX)
    if name == RESERVED:
        raise entry.error("the name pgbouncer is reserved for the console")
    given = _values(entry, DATABASE_KEYS)
    host = given.pop("host", None)
    hosts = tuple(item.strip() for item in host.split(",")) if isinstance(host, str) else ()
    if "" in hosts:
        raise entry.error("host: expected a comma list of hosts, one of them is empty")
    if given.get("auth_dbname") == RESERVED:
        raise entry.error("auth_dbname: pgbouncer is reserved for the console")
    given.setdefault("dbname", "" if name == AUTODB else name)
    return DatabaseEntry(name, hosts=hosts, file=entry.file, line=entry.line, **given)  # type: ignore[arg-type]  # by key


def user(entry: Entry) -> UserEntry:
    """The user of a `[users]` line. Raises ConfigError."""
    given = _values(entry, USER_KEYS)
    return UserEntry(_name(entry, USER_NAME_MAX), file=entry.file, line=entry.line, **given)  # type: ignore[arg-type]  # by key


def peer(entry: Entry) -> PeerEntry:
    """The peer of a `[peers]` line. Raises ConfigError."""
    text = entry.key or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PEER_MAX):
        raise entry.error(f"expected a peer's id from 1 to {PEER_MAX}")
    given = _values(entry, PEER_KEYS)
    if "host" not in given:
        raise entry.error("host= is missing")
    return PeerEntry(int(text), file=entry.file, line=entry.line, **given)  # type: ignore[arg-type]  # by key


def _name(entry: Entry, limit: int) -> str:
    name = entry.key or ""
    if len(name.encode("utf-8", "surrogateescape")) > limit:
        raise entry.error(f"a name of more than {limit} bytes")
    return name


def _values(entry: Entry, keys: Mapping[str, Key]) -> dict[str, Value]:
    """The pairs of a line, read by `keys`; -1 counts as not given."""
    try:
        found = pairs(entry.value)
    except ValueError as exc:
        raise entry.error(str(exc)) from None
    given: dict[str, Value] = {}
    previous = ""
    for name, text in found:
        name = ALIASES.get(name, name)
        key = keys.get(name)
        if key is None and previous in SECRETS:
            raise entry.error(f"unknown key after {previous}= (a value with blanks needs single quotes)")
        if key is None:
            raise entry.error(unknown("key", name, keys))
        try:
            value = key.parse(text)
        except ValueError as exc:
            raise entry.error(f"{name}: {exc}") from None
        previous = name
        given[name] = None if value == -1 else value
    return given
