"""RELOAD and SET as decisions: which configuration applies next, and what has to follow from the difference.

Carries nothing out. A file that cannot be used never gets here: `load` raises, and the caller keeps what it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, TypeVar

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.config import MAIN, Config, auth_file_stamp
from pgpool_proxy.settings.entries import DatabaseEntry
from pgpool_proxy.settings.keys import Value
from pgpool_proxy.settings.model import KEYS, Settings, parse_setting, unknown

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CONNECTION_FIELDS: Final = (
    "dbname", "hosts", "port", "user", "connect_query", "auth_dbname", "auth_query", "load_balance_hosts",
)  # fmt: skip
"""A change of one of these makes the open servers of a database obsolete."""
_connection_fields: Final = attrgetter(*CONNECTION_FIELDS)


@dataclass(frozen=True)
class ReloadPlan:
    """What RELOAD changes. `config` is what applies from now on; the rest says what to do about it."""

    config: Config
    settings_changed: frozenset[str]
    databases_added: tuple[str, ...]
    databases_changed: tuple[str, ...]
    """Limits to read again; those that are in close_needed as well have obsolete servers."""
    databases_removed: tuple[str, ...]
    """To be killed with the reason `database removed`."""
    close_needed: tuple[str, ...]
    autodb_changed: bool
    """Databases made from `*` have to be made again, their servers are obsolete."""
    users_changed: tuple[str, ...]
    """Added, changed or removed."""
    peers_changed: tuple[int, ...]
    """Added, changed or removed."""
    auth_file_changed: bool
    """To be read again: it is another file, or its stat differs."""

    @property
    def server_tls_changed(self) -> bool:
        """Server connections have to be made anew."""
        return any(name.startswith("server_tls") for name in self.settings_changed)

    @property
    def client_tls_changed(self) -> bool:
        return any(name.startswith("client_tls") for name in self.settings_changed)


def plan(old: Config, new: Config) -> ReloadPlan:
    """`new` is freshly loaded. Settings that only a restart changes keep their old values, silently; so do settings
    without a default that the new file does not mention."""
    kept: dict[str, Value] = {}
    for name, key in KEYS.items():
        silent = key.unset and (MAIN, name) not in new.where and _is_default(new.settings, name)
        if not key.changeable or silent:
            kept[name] = getattr(old.settings, name)
    config = replace(new, settings=new.settings.model_copy(update=kept))
    config = replace(config, auth_file_stamp=auth_file_stamp(config))
    changed = _changed(old.databases, config.databases)
    return ReloadPlan(
        config=config,
        settings_changed=frozenset(
            name for name in KEYS if getattr(old.settings, name) != getattr(config.settings, name)
        ),
        databases_added=tuple(name for name in config.databases if name not in old.databases),
        databases_changed=changed,
        databases_removed=tuple(name for name in old.databases if name not in config.databases),
        close_needed=tuple(name for name in changed if needs_new_servers(old.databases[name], config.databases[name])),
        autodb_changed=old.autodb != config.autodb,
        users_changed=_touched(old.users, config.users),
        peers_changed=_touched(old.peers, config.peers),
        auth_file_changed=old.auth_file_stamp != config.auth_file_stamp,
    )


def needs_new_servers(old: DatabaseEntry, new: DatabaseEntry) -> bool:
    """Whether the servers that `old` led to are obsolete under `new`."""
    before: object = _connection_fields(old)
    after: object = _connection_fields(new)
    return before != after


def leads_elsewhere(old: Config, new: Config) -> bool:
    """Whether what servers report may differ: another host, another TLS set-up."""
    tls = [name for name in KEYS if name.startswith("server_tls")]
    return (
        old.databases != new.databases
        or old.autodb != new.autodb
        or any(getattr(old.settings, name) != getattr(new.settings, name) for name in tls)
    )


def set_value(config: Config, name: str, text: str) -> Config:
    """The console's SET: another Config. Raises ConfigError for an unknown key or a bad value; a key that only a
    restart changes is accepted without effect. The next RELOAD undoes it, as far as the key has a default."""
    key = KEYS.get(name)
    if key is None:
        raise ConfigError(unknown("key", name, KEYS), key=name)
    if not key.changeable:
        return config
    try:
        value = parse_setting(name, text)
    except ValueError as exc:
        raise ConfigError(str(exc), key=name) from None
    where = config.where | {(MAIN, name): ("console", 0)}
    changed = replace(config, settings=config.settings.model_copy(update={name: value}), where=where)
    return replace(changed, auth_file_stamp=auth_file_stamp(changed)) if name == "auth_file" else changed


def _is_default(settings: Settings, name: str) -> bool:
    value: Value = getattr(settings, name)
    default: Value = Settings.model_fields[name].default
    return value == default


def _changed(old: Mapping[K, V], new: Mapping[K, V]) -> tuple[K, ...]:
    return tuple(name for name in new if name in old and old[name] != new[name])


def _touched(old: Mapping[K, V], new: Mapping[K, V]) -> tuple[K, ...]:
    return tuple(name for name in {**old, **new} if old.get(name) != new.get(name))
