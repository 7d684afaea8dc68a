"""What the SHOWs print: functions from the process's own objects (`Source`) to rows, sorted so that they do not jump about.

Each returns the cells in the order of its table's columns (show.py). No cell holds a secret. Clients and servers are in
connections.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from pgpool_proxy.admin.connections import count_of, main_pools, pools_in_order, seconds_and_micros
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
from pgpool_proxy.pool.stats import FIELDS, ZERO, merge
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.session_state import pinned
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
def _counters(source: Source) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Database, its totals, its averages."""
    return [(name, totals, source.averages(name)) for name, totals in sorted(source.totals().items())]


def stats(source: Source) -> Iterable[Row]:
    return [(name, *totals, *averages) for name, totals, averages in _counters(source)]


def stats_totals(source: Source) -> Iterable[Row]:
    return [(name, *totals) for name, totals, _ in _counters(source)]


def stats_averages(source: Source) -> Iterable[Row]:
    return [(name, *averages) for name, _, averages in _counters(source)]


TOTALS_NAMES: Final = {
    "bytes_received": "client_bytes",
    "bytes_sent": "server_bytes",
    "client_parse_count": "ps_client_parse_count",
    "server_parse_count": "ps_server_parse_count",
    "bind_count": "ps_bind_count",
}
"""The counters that SHOW TOTALS names otherwise than SHOW STATS."""


def totals(source: Source) -> Iterator[Row]:
    """All databases added up; averages of times are weighed by nothing, as in PgBouncer."""
    counters = _counters(source)
    for prefix, values in (
        ("total", merge([totals for _, totals, _ in counters]) if counters else ZERO),
        ("avg", merge([averages for _, _, averages in counters]) if counters else ZERO),
    ):
        for field, value in zip(FIELDS, values, strict=True):
            yield f"{prefix}_{TOTALS_NAMES.get(field, field)}", value


def session_state(source: Source) -> Iterator[Row]:
    """What transactions have left behind, by pool and kind; nothing is counted where session_state is ignore."""
    for pool in pools_in_order(source):
        if not pool.database.is_admin:
            held = [server.link for server in pool.active.members() if isinstance(server, ServerSession)]
            yield (
                pool.database.name,
                pool.user.name,
                SESSION_STATES[int(pool.limits.session_state)],
                sum(1 for link in held if link.client is not None and pinned(link)),
                *pool.stats.states_seen,
            )


# --- the process --------------------------------------------------------------------------------------------------------
def lists(source: Source) -> Iterable[Row]:
    registry = source.registry
    servers = sum(int(members.count) for pool in registry.pools.values() for members in pool.servers)
    counts: dict[str, int] = {
        "databases": len(registry.databases),
        "users": len({*registry.users, *source.known_users(), *source.config.users}),
        "peers": len(source.config.peers),
        "pools": len(main_pools(source)),
        "peer_pools": len(registry.peer_pools),
        "free_clients": 0,
        "used_clients": int(registry.client_count),
        "login_clients": int(registry.login_clients.count),
        "free_servers": 0,
        "used_servers": servers,
        "dns_names": len(list(source.dns_hosts())),
        "dns_zones": len(list(source.dns_zones())),
        "dns_queries": source.dns_queries(),
        "dns_pending": 0,
    }
    return list(counts.items())


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
