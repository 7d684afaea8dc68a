"""What the SHOWs print: functions from the process's own objects (`Source`) to rows, sorted so that they do not jump about.

Each returns the cells in the order of its table's columns (show.py). No cell holds a secret. Clients and servers are in
connections.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from pgpool_proxy.admin.connections import count_of, main_pools, pinned_servers, seconds_and_micros
from pgpool_proxy.admin.control import ACTIVE, PAUSED, SUSPENDED, Cell, Row, Source
from pgpool_proxy.pool.limits import longest_wait
from pgpool_proxy.pool.pool import POOL_MODES, SESSION_STATES
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_ACTIVE_CANCEL,
    CL_WAITING,
    CL_WAITING_CANCEL,
    CL_WAITING_LOGIN,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_IDLE,
    SV_LOGIN,
    SV_TESTED,
    SV_USED,
)
from pgpool_proxy.pool.stats import FIELDS, Period, averages, merge
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry
from pgpool_proxy.settings.model import config_rows

ADMIN_POOL_SIZE: Final = 2

# --- pools, databases, users --------------------------------------------------------------------------------------------
def pools(source: Source) -> Iterator[Row]:
    now = source.now()
    for pool in main_pools(source):
        yield (
            pool.database.name,
            pool.user.name,
            count_of("clients", pool, CL_ACTIVE),
            count_of("clients", pool, CL_WAITING) + count_of("clients", pool, CL_WAITING_LOGIN),
            count_of("clients", pool, CL_ACTIVE_CANCEL),
            count_of("clients", pool, CL_WAITING_CANCEL),
            count_of("servers", pool, SV_ACTIVE),
            count_of("servers", pool, SV_ACTIVE_CANCEL),
            count_of("servers", pool, SV_BEING_CANCELED),
            count_of("servers", pool, SV_IDLE),
            count_of("servers", pool, SV_USED),
            count_of("servers", pool, SV_TESTED),
            count_of("servers", pool, SV_LOGIN),
            *seconds_and_micros(max(longest_wait(pool, now), 0.0)),
            POOL_MODES[int(pool.limits.pool_mode)],
            pool.limits.load_balance_hosts,
        )


def peer_pools(source: Source) -> Iterator[Row]:
    for number, pool in sorted(source.registry.peer_pools.items()):
        yield (
            number,
            int(pool.clients[CL_ACTIVE_CANCEL].count),
            int(pool.clients[CL_WAITING_CANCEL].count),
            int(pool.servers[SV_ACTIVE_CANCEL].count),
            int(pool.servers[SV_LOGIN].count),
        )


def peers(source: Source) -> Iterator[Row]:
    for number, (host, port, size) in sorted(resolve.peers(source.config).items()):
        yield number, host, port, size


def databases(source: Source) -> Iterator[Row]:
    for name, database in sorted(source.registry.databases.items()):
        entry = source.config.database(name)
        if database.is_admin or entry is None:
            entry = DatabaseEntry(name, name, port=source.config.settings.listen_port)
        yield (
            name,
            ",".join(entry.hosts) if entry.hosts else None,
            entry.port,
            entry.dbname,
            database.forced_user,
            *_database_sizes(source.config, database, entry),
            "statement" if database.is_admin else entry.pool_mode,
            entry.load_balance_hosts if len(entry.hosts) > 1 else None,
            int(database.max_connections),
            int(database.server_count),
            int(database.max_client_connections),
            int(database.client_count),
            int(database.paused),
            int(database.disabled),
        )


def _database_sizes(config: Config, database: Database, entry: DatabaseEntry) -> tuple[int, int, int, int]:
    """pool_size, min_pool_size, reserve_pool_size, server_lifetime."""
    settings = config.settings
    if database.is_admin:
        return ADMIN_POOL_SIZE, 0, 0, int(settings.server_lifetime)
    nobody = ""
    return (
        resolve.pool_size(config, entry, nobody),
        resolve.min_pool_size(config, entry),
        resolve.reserve_pool_size(config, entry, nobody),
        int(resolve.server_lifetime(config, entry)),
    )


def users(source: Source) -> Iterator[Row]:
    """Those of auth_file and [users], and those that have logged in."""
    config = source.config
    known = source.registry.users
    for name in sorted({*known, *source.known_users(), *config.users}):
        entry = config.users.get(name)
        user = known.get(name)
        yield (
            name,
            _nine(entry.pool_size) if entry is not None else "",
            _nine(entry.reserve_pool_size) if entry is not None else "",
            entry.pool_mode if entry is not None else None,
            resolve.max_user_connections(config, name),
            int(user.server_count) if user is not None else 0,
            resolve.max_user_client_connections(config, name),
            int(user.client_count) if user is not None else 0,
        )


def _nine(size: int | None) -> str:
    """Right-aligned in nine characters, as PgBouncer prints it; empty when the user has no size of its own."""
    return "" if size is None else f"{size:9d}"


# --- counters -----------------------------------------------------------------------------------------------------------
Counters: TypeAlias = tuple[str, tuple[int, ...], list[Period]]  # of a database: its name, totals, what its averages are of


def counters(source: Source) -> list[Counters]:
    found: list[Counters] = []
    for name, totals in sorted(source.totals().items()):
        base, seconds = source.base(name)
        found.append((name, totals, [(base, totals, seconds)]))
    return found


def stats(found: Iterable[Counters]) -> Iterable[Row]:
    return [(name, *totals, *averages(periods)) for name, totals, periods in found]


def stats_totals(found: Iterable[Counters]) -> Iterable[Row]:
    return [(name, *totals) for name, totals, _ in found]


def stats_averages(found: Iterable[Counters]) -> Iterable[Row]:
    return [(name, *averages(periods)) for name, _, periods in found]


TOTALS_NAMES: Final = {
    "bytes_received": "client_bytes",
    "bytes_sent": "server_bytes",
    "client_parse_count": "ps_client_parse_count",
    "server_parse_count": "ps_server_parse_count",
    "bind_count": "ps_bind_count",
}
"""The counters that SHOW TOTALS names otherwise than SHOW STATS."""


def totals(found: Iterable[Counters]) -> Iterator[Row]:
    """All databases added up; an average time is that of a transaction, query or assignment of any of them."""
    every = list(found)
    average = averages([period for _, _, periods in every for period in periods])
    for prefix, values in (("total", merge([totals for _, totals, _ in every])), ("avg", average)):
        for field, value in zip(FIELDS, values, strict=True):
            yield f"{prefix}_{TOTALS_NAMES.get(field, field)}", value


def session_state(source: Source) -> Iterator[Row]:
    """What transactions have left behind, by pool and kind; nothing is counted where session_state is ignore."""
    for pool in main_pools(source):
        if not pool.database.is_admin:
            yield (
                pool.database.name,
                pool.user.name,
                SESSION_STATES[int(pool.limits.session_state)],
                pinned_servers(pool),
                *pool.stats.states_seen,
            )


# --- the process --------------------------------------------------------------------------------------------------------
Amount: TypeAlias = int | list[str]
"""What a line of SHOW LISTS counts in one process: a number of its own, or things by name that others may have, too."""
NAMES_AT_A_TIME: Final = 100


def amounts(source: Source) -> Iterator[tuple[str, Amount, int]]:
    """The lines of SHOW LISTS: each with what is this process's, and with how many all have in common. Names come in
    several pieces where they are many."""
    registry = source.registry
    servers = sum(int(members.count) for pool in registry.pools.values() for members in pool.servers)
    configured = {*source.known_users(), *source.config.users}
    lines: list[tuple[str, int | Iterable[str], int]] = [
        ("databases", registry.databases, 0),
        ("users", [name for name in registry.users if name not in configured], len(configured)),
        ("peers", 0, len(source.config.peers)),
        ("pools", [f"{pool.database.name}\0{pool.user.name}" for pool in main_pools(source)], 0),
        ("peer_pools", [str(number) for number in registry.peer_pools], 0),
        ("free_clients", 0, 0),
        ("used_clients", int(registry.client_count), 0),
        ("login_clients", int(registry.login_clients.count), 0),
        ("free_servers", 0, 0),
        ("used_servers", servers, 0),
        ("dns_names", [name for name, _, _ in source.dns_hosts()], 0),
        ("dns_zones", [name for name, _, _ in source.dns_zones()], 0),
        ("dns_queries", source.dns_queries(), 0),
        ("dns_pending", 0, 0),
    ]
    for name, own, common in lines:
        if isinstance(own, int):
            yield name, own, common
            continue
        names = iter(own)
        yield name, list(islice(names, NAMES_AT_A_TIME)), common
        while piece := list(islice(names, NAMES_AT_A_TIME)):
            yield name, piece, common


def lists(found: Iterable[tuple[str, Amount, int]]) -> Iterable[Row]:
    """The lines of one process or of several: numbers are added up, names count once, what is common counts once."""
    numbers: dict[str, int] = {}
    names: dict[str, set[str]] = {}
    commons: dict[str, int] = {}
    for name, own, common in found:
        commons[name] = max(commons.get(name, 0), common)
        if isinstance(own, int):
            numbers[name] = numbers.get(name, 0) + own
        else:
            names.setdefault(name, set()).update(own)
    return [(name, common + numbers.get(name, 0) + len(names.get(name, ()))) for name, common in commons.items()]


def config(source: Source) -> Iterable[Row]:
    return config_rows(source.config.settings)


def state(source: Source) -> Iterable[Row]:
    return [(mode, "yes" if mode == source.mode else "no") for mode in (ACTIVE, PAUSED, SUSPENDED)]


def mem(source: Source) -> Iterator[Row]:
    """What is kept how often; `size` is that of one object without what it refers to. The last row is the whole process."""
    registry = source.registry
    kept: dict[str, list[object]] = {
        "user_cache": list(registry.users.values()),
        "db_cache": list(registry.databases.values()),
        "pool_cache": list(registry.pools.values()),
        "server_cache": list(registry.all_servers()),
        "client_cache": list(registry.all_clients()),
    }
    for name, objects in kept.items():
        size = sys.getsizeof(objects[0]) if objects else 0
        yield name, size, len(objects), 0, size * len(objects)
    resident = source.resident_bytes()
    yield "process", 1, resident, 0, resident


def dns_hosts(source: Source) -> Iterable[Row]:
    rows: list[tuple[Cell, ...]] = list(source.dns_hosts())
    return sorted(rows, key=str)


def dns_zones(source: Source) -> Iterable[Row]:
    """None without dns_zone_check_period."""
    rows: list[tuple[Cell, ...]] = list(source.dns_zones())
    return rows


def version(source: Source) -> Iterable[Row]:
    return [(source.version,)]


def fake(value: str) -> Callable[[Source], Iterable[Row]]:
    """The rows of a table that has one cell and never changes."""
    return lambda _: [(value,)]
