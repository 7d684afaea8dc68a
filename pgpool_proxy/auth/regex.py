r"""PostgreSQL's advanced regular expressions, as far as HBA and ident files use them, compiled with Python's `re`.

The two languages differ where it matters for access: Python's `$` also matches before a newline at the end (a system
user named "alice\n" would pass for "alice"), its `\d` and `\w` know more than ASCII (PostgreSQL compiles these files'
patterns under the C collation), and bracket classes like [[:alnum:]] mean nothing to it. What has no safe counterpart
is refused rather than guessed. Must not know what is matched. Patterns are the operator's; names that they meet are
short (a user has 127 bytes at the most, and hba.py tries no database of more), which bounds what backtracking can cost unless a
pattern nests repetitions, as (a+)+ does.
"""

from __future__ import annotations

import re
from typing import Final

from pgpool_proxy.errors import ConfigError

MAX_PATTERN: Final = 1000
CLASSES: Final = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "word": "a-zA-Z0-9_",
    "xdigit": "0-9A-Fa-f",
}
ESCAPES: Final = {
    **{letter: "\\" + letter for letter in "dDsSwWAZtnrfva123456789"},
    "y": r"\b",
    "Y": r"\B",
    "m": r"\b(?=\w)",
    "M": r"\b(?<=\w)",
}
CLASS_ESCAPES: Final = frozenset("dswtnrfva")
GROUPS: Final = re.compile(r"\(\?(:|=|!|<=|<!)")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern behind the `/`, for `search`. Raises ConfigError where it is wrong or has no counterpart here."""
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(f"a regular expression of more than {MAX_PATTERN} characters")
    try:
        return re.compile(translated(pattern), re.ASCII | re.DOTALL)
    except (re.error, OverflowError, RecursionError) as problem:
        raise ConfigError(f'invalid regular expression "{pattern}": {problem}') from None


def translated(pattern: str) -> str:
    """Python's spelling of `pattern`."""
    if pattern.startswith("***"):
        raise ConfigError(f'regular expression "{pattern}": the *** prefix is not supported')
    out: list[str] = []
    at = 0
    if pattern.startswith("(?i)"):
        out.append("(?i)")
        at = 4
    while at < len(pattern):
        character = pattern[at]
        if character == "[":
            text, at = bracket(pattern, at + 1)
            out.append(text)
            continue
        if character == "\\":
            out.append(escape(pattern, at + 1))
            at += 2
            continue
        if pattern.startswith("(?", at) and GROUPS.match(pattern, at) is None:
            raise ConfigError(f'regular expression "{pattern}": this kind of (?...) is not supported')
        out.append(r"\Z" if character == "$" else character)
        at += 1
    return "".join(out)


def escape(pattern: str, at: int) -> str:
    """The escape whose letter stands at `at`, outside of brackets."""
    letter = pattern[at : at + 1]
    if letter in ESCAPES:
        return ESCAPES[letter]
    if not letter or letter.isalnum():
        raise ConfigError(f'regular expression "{pattern}": \\{letter} is not supported')
    return re.escape(letter)


def bracket(pattern: str, at: int) -> tuple[str, int]:
    """The bracket expression whose inside begins at `at`, and the place behind it."""
    out = ["["]
    if pattern.startswith("^", at):
        out.append("^")
        at += 1
    first = at
    while at < len(pattern):
        character = pattern[at]
        if character == "]" and at > first:
            out.append("]")
            return "".join(out), at + 1
        if character == "[" and pattern[at + 1 : at + 2] in {":", ".", "="}:
            text, at = named_class(pattern, at)
        elif character == "\\":
            letter = pattern[at + 1 : at + 2]
            if not letter or (letter.isalnum() and letter not in CLASS_ESCAPES):
                raise ConfigError(f'regular expression "{pattern}": \\{letter} is not supported in brackets')
            text, at = "\\" + letter, at + 2
        elif pattern.startswith("--", at):
            raise ConfigError(f'regular expression "{pattern}": -- is not supported in brackets')
        else:  # `[`, `&`, `|` and `~` may get a meaning in Python's brackets one day
            text, at = ("\\" + character if character in "[]&|~" else character), at + 1
        out.append(text)
    raise ConfigError(f'regular expression "{pattern}": a bracket is not closed')


def named_class(pattern: str, at: int) -> tuple[str, int]:
    """[:alpha:] and its like."""
    end = pattern.find(":]", at + 2)
    name = pattern[at + 2 : end] if end > 0 else ""
    if pattern[at + 1] != ":" or name not in CLASSES:
        raise ConfigError(f'regular expression "{pattern}": an unknown class in brackets')
    return CLASSES[name], end + 2
