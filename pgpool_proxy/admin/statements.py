"""What a statement of the console is, as far as that can be said before it is run: which table, which command, which answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pgpool_proxy.admin.commands import COMMANDS, HELP_TEXT, Command
from pgpool_proxy.admin.control import ADMIN_NEEDED, Refused, Row, error
from pgpool_proxy.admin.grammar import Statement, invalid, parse
from pgpool_proxy.admin.messages import Bind
from pgpool_proxy.admin.results import BINARY_FORMAT, TEXT_FORMAT, Column
from pgpool_proxy.admin.show import FAKE_PARAMETERS, FDS, HELP, Table, find_table
from pgpool_proxy.errors import Report

HELP_NOTICE: Final = Report("Console usage", "00000", "NOTICE", HELP_TEXT)
SET_IGNORED: Final = Report("SET ignored", "00000", "NOTICE")
UNASKED: Final = ("BEGIN", "COMMIT", "ROLLBACK", "RESET")  # what drivers say unasked: accepted, without effect
BAD_FORMAT: Final = error("unsupported format code", "22023")
BAD_FORMATS: Final = error("as many result formats as columns are needed")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement that was found good; `table` is what a SHOW prints."""

    statement: Statement
    table: Table | None = None
    command: Command | None = None
    notice: Report | None = None
    tag: bytes = b"SHOW"

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.table.columns if self.table is not None else ()


@dataclass(slots=True)
class Portal:
    """A statement that is being run; `rows` are those that are still to be sent."""

    prepared: Prepared
    formats: list[int]
    rows: Iterator[Row] | None = None
    has_run: bool = False
    limited: bool = False
    left: int = 0  # rows that the Execute under way may still send, when it is limited


def prepare(text: str, is_admin: bool) -> Prepared:
    """Everything that can be said about a statement before it is run. Raises `Refused`."""
    statement = parse(text)
    verb = statement.verb
    if verb in ("SHOW", "SELECT"):
        return _prepare_show(statement, is_admin)
    if verb in UNASKED:
        return Prepared(statement, tag=verb.encode())
    if verb == "SET" and statement.argument.lower() in FAKE_PARAMETERS:
        return Prepared(statement, notice=SET_IGNORED, tag=b"SET")
    if not verb:
        return Prepared(statement, tag=b"")
    command = COMMANDS.get(verb)
    if command is None:
        raise invalid(text)
    command.check(statement)
    if not is_admin:
        raise Refused(ADMIN_NEEDED)
    return Prepared(statement, command=command, tag=command.tag(statement))


def _prepare_show(statement: Statement, is_admin: bool) -> Prepared:
    name = statement.argument.upper()
    if statement.timeout_s:
        raise invalid(statement.text)
    if name == HELP:
        return Prepared(statement, notice=HELP_NOTICE)
    if name == FDS and not is_admin:
        raise Refused(ADMIN_NEEDED)
    return Prepared(statement, table=find_table(name, statement.text))


def formats_of(bind: Bind, columns: int) -> list[int]:
    """The format code of each column."""
    asked = bind.formats
    if any(code not in (TEXT_FORMAT, BINARY_FORMAT) for code in asked):
        raise Refused(BAD_FORMAT)
    if len(asked) > 1 and len(asked) != columns:
        raise Refused(BAD_FORMATS)
    if len(asked) == columns:
        return asked
    return (asked or [TEXT_FORMAT]) * columns
