"""The console of one worker among several: what is typed into it is ordered of all, and SHOW tells of all.

The `Control` of admin/control.py: what belongs to this process (clocks) is its own worker's, the rest goes to the supervisor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pgpool_proxy import errors
from pgpool_proxy.admin.answers import from_json
from pgpool_proxy.admin.control import Done, Pending, Row
from pgpool_proxy.admin.merge import merged
from pgpool_proxy.admin.show import FAKES
from pgpool_proxy.errors import Report
from pgpool_proxy.process.source import descriptor, unsent
from pgpool_proxy.session.client_session import ClientSession

if TYPE_CHECKING:
    from pgpool_proxy.process.membership import Membership
    from pgpool_proxy.process.worker import Worker


LOOK_AGAIN_S = 0.005


class Ordered:
    """An order that was given."""

    def __init__(self, membership: Membership, done: Done) -> None:
        self._membership = membership
        self._done: Done | None = done
        self.number = 0

    def give(self, name: str, arguments: list[Any]) -> Ordered:
        message = {"is": "order", "name": name, "arguments": arguments}
        self.number = self._membership.ask(message, self._answered)
        return self

    def hand_over(self, own: int) -> None:
        self._number = self._membership.ask({"is": "hand_over"}, self._answered, (own,))

    def _answered(self, message: dict[str, Any]) -> None:
        done = self._done
        self._done = None
        if done is not None:
            done(from_json(message["report"]))

    def cancel(self) -> None:
        done = self._done
        self._done = None
        self._membership.forget(self.number)
        self._membership.say({"is": "undo", "id": self.number})
        if done is not None:
            done(errors.CANCELED)

    def abandon(self) -> None:
        self._done = None


class FleetControl:
    """See the module's docstring."""

    def __init__(self, worker: Worker, membership: Membership) -> None:
        self._worker = worker
        self._membership = membership
        self._suspensions: dict[object, Ordered] = {}  # by the console that ordered it
        self._is_handing_over = False

    def _order(self, name: str, arguments: list[Any], done: Done) -> Pending | None:
        return Ordered(self._membership, done).give(name, arguments)

    def now(self) -> float:
        return self._worker.clock()

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        return self._worker.call_later(seconds, call)

    def rows(self, table: str, done: Callable[[Iterable[Row]], None]) -> None:
        if table in FAKES:
            done(FAKES[table].rows(self._worker.control))
            return
        self._membership.ask(
            {"is": "show", "table": table},
            lambda message: done(merged(table, [(int(slot), part) for slot, part in message["parts"]])),
        )

    def pause(self, database: str | None, timeout_s: float, done: Done) -> Pending | None:
        return self._order("pause", [database, timeout_s], done)

    def resume(self, database: str | None, done: Done) -> None:
        self._order("resume", [database], done)

    def suspend(self, owner: object, done: Done) -> Pending | None:
        order = Ordered(self._membership, done).give("suspend", [])
        self._suspensions[owner] = order
        return order

    def disable(self, database: str, done: Done) -> None:
        self._order("disable", [database], done)

    def enable(self, database: str, done: Done) -> None:
        self._order("enable", [database], done)

    def reconnect(self, database: str | None, done: Done) -> None:
        self._order("reconnect", [database], done)

    def wait_close(self, database: str | None, timeout_s: float, done: Done) -> Pending | None:
        return self._order("wait_close", [database, timeout_s], done)

    def kill(self, database: str | None, done: Done) -> None:
        self._order("kill", [database], done)

    def kill_client(self, number: int, done: Done) -> None:
        self._order("kill_client", [number], done)

    def reload(self, done: Done) -> None:
        self._order("reload", [], done)

    def restart(self, done: Done) -> None:
        self._order("restart", [], done)

    def shutdown(self, mode: str, done: Done) -> None:
        self._order("shutdown", [mode], done)

    def set(self, key: str, value: str, done: Done) -> None:
        self._order("set", [key, value], done)

    def may_hand_over(self, session: ClientSession) -> bool:
        ours = session.is_unix and session.peer_uid == os.geteuid()
        return ours and self._worker.control.is_suspended and not self._is_handing_over

    def hand_over(self, session: ClientSession, done: Done) -> Pending:
        """The supervisor goes on with this connection, when what the console has said before is out."""
        self._is_handing_over = True

        def ended(report: Report | None) -> None:
            self._is_handing_over = False
            done(report)

        ordered = Ordered(self._membership, ended)

        def begin() -> None:
            if session.is_closed:
                return
            if unsent(session):
                self._worker.call_later(LOOK_AGAIN_S, begin)
            else:
                ordered.hand_over(descriptor(session))

        self._worker.call_later(0.0, begin)
        return ordered

    def console_closed(self, owner: object) -> None:
        order = self._suspensions.pop(owner, None)
        if order is not None:
            self._is_handing_over = False
            self._membership.say({"is": "console_closed", "id": order.number})
