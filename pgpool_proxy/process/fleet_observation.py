"""/metrics, the health checks and the status page of several workers: asked of all of them, and added up (metrics/merge.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any

from pgpool_proxy import log
from pgpool_proxy.metrics import merge
from pgpool_proxy.metrics.snapshot import HistoryRow, Readiness, Snapshot, WorkerSnapshot
from pgpool_proxy.process.about import build, package_version
from pgpool_proxy.process.metrics_port import MetricsPort
from pgpool_proxy.process.observation import worker_snapshot
from pgpool_proxy.process.orders import HISTORY, READINESS, SNAPSHOT
from pgpool_proxy.process.worker_process import ACTIVE

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor


class FleetObservation(MetricsPort):
    """See the module's docstring."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__()
        self._supervisor = supervisor
        self._started_at = time()

    def snapshot(self, done: Callable[[Callable[[], Snapshot]], None]) -> None:
        def told(parts: list[tuple[int, list[Any]]]) -> None:
            workers = self._workers()
            max_clients = self._supervisor.config.settings.max_client_conn
            lost_lines = log.lost_lines()

            def make() -> Snapshot:
                whole = [(slot, merge.snapshot_of(records)) for slot, records in parts if records]
                if not whole:
                    return self._of_nobody(workers, max_clients)
                found = merge.merged(whole, workers)
                return replace(found, started_at=self._started_at, lost_log_lines=found.lost_log_lines + lost_lines)

            done(make)

        self._supervisor.orders.ask(SNAPSHOT, told)

    def _of_nobody(self, workers: list[WorkerSnapshot], max_clients: int) -> Snapshot:
        """No worker answers."""
        return Snapshot(
            package_version(), build(), self._started_at, [], [], 0, max_clients, 0, frozenset(), workers=tuple(workers)
        )

    def _workers(self) -> list[WorkerSnapshot]:
        states = {worker.slot for worker in self._supervisor.workers if worker.state == ACTIVE}
        return [worker_snapshot(figures, figures.number in states) for figures in self._supervisor.figures()]

    def history(self, done: Callable[[list[HistoryRow]], None]) -> None:
        self._supervisor.orders.ask(HISTORY, lambda parts: done(merge.merged_history(records for _, records in parts)))

    def readiness(self, done: Callable[[Readiness], None]) -> None:
        supervisor = self._supervisor
        if supervisor.closing:
            done(Readiness(("shutting down",)))
            return

        def told(parts: list[tuple[int, list[Any]]]) -> None:
            said = [Readiness(tuple(reasons)) for _, reasons in parts]
            done(merge.all_ready(said) if said else Readiness(("no worker serves",)))

        supervisor.orders.ask(READINESS, told)
