"""Metrics of several workers: one snapshot, one history, one answer to whether all are ready."""

from __future__ import annotations

import json
from functools import reduce
from random import Random

import pytest

from pgpool_proxy.metrics.collector import Exposition
from pgpool_proxy.metrics.merge import RECORDS_AT_A_TIME, all_ready, chunks, merged, merged_history, snapshot_of
from pgpool_proxy.metrics.snapshot import (
    HISTORY,
    Counts,
    DatabaseSnapshot,
    HistoryRow,
    PoolSnapshot,
    Readiness,
    Snapshot,
    WorkerSnapshot,
)
from pgpool_proxy.pool.stats import BOUNDS, FIELDS, STATE_KINDS

HOSTILE = b'\xff"\\\n\xc3\xa9'.decode("utf-8", "surrogateescape")


def pool(random: Random, database: str, user: str) -> PoolSnapshot:
    def numbers(size: int) -> tuple[int, ...]:
        return tuple(random.randrange(1000) for _ in range(size))

    def counts() -> Counts:
        return numbers(len(BOUNDS) + 1), random.randrange(10**15)

    return PoolSnapshot(
        database, user, "transaction", 20, numbers(4), numbers(7), random.random(), numbers(len(FIELDS)), random.randrange(9),
        counts(), counts(), counts(), counts(), counts(), random.randrange(5), numbers(len(STATE_KINDS)),
    )  # fmt: skip


def snapshot(worker: int, pools: int = 4) -> Snapshot:
    """What worker number so-and-so might say; its pools are some of a few."""
    random = Random(worker)
    names = random.sample([(database, user) for database in ("app", "twin", HOSTILE) for user in "abcd"], min(pools, 12))
    names += [(f"db{at}", "many") for at in range(pools - 12)]
    shared = DatabaseSnapshot("app", worker, 50, 2 * worker, worker == 2, False)
    own = DatabaseSnapshot(f"own{worker}", 1, 0, 1, False, True)
    return Snapshot(
        "0.1.0", "plain Python", 1e9 + worker, [pool(random, *name) for name in sorted(names)], [shared, own],
        clients=10 * worker, max_clients=500, login_clients=worker, users=frozenset({"alice", f"user{worker}"}),
        errors={"57": worker, f"0{worker}": 1},
        disconnects={("client", "client close request"): 3, ("server", "evicted"): worker},
        cancels=worker, tls_handshakes={"client": worker}, loop_lag=((worker,) * 21, worker), lost_log_lines=worker,
        servers=3 * worker, peers=2, peer_pools=frozenset({"7", str(worker)}),
        dns_names=frozenset({"db.example", f"{worker}.example"}), dns_zones=frozenset({"example"}), dns_queries=worker,
        workers=(WorkerSnapshot(worker, True, 10 * worker, 5, 5, 1.5, 1000, 0),),
    )  # fmt: skip


def carried(one: Snapshot) -> Snapshot:
    """Through a channel."""
    return snapshot_of(record for chunk in chunks(one) for record in json.loads(json.dumps(chunk)))


@pytest.mark.parametrize("pools", [0, 5, 200])
def test_a_snapshot_comes_through_json_as_it_was(pools: int) -> None:
    one = snapshot(1, pools)
    assert carried(one) == one
    assert hash(carried(one).pools[0]) if pools else True  # no list is left in it


def test_it_comes_in_chunks() -> None:
    assert max(len(chunk) for chunk in chunks(snapshot(1, 200))) == RECORDS_AT_A_TIME


def test_one_worker_alone_is_as_it_says() -> None:
    assert merged([(1, snapshot(1))]) == snapshot(1)


def test_pools_are_added_up() -> None:
    parts = [(number, snapshot(number, 8)) for number in (3, 1, 2)]
    found = merged(parts)
    names = [(one.database, one.user) for one in found.pools]
    assert names == sorted({(one.database, one.user) for _, part in parts for one in part.pools})
    for one in found.pools:
        own = [other for _, part in parts for other in part.pools if (other.database, other.user) == (one.database, one.user)]
        assert one.totals == tuple(sum(values) for values in zip(*[other.totals for other in own], strict=True))
        assert one.clients == tuple(sum(values) for values in zip(*[other.clients for other in own], strict=True))
        assert one.servers[3] == sum(other.servers[3] for other in own)
        assert one.longest_wait == max(other.longest_wait for other in own)
        assert (one.size, one.mode) == (20, "transaction")
        assert one.pinned == sum(other.pinned for other in own)
        assert one.states_seen[2] == sum(other.states_seen[2] for other in own)
        for of in ("waits", "queries", "transactions", "logins", "connects"):
            counts, total = getattr(one, of)
            assert total == sum(getattr(other, of)[1] for other in own)
            assert counts == tuple(sum(bucket) for bucket in zip(*[getattr(other, of)[0] for other in own], strict=True))


def test_databases_and_what_the_processes_count() -> None:
    found = merged([(number, snapshot(number)) for number in (1, 2, 3)])
    assert found.databases == [
        DatabaseSnapshot("app", 6, 50, 12, True, False),
        *(DatabaseSnapshot(f"own{number}", 1, 0, 1, False, True) for number in (1, 2, 3)),
    ]
    assert (found.clients, found.max_clients, found.login_clients) == (60, 500, 6)
    assert found.users == {"alice", "user1", "user2", "user3"}
    assert found.errors == {"57": 6, "01": 1, "02": 1, "03": 1}
    assert found.disconnects == {("client", "client close request"): 9, ("server", "evicted"): 6}
    assert (found.cancels, found.tls_handshakes, found.lost_log_lines) == (6, {"client": 6}, 6)
    assert found.loop_lag == ((6,) * 21, 6)
    assert (found.servers, found.peers, found.dns_queries) == (18, 2, 6)
    assert (found.peer_pools, found.dns_zones) == ({"1", "2", "3", "7"}, {"example"})
    assert found.dns_names == {"db.example", "1.example", "2.example", "3.example"}
    assert found.started_at == 1e9 + 1
    assert [worker.number for worker in found.workers] == [1, 2, 3]


def test_it_does_not_matter_in_which_order_they_are_merged() -> None:
    parts = [snapshot(number, 8) for number in (1, 2, 3, 4)]
    together = merged(list(enumerate(parts, 1)))
    assert reduce(lambda one, other: merged([(1, one), (2, other)]), parts) == together


def test_a_pool_has_one_sample_of_each_family() -> None:
    found = merged([(number, snapshot(number, 12)) for number in (1, 2)])
    queries = next(family for family in Exposition().families(found) if family.name == "pgpool_proxy_queries")
    labels = [tuple(sample.labels.items()) for sample in queries.samples]
    assert len(labels) == len(set(labels)) == 12


def test_what_the_supervisor_says_of_a_worker_comes_first() -> None:
    said = [WorkerSnapshot(1, True, leases=9, restarts=2), WorkerSnapshot(3, False, restarts=4)]
    found = merged([(1, snapshot(1)), (2, snapshot(2))], said)
    assert found.workers == (
        WorkerSnapshot(1, True, 10, 5, 9, 1.5, 1000, 2),
        WorkerSnapshot(2, True, 20, 5, 5, 1.5, 1000, 0),
        WorkerSnapshot(3, False, restarts=4),
    )
    assert [one.restarts for one in merged([(1, snapshot(1))], said).workers] == [2, 4]


# --- the status page ----------------------------------------------------------------------------------------------------------
def row(at: float, **values: float) -> HistoryRow:
    return tuple(at if name == "at" else values.get(name, 0) for name in HISTORY)


def shown(rows: list[HistoryRow]) -> list[dict[str, float]]:
    return [dict(zip(HISTORY, one, strict=True)) for one in rows]


def test_rates_are_added_and_means_are_weighed() -> None:
    one = row(100.0, queries=30, query_ms=1, waits=1, wait_ms=8, clients=3, received=7)
    other = row(100.4, queries=10, query_ms=5, waits=3, wait_ms=4, clients=4, received=8)
    (found,) = shown(merged_history([[one], [other]]))
    assert (found["at"], found["queries"], found["clients"], found["received"]) == (100.0, 40, 7, 15)
    assert (found["query_ms"], found["wait_ms"], found["waits"]) == (2.0, 5.0, 4)


def test_rows_of_the_same_moment_belong_together() -> None:
    long = [row(100 + 1.05 * at, queries=1) for at in range(60)]
    short = [row(130.4 + 1.01 * at, queries=10) for at in range(30)]  # a worker that has taken another one's place
    found = shown(merged_history([short, long]))
    assert [one["at"] for one in found] == [one[0] for one in long]
    assert {one["queries"] for one in found if one["at"] < 129} == {1}
    assert {one["queries"] for one in found if 131 < one["at"] < 159} == {11}


def test_a_worker_that_has_stopped_does_not_stop_the_clock() -> None:
    stopped = [row(float(at), queries=1) for at in range(100, 150)]
    lives = [row(float(at), queries=1) for at in range(120, 160)]
    assert merged_history([stopped, lives])[-1][0] == 159


def test_one_history_stays_as_it_is() -> None:
    rows = [row(1.0, queries=3, query_ms=0.5), row(2.0, received=3.25)]
    assert merged_history([rows]) == rows
    assert merged_history([[], []]) == []


def test_ready_when_all_are() -> None:
    assert all_ready([Readiness(()), Readiness(())]).is_ready
    assert all_ready([Readiness(("paused", "a")), Readiness(()), Readiness(("paused", "b"))]).reasons == ("paused", "a", "b")
