"""Several workers as the old side of an online restart (-R); handover.py has the theory.

The new daemon talks to a console in one of the workers. When it says SHOW FDS, this process gets a duplicate of that connection
and writes the rows to it: its own listening sockets, what all workers share, then clients and servers as the workers give them
up (retirement.py). The console answers the command when everybody has gone.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin import fds
from pgpool_proxy.admin.answers import to_json
from pgpool_proxy.errors import Report
from pgpool_proxy.process.channel import Message
from pgpool_proxy.process.orders import SHARED
from pgpool_proxy.process.row_sender import RowSender
from pgpool_proxy.process.worker_process import WorkerProcess

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor

TICK_S: Final = 0.005


class FleetHandOver:
    """One run of it. `answer` is the number by which the asking worker knows the question."""

    def __init__(self, supervisor: Supervisor, asker: WorkerProcess, answer: int, descriptor: int) -> None:
        self._supervisor = supervisor
        self._asker = asker
        self._answer = answer
        self._rows = RowSender(descriptor)
        self._waiting: set[int] = set()  # workers that still have somebody
        self._totals: dict[str, list[int]] = {}
        self._secrets: dict[str, Any] = {}
        self._is_over = False
        self._has_said_all = False

    def start(self) -> None:
        log.get_logger().info("handing over to a new process")
        for listening in self._supervisor.listener.sockets:
            number = listening.sock.fileno()
            self._rows.put(fds.socket_row(number, *listening.address), number)
        self._supervisor.listener.is_handed_over = True
        self._supervisor.orders.ask(SHARED, self._told)

    def _told(self, parts: list[tuple[int, list[Any]]]) -> None:
        if self._is_over:
            return
        states = [records[0] for _, records in parts if records]
        self._rows.put(fds.state_row(json.dumps(merged_state(states))))
        for worker in self._supervisor.workers:
            if worker.takes_orders:
                self._waiting.add(worker.number)
                worker.send({"is": "retire", "is_abroad": True})
        self._tick()

    # --- what the workers give up -----------------------------------------------------------------------------------------
    def client(self, said: Message, descriptor: int) -> None:
        state = said["state"]
        key = int.from_bytes(bytes.fromhex(state["key"])[:8], "big")
        address = "unix" if state["is_unix"] else state["address"]
        row = (said["client"], fds.CLIENT, state["user"], said["key"][0], address, state["port"], key, 0)
        self._rows.put((*row, *(None,) * 7, json.dumps(state), 0), descriptor)

    def server(self, said: Message, descriptor: int) -> None:
        state = said["state"]
        key = int.from_bytes(bytes.fromhex(state["key"])[:8], "big", signed=True)
        row = (said["server"], fds.SERVER, *reversed(said["key"]), state["address"], state["port"], key, said["client"])
        self._rows.put((*row, *(None,) * 7, json.dumps(state), 0), descriptor)

    def retired(self, worker: WorkerProcess, said: Message) -> None:
        """It has nobody left."""
        for name, values in said["totals"].items():
            known = self._totals.get(name)
            self._totals[name] = [a + b for a, b in zip(known, values, strict=True)] if known else list(values)
        self._secrets = merged_secrets([self._secrets, said["secrets"]])
        self.left(worker)

    def left(self, worker: WorkerProcess) -> None:
        self._waiting.discard(worker.number)

    # --- time -------------------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        if self._is_over:
            return
        try:
            self._rows.send()
            if not self._waiting and not self._rows and not self._has_said_all:
                self._has_said_all = True
                self._rows.put(fds.state_row(json.dumps({"totals": self._totals, "secrets": self._secrets})))
                self._rows.send()
        except OSError as error:
            log.get_logger().error(f"the new process does not take our sockets: {error.strerror}")
            self._end(errors.INTERNAL_ERROR)
            return
        if self._has_said_all and not self._rows:
            log.get_logger().info("handed over")
            self._end(None)
        else:
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def cancel(self) -> None:
        """RESUME, or the new process has gone: whoever is left goes on here."""
        self._end(errors.CANCELED)

    def _end(self, report: Report | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._rows.close()
        supervisor = self._supervisor
        supervisor.hand_over = None
        supervisor.listener.is_handed_over = self._has_said_all
        if report is not None:
            for worker in supervisor.workers:
                worker.send({"is": "stay"})
        self._asker.send({"is": "answer", "id": self._answer, "report": to_json(report)})


def merged_state(states: list[dict[str, Any]]) -> dict[str, Any]:
    """What several workers share, as one process would say it (handover.py, `shared_state`)."""
    reported = {(database, user): parameters for state in states for database, user, parameters in state["reported"]}
    return {
        "number": max((state["number"] for state in states), default=0),
        "statement": max((state["statement"] for state in states), default=0),
        "disabled": sorted({name for state in states for name in state["disabled"]}),
        "reported": [[*key, parameters] for key, parameters in reported.items()],
        "secrets": merged_secrets([state["secrets"] for state in states]),
    }


def merged_secrets(several: list[dict[str, Any]]) -> dict[str, Any]:
    """What logins have left in several workers."""
    found: dict[str, Any] = {"keys": {}, "typed": {}, "found": []}
    for secrets in several:
        found["keys"] |= secrets.get("keys", {})
        found["typed"] |= secrets.get("typed", {})
        found["found"] += [one for one in secrets.get("found", []) if one not in found["found"]]
    return found
