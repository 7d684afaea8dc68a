"""watch.py: of several workers' queues one is told of, once a minute, by what all of them know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from pgpool_proxy.pool.limits import ABOUT_TO_OPEN
from pgpool_proxy.process import watch
from pgpool_proxy.process.orders import LONG_WAITS, Orders
from pgpool_proxy.process.watch import AGAIN_S, OVER_S, FleetWatch

APP = ("app", "alice")
USAGE = (1, 0, 0, 0, 0, 0)  # may have 1 server, has none
BUSY = (1, 1, 0, 1, 0, 1)


class Workers:
    """Answer what the test says."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, list[Any]]] = []
        self.asked: list[str] = []

    def ask(self, question: str, told: Callable[[list[tuple[int, Any]]], None]) -> None:
        self.asked.append(question)
        told(self.parts)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def fleet(workers: Workers) -> FleetWatch:
    return FleetWatch(cast(Orders, workers), LONG_WAITS)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    monkeypatch.setattr(watch, "tell_queue", lambda key, queue: found.append((key, queue)))
    return found


def part(number: int, usage: tuple[int, ...], *queues: tuple[tuple[str, str], tuple[Any, ...]]) -> tuple[int, list[Any]]:
    """As JSON brings it."""
    used = [[[], [*APP, list(usage)]]]
    return number, [*used, *[[list(key), [*queue[:3], list(queue[3]) if queue[3] else None]] for key, queue in queues]]


def test_the_queues_of_all_workers_are_one(workers: Workers, fleet: FleetWatch, told: list[Any]) -> None:
    holder = (True, 7.0, "C-1 at 192.0.2.1:4000")
    idle = (False, 90.0, "C-2 at 192.0.2.1:4001")
    workers.parts = [
        part(1, BUSY, (APP, (1, 2.0, "all 1 servers of the pool are busy", holder))),
        part(2, USAGE, (APP, (2, 5.0, ABOUT_TO_OPEN, idle)), (("app", "bob"), (0, 0.0, ABOUT_TO_OPEN, None))),
    ]
    fleet.received([list(APP)], 100.0)
    assert told == [(APP, (3, 5.0, "all 1 servers of the pool are busy", holder))]


def test_a_queue_is_told_of_once_a_minute_whoever_says_that_it_is_long(
    workers: Workers, fleet: FleetWatch, told: list[Any]
) -> None:
    workers.parts = [part(1, BUSY, (APP, (1, 2.0, "paused", None)))]
    now = 100.0
    while now < 100.0 + AGAIN_S:
        fleet.received([APP], now)
        fleet.received([APP], now + 0.5)
        now += 1.0
    assert (len(told), workers.asked) == (1, [LONG_WAITS])
    fleet.received([APP], now)
    assert len(told) == 2


def test_a_queue_that_was_short_meanwhile_is_told_of_anew(workers: Workers, fleet: FleetWatch, told: list[Any]) -> None:
    workers.parts = [part(1, BUSY, (APP, (1, 2.0, "paused", None)))]
    fleet.received([APP], 100.0)
    fleet.received([APP], 101.0 + OVER_S)
    assert len(told) == 2


def test_a_queue_that_has_come_to_its_end_is_not_told_of(workers: Workers, fleet: FleetWatch, told: list[Any]) -> None:
    workers.parts = [part(1, BUSY, (APP, (0, 0.0, ABOUT_TO_OPEN, None)))]
    fleet.received([APP, ("app", "nobody")], 100.0)
    assert told == []
