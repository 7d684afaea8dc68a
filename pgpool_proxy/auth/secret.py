"""What is stored to prove a user by: plain password, md5 hash or SCRAM secret; and the keys that a SCRAM login leaves.

Knows the three stored forms (PostgreSQL's pg_authid.rolpassword) and how to tell one from another. Must not know
where a secret came from (auth_file, auth_query, a `password=` key), nor the messages of a login. No `repr` here shows
a secret.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import Final

PLAIN: Final = "plain"
MD5: Final = "md5"
SCRAM: Final = "scram"

# PostgreSQL writes lower case, and takes anything else for a plain password.
MD5_HEX: Final = frozenset(b"0123456789abcdef")
SCRAM_PREFIX: Final = b"SCRAM-SHA-256$"
KEY_BYTES: Final = 32  # SHA-256
MAX_STORED_ITERATIONS: Final = 0x7FFFFFFF  # scram_iterations is an int in PostgreSQL


class ScramKeys:
    """ClientKey and ServerKey of a SCRAM login: enough to log in as that user where the same secret is stored."""

    __slots__ = ("client_key", "server_key")

    def __init__(self, client_key: bytes, server_key: bytes) -> None:
        self.client_key = client_key
        self.server_key = server_key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScramKeys) and (self.client_key, self.server_key) == (other.client_key, other.server_key)

    def __hash__(self) -> int:
        return hash((self.client_key, self.server_key))

    def __repr__(self) -> str:
        return "ScramKeys()"


@dataclass(frozen=True, slots=True)
class ScramSecret:
    """A parsed SCRAM-SHA-256 secret: `salt` raw, `iterations`, and two keys of 32 bytes."""

    salt: bytes = field(repr=False)
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def formatted(self) -> bytes:
        """PostgreSQL's text form: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey."""
        salt, stored, server = (base64_of(part) for part in (self.salt, self.stored_key, self.server_key))
        return b"%s%d:%s$%s:%s" % (SCRAM_PREFIX, self.iterations, salt, stored, server)


@dataclass(frozen=True, slots=True)
class Secret:
    """One user's secret: `kind` is PLAIN, MD5 or SCRAM, `value` the stored bytes, `scram` the parsed form of SCRAM.

    An empty plain secret stands for "known, but without a password": it proves nobody.
    """

    kind: str
    value: bytes = field(repr=False)
    scram: ScramSecret | None = field(default=None, repr=False)

    @classmethod
    def of(cls, stored: str | bytes) -> Secret:
        """The secret that PostgreSQL would see in `stored`: what is neither md5 nor SCRAM is a plain password."""
        value = encoded(stored) if isinstance(stored, str) else stored
        if is_md5(value):
            return cls(MD5, value)
        scram = parse_scram_secret(value)
        return cls(PLAIN, value) if scram is None else cls(SCRAM, value, scram)

    @classmethod
    def of_scram(cls, scram: ScramSecret) -> Secret:
        """The same for a secret that is already parsed, or was just derived."""
        return cls(SCRAM, scram.formatted(), scram)

    @property
    def is_empty(self) -> bool:
        return not self.value


def is_md5(value: bytes) -> bool:
    """True for `md5` and 32 lower-case hex digits."""
    return len(value) == 35 and value.startswith(b"md5") and MD5_HEX.issuperset(value[3:])


def parse_scram_secret(value: bytes) -> ScramSecret | None:
    """The secret in PostgreSQL's text form, or None when `value` is not exactly that."""
    if not value.startswith(SCRAM_PREFIX):
        return None
    parts = value[len(SCRAM_PREFIX) :].split(b"$")
    if len(parts) != 2:
        return None
    count, colon, salt_text = parts[0].partition(b":")
    stored_text, second_colon, server_text = parts[1].partition(b":")
    iterations = parse_count(count, MAX_STORED_ITERATIONS)
    salt, stored_key, server_key = strict_base64(salt_text), strict_base64(stored_text), strict_base64(server_text)
    if not colon or not second_colon or iterations is None or not salt or stored_key is None or server_key is None:
        return None
    if len(stored_key) != KEY_BYTES or len(server_key) != KEY_BYTES:
        return None
    return ScramSecret(salt, iterations, stored_key, server_key)


def parse_count(text: bytes, most: int) -> int | None:
    """A count of 1 to `most` in plain decimal digits, or None. Says no before `int` is asked to read a long number."""
    if not 1 <= len(text) <= 10 or not text.isdigit():
        return None
    count = int(text)
    return count if 1 <= count <= most else None


def strict_base64(text: bytes) -> bytes | None:
    """The bytes of canonical base64, or None: no spaces, no missing padding, no stray bits in the last character."""
    try:
        raw = binascii.a2b_base64(text)
    except binascii.Error:
        return None
    return raw if base64_of(raw) == text else None


def base64_of(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False)


def encoded(text: str) -> bytes:
    """A name or password as the bytes it was read from; lone surrogates stand for bytes that were no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that no decoder makes
        return text.encode("utf-8", "backslashreplace")
