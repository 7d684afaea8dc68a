"""What it costs the event loop to be looked at: the snapshot of a scrape, SHOW TOP, and what time brings of themselves.

    python bench/looking.py                          500 pools, 10,000 clients
    python bench/looking.py --pools 50 --clients 1000

CPU time of the calls that the loop makes, medians; the sessions and pools are real, their sockets are not
(tests/fix_sessions.py).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from fix_sessions import World

from pgpool_proxy.admin import top
from pgpool_proxy.metrics.collector import Exposition
from pgpool_proxy.process.about import build
from pgpool_proxy.process.observation import Observation
from pgpool_proxy.process.statistics import Statistics
from pgpool_proxy.session.usage import use_of

ROUNDS = 15


def main() -> None:
    options = parser().parse_args()
    world = World()
    registry = world.registry
    clients = [world.client().session for _ in range(options.clients)]
    database = next(iter(registry.databases.values()))
    while len(registry.pools) < options.pools:
        registry.pool(database, f"user{len(registry.pools)}")
    config = SimpleNamespace(settings=SimpleNamespace(application_name_add_host=False), peers={})
    nobody = SimpleNamespace(hosts=list, zones=list, queries=0)
    control = SimpleNamespace(
        now=lambda: world.now, registry=registry, worker=1, config=config, workers=list, context=world.context
    )
    worker = SimpleNamespace(registry=registry, clock=control.now, started_at=0.0, control=control, config=config, dns=nobody)
    observation, statistics, exposition = Observation(cast(Any, worker)), Statistics(registry), Exposition()

    def use() -> None:
        """Everybody has asked something."""
        world.now += 60.0
        for client in clients:
            used = use_of(client)
            used.query_count += 1
            used.server_time += random.randrange(1_000_000)
        for pool in registry.pools.values():
            pool.stats.queries.add(1000)

    print(f"{len(registry.pools)} pools, {len(clients)} clients, {build()}")
    for name, call in (
        ("a scrape: the snapshot, on the loop", observation.own_snapshot),
        ("a scrape: the text, in a thread", lambda: exposition.render(observation.own_snapshot())),
        ("each second: a row of the status page's history", lambda: observation.tick(world.now, 0.0)),
        ("SHOW TOP", lambda: list(top.top(cast(Any, control)))),
        ("each stats_period: its end", lambda: statistics.snapshot(world.now)),
    ):
        print(f"{milliseconds(use, call):8.1f} ms  {name}")


def milliseconds(before: Callable[[], None], call: Callable[[], object]) -> float:
    found: list[float] = []
    for _ in range(ROUNDS):
        before()
        begin = time.thread_time()
        call()
        found.append(time.thread_time() - begin)
    return median(found) * 1000


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--pools", type=int, default=500)
    found.add_argument("--clients", type=int, default=10_000)
    return found


if __name__ == "__main__":
    main()
