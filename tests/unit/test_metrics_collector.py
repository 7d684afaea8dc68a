"""The text of /metrics: what prometheus-client itself reads back from it, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fix_metrics import counts, pool
from prometheus_client.parser import text_string_to_metric_families

from pgpool_proxy.metrics.collector import MAX_HISTOGRAMS, MAX_POOLS, Exposition
from pgpool_proxy.metrics.shown import OTHERS
from pgpool_proxy.metrics.snapshot import DatabaseSnapshot, PoolSnapshot, Snapshot, WorkerSnapshot
from pgpool_proxy.pool.stats import FIELDS


def snapshot(*pools: PoolSnapshot, **values: Any) -> Snapshot:
    process = {"clients": 3, "max_clients": 100, "login_clients": 0, "users": frozenset("ab")}
    known: dict[str, Any] = {**process, "loop_lag": counts(1000)}
    database = DatabaseSnapshot("app", 5, 0, 3, True, False)
    return Snapshot("0.1.0", "plain Python", 1e9, list(pools), [database], **{**known, **values})


def samples(snap: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server would read."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(Exposition().render(snap).decode())
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
    found = {family.name: family.samples for family in Exposition().families(snapshot(*many))}

    def shown(family: str, suffix: str) -> dict[str, float]:
        of = [sample for sample in found[f"pgpool_proxy_{family}"] if sample.name == f"pgpool_proxy_{family}{suffix}"]
        return {sample.labels["database"]: sample.value for sample in of}

    queries = shown("queries", "_total")
    assert len(queries) == MAX_POOLS
    assert queries[OTHERS] == sum(range(11))
    assert sum(queries.values()) == sum(range(MAX_POOLS + 10))
    histograms = shown("query_seconds", "_count")
    assert len(histograms) == MAX_HISTOGRAMS
    assert sum(histograms.values()) == MAX_POOLS + 10
    assert OTHERS in histograms
    assert OTHERS not in shown("pool_size", "")


def test_the_times_of_show_stats_are_in_seconds() -> None:
    totals = tuple({"xact_time": 3_000_000, "query_time": 2_500_000, "wait_time": 250_000}.get(name, 0) for name in FIELDS)
    found = samples(snapshot(pool(totals=totals)))
    names = ("transaction_time", "query_time", "wait_time")
    labels = (("database", "app"), ("user", "alice"))
    assert [found[f"pgpool_proxy_{name}_seconds_total", labels] for name in names] == [3, 2.5, 0.25]


def test_what_show_lists_has_beside_the_pools() -> None:
    found = samples(
        snapshot(
            servers=6,
            peers=5,
            peer_pools=frozenset("1234"),
            dns_names=frozenset({"a.example", "b.example", "c.example"}),
            dns_zones=frozenset({"example", "org"}),
            dns_queries=1,
        )
    )
    names = ("used_servers", "peers", "peer_pools", "dns_names", "dns_zones", "dns_queries")
    assert [found[f"pgpool_proxy_{name}", ()] for name in names] == [6, 5, 4, 3, 2, 1]


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
