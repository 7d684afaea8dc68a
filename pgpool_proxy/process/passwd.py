"""`pgpool-proxy passwd`: writes and checks entries of an auth_file, and imports them from a server's pg_authid.

A file is replaced as a whole (a reader sees the old one or the new one) and keeps its comments, owner and mode; a new one can
be read by its owner only. Passwords come from the terminal or from the standard input, never from the command line, where every
user of the machine could read them.
"""

from __future__ import annotations

import argparse
import getpass
import hmac
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.md5 import md5_secret
from pgpool_proxy.auth.plain import MAX_PASSWORD
from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.auth.secret import MD5, Secret, encoded
from pgpool_proxy.auth.userlist import (
    end_of_line,
    find_password,
    format_entry,
    parse_userlist,
    read_quoted,
    skip_blank,
)
from pgpool_proxy.errors import ConfigError

METHODS: Final = ("scram-sha-256", "md5", "plain")
ROLES: Final = (
    "SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolcanlogin AND rolpassword IS NOT NULL ORDER BY rolname"
)
NEW_FILE_MODE: Final = 0o600


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="pgpool-proxy passwd", description="Write, check or import entries of an auth_file (PgBouncer's userlist.txt)."
    )
    found.add_argument("user", nargs="*", help="user name; with --import, the roles to import (default: all that may log in)")
    found.add_argument("-f", "--file", help="auth_file to change; without it the entry is printed")
    found.add_argument("-m", "--method", choices=METHODS, default="scram-sha-256", help="form of the secret")
    found.add_argument("-i", "--iterations", type=int, default=4096, help="SCRAM iterations (default: %(default)s)")
    found.add_argument("--stdin", action="store_true", help="read the password from the standard input, one line")
    action = found.add_mutually_exclusive_group()
    action.add_argument("-c", "--check", action="store_true", help="check a password against the entry in --file")
    action.add_argument("-D", "--delete", action="store_true", help="delete the entry from --file")
    action.add_argument(
        "--import", dest="source", metavar="CONNINFO", help="import from pg_authid of this server, as a superuser"
    )
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when it is done, or the password fits; 1 when not."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except ConfigError as error:
        print(f"pgpool-proxy passwd: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Do what the options say. Raises ConfigError."""
    if options.source is not None:
        store(options.file, imported(options.source, options.user))
        return 0
    if len(options.user) != 1:
        raise ConfigError("expected one user name")
    user: str = options.user[0]
    if options.check or options.delete:
        if options.file is None:
            raise ConfigError("expected --file")
        users = read(options.file)
        if user not in users:
            raise ConfigError(f'there is no user "{user}" in {options.file}')
        if options.delete:
            replace(options.file, {user: None})
            return 0
        if fits(user, users[user], password(options.stdin, twice=False)):
            print("the password fits")
            return 0
        print("the password does not fit", file=sys.stderr)
        return 1
    if not 1 <= options.iterations <= 1_000_000:
        raise ConfigError("expected 1 to 1000000 iterations")
    store(options.file, {user: secret_of(options.method, user, password(options.stdin, twice=True), options.iterations)})
    return 0


# --- passwords --------------------------------------------------------------------------------------------------------------
def password(stdin: bool, twice: bool) -> bytes:
    """Raises ConfigError."""
    if stdin or not sys.stdin.isatty():
        typed = sys.stdin.readline().removesuffix("\n")
    else:
        typed = getpass.getpass("Password: ")
        if twice and getpass.getpass("Again: ") != typed:
            raise ConfigError("the two differ")
    if not typed or "\0" in typed or len(encoded(typed)) > MAX_PASSWORD:
        raise ConfigError(f"expected a password of 1 to {MAX_PASSWORD} bytes")
    return encoded(typed)


def secret_of(method: str, user: str, typed: bytes, iterations: int) -> Secret:
    """A new secret for a password."""
    if method == "plain":
        secret = Secret.of(typed)
        if secret.kind != "plain":
            raise ConfigError("this password would be taken for a hash")
        return secret
    if method == "md5":
        return Secret.of(md5_secret(typed, user))
    return Secret.of_scram(scram.new_secret(typed, os.urandom(scram.SALT_BYTES), iterations))


def fits(user: str, secret: Secret, typed: bytes) -> bool:
    stored = secret.scram
    if stored is not None:
        salted = scram.salted_password(saslprep(typed), stored.salt, stored.iterations)
        found = scram.stored_key_from(scram.client_key_from(salted))
        return hmac.compare_digest(found, stored.stored_key)
    if secret.kind == MD5:
        typed = md5_secret(typed, user)
    return hmac.compare_digest(typed, secret.value)


def imported(conninfo: str, names: Sequence[str]) -> dict[str, Secret | None]:
    """Roles with a password, from an ordinary connection. Raises ConfigError."""
    import psycopg

    try:
        # A database without an encoding would give bytes to who does not ask for one.
        with psycopg.connect(conninfo, connect_timeout=10, client_encoding="utf8") as connection:
            rows = connection.execute(ROLES).fetchall()
    except (psycopg.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"could not import: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    found: dict[str, Secret | None] = {str(name): Secret.of(str(secret)) for name, secret in rows}
    for name in names:
        if name not in found:
            raise ConfigError(f'there is no role "{name}" that may log in with a password')
    return {name: found[name] for name in names} if names else found


# --- files ------------------------------------------------------------------------------------------------------------------
def text_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def read(path: str) -> dict[str, Secret]:
    """Raises ConfigError."""
    try:
        users, problems = parse_userlist(text_of(path), path)
    except OSError as error:
        raise ConfigError(f"could not read {path}: {error.strerror}") from None
    if problems:
        raise problems[0]
    return users


def store(path: str | None, secrets: Mapping[str, Secret | None]) -> None:
    """Print the entries, or put them into a file. Raises ConfigError."""
    if path is not None:
        replace(path, secrets)
        return
    for user, secret in secrets.items():
        if secret is not None:
            sys.stdout.write(format_entry(user, secret))


def replace(path: str, secrets: Mapping[str, Secret | None]) -> None:
    """New entries for these users, None for none; all else stays as it is. Raises ConfigError."""
    if Path(path).exists():
        read(path)  # a broken file is not made worse
        text = text_of(path)
    else:
        text = ""
    fresh = merged(text, secrets)
    try:
        write(Path(path), fresh)
    except OSError as error:
        raise ConfigError(f"could not write {path}: {error.strerror}") from None


def merged(text: str, secrets: Mapping[str, Secret | None]) -> str:
    """The text of a file that reads well, with other entries for these users: each where its last one stood, or at the end."""
    spans: list[tuple[int, int, str]] = []
    at = 0
    while (at := skip_blank(text, at)) < len(text):
        start = at
        name, at = read_quoted(text, at)
        _, at = read_quoted(text, find_password(text, at))
        at = end_of_line(text, at)
        spans.append((start, at, name))
    last = {name: start for start, _, name in spans}
    out: list[str] = []
    done = 0
    for start, end, name in spans:
        if name not in secrets:
            continue
        out.append(text[done:start])
        secret = secrets[name]
        done = end
        if secret is not None and last[name] == start:
            out.append(format_entry(name, secret).removesuffix("\n"))
        elif text[end : end + 1] == "\n":
            done += 1
    out.append(text[done:])
    whole = "".join(out)
    if whole and not whole.endswith("\n"):
        whole += "\n"
    new = {name: secret for name, secret in secrets.items() if secret is not None and name not in last}
    return whole + "".join(format_entry(name, secret) for name, secret in new.items())


def write(path: Path, text: str) -> None:
    """All at once. Raises OSError."""
    path = path.resolve()
    stat = path.stat() if path.exists() else None
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), NEW_FILE_MODE if stat is None else stat.st_mode & 0o777)
            if stat is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), stat.st_uid, stat.st_gid)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
