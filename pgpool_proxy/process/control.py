"""What the console orders, carried out in this process: the `Control` of admin/control.py (its `Source` is in source.py).

Theory of operation
-------------------
PAUSE marks a database (or the registry) as paused and closes its servers that are not in use; the pool closes the others as
they are released (`Pool.is_paused`). An order that has to wait for that is kept as a `Waiting`, which each tick of the
janitor asks whether its time has come. Whoever ends the state that an order waits for (RESUME, a timeout, a cancel) also
answers the order, so none waits for something that cannot happen any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pgpool_proxy import errors, log
from pgpool_proxy.admin import control as orders
from pgpool_proxy.admin.control import ACTIVE, AT_ONCE, Done, Row, error
from pgpool_proxy.admin.show import find_table
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.pool.states import (
    CL_LOGIN,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_IDLE,
    SV_LOGIN,
    SV_TESTED,
    SV_USED,
)
from pgpool_proxy.process.source import WorkerLike, WorkerSource
from pgpool_proxy.process.suspension import Suspension
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.settings.reload import set_value

if TYPE_CHECKING:
    from pgpool_proxy.process.handover import HandOver

UNUSED: Final = (SV_IDLE, SV_USED, SV_LOGIN)  # servers that nobody has: PAUSE closes them at once
IN_USE: Final = (SV_ACTIVE, SV_TESTED, SV_BEING_CANCELED)


class Waiting:
    """An order that waits: `is_done` says whether its time has come, `undo` takes back what it has changed."""

    def __init__(
        self,
        control: WorkerControl,
        name: str,
        database: Database | None,
        is_done: Callable[[], bool],
        undo: Callable[[], None],
        done: Done,
        deadline: float,
    ) -> None:
        self.name = name
        self.database = database
        self.is_done = is_done
        self.undo = undo
        self.deadline = deadline  # 0: never
        self._control = control
        self._done: Done | None = done

    def answer(self, report: Report | None) -> None:
        """Once; nobody is told when the console has gone."""
        done = self._done
        self._done = None
        if done is not None:
            done(report)

    def cancel(self) -> None:
        self._control.give_up(self, errors.CANCELED)

    def abandon(self) -> None:
        self._done = None

    def __repr__(self) -> str:
        return f"<Waiting {self.name} {self.database.name if self.database is not None else ''}>"


class WorkerControl(WorkerSource):
    """See the module's theory of operation."""

    def __init__(self, worker: WorkerLike) -> None:
        super().__init__(worker)
        self._waiting: list[Waiting] = []
        self._suspension: Suspension | None = None
        self._suspended_by: object = None
        self._hand_over: HandOver | None = None

    # --- SHOW -----------------------------------------------------------------------------------------------------------
    def rows(self, table: str, done: Callable[[Iterable[Row]], None]) -> None:
        done(find_table(table, f"SHOW {table}").rows(self))

    # --- what time brings -------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Called by the worker's janitor."""
        self._freeze(now)
        for waiting in list(self._waiting):
            if waiting not in self._waiting:
                continue  # answered by one before it
            if waiting.is_done():
                self._waiting.remove(waiting)
                waiting.answer(None)
            elif 0 < waiting.deadline <= now:
                self.give_up(waiting, orders.TIMED_OUT.saying(f"{waiting.name} timed out"))

    def _wait(self, waiting: Waiting) -> Waiting | None:
        """Answer at once what is done already."""
        if waiting.is_done():
            waiting.answer(None)
            return None
        self._waiting.append(waiting)
        return waiting

    def give_up(self, waiting: Waiting, report: Report) -> None:
        """Undo an order that waits, and say why."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.undo()
            waiting.answer(report)

    def _deadline(self, timeout_s: float) -> float:
        return self.now() + timeout_s if timeout_s > 0 else 0.0

    def _end_waits(self, database: Database | None) -> None:
        """What PAUSEs wait for does not happen any more."""
        for waiting in list(self._waiting):
            if waiting.name != "WAIT_CLOSE" and waiting.database is database:
                self._waiting.remove(waiting)
                waiting.answer(orders.ENDED_BY_RESUME.saying(f"{waiting.name} was ended by RESUME"))

    # --- PAUSE and RESUME -------------------------------------------------------------------------------------------------
    def pause(self, database: str | None, timeout_s: float, done: Done) -> Waiting | None:
        _log("PAUSE", database)
        if self.mode != ACTIVE:
            done(orders.ALREADY_PAUSED)
            return None
        found: Database | None = None
        if database is not None:
            found = self._find(database, "pause", done)
            if found is None:
                return None
        was_paused = found is not None and found.paused
        self._set_paused(found, True)

        def undo() -> None:
            if not was_paused and (found is not None or self._worker.closing is None):
                self._set_paused(found, False)

        pools = self._pools_of(found)
        is_done = _nothing_in(lambda: self._pools_of(found), IN_USE)
        for pool in pools:
            self._close_unused(pool)
        return self._wait(Waiting(self, "PAUSE", found, is_done, undo, done, self._deadline(timeout_s)))

    def _set_paused(self, database: Database | None, paused: bool) -> None:
        if database is None:
            self.registry.paused = paused
        else:
            database.paused = paused
        if not paused:
            self._grow(self._pools_of(database))

    def _grow(self, pools: list[Pool]) -> None:
        """Nothing is paused any more: open servers for those who have been waiting."""
        now = self.now()
        for pool in pools:
            if not pool.is_paused:
                pool.grow(now)

    def _close_unused(self, pool: Pool) -> None:
        now = self.now()
        for state in UNUSED:
            for server in _servers(pool, state):
                server.disconnect(errors.PAUSE_MODE, now)

    def resume(self, database: str | None, done: Done) -> None:
        _log("RESUME", database)
        if database is None:
            if self._worker.closing is not None:
                done(orders.POOLER_CLOSING)
            elif self.mode == ACTIVE:
                done(orders.NOT_PAUSED)
            else:
                self._resume_all()
                done(None)
            return
        found = self.registry.databases.get(database)
        if found is None:
            done(error(f"no such database: {database}"))
        elif not found.paused:
            done(error(f"database {database} is not paused"))
        else:
            entry = self.config.database(database)
            if entry is not None and entry.user is not None and not found.is_auto:
                self.registry.pool(found, entry.user)  # KILL has dropped it, and min_pool_size needs no client
            self._set_paused(found, False)
            self._end_waits(found)
            done(None)

    def _resume_all(self) -> None:
        self._thaw()
        self._set_paused(None, False)
        self._end_waits(None)

    def pause_by_signal(self) -> None:
        """SIGUSR1."""
        if self.mode == ACTIVE:
            self.registry.paused = True
            for pool in self._pools_of(None):
                self._close_unused(pool)

    def resume_by_signal(self) -> None:
        """SIGUSR2."""
        if self.mode != ACTIVE and self._worker.closing is None:
            self._resume_all()

    # --- SUSPEND ----------------------------------------------------------------------------------------------------------
    def suspend(self, owner: object, done: Done) -> Waiting | None:
        _log("SUSPEND", None)
        if self.mode != ACTIVE:
            done(orders.ALREADY_PAUSED)
            return None
        if any(database.paused for database in self.registry.databases.values()):
            done(orders.CANNOT_SUSPEND)
            return None
        now = self.now()
        suspension = Suspension(self.registry, now)
        self._suspension = suspension
        self._suspended_by = owner
        self.is_suspended = True
        self.registry.suspended = True
        self._worker.stop_accepting()
        self._freeze(now)
        return self._wait(Waiting(self, "SUSPEND", None, lambda: suspension.is_flushed, self._thaw, done, 0.0))

    def _freeze(self, now: float) -> None:
        if self._suspension is not None:
            self._suspension.freeze(self.config.settings.suspend_timeout, now)

    def _thaw(self) -> None:
        was_suspended = self.is_suspended
        self.is_suspended = False
        self._suspended_by = None
        self.let_go()
        hand_over = self._hand_over
        self._hand_over = None
        if hand_over is not None:
            hand_over.cancel()
        if was_suspended:
            self._worker.go_on_accepting()

    def let_go(self) -> None:
        """Those who were stopped are read again."""
        suspension = self._suspension
        self._suspension = None
        self.registry.suspended = False
        if suspension is not None:
            suspension.thaw()

    def console_closed(self, owner: object) -> None:
        if self.is_suspended and self._suspended_by is owner:
            log.get_logger().info("admin disappeared when suspended, doing RESUME")
            self._resume_all()

    # --- SHOW FDS as the beginning of an online restart ---------------------------------------------------------------------
    def may_hand_over(self, session: ClientSession) -> bool:
        ours = session.is_unix and session.peer_uid == os.geteuid()
        return ours and self.is_suspended and self._hand_over is None

    def hand_over(self, session: ClientSession, done: Done) -> HandOver:
        """The pooler stays suspended, in that nobody is let in; those who are there go on until their turn comes."""
        self.let_go()
        self._hand_over = self._worker.hand_over(session, done)
        return self._hand_over

    # --- DISABLE and ENABLE -----------------------------------------------------------------------------------------------
    def disable(self, database: str, done: Done) -> None:
        _log("DISABLE", database)
        found = self._find(database, "disable", done)
        if found is not None:
            found.disabled = True
            done(None)

    def enable(self, database: str, done: Done) -> None:
        _log("ENABLE", database)
        found = self._find(database, "enable", done)
        if found is not None:
            found.disabled = False
            done(None)

    # --- RECONNECT and WAIT_CLOSE -------------------------------------------------------------------------------------------
    def reconnect(self, database: str | None, done: Done) -> None:
        _log("RECONNECT", database)
        found: Database | None = None
        if database is not None:
            found = self._find(database, "reconnect", done)
            if found is None:
                return
        now = self.now()
        self._worker.host.logins.lookups.forget()  # what auth_query said belongs to the servers that go
        for one in [found] if found is not None else list(self.registry.databases.values()):
            if not one.is_admin:
                self.reconnect_database(one, errors.CLOSE_NEEDED, now)
        done(None)

    def reconnect_database(self, database: Database, reason: Report, now: float) -> None:
        """Its servers are obsolete: those not in use are closed, the others when they are released. What they report is
        learned anew."""
        for pool in list(database.pools):
            pool.forget_parameters()
            for state in (*IN_USE, *UNUSED):
                for server in _servers(pool, state):
                    server.close_needed = True
            for state in (SV_IDLE, SV_USED) if pool.main is None else (*IN_USE, *UNUSED):  # a stream has no end to wait for
                for server in _servers(pool, state):
                    server.disconnect(reason, now)

    def wait_close(self, database: str | None, timeout_s: float, done: Done) -> Waiting | None:
        _log("WAIT_CLOSE", database)
        found: Database | None = None
        if database is not None:
            found = self._find(database, "wait in", done)
            if found is None:
                return None

        def is_done() -> bool:
            pools = self._pools_of(found)
            return not any(
                server.close_needed for pool in pools for state in (*IN_USE, *UNUSED) for server in _servers(pool, state)
            )

        return self._wait(
            Waiting(self, "WAIT_CLOSE", found, is_done, lambda: None, done, self._deadline(timeout_s))
        )

    # --- KILL -----------------------------------------------------------------------------------------------------------
    def kill(self, database: str | None, done: Done) -> None:
        _log("KILL", database)
        if self.mode != ACTIVE:
            done(orders.ALREADY_PAUSED)
            return
        found: Database | None = None
        if database is not None:
            found = self._find(database, "kill", done)
            if found is None:
                return
            found.paused = True
        pools = self._pools_of(found)
        for pool in pools:
            pool.database.paused = True
        for pool in pools:
            self._kill_pool(pool, errors.DATABASE_REMOVED, self.now())
        done(None)

    def remove_database(self, database: Database, now: float) -> None:
        """It has gone from the configuration, or was made from `*` and nobody uses it any more."""
        logger = log.get_logger()
        logger.warning(f"dropping database '{database.name}' as it does not exist anymore or inactive auto-database")
        database.is_removed = True
        database.paused = True  # nothing is opened meanwhile
        for pool in list(database.pools):
            self._kill_pool(pool, errors.DATABASE_REMOVED, now)
        self._worker.stats.forget(database.name)
        if self.registry.databases.get(database.name) is database:
            del self.registry.databases[database.name]

    def _kill_pool(self, pool: Pool, report: Report, now: float) -> None:
        # 1. clients without a server, so that none of them is told that a login failed;
        # 2. servers, which takes linked clients along, and sends no cancel first; 3. who is left.
        quietly = replace(report, sqlstate="00000", severity="LOG")
        for client in _clients(pool):
            if client.server is None:
                client.disconnect(report, now)
        for server in _servers(pool, *range(len(pool.servers))):
            unlinked = server.state in (SV_LOGIN, SV_ACTIVE_CANCEL) or server.client is None
            server.disconnect(quietly if unlinked else report, now)
        for client in _clients(pool):
            client.disconnect(report, now)
        self._worker.stats.keep(pool)
        self.registry.drop_pool(pool)
        self.context.forget_pool(pool)

    def kill_client(self, number: int, done: Done) -> None:
        _log("KILL_CLIENT", str(number))
        for client in self.registry.all_clients():
            if client.number == number and client.state != CL_LOGIN:
                client.disconnect(errors.ADMIN_DISCONNECT, self.now())
                done(None)
                return
        done(orders.CLIENT_NOT_FOUND)

    # --- the process ------------------------------------------------------------------------------------------------------
    def reload(self, done: Done) -> None:
        _log("RELOAD", None)
        try:
            self._worker.reload()
        except ConfigError as failure:
            log.get_logger().error(f"RELOAD failed, the old configuration stays: {failure}")
            done(orders.RELOAD_FAILED.with_detail(str(failure)))
        else:
            done(None)

    def restart(self, done: Done) -> None:
        done(orders.NO_WORKERS)

    def shutdown(self, mode: str, done: Done) -> None:
        _log("SHUTDOWN" if mode == AT_ONCE else f"SHUTDOWN {mode.upper()}", None)
        if mode == AT_ONCE:
            self._worker.shutdown(mode)
        elif self._worker.is_shutting_down and not self._worker.may_go_over_to(mode):
            done(orders.POOLER_CLOSING)
        elif self._worker.is_shutting_down:  # unlike a second signal, no end at once
            done(None)
            self._worker.begin_shutdown(mode)
        else:
            done(None)  # before: when nobody is there, this is the end
            self._worker.shutdown(mode)

    def set(self, key: str, value: str, done: Done) -> None:
        try:
            self._worker.apply(set_value(self.config, key, value))
        except ConfigError as failure:
            done(orders.SET_FAILED.with_detail(str(failure)))
        else:
            _log("SET", key)
            done(None)

    # --- who is meant -----------------------------------------------------------------------------------------------------
    def _find(self, name: str, what: str, done: Done) -> Database | None:
        """The database of a command, which `*` may make now; None when it was refused."""
        found = self.registry.database(name)
        if found is None:
            done(error(f"no such database: {name}"))
        elif found.is_admin:
            done(error(f"cannot {what} admin db: {name}"))
            return None
        return found

    def _pools_of(self, database: Database | None) -> list[Pool]:
        """Its pools; with None, those of all databases but the console's."""
        if database is not None:
            return list(database.pools)
        return [pool for pool in self.registry.pools.values() if not pool.database.is_admin]


def _servers(pool: Pool, *states: int) -> Iterator[PoolServer]:
    """The servers in these states, as they were when it came to each."""
    for state in states:
        for member in pool.servers[state].members():
            if isinstance(member, PoolServer) and not member.is_closed:
                yield member


def _clients(pool: Pool) -> Iterator[PoolClient]:
    for members in pool.clients:
        for member in members.members():
            if isinstance(member, PoolClient) and not member.is_closed:
                yield member


def _nothing_in(pools: Callable[[], list[Pool]], states: tuple[int, ...]) -> Callable[[], bool]:
    return lambda: not any(pool.servers[state].count for pool in pools() for state in states)


def _log(command: str, argument: str | None) -> None:
    shown = f" '{argument}'" if argument else ""
    log.get_logger().info(f"{command}{shown} command issued")
