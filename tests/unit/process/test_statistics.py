"""What the averages of SHOW STATS and of the log line span."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from pgpool_proxy.pool.registry import Registry
from pgpool_proxy.pool.stats import FIELDS, PoolStats, averages
from pgpool_proxy.process.statistics import Statistics

PERIOD = 60.0


class Counted:
    """One pool of database `app`, and its statistics. The clock begins when they do."""

    def __init__(self) -> None:
        self.pool = PoolStats()
        pool = SimpleNamespace(main=None, stats=self.pool, database=SimpleNamespace(name="app"), clients=[])
        self.statistics = Statistics(cast(Registry, SimpleNamespace(pools={("app", "alice"): pool})))
        self.now = self.statistics.base("app", 0.0)[1] * -1

    def after(self, seconds: float, queries: int, *, ends: bool = False) -> Counted:
        self.now += seconds
        self.pool.query_count += queries
        if ends:
            self.statistics.snapshot(self.now)
        return self

    def shown(self) -> float:
        """avg_query_count."""
        base, seconds = self.statistics.base("app", self.now)
        return averages([(base, self.statistics.totals()["app"], seconds)])[FIELDS.index("query_count")]


def test_averages_are_there_before_the_first_period_has_ended() -> None:
    assert Counted().after(10, 70).shown() == 7


def test_averages_span_the_last_whole_period_and_what_came_since() -> None:
    counted = Counted().after(PERIOD, 1_000_000, ends=True).after(PERIOD, 6_000, ends=True)
    assert counted.shown() == 100
    assert counted.after(PERIOD / 2, 3_000).shown() == 100
    assert counted.after(PERIOD / 2, 0).shown() == 75
    assert counted.after(0, 0, ends=True).shown() == 50  # 3,000 in a minute


def test_the_line_of_the_log_is_about_the_last_whole_period() -> None:
    counted = Counted().after(PERIOD, 6_000, ends=True)
    assert " 100 queries/s" in counted.statistics.line()
    assert " 100 queries/s" in counted.after(30, 6_000).statistics.line()
    assert " 200 queries/s" in counted.after(30, 6_000, ends=True).statistics.line()


def test_what_another_process_has_counted_is_in_no_period_of_ours() -> None:
    counted = Counted()
    former: dict[str, Any] = {"app": tuple(1_000_000 for _ in FIELDS)}
    counted.statistics.go_on_from(former)
    assert counted.after(PERIOD, 6_000).shown() == 100
    assert counted.after(0, 0, ends=True).shown() == 100
    assert " 100 queries/s" in counted.statistics.line()
