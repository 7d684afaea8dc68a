"""The text of /metrics: what prometheus-client itself reads back from it, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgpool_proxy.metrics.collector import MAX_HISTOGRAMS, MAX_POOLS, OTHERS, capped, families, render
from pgpool_proxy.metrics.snapshot import DatabaseSnapshot, PoolSnapshot, Snapshot, WorkerSnapshot
from pgpool_proxy.pool.stats import FIELDS, Histogram


def counts(*micros: int) -> tuple[tuple[int, ...], int]:
    histogram = Histogram()
    for one in micros:
        histogram.add(one)
    return histogram.snapshot()


def pool(database: str = "app", user: str = "alice", queries: int = 7, **values: Any) -> PoolSnapshot:
    totals = tuple(queries if name == "query_count" else at for at, name in enumerate(FIELDS))
    known: dict[str, Any] = {
        "mode": "transaction",
        "size": 20,
        "clients": (1, 2, 3, 4),
        "servers": (1, 2, 3, 4, 5, 6, 7),
        "longest_wait": 0.25,
        "totals": totals,
        "reserve_uses": 1,
        "waits": counts(50, 150),
        "queries": counts(100),
        "transactions": counts(),
        "logins": counts(3_000_000),
        "connects": counts(60_000_000),
        "pinned": 2,
        "states_seen": (0, 0, 5, 0, 0, 1, 0, 0),
    }
    return PoolSnapshot(database, user, **{**known, **values})


def snapshot(*pools: PoolSnapshot, **values: Any) -> Snapshot:
    process = {"clients": 3, "max_clients": 100, "login_clients": 0, "users": frozenset("ab")}
    known: dict[str, Any] = {**process, "loop_lag": counts(1000)}
    database = DatabaseSnapshot("app", 5, 0, 3, True, False)
    return Snapshot("0.1.0", "plain Python", 1e9, list(pools), [database], **{**known, **values})


def samples(snap: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server would read."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render(snap).decode())
        for sample in family.samples
    }


def test_gauges_and_counters_of_a_pool() -> None:
    found = samples(snapshot(pool()))
    at = (("database", "app"), ("user", "alice"))
    assert found["pgpool_proxy_clients", (*at[:1], ("state", "waiting"), *at[1:])] == 2
    assert found["pgpool_proxy_servers", (*at[:1], ("state", "idle"), *at[1:])] == 4
    assert found["pgpool_proxy_queries_total", at] == 7
    assert found["pgpool_proxy_longest_wait_seconds", at] == 0.25
    assert found["pgpool_proxy_database_paused", at[:1]] == 1


def test_histograms_are_cumulative_and_in_seconds() -> None:
    found = samples(snapshot(pool()))
    where = lambda le: (("database", "app"), ("le", le), ("user", "alice"))  # noqa: E731
    assert found["pgpool_proxy_wait_seconds_bucket", where("0.0001")] == 1
    assert found["pgpool_proxy_wait_seconds_bucket", where("0.0002")] == 2
    assert found["pgpool_proxy_wait_seconds_bucket", where("+Inf")] == 2
    assert found["pgpool_proxy_wait_seconds_count", (("database", "app"), ("user", "alice"))] == 2
    assert found["pgpool_proxy_wait_seconds_sum", (("database", "app"), ("user", "alice"))] == pytest.approx(200e-6)
    assert found["pgpool_proxy_server_connect_seconds_bucket", where("52.4288")] == 0
    assert found["pgpool_proxy_server_connect_seconds_bucket", where("+Inf")] == 1


def test_pins_and_what_is_left_behind() -> None:
    found = samples(snapshot(pool()))
    assert found["pgpool_proxy_pinned_servers", (("database", "app"), ("user", "alice"))] == 2
    states = {labels: value for (name, labels), value in found.items() if name == "pgpool_proxy_session_states_total"}
    assert states == {
        (("database", "app"), ("kind", "listen"), ("user", "alice")): 5,
        (("database", "app"), ("kind", "temp"), ("user", "alice")): 1,
    }


def test_each_worker_has_its_figures_as_far_as_they_are_known() -> None:
    workers = (WorkerSnapshot(1, True, 5, 4, 3, 1.25, 1000, 0), WorkerSnapshot(2, False, restarts=7))
    found = samples(snapshot(pool(), workers=workers))
    shown = {(name, labels[0][1]): value for (name, labels), value in found.items() if name.startswith("pgpool_proxy_worker_")}
    prefix = "pgpool_proxy_worker_"
    assert shown == {
        (f"{prefix}up", "1"): 1,
        (f"{prefix}clients", "1"): 5,
        (f"{prefix}servers", "1"): 4,
        (f"{prefix}leases", "1"): 3,
        (f"{prefix}cpu_seconds_total", "1"): 1.25,
        (f"{prefix}memory_bytes", "1"): 1000,
        (f"{prefix}restarts_total", "1"): 0,
        (f"{prefix}up", "2"): 0,
        (f"{prefix}restarts_total", "2"): 7,
    }


def test_names_from_outside_cannot_break_out_of_their_label() -> None:
    hostile = 'a"} 1\npgpool_proxy_up{x="\\'
    found = samples(snapshot(pool(database=hostile)))
    assert found["pgpool_proxy_queries_total", (("database", hostile), ("user", "alice"))] == 7
    assert not [name for name, _ in found if name == "pgpool_proxy_up"]


def test_a_name_that_is_not_utf8_spoils_nothing() -> None:
    names = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in (0xFE, 0xFF)]
    database = DatabaseSnapshot(names[0], 5, 0, 3, True, False)
    snap = replace(snapshot(*(pool(name, name) for name in names)), databases=[database], errors={names[0]: 1})
    found = {labels: value for (name, labels), value in samples(snap).items() if name == "pgpool_proxy_queries_total"}
    assert list(found.values()) == [7, 7]  # told apart
    assert all("\\" in dict(labels)["user"] for labels in found)


def test_what_is_beyond_the_bound_is_added_up() -> None:
    many = [pool(f"db{at}", queries=at) for at in range(MAX_POOLS + 10)]
    kept = capped(many, MAX_POOLS)
    assert len(kept) == MAX_POOLS
    assert kept[-1].database == kept[-1].user == OTHERS
    queries = FIELDS.index("query_count")
    assert kept[-1].totals[queries] == sum(range(11))
    assert sum(one.totals[queries] for one in kept) == sum(range(MAX_POOLS + 10))
    histograms = [family for family in families(snapshot(*many)) if family.name == "pgpool_proxy_query_seconds"]
    assert len({(s.labels["database"], s.labels["user"]) for s in histograms[0].samples}) == MAX_HISTOGRAMS
    assert sum(s.value for s in histograms[0].samples if s.name.endswith("_count")) == MAX_POOLS + 10


def test_the_process_and_what_it_counted() -> None:
    found = samples(
        snapshot(
            errors={"57": 3}, disconnects={("client", "client close request"): 4}, tls_handshakes={"client": 2}, cancels=5
        )
    )
    assert found["pgpool_proxy_errors_total", (("class", "57"),)] == 3
    assert found["pgpool_proxy_disconnects_total", (("reason", "client close request"), ("side", "client"))] == 4
    assert found["pgpool_proxy_tls_handshakes_total", (("side", "client"),)] == 2
    assert found["pgpool_proxy_cancel_requests_total", ()] == 5
    assert found["pgpool_proxy_loop_lag_seconds_count", ()] == 1
    assert ("process_cpu_seconds_total", ()) in found
