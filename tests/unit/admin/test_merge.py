"""merge.py: a table of several workers is the one that a single process with all of their clients would show."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from pgpool_proxy.admin.control import Refused, WorkerFigures
from pgpool_proxy.admin.merge import MERGINGS, RECORDS_AT_A_TIME, merged, part_of
from pgpool_proxy.admin.show import FAKES, TABLES
from pgpool_proxy.admin.top import MAX_ROWS
from pgpool_proxy.admin.workers import records
from pgpool_proxy.pool.stats import FIELDS
from pgpool_proxy.session.usage import use_of

SPLIT_UP = {"MEM", "WORKERS"}  # what there is of each process


class Script:
    """Clients and servers in several houses, and the same ones, with the same ids, in a house of their own."""

    def __init__(self, make_house: Callable[[], Any], workers: int) -> None:
        self.alone = make_house()
        self.houses = {number: make_house() for number in range(1, workers + 1)}
        for number, house in ((1, self.alone), *self.houses.items()):
            house.control.resident_bytes = lambda: 50_000_000
            house.control.cpu_seconds = lambda: 1.25
            house.control.worker = number
        for number, house in self.houses.items():
            house.listener.sockets = []
            house.dns.queries = number
        self.alone.listener.sockets = []
        self.alone.dns.queries = sum(self.houses)
        self._number = 0

    def do(self, worker: int, what: str, *arguments: Any) -> None:
        self._number += 10
        for house in (self.alone, self.houses[worker]):
            house.registry.number_from(self._number)
            getattr(self, f"_{what}")(house, *arguments)

    def pass_time(self, seconds: float) -> None:
        for house in (self.alone, *self.houses.values()):
            house.pass_time(seconds)

    def _busy(self, house: Any, *pool: str) -> None:
        pool_of = house.busy(*pool).pool
        count(pool_of, self._number)

    def _idle(self, house: Any, *pool: str) -> None:
        house.idle_server(*pool)

    def _client(self, house: Any, *pool: str) -> None:
        house.client(*pool)

    def _used(self, house: Any, server_time: int) -> None:
        use_of(house.client()).server_time = server_time

    def _arriving(self, house: Any, *_: str) -> None:
        house.arriving()

    def _waits(self, house: Any, *pool: str) -> None:
        house.registry.paused = True
        house.asks(house.client(*pool))
        house.registry.paused = False

    def parts(self, table: str) -> list[tuple[int, Any]]:
        return [(number, part(table, house)) for number, house in self.houses.items()]


def count(pool: Any, seed: int) -> None:
    """As if it had done something."""
    random = Random(seed)
    for name in FIELDS:
        setattr(pool.stats, name, getattr(pool.stats, name) + random.randrange(1000))
    for histogram in (pool.stats.waits, pool.stats.queries, pool.stats.xacts, pool.stats.logins, pool.stats.connects):
        histogram.add(random.randrange(1_000_000))
    pool.stats.saw_state(random.randrange(256))


def part(table: str, house: Any) -> Any:
    """A worker's part as it comes out of a channel."""
    return [record for chunk in part_of(table, house.control) for record in json.loads(json.dumps(chunk))]


def rows(table: str, found: Any) -> list[dict[str, Any]]:
    names = [column.name for column in TABLES[table].columns]
    return [dict(zip(names, row, strict=True)) for row in found]


@pytest.fixture
def script(make_house: Callable[[], Any]) -> Script:
    """Three workers with clients and servers in all states that are easily had, at the same pools and at others."""
    found = Script(make_house, 3)
    found.do(1, "idle", "app", "carol")
    found.do(3, "idle", "app", "dora")
    found.do(2, "busy", "app", "alice")
    random = Random(7)
    for _ in range(40):
        database, user = random.choice(("app", "twin")), random.choice(("alice", "bob", "carl"))
        found.do(random.randint(1, 3), random.choice(("busy", "client", "arriving")), database, user)
        found.pass_time(random.random())
    for _ in range(12):
        found.do(random.randint(1, 3), "waits", random.choice(("app", "twin")), random.choice(("alice", "bob")))
        found.pass_time(random.random())
    return found


def test_every_table_says_how_it_is_merged() -> None:
    assert set(MERGINGS) == set(TABLES)


@pytest.mark.parametrize("table", [*sorted(TABLES), *sorted(FAKES)])
def test_of_one_part_a_table_is_what_the_process_shows(script: Script, table: str) -> None:
    script.alone.console()
    shown = (TABLES.get(table) or FAKES[table]).rows(script.alone.control)
    expected = [tuple(row) for row in shown]
    assert expected or table == "PEER_POOLS"
    assert list(merged(table, [(1, part(table, script.alone))])) == expected


@pytest.mark.parametrize("table", sorted(set(TABLES) - SPLIT_UP))
def test_of_all_workers_a_table_is_that_of_one_process_with_all_of_their_clients(script: Script, table: str) -> None:
    found = rows(table, merged(table, script.parts(table)))
    expected = rows(table, TABLES[table].rows(script.alone.control))
    for row in (*found, *expected):
        row.pop("worker", None)
    assert found == expected


@pytest.mark.parametrize("table", ["CLIENTS", "SERVERS", "SOCKETS", "TOP", "WAITS", "FDS", "WORKERS"])
def test_every_row_names_its_worker(script: Script, table: str) -> None:
    found = rows(table, merged(table, script.parts(table)))
    assert {row["worker"] for row in found} == {1, 2, 3}
    for number, house in script.houses.items():
        own = rows(table, TABLES[table].rows(house.control))
        its = [row for row in found if row["worker"] == number]
        for row in (*own, *its):
            row.pop("queue", None)  # over all workers
        assert its == own


def test_a_process_alone_is_worker_1(house: Any) -> None:
    house.busy()
    assert [row["worker"] for row in house.console().rows("SHOW SERVERS")] == ["1"]


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_worker_that_gave_nothing_is_left_out(script: Script, table: str) -> None:
    one = part(table, script.houses[2])
    assert list(merged(table, [(1, []), (2, one), (3, [])])) == list(merged(table, [(2, one)]))
    assert list(merged(table, [])) == [] or table in {"TOTALS", "STATE"}


def test_a_part_comes_in_chunks_between_which_others_have_their_turn(script: Script) -> None:
    for at in range(120):
        script.alone.client("app", f"u{at}")
    chunks = list(part_of("CLIENTS", script.alone.control))
    assert max(len(chunk) for chunk in chunks) == RECORDS_AT_A_TIME
    assert sum(len(chunk) for chunk in chunks) == len(list(TABLES["CLIENTS"].rows(script.alone.control)))


def test_a_table_that_does_not_exist_is_refused(house: Any) -> None:
    with pytest.raises(Refused):
        part_of("NONSENSE", house.control)


def test_names_of_any_bytes_come_through(make_house: Callable[[], Any]) -> None:
    hostile = b'\xff"\\\x01\xc3\xa9'.decode("utf-8", "surrogateescape")
    script = Script(make_house, 2)
    script.do(1, "client", "app", hostile)
    script.do(2, "client", "app", hostile)
    (pool,) = [row for row in rows("POOLS", merged("POOLS", script.parts("POOLS"))) if row["user"] == hostile]
    assert pool["cl_active"] == 2


# --- figures -----------------------------------------------------------------------------------------------------------------
def test_the_longest_wait_of_all_is_shown(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 2)
    script.do(1, "waits", "app", "alice")
    script.pass_time(2.25)
    script.do(2, "waits", "app", "alice")
    script.pass_time(1.5)
    (pool,) = [row for row in rows("POOLS", merged("POOLS", script.parts("POOLS"))) if row["user"] == "alice"]
    assert (pool["maxwait"], pool["maxwait_us"], pool["cl_waiting"]) == (3, 750_000, 2)
    waits = rows("WAITS", merged("WAITS", script.parts("WAITS")))
    assert [(row["worker"], row["wait"], row["queue"]) for row in waits] == [(1, 3, 2), (2, 1, 2)]


def test_top_of_all_workers_has_no_more_rows_than_that_of_one(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 3)
    random = Random(3)
    for _ in range(2 * MAX_ROWS):
        script.do(random.randint(1, 2), "used", random.randrange(1_000_000))
    script.do(3, "used", 2_000_000)
    found = rows("TOP", merged("TOP", script.parts("TOP")))
    assert len(found) == MAX_ROWS
    assert (found[0]["worker"], found[0]["server_time"]) == (3, 2_000_000)
    assert {row["worker"] for row in found} == {1, 2, 3}
    expected = rows("TOP", TABLES["TOP"].rows(script.alone.control))
    assert [row["id"] for row in found] == [row["id"] for row in expected]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("pool_size", "all 4 servers of the pool are busy"),
        ("max_db_connections", "max_db_connections: all 4 servers of the database are taken"),
        ("max_user_connections", "max_user_connections: all 4 servers of the user are taken"),
        ("", "a server is about to be opened"),
    ],
)
def test_who_waits_for_what_others_have_is_told_so(make_house: Callable[[], Any], limit: str, reason: str) -> None:
    script = Script(make_house, 3)
    for worker, user in ((1, "alice"), (1, "alice"), (2, "alice"), (2, "bob" if limit == "max_db_connections" else "alice")):
        script.do(worker, "busy", "app", user)
    script.do(3, "waits", "app", "alice")
    for house in script.houses.values():
        house.registry.databases["app"].max_connections = 4 if limit == "max_db_connections" else 0
        house.registry.user("alice").max_connections = 4 if limit == "max_user_connections" else 0
        for pool in house.registry.pools.values():
            pool.limits.pool_size = 4 if limit == "pool_size" else 20
    (row,) = rows("WAITS", merged("WAITS", script.parts("WAITS")))
    assert (row["worker"], row["reason"]) == (3, reason)


def test_limits_stay_and_counts_are_added_up(script: Script) -> None:
    script.houses[3].registry.databases["app"].paused = True
    (app,) = [row for row in rows("DATABASES", merged("DATABASES", script.parts("DATABASES"))) if row["name"] == "app"]
    own = [house.registry.databases["app"].client_count for house in script.houses.values()]
    assert (app["pool_size"], app["paused"], app["disabled"]) == (20, 1, 0)
    assert all(own)
    assert app["current_client_connections"] == sum(own)


def test_a_database_or_user_that_one_worker_has_is_there(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 2)
    script.do(1, "client", "app", "zoe")
    script.do(2, "client", "app", "adam")
    shown = [row["name"] for row in rows("USERS", merged("USERS", script.parts("USERS")))]
    assert shown == sorted(shown)
    assert {"adam", "alice", "bob", "zoe"} <= set(shown)


def test_what_all_workers_know_counts_once(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 2)
    for at in range(250):
        script.do(1 + at % 2, "client", "app", f"u{at // 4}")  # each user in both workers
    found = dict(merged("LISTS", script.parts("LISTS")))
    assert found == {row[0]: row[1] for row in TABLES["LISTS"].rows(script.alone.control)}
    assert found["used_clients"] == 250
    assert found["pools"] == 63 + 1


def test_averages_are_those_of_all_that_was_done(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 2)
    for number, (queries, micros) in {1: (90, 900), 2: (10, 10_000)}.items():
        script.do(number, "client", "app", "alice")
        pool = script.houses[number].registry.pools["app", "alice"]
        pool.stats.query_count, pool.stats.query_time = queries, micros
    (row,) = [row for row in rows("STATS", merged("STATS", script.parts("STATS"))) if row["database"] == "app"]
    assert (row["total_query_count"], row["total_query_time"]) == (100, 10_900)
    assert (row["avg_query_count"], row["avg_query_time"]) == (50, 109)  # not (10 + 1000) / 2


def test_percentiles_are_those_of_all_that_was_counted(make_house: Callable[[], Any]) -> None:
    script = Script(make_house, 2)
    for number, micros in {1: 90, 2: 100_000}.items():
        script.do(number, "client", "app", "alice")
        for _ in range(100 if number == 1 else 4):
            script.houses[number].registry.pools["app", "alice"].stats.queries.add(micros)
    found = rows("STATS_HISTOGRAMS", merged("STATS_HISTOGRAMS", script.parts("STATS_HISTOGRAMS")))
    (row,) = [row for row in found if row["what"] == "query" and row["user"] == "alice"]
    assert (row["count"], row["mean_us"]) == (104, (100 * 90 + 4 * 100_000) // 104)
    assert row["p50_us"] < 100 < 50_000 < row["p99_us"]


def test_memory_is_added_up(script: Script) -> None:
    parts = script.parts("MEM")
    found = {row["name"]: row for row in rows("MEM", merged("MEM", parts))}
    assert list(found) == ["user_cache", "db_cache", "pool_cache", "server_cache", "client_cache", "process"]
    for name in ("client_cache", "process"):
        own = [row for _, records in parts for row in records if row[0] == name]
        assert found[name]["used"] == sum(row[2] for row in own)
        assert found[name]["memtotal"] == sum(row[4] for row in own)
        assert found[name]["size"] == own[0][1]


def test_what_the_supervisor_knows_of_a_worker_comes_before_what_that_says(script: Script) -> None:
    known = [
        WorkerFigures(1, 4711, "active", leases=7, restarts=0),
        WorkerFigures(2, 4712, "stopping", leases=1, restarts=3),
        WorkerFigures(4, 4714, "hung", 9, leases=2, cpu_seconds=0.125, memory=5, restarts=1),
    ]
    parts = [(0, json.loads(json.dumps(list(records(known))))), *script.parts("WORKERS")]
    found = rows("WORKERS", merged("WORKERS", parts))
    own = {number: house.registry for number, house in script.houses.items()}
    assert [row["worker"] for row in found] == [1, 2, 3, 4]
    assert [row["clients"] for row in found] == [*(registry.client_count for registry in own.values()), 9]
    assert [row["leases"] for row in found] == [7, 1, found[2]["servers"], 2]
    assert [(row["pid"], row["state"], row["restarts"]) for row in found[:2]] == [(4711, "active", 0), (4712, "stopping", 3)]
    assert (found[3]["servers"], found[3]["cpu_seconds"]) == (None, Decimal("0.12"))


def test_the_state_is_that_of_the_worker_that_is_paused_most(script: Script) -> None:
    script.houses[2].registry.paused = True
    assert dict(merged("STATE", script.parts("STATE"))) == {"active": "no", "paused": "yes", "suspended": "no"}
    script.houses[3].control.is_suspended = True
    assert dict(merged("STATE", script.parts("STATE"))) == {"active": "no", "paused": "no", "suspended": "yes"}


def test_the_newest_address_of_a_host_is_shown(script: Script) -> None:
    script.houses[1].dns.hosts = lambda: iter([("db.internal", 3, "10.0.0.1"), ("x.internal", 1, "")])
    script.houses[2].dns.hosts = lambda: iter([("db.internal", 19, "10.0.0.2")])
    found = list(merged("DNS_HOSTS", script.parts("DNS_HOSTS")))
    assert found == [("db.internal", 19, "10.0.0.2"), ("x.internal", 1, "")]
    assert dict(merged("LISTS", script.parts("LISTS")))["dns_names"] == 2
