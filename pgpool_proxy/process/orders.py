"""What operators order, at the supervisor: carried out by all workers, answered when all are done.

An order comes from the worker whose console it was typed into, or from a signal. What it changes for good (paused and disabled
databases, the configuration) is noted when it is done, for the workers to come. A worker that does not take an order in time is
named in the answer; one that dies meanwhile is waited for no longer: what replaces it begins with what is noted here, and is
given what is still under way. RELOAD and SET start from the configuration that is in force, so they are carried out one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin import control as admin
from pgpool_proxy.admin import fds
from pgpool_proxy.admin import workers as table_of_workers
from pgpool_proxy.admin.answers import Answer, Missing, from_json, is_refused, merge_answers, to_json, to_undo
from pgpool_proxy.admin.show import FDS
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.process.channel import Message
from pgpool_proxy.process.packing import packed
from pgpool_proxy.process.worker_process import WorkerProcess
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.reload import set_value

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor

OLD_STAYS: Final = "RELOAD failed, the old configuration stays"  # as one process says it
ACK_S: Final = 5.0  # for a worker to say that it has understood, or to give its rows
SNAPSHOT: Final = "the snapshot for the metrics"  # questions that are no tables
HISTORY: Final = "the history for the status page"
READINESS: Final = "readiness"
PERIODS: Final = "the last period"
LONG_WAITS: Final = "the queues that are long"
SHARED: Final = "what a new daemon has to know"
WORKERS: Final = "WORKERS"  # the table that says more than workers know of themselves
Answered = Callable[[Report | None], None]
Asker = tuple[int, int]  # the worker that has the console, and the number that it knows the order by


class Order:
    """One that is being carried out. `undone`: the same in reverse, for those that succeeded while others did not."""

    def __init__(self, name: str, arguments: list[Any], answered: Answered, asker: Asker | None = None) -> None:
        self.number = 0
        self.name = name
        self.arguments = arguments
        self.answered: Answered | None = answered
        self.waiting: dict[int, int] = {}  # worker -> its slot
        self.unheard: dict[int, float] = {}  # workers that have not said that they understood, and when they were told
        self.answers: dict[int, Answer] = {}  # by slot
        self.asker = asker
        self.fresh: Config | None = None  # what RELOAD and SET put into force

    def __repr__(self) -> str:
        return f"<Order {self.number} {self.name} waiting={sorted(self.waiting.values())}>"


class Question:
    """Rows of a SHOW that are being collected."""

    def __init__(self, number: int, table: str, told: Callable[[list[tuple[int, Any]]], None], now: float) -> None:
        self.number = number
        self.table = table
        self.told = told
        self.began = now
        self.waiting: dict[int, int] = {}
        self.records: dict[tuple[int, int], list[Any]] = {}  # by slot and worker


class Orders:
    """See the module's docstring."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._numbers = 0
        self._orders: dict[int, Order] = {}
        self._questions: dict[int, Question] = {}
        self.is_paused = False
        self.is_suspended = False
        self._suspended_by: Asker | None = None
        self._is_configuring = False
        self._to_configure: deque[tuple[str, list[Any], Answered]] = deque()
        self._paused: set[str] = set()
        self._disabled: set[str] = set()

    # --- what is noted ------------------------------------------------------------------------------------------------
    def standing(self) -> dict[str, Any]:
        """What a new worker has to begin with."""
        return {
            "is_paused": self.is_paused,
            "is_suspended": self.is_suspended,
            "paused": sorted(self._paused),
            "disabled": sorted(self._disabled),
        }

    def disable(self, databases: list[str]) -> None:
        """As the daemon that this one follows had them."""
        self._disabled.update(databases)

    def _note(self, order: Order) -> None:
        """It was carried out."""
        database: str | None = order.arguments[0] if order.arguments else None
        if order.name in ("pause", "kill"):
            if database is not None:
                self._paused.add(database)
            elif order.name == "pause":
                self.is_paused = True
            else:
                self._paused.update(self._supervisor.config.databases)
        elif order.name == "resume":
            if database is None:
                self.is_paused = self.is_suspended = False
                self._suspended_by = None
            else:
                self._paused.discard(database)
        elif order.name == "suspend":
            self.is_suspended = True
            self._suspended_by = order.asker
        elif order.name == "configure" and order.fresh is not None:
            self._supervisor.use(order.fresh)
        elif order.name == "reconnect":
            self._supervisor.forget_reported()
        elif order.name == "disable" and database is not None:
            self._disabled.add(database)
        elif order.name == "enable" and database is not None:
            self._disabled.discard(database)

    # --- orders -------------------------------------------------------------------------------------------------------
    def give(self, name: str, arguments: list[Any], answered: Answered, asker: Asker | None = None) -> None:
        """Carry it out; `answered` is called at once or later."""
        supervisor = self._supervisor
        if name == "shutdown":
            self._shutdown(arguments[0], answered)
            return
        if name == "restart":
            self._restart(answered)
            return
        if name == "resume" and supervisor.hand_over is not None and arguments == [None]:
            supervisor.hand_over.cancel()
        if name in ("reload", "set"):
            self._to_configure.append((name, arguments, answered))
            self._configure_next()
            return
        if name == "suspend":
            supervisor.listener.stop_accepting()
        self._broadcast(Order(name, arguments, answered, asker))

    def _broadcast(self, order: Order) -> None:
        self._numbers += 1
        order.number = self._numbers
        for worker in self._supervisor.workers:
            if worker.takes_orders:
                self._tell(order, worker)
        self._orders[order.number] = order
        self._look(order)

    def _tell(self, order: Order, worker: WorkerProcess) -> None:
        order.waiting[worker.number] = worker.slot
        order.unheard[worker.number] = monotonic()
        worker.send({"is": "do", "id": order.number, "name": order.name, "arguments": order.arguments})

    def joined(self, worker: WorkerProcess) -> None:
        """A worker has been told what is `standing`: what others are busy with is its business, too."""
        for order in self._orders.values():
            self._tell(order, worker)

    def undo(self, order: Order) -> None:
        """It is not wanted any more: its asker has been told so."""
        if self._orders.pop(order.number, None) is not None:
            for worker in self._supervisor.workers:
                if worker.number in order.waiting:
                    worker.send({"is": "undo", "id": order.number})
                    order.answers[worker.slot] = errors.CANCELED
            self._take_back(order)

    def _take_back(self, order: Order) -> None:
        """Some have paused, others have not: none shall be."""
        done = to_undo(order.name, order.answers)
        if done:
            for worker in self._supervisor.workers:
                if worker.slot in done:
                    worker.send({"is": "do", "id": 0, "name": "resume", "arguments": order.arguments[:1] or [None]})
        if order.name == "suspend" and not self.keeps_door_closed:
            self._accept_again()

    @property
    def keeps_door_closed(self) -> bool:
        """SUSPEND: nobody is let in."""
        return self.is_suspended or any(order.name == "suspend" for order in self._orders.values())

    def _stands(self, order: Order, report: Report | None) -> bool:
        """It was carried out; who has not answered will find it done when it does, and so does what replaces it."""
        if report is None or report.severity == "NOTICE":
            return True
        answers = order.answers.values()
        done = [answer is None or (isinstance(answer, Report) and answer.severity == "NOTICE") for answer in answers]
        silent = [isinstance(answer, Missing) for answer in answers]
        return any(done) and sum(done) + sum(silent) == len(done)

    def _look(self, order: Order) -> None:
        """Is it done?"""
        if order.waiting:
            return
        self._orders.pop(order.number, None)
        report = merge_answers(order.name, order.answers, ACK_S)
        if self._stands(order, report):
            self._note(order)
            if order.name == "resume" and order.arguments[:1] == [None]:
                self._accept_again()
        else:
            self._take_back(order)
        answered = order.answered
        order.answered = None
        if answered is not None:
            answered(report)

    def _accept_again(self) -> None:
        supervisor = self._supervisor
        if not supervisor.closing:
            supervisor.tasks.start(supervisor.listener.go_on_accepting(), "accepting again")

    def _shutdown(self, mode: str, answered: Answered) -> None:
        supervisor = self._supervisor
        if mode != admin.AT_ONCE and supervisor.closing:  # unlike a second signal, no end at once
            is_possible = supervisor.may_go_over_to(mode)
            answered(None if is_possible else admin.POOLER_CLOSING)
            if is_possible:
                supervisor.go_over_to(mode)
            return
        if mode != admin.AT_ONCE:
            answered(None)  # before: when nobody is there, this is the end
        supervisor.shutdown(mode)

    def _configure_next(self) -> None:
        while self._to_configure and not self._is_configuring:
            self._configure(*self._to_configure.popleft())

    def _configure(self, name: str, arguments: list[Any], answered: Answered) -> None:
        """RELOAD and SET: the new configuration is this process's own when all workers have it. They read its files first, and
        use nothing of it unless all could."""
        supervisor = self._supervisor
        failed = admin.RELOAD_FAILED if name == "reload" else admin.SET_FAILED
        try:
            fresh = supervisor.loaded() if name == "reload" else set_value(supervisor.config, arguments[0], arguments[1])
        except ConfigError as failure:
            if name == "reload":
                log.get_logger().error(f"{OLD_STAYS}: {failure}")
                supervisor.systemd.ready()
            answered(failed.with_detail(str(failure)))
            return

        def refusals() -> dict[int, Answer]:
            return {slot: answer for slot, answer in reading.answers.items() if is_refused(answer)}

        def done(report: Report | None) -> None:
            self._is_configuring = False
            if name == "reload":
                supervisor.systemd.ready()
                if report is not None and report.severity != "NOTICE":
                    said = OLD_STAYS if refusals() else report.message
                    log.get_logger().error(f"{said}: {report.detail}" if report.detail else said)
            answered(report)
            self._configure_next()

        def prepared(_: Report | None) -> None:
            refused = refusals()
            if refused:
                done(merge_answers(name, refused, ACK_S))
            else:
                self._broadcast(order)  # who is silent is named by this one

        self._is_configuring = True
        arguments = [name, packed(fresh)]
        reading = Order("prepare", arguments, prepared)
        order = Order("configure", arguments, done)
        order.fresh = fresh
        self._broadcast(reading)

    def _restart(self, answered: Answered) -> None:
        supervisor = self._supervisor

        async def work() -> None:
            try:
                await supervisor.restart()
            except ConfigError as failure:
                log.get_logger().error(f"RESTART failed: {failure}")
                answered(admin.RESTART_FAILED.with_detail(str(failure)))
            else:
                answered(None)

        if supervisor.is_restarting or supervisor.closing:
            answered(admin.NOT_NOW)
        else:
            supervisor.tasks.start(work(), "restart")

    # --- questions ----------------------------------------------------------------------------------------------------
    def ask(self, table: str, told: Callable[[list[tuple[int, Any]]], None]) -> None:
        """Collect every worker's part of a SHOW, or of one of the questions above; those that do not answer in time are left
        out."""
        self._numbers += 1
        question = Question(self._numbers, table, told, monotonic())
        for worker in self._supervisor.workers:
            if worker.takes_orders:
                question.waiting[worker.number] = worker.slot
                worker.send({"is": "part", "id": question.number, "table": table})
        self._questions[question.number] = question
        self._look_at(question)

    def _look_at(self, question: Question) -> None:
        if not question.waiting and self._questions.pop(question.number, None) is not None:
            parts = [(slot, records) for (slot, _), records in sorted(question.records.items())]
            if question.table == WORKERS:
                parts.insert(0, (0, list(table_of_workers.records(self._supervisor.figures()))))
            elif question.table == FDS:  # all who come, come here
                sockets = [(one.sock.fileno(), *one.address) for one in self._supervisor.listener.sockets]
                parts.insert(0, (0, list(fds.listening_rows(sockets, None))))
            question.told(parts)

    # --- what workers say ---------------------------------------------------------------------------------------------
    def received(self, worker: WorkerProcess, message: Message, descriptors: list[int]) -> bool:
        """True: it was about an order or a question."""
        kind = message["is"]
        if kind == "order":
            self._ordered(worker, message)
        elif kind == "hand_over":
            self._supervisor.begin_hand_over(worker, message["id"], descriptors)
        elif kind == "undo":
            for order in list(self._orders.values()):
                if order.asker == (worker.number, message["id"]):
                    self.undo(order)
        elif kind == "console_closed":
            self._console_left((worker.number, message["id"]))
        elif kind == "accepted":
            found = self._orders.get(message["id"])
            if found is not None:
                found.unheard.pop(worker.number, None)
        elif kind == "done":
            found = self._orders.get(message["id"])
            if found is not None and worker.number in found.waiting:
                slot = found.waiting.pop(worker.number)
                if slot not in found.answers or found.answers[slot] is None:
                    found.answers[slot] = from_json(message["report"])
                self._look(found)
        elif kind == "show":
            identifier, asker = message["id"], worker
            self.ask(
                message["table"], lambda parts: asker.send({"is": "parts", "id": identifier, "parts": parts})
            )
        elif kind == "part_is":
            question = self._questions.get(message["id"])
            if question is not None and worker.number in question.waiting:
                slot = question.waiting[worker.number]
                question.records.setdefault((slot, worker.number), []).extend(message["records"])
                if not message["more"]:
                    del question.waiting[worker.number]
                    self._look_at(question)
        else:
            return False
        return True

    def _ordered(self, worker: WorkerProcess, message: Message) -> None:
        def answered(report: Report | None) -> None:
            worker.send({"is": "answer", "id": message["id"], "report": to_json(report)})

        self.give(message["name"], message["arguments"], answered, (worker.number, message["id"]))

    def _console_left(self, asker: Asker) -> None:
        """The console that gave this SUSPEND: nobody else may be able to come in and end it."""
        is_its = self.is_suspended and self._suspended_by == asker
        if is_its or any(order.name == "suspend" and order.asker == asker for order in self._orders.values()):
            log.get_logger().info("admin disappeared when suspended, doing RESUME")
            self.give("resume", [None], lambda _: None)

    # --- who does not answer ------------------------------------------------------------------------------------------
    def left(self, worker: WorkerProcess) -> None:
        """A worker has ended: nobody waits for it."""
        suspensions = [order.asker for order in self._orders.values() if order.name == "suspend"]
        if self.is_suspended:
            suspensions.append(self._suspended_by)
        for order in list(self._orders.values()):
            order.unheard.pop(worker.number, None)
            if order.waiting.pop(worker.number, None) is not None:
                self._look(order)
        if not self._supervisor.is_ending:
            for asker in suspensions:
                if asker is not None and asker[0] == worker.number:
                    self._console_left(asker)
        for question in list(self._questions.values()):
            if question.waiting.pop(worker.number, None) is not None:
                self._look_at(question)

    def tick(self, now: float) -> None:
        for order in list(self._orders.values()):
            late = [number for number, told_at in order.unheard.items() if now - told_at >= ACK_S]
            for number in late:
                del order.unheard[number]
                slot = order.waiting.pop(number, None)
                if slot is not None:
                    order.answers[slot] = Missing.LATE
            if late:
                self._look(order)
        for question in list(self._questions.values()):
            if question.waiting and now - question.began >= ACK_S:
                slots = ", ".join(str(slot) for slot in sorted(question.waiting.values()))
                log.get_logger().warning(f"{question.table}: no answer from worker {slots}")
                question.waiting.clear()
                self._look_at(question)
