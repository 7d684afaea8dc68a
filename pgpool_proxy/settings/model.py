"""`Settings`: every `[pgbouncer]` key with its name, type, default and metadata. The one list that the loader, SHOW CONFIG,
SET, RELOAD, docs/config.md and config/pgpool_proxy.ini follow.

Adding a key is adding one line: type, metadata (keys.py), default. Tests then ask for its row in the docs and the sample file.
Knows no file: values arrive in layers (command line, environment, ini), through pydantic-settings' sources. Knows no databases
(entries.py) and decides nothing between user, database and global (resolve.py). Over 200 lines because a key is a line.
"""

# ruff: noqa: E501 - a key is one line, whatever its length

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Annotated, Final, Literal, TypeAlias, get_args

from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pgpool_proxy.auth.exchange import parse_require_auth
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.keys import Flag, Key, Seconds, Text, Value, Whole, Word
from pgpool_proxy.settings.listen import listen_addresses

PoolMode: TypeAlias = Literal["session", "transaction", "statement"]
SessionState: TypeAlias = Literal["ignore", "warn", "reset", "pin"]
AuthType: TypeAlias = Literal["any", "trust", "plain", "md5", "cert", "hba", "ldap", "pam", "scram-sha-256"]
SslMode: TypeAlias = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
TlsNegotiation: TypeAlias = Literal["postgres", "direct"]
ProtocolVersion: TypeAlias = Literal["3.0", "3.2"]
LogFormat: TypeAlias = Literal["text", "json"]
Facility: TypeAlias = Literal[
    "auth", "authpriv", "cron", "daemon", "ftp", "kern", "local0", "local1", "local2", "local3", "local4", "local5",
    "local6", "local7", "lpr", "mail", "news", "syslog", "user", "uucp",
]  # fmt: skip

POOL_MODES: Final[tuple[str, ...]] = get_args(PoolMode)
SESSION_STATES: Final[tuple[str, ...]] = get_args(SessionState)
AUTH_TYPES: Final[tuple[str, ...]] = get_args(AuthType)
SSL_MODES: Final[tuple[str, ...]] = get_args(SslMode)
TLS_NEGOTIATIONS: Final[tuple[str, ...]] = get_args(TlsNegotiation)
PROTOCOL_VERSIONS: Final[tuple[str, ...]] = get_args(ProtocolVersion)
FACILITIES: Final[tuple[str, ...]] = get_args(Facility)

ENVIRONMENT_PREFIX: Final = "PGPOOL_PROXY_"
AUTH_QUERY: Final = (
    "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END "
    "FROM pg_authid WHERE rolname=$1 AND rolcanlogin"
)
PORT: Final = 65535
PEER_ID: Final = 16383

_environment: ContextVar[Mapping[str, str]] = ContextVar("environment")
_layers: ContextVar[tuple[Mapping[str, Value], ...]] = ContextVar("layers")


class _Environment(EnvSettingsSource):
    """The environment that the caller handed in; never os.environ behind its back."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in _environment.get({}).items()}


class Settings(BaseSettings):
    """The values of one `[pgbouncer]` section. `Settings()` is the defaults; the environment is read by `load` alone."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True)

    # fmt: off
    admin_users: Annotated[str, Text("users that may run every console command, a comma list")] = ""
    application_name_add_host: Annotated[bool, Flag("append the client's address and port to application_name at login")] = False
    auth_dbname: Annotated[str | None, Text("database entry to run auth_query in; not pgbouncer", unset=True)] = None
    auth_failure_ban: Annotated[float, Seconds("refuse an address for that long after 10 failed logins in a row; 0 = never", own=True)] = 0.0
    auth_failure_delay: Annotated[float, Seconds("tell a client that much later that its login failed; 0 = at once", own=True)] = 0.0
    auth_file: Annotated[str | None, Text("file with the users and their passwords or secrets", unset=True)] = None
    auth_hba_file: Annotated[str, Text("HBA file, read when auth_type is hba")] = ""
    auth_ident_file: Annotated[str | None, Text("user name maps, read when auth_type is hba", unset=True)] = None
    auth_ldap_options: Annotated[str | None, Text("options for auth_type ldap", unset=True, secret=True)] = None
    auth_query: Annotated[str, Text("query for the secret of a user who is not in auth_file: one argument, two columns")] = AUTH_QUERY
    auth_query_cache_ttl: Annotated[float, Seconds("how long an answer of auth_query is kept; 0 = asked at every login", own=True)] = 0.0
    auth_type: Annotated[AuthType, Word("how clients prove who they are", words=AUTH_TYPES)] = "md5"
    auth_user: Annotated[str | None, Text("user that runs auth_query", unset=True)] = None
    autodb_idle_timeout: Annotated[float, Seconds("forget a database made from * when it was idle that long")] = 3600.0
    cancel_on_disconnect: Annotated[bool, Flag("cancel the query of a client that vanishes, roll back, and keep its server", own=True)] = True
    cancel_wait_timeout: Annotated[float, Seconds("drop a cancel request that waited that long for a connection; 0 = never")] = 10.0
    client_idle_timeout: Annotated[float, Seconds("close a client that was idle that long outside of a transaction; 0 = never")] = 0.0
    client_login_timeout: Annotated[float, Seconds("close a client that has not logged in after that long; 0 = never")] = 60.0
    client_tls13_ciphers: Annotated[str | None, Text("TLS 1.3 cipher suites for clients, OpenSSL syntax", unset=True)] = None
    client_tls_ca_file: Annotated[str, Text("root certificates that client certificates are checked against")] = ""
    client_tls_cert_file: Annotated[str, Text("certificate shown to clients")] = ""
    client_tls_ciphers: Annotated[str, Text("TLS 1.2 ciphers for clients, OpenSSL syntax; default, secure, fast, normal, all")] = "default"
    client_tls_dheparams: Annotated[str, Text("DHE parameters for clients: none, auto, legacy", effect=False)] = "auto"
    client_tls_ecdhcurve: Annotated[str, Text("ECDH curve for clients: none, auto or a curve's name")] = "auto"
    client_tls_key_file: Annotated[str, Text("private key of client_tls_cert_file")] = ""
    client_tls_protocols: Annotated[str, Text("TLS versions for clients: a list of tlsv1.0 to tlsv1.3, all, secure")] = "secure"
    client_tls_sslmode: Annotated[SslMode, Word("TLS with clients", words=SSL_MODES)] = "disable"
    conffile: Annotated[str | None, Text("file that the next RELOAD reads", unset=True)] = None
    default_pool_size: Annotated[int, Whole("server connections per pool (database and user); 0 = unlimited")] = 20
    disable_pqexec: Annotated[bool, Flag("disconnect clients that use the simple query protocol", changeable=False)] = False
    dns_max_ttl: Annotated[float, Seconds("how long a host name's addresses are kept")] = 15.0
    dns_nxdomain_ttl: Annotated[float, Seconds("how long a failed host name lookup is kept")] = 15.0
    dns_zone_check_period: Annotated[float, Seconds("how often the serials of host names' zones are asked for; 0 = never")] = 0.0
    idle_transaction_timeout: Annotated[float, Seconds("close a client that is idle in a transaction that long; 0 = never")] = 0.0
    ignore_startup_parameters: Annotated[str, Text("startup parameters to ignore, a comma list; options = all unknown ones in options")] = ""
    job_name: Annotated[str, Text("name of the Windows service", changeable=False, effect=False)] = "pgbouncer"
    leak_detection_threshold: Annotated[float, Seconds("log who holds a server in a transaction for that long; 0 = off", own=True)] = 0.0
    listen_addr: Annotated[str, Text("addresses or host names to listen on, a comma list, * = all; addr:port listens on a port of its own; empty = unix socket only", changeable=False)] = ""
    listen_backlog: Annotated[int, Whole("connections that the kernel queues for accept", changeable=False)] = 128
    listen_port: Annotated[int, Whole("port to listen on, TCP and unix socket", low=1, high=PORT, changeable=False)] = 6432
    log_connections: Annotated[bool, Flag("log logins")] = True
    log_disconnections: Annotated[bool, Flag("log disconnections and their reasons")] = True
    log_format: Annotated[LogFormat, Word("text = PgBouncer's lines, json = an object a line", words=("text", "json"), own=True)] = "text"
    log_long_waits: Annotated[float, Seconds("log what clients wait for when the first of a pool has waited that long; 0 = off", own=True)] = 0.0
    log_pooler_errors: Annotated[bool, Flag("log the errors that are sent to clients")] = True
    log_slow_queries: Annotated[int, Whole("log queries that take that many milliseconds; 0 = off", own=True)] = 0
    log_statement_chars: Annotated[int, Whole("characters of the statement that the log shows with slow queries and held servers; 0 = none", high=10_000, own=True)] = 200
    log_stats: Annotated[bool, Flag("log the statistics every stats_period")] = True
    login_notify_message: Annotated[str, Text("NOTICE sent to every client after login; empty = none")] = ""
    logfile: Annotated[str, Text("log file, appended to, opened again at RELOAD; empty = none")] = ""
    max_client_conn: Annotated[int, Whole("client connections in all; the console is exempt")] = 100
    max_db_client_connections: Annotated[int, Whole("client connections per database; 0 = unlimited")] = 0
    max_db_connections: Annotated[int, Whole("server connections per database, over all users; 0 = unlimited")] = 0
    max_packet_size: Annotated[int, Whole("longest message that is let through, bytes", low=5)] = 2147483647
    max_prepared_memory: Annotated[int, Whole("bytes that clients' prepared statements may take in a process, half of them for one client; 0 = no limit", own=True)] = 134217728
    max_prepared_statements: Annotated[int, Whole("prepared statements kept per server connection; 0 = do not track them")] = 200
    max_user_client_connections: Annotated[int, Whole("client connections per user, over all databases; 0 = unlimited")] = 0
    max_user_connections: Annotated[int, Whole("server connections per user, over all databases; 0 = unlimited")] = 0
    metrics_auth_token: Annotated[str, Text("bearer token that /metrics and the status page ask for; empty = none", own=True, secret=True)] = ""
    metrics_auth_token_file: Annotated[str, Text("file with that token", own=True)] = ""
    metrics_listen_addr: Annotated[str, Text("addresses for /metrics, /healthz, /readyz and the status page, a comma list; empty = off", own=True, changeable=False)] = "127.0.0.1"
    metrics_port: Annotated[int, Whole("port for them; 0 = off", high=PORT, own=True, changeable=False)] = 9127
    min_pool_size: Annotated[int, Whole("server connections kept in a pool that has a client or a forced user")] = 0
    peer_id: Annotated[int, Whole("own id among the [peers]; 0 = no peering", high=PEER_ID)] = 0
    pidfile: Annotated[str, Text("file with the process id; needed by -d", changeable=False)] = ""
    pkt_buf: Annotated[int, Whole("size of a buffer; here the event loop sizes its own", changeable=False, effect=False)] = 4096
    pool_idle_timeout: Annotated[float, Seconds("free a pool without clients and servers after that long; 0 = never")] = 0.0
    pool_mode: Annotated[PoolMode, Word("when a server goes back to the pool", words=POOL_MODES)] = "session"
    protocol_version_max: Annotated[ProtocolVersion, Word("newest protocol that is spoken with clients, and that servers are asked for; 3.2 has longer cancel keys", words=PROTOCOL_VERSIONS, own=True)] = "3.0"
    query_timeout: Annotated[float, Seconds("close client and server when a query runs longer; 0 = never")] = 0.0
    query_wait_notify: Annotated[int, Whole("seconds in the queue after which a client is told so; 0 = never")] = 5
    query_wait_timeout: Annotated[float, Seconds("disconnect a client that waited that long for a server; 0 = never")] = 120.0
    readiness_databases: Annotated[str, Text("databases that must have a server, or one that answers, for /readyz to say yes; a comma list", own=True)] = ""
    reserve_pool_size: Annotated[int, Whole("further server connections for a pool whose clients wait too long")] = 0
    reserve_pool_timeout: Annotated[float, Seconds("how long a client waits before the reserve is used; 0 = reserve off")] = 5.0
    resolv_conf: Annotated[str, Text("file to read instead of /etc/resolv.conf", changeable=False)] = ""
    sbuf_loopcnt: Annotated[int, Whole("reads in a row per connection; here the event loop decides", effect=False)] = 5
    scram_iterations: Annotated[int, Whole("iterations of the SCRAM secrets made from plain passwords", low=1)] = 4096
    server_check_delay: Annotated[float, Seconds("check a server before use when it was idle longer; 0 = at every release")] = 30.0
    server_check_query: Annotated[str, Text("query of that check; <empty> = an empty query, nothing = no check")] = "<empty>"
    server_connect_timeout: Annotated[float, Seconds("give up connecting and logging in to a server after that long")] = 15.0
    server_fast_close: Annotated[bool, Flag("session mode: close obsolete servers between transactions, client included")] = False
    server_idle_timeout: Annotated[float, Seconds("close a server that was idle that long; 0 = never")] = 600.0
    server_lifetime: Annotated[float, Seconds("close a released server that is older; 0 = use every server once")] = 3600.0
    server_login_retry: Annotated[float, Seconds("pause after a failed connect or login to a server")] = 15.0
    server_login_retry_backoff: Annotated[bool, Flag("begin with pauses of 0.1 s that grow to server_login_retry, and let queries wait meanwhile; 0 = as PgBouncer", own=True)] = True
    server_require_auth: Annotated[str, Text("what a server may ask for: a list of password, md5, scram-sha-256, none, or of them with !; empty = all", own=True)] = ""
    server_reset_query: Annotated[str, Text("query sent when a session pool releases a server; empty = none")] = "DISCARD ALL"
    server_reset_query_always: Annotated[bool, Flag("send server_reset_query in every pool mode")] = False
    server_round_robin: Annotated[bool, Flag("use the server that was idle longest first, not last")] = False
    server_tls13_ciphers: Annotated[str | None, Text("TLS 1.3 cipher suites for servers, OpenSSL syntax", unset=True)] = None
    server_tls_ca_file: Annotated[str, Text("root certificates that servers' certificates are checked against")] = ""
    server_tls_cert_file: Annotated[str, Text("certificate shown to servers")] = ""
    server_tls_ciphers: Annotated[str, Text("TLS 1.2 ciphers for servers, OpenSSL syntax; default, secure, fast, normal, all")] = "default"
    server_tls_key_file: Annotated[str, Text("private key of server_tls_cert_file")] = ""
    server_tls_negotiation: Annotated[TlsNegotiation, Word("how TLS with servers begins: postgres = SSLRequest, direct = at once, with ALPN", words=TLS_NEGOTIATIONS, own=True)] = "postgres"
    server_tls_protocols: Annotated[str, Text("TLS versions for servers: a list of tlsv1.0 to tlsv1.3, all, secure")] = "secure"
    server_tls_sslmode: Annotated[SslMode, Word("TLS with servers", words=SSL_MODES)] = "prefer"
    session_state: Annotated[SessionState, Word("what to do about SET, LISTEN, temporary tables and the like that a client leaves on a shared server", words=SESSION_STATES, own=True)] = "ignore"
    shutdown_ready_delay: Annotated[float, Seconds("after SIGTERM or SIGINT, /readyz says no for that long before the shutdown begins", own=True)] = 0.0
    so_reuseport: Annotated[bool, Flag("let several processes listen on the same port", changeable=False)] = False
    stats_period: Annotated[int, Whole("seconds that averages and the log line of the statistics span", low=1)] = 60
    stats_users: Annotated[str, Text("users that may run SHOW in the console, a comma list")] = ""
    suspend_timeout: Annotated[float, Seconds("how long SUSPEND waits for buffers to drain")] = 10.0
    syslog: Annotated[bool, Flag("log to syslog too")] = False
    syslog_facility: Annotated[Facility, Word("facility of syslog lines", words=FACILITIES)] = "daemon"
    syslog_ident: Annotated[str, Text("name of syslog lines")] = "pgbouncer"
    tcp_defer_accept: Annotated[int, Whole("wake up for a client when its first bytes are there; seconds that the kernel waits")] = 1
    tcp_keepalive: Annotated[bool, Flag("TCP keepalive on all connections")] = True
    tcp_keepcnt: Annotated[int, Whole("keepalive probes before a connection counts as dead; 0 = the system's")] = 0
    tcp_keepidle: Annotated[int, Whole("idle seconds before the first keepalive probe; 0 = the system's")] = 0
    tcp_keepintvl: Annotated[int, Whole("seconds between keepalive probes; 0 = the system's")] = 0
    tcp_socket_buffer: Annotated[int, Whole("size of the kernel's socket buffers, bytes; 0 = the system's")] = 0
    tcp_user_timeout: Annotated[int, Whole("milliseconds that sent data may stay unacknowledged; 0 = the system's")] = 0
    track_extra_parameters: Annotated[str, Text("further reported parameters to keep per client, a comma list", changeable=False)] = "IntervalStyle"
    track_startup_parameters: Annotated[bool, Flag("keep any startup parameter that the server accepts, and set it where the client goes", own=True)] = False
    transaction_timeout: Annotated[float, Seconds("close a client whose transaction lasts longer; 0 = never")] = 0.0
    unix_socket_dir: Annotated[str, Text("directory of the unix socket, and of servers without host; empty = none, @x = abstract", changeable=False)] = "/tmp"
    unix_socket_group: Annotated[str, Text("group of the unix socket; empty = unchanged", changeable=False)] = ""
    unix_socket_mode: Annotated[int, Whole("mode of the unix socket, octal with a leading 0", high=0o7777, default_text="0777", changeable=False)] = 0o777
    user: Annotated[str | None, Text("system user to become when started as root", changeable=False, unset=True)] = None
    verbose: Annotated[int, Whole("1 adds DEBUG, 2 and more NOISE", unset=True)] = 0
    worker_timeout: Annotated[float, Seconds("with several workers: replace one that was not heard of for that long; 0 = never", own=True)] = 10.0
    workers: Annotated[int, Whole("processes that serve clients, as one pool; auto = as many as there are cores", high=64, zero="auto", own=True, changeable=False)] = 1
    # fmt: on

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Text of any layer is read by the key's own rules; values that are typed already pass."""
        return parse_setting(info.field_name or "", value) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line > environment > the layers below it, in order."""
        lower = (InitSettingsSource(settings_cls, dict(layer)) for layer in _layers.get(()))
        return (init_settings, _Environment(settings_cls), *lower)

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """Only what differs from the default, and no secret."""
        for name, key in KEYS.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                yield name, "***" if key.secret else value


def _collect() -> dict[str, Key]:
    found: dict[str, Key] = {}
    for name, field in sorted(Settings.model_fields.items()):
        found[name] = next(item for item in field.metadata if isinstance(item, Key))
    return found


KEYS: Final[dict[str, Key]] = _collect()
"""The metadata of every key, in SHOW CONFIG's order."""


def read_settings(overrides: Mapping[str, str], environ: Mapping[str, str], *layers: Mapping[str, Value]) -> Settings:
    """Settings from the command line, the environment and the layers below, the strongest first. Raises ConfigError."""
    for name in overrides:
        if name not in KEYS:
            raise ConfigError(unknown("key", name, KEYS), file="command line", key=name)
    tokens = _environment.set(environ), _layers.set(layers)
    try:
        return Settings(**dict(overrides))  # type: ignore[arg-type]  # text, read by the validator
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(error["loc"][0]) if error["loc"] else ""
        where = "command line" if name in overrides else f"environment {ENVIRONMENT_PREFIX}{name.upper()}"
        raise ConfigError(error["msg"].removeprefix("Value error, "), file=where, key=name) from None
    finally:
        _environment.reset(tokens[0])
        _layers.reset(tokens[1])


def parse_setting(name: str, text: str) -> Value:
    """The value of one key. Raises ValueError: unknown key, or what was expected of the value."""
    key = KEYS.get(name)
    if key is None:
        raise ValueError(unknown("key", name, KEYS))
    value = key.parse(text)
    if name == "auth_dbname" and value == "pgbouncer":
        raise ValueError("expected a database entry; pgbouncer is reserved for the console")
    if name == "listen_addr" and isinstance(value, str):
        listen_addresses(value, PORT)
    if name == "server_require_auth" and isinstance(value, str):
        try:
            parse_require_auth(value)
        except ConfigError as exc:
            raise ValueError(exc.problem) from None
    return value


def default_text(name: str) -> str | None:
    """The default as SHOW CONFIG prints it; None for PgBouncer's NULL."""
    key = KEYS[name]
    if key.unset:
        return None
    default: Value = Settings.model_fields[name].default
    return key.default_text or key.show(default)


def config_rows(settings: Settings) -> list[tuple[str, str | None, str | None, str]]:
    """SHOW CONFIG: key, value, default, changeable, in PgBouncer's print format."""
    rows: list[tuple[str, str | None, str | None, str]] = []
    for name, key in KEYS.items():
        value: Value = getattr(settings, name)
        shown = "***" if key.secret and value else key.show(value)
        rows.append((name, shown, default_text(name), "yes" if key.changeable else "no"))
    return rows


def unknown(what: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """'unknown key "x"', with the nearest name that exists."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'unknown {what} "{name}"' + (f', did you mean "{near[0]}"?' if near else "")
