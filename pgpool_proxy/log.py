"""The log: structlog set up, the lines rendered, the places that they go to. The one module that knows renderers.

Two forms of the same line: PgBouncer's (`log_format = text`) and one JSON object a line (`json`). Text that came from
outside cannot forge a line or drive a terminal: control, bidirectional and other unprintable characters are escaped in
both forms. A place that cannot be written to (a closed stderr, a full disk, no syslog) loses lines, never a client.

Knows settings only by the attributes that it reads (`LogSettings`). A call below the level in force costs one
comparison, and a connection's prefix is built when its first line is written.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import MutableMapping
from logging.handlers import SysLogHandler
from typing import Any, Final, Literal, Protocol

import structlog

from pgpool_proxy.errors import ConfigError

NOISE: Final = 5
DEBUG: Final = 10
LOG: Final = 20
WARNING: Final = 30
ERROR: Final = 40
FATAL: Final = 50
LEVELS: Final = {NOISE: "NOISE", DEBUG: "DEBUG", LOG: "LOG", WARNING: "WARNING", ERROR: "ERROR", FATAL: "FATAL"}

SYSLOG_RETRY_S: Final = 30.0
"""Pause after a failed attempt to reach syslog."""
SYSLOG_MAX: Final = 8192
"""Longest datagram, bytes: rsyslog's own limit."""
SYSLOG_ADDRESS: Final = "/dev/log"
_SYSLOG_PRIORITY: Final = {
    NOISE: SysLogHandler.LOG_DEBUG,
    DEBUG: SysLogHandler.LOG_DEBUG,
    LOG: SysLogHandler.LOG_INFO,
    WARNING: SysLogHandler.LOG_WARNING,
    ERROR: SysLogHandler.LOG_ERR,
    FATAL: SysLogHandler.LOG_CRIT,
}
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
    "|[\U000e0000-\U000e0fff]"
)


class LogSettings(Protocol):
    """What the log reads of `Settings`."""

    @property
    def verbose(self) -> int: ...
    @property
    def logfile(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def syslog(self) -> bool: ...
    @property
    def syslog_ident(self) -> str: ...
    @property
    def syslog_facility(self) -> str: ...


def escape(text: str) -> str:
    """The text with everything escaped that is not plainly visible."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape_one, text)


def _escape_one(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _SHORT.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


# --- where lines go ---------------------------------------------------------------------------------------------------
class _Stderr:
    def write(self, level: int, line: str, message: str) -> None:
        stream = sys.stderr
        if stream is None:
            return
        if stream is sys.__stderr__:
            os.write(2, line.encode("utf-8", "backslashreplace"))
        else:  # replaced by somebody who wants to see it
            stream.write(line)
            stream.flush()

    def close(self) -> None:
        """Not ours."""


class _File:
    """Appends whole lines, unbuffered."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, level: int, line: str, message: str) -> None:
        os.write(self._fd, line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        os.close(self._fd)


class _Syslog:
    """Opened at the first line, not at start; never waits for a syslog that does not read."""

    def __init__(self, ident: str, facility: str) -> None:
        self._ident = escape(ident)
        self._facility = SysLogHandler.facility_names[facility]
        self._socket: socket.socket | None = None
        self._retry_at = 0.0

    def write(self, level: int, line: str, message: str) -> None:
        if self._socket is None:
            if time.monotonic() < self._retry_at:
                return
            self._retry_at = time.monotonic() + SYSLOG_RETRY_S
            self._open()
        if self._socket is not None:
            priority = self._facility << 3 | _SYSLOG_PRIORITY[level]
            data = f"<{priority}>{self._ident}[{os.getpid()}]: {message}".encode("utf-8", "backslashreplace")
            try:
                self._socket.send(data[:SYSLOG_MAX])
            except BlockingIOError:
                raise
            except OSError:
                self.close()
                raise

    def _open(self) -> None:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            fresh.setblocking(False)
            fresh.connect(SYSLOG_ADDRESS)
        except OSError:
            fresh.close()
            raise
        self._socket = fresh

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_Sink = _Stderr | _File | _Syslog


class _Output:
    """What structlog writes to. One for the whole process: set up again without touching the loggers that exist."""

    def __init__(self) -> None:
        self.threshold = LOG
        self.json = False
        self.sinks: list[_Sink] = [_Stderr()]
        self.lost = 0
        self._logfile = ""

    def configure(self, settings: LogSettings, quiet: bool) -> None:
        sinks: list[_Sink] = [] if quiet else [_Stderr()]
        if settings.logfile:
            try:
                sinks.append(_File(settings.logfile))
            except OSError as exc:
                problem = f'could not open "{settings.logfile}": {exc.strerror}'
                raise ConfigError(problem, key="logfile") from exc
        if settings.syslog:
            sinks.append(_Syslog(settings.syslog_ident, settings.syslog_facility))
        self._replace(sinks)
        self._logfile = settings.logfile
        self.json = settings.log_format == "json"
        self.threshold = LOG if settings.verbose <= 0 else DEBUG if settings.verbose == 1 else NOISE

    def reopen(self) -> None:
        """Open the log file anew, after it was renamed. Keeps the old one when that fails."""
        if not self._logfile:
            return
        try:
            fresh = _File(self._logfile)
        except OSError as exc:
            get_logger().error(f"could not open log file {self._logfile}: {exc.strerror}, going on with the old one")
            return
        self._replace([fresh if isinstance(sink, _File) else sink for sink in self.sinks])

    def _replace(self, sinks: list[_Sink]) -> None:
        old, self.sinks = self.sinks, sinks
        for sink in old:
            if sink not in sinks:
                try:
                    sink.close()
                except OSError:
                    pass

    def write(self, level: int, line: str, message: str) -> None:
        for sink in self.sinks:
            try:
                sink.write(level, line, message)
            except (OSError, ValueError):  # ValueError: a closed stream
                self.lost += 1


_output: Final = _Output()


# --- what a line looks like -------------------------------------------------------------------------------------------
_second = 0
_second_text = ("", "")


def _timestamp(now: float) -> tuple[str, str]:
    """`YYYY-MM-DD HH:MM:SS` and the time zone; made once a second."""
    global _second, _second_text
    if int(now) != _second:
        parts = time.localtime(now)
        _second_text = time.strftime("%Y-%m-%d %H:%M:%S", parts), time.strftime("%Z", parts)
        _second = int(now)
    return _second_text


def _render(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[int, str, str], dict[str, Any]]:
    """The last processor: everything known about an event -> level, line, and message with prefix."""
    level: int = event.pop("level")
    message = escape(event.pop("event"))
    connection: ConnectionLogger | None = event.pop("connection", None)
    extra: dict[str, object] = {**event.pop("fields")}
    error = extra.pop("error", None)
    trace = "".join(traceback.format_exception(error)).rstrip("\n") if isinstance(error, BaseException) else ""
    now = time.time()
    prefixed = message if connection is None else connection.prefix() + message
    if trace:
        prefixed += "".join("\n\t" + escape(part) for part in trace.split("\n"))
    if _output.json:
        line = _json_line(now, level, message, connection, {**event, **extra}, trace)
    else:
        line = _text_line(now, level, prefixed)
    return (level, line, prefixed), {}


def _text_line(now: float, level: int, prefixed: str) -> str:
    """PgBouncer's line."""
    date, zone = _timestamp(now)
    return f"{date}.{int(now * 1000) % 1000:03d} {zone} [{os.getpid()}] {LEVELS[level]} {prefixed}\n"


def _json_line(
    now: float, level: int, message: str, connection: ConnectionLogger | None, extra: dict[str, object], trace: str
) -> str:
    utc = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    fields: dict[str, object] = {
        "ts": f"{utc}.{int(now * 1000) % 1000:03d}Z",
        "pid": os.getpid(),
        "level": LEVELS[level],
    }
    if connection is not None:
        fields |= connection.fields()
    fields["message"] = message
    if trace:
        fields["error"] = trace
    fields |= {name: value for name, value in extra.items() if name not in fields}
    return json.dumps(fields, default=str).replace("\x7f", "\\u007f") + "\n"


# --- what the house writes with ---------------------------------------------------------------------------------------
class _Levels:
    """PgBouncer's levels. Keyword arguments are fields of the JSON form; in the text form the message says it all.
    `error=exc` adds the traceback in both."""

    __slots__ = ()

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        raise NotImplementedError

    def fatal(self, message: str, **fields: object) -> None:
        if _output.threshold <= FATAL:
            self._emit(FATAL, message, fields)

    def error(self, message: str, **fields: object) -> None:
        if _output.threshold <= ERROR:
            self._emit(ERROR, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        if _output.threshold <= WARNING:
            self._emit(WARNING, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """PgBouncer's LOG."""
        if _output.threshold <= LOG:
            self._emit(LOG, message, fields)

    def debug(self, message: str, **fields: object) -> None:
        if _output.threshold <= DEBUG:
            self._emit(DEBUG, message, fields)

    def noise(self, message: str, **fields: object) -> None:
        if _output.threshold <= NOISE:
            self._emit(NOISE, message, fields)


class BoundLogger(_Levels, structlog.BoundLoggerBase):
    """The daemon's own voice; `bind(worker=2)` adds fields to every line of the JSON form."""

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        self._proxy_to_logger("write", message, level=level, fields=fields)

    def write_for(self, connection: ConnectionLogger, level: int, message: str, fields: dict[str, object]) -> None:
        """A line that belongs to a connection."""
        self._proxy_to_logger("write", message, level=level, fields=fields, connection=connection)


class ConnectionLogger(_Levels):
    """The voice of one client or server: `C-5: db/user@host:port ` before each line, or the same as fields in JSON."""

    __slots__ = ("_prefix", "address", "database", "id", "port", "side", "user")

    def __init__(self, side: str, number: int, database: str, user: str, address: str, port: int) -> None:
        self.side = side
        self.id = number
        self.database = database
        self.user = user
        self.address = address
        self.port = port
        self._prefix = ""

    def __repr__(self) -> str:
        return f"<ConnectionLogger {self.prefix().rstrip()}>"

    def identify(self, database: str, user: str) -> None:
        """Database and user are known from now on."""
        self.database = database
        self.user = user
        self._prefix = ""

    def prefix(self) -> str:
        """Built once, when the first line is written."""
        if not self._prefix:
            address = f"[{self.address}]" if ":" in self.address else self.address
            database, user = self.database or "(nodb)", self.user or "(nouser)"
            self._prefix = escape(f"{self.side}-{self.id}: {database}/{user}@{address}:{self.port} ")
        return self._prefix

    def fields(self) -> dict[str, object]:
        return {
            "side": self.side,
            "id": self.id,
            "database": self.database,
            "user": self.user,
            "address": self.address,
            "port": self.port,
        }

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        if _output.json or "error" in fields:
            _root.write_for(self, level, message, fields)
        else:  # two such lines a login: what structlog would make of it, without the way through it
            prefixed = self.prefix() + escape(message)
            _output.write(level, _text_line(time.time(), level, prefixed), prefixed)


_root: Final = BoundLogger(_output, [_render], {})


def configure(settings: LogSettings, *, quiet: bool) -> None:
    """Set the level, the form and the places; again at RELOAD and after SET. Raises ConfigError, changing nothing, when
    the log file cannot be opened. `quiet`: nothing to stderr."""
    _output.configure(settings, quiet)


def reopen() -> None:
    """Open the log file again under its name (it may have been renamed). Never raises."""
    _output.reopen()


def get_logger() -> BoundLogger:
    """The daemon's logger: lines without a connection."""
    return _root


def connection_logger(
    side: Literal["C", "S"],
    id: int,  # noqa: A002 - SHOW's own word
    database: str,
    user: str,
    address: str,
    port: int,
) -> ConnectionLogger:
    """A logger for one client (C) or server (S). `address` is a host, an IP address or `unix(PID)`; database and user
    may be empty until `identify`."""
    return ConnectionLogger(side, id, database, user, address, port)


def lost_lines() -> int:
    """How many times a line could not be written to one of the places."""
    return _output.lost
