"""The kinds of value that a configuration key can have: how its text is read, checked and printed back.

A `Key` is metadata: model.py hangs one on every field of `Settings`, entries.py keeps a table of them for
`[databases]`, `[users]` and `[peers]`. Knows no key by name, no file and no pydantic. Reading follows libusual (strtol
base 0, decimal seconds, case-insensitive words) and is lenient in two places that cannot be mistaken: booleans may be
words, and a value that is a number or a word from a list may be followed by a blank and a `#` or `;` comment.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from typing import Final, TypeAlias

Value: TypeAlias = str | int | float | bool | None

INT_MAX: Final = 2_147_483_647
"""PgBouncer keeps whole numbers in a C int."""
SECONDS_MAX: Final = 9e12
"""PgBouncer keeps times as microseconds in 64 bits."""

_WHOLE: Final = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_DECIMAL: Final = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_COMMENT: Final = re.compile(r"[ \t]+[#;]")
_TRUE: Final = frozenset({"on", "true", "yes"})
_FALSE: Final = frozenset({"off", "false", "no"})


def uncommented(text: str) -> str:
    """The value without blanks around it and without a trailing comment."""
    return _COMMENT.split(text, maxsplit=1)[0].strip()


def strtol(text: str) -> int | None:
    """A whole number as strtol(3) with base 0 reads it: decimal, 0x hexadecimal, 0 octal. None when it is not one."""
    if _WHOLE.fullmatch(text) is None:
        return None
    sign = -1 if text[0] == "-" else 1
    digits = text.lstrip("+-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return sign * int(digits, base)


@dataclass(frozen=True)
class Key:
    """What is known about one key besides its name, type and default."""

    doc: str
    _: KW_ONLY
    changeable: bool = True
    """RELOAD and SET change it; the others need a restart."""
    effect: bool = True
    """False: read, checked and shown for compatibility, changes nothing here."""
    own: bool = False
    """Not a key of PgBouncer."""
    secret: bool = False
    """Its value is never printed."""
    unset: bool = False
    """PgBouncer's default is NULL: RELOAD keeps the last value that was given."""
    default_text: str = ""
    """The default as PgBouncer prints it, where that is not the value printed."""

    @property
    def expected(self) -> str:
        """What a good value looks like, for error messages and docs/config.md."""
        return "text"

    def parse(self, text: str) -> Value:
        """The value of `text`. Raises ValueError, saying what was expected."""
        return text

    def show(self, value: Value) -> str | None:
        """The value as SHOW CONFIG prints it."""
        return None if value is None else str(value)

    def refuse(self, text: str) -> ValueError:
        got = "" if self.secret else f', got "{text}"'
        return ValueError(f"expected {self.expected}{got}")


@dataclass(frozen=True)
class Text(Key):
    """Free text: nothing is cut off and nothing is a comment."""

    required: bool = False

    @property
    def expected(self) -> str:
        return "text, not empty" if self.required else "text"

    def parse(self, text: str) -> Value:
        if "\0" in text or "\n" in text:
            raise ValueError("expected one line of text")
        if self.required and not text:
            raise self.refuse(text)
        return text


@dataclass(frozen=True)
class Whole(Key):
    """A whole number."""

    low: int = 0
    high: int = INT_MAX
    zero: str = ""
    """A word for 0."""

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}" + (f", or {self.zero}" if self.zero else "")

    def parse(self, text: str) -> Value:
        plain = uncommented(text)
        if self.zero and plain.lower() == self.zero:
            return 0
        number = strtol(plain)
        if number is None or not self.low <= number <= self.high:
            raise self.refuse(text)
        return number

    def show(self, value: Value) -> str | None:
        return self.zero if self.zero and value == 0 else super().show(value)


@dataclass(frozen=True)
class Flag(Key):
    """A boolean. PgBouncer's are whole numbers; on, off, true, false, yes and no are understood as well."""

    @property
    def expected(self) -> str:
        return "0 or 1 (off or on, false or true, no or yes)"

    def parse(self, text: str) -> Value:
        word = uncommented(text).lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        number = strtol(word)
        if number is None:
            raise self.refuse(text)
        return number != 0

    def show(self, value: Value) -> str | None:
        return "1" if value else "0"


@dataclass(frozen=True)
class Seconds(Key):
    """A time: decimal seconds, not negative, no units."""

    @property
    def expected(self) -> str:
        return "seconds, a decimal number from 0, without a unit"

    def parse(self, text: str) -> Value:
        plain = uncommented(text)
        if _DECIMAL.fullmatch(plain) is None or float(plain) > SECONDS_MAX:
            raise self.refuse(text)
        return float(plain)

    def show(self, value: Value) -> str | None:
        return f"{value:g}" if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Word(Key):
    """One word of a list, in any case."""

    words: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.words)

    def parse(self, text: str) -> Value:
        word = uncommented(text).lower()
        if word not in self.words:
            raise self.refuse(text)
        return word
