"""`pgpool-proxy check FILE.ini`: what is wrong with a configuration, found before the daemon needs it.

Reads everything that the daemon would read, then logs in to every host of every [databases] entry as an ordinary client
(psycopg), and says which user was tried. An error is something that cannot work and makes the exit code 1; a warning is
something that works but hardly as intended. No line that is printed has a password in it.

Whom it tries: `user=` of the entry; else auth_user; else the users of auth_file whose password is known, until one is let
in, at most MAX_USERS.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from pgpool_proxy.auth.exchange import Secret, parse_require_auth
from pgpool_proxy.auth.secret import PLAIN
from pgpool_proxy.auth.userlist import parse_userlist
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.tls import ClientTls, ServerTls, server_side
from pgpool_proxy.process.rules import read_rules
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import MAIN, Config, beside, load
from pgpool_proxy.settings.entries import AUTODB, DatabaseEntry

CONNECT_TIMEOUT_S: Final = 5
MAX_USERS: Final = 5  # of auth_file are tried on one host; each that is refused is a line in the server's log
ANY_DATABASE: Final = "postgres"  # what `*` is tried with
NO_FILE: Final = f"{os.devnull}/none"  # in place of ~/.pgpass
PREFIX: Final = "PGPOOL_PROXY_"
UNSAFE_MODES: Final = ("disable", "allow", "prefer")


class Findings:
    """Prints a line for each thing that was found; remembers whether any of them is an error."""

    def __init__(self) -> None:
        self.has_errors = False

    def say(self, where: str, text: str) -> None:
        sys.stdout.write(f"{where}{text}\n")

    def error(self, where: str, text: str) -> None:
        self.has_errors = True
        self.say(where, f"error: {text}")

    def warning(self, where: str, text: str) -> None:
        self.say(where, f"warning: {text}")


@dataclass(frozen=True)
class Candidate:
    """A user to try. `password` is None where it is not known as it is typed."""

    user: str
    password: str | None = field(repr=False)
    origin: str


@dataclass(frozen=True)
class Capacity:
    """What a server said of itself. `free` is max_connections less those that are reserved."""

    version: str
    free: int


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when nothing is wrong, 1 when something is."""
    parser = argparse.ArgumentParser(
        prog="pgpool-proxy check", description="Read a configuration and try every database in it."
    )
    parser.add_argument("file", nargs="?", metavar="FILE.ini", help="configuration file; without it, DATABASE_URL")
    given = parser.parse_args(arguments)
    findings = Findings()
    try:
        config = load(given.file, {}, os.environ)
    except ConfigError as error:
        findings.error("", str(error))
        return 1
    if not config.databases and config.autodb is None:
        findings.error(_file(config), "[databases] is empty: there is nothing to connect to")
    for warning in config.warnings:
        findings.warning(_file(config), warning)
    users = _read_files(config, findings)
    found: dict[tuple[str, int], Capacity] = {}
    for entry in _entries(config):
        _check_limits(config, entry, findings)
        _check_tls(config, entry, findings)
        _try_entry(config, entry, users, found, findings)
    _check_capacity(config, found, findings)
    findings.say("", "something is wrong" if findings.has_errors else "nothing is wrong")
    return 1 if findings.has_errors else 0


# --- files --------------------------------------------------------------------------------------------------------------
def _read_files(config: Config, findings: Findings) -> dict[str, Secret]:
    """Everything that the configuration names, as the daemon reads it; the users that are known."""
    for read in (
        lambda: read_rules(config),
        lambda: ClientTls().read(config),
        lambda: ServerTls().read(config),
        lambda: parse_require_auth(config.settings.server_require_auth),
    ):
        try:
            read()
        except ConfigError as error:
            findings.error("" if error.file else _file(config), str(error))
    users = {name: Secret.of(password) for name, password in config.implied_users.items()}
    return users | _read_auth_file(config, findings)


def _read_auth_file(config: Config, findings: Findings) -> dict[str, Secret]:
    name = config.settings.auth_file
    where = _setting(config, "auth_file")
    if not name:
        asks = any(resolve.auth_user(config, entry) for entry in _entries(config))
        if not asks and not config.implied_users and config.settings.auth_type not in ("any", "pam", "ldap"):
            findings.warning(_file(config), "neither auth_file nor auth_user is set: no user is known")
        return {}
    path = beside(config, name)
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        findings.error(where, f"auth_file {path}: {error.strerror}")
        return {}
    users, problems = parse_userlist(text, path)
    for problem in problems:
        findings.error("", f"broken auth file, what follows is not read: {problem}")
    if not users and not problems:
        findings.warning(where, f"auth_file {path} has no users")
    return users


# --- settings that make no sense ------------------------------------------------------------------------------------------
def _check_limits(config: Config, entry: DatabaseEntry, findings: Findings) -> None:
    user = entry.user or ""
    size = resolve.pool_size(config, entry, user)
    least = resolve.min_pool_size(config, entry)
    reserve = resolve.reserve_pool_size(config, entry, user)
    of_database = resolve.max_db_connections(config, entry)
    of_user = resolve.max_user_connections(config, user)
    where, name = _where(entry), f'database "{entry.name}": '
    if of_database and size > of_database:
        findings.warning(where, f"{name}pool_size {size} is over max_db_connections {of_database}")
    elif of_database and size + reserve > of_database:
        total = f"pool_size {size} and reserve_pool_size {reserve}"
        findings.warning(where, f"{name}{total} together are over max_db_connections {of_database}")
    if of_user and size > of_user:
        findings.warning(where, f"{name}pool_size {size} is over max_user_connections {of_user}")
    if size and least > size:
        findings.warning(where, f"{name}min_pool_size {least} is over pool_size {size}")
    elif of_database and least > of_database:
        findings.warning(where, f"{name}min_pool_size {least} is over max_db_connections {of_database}")


def _check_tls(config: Config, entry: DatabaseEntry, findings: Findings) -> None:
    wanted = server_side(config, entry)
    remote = [host for host in resolve.hosts(config, entry) if not _is_local(host)]
    where, name = _where(entry), f'database "{entry.name}": '
    if remote and wanted.mode in UNSAFE_MODES:
        findings.warning(where, f"{name}sslmode {wanted.mode} lets queries cross the network to {remote[0]} in clear")
    if wanted.mode != "disable" and not remote and entry.sslmode and any(_is_unix(host) for host in entry.hosts):
        findings.warning(where, f"{name}sslmode {wanted.mode} has no effect over a unix socket")


def _check_capacity(config: Config, found: dict[tuple[str, int], Capacity], findings: Findings) -> None:
    """Servers that the pools of one user may open, against what the server takes."""
    wanted: dict[tuple[str, int], int] = {}
    names: dict[tuple[str, int], list[str]] = {}
    for entry in _entries(config):
        user = entry.user or ""
        size = resolve.pool_size(config, entry, user)
        of_database = resolve.max_db_connections(config, entry)
        most = size + resolve.reserve_pool_size(config, entry, user) if size else of_database
        most = min(most, of_database) if of_database else most
        for host in resolve.hosts(config, entry):
            capacity = found.get((host, entry.port))
            if capacity is None:
                continue
            at = _address(host, entry.port)
            if most == 0:
                findings.warning(_where(entry), f'database "{entry.name}": nothing limits the servers on {at}')
            elif most > capacity.free:
                takes = f"{at} takes {capacity.free} (max_connections less what is reserved)"
                findings.warning(_where(entry), f'database "{entry.name}": up to {most} servers for one user, {takes}')
            wanted[host, entry.port] = wanted.get((host, entry.port), 0) + most
            names.setdefault((host, entry.port), []).append(entry.name)
    for (host, port), total in wanted.items():
        free = found[host, port].free
        if len(names[host, port]) > 1 and total > free:
            who = ", ".join(names[host, port])
            findings.warning(
                _file(config), f"{who} together: up to {total} servers for one user, {_address(host, port)} takes {free}"
            )


# --- logging in -----------------------------------------------------------------------------------------------------------
def _try_entry(
    config: Config,
    entry: DatabaseEntry,
    users: dict[str, Secret],
    found: dict[tuple[str, int], Capacity],
    findings: Findings,
) -> None:
    candidates = list(_candidates(config, entry, users))
    hosts = resolve.hosts(config, entry)
    if not hosts:
        findings.error(_where(entry), f'database "{entry.name}": no host, and unix_socket_dir is empty')
    for host in hosts:
        what = f'database "{entry.name}" on {_address(host, entry.port)}'
        if not candidates:
            findings.warning(_where(entry), f"{what}: not tried, since no user is known to try it with")
            continue
        capacity = _try_host(config, entry, host, candidates, what, findings)
        if capacity is not None:
            found[host, entry.port] = capacity


def _try_host(
    config: Config, entry: DatabaseEntry, host: str, candidates: list[Candidate], what: str, findings: Findings
) -> Capacity | None:
    """Log in as the first candidate that is let in; None, and an error for each that was tried, when nobody is."""
    refusals: list[str] = []
    for candidate in candidates:
        who = f'{what} as "{candidate.user}" ({candidate.origin})'
        try:
            capacity = _log_in(config, entry, host, candidate)
        except (psycopg.Error, UnicodeError) as error:
            text = _said(error, candidate)
            hint = "" if candidate.password is not None else " (no password was given: it is not known in clear)"
            refusals.append(f"{who}: {text}{hint}")
            if "FATAL" not in text:
                break  # the server was not reached, or spoke no PostgreSQL: another user changes nothing
        else:
            findings.say(_where(entry), f"{who}: OK (PostgreSQL {capacity.version})")
            return capacity
    for refusal in refusals:
        findings.error(_where(entry), refusal)
    return None


def _candidates(config: Config, entry: DatabaseEntry, users: dict[str, Secret]) -> Iterator[Candidate]:
    """Whom to log in as; see the module's docstring."""
    if entry.user is not None:
        if entry.password is not None:
            yield Candidate(entry.user, entry.password, "user= and password= of the entry")
        else:
            yield Candidate(entry.user, _typed(users.get(entry.user)), "user= of the entry")
        return
    auth_user = resolve.auth_user(config, entry)
    if auth_user is not None:
        yield Candidate(auth_user, _typed(users.get(auth_user)), "auth_user")
        return
    known = [name for name, secret in users.items() if secret.kind == PLAIN]
    for name in known[:MAX_USERS]:
        yield Candidate(name, _typed(users[name]), "auth_file" if name not in config.implied_users else "DATABASE_URL")
    if not known:
        for name in list(users)[:1]:
            yield Candidate(name, None, "auth_file")


def _log_in(config: Config, entry: DatabaseEntry, host: str, candidate: Candidate) -> Capacity:
    """Connect, ask what the server takes, leave. Nothing of the environment (PG*) or of ~/.pgpass counts."""
    wanted = server_side(config, entry)
    database = entry.dbname or (ANY_DATABASE if entry.name == AUTODB else entry.name)
    options = {"sslrootcert": wanted.ca, "sslcert": wanted.cert, "sslkey": wanted.key}
    if wanted.direct:
        options["sslnegotiation"] = "direct"
    if _is_unix(host):
        options.clear()
    if config.settings.server_require_auth:
        options["require_auth"] = config.settings.server_require_auth
    conninfo = make_conninfo(
        host=host,
        port=entry.port,
        dbname=database,
        user=candidate.user,
        password=candidate.password or "",
        passfile=NO_FILE,
        sslmode="disable" if _is_unix(host) else wanted.mode,
        gssencmode="disable",
        application_name="pgpool-proxy check",
        connect_timeout=CONNECT_TIMEOUT_S,
        **{name: value for name, value in options.items() if value},
    )
    with _own_environment(), psycopg.connect(conninfo, autocommit=True) as connection:
        most = _number(connection, "max_connections")
        reserved = _number(connection, "superuser_reserved_connections")
        if connection.info.server_version >= 160000:
            reserved += _number(connection, "reserved_connections")
        return Capacity(connection.info.parameter_status("server_version") or "?", most - reserved)


@contextmanager
def _own_environment() -> Iterator[None]:
    """libpq would take what we do not say from PG* variables, which the daemon does not know."""
    theirs = {name: value for name, value in os.environ.items() if name.startswith("PG") and not name.startswith(PREFIX)}
    for name in theirs:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(theirs)


def _number(connection: psycopg.Connection, name: str) -> int:
    row = connection.execute("SELECT pg_catalog.current_setting(%s)", (name,)).fetchone()
    return int(row[0]) if row is not None else 0


# --- words ----------------------------------------------------------------------------------------------------------------
def _entries(config: Config) -> Iterable[DatabaseEntry]:
    return [*config.databases.values(), *([config.autodb] if config.autodb is not None else [])]


def _typed(secret: Secret | None) -> str | None:
    """The password as a user types it, where that is known; an empty one is none at all."""
    return _text(secret) if secret is not None and secret.kind == PLAIN and not secret.is_empty else None


def _text(secret: Secret) -> str:
    return secret.value.decode("utf-8", "surrogateescape")


def _is_unix(host: str) -> bool:
    return host.startswith(("/", "@"))


def _is_local(host: str) -> bool:
    return _is_unix(host) or host in ("localhost", "::1") or host.startswith("127.")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _said(error: Exception, candidate: Candidate) -> str:
    """A driver's or a server's words on one line. They are not ours, so a password in them is taken out."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text.replace(candidate.password, "***") if candidate.password else text


def _where(entry: DatabaseEntry) -> str:
    return f"{entry.file}:{entry.line}: " if entry.file and entry.line else f"{entry.file}: " if entry.file else ""


def _file(config: Config) -> str:
    return f"{config.path}: " if config.path is not None else ""


def _setting(config: Config, key: str) -> str:
    file, line = config.where.get((MAIN, key), ("", 0))
    return f"{file}:{line}: " if file and line else f"{file}: " if file else _file(config)
