"""What the SHOWs print: functions from the process's own objects (`Source`) to rows, sorted so that they do not jump about.

Each returns the cells in the order of its table's columns (show.py). Long ones are generated while they are sent, so a client
or server may have gone when its turn comes; it is printed as it was. No cell holds a secret.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

from pgpool_proxy.admin.control import ACTIVE, PAUSED, SUSPENDED, Cell, Row, Source
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.limits import longest_wait
from pgpool_proxy.pool.pool import POOL_MODES, Pool
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_ACTIVE_CANCEL,
    CL_LOGIN,
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
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry
from pgpool_proxy.settings.model import config_rows

TIME_FORMAT: Final = "%Y-%m-%d %H:%M:%S %Z"
ADMIN_POOL_SIZE: Final = 2
CLIENT_STATES: Final = {
    CL_ACTIVE: "active",
    CL_WAITING: "waiting",
    CL_WAITING_LOGIN: "waiting",
    CL_ACTIVE_CANCEL: "active_cancel_req",
    CL_WAITING_CANCEL: "waiting_cancel_req",
    CL_LOGIN: "login",
}
"""The names of SHOW CLIENTS, in the order in which it prints the clients of a pool."""
SERVER_STATES: Final = {
    SV_ACTIVE: "active",
    SV_IDLE: "idle",
    SV_USED: "used",
    SV_TESTED: "tested",
    SV_LOGIN: "new",
    SV_ACTIVE_CANCEL: "active_cancel",
    SV_BEING_CANCELED: "being_canceled",
}
CLIENT_SOCKET_STATES: Final = {
    CL_ACTIVE: "cl_active",
    CL_WAITING: "cl_waiting",
    CL_WAITING_LOGIN: "cl_waiting",
    CL_LOGIN: "cl_login",
}
SERVER_SOCKET_STATES: Final = {
    SV_ACTIVE: "sv_active",
    SV_IDLE: "sv_idle",
    SV_USED: "sv_used",
    SV_TESTED: "sv_tested",
    SV_LOGIN: "sv_login",
}


def _pools(source: Source) -> list[Pool]:
    """All pools by database and user."""
    return [pool for _, pool in sorted(source.registry.pools.items())]


# --- clients and servers ------------------------------------------------------------------------------------------------
def clients(source: Source) -> Iterator[Row]:
    """Those that are in a pool, so all whose login is done or waits for a server."""
    for client in _clients_by_pool(source, CLIENT_STATES):
        yield _client_row(source, client, CLIENT_STATES)


def servers(source: Source) -> Iterator[Row]:
    for server in _servers_by_pool(source, SERVER_STATES):
        yield _server_row(source, server, SERVER_STATES)


def sockets(source: Source) -> Iterator[Row]:
    """Clients and servers, those that log in among them, with what lies in their buffers."""
    for client in _clients_by_pool(source, CLIENT_SOCKET_STATES):
        if client.state in CLIENT_SOCKET_STATES:
            yield _client_row(source, client, CLIENT_SOCKET_STATES) + _buffers(source, client)
    for server in _servers_by_pool(source, SERVER_SOCKET_STATES):
        if server.state in SERVER_SOCKET_STATES:
            yield _server_row(source, server, SERVER_SOCKET_STATES) + _buffers(source, server)
    for member in sorted(source.registry.login_clients.members(), key=_number):
        client = cast(PoolClient, member)
        if client.state == CL_LOGIN:
            yield _client_row(source, client, CLIENT_SOCKET_STATES) + _buffers(source, client)


def active_sockets(source: Source) -> Iterator[Row]:
    """Those of SHOW SOCKETS with something in their buffers."""
    return (row for row in sockets(source) if row[-2] or row[-1])


def _number(member: object) -> int:
    return int(cast("PoolClient | PoolServer", member).number)


def _clients_by_pool(source: Source, states: dict[int, str]) -> list[PoolClient]:
    found: list[PoolClient] = []
    for pool in _pools(source):
        for state in states:
            found += sorted([cast(PoolClient, member) for member in pool.clients[state].members()], key=_number)
    return found


def _servers_by_pool(source: Source, states: dict[int, str]) -> list[PoolServer]:
    found: list[PoolServer] = []
    for pool in _pools(source):
        for state in states:
            found += sorted([cast(PoolServer, member) for member in pool.servers[state].members()], key=_number)
    return found


def _client_row(source: Source, client: PoolClient, states: dict[int, str]) -> Row:
    pool = client.pool
    server = client.server
    session = client if isinstance(client, ClientSession) else None
    state = states.get(int(client.state), "closed")
    if state == "active" and server is None:
        state = "idle"
    address, port, pid = "", 0, 0
    name, tls, application_name, prepared = "", "", "", 0
    if session is not None:
        name = session.user_name
        address, port, pid = _peer(session.address, session.port)
        tls = session.tls
        application_name = _application_name(source, session)
        statements = session.statements
        prepared = len(statements) if statements is not None else 0
    waited = max(source.now() - client.wait_start, 0.0) if client.wait_start > 0 else 0.0
    return (
        "C",
        name or "(nouser)",
        pool.database.name if pool is not None else "(nodb)",
        _replication(server),
        state,
        address,
        port,
        *source.local_name(client),
        source.wall(client.connect_time).strftime(TIME_FORMAT),
        source.wall(client.request_time).strftime(TIME_FORMAT),
        *_seconds_and_micros(waited),
        0,
        f"C-{client.number}",
        f"S-{server.number}" if server is not None else "",
        pid,
        tls,
        application_name,
        prepared,
        int(client.number),
    )


def _server_row(source: Source, server: PoolServer, states: dict[int, str]) -> Row:
    client = server.client
    session = server if isinstance(server, ServerSession) else None
    address, port, tls, application_name, prepared = "", 0, "", "", 0
    if session is not None:
        address, port = session.address or session.host, session.port
        tls = session.tls
        application_name = _application_name(source, session)
        prepared = len(session.statements)
    return (
        "S",
        server.pool.user.name,
        server.pool.database.name,
        _replication(server),
        states.get(int(server.state), "closed"),
        address,
        port,
        *source.local_name(server),
        source.wall(server.connect_time).strftime(TIME_FORMAT),
        source.wall(server.request_time).strftime(TIME_FORMAT),
        0,
        0,
        int(server.close_needed),
        f"S-{server.number}",
        f"C-{client.number}" if client is not None else "",
        int.from_bytes(server.cancel_key[:4], "big", signed=True),
        tls,
        application_name,
        prepared,
        int(server.number),
    )


def _peer(address: str, port: int) -> tuple[str, int, int]:
    """Address, port and process id of a client; only those of unix sockets tell the last."""
    if address.startswith("unix(") and address.endswith(")") and address[5:-1].isdigit():
        return "unix", port, int(address[5:-1])
    return address, port, 0


def _replication(server: PoolServer | None) -> str:
    return "physical" if server is not None and server.is_replication else "none"


def _application_name(source: Source, session: ClientSession | ServerSession) -> str:
    at = source.context.tracked.index(b"application_name")
    value = session.parameters.values[at] if at >= 0 else None
    return value.decode("utf-8", "replace") if value else ""


def _seconds_and_micros(seconds: float) -> tuple[int, int]:
    micros = int(seconds * 1_000_000)
    return micros // 1_000_000, micros % 1_000_000


def _buffers(source: Source, member: PoolClient | PoolServer) -> tuple[int, ...]:
    """recv_pos, pkt_pos, pkt_remain, send_pos, send_remain, pkt_avail, send_avail. There is no buffer with positions here:
    what was received and waits for a server is pkt_avail, what was sent and not yet taken is send_avail."""
    received = len(member.pending) if isinstance(member, ClientSession) else 0
    unsent = source.unsent(member)
    return 0, 0, 0, 0, unsent, received, unsent


# --- pools, databases, users --------------------------------------------------------------------------------------------
def pools(source: Source) -> Iterator[Row]:
    now = source.now()
    for pool in _pools(source):
        yield (
            pool.database.name,
            pool.user.name,
            int(pool.clients[CL_ACTIVE].count),
            int(pool.waiting.count + pool.waiting_login.count),
            int(pool.clients[CL_ACTIVE_CANCEL].count),
            int(pool.clients[CL_WAITING_CANCEL].count),
            int(pool.servers[SV_ACTIVE].count),
            int(pool.servers[SV_ACTIVE_CANCEL].count),
            int(pool.servers[SV_BEING_CANCELED].count),
            int(pool.servers[SV_IDLE].count),
            int(pool.servers[SV_USED].count),
            int(pool.servers[SV_TESTED].count),
            int(pool.servers[SV_LOGIN].count),
            *_seconds_and_micros(max(longest_wait(pool, now), 0.0)),
            POOL_MODES[int(pool.limits.pool_mode)],
            pool.limits.load_balance_hosts,
        )


def peer_pools(source: Source) -> Iterator[Row]:
    """A pool for each peer; requests for peers wait in none."""
    for number in sorted(source.config.peers):
        yield number, 0, 0, 0, 0


def peers(source: Source) -> Iterator[Row]:
    settings = source.config.settings
    for number, peer in sorted(source.config.peers.items()):
        size = peer.pool_size if peer.pool_size is not None else settings.default_pool_size
        yield number, peer.host, peer.port, size


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


# --- the process --------------------------------------------------------------------------------------------------------
def lists(source: Source) -> Iterable[Row]:
    registry = source.registry
    servers = sum(int(members.count) for pool in registry.pools.values() for members in pool.servers)
    counts: dict[str, int] = {
        "databases": len(registry.databases),
        "users": len({*registry.users, *source.known_users(), *source.config.users}),
        "peers": len(source.config.peers),
        "pools": len(registry.pools),
        "peer_pools": len(source.config.peers),
        "free_clients": 0,
        "used_clients": int(registry.client_count),
        "login_clients": int(registry.login_clients.count),
        "free_servers": 0,
        "used_servers": servers,
        "dns_names": len(list(source.dns_hosts())),
        "dns_zones": 0,
        "dns_queries": 0,
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
    """Serial numbers of zones are not watched (dns_zone_check_period has no effect)."""
    return []


def version(source: Source) -> Iterable[Row]:
    return [(source.version,)]


def fake(value: str) -> Callable[[Source], Iterable[Row]]:
    """The rows of a table that has one cell and never changes."""
    return lambda _: [(value,)]
