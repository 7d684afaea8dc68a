"""Counters, and the averages between two snapshots of them."""

from __future__ import annotations

from pgpool_proxy.pool.stats import FIELDS, ZERO, PoolStats, averages, merge


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
    assert averages(old, new, 2.0) == totals(
        server_assignment_count=2, xact_count=2, query_count=10, bytes_received=100, xact_time=500, query_time=50, wait_time=100
    )


def test_nothing_is_divided_by_nothing() -> None:
    assert averages(ZERO, totals(xact_time=5, query_time=5, wait_time=5, bytes_sent=5), 0.0) == ZERO
    assert averages(ZERO, ZERO, 1.0) == ZERO
