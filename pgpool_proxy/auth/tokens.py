"""The common ground of HBA and ident files: lines, fields, quoted tokens, includes, as PostgreSQL 16 has them.

A field is a list of tokens parted by commas; a token that was quoted has no special meaning any more. A backslash at
the end of a line continues it. Must not know what the fields mean, nor the file system: files come through `Files`.
Where PostgreSQL guesses (a quotation mark that is missing, a comma with nothing beside it), the line is a problem
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pgpool_proxy.errors import ConfigError

MAX_DEPTH: Final = 10  # PostgreSQL's CONF_FILE_MAX_DEPTH
MAX_FILES: Final = 1000  # files that include each other multiply below any depth
BLANKS: Final = " \t\r\v\f"
INCLUDES: Final = frozenset({"include", "include_if_exists", "include_dir"})


@dataclass(frozen=True, slots=True)
class Token:
    """One word. `quoted` is True where it began with a quotation mark."""

    text: str
    quoted: bool = False

    def is_keyword(self, word: str) -> bool:
        return not self.quoted and self.text == word

    @property
    def is_regex(self) -> bool:
        """True for /pattern, quoted or not: a comma in a pattern needs the quotes."""
        return self.text.startswith("/")

    @property
    def is_group(self) -> bool:
        return not self.quoted and self.text.startswith("+")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that says something: at least one field, each with at least one token."""

    file: str
    number: int
    fields: list[list[Token]]


class Files:
    """How other files are reached: `read` gives a text, `listing` the names in a directory; both raise OSError."""

    __slots__ = ("count", "listing", "read")

    def __init__(self, read: Callable[[str], str] | None, listing: Callable[[str], Sequence[str]] | None) -> None:
        self.read: Callable[[str], str] = read or unreachable
        self.listing: Callable[[str], Sequence[str]] = listing or unreachable
        self.count = 0

    def text(self, path: str, above: tuple[str, ...]) -> str:
        """The text of a file. `above` are the files that lead to it. Raises OSError and ConfigError."""
        if path in above:
            raise ConfigError(f'"{path}" includes itself')
        if len(above) > MAX_DEPTH or self.count >= MAX_FILES:
            raise ConfigError(f'"{path}": more than {MAX_DEPTH} files deep, or more than {MAX_FILES} files')
        self.count += 1
        try:
            return self.read(path)
        except ValueError as problem:  # not the encoding it should be, or a zero byte in the path
            raise ConfigError(f'could not read "{path}": {problem}') from None


def unreachable(path: str) -> str:
    raise OSError("other files cannot be read from here")


def tokenize(text: str, file: str, files: Files, problems: list[ConfigError], above: tuple[str, ...] = ()) -> list[Line]:
    """All lines of a file and of those it includes, in order. What is wrong goes to `problems`, without its line."""
    lines: list[Line] = []
    for number, content in logical_lines(text):
        try:
            fields = split_fields(content)
            if not fields:
                continue
            if fields[0][0].text in INCLUDES and not fields[0][0].quoted:
                lines += included(fields, file, files, problems, (*above, file))
            else:
                expanded = [expand(field, file, files, (*above, file)) for field in fields]
                lines.append(Line(file, number, expanded))
        except (ConfigError, OSError) as problem:
            what = problem.problem if isinstance(problem, ConfigError) else str(problem)
            problems.append(ConfigError(what, file=file, line=number))
    return lines


def logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with the number of their first part; a backslash at the end continues a line."""
    lines: list[tuple[int, str]] = []
    begun = ""
    first = 0
    for number, part in enumerate(text.split("\n"), 1):
        part = part.removesuffix("\r")
        first = first or number
        if part.endswith("\\"):
            begun += part[:-1]
            continue
        lines.append((first, begun + part))
        begun, first = "", 0
    return [*lines, (first, begun)] if begun else lines


def split_fields(line: str, of_list: bool = False) -> list[list[Token]]:
    """The fields of a line without its comment. `of_list`: it may end in a comma. Raises ConfigError."""
    fields: list[list[Token]] = []
    after_comma = False
    at = 0
    while True:
        while at < len(line) and line[at] in BLANKS:
            at += 1
        if at == len(line) or line[at] == "#":
            break
        token, at = read_token(line, at)
        if after_comma:
            fields[-1].append(token)
        else:
            fields.append([token])
        after_comma = at < len(line) and line[at] == ","
        at += after_comma
    if after_comma and not of_list:
        raise ConfigError("nothing follows a comma")
    return fields


def read_token(line: str, at: int) -> tuple[Token, int]:
    """The token at `at`, and the place behind it. Quotation marks may begin anywhere, as in ldapsuffix=", dc=net"."""
    out: list[str] = []
    start = at
    in_quotes = False
    while at < len(line) and (in_quotes or line[at] not in BLANKS + ",#"):
        character = line[at]
        if character == "\0":
            raise ConfigError("a zero byte")
        if character != '"':
            out.append(character)
        elif in_quotes and line.startswith('""', at):
            out.append('"')
            at += 1
        else:
            in_quotes = not in_quotes
        at += 1
    if in_quotes:
        raise ConfigError("a quotation mark is missing")
    if at == start:
        raise ConfigError("a comma with nothing before it")
    return Token("".join(out), line[start] == '"'), at


def expand(field: list[Token], file: str, files: Files, above: tuple[str, ...]) -> list[Token]:
    """The field with every @file replaced by the tokens in that file."""
    out: list[Token] = []
    for token in field:
        if token.quoted or not token.text.startswith("@") or len(token.text) == 1:
            out.append(token)
            continue
        path = beside(file, token.text[1:])
        for _, content in logical_lines(files.text(path, above)):
            for names in split_fields(content, of_list=True):
                out += expand(names, path, files, (*above, path))
    return out


def included(
    fields: list[list[Token]], file: str, files: Files, problems: list[ConfigError], above: tuple[str, ...]
) -> list[Line]:
    """The lines of an include, include_if_exists or include_dir."""
    directive = fields[0][0].text
    if len(fields) != 2 or len(fields[0]) != 1 or len(fields[1]) != 1:
        raise ConfigError(f"{directive} takes one name")
    path = beside(file, fields[1][0].text)
    if directive == "include_dir":
        names = sorted(name for name in files.listing(path) if name.endswith(".conf") and not name.startswith("."))
        paths = [f"{path}/{name}" for name in names]
    else:
        paths = [path]
    lines: list[Line] = []
    for path in paths:
        try:
            text = files.text(path, above)
        except FileNotFoundError:
            if directive == "include_if_exists":
                continue
            raise
        lines += tokenize(text, path, files, problems, above)
    return lines


def beside(file: str, name: str) -> str:
    """A path as seen from the directory of `file`."""
    return str(PurePosixPath(file).parent / name)
