"""A worker that keeps dying is replaced later and later; one that has lived for a while, at once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pgpool_proxy.process.spawner import Spawner
from pgpool_proxy.process.supervisor import LONGEST_PAUSE_S, PROMPT_S, Supervisor
from pgpool_proxy.process.worker_process import WorkerProcess
from pgpool_proxy.settings.config import load


class Replacements:
    """A supervisor of two slots whose replacements are noted instead of started."""

    def __init__(self, tmp_path: Path) -> None:
        ini = tmp_path / "proxy.ini"
        ini.write_text("[pgbouncer]\nworkers = 2\n")
        self.supervisor = Supervisor(load(str(ini), {}, {}), {}, {}, cast(Spawner, None), 2)
        self.supervisor._is_up = True
        self.pauses: list[float] = []
        self.numbers = 0
        self.supervisor._replace = lambda slot, pause: self.pauses.append(pause)  # type: ignore[method-assign, assignment, return-value]
        self.supervisor.tasks.start = lambda work, name: None  # type: ignore[method-assign, assignment, misc]

    def die(self, slot: int, lived: float) -> float:
        """A worker dies after so many seconds: how long the next one is waited with."""
        self.numbers += 1
        worker = WorkerProcess(self.numbers, slot)
        worker.started_at -= lived
        self.supervisor.workers.append(worker)
        self.supervisor.leases.joined(worker)
        self.supervisor._lost(worker)
        return self.pauses[-1]


async def test_who_keeps_dying_is_replaced_later_and_later(tmp_path: Path) -> None:
    fleet = Replacements(tmp_path)
    pauses = [fleet.die(1, lived=0) for _ in range(10)]
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert fleet.die(2, lived=0) == 0  # the other slot has done nothing
    assert fleet.die(1, lived=PROMPT_S) == 0
    assert fleet.die(1, lived=0) == 0.1
