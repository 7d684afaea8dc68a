"""Counters, and the averages between two snapshots of them."""

from __future__ import annotations

import pytest

from pgpool_proxy.pool.stats import BOUNDS, FIELDS, ZERO, Histogram, PoolStats, averages, merge, percentile


def totals(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(name, 0) for name in FIELDS)


def test_totals_stand_in_the_order_of_their_names() -> None:
    stats = PoolStats()
    for at, name in enumerate(FIELDS):
        setattr(stats, name, at + 1)
    assert stats.totals() == tuple(range(1, len(FIELDS) + 1))
    assert PoolStats().totals() == ZERO


def test_pools_add_up() -> None:
    assert merge([]) == ZERO
    assert merge([totals(xact_count=1, bytes_sent=5), totals(xact_count=2)]) == totals(xact_count=3, bytes_sent=5)


def test_counts_are_averaged_by_second_and_times_by_what_took_them() -> None:
    old = totals(xact_count=10, query_count=10, xact_time=1000)
    new = totals(
        server_assignment_count=4,
        xact_count=14,
        query_count=30,
        bytes_received=200,
        xact_time=3000,
        query_time=1000,
        wait_time=400,
    )
    assert averages([(old, new, 2.0)]) == totals(
        server_assignment_count=2, xact_count=2, query_count=10, bytes_received=100, xact_time=500, query_time=50, wait_time=100
    )


def test_nothing_is_divided_by_nothing() -> None:
    assert averages([(ZERO, totals(xact_time=5, query_time=5, wait_time=5, bytes_sent=5), 0.0)]) == ZERO
    assert averages([(ZERO, ZERO, 1.0)]) == ZERO
    assert averages([]) == ZERO


def test_averages_of_several_processes_weigh_each_by_what_it_did() -> None:
    busy = (ZERO, totals(query_count=90, query_time=900, bytes_sent=30), 3.0)
    slow = (totals(query_count=5, query_time=7), totals(query_count=15, query_time=10_007, bytes_sent=7), 2.0)
    new = (ZERO, ZERO, 0.0)  # its first period is not over
    assert averages([busy, slow, new]) == totals(query_count=35, query_time=109, bytes_sent=13)


# --- histograms -----------------------------------------------------------------------------------------------------------
def test_a_time_is_counted_up_to_its_bound() -> None:
    histogram = Histogram()
    for micros in (0, 100, 101, 200, 52_428_800, 52_428_801):
        histogram.add(micros)
    counts, total = histogram.snapshot()
    assert counts == (2, 2, *[0] * 17, 1, 1)
    assert len(counts) == len(BOUNDS) + 1
    assert total == 401 + 2 * 52_428_800 + 1


@pytest.mark.parametrize(("share", "micros"), [(0.0, 0), (0.5, 100), (0.75, 150), (1.0, 200)])
def test_a_percentile_lies_within_its_bucket(share: float, micros: int) -> None:
    assert percentile((2, 2, *[0] * 19), share) == micros


def test_the_percentile_of_nothing_is_nothing_and_of_what_is_endless_the_last_bound() -> None:
    assert percentile((0,) * 21, 0.5) == 0
    assert percentile((*[0] * 20, 1), 0.5) == BOUNDS[-1]
