"""Every SHOW: a table of tables. A new one is a line in `_ALL`, a function in rows.py, a line in merge.py that says how those
of several workers become one, and a heading in docs/console.md.

Columns, their order and their types are PgBouncer's; our own additions stand at the end of a table or in tables of our own.
What a table's columns are is known before any row is made, which is what the extended protocol's Describe needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pgpool_proxy.admin import connections, fds, rows, top, waits, workers
from pgpool_proxy.admin.connections import Place
from pgpool_proxy.admin.control import Row, Source
from pgpool_proxy.admin.grammar import invalid
from pgpool_proxy.admin.results import BYTEA, INT4, INT8, NUMERIC, TEXT, Column, Type
from pgpool_proxy.pool.stats import FIELDS, STATE_KINDS

_TYPES: Final[dict[str, Type]] = {"": INT4, "text": TEXT, "int8": INT8, "numeric": NUMERIC, "bytea": BYTEA}


@dataclass(frozen=True, slots=True)
class Table:
    """One SHOW: what it is called, what it is for, its columns, and where its rows come from."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rows: Callable[[Source], Iterable[Row]]


def _columns(text: str) -> tuple[Column, ...]:
    """Columns by name, `name:type` where the type is not int4."""
    split = [word.partition(":") for word in text.split()]
    return tuple([Column(name, _TYPES[kind]) for name, _, kind in split])


def _numerics(names: Iterable[str]) -> str:
    return " ".join(f"{name}:numeric" for name in names)


def _placed(walk: Callable[[Source], Iterable[tuple[Place, Row]]]) -> Callable[[Source], Iterable[Row]]:
    """Rows that know their places among those of other workers, without these."""
    return lambda source: (row for _, row in walk(source))


def _counted(make: Callable[[Iterable[rows.Counters]], Iterable[Row]]) -> Callable[[Source], Iterable[Row]]:
    return lambda source: make(rows.counters(source))


def _lists(source: Source) -> Iterable[Row]:
    return rows.lists(rows.amounts(source))


# PgBouncer's names of the byte counters differ from table to table
_TOTAL_NAMES: Final = [f"total_{name.removeprefix('bytes_')}" for name in FIELDS]
_AVERAGE_NAMES: Final = [
    "avg_" + {"bytes_received": "recv", "bytes_sent": "sent"}.get(name, name) for name in FIELDS
]
_PREFIXED: Final = frozenset({"client_parse_count", "server_parse_count", "bind_count", "client_login_count"})
_STATS_AVERAGES_NAMES: Final = [f"avg_{name}" if name in _PREFIXED else name for name in FIELDS]

_CONNECTION: Final = """
    type:text user:text database:text replication:text state:text addr:text port local_addr:text local_port
    connect_time:text request_time:text wait wait_us close_needed ptr:text link:text remote_pid tls:text
    application_name:text prepared_statements id
"""
_PINNED: Final = _CONNECTION + "pinned:text worker"
_SOCKET: Final = _CONNECTION + "recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail worker"

_ALL: Final = (
    Table("CLIENTS", "clients, one row each", _columns(_PINNED), _placed(connections.clients)),
    Table("SERVERS", "server connections, one row each", _columns(_PINNED), _placed(connections.servers)),
    Table("SOCKETS", "clients and servers with what lies in their buffers", _columns(_SOCKET), _placed(connections.sockets)),
    Table(
        "ACTIVE_SOCKETS",
        "those of SOCKETS whose buffers are not empty",
        _columns(_SOCKET),
        _placed(connections.active_sockets),
    ),
    Table(
        "POOLS",
        "pools: clients and servers in each state, and the longest wait",
        _columns("""
            database:text user:text cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active
            sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode:text
            load_balance_hosts:text
        """),
        rows.pools,
    ),
    Table(
        "PEER_POOLS",
        "cancel requests under way to peers",
        _columns("peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login"),
        rows.peer_pools,
    ),
    Table("PEERS", "entries of [peers]", _columns("peer_id host:text port pool_size"), rows.peers),
    Table(
        "DATABASES",
        "entries of [databases] and databases made from *",
        _columns("""
            name:text host:text port database:text force_user:text pool_size min_pool_size reserve_pool_size
            server_lifetime pool_mode:text load_balance_hosts:text max_connections current_connections
            max_client_connections current_client_connections paused disabled
        """),
        rows.databases,
    ),
    Table(
        "USERS",
        "users with their limits",
        _columns("""
            name:text pool_size:text reserve_pool_size:text pool_mode:text max_user_connections current_connections
            max_user_client_connections current_client_connections
        """),
        rows.users,
    ),
    Table(
        "STATS",
        "totals and averages of each database",
        _columns("database:text " + _numerics(_TOTAL_NAMES + _AVERAGE_NAMES)),
        _counted(rows.stats),
    ),
    Table(
        "STATS_TOTALS",
        "totals of each database",
        _columns("database:text " + _numerics(FIELDS)),
        _counted(rows.stats_totals),
    ),
    Table(
        "STATS_AVERAGES",
        "averages of each database",
        _columns("database:text " + _numerics(_STATS_AVERAGES_NAMES)),
        _counted(rows.stats_averages),
    ),
    Table("TOTALS", "totals and averages of all databases", _columns("name:text value:numeric"), _counted(rows.totals)),
    Table(
        "SESSION_STATE",
        "what clients have left behind on servers (session_state)",
        _columns("database:text user:text session_state:text pinned " + _numerics(STATE_KINDS)),
        rows.session_state,
    ),
    Table(
        "STATS_HISTOGRAMS",
        "percentiles of each pool's waits, queries, transactions, logins and server connects",
        _columns("database:text user:text what:text " + _numerics(["count", "mean_us", "p50_us", "p95_us", "p99_us"])),
        lambda source: waits.stats_histograms(waits.histograms(source)),
    ),
    Table(
        "WAITS",
        "clients that wait for a server, and what for",
        _columns("id database:text user:text addr:text port since:text wait wait_us queue reason:text worker"),
        _placed(waits.waits),
    ),
    Table("TOP", "clients that use the servers most, of late", _columns(top.COLUMNS), _placed(top.top)),
    Table(
        "WORKERS",
        "the processes that serve",
        _columns(workers.COLUMNS),
        lambda source: workers.workers(source.workers()),
    ),
    Table("LISTS", "how many there are of everything", _columns("list:text items"), _lists),
    Table("CONFIG", "the settings in force", _columns("key:text value:text default:text changeable:text"), rows.config),
    Table("STATE", "active, paused or suspended", _columns("key:text value:text"), rows.state),
    Table("MEM", "what memory is used for", _columns("name:text size used free memtotal"), rows.mem),
    Table("DNS_HOSTS", "host names that were looked up", _columns("hostname:text ttl:int8 addrs:text"), rows.dns_hosts),
    Table("DNS_ZONES", "zones of those names", _columns("zonename:text serial:int8 count"), rows.dns_zones),
    Table("FDS", "sockets; handed over to a new process that takes over", _columns(fds.COLUMNS), _placed(fds.fds)),
    Table("VERSION", "program and version", _columns("version:text"), rows.version),
)
TABLES: Final[dict[str, Table]] = {table.name: table for table in _ALL}

FAKE_PARAMETERS: Final = {
    "client_encoding": "UTF-8",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "datestyle": "ISO",
    "timezone": "GMT",
    "extra_float_digits": "2",
    "application_name": "",
}
"""Parameters that drivers set and read without being asked: SHOW gives these values, SET is ignored with a NOTICE."""

FAKES: Final[dict[str, Table]] = {
    name: Table(name, "", (Column(name, TEXT),), rows.fake(value)) for name, value in FAKE_PARAMETERS.items()
}

HELP: Final = "HELP"
FDS: Final = "FDS"
"""Of this table an operator without admin rights sees nothing."""


def find_table(name: str, text: str) -> Table:
    """The table of `SHOW name`, in any case. Raises `Refused`; `text` is the whole statement for that."""
    table = TABLES.get(name.upper()) or FAKES.get(name.lower())
    if table is None:
        raise invalid(text)
    return table

