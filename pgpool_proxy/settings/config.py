"""`load`: files, environment and command line made into one `Config`.

Holds the order of the sources and the rules that need all of them. Nothing is half loaded: either a `Config` comes back
or a ConfigError says what is wrong where. Decides no precedence between user, database and global (resolve.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import entries
from pgpool_proxy.settings.entries import AUTODB, DatabaseEntry, PeerEntry, UserEntry
from pgpool_proxy.settings.ini import Entry, read_ini
from pgpool_proxy.settings.keys import Value
from pgpool_proxy.settings.model import ENVIRONMENT_PREFIX, KEYS, Settings, parse_setting, read_settings, unknown
from pgpool_proxy.settings.url import DatabaseUrl, read_url, urls

MAIN: Final = "pgbouncer"
SECTIONS: Final = (MAIN, "databases", "users", "peers")
FOR_URL: Final = {"listen_addr": "*", "auth_type": "scram-sha-256"}
"""What a set-up by DATABASE_URL starts from: reachable from outside of its container, by every driver."""


@dataclass(frozen=True, repr=False)
class Config:
    """Everything that was configured. Never changed in place: RELOAD and SET make another one (reconfig.py)."""

    settings: Settings = field(default_factory=Settings)
    databases: dict[str, DatabaseEntry] = field(default_factory=dict)
    autodb: DatabaseEntry | None = None
    """The `*` entry."""
    users: dict[str, UserEntry] = field(default_factory=dict)
    peers: dict[int, PeerEntry] = field(default_factory=dict)
    path: str | None = None
    implied_users: dict[str, str] = field(default_factory=dict)
    """User -> password, from DATABASE_URL: known as if auth_file had them."""
    where: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """(section, key) -> (file, line), for what was given and is not a default."""
    auth_file_stamp: tuple[str, int, int, int, int, int, int, int] | None = None
    """Name and stat of auth_file when this was loaded; RELOAD reads the file again when it differs."""
    warnings: tuple[str, ...] = ()
    """What is odd but no error; to be logged once."""

    def database(self, name: str) -> DatabaseEntry | None:
        """The entry for a database that a client asks for; one made from `*` when there is no other."""
        found = self.databases.get(name)
        if found is None and self.autodb is not None:
            return self.autodb.for_name(name)
        return found

    def __repr__(self) -> str:
        star = " autodb" if self.autodb is not None else ""
        return f"<Config {self.path} databases={len(self.databases)}{star} users={len(self.users)} {self.settings!r}>"


@dataclass
class _Found:
    """What the ini file said so far."""

    settings: dict[str, Value] = field(default_factory=dict)
    databases: dict[str, DatabaseEntry] = field(default_factory=dict)
    users: dict[str, UserEntry] = field(default_factory=dict)
    peers: dict[int, PeerEntry] = field(default_factory=dict)
    where: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    main: bool = False


def load(path: str | None, overrides: Mapping[str, str], environ: Mapping[str, str]) -> Config:
    """Command line (`overrides`) > PGPOOL_PROXY_<KEY> > DATABASE_URL > ini file > default. Raises ConfigError."""
    found = _Found()
    if path is not None:
        _collect(found, read_ini(path))
        if not found.main:
            raise ConfigError("the section [pgbouncer] is missing", file=path)
        found.settings.setdefault("conffile", path)
    databases = dict(found.databases)
    autodb = databases.pop(AUTODB, None)
    sources = [] if found.databases else [read_url(name, url, environ) for name, url in urls(environ).items()]
    said, implied_users = _from_urls(sources)
    settings = read_settings(overrides, environ, said, found.settings, FOR_URL if sources else {})
    for source in sources:
        databases[source.entry.name] = source.entry
        if source.password is None and settings.auth_type == FOR_URL["auth_type"] and settings.auth_file is None:
            problem = "no password: give one, or set auth_file or auth_type"
            raise ConfigError(problem, file="environment", key="DATABASE_URL")
    config = Config(
        settings=settings,
        databases=databases,
        autodb=autodb,
        users=found.users,
        peers=found.peers,
        path=path,
        implied_users=implied_users,
        where=_where(found, overrides, environ, said),
        warnings=tuple(_warnings(settings, databases, environ)),
    )
    return replace(config, auth_file_stamp=auth_file_stamp(config))


def _collect(found: _Found, items: Iterable[Entry]) -> None:
    for entry in items:
        if entry.section not in SECTIONS:
            raise ConfigError(unknown("section", entry.section, SECTIONS), file=entry.file, line=entry.line)
        if entry.key is None:
            if entry.section == MAIN:
                _restart(found)
            continue
        if entry.section == MAIN:
            try:
                found.settings[entry.key] = parse_setting(entry.key, entry.value)
            except ValueError as exc:
                raise entry.error(str(exc)) from None
        elif entry.section == "databases":
            found.databases[entry.key] = entries.database(entry)
        elif entry.section == "users":
            found.users[entry.key] = entries.user(entry)
        else:
            peer = entries.peer(entry)
            found.peers[peer.id] = peer
        found.where[entry.section, entry.key] = (entry.file, entry.line)


def _restart(found: _Found) -> None:
    """A further [pgbouncer] header starts from the defaults again, but for the keys whose default is NULL."""
    found.main = True
    for name in [name for name in found.settings if not KEYS[name].unset]:
        del found.settings[name]
        found.where.pop((MAIN, name), None)


def _from_urls(sources: list[DatabaseUrl]) -> tuple[dict[str, Value], dict[str, str]]:
    """The settings and the users that the URLs imply. Raises ConfigError when two of them contradict each other."""
    said: dict[str, Value] = {}
    users: dict[str, str] = {}
    names: set[str] = set()
    for source in sources:
        for name, value in source.settings.items():
            if said.setdefault(name, value) != value:
                raise ConfigError(f"two URLs want different values of {name}", file="environment", key="DATABASE_URL")
        if users.setdefault(source.user, source.password or "") != (source.password or ""):
            problem = f'two URLs have different passwords for user "{source.user}"'
            raise ConfigError(problem, file="environment", key="DATABASE_URL")
        if source.entry.name in names:
            problem = f'two URLs make the database "{source.entry.name}"'
            raise ConfigError(problem, file="environment", key="DATABASE_URL")
        names.add(source.entry.name)
    return said, users


def _where(
    found: _Found, overrides: Mapping[str, str], environ: Mapping[str, str], said: Mapping[str, Value]
) -> dict[tuple[str, str], tuple[str, int]]:
    where = dict(found.where)
    where |= {(MAIN, name): ("environment", 0) for name in said}
    for variable in environ:
        name = variable.lower().removeprefix(ENVIRONMENT_PREFIX.lower())
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and name in KEYS:
            where[MAIN, name] = ("environment", 0)
    return where | {(MAIN, name): ("command line", 0) for name in overrides}


def _warnings(settings: Settings, databases: Mapping[str, DatabaseEntry], environ: Mapping[str, str]) -> Iterable[str]:
    for variable in sorted(environ):
        name = variable.lower().removeprefix(ENVIRONMENT_PREFIX.lower())
        orchestrated = name.startswith(("service_", "port", "version"))  # Kubernetes sets PGPOOL_PROXY_SERVICE_HOST
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and name not in KEYS and not orchestrated:
            yield f"environment variable {variable} is ignored: {unknown('key', name, KEYS)}"
    for entry in databases.values():
        if not entry.hosts and not settings.unix_socket_dir:
            yield f'database "{entry.name}" has no host, and unix_socket_dir is empty'


def beside(config: Config, name: str) -> str:
    """The path of a file that the configuration names: relative to the working directory, as PgBouncer has it; or, when
    there is no such file but one beside the ini file, that one."""
    if not name or config.path is None or Path(name).exists():
        return name
    other = Path(config.path).parent / name
    return str(other) if other.exists() else name


def auth_file_stamp(config: Config) -> tuple[str, int, int, int, int, int, int, int] | None:
    """What changes when auth_file does. None without such a file."""
    name = beside(config, config.settings.auth_file or "")
    try:
        stat = Path(name).stat() if name else None
    except OSError:
        stat = None
    if stat is None:
        return None
    return name, stat.st_dev, stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_size
