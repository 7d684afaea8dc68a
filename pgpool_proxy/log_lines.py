"""PgBouncer's log line, the levels, and the places that lines are appended to. Compiled: each login writes two lines.

Text that came from outside cannot forge a line or drive a terminal: control, bidirectional and other unprintable characters
are escaped. A call below the level in force costs one comparison, and a connection's prefix is built when its first line is
written. Must not know structlog, nor the JSON form (log.py).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

NOISE: Final = 5
DEBUG: Final = 10
LOG: Final = 20
WARNING: Final = 30
ERROR: Final = 40
FATAL: Final = 50
LEVELS: Final = {NOISE: "NOISE", DEBUG: "DEBUG", LOG: "LOG", WARNING: "WARNING", ERROR: "ERROR", FATAL: "FATAL"}

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNPRINTABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
    r"|[\U000e0000-\U000e0fff]"
)


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
@mypyc_attr(allow_interpreted_subclasses=True)
class Sink:
    """A place that lines are written to. Both raise OSError; `write` raises ValueError for a closed stream."""

    def write(self, level: int, line: str, message: str) -> None:
        """`line` is the whole line with its newline, `message` what it says, with the connection's prefix."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to close, unless said otherwise."""


class Stderr(Sink):
    def write(self, level: int, line: str, message: str) -> None:
        stream = sys.stderr
        if stream is None:
            return
        if stream is sys.__stderr__:
            os.write(2, line.encode("utf-8", "backslashreplace"))
        else:  # replaced by somebody who wants to see it
            stream.write(line)
            stream.flush()

class File(Sink):
    """Appends whole lines, unbuffered."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, level: int, line: str, message: str) -> None:
        os.write(self._fd, line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        os.close(self._fd)


@mypyc_attr(allow_interpreted_subclasses=True)
class Lines:
    """The level in force, the form, and the places. One for the whole process."""

    def __init__(self) -> None:
        self.threshold: int = LOG
        self.json: bool = False
        self.sinks: list[Sink] = [Stderr()]
        self.lost: int = 0
        self.structured: Callable[[ConnectionLogger, int, str, dict[str, object]], None] | None = None
        self._second: int = -1
        self._date: str = ""
        self._origin: str = ""

    def text(self, now: float, level: int, prefixed: str) -> str:
        """PgBouncer's line: date and time, zone, [pid], level, and what is said. What changes once a second is kept."""
        second = int(now)
        if second != self._second:
            parts = time.localtime(now)
            self._date = time.strftime("%Y-%m-%d %H:%M:%S.", parts)
            self._origin = f" {time.strftime('%Z', parts)} [{os.getpid()}] "
            self._second = second
        millisecond = str(1000 + int((now - second) * 1000))[1:]
        return "".join([self._date, millisecond, self._origin, LEVELS[level], " ", prefixed, "\n"])

    def forked(self) -> None:
        """Another process: another pid."""
        self._second = -1

    def write(self, level: int, line: str, message: str) -> None:
        for sink in self.sinks:
            try:
                sink.write(level, line, message)
            except (OSError, ValueError):  # ValueError: a closed stream
                self.lost += 1


# --- who writes -----------------------------------------------------------------------------------------------------------
@mypyc_attr(allow_interpreted_subclasses=True)
class Levels:
    """PgBouncer's levels. Keyword arguments are fields of the JSON form; in the text form the message says it all.
    `error=exc` adds the traceback in both."""

    def __init__(self, lines: Lines) -> None:
        self._lines: Lines = lines

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        raise NotImplementedError

    def fatal(self, message: str, **fields: object) -> None:
        if self._lines.threshold <= FATAL:
            self._emit(FATAL, message, fields)

    def error(self, message: str, **fields: object) -> None:
        if self._lines.threshold <= ERROR:
            self._emit(ERROR, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        if self._lines.threshold <= WARNING:
            self._emit(WARNING, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """PgBouncer's LOG."""
        if self._lines.threshold <= LOG:
            self._emit(LOG, message, fields)

    def debug(self, message: str, **fields: object) -> None:
        if self._lines.threshold <= DEBUG:
            self._emit(DEBUG, message, fields)

    def noise(self, message: str, **fields: object) -> None:
        if self._lines.threshold <= NOISE:
            self._emit(NOISE, message, fields)


class ConnectionLogger(Levels):
    """The voice of one client or server: `C-5: db/user@host:port ` before each line, or the same as fields in JSON."""

    def __init__(
        self, lines: Lines, side: str, number: int, database: str, user: str, address: str, port: int
    ) -> None:
        super().__init__(lines)
        self.side: str = side
        self.id: int = number
        self.database: str = database
        self.user: str = user
        self.address: str = address
        self.port: int = port
        self._prefix: str = ""

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
            who = [self.side, "-", str(self.id), ": ", self.database or "(nodb)", "/", self.user or "(nouser)"]
            self._prefix = escape("".join([*who, "@", address, ":", str(self.port), " "]))
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
        lines = self._lines
        if lines.structured is not None and (lines.json or "error" in fields):
            lines.structured(self, level, message, fields)
        else:  # what structlog would make of it, without the way through it
            prefixed = self.prefix() + escape(message)
            lines.write(level, lines.text(time.time(), level, prefixed), prefixed)
