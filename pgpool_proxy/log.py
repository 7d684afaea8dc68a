"""The log: structlog set up, the JSON form, syslog, and what is in force. The text form is in log_lines.py.

Two forms of the same line: PgBouncer's (`log_format = text`) and one JSON object a line (`json`); what came from outside is
escaped in both. A place that cannot be written to (a closed stderr, a full disk, no syslog) loses lines, never a client.

Knows settings only by the attributes that it reads (`LogSettings`).
"""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections.abc import Mapping, MutableMapping
from logging.handlers import SysLogHandler
from typing import Any, Final, Literal, Protocol

import structlog

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.log_lines import (
    DEBUG,
    ERROR,
    FATAL,
    LEVELS,
    LOG,
    NOISE,
    WARNING,
    ConnectionLogger,
    File,
    Levels,
    Lines,
    Sink,
    Stderr,
    escape,
)

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


# --- where lines go ---------------------------------------------------------------------------------------------------
class _Syslog(Sink):
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


class _Journal(Sink):
    """stderr, when systemd's journal reads it: the journal knows time and process, and takes the priority from the front."""

    def __init__(self, json_lines: bool) -> None:
        self._json = json_lines

    def write(self, level: int, line: str, message: str) -> None:
        front = f"<{_SYSLOG_PRIORITY[level]}>"
        text = (line if self._json else message).rstrip("\n").replace("\n", "\n" + front)
        os.write(2, f"{front}{text}\n".encode("utf-8", "backslashreplace"))


def journal_reads_stderr(environ: Mapping[str, str]) -> bool:
    """True when JOURNAL_STREAM names the device and inode of our stderr (systemd.exec(5))."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class _Output(Lines):
    """What structlog writes to: set up again without touching the loggers that exist."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = False
        self._logfile = ""

    def configure(self, settings: LogSettings, quiet: bool) -> None:
        as_json = settings.log_format == "json"
        sinks: list[Sink] = [] if quiet else [_Journal(as_json) if journal_reads_stderr(os.environ) else Stderr()]
        if settings.logfile:
            try:
                sinks.append(File(settings.logfile))
            except OSError as exc:
                problem = f'could not open "{settings.logfile}": {exc.strerror}'
                raise ConfigError(problem, key="logfile") from exc
        if settings.syslog:
            sinks.append(_Syslog(settings.syslog_ident, settings.syslog_facility))
        self._replace(sinks)
        self._logfile = settings.logfile
        self.json = as_json
        self.threshold = LOG if settings.verbose <= 0 else DEBUG if settings.verbose == 1 else NOISE

    def reopen(self) -> None:
        """Open the log file anew, after it was renamed. Keeps the old one when that fails."""
        if not self._logfile:
            return
        try:
            fresh = File(self._logfile)
        except OSError as exc:
            get_logger().error(f"could not open log file {self._logfile}: {exc.strerror}, going on with the old one")
            return
        self._replace([fresh if isinstance(sink, File) else sink for sink in self.sinks])

    def _replace(self, sinks: list[Sink]) -> None:
        old, self.sinks = self.sinks, sinks
        for sink in old:
            if sink not in sinks:
                try:
                    sink.close()
                except OSError:
                    pass


_output: Final = _Output()
os.register_at_fork(after_in_child=_output.forked)


# --- what a line looks like -------------------------------------------------------------------------------------------
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
        line = _output.text(now, level, prefixed)
    return (level, line, prefixed), {}


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
class BoundLogger(Levels, structlog.BoundLoggerBase):
    """The daemon's own voice; `bind(worker=2)` adds fields to every line of the JSON form."""

    def __init__(self, output: _Output, processors: list[Any], context: dict[str, Any]) -> None:
        Levels.__init__(self, output)
        structlog.BoundLoggerBase.__init__(self, output, processors, context)

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        self._proxy_to_logger("write", message, level=level, fields=fields)

    def write_for(self, connection: ConnectionLogger, level: int, message: str, fields: dict[str, object]) -> None:
        """A line that belongs to a connection."""
        self._proxy_to_logger("write", message, level=level, fields=fields, connection=connection)


_root: Final = BoundLogger(_output, [_render], {})
_output.structured = _root.write_for


def configure(settings: LogSettings, *, quiet: bool | None = None) -> None:
    """Set the level, the form and the places; again at RELOAD and after SET. Raises ConfigError, changing nothing, when
    the log file cannot be opened. `quiet`: nothing to stderr; None: as before."""
    if quiet is not None:
        _output.quiet = quiet
    _output.configure(settings, _output.quiet)


def is_quiet() -> bool:
    """True when nothing goes to stderr."""
    return _output.quiet


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
    return ConnectionLogger(_output, side, id, database, user, address, port)


def lost_lines() -> int:
    """How many times a line could not be written to one of the places."""
    return _output.lost
