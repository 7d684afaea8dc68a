"""PgBouncer's ini format (libusual's, to the letter): a file in, its entries out in order.

Knows lines, sections, quoting and `%include`; knows no section and no key by name. Comments stand at the start of a
line only: what may follow a value as a comment is decided by the kind of the value (keys.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgpool_proxy.errors import ConfigError

MAX_INCLUDE_DEPTH: Final = 10
"""libusual's own limit; it also ends a file that includes itself."""
MAX_FILE_SIZE: Final = 64 * 1024 * 1024
"""More than any real list of databases; keeps a wrong path (a device, a dump) from filling the memory."""

_KEY: Final = re.compile(r"[A-Za-z0-9_.*-]+")
_PAIR_KEY: Final = re.compile(r"[^= \t\r\n\v\f]+")
_PAIR_BLANKS: Final = re.compile(r"[ \t\r\n\v\f]*")
_PAIR_WORD: Final = re.compile(r"[^ \t\r\n\v\f]*")
_BLANKS: Final = " \t\r\v\f"


@dataclass(frozen=True, slots=True)
class Entry:
    """A section header (`key` is None) or a `key = value` line, and where it stands."""

    section: str
    key: str | None
    value: str
    file: str
    line: int

    def __repr__(self) -> str:
        return f"<Entry [{self.section}] {self.key} {self.file}:{self.line}>"

    def error(self, problem: str) -> ConfigError:
        return ConfigError(problem, file=self.file, line=self.line, key=self.key or "")


def read_ini(path: str) -> Iterator[Entry]:
    """The entries of a file and of the files that it includes. Raises ConfigError at the first line that is wrong."""
    yield from _parse(_load(path, "", 0), path, "", 0)


def parse_ini(text: str, file: str = "<text>") -> Iterator[Entry]:
    """The entries of a text; `file` is what errors name."""
    yield from _parse(text, file, "", 0)


def _load(path: str, from_file: str, from_line: int) -> str:
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(f'could not read "{path}": {reason}', file=from_file or path, line=from_line) from exc
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"larger than {MAX_FILE_SIZE} bytes", file=path)
    if b"\0" in data:
        raise ConfigError("a zero byte", file=path, line=data.count(b"\n", 0, data.index(b"\0")) + 1)
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _parse(text: str, file: str, section: str, depth: int) -> Iterator[Entry]:
    """Yields the entries and, by way of their `section`, hands the current section on to who included the file."""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANKS)
        while line.startswith("["):
            name, bracket, rest = line[1:].partition("]")
            if not bracket:
                raise ConfigError('expected "[section]"', file=file, line=number)
            section = name
            yield Entry(section, None, "", file, number)
            line = rest.strip(_BLANKS)
        if not line or line[0] in "#;":
            continue
        if line.startswith("%include") and line[8:9] in (" ", "\t"):
            if depth >= MAX_INCLUDE_DEPTH:
                raise ConfigError(f"%include deeper than {MAX_INCLUDE_DEPTH} files", file=file, line=number)
            included = line[8:].strip(_BLANKS)
            for entry in _parse(_load(included, file, number), included, section, depth + 1):
                section = entry.section
                yield entry
            continue
        key, value = _key_and_value(line, file, number)
        if not section:
            raise ConfigError("stands before the first [section]", file=file, line=number, key=key)
        yield Entry(section, key, value, file, number)


def _key_and_value(line: str, file: str, number: int) -> tuple[str, str]:
    if line[0] == "'":
        key, quote, rest = line[1:].partition("'")
        if not quote or not key:
            raise ConfigError("expected a name in single quotes: 'name' = value", file=file, line=number)
    else:
        match = _KEY.match(line)
        if match is None:
            hint = " (single quotes, not double ones)" if line[0] == '"' else ""
            raise ConfigError(f'expected "key = value", "[section]" or a comment{hint}', file=file, line=number)
        key, rest = match[0], line[match.end() :]
    rest = rest.lstrip(" \t")
    if not rest.startswith("="):
        problem = 'expected "key = value"; a name with other characters needs single quotes'
        raise ConfigError(problem, file=file, line=number)
    return key, rest[1:].strip(_BLANKS)


def pairs(text: str) -> list[tuple[str, str]]:
    """`k=v k='quoted ''x'''` as a list. Raises ValueError that names the place, not the text: it may be a password."""
    found: list[tuple[str, str]] = []
    at, end = 0, len(text)
    while True:
        at = _skip(text, at)
        if at == end:
            return found
        match = _PAIR_KEY.match(text, at)
        equals = _skip(text, match.end()) if match is not None else at
        if match is None or text[equals : equals + 1] != "=":
            after = f" after {found[-1][0]}= (a value with blanks needs single quotes)" if found else ""
            raise ValueError(f"expected key=value at character {at + 1}{after}")
        value, at = _pair_value(text, _skip(text, equals + 1), match[0])
        found.append((match[0], value))


def _pair_value(text: str, at: int, key: str) -> tuple[str, int]:
    if text[at : at + 1] != "'":
        word = _PAIR_WORD.match(text, at)
        if word is None or not word[0]:
            raise ValueError(f"{key}= has no value")
        return word[0], word.end()
    parts: list[str] = []
    at += 1
    while True:
        quote = text.find("'", at)
        if quote < 0:
            raise ValueError(f"{key}= has a quote that is not closed")
        parts.append(text[at:quote])
        if text[quote + 1 : quote + 2] != "'":
            break
        parts.append("'")
        at = quote + 2
    value = "".join(parts)
    if not value:
        raise ValueError(f"{key}='' is empty; leave the key out instead")
    return value, quote + 1


def _skip(text: str, at: int) -> int:
    blanks = _PAIR_BLANKS.match(text, at)
    return blanks.end() if blanks is not None else at


def quoted(value: str) -> str:
    """A value as `pairs` reads it back."""
    return "'" + value.replace("'", "''") + "'"
