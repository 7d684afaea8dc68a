"""Several workers, one pool: the process that keeps the listening sockets and the ledger, and serves nobody itself.

Theory of operation
-------------------
Every connection is accepted here and given to the worker with the fewest (doorman.py). Workers ask here before they open a
server (lease_desk.py), and tell of each that they have, so that a lease is free only when the server has really gone
(server_sockets.py). What an operator orders goes through here to all workers (orders.py). A worker that ends is replaced at
once, later and later when it keeps ending; one that is not heard of for worker_timeout is ended first. RESTART replaces them
one by one: the new one starts, the old one gives it its clients and servers. Workers end with this process, since their
channels do.

What is said on the channels is listed in membership.py, the workers' side.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin.answers import to_json
from pgpool_proxy.admin.control import WorkerFigures
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.net.tasks import Tasks
from pgpool_proxy.process import statistics
from pgpool_proxy.process.about import package_version
from pgpool_proxy.process.channel import Message
from pgpool_proxy.process.doorman import Doorman
from pgpool_proxy.process.fleet_handover import FleetHandOver
from pgpool_proxy.process.fleet_observation import FleetObservation
from pgpool_proxy.process.fleet_receiver import FleetReceiver
from pgpool_proxy.process.lease_desk import LeaseDesk
from pgpool_proxy.process.moving import State
from pgpool_proxy.process.orders import LONG_WAITS, PERIODS, Orders
from pgpool_proxy.process.packing import packed
from pgpool_proxy.process.spawner import Spawner, SpawnFailed
from pgpool_proxy.process.systemd import Systemd
from pgpool_proxy.process.takeover import TakeOver
from pgpool_proxy.process.watch import FleetWatch
from pgpool_proxy.process.worker_process import ACTIVE, GONE, RETIRING, STARTING, Totals, WorkerProcess, merged
from pgpool_proxy.settings import config as configuration
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.reload import leads_elsewhere, plan

TICK_S: Final = 0.05
STOOD_STILL_S: Final = 0.5  # a tick that is so late says something
PROMPT_S: Final = 10.0  # a worker that lived that long is replaced at once
FIRST_PAUSE_S: Final = 0.1  # before one that did not is replaced; it doubles up to:
LONGEST_PAUSE_S: Final = 10.0
FULL: Final = 1 << 20  # bytes that wait for a worker to read them: it is given no clients
IDS_AHEAD: Final = 100_000  # ids that a worker may have made since it was last heard of
DOOR_S: Final = 1.0  # for a worker to start again, until which nobody is let in
START_S: Final = 30.0  # for a worker to start
SNAPSHOTS_S: Final = 0.2  # after a period for all workers to have counted it
END_S: Final = 5.0  # for workers to end


class Supervisor:
    """See the module's theory of operation."""

    def __init__(
        self, config: Config, overrides: Mapping[str, str], environ: Mapping[str, str], spawner: Spawner, count: int
    ) -> None:
        self.config = config
        self._overrides = overrides
        self._environ = environ
        self._spawner = spawner
        self.count = count
        self.tasks = Tasks()
        self.systemd = Systemd(environ)
        self.listener = Doorman(lambda: self.least_busy() is not None, self._take).listener
        self.workers: list[WorkerProcess] = []
        self.restarts: dict[int, int] = {}  # by slot
        self.leases = LeaseDesk(self)
        self.orders = Orders(self)
        self.watch = FleetWatch(self.orders, LONG_WAITS)
        self.observation = FleetObservation(self)
        self.observation.configure(config)
        self.secret = os.urandom(32)  # what logins of unknown users are mocked from: one for all workers
        self.exit_code = 0
        self.is_restarting = False
        self.hand_over: FleetHandOver | None = None  # to a daemon that follows this one
        self._take_over: TakeOver | None = None  # from the one that this one follows
        self._secrets: dict[str, Any] | None = None
        self.closing = ""  # the mode of the shutdown that is under way
        self._has_begun_to_close = False  # after shutdown_ready_delay
        self._totals: Totals = {}  # what workers had counted that died when there was no other, by database
        self._reported: dict[tuple[str, str], object] = {}  # by database and user: what servers report at login
        self._cancels: dict[tuple[int, int], set[int]] = {}  # (asker, its number) -> workers that have not answered
        self._numbers = 0  # of worker processes
        self._pauses: dict[int, float] = {}  # by slot, before the next replacement
        self._newest_id = 0
        self._newest_statement = 0
        self._turn = 0
        self._old_ended: Callable[[], None] = lambda: None
        self._stats_due = 0.0
        self._ticked_at = 0.0
        self._stopped = asyncio.Event()
        self._is_up = False

    # --- life ---------------------------------------------------------------------------------------------------------
    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop. Raises ConfigError when it cannot even begin."""
        inherited = self.systemd.sockets()
        self.listener.stop_accepting()  # until there is a worker
        if inherited:
            await self.listener.adopt(inherited, self.config.settings, "from systemd", own_files=False)
        elif not self.listener.sockets:
            await self.listener.open(self.config.settings)
        try:
            await self._start_all()
            self._is_up = True
            await self.listener.go_on_accepting()
            for warning in self.config.warnings:
                log.get_logger().warning(warning)
            ready()
            self.systemd.ready()
            if self._take_over is not None:
                self.tasks.start(self._take_over.go_on(self._taken_over), "takeover")
            self.tasks.start(self.observation.listen(self.config.settings), "metrics")
            self._stats_due = monotonic() + self.config.settings.stats_period + SNAPSHOTS_S
            self.tasks.start(self._tick_forever(), "supervisor")
            await self._stopped.wait()
        finally:
            self.listener.close()
            self.observation.close()
            await self._end_all()
            await self.tasks.stop()
            self.leases.close()
            self._spawner.close()

    async def _start_all(self) -> None:
        """The first workers. Raises ConfigError when one of them cannot start."""
        try:
            fresh = [await self._start(slot) for slot in range(1, self.count + 1)]
            async with asyncio.timeout(START_S):
                await asyncio.gather(*(worker.ready() for worker in fresh))
        except (SpawnFailed, TimeoutError) as error:
            raise ConfigError(f"a worker does not start: {error}", key="workers") from error

    async def _start(self, slot: int) -> WorkerProcess:
        """A process for this slot; it is not ready yet. Raises SpawnFailed."""
        self._numbers += 1
        worker = WorkerProcess(self._numbers, slot)
        self.workers.append(worker)
        try:
            await worker.start(self._spawner, partial(self._first, worker), self._received, self._lost)
        except SpawnFailed:
            self.workers.remove(worker)
            raise
        self.leases.joined(worker)
        self.orders.joined(worker)
        return worker

    def _first(self, worker: WorkerProcess) -> Message:
        worker.totals = self._totals
        self._totals = {}
        return {
            "is": "init",
            "version": package_version(),
            "number": worker.number,
            "slot": worker.slot,
            "slots": self.count,
            "secret": self.secret.hex(),
            "newest_id": self._newest_id + IDS_AHEAD if self._newest_id else 0,
            "newest_statement": self._newest_statement + IDS_AHEAD if self._newest_statement else 0,
            "secrets": self._secrets,
            "quiet": log.is_quiet(),
            "config": packed(self.config),
            "overrides": dict(self._overrides),
            "totals": worker.totals,
            "reported": [[*key, parameters] for key, parameters in self._reported.items()],
            **self.orders.standing(),
        }

    @property
    def is_ending(self) -> bool:
        return self._stopped.is_set()

    async def _end_all(self) -> None:
        for worker in self.workers:
            worker.send({"is": "stop"})
        deadline = monotonic() + END_S
        while self.workers and monotonic() < deadline:  # noqa: ASYNC110 - their ends come as events of the loop
            await asyncio.sleep(0.01)
        for worker in self.workers:
            log.get_logger().warning(f"worker {worker.slot} (pid {worker.pid}) does not end: killed")
            worker.kill()

    def figures(self) -> list[WorkerFigures]:
        """What workers cannot say of themselves, and of those who do not answer what they have said last."""
        return [
            WorkerFigures(
                number=worker.slot,
                pid=worker.pid,
                state=worker.state,
                leases=self.leases.leases_of(worker),
                cpu_seconds=worker.cpu_s if worker.memory else None,
                memory=worker.memory or None,
                restarts=self.restarts.get(worker.slot, 0),
            )
            for worker in sorted(self.workers, key=lambda one: (one.slot, one.state != ACTIVE))
        ]

    # --- clients ------------------------------------------------------------------------------------------------------
    def _take(self, connection: socket.socket, is_unix: bool) -> None:
        """Give a connection to a worker."""
        self._turn += 1
        best = self.least_busy()
        if best is not None:
            over = self.leases.client_arrived(best)
            best.send({"is": "client", "unix": is_unix, "over": over}, (connection.fileno(),))

    def _open_door(self) -> None:
        if self._is_up and not self.closing and not self.orders.keeps_door_closed:
            self.tasks.start(self.listener.go_on_accepting(), "accepting again")

    def least_busy(self) -> WorkerProcess | None:
        """The worker with the fewest clients; of equals, the next one in turn. None: there is none at the moment."""
        best: WorkerProcess | None = None
        fewest = 0
        count = len(self.workers)
        for at in range(count):
            worker = self.workers[(self._turn + at) % count]
            if worker.state == ACTIVE and worker.backlog < FULL and (best is None or self.leases.clients_of(worker) < fewest):
                best = worker
                fewest = self.leases.clients_of(worker)
        return best

    # --- what workers say ---------------------------------------------------------------------------------------------
    def _received(self, worker: WorkerProcess, message: Message, descriptors: list[int]) -> None:
        worker.heard_at = monotonic()
        kind = message["is"]
        if kind == "alive":
            worker.servers = message["servers"]
            worker.cpu_s = message["cpu"]
            worker.memory = message["memory"]
            worker.totals = message["totals"]
            self._newest_id = max(self._newest_id, message["newest_id"])
            self._newest_statement = max(self._newest_statement, message["newest_statement"])
        elif kind == "ready":
            worker.is_ready(message["pid"])
            self._open_door()
        elif kind == "failed":
            problem = ConfigError(message["problem"], file=message["file"], line=message["line"], key=message["key"])
            worker.has_failed(problem)
            if self._is_up:
                log.get_logger().error(f"worker {worker.slot} cannot start: {problem}")
        elif kind == "reported":
            self._reported[message["key"][0], message["key"][1]] = message["parameters"]
            self._tell_others(worker, message)
        elif kind in ("server_failed", "server_back", "login_failed", "login_succeeded", "doubted"):
            self._tell_others(worker, message)
        elif kind == "long_waits":
            self.watch.received(message["pools"], monotonic())
        elif kind == "cancel":
            self._cancel(worker, message)
        elif kind == "cancelled":
            self._cancelled(worker, message)
        elif kind == "drained":
            worker.is_drained = True
            self._look_for_end()
        elif kind == "secrets" and self.hand_over is not None:
            pass  # a new daemon gets them at the end
        elif kind == "retired" and self.hand_over is not None:
            worker.has_retired = True
            self.hand_over.retired(worker, message)
        elif kind in ("secrets", "retired"):
            successor = self.successor(worker)
            if kind == "retired":
                worker.totals = message["totals"]
                if successor is not None:
                    worker.bequeath(successor)
                worker.send({"is": "stop"})
            elif successor is not None:
                successor.send(message)
        elif not self.leases.received(worker, message, descriptors) and not self.orders.received(worker, message, descriptors):
            log.get_logger().error(f"worker {worker.slot} says what nobody understands: {kind}")

    def forget_reported(self) -> None:
        """Servers are to be opened anew: what they report is learned again."""
        self._reported.clear()

    def _tell_others(self, worker: WorkerProcess, message: Message) -> None:
        for other in self.workers:
            if other is not worker:
                other.send(message)

    def successor(self, worker: WorkerProcess) -> WorkerProcess | None:
        """The worker that takes its place."""
        for other in self.workers:
            if other.slot == worker.slot and other.number > worker.number and other.state == ACTIVE:
                return other
        return None

    def tell(self, number: int, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Say it to the worker of this number, if it lives."""
        for worker in self.workers:
            if worker.number == number:
                worker.send(message, descriptors)

    def _cancel(self, asker: WorkerProcess, message: Message) -> None:
        """A CancelRequest whose key the worker that accepted it does not know: one of the others may."""
        others = [worker for worker in self.workers if worker is not asker and worker.takes_orders]
        if not others:
            asker.send({"is": "cancelled", "id": message["id"], "found": False})
            return
        self._cancels[asker.number, message["id"]] = {worker.number for worker in others}
        for worker in others:
            worker.send({"is": "cancel", "key": message["key"], "id": message["id"], "asker": asker.number})

    def _cancelled(self, worker: WorkerProcess, message: Message) -> None:
        """It does not know the key, or has seen to it."""
        request = (int(message["asker"]), int(message["id"]))
        waiting = self._cancels.get(request, set())
        waiting.discard(worker.number)
        is_found = bool(message["found"])
        if (is_found or not waiting) and self._cancels.pop(request, None) is not None:
            self.tell(request[0], {"is": "cancelled", "id": request[1], "found": is_found})

    # --- workers that end ---------------------------------------------------------------------------------------------
    def _lost(self, worker: WorkerProcess) -> None:
        """Its process has ended."""
        self.workers.remove(worker)
        self.leases.left(worker)
        self.orders.left(worker)
        for asker, identifier in list(self._cancels):
            self._cancelled(worker, {"asker": asker, "id": identifier, "found": False})
        if self.hand_over is not None:
            self.hand_over.left(worker)
        if not worker.has_retired:
            self._find_heir(worker)
        lived = monotonic() - worker.started_at
        worker.has_failed(SpawnFailed("it ended at once, see the log"))
        if self._stopped.is_set() or not self._is_up:
            return
        if self.closing:
            self._look_for_end()
            return
        if any(other.slot == worker.slot for other in self.workers):
            return  # it has been replaced already
        log.get_logger().error(f"worker {worker.slot} (pid {worker.pid}) has ended, starting another one")
        pause = self._pauses.get(worker.slot, 0.0)
        if lived >= PROMPT_S:
            pause = 0.0
        self._pauses[worker.slot] = min(max(pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        if pause == 0 and not self.orders.keeps_door_closed:
            self.listener.stop_accepting()  # for a moment: else all who come back are given to the others
            asyncio.get_running_loop().call_later(DOOR_S, self._open_door)
        self.tasks.start(self._replace(worker.slot, pause), f"worker {worker.slot}")

    def _find_heir(self, worker: WorkerProcess) -> None:
        """What it had counted goes on with another one, not with the one that takes its place: that may take a while to start,
        and counters never fall."""
        heir = next((other for other in self.workers if other.state == ACTIVE), None)
        if heir is not None:
            worker.bequeath(heir)
        else:
            self._totals = merged(self._totals, worker.totals)

    async def _replace(self, slot: int, pause: float) -> None:
        await asyncio.sleep(pause)
        if self.closing:
            return
        self.restarts[slot] = self.restarts.get(slot, 0) + 1
        try:
            worker = await self._start(slot)
            async with asyncio.timeout(START_S):
                await worker.ready()
        except ConfigError:
            pass  # said already; it ends, and is replaced in turn
        except (SpawnFailed, TimeoutError) as error:
            log.get_logger().error(f"worker {slot} does not start: {error}")
            if not self.workers:
                self._give_up()
            elif not any(one.slot == slot for one in self.workers):
                self.tasks.start(self._replace(slot, LONGEST_PAUSE_S), f"worker {slot}")

    def _give_up(self) -> None:
        """Nobody serves, and no process can be had: whoever watches over this daemon has to start another one."""
        log.get_logger().fatal("no worker can be started")
        self.exit_code = 1
        self._stop()

    async def restart(self) -> None:
        """RESTART: new processes, one after the other, with what is on the disk now. Raises ConfigError when one cannot
        start; those that were not replaced yet go on as they were."""
        self.is_restarting = True
        try:
            await self._reload()
            await self._spawner.renew()
            for slot in range(1, self.count + 1):
                await self._renew(slot)
        except (SpawnFailed, TimeoutError) as error:
            raise ConfigError(f"a worker does not start: {error}", key="RESTART") from error
        finally:
            self.is_restarting = False

    async def _reload(self) -> None:
        """RELOAD, for all workers. Raises ConfigError."""
        done: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        self.orders.give("reload", [], done.set_result)
        report = await done
        if report is not None and report.severity != "NOTICE":
            raise ConfigError(f"{report.message}: {report.detail}", key="RELOAD")

    async def _renew(self, slot: int) -> None:
        old = [worker for worker in self.workers if worker.slot == slot and worker.state in (ACTIVE, RETIRING)]
        fresh = await self._start(slot)
        try:
            async with asyncio.timeout(START_S):
                await fresh.ready()
        except BaseException:
            fresh.kill()
            raise
        self.restarts[slot] = self.restarts.get(slot, 0) + 1
        for worker in old:
            worker.state = RETIRING
            worker.send({"is": "retire"})

    # --- time ---------------------------------------------------------------------------------------------------------
    async def _tick_forever(self) -> None:
        self._ticked_at = monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.tick(monotonic())
            except Exception as error:
                log.get_logger().error(f"the supervisor's clock failed: {error}", error=error)

    def tick(self, now: float) -> None:
        self._note_pause(now)
        self.leases.tick(now)
        self.orders.tick(now)
        if now >= self._stats_due:
            self._stats_due = now + self.config.settings.stats_period
            if self.config.settings.log_stats:
                self.orders.ask(PERIODS, _log_stats)
        timeout = self.config.settings.worker_timeout
        for worker in self.workers:
            silent = now - worker.heard_at
            if worker.state != STARTING and 0 < timeout <= silent:
                log.get_logger().error(f"worker {worker.slot} (pid {worker.pid}) was not heard of for {silent:.1f} s: killed")
                worker.kill()

    def _note_pause(self, now: float) -> None:
        """Nobody could be heard while this process itself was kept from running: its machine may have slept."""
        paused = now - self._ticked_at - TICK_S
        self._ticked_at = now
        if paused > STOOD_STILL_S:
            log.get_logger().warning(f"the supervisor stood still for {paused:.1f} s")
            for worker in self.workers:
                worker.heard_at += paused

    # --- configuration ------------------------------------------------------------------------------------------------
    def loaded(self) -> Config:
        """What the files say now. Raises ConfigError."""
        log.reopen()
        self.systemd.reloading()
        path = self.config.settings.conffile or self.config.path
        return plan(self.config, configuration.load(path, self._overrides, self._environ)).config

    def use(self, config: Config) -> None:
        """Put a configuration into force here; the workers are told by `orders`."""
        if leads_elsewhere(self.config, config):
            self.forget_reported()
        self.config = config
        log.configure(config.settings, quiet=log.is_quiet())
        self.observation.configure(config)
        self.leases.limits_changed()
        self.listener.tune(config.settings)

    # --- online restart ---------------------------------------------------------------------------------------------------
    def begin_hand_over(self, asker: WorkerProcess, answer: int, descriptors: list[int]) -> None:
        """A new daemon has said SHOW FDS to the console of this worker, on this connection."""
        if self.hand_over is not None:
            os.close(descriptors[0])
            asker.send({"is": "answer", "id": answer, "report": to_json(errors.INTERNAL_ERROR)})
            return
        self.hand_over = FleetHandOver(self, asker, answer, descriptors[0])
        self.hand_over.start()

    async def take_over(self, ended: Callable[[], None]) -> bool:
        """-R: before `run`; see Worker.take_over."""
        if self.systemd.sockets():
            raise ConfigError("an online restart is not for a service whose sockets systemd holds", key="-R")
        take_over = TakeOver(FleetReceiver(self))
        if not await take_over.begin():
            return False
        self._take_over = take_over
        self._old_ended = ended
        return True

    def _taken_over(self) -> None:
        self._take_over = None
        self._old_ended()

    def share(self, state: State) -> None:
        """What the daemon that this one follows has said of all: first of all, and at its end."""
        if "totals" in state:
            for worker in self.workers:
                worker.send({"is": "secrets", "secrets": state["secrets"]})
            self.workers[0].send({"is": "retired", "totals": state["totals"]})
            return
        self._secrets = state["secrets"]
        self._newest_id = state["number"]
        self._newest_statement = state["statement"]
        self.orders.disable(state["disabled"])
        for database, user, parameters in state["reported"]:
            self._reported[database, user] = parameters

    # --- shutting down ------------------------------------------------------------------------------------------------
    def shutdown(self, mode: str) -> None:
        """As Worker.shutdown: a second call ends at once."""
        if mode == "now" or self.closing or self.orders.is_suspended or self._take_over is not None:
            self._stop()
            return
        self.closing = mode
        delay = self.config.settings.shutdown_ready_delay
        if delay > 0:
            log.get_logger().info(f"not ready any more, shutting down in {delay:g} s")
            asyncio.get_running_loop().call_later(delay, self._begin_shutdown)
        else:
            self._begin_shutdown()

    def _begin_shutdown(self) -> None:
        self._has_begun_to_close = True
        self.systemd.stopping(f"Waiting for {self.closing.removeprefix('wait_for_')}")
        self.listener.close_tcp(self._door_is_closed)

    def may_go_over_to(self, mode: str) -> bool:
        """As Worker.may_go_over_to."""
        return self._has_begun_to_close and mode in (self.closing, "wait_for_servers")

    def go_over_to(self, mode: str) -> None:
        """The shutdown that is under way becomes this one."""
        self.closing = mode
        self.systemd.stopping(f"Waiting for {mode.removeprefix('wait_for_')}")
        if not any(listening.is_tcp for listening in self.listener.sockets):
            self._door_is_closed()

    def _door_is_closed(self) -> None:
        """Who was still let in stands before this in the workers' channels."""
        for worker in self.workers:
            worker.send({"is": "closing", "mode": self.closing})
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self.closing and all(worker.is_drained or worker.state == GONE for worker in self.workers):
            what = "server connections" if self.closing == "wait_for_servers" else "client connections"
            log.get_logger().info(f"{what} dropped, exiting")
            self._stop()

    def _stop(self) -> None:
        self.systemd.stopping("Exiting")
        self._stopped.set()


def _log_stats(parts: list[tuple[int, list[Any]]]) -> None:
    """The line of each stats_period: all workers added up."""
    periods = [(tuple(old), tuple(new), float(seconds)) for _, records in parts for old, new, seconds in records]
    if periods:
        log.get_logger().info(statistics.line(periods))
