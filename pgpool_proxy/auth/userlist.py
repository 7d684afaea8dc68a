"""PgBouncer's auth_file: `"user" "password"` lines, read and written.

Knows the file's syntax. Must not know the file system (text comes in as a string) nor what a secret is good for.
"""

from __future__ import annotations

from typing import Final

from pgpool_proxy.auth.secret import ScramSecret, Secret, encoded, parse_scram_secret
from pgpool_proxy.errors import ConfigError

__all__ = ["ScramSecret", "Secret", "format_entry", "parse_scram_secret", "parse_userlist", "quoted"]

MAX_USERNAME: Final = 127  # PgBouncer's, in bytes
MAX_PASSWORD: Final = 65530
BLANKS: Final = " \t\n\r\v\f"  # C's isspace; a no-break space is part of nothing


def parse_userlist(text: str, file: str = "") -> tuple[dict[str, Secret], list[ConfigError]]:
    """All users of an auth_file, and what is wrong with it.

    As in PgBouncer: a later line wins, what follows the password is ignored, and a syntax error ends the reading, so
    that `problems` has one element at the most. A user with an empty password is known, with an empty secret.
    """
    users: dict[str, Secret] = {}
    at = 0
    try:
        while (at := skip_blank(text, at)) < len(text):
            name, at = read_quoted(text, at)
            if len(encoded(name)) > MAX_USERNAME:
                raise SyntaxProblem("username too long in auth file", at)
            password, at = read_quoted(text, find_password(text, at))
            if len(encoded(password)) > MAX_PASSWORD:
                raise SyntaxProblem("password too long in auth file", at)
            users[name] = Secret.of(password)
            at = end_of_line(text, at)
    except SyntaxProblem as problem:
        return users, [ConfigError(problem.what, file=file, line=text.count("\n", 0, problem.at) + 1)]
    return users, []


def format_entry(user: str, secret: Secret | str) -> str:
    """One line of an auth_file, with its newline. Raises ConfigError for what the file cannot hold."""
    password = secret.value.decode("utf-8", "surrogateescape") if isinstance(secret, Secret) else secret
    if not user or len(encoded(user)) > MAX_USERNAME or len(encoded(password)) > MAX_PASSWORD:
        raise ConfigError("user name or password is empty or too long for an auth file")
    if "\0" in user or "\0" in password:
        raise ConfigError("a zero byte cannot stand in an auth file")
    return f"{quoted(user)} {quoted(password)}\n"


def quoted(text: str) -> str:
    """In quotation marks, those inside doubled."""
    return '"' + text.replace('"', '""') + '"'


class SyntaxProblem(Exception):
    """`what` is wrong, and `at` which character; never leaves this module."""

    def __init__(self, what: str, at: int) -> None:
        self.what = what
        self.at = at
        super().__init__(what)


def skip_blank(text: str, at: int) -> int:
    """Past blanks and comment lines."""
    while at < len(text):
        if text[at] == ";":
            at = end_of_line(text, at)
        elif text[at] in BLANKS:
            at += 1
        else:
            break
    return at


def find_password(text: str, at: int) -> int:
    """Past anything between name and password, on the same line.

    PgBouncer looks on the next lines too, and there gives a user without a password the next user's name for one.
    """
    found = text.find('"', at, end_of_line(text, at))
    if found < 0:
        raise SyntaxProblem("broken auth file: a user without a password", at)
    return found


def read_quoted(text: str, at: int) -> tuple[str, int]:
    """The string that begins at `at`, and the place after it."""
    if text[at] != '"':
        raise SyntaxProblem('broken auth file: expected "user" "password"', at)
    end = at + 1
    while True:
        end = text.find('"', end)
        if end < 0:
            raise SyntaxProblem("broken auth file: a quotation mark is missing", at)
        if text[end + 1 : end + 2] != '"':
            break
        end += 2
    value = text[at + 1 : end].replace('""', '"')
    if "\0" in value:
        raise SyntaxProblem("broken auth file: a zero byte", at)
    return value, end + 1


def end_of_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found
