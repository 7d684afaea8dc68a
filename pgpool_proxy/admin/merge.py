"""Every SHOW of several workers as one table. No sockets, no event loop: what is sent between processes is given and taken.

A worker's part of a table are its records, plain values that JSON carries as they are (names that are no UTF-8 as lone
surrogates: the encoder has to write ASCII, as json.dumps does). `part_of` makes them in the worker, a chunk at a time, since
a client's row takes some 40 µs and there may be 10,000; `merged` makes the table's rows from the records of all. Of one part
it makes what the process alone would show.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Any, Final, TypeAlias

from pgpool_proxy.admin import connections, fds, rows, top, waits, workers
from pgpool_proxy.admin.connections import Place
from pgpool_proxy.admin.control import ACTIVE, PAUSED, SUSPENDED, Row, Source, WorkerFigures
from pgpool_proxy.admin.show import TABLES, find_table
from pgpool_proxy.pool.limits import ABOUT_TO_OPEN, limit_reached
from pgpool_proxy.pool.stats import STATE_KINDS, merge

Record: TypeAlias = Sequence[Any]  # tuples where they are made, lists where JSON has carried them
Part: TypeAlias = tuple[int, Sequence[Record]]  # a worker's number and its records

RECORDS_AT_A_TIME: Final = 50


def part_of(table: str, source: Source) -> Iterator[list[Record]]:
    """The records of this process, in chunks: between two of them others may have their turn. Raises `Refused` for a table that
    does not exist. A chunk of 50 clients takes about 2 ms, and 0.2 ms more as JSON."""
    return chunked(iter(_merging(table).records(source)))


def merged(table: str, parts: Iterable[Part]) -> Iterator[Row]:
    """The rows of the table. Large tables are merged while they are walked over, one row at a time."""
    return iter(_merging(table).rows(list(parts)))


def chunked(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, RECORDS_AT_A_TIME)):
        yield chunk


class Merging:
    """How one table is taken apart and put together."""

    def __init__(
        self, records: Callable[[Source], Iterable[Record]], rows_of: Callable[[Sequence[Part]], Iterable[Row]]
    ) -> None:
        self.records = records
        self.rows = rows_of


def _merging(table: str) -> Merging:
    """That of a table, or of a parameter that the console pretends to have (FAKES)."""
    name = table.upper()
    return MERGINGS.get(name) or _first(find_table(table, f"SHOW {table}").rows)


def _all_records(parts: Sequence[Part]) -> Iterator[Record]:
    return chain.from_iterable(records for _, records in parts)


# --- ways to merge ----------------------------------------------------------------------------------------------------------
def _first(make: Callable[[Source], Iterable[Row]]) -> Merging:
    """What all workers say alike: one of them is asked."""

    def rows_of(parts: Sequence[Part]) -> Iterable[Row]:
        found = next((records for _, records in parts if records), [])
        return [tuple(record) for record in found]

    return Merging(make, rows_of)


def _in_order(walk: Callable[[Source], Iterable[tuple[Place, Row]]]) -> Merging:
    """All rows, each at its place. A part is in order, so the next row of all is the least of their next ones."""
    return Merging(walk, lambda parts: (tuple(row) for _, row in _by_place(parts)))


def _by_place(parts: Sequence[Part]) -> Iterator[Record]:
    return heapq.merge(*[records for _, records in parts], key=_place)


def _place(record: Record) -> list[Any]:
    return list(record[0])


def _groups(parts: Sequence[Part], size: int) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    """Records of the same key, which are their first `size` values: each part is in the order of its keys."""

    def key(record: Record) -> tuple[Any, ...]:
        return tuple(record[:size])

    for found, group in groupby(heapq.merge(*[records for _, records in parts], key=key), key):
        yield found, list(group)


def _grouped(
    table: str, keys: int, *, summed: Iterable[str] = (), most: Iterable[str] = (), longest: tuple[str, str] | None = None
) -> Merging:
    """One row for each key, which are the first columns: of the others, some are added up, of some the largest one is taken, of
    the rest the first one. `longest` are two columns for one value: seconds and microseconds."""
    add = _adder(table, summed, most, longest)
    return Merging(TABLES[table].rows, lambda parts: (add(group) for _, group in _groups(parts, keys)))


def _by_name(table: str, *, summed: Iterable[str] = (), most: Iterable[str] = ()) -> Merging:
    """The same of a short table that is not sorted: as the first part has it."""
    add = _adder(table, summed, most, None)

    def rows_of(parts: Sequence[Part]) -> Iterable[Row]:
        found: dict[Any, list[Record]] = {}
        for record in _all_records(parts):
            found.setdefault(record[0], []).append(record)
        return [add(group) for group in found.values()]

    return Merging(TABLES[table].rows, rows_of)


def _adder(
    table: str, summed: Iterable[str], most: Iterable[str], longest: tuple[str, str] | None
) -> Callable[[Sequence[Record]], Row]:
    """A function that makes one row of several."""
    names = [column.name for column in TABLES[table].columns]
    summed_at = [names.index(name) for name in summed]
    most_at = [names.index(name) for name in most]
    pair = slice(names.index(longest[0]), names.index(longest[1]) + 1) if longest is not None else slice(0, 0)

    def add(group: Sequence[Record]) -> Row:
        row = list(group[0])
        for record in group[1:]:
            for at in summed_at:
                row[at] += record[at]
            for at in most_at:
                row[at] = max(row[at], record[at])
            row[pair] = max(list(row[pair]), list(record[pair]))
        return tuple(row)

    return add


# --- clients that wait --------------------------------------------------------------------------------------------------------
def _waits_records(source: Source) -> Iterator[Record]:
    """What each pool uses of its limits, without a place, and then the clients."""
    for usage in waits.usage(source):
        yield (), usage
    yield from waits.waits(source)


def _waits(parts: Sequence[Part]) -> Iterator[Row]:
    """In `queue` stand the waiters of a pool in all workers. A worker that may have no more servers since others have them
    knows nothing of these: the reason is found where all are known."""
    queues: dict[tuple[str, str], int] = {}
    for _, records in parts:
        own = {(place[0], place[1]): row[waits.AT_QUEUE] for place, row in records if place}
        for pool, count in own.items():
            queues[pool] = queues.get(pool, 0) + count
    usage = usage_of(parts)
    for place, row in _by_place([(number, [record for record in records if record[0]]) for number, records in parts]):
        found = list(row)
        found[waits.AT_QUEUE] = queues[place[0], place[1]]
        if row[waits.AT_REASON] == ABOUT_TO_OPEN:
            found[waits.AT_REASON] = limit_reached(*usage[row[1], row[2]]) or ABOUT_TO_OPEN
        yield tuple(found)


def usage_of(parts: Sequence[Part]) -> dict[tuple[str, str], tuple[int, int, int, int, int, int]]:
    """The limits of each pool, and what all workers together use of them: see `waits.usage`."""
    limits: dict[tuple[str, str], tuple[int, int, int]] = {}
    taken: Counter[tuple[str, str]] = Counter()
    of_databases: Counter[str] = Counter()
    of_users: Counter[str] = Counter()
    for _, records in parts:
        own = [usage for place, usage in records if not place]
        for database, user, (size, servers, most_of_database, _, most_of_user, _) in own:
            limits[database, user] = size, most_of_database, most_of_user
            taken[database, user] += servers
        of_databases.update({database: usage[3] for database, _, usage in own})  # once a worker, not once a pool
        of_users.update({user: usage[5] for _, user, usage in own})
    return {
        (database, user): (size, taken[database, user], of_database, of_databases[database], of_user, of_users[user])
        for (database, user), (size, of_database, of_user) in limits.items()
    }


# --- counters -----------------------------------------------------------------------------------------------------------------
def _counter_records(source: Source) -> Iterator[Record]:
    """Of each database its name, its totals, what averages count from, and for how many seconds."""
    for name, totals in sorted(source.totals().items()):
        yield name, totals, *source.base(name)


def _counted(make: Callable[[Iterable[rows.Counters]], Iterable[Row]]) -> Merging:
    return Merging(_counter_records, lambda parts: make(_counters(name, group) for (name,), group in _groups(parts, 1)))


def _counters(name: str, records: Sequence[Record]) -> rows.Counters:
    periods = [(tuple(base), tuple(totals), float(seconds)) for _, totals, base, seconds in records]
    return name, merge([tuple(record[1]) for record in records]), periods


def _histograms(parts: Sequence[Part]) -> Iterable[Row]:
    """Percentiles of all that was counted, not of percentiles."""
    return waits.stats_histograms(
        (database, user, tuple([_sum(several) for several in zip(*[record[2] for record in group], strict=True)]))
        for (database, user), group in _groups(parts, 2)
    )


def _sum(several: Sequence[waits.Counts]) -> waits.Counts:
    """Histograms added up."""
    counts = tuple([sum(bucket) for bucket in zip(*[counts for counts, _ in several], strict=True)])
    return counts, sum(total for _, total in several)


# --- the process --------------------------------------------------------------------------------------------------------------
def _lists(parts: Sequence[Part]) -> Iterable[Row]:
    return rows.lists((name, own, common) for name, own, common in _all_records(parts))


def _state(parts: Sequence[Part]) -> Iterable[Row]:
    """While an order is under way they may differ: it is as paused as the one that is most."""
    found = {key for key, value in _all_records(parts) if value == "yes"}
    modes = (ACTIVE, PAUSED, SUSPENDED)
    mode = next((mode for mode in reversed(modes) if mode in found), None)
    return [(one, "yes" if one == mode else "no") for one in modes]


def _dns_hosts(parts: Sequence[Part]) -> Iterable[Row]:
    """Each worker asks on its own: the newest answer, which is good for longest."""
    found: dict[str, Row] = {}
    for name, ttl, addresses in _all_records(parts):
        if name not in found or ttl > found[name][1]:
            found[name] = name, ttl, addresses
    return sorted(found.values(), key=str)


def _workers(parts: Sequence[Part]) -> Iterable[Row]:
    return workers.workers(workers.combined(WorkerFigures(*record) for record in _all_records(parts)))


def _names(table: str, wanted: Callable[[str], bool]) -> list[str]:
    return [column.name for column in TABLES[table].columns if wanted(column.name)]


MERGINGS: Final[dict[str, Merging]] = {
    "CLIENTS": _in_order(connections.clients),
    "SERVERS": _in_order(connections.servers),
    "SOCKETS": _in_order(connections.sockets),
    "ACTIVE_SOCKETS": _in_order(connections.active_sockets),
    "POOLS": _grouped(
        "POOLS",
        2,
        summed=_names("POOLS", lambda name: name.startswith(("cl_", "sv_"))),
        longest=("maxwait", "maxwait_us"),
    ),
    "PEER_POOLS": _grouped("PEER_POOLS", 1, summed=_names("PEER_POOLS", lambda name: name.startswith(("cl_", "sv_")))),
    "PEERS": _first(TABLES["PEERS"].rows),
    "DATABASES": _grouped(
        "DATABASES", 1, summed=("current_connections", "current_client_connections"), most=("paused", "disabled")
    ),
    "USERS": _grouped("USERS", 1, summed=("current_connections", "current_client_connections")),
    "STATS": _counted(rows.stats),
    "STATS_TOTALS": _counted(rows.stats_totals),
    "STATS_AVERAGES": _counted(rows.stats_averages),
    "TOTALS": _counted(rows.totals),
    "SESSION_STATE": _grouped("SESSION_STATE", 2, summed=("pinned", *STATE_KINDS)),
    "STATS_HISTOGRAMS": Merging(waits.histograms, _histograms),
    "WAITS": Merging(_waits_records, _waits),
    "TOP": Merging(top.top, lambda parts: top.first_rows(tuple(row) for _, row in _by_place(parts))),
    "WORKERS": Merging(workers.own_records, _workers),
    "LISTS": Merging(rows.amounts, _lists),
    "CONFIG": _first(TABLES["CONFIG"].rows),
    "STATE": Merging(TABLES["STATE"].rows, _state),
    "MEM": _by_name("MEM", summed=("used", "free", "memtotal"), most=("size",)),
    "DNS_HOSTS": Merging(TABLES["DNS_HOSTS"].rows, _dns_hosts),
    "DNS_ZONES": _by_name("DNS_ZONES", most=("serial", "count")),
    "FDS": _in_order(fds.fds),
    "VERSION": _first(TABLES["VERSION"].rows),
}
"""How each table of show.py is merged."""
