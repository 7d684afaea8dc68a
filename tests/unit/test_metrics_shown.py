"""shown.py: whichever pools come, go or change sides, a counter of the others never falls, and grows by what was counted."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from fix_metrics import pool

from pgpool_proxy.metrics.shown import OTHERS, QUERIES, Shown
from pgpool_proxy.metrics.snapshot import PoolSnapshot


def queries(found: list[PoolSnapshot]) -> dict[str, int]:
    return {one.database: one.totals[QUERIES] for one in found}


def test_few_pools_are_shown_as_they_are() -> None:
    pools = [pool("a"), pool("b")]
    assert Shown(2).of(pools) == pools


def test_those_with_the_most_queries_are_shown_and_the_rest_is_added_up() -> None:
    found = Shown(3).of([pool("a", queries=1), pool("b", queries=9), pool("c", queries=2), pool("d", queries=8)])
    assert queries(found) == {"b": 9, "d": 8, OTHERS: 3}
    assert found[-1].clients == (2, 4, 6, 8)


def test_a_pool_that_is_dropped_takes_nothing_from_the_others() -> None:
    shown = Shown(2)
    shown.of([pool("a", queries=9), pool("b", queries=4), pool("c", queries=3)])
    found = shown.of([pool("a", queries=9), pool("c", queries=5)])
    assert queries(found) == {"a": 9, OTHERS: 9}
    assert found[-1].clients == (1, 2, 3, 4)  # of those that are there
    found = shown.of([pool("a", queries=9)])
    assert queries(found) == {"a": 9, OTHERS: 9}
    assert (found[-1].clients, found[-1].longest_wait, found[-1].pinned) == ((0, 0, 0, 0), 0.0, 0)


def test_a_pool_keeps_its_series_until_another_has_twice_as_many_queries() -> None:
    shown = Shown(2)
    assert queries(shown.of([pool("a", queries=10), pool("b", queries=5)])) == {"a": 10, "b": 5}  # there is room
    assert queries(shown.of([pool("a", queries=10), pool("b", queries=5), pool("c")])) == {"a": 10, OTHERS: 12}
    assert queries(shown.of([pool("a", queries=10), pool("b", queries=20), pool("c")])) == {"a": 10, OTHERS: 27}
    assert queries(shown.of([pool("a", queries=11), pool("b", queries=23), pool("c")])) == {"b": 23, OTHERS: 28}
    assert queries(shown.of([pool("a", queries=15), pool("b", queries=24), pool("c")])) == {"b": 24, OTHERS: 32}


def test_a_pool_that_begins_anew_counts_from_nothing() -> None:
    shown = Shown(1)
    shown.of([pool("a", queries=10), pool("b", queries=5)])
    fresh = pool("b", queries=2, totals=(0,) * len(pool().totals))
    assert queries(shown.of([pool("a", queries=10), fresh])) == {OTHERS: 15}


def test_no_counter_ever_falls() -> None:
    random = Random(5)
    shown = Shown(4)
    alive: dict[str, int] = {}
    before: PoolSnapshot | None = None
    for _ in range(300):
        for name in random.sample("abcdefghij", 4):
            alive[name] = alive.get(name, 0) + random.randrange(50)
        if random.random() < 0.2 and len(alive) > 5:
            del alive[random.choice(sorted(alive))]
        pools = [_of(name, number) for name, number in alive.items()]
        found = shown.of(pools)
        assert len(found) <= 4
        others = next((one for one in found if one.database == OTHERS), None)
        if before is not None:
            assert others is not None
            for new, old in zip(_counters(others), _counters(before), strict=True):
                assert new >= old
        before = others or before
    assert before is not None


def _of(name: str, number: int) -> PoolSnapshot:
    """A pool that has counted so many of everything."""
    totals = (number,) * len(pool().totals)
    times = (number,) * 21, 150 * number
    found = pool(name, totals=totals, reserve_uses=number, waits=times, transactions=times, logins=times, connects=times)
    return replace(found, queries=times)


def _counters(one: PoolSnapshot) -> list[int]:
    histograms = (one.waits, one.queries, one.transactions, one.logins, one.connects)
    return [*one.totals, one.reserve_uses, *one.states_seen, *[number for found, _ in histograms for number in found]]
