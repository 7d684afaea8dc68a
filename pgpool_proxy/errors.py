"""Every error that pgpool_proxy raises or sends: SQLSTATE, severity and text. Imports nothing of the package.

The tree of exceptions::

    PgpoolError
      ConfigError              a setting, a file or a line of it is wrong          (the operator's fault)
      ProtocolViolation        bytes that no well-behaved peer sends               (the peer's fault)
      AuthenticationFailed     a proof that was not given                          (the peer's fault)
        WrongSecret            one that does not fit what is stored
      IllegalTransition        a move that the state tables do not have            (our fault)

What a peer, the log and the metrics are told when a connection ends is a `Report`: one object, so that the three use the
same words. The texts are PgBouncer's; the SQLSTATEs are PostgreSQL's where one fits better than PgBouncer's 08P01
(docs/compatibility.md has the table, and a test compares it with this file).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


class PgpoolError(Exception):
    """Base of everything that pgpool_proxy raises on purpose."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an ErrorResponse says, and why a connection ended.

    `severity` is FATAL where the connection ends with it and ERROR where it goes on. `message` is PgBouncer's text.
    """

    message: str
    sqlstate: str = "08P01"
    severity: str = "FATAL"
    detail: str = ""
    hint: str = ""

    def saying(self, message: str) -> Report:
        """The same error with another text (a name or a peer's own words filled in)."""
        return replace(self, message=message)

    def with_detail(self, detail: str) -> Report:
        return replace(self, detail=detail)


class ConfigError(PgpoolError):
    """A setting that cannot be used: says where it stands, its key, and what was expected."""

    def __init__(self, problem: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        self.problem = problem
        self.file = file
        self.line = line
        self.key = key
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(f"{where}{key + ': ' if key else ''}{problem}")


class ProtocolViolation(PgpoolError):
    """The peer broke the protocol; `report` is what it is told."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(report.message)


class AuthenticationFailed(PgpoolError):
    """The peer did not prove who it is; `report` is what it is told, `reason` what only the log is told."""

    def __init__(self, report: Report, reason: str = "") -> None:
        self.report = report
        self.reason = reason or report.message
        super().__init__(self.reason)


class WrongSecret(AuthenticationFailed):
    """An answer in good order that does not fit the stored secret; it might fit another (`ServerExchange.again`)."""


class IllegalTransition(PgpoolError):
    """A move that the table of states does not have: names the side, the state and the wanted state."""


# --- who may come in -------------------------------------------------------------------------------------------------
NO_USERNAME: Final = Report("no username supplied", "28000")
USERNAME_TOO_LONG: Final = Report("username too long", "28000")
PASSWORD_TOO_LONG: Final = Report("password too long", "28P01")
EMPTY_PASSWORD: Final = Report("empty password returned by client", "28P01")
TRUST_FAILED: Final = Report('"trust" authentication failed', "28000")
PASSWORD_FAILED: Final = Report("password authentication failed", "28P01")
SASL_FAILED: Final = Report("SASL authentication failed", "28P01")
CERT_FAILED: Final = Report("certificate authentication failed", "28000")
PAM_FAILED: Final = Report("PAM authentication failed", "28P01")
LDAP_FAILED: Final = Report("LDAP authentication failed", "28P01")
PEER_FAILED: Final = Report("unix socket login rejected", "28000")
LOGIN_REJECTED: Final = Report("login rejected", "28000")
NO_AUTH_METHOD: Final = Report("no authentication method is found", "28000")
NOT_ALLOWED: Final = Report("not allowed", "42501")
NO_SUCH_DATABASE: Final = Report("no such database", "3D000")
DATABASE_DISABLED: Final = Report("database is disabled", "57P03")
BOUNCER_CONFIG: Final = Report("bouncer config error", "F0000")
TOO_MANY_FAILURES: Final = Report("too many failed logins (auth_failure_ban)", "28000")
TLS_FAILED: Final = Report("TLS handshake failed", "08P01")
TLS_REFUSED: Final = Report("server refused SSL", "08001")
SSL_REQUIRED: Final = Report("SSL required", "28000")
CLIENT_LOGIN_TIMEOUT: Final = Report("client_login_timeout", "08P01")
CLIENT_LOGIN_TIMEOUT_SERVER_DOWN: Final = Report("client_login_timeout (server down)", "08006")

# --- how many ---------------------------------------------------------------------------------------------------------
MAX_CLIENT_CONN: Final = Report("no more connections allowed (max_client_conn)", "53300")
MAX_DB_CLIENT_CONN: Final = Report("client connections exceeded (max_db_client_connections)", "53300")
MAX_USER_CLIENT_CONN: Final = Report("client connections exceeded (max_user_client_connections)", "53300")
QUERY_WAIT_TIMEOUT: Final = Report("query_wait_timeout", "53300")
CLIENT_IDLE_TIMEOUT: Final = Report("client_idle_timeout", "57P05")

# --- the protocol -----------------------------------------------------------------------------------------------------
OLD_PROTOCOL: Final = Report("old V2 protocol not supported", "0A000")
UNSUPPORTED_PROTOCOL: Final = Report("unsupported frontend protocol", "0A000")
BAD_STARTUP: Final = Report("invalid startup packet layout: expected terminator as last byte")
STARTUP_TOO_LONG: Final = Report("invalid length of startup packet")
BAD_PACKET: Final = Report("bad packet header")
PACKET_TOO_LONG: Final = Report("packet is larger than max_packet_size")
UNKNOWN_PACKET: Final = Report("unknown pkt")
UNEXPECTED_PACKET: Final = Report("unexpected packet")
BAD_PARAMETER: Final = Report("invalid value for parameter", "22023")
UNSUPPORTED_PARAMETER: Final = Report("unsupported startup parameter", "08P01")
UNENCRYPTED_BYTES: Final = Report("received unencrypted data after SSL request")
PQEXEC_DISALLOWED: Final = Report("PQexec disallowed", "42501")
NO_TRANSACTION_BLOCKS: Final = Report("transaction blocks not allowed in statement pooling mode", "0A000")
CLIENT_UNEXPECTED_EOF: Final = Report("client unexpected eof", "08006")
CLIENT_CLOSE_REQUEST: Final = Report("client close request", "08006")
INTERNAL_ERROR: Final = Report("internal error", "XX000")

# --- the server -------------------------------------------------------------------------------------------------------
SERVER_CRASHED: Final = Report("server conn crashed?", "08006")
SERVER_LOGIN_FAILING: Final = Report("server login has been failing", "08006")
SERVER_LOGIN_FAILED: Final = Report("server login failed", "08006")
WRONG_PASSWORD_TYPE: Final = Report("server login failed: wrong password type", "28P01")
QUERY_TIMEOUT: Final = Report("query timeout", "57014")
IDLE_TRANSACTION_TIMEOUT: Final = Report("idle transaction timeout", "25P03")
TRANSACTION_TIMEOUT: Final = Report("transaction timeout", "25P04")
TOO_MANY_PREPARED: Final = Report("too many prepared statements (max_prepared_memory)", "53400", "ERROR")
CANCELED: Final = Report("canceling statement due to user request", "57014", "ERROR")

# --- the operator -----------------------------------------------------------------------------------------------------
SHUTTING_DOWN: Final = Report("pooler is shutting down", "57P01")
SERVER_SHUTTING_DOWN: Final = Report("server shutting down", "57P01")
DATABASE_CHANGED_FAST: Final = Report("database configuration changed", "57P01")
DATABASE_REMOVED: Final = Report("database removed", "57P01")
ADMIN_DISCONNECT: Final = Report("admin forced disconnect", "57P01")
SUSPEND_TIMEOUT: Final = Report("suspend_timeout", "57P01")

# --- why a server connection was closed: for the log and the metrics, no peer is told ------------------------------------
LIFETIME_OVER: Final = Report("server lifetime over", "00000", "LOG")
SERVER_IDLE_TIMEOUT: Final = Report("server idle timeout", "00000", "LOG")
DATABASE_CHANGED: Final = Report("database configuration changed", "00000", "LOG")
OBSOLETE_CONNECTION: Final = Report("obsolete connection", "00000", "LOG")
CLOSE_NEEDED: Final = Report("close_needed", "00000", "LOG")
EVICTED: Final = Report("evicted", "00000", "LOG")
PAUSE_MODE: Final = Report("pause mode", "00000", "LOG")
TOO_MANY_SERVERS: Final = Report("too many servers in the pool", "00000", "LOG")
IDLE_SERVER_DIRTY: Final = Report("idle server got dirty", "00000", "LOG")
CONNECT_FAILED: Final = Report("connect failed", "08006")
CONNECT_TIMEOUT: Final = Report("connect timeout", "08006")
DNS_FAILED: Final = Report("server DNS lookup failed", "08006")
LOGIN_FAILED: Final = Report("login failed", "08006")
CLIENT_LEFT_EARLY: Final = Report("client disconnect while server was not ready", "08006")
CLIENT_LEFT_IN_QUERY: Final = Report("client disconnected with query in progress", "08006")
RESET_FAILED: Final = Report("reset query failed", "08006")
CHECK_FAILED: Final = Report("test query failed", "08006")
STATE_REMAINS: Final = Report("session state cannot be reset", "00000", "LOG")
CANCEL_SENT: Final = Report("successfully sent cancel request", "00000", "LOG")
CANCEL_NOT_NEEDED: Final = Report("cancel request dropped: the query has ended", "00000", "LOG")
CANCEL_WAIT_TIMEOUT: Final = Report("cancel_wait_timeout", "57014")
CANCEL_UNKNOWN_KEY: Final = Report("failed cancel request", "08P01")
CANCEL_QUEUED: Final = Report("canceled while waiting for a server", "00000", "LOG")
MOVED: Final = Report("moved to another worker", "00000", "LOG")
TAKEN_OVER: Final = Report("taken over by a new process", "00000", "LOG")
SHUTDOWN: Final = Report("shutdown", "57P01")
SERVER_TERMINATED: Final = Report("server closed the connection", "08006")
SERVER_PROTOCOL: Final = Report("server broke the protocol", "08P01")
REPLICATION_CLOSED: Final = Report("replication client was closed", "00000", "LOG")


def cached_failure(failure: Report) -> Report:
    """What a client is told at once while the servers of its pool cannot be had."""
    return Report(
        f"server login has been failing, cached error: {failure.message} (server_login_retry)",
        failure.sqlstate if failure.sqlstate != "00000" else SERVER_LOGIN_FAILING.sqlstate,
        detail=failure.detail,
    )
