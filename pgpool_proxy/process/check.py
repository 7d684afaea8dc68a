"""`pgpool-proxy check FILE.ini`: reads a configuration, tries every database in it, and says what is wrong with which line.

It asks as an ordinary client does, with psycopg; nothing of the daemon's data path is used. Each host of a list is tried. A
password is never shown.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psycopg

from pgpool_proxy.auth.secret import PLAIN, Secret
from pgpool_proxy.auth.userlist import parse_userlist
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config, beside, load
from pgpool_proxy.settings.entries import DatabaseEntry

CONNECT_TIMEOUT_S: Final = 5
NO_AUTH_FILE: Final = frozenset({"any", "hba", "pam", "ldap"})


class Report:
    """What was found, printed as it is found."""

    def __init__(self) -> None:
        self.problems = 0

    def good(self, text: str) -> None:
        sys.stdout.write(f"ok       {text}\n")

    def note(self, text: str) -> None:
        sys.stdout.write(f"note     {text}\n")

    def bad(self, text: str) -> None:
        self.problems += 1
        sys.stdout.write(f"PROBLEM  {text}\n")


def main(arguments: list[str]) -> int:
    """Exit code 0 when nothing is wrong, 1 when something is."""
    parser = argparse.ArgumentParser(prog="pgpool-proxy check", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", metavar="FILE.ini", help="configuration file; without it, the environment's")
    options = parser.parse_args(arguments)
    report = Report()
    try:
        config = load(options.file, {}, os.environ)
    except ConfigError as error:
        report.bad(str(error))
        return 1
    for warning in config.warnings:
        report.note(warning)
    users = check_users(config, report)
    if not config.databases and config.autodb is None:
        report.bad(f"{options.file or 'environment'}: no database is configured")
    if config.autodb is not None:
        report.note(f"{where(config.autodb)}: * covers any database name, which cannot be tried")
    for entry in config.databases.values():
        check_database(config, entry, users, report)
    sys.stdout.write(f"{report.problems} problem{'' if report.problems == 1 else 's'}\n")
    return 1 if report.problems else 0


def where(entry: DatabaseEntry) -> str:
    """The line of the entry."""
    place = f"{entry.file}:{entry.line}" if entry.line else entry.file or "environment"
    return f"{place}: {entry.name}"


def check_users(config: Config, report: Report) -> dict[str, Secret]:
    """The users of auth_file and of DATABASE_URL; says what is wrong with the file."""
    users = {name: Secret.of(password) for name, password in config.implied_users.items() if password}
    name = config.settings.auth_file
    if not name:
        if not users and config.settings.auth_type not in NO_AUTH_FILE and not _has_auth_user(config):
            report.bad(f"{config.path}: auth_file is not set, and auth_type = {config.settings.auth_type} needs one")
        return users
    path = beside(config, name)
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        file, line = config.where.get(("pgbouncer", "auth_file"), (config.path or "", 0))
        report.bad(f"{file}:{line}: auth_file {path}: {error.strerror}")
        return users
    found, problems = parse_userlist(text, path)
    for problem in problems:
        report.bad(str(problem))
    report.good(f"{path}: {len(found)} user{'' if len(found) == 1 else 's'}")
    return users | found


def _has_auth_user(config: Config) -> bool:
    return bool(config.settings.auth_user) or any(entry.auth_user for entry in config.databases.values())


def check_database(config: Config, entry: DatabaseEntry, users: dict[str, Secret], report: Report) -> None:
    """Try one entry, at each of its hosts."""
    for limit in impossible_limits(config, entry):
        report.bad(f"{where(entry)}: {limit}")
    account = account_for(config, entry, users)
    if account is None:
        report.note(f"{where(entry)}: no user with a plain password is known, so it was not tried")
        return
    hosts = resolve.hosts(config, entry)
    if not hosts:
        report.bad(f"{where(entry)}: no host, and unix_socket_dir is empty")
    for host in hosts:
        try_host(config, entry, host, account, report)


def impossible_limits(config: Config, entry: DatabaseEntry) -> Iterable[str]:
    """Settings that contradict each other."""
    size = resolve.pool_size(config, entry, entry.user or "")
    smallest = resolve.min_pool_size(config, entry)
    most = resolve.max_db_connections(config, entry)
    if size and smallest > size:
        yield f"min_pool_size {smallest} is more than pool_size {size}"
    if most and smallest > most:
        yield f"min_pool_size {smallest} is more than max_db_connections {most}"


def account_for(config: Config, entry: DatabaseEntry, users: dict[str, Secret]) -> tuple[str, str] | None:
    """(user, password) to try the entry with: its own, auth_user's, or the first of auth_file with a plain password."""
    if entry.user is not None:
        secret = users.get(entry.user)
        known = secret.value.decode("utf-8", "surrogateescape") if secret is not None and secret.kind == PLAIN else ""
        return entry.user, known if entry.password is None else entry.password
    candidates = [name for name in (resolve.auth_user(config, entry),) if name] + list(users)
    for name in candidates:
        secret = users.get(name)
        if secret is not None and secret.kind == PLAIN:
            return name, secret.value.decode("utf-8", "surrogateescape")
    return None


def try_host(config: Config, entry: DatabaseEntry, host: str, account: tuple[str, str], report: Report) -> None:
    """Log in once, and ask the server how many connections it takes."""
    user, password = account
    target = f"{where(entry)}: {host}:{entry.port} database {entry.dbname or entry.name} as {user}"
    mode = config.settings.server_tls_sslmode
    try:
        connection = psycopg.connect(
            host=host,
            port=entry.port,
            dbname=entry.dbname or entry.name,
            user=user,
            password=password or None,
            connect_timeout=CONNECT_TIMEOUT_S,
            sslmode="prefer" if host.startswith(("/", "@")) else mode,
            application_name="pgpool-proxy check",
        )
    except psycopg.Error as error:
        report.bad(f"{target}: {first_line(error)}")
        return
    with connection:
        row = connection.execute("SHOW max_connections").fetchone()
    report.good(target)
    wanted = resolve.max_db_connections(config, entry) or (
        resolve.pool_size(config, entry, entry.user or "") + resolve.reserve_pool_size(config, entry, entry.user or "")
    )
    if row is not None and wanted > int(row[0]):
        report.bad(f"{where(entry)}: up to {wanted} server connections, but the server takes {row[0]} (max_connections)")


def first_line(error: Exception) -> str:
    """The last line of psycopg's text, where the server's own words are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
