"""The console's statements: text in, a `Statement` out. Knows what one looks like, not what it does (commands.py).

    VERB [argument] [TIMEOUT seconds] [;]
    SET key = value [;]      SET key TO value [;]

Words are case-insensitive, but for arguments. An argument with other characters than letters, digits and _ needs double
quotes, as in SQL; a value may stand in single quotes. One statement at a time, as in PgBouncer. BEGIN, COMMIT, RESET ALL and
their kin are understood, because drivers send them unasked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pgpool_proxy.admin.control import BAD_ARGUMENTS, Refused, error

MAX_SHOWN: Final = 1000  # characters of a wrong statement that its error repeats; PgBouncer's whole message has 1,023
MAX_ARGUMENT: Final = 127  # characters of a name: PgBouncer's longest user name
MAX_TIMEOUT_S: Final = 1e6
MAX_TOKENS: Final = 100  # words and signs: far more than any statement has

_TOKEN: Final = re.compile(
    r"""[ \t\r\n\f]*(?:(?P<ident>"(?:[^"]|"")*")|(?P<string>'(?:[^']|'')*')|(?P<word>[0-9]+\.[0-9]+|\w+)|(?P<sign>[=;]))"""
)
_REST_IS_BLANK: Final = re.compile(r"[ \t\r\n\f]*\Z")
_PLAIN_VALUE: Final = re.compile(r"[ \t\r\n\f]*(?P<word>[^\s'\";=]+)")
_TRANSACTION: Final = {
    "begin": "BEGIN", "start": "BEGIN", "commit": "COMMIT", "end": "COMMIT", "rollback": "ROLLBACK", "abort": "ROLLBACK",
}  # fmt: skip
_STATEMENT_RESETS: Final = {"discard all", "deallocate all"}
_RESETS: Final = {*_STATEMENT_RESETS, "reset all", "close all", "unlisten *", "select pg_advisory_unlock_all()"}
"""What drivers' pools say when a connection is given back, several at once. There is nothing to reset but statements."""
STATEMENTS: Final = "statements"


@dataclass(frozen=True, slots=True)
class Statement:
    """`verb` is in capitals, and empty for a statement that says nothing."""

    verb: str
    argument: str = ""
    value: str = ""
    timeout_s: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    @property
    def plain(self) -> str:
        """The word in lower case; empty for everything that is not a bare word."""
        return self.text.lower() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """The word as it stands, or what the quotes hold."""
        if self.kind == "word":
            return self.text
        quote = self.text[0]
        return self.text[1:-1].replace(quote * 2, quote)


def invalid(text: str) -> Refused:
    """PgBouncer's answer to everything that it does not understand. The log does not repeat it: it may hold a secret."""
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return Refused(error(f"invalid command '{shown}', use SHOW HELP;"), error("invalid command"))


def parse(text: str) -> Statement:
    """The statement of a query. Raises `Refused`."""
    resets = {" ".join(part.lower().split()) for part in text.split(";") if part.strip()}
    if resets and resets <= _RESETS:
        return Statement("RESET", STATEMENTS if resets & _STATEMENT_RESETS else "", text=text)
    tokens = _tokens(text)
    if not tokens:
        return Statement("", text=text)
    first = tokens[0].plain
    if first == "set":
        return _set(text, tokens)
    if first in _TRANSACTION and all(token.plain for token in tokens[1:]):
        return Statement(_TRANSACTION[first], text=text)
    rest = tokens[1:]
    timeout_s = 0.0
    if len(rest) >= 2 and rest[-2].plain == "timeout":
        timeout_s = _seconds(text, rest[-1])
        rest = rest[:-2]
    if not first or len(rest) > 1 or any(token.kind not in ("word", "ident") for token in rest):
        raise invalid(text)
    argument = rest[0].name if rest else ""
    if len(argument) > MAX_ARGUMENT:
        raise Refused(BAD_ARGUMENTS)
    return Statement(first.upper(), argument, timeout_s=timeout_s, text=text)


def _tokens(text: str) -> list[_Token]:
    """All tokens but the semicolons at the end. A value of SET may be a bare path or decimal number."""
    found: list[_Token] = []
    at = 0
    while True:
        if _REST_IS_BLANK.match(text, at):
            break
        match = _PLAIN_VALUE.match(text, at) if _is_value_next(found) else None
        match = match or _TOKEN.match(text, at)
        if match is None or match.lastgroup is None or len(found) >= MAX_TOKENS:
            raise invalid(text)
        found.append(_Token(match.lastgroup, match[match.lastgroup]))
        at = match.end()
    while found and found[-1].text == ";":
        found.pop()
    return found


def _is_value_next(tokens: list[_Token]) -> bool:
    return len(tokens) == 3 and tokens[0].plain == "set" and (tokens[2].text == "=" or tokens[2].plain == "to")


def _set(text: str, tokens: list[_Token]) -> Statement:
    if len(tokens) != 4 or tokens[1].kind not in ("word", "ident") or not (tokens[2].text == "=" or tokens[2].plain == "to"):
        raise invalid(text)
    if tokens[3].kind == "sign":
        raise invalid(text)
    key = tokens[1].name
    if not key or len(key) > MAX_ARGUMENT:
        raise Refused(BAD_ARGUMENTS)
    return Statement("SET", key, tokens[3].name, text=text)


def _seconds(text: str, token: _Token) -> float:
    try:
        seconds = float(token.name)
    except ValueError:
        raise invalid(text) from None
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise Refused(error("the timeout has to be a number of seconds greater than 0", "22023"))
    return seconds
