"""Every command: a table of what it is called, what argument it takes, and which order of `Control` it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pgpool_proxy.admin import control as orders
from pgpool_proxy.admin.control import BAD_CLIENT_ID, DATABASE_NEEDED, Control, Done, Pending, Refused
from pgpool_proxy.admin.grammar import Statement, invalid

MAX_CLIENT_ID_DIGITS: Final = 19

# --- what argument a command takes ----------------------------------------------------------------------------------------
NONE: Final = ""
A_DATABASE: Final = "db"
A_DATABASE_OR_ALL: Final = "[db]"
A_CLIENT: Final = "client_id"
A_MODE: Final = "[WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]"
A_SETTING: Final = "key = value"


@dataclass(frozen=True, slots=True)
class Command:
    """`start` gives the order; a command with `may_wait` takes TIMEOUT."""

    name: str
    argument: str
    doc: str
    start: Callable[[Control, Statement, Done, object], Pending | None]
    may_wait: bool = False

    def check(self, statement: Statement) -> None:
        """Raises `Refused` when the statement is not one that this command takes."""
        argument = statement.argument
        if statement.timeout_s and not self.may_wait:
            raise invalid(statement.text)
        if self.argument == NONE and argument:
            raise invalid(statement.text)
        if self.argument == A_DATABASE and not argument:
            raise Refused(DATABASE_NEEDED)
        if self.argument == A_MODE and argument.upper() not in MODES:
            raise invalid(statement.text)
        if self.argument == A_CLIENT:
            _client_id(argument)

    def tag(self, statement: Statement) -> bytes:
        """What CommandComplete says."""
        if self.name == "SET":
            return f"SET {statement.argument}={statement.value}".encode("utf-8", "replace")
        return self.name.encode()


MODES: Final = {
    "": orders.AT_ONCE,
    "WAIT_FOR_SERVERS": orders.WAIT_FOR_SERVERS,
    "WAIT_FOR_CLIENTS": orders.WAIT_FOR_CLIENTS,
}


def _client_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_CLIENT_ID_DIGITS):
        raise Refused(BAD_CLIENT_ID)
    return int(text)


def _pause(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    return control.pause(statement.argument or None, statement.timeout_s, done)


def _resume(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.resume(statement.argument or None, done)
    return None


def _suspend(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    return control.suspend(owner, done)


def _disable(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.disable(statement.argument, done)
    return None


def _enable(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.enable(statement.argument, done)
    return None


def _reconnect(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.reconnect(statement.argument or None, done)
    return None


def _wait_close(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    return control.wait_close(statement.argument or None, statement.timeout_s, done)


def _kill(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.kill(statement.argument or None, done)
    return None


def _kill_client(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.kill_client(_client_id(statement.argument), done)
    return None


def _reload(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.reload(done)
    return None


def _restart(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.restart(done)
    return None


def _shutdown(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.shutdown(MODES[statement.argument.upper()], done)
    return None


def _set(control: Control, statement: Statement, done: Done, owner: object) -> Pending | None:
    control.set(statement.argument, statement.value, done)
    return None


_ALL: Final = (
    Command("PAUSE", A_DATABASE_OR_ALL, "close servers as they are released; clients queue", _pause, may_wait=True),
    Command("RESUME", A_DATABASE_OR_ALL, "undo PAUSE, SUSPEND or KILL", _resume),
    Command("SUSPEND", NONE, "flush buffers, then neither read nor write", _suspend),
    Command("DISABLE", A_DATABASE, "refuse new logins", _disable),
    Command("ENABLE", A_DATABASE, "accept them again", _enable),
    Command("RECONNECT", A_DATABASE_OR_ALL, "replace all servers as they are released", _reconnect),
    Command("WAIT_CLOSE", A_DATABASE_OR_ALL, "wait until all servers to be replaced are closed", _wait_close, may_wait=True),
    Command("KILL", A_DATABASE_OR_ALL, "pause, and drop all clients and servers at once", _kill),
    Command("KILL_CLIENT", A_CLIENT, "disconnect one client", _kill_client),
    Command("RELOAD", NONE, "read the configuration again", _reload),
    Command("RESTART", NONE, "replace the workers one by one, with new code and configuration", _restart),
    Command("SHUTDOWN", A_MODE, "end the process", _shutdown),
    Command("SET", A_SETTING, "change a setting until the next RELOAD", _set),
)
COMMANDS: Final[dict[str, Command]] = {command.name: command for command in _ALL}

HELP_TEXT: Final = """
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE|TOP|WAITS|WORKERS
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS|STATS_HISTOGRAMS
\tSET key = arg
\tRELOAD
\tRESTART
\tPAUSE [<db>] [TIMEOUT <seconds>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>] [TIMEOUT <seconds>]"""
"""The DETAIL of SHOW HELP, laid out as PgBouncer's."""
