r"""pg_ident.conf: which system users (of a certificate or a unix socket) may log in as which database users.

Knows `map system-user database-user` lines as PostgreSQL 16 has them: /pattern in both columns, \1 in the second for
what the first one's parentheses caught, `all`. Must not know where a system user's name comes from, nor read a file
by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pgpool_proxy.auth.regex import compile_pattern
from pgpool_proxy.auth.tokens import Files, Line, Token, tokenize
from pgpool_proxy.errors import ConfigError

CAUGHT: Final = r"\1"


@dataclass(frozen=True, slots=True)
class IdentLine:
    """One line. A pattern is None where the column is a plain name."""

    file: str
    line: int
    map: str
    system_user: Token
    user: Token
    system_pattern: re.Pattern[str] | None = None
    user_pattern: re.Pattern[str] | None = None

    def match(self, system_user: str, user: str) -> bool | None:
        r"""True or False where the line decides, None where it is not for these two.

        What \1 stands for comes from outside, so it is only ever compared letter by letter: a system user named "all"
        is nobody special.
        """
        wanted = self.user.text
        if self.system_pattern is None:
            if system_user != self.system_user.text:
                return None
        else:
            found = self.system_pattern.search(system_user)
            if found is None:
                return None
            if self.user_pattern is None and CAUGHT in wanted:
                caught: str | None = found.group(1)
                if caught is None:  # the parentheses were not on the way; PostgreSQL stops here as well
                    return False
                return True if user == wanted.replace(CAUGHT, caught, 1) else None
        if self.user_pattern is not None:
            return True if self.user_pattern.search(user) is not None else None
        return True if self.user.is_keyword("all") or user == wanted else None


class IdentMaps:
    """All lines of an ident file. `problems` are lines that were left out."""

    __slots__ = ("lines", "problems")

    def __init__(self, lines: list[IdentLine], problems: list[ConfigError]) -> None:
        self.lines = lines
        self.problems = problems

    def __repr__(self) -> str:
        return f"<IdentMaps lines={len(self.lines)} problems={len(self.problems)}>"

    def has(self, map_name: str) -> bool:
        """True where a line of that map exists. A map that does not lets nobody in."""
        return any(line.map == map_name for line in self.lines)

    def match(self, map_name: str, system_user: str, user: str) -> bool:
        """True where `system_user` may log in as `user`. Without a map the names must be the same."""
        if not system_user or "\0" in system_user:  # a certificate may hold a zero byte where C sees the end
            return False
        if not map_name:
            return system_user == user
        for line in self.lines:
            if line.map == map_name:
                decided = line.match(system_user, user)
                if decided is not None:
                    return decided
        return False


def parse_ident(
    text: str,
    file: str = "",
    read: Callable[[str], str] | None = None,
    listing: Callable[[str], Sequence[str]] | None = None,
) -> IdentMaps:
    """Reads an ident file; `read` and `listing` as in `hba.parse_hba`. Never raises: see `problems`."""
    problems: list[ConfigError] = []
    lines: list[IdentLine] = []
    for line in tokenize(text, file, Files(read, listing), problems):
        try:
            lines.append(parse_line(line))
        except ConfigError as problem:
            problems.append(ConfigError(problem.problem, file=line.file, line=line.number))
    return IdentMaps(lines, problems)


def parse_line(line: Line) -> IdentLine:
    """One line. Raises ConfigError."""
    if len(line.fields) != 3 or any(len(field) != 1 for field in line.fields):
        raise ConfigError("a line is: map system-user database-user")
    map_name, system_user, user = (field[0] for field in line.fields)
    if user.is_group:
        raise ConfigError(f'"{user.text}" is not supported: memberships are known to the database only')
    system_pattern = compile_pattern(system_user.text[1:]) if system_user.is_regex else None
    user_pattern = compile_pattern(user.text[1:]) if user.is_regex else None
    if system_pattern is not None and user_pattern is None and CAUGHT in user.text and not system_pattern.groups:
        raise ConfigError(f'"{system_user.text}" has no parentheses for the {CAUGHT} in "{user.text}"')
    return IdentLine(line.file, line.number, map_name.text, system_user, user, system_pattern, user_pattern)
