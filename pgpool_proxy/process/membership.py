"""A worker's side of its channel to the supervisor, and the process around it.

What is said, by `is`; `database` and `user` name a pool:

from the supervisor
  init                 first of all: slot, slots, number, config, what is paused and disabled, from which ids on to count
  client               a connection was accepted (with its descriptor); `over`: there are more than max_client_conn
  lease, server, lost, admitted        the ledger's: see lease_desk.py
  reported             what servers of a pool report at login, from the first worker that has learned it
  login_failed, login_succeeded     an address, for auth_failure_ban
  doubted              a user whose password did not match what auth_query had answered
  cancel, cancelled    a CancelRequest that another worker has accepted; the end of one that this worker has passed on
  do, undo, part       an order of the console, its end before its time, the question for this worker's part of a SHOW
  answer, parts        to the worker that has the console
  closing, stop        a shutdown begins; end at once
  retire, stay         another worker, or another daemon, has come: give it everybody; it has gone
  hand_server, hand_client, secrets, retired    from the worker whose place this one takes (retirement.py)
to the supervisor
  ready, failed, alive, drained    of the process: it serves, it cannot, how it is, it has no clients
  wants, given_back, has_clients, busy, offered, closing, connected, keyed, admit, settled, withdrawn, ended   the ledger's
  reported, login_failed, login_succeeded, doubted, cancel, cancelled
  order, undo, console_closed, accepted, done, show, part_is    an operator's
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from pgpool_proxy import errors, log
from pgpool_proxy.admin import control as orders
from pgpool_proxy.admin.answers import from_json, to_json
from pgpool_proxy.admin.control import Done, Pending, Refused
from pgpool_proxy.admin.merge import chunked, part_of
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.metrics import merge
from pgpool_proxy.net.client_connection import ClientConnection, Gate
from pgpool_proxy.pool.cancel_keys import peer_of
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.process import daemon
from pgpool_proxy.process.arrivals import Arrivals
from pgpool_proxy.process.channel import Channel, Message, receive_first
from pgpool_proxy.process.fleet_control import FleetControl
from pgpool_proxy.process.handover import shared_state
from pgpool_proxy.process.lease_wire import LeaseWire
from pgpool_proxy.process.orders import HISTORY, LONG_WAITS, PERIODS, READINESS, SHARED, SNAPSHOT
from pgpool_proxy.process.packing import unpacked
from pgpool_proxy.process.receiver import refuse
from pgpool_proxy.process.retirement import Retirement
from pgpool_proxy.process.watch import queues
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_login import no_server
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.transport import Transport
from pgpool_proxy.settings.reload import leads_elsewhere, plan
from pgpool_proxy.wire import frontend

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import NamedFiles, Worker

ORDERS: Final = frozenset({"resume", "disable", "enable", "reconnect", "kill", "kill_client"})
SWITCH_S: Final = 0.0005  # as in cli.py
ALIVE_S: Final = 0.5
ELSEWHERE_S: Final = 0.3  # so much later the others try a server that has failed: who has found that out does it for them
GRACE_S: Final = 5.0  # for the loop to end after the supervisor has

# --- the process ----------------------------------------------------------------------------------------------------------
def work(sock: socket.socket) -> int:
    """What the spawner's child does with its end of a channel: a worker, until it is told to stop. Its exit code."""
    from pgpool_proxy.process.worker import Worker

    try:
        first = receive_first(sock)
    except EOFError:
        return 0
    _watch_supervisor(sock)
    config = unpacked(first["config"])
    log.configure(config.settings, quiet=bool(first["quiet"]))
    daemon.raise_file_limit(daemon.files_needed(config), quiet=True)
    sys.setswitchinterval(SWITCH_S)

    async def serve() -> None:
        membership = Membership(sock, first)
        try:
            worker = Worker(config, first["overrides"], os.environ, membership)
            membership.begin()
        except ConfigError as error:
            membership.say(
                {"is": "failed", "problem": error.problem, "file": error.file, "line": error.line, "key": error.key}
            )
            membership.flush()
            return
        gc.collect()
        gc.freeze()
        await worker.run(membership.is_ready)
        membership.close()

    uvloop.run(serve())
    return 0


def load_everything() -> None:
    """Import all that a worker will need: its account may not be able to read it later."""
    import pgpool_proxy.process.worker  # noqa: F401


def _watch_supervisor(sock: socket.socket) -> None:
    """The loop notices when the supervisor has gone; a thread sees to it that the process ends even if the loop hangs."""
    own = os.dup(sock.fileno())

    def wait() -> None:
        poll = select.poll()
        poll.register(own, 0)  # POLLHUP comes unasked
        poll.poll()
        threading.Event().wait(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


class TooMany:
    """The gate of a client that came when there were max_client_conn already: it is counted again when it has logged in."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def accepted(self, connection: ClientConnection, transport: Transport, now: float) -> ClientSession:
        session = self._gate.accepted(connection, transport, now)
        session.is_over = True
        return session

    def crashed(self, session: ClientSession, error: BaseException, now: float) -> None:
        self._gate.crashed(session, error, now)


class Membership:
    """See the module's docstring."""

    def __init__(self, sock: socket.socket, first: Message) -> None:
        self.slot: int = first["slot"]
        self.slots: int = first["slots"]
        self.number: int = first["number"]
        self.secret = bytes.fromhex(first["secret"])
        self.channel = Channel(sock, self._received, self._supervisor_gone)
        self._first = first
        self._worker: Worker | None = None
        self._own_arrivals: Arrivals | None = None
        self._retirement: Retirement | None = None
        self._asked: dict[int, Callable[[Any], None]] = {}  # what is to be answered, by our own number
        self._numbers = 0
        self.leases = LeaseWire(self)
        self._told: dict[tuple[str, str], dict[bytes, bytes]] = {}  # by database and user: what the others know already
        self._orders: dict[int, Any] = {}  # orders that are being carried out here -> Pending
        self.prepared: tuple[str, NamedFiles] | None = None  # a configuration that is about to be used, packed, and its files
        self._handlers: dict[str, Callable[[Message, list[int]], None]] = {
            "client": self._client,
            "reported": self._reported,
            "server_failed": self._server_failed,
            "server_back": self._server_back,
            "login_failed": self._login_failed,
            "doubted": self._doubted,
            "login_succeeded": self._login_succeeded,
            "cancel": self._cancel,
            "cancelled": self._answered,
            "do": self._do,
            "undo": self._undo,
            "part": self._part,
            "answer": self._answered,
            "parts": self._answered,
            "closing": self._closing,
            "stop": self._stop,
            "retire": self._retire,
            "stay": self._stay,
            "hand_server": self._hand_server,
            "hand_client": self._hand_client,
            "secrets": self._secrets,
            "retired": self._retired,
        }

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            raise errors.IllegalTransition("a membership without a worker")
        return self._worker

    @property
    def _arrivals(self) -> Arrivals:
        if self._own_arrivals is None:
            raise errors.IllegalTransition("a membership without a worker")
        return self._own_arrivals

    def join(self, worker: Worker) -> None:
        """Told by the worker, which is being made: whatever several workers share is numbered and asked for together."""
        self._worker = worker
        self._own_arrivals = Arrivals(worker)
        self.leases.use(worker)
        for numbers, newest in ((worker.registry, "newest_id"), (worker.context.statements, "newest_statement")):
            numbers.number_by(self.slot, self.slots)
            numbers.number_from(self._first[newest])
        worker.control.worker = self.slot
        worker.console_control = FleetControl(worker, self)

    def begin(self) -> None:
        """The worker is made: it begins with what operators have ordered, and the others have learned, so far."""
        worker = self.worker
        registry = worker.registry
        registry.paused = self._first["is_paused"]
        for name in self._first["paused"]:
            database = registry.database(name)
            if database is not None:
                database.paused = True
        for name in self._first["disabled"]:
            database = registry.database(name)
            if database is not None:
                database.disabled = True
        if self._first["is_suspended"]:
            worker.control.suspend(None, lambda _: None)
        for database_name, user, reported in self._first["reported"]:
            self._learn(database_name, user, reported)
        self._retired(self._first, [])
        if self._first["secrets"] is not None:
            self._secrets(self._first, [])
        self._first = {}

    def is_ready(self) -> None:
        """It serves from now on."""
        self.say({"is": "ready", "pid": os.getpid()})
        self._say_alive()

    # --- the channel --------------------------------------------------------------------------------------------------
    def say(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        self.channel.send(message, descriptors)

    def ask(self, message: Message, answered: Callable[[Any], None], descriptors: tuple[int, ...] = ()) -> int:
        """Say it with an `id`; `answered` is called with the whole answer. The id."""
        self._numbers += 1
        self._asked[self._numbers] = answered
        self.say({**message, "id": self._numbers}, descriptors)
        return self._numbers

    def forget(self, identifier: int) -> None:
        """Nobody waits for this answer any more."""
        self._asked.pop(identifier, None)

    def flush(self) -> None:
        self.channel.flush()

    def close(self) -> None:
        self.channel.flush()
        self.channel.close()

    def _received(self, message: Message, descriptors: list[int]) -> None:
        try:
            handler = self._handlers.get(message["is"])
            if handler is not None:
                handler(message, descriptors)
            else:
                self.leases.received(message, descriptors)
        except Exception as error:
            log.get_logger().error(f"what the supervisor said about {message['is']} failed: {error}", error=error)

    def _answered(self, message: Message, descriptors: list[int]) -> None:
        answered = self._asked.pop(message["id"], None)
        if answered is not None:
            answered(message)

    def _supervisor_gone(self) -> None:
        log.get_logger().error("the supervisor has gone, ending")
        self.worker.shutdown("now")

    def _say_alive(self) -> None:
        if self.channel.is_closed:
            return
        worker = self.worker
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.say(
            {
                "is": "alive",
                "servers": sum(int(pool.server_count) for pool in worker.registry.pools.values()),
                "cpu": usage.ru_utime + usage.ru_stime,
                "memory": worker.control.resident_bytes(),
                "newest_id": int(worker.registry.last_number()),
                "newest_statement": int(worker.context.statements.last_number()),
                "totals": {name: list(values) for name, values in worker.stats.totals().items()},
            }
        )
        worker.call_later(ALIVE_S, self._say_alive)

    # --- clients ------------------------------------------------------------------------------------------------------
    def _client(self, message: Message, descriptors: list[int]) -> None:
        listener = self.worker.listener
        gate: Gate = TooMany(listener) if message["over"] else listener
        self.worker.take(socket.socket(fileno=descriptors[0]), gate, lambda: self.leases.say_ended("", ""))

    def server_opened(self, session: ServerSession) -> None:
        """A server has logged in: what a cancel needs, and what the others need not wait for a server of their own to know."""
        self.leases.keyed(session)
        if session.pool.main is None:
            asyncio.get_running_loop().call_soon(self._learned, session.pool)
            if session.pool.last_failure is not None:
                self.say({"is": "server_back", "key": [session.pool.database.name, session.pool.user.name]})

    def server_failed(self, pool: Pool, report: Report, told: Report | None, retry_in: float) -> None:
        """The others need not find out by themselves that there is no server to be had."""
        if pool.main is None:
            key = [pool.database.name, pool.user.name]
            reports = [to_json(report), to_json(told)]
            self.say({"is": "server_failed", "key": key, "reports": reports, "retry_in": retry_in + ELSEWHERE_S})

    def known_parameters(self, pool: Pool) -> dict[bytes, bytes] | None:
        """What servers of the pool report, if any worker knows."""
        return self._told.get((pool.database.name, pool.user.name)) if pool.main is None else None

    def _learned(self, pool: Pool) -> None:
        key, parameters = (pool.database.name, pool.user.name), pool.server_parameters
        if parameters is not None and self._told.get(key) is not parameters:
            self._told[key] = parameters
            reported = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in parameters.items()]
            self.say({"is": "reported", "key": list(key), "parameters": reported})

    # --- what servers report, and failed logins -----------------------------------------------------------------------
    def _reported(self, message: Message, descriptors: list[int]) -> None:
        database, user = message["key"]
        self._learn(database, user, message["parameters"])
        self._server_back(message, descriptors)  # of a worker that has not known that there was none to be had

    def _learn(self, database: str, user: str, reported: list[list[str]]) -> None:
        parameters = {name.encode("latin-1"): value.encode("latin-1") for name, value in reported}
        self._told[database, user] = parameters
        self.leases.ledger.learn(database, user, parameters, monotonic())

    def forget_parameters(self) -> None:
        """Servers are to be opened anew, or may lead elsewhere."""
        self._told.clear()

    def _server_failed(self, message: Message, descriptors: list[int]) -> None:
        """Who has found it out tries again before the others do."""
        pool = self._pool_of(*message["key"])
        report, told = (from_json(said) for said in message["reports"])
        if pool is not None and report is not None:
            no_server(pool, report, told, message["retry_in"], monotonic())

    def _server_back(self, message: Message, descriptors: list[int]) -> None:
        pool = self._pool_of(*message["key"])
        if pool is not None and pool.last_failure is not None:
            pool.forget_failures()
            pool.grow(monotonic())

    def _login_failed(self, message: Message, descriptors: list[int]) -> None:
        self.worker.host.logins.count_failure(message["address"], monotonic())

    def _doubted(self, message: Message, descriptors: list[int]) -> None:
        """A password did not match what auth_query had answered: what is kept of that user here may be old, too."""
        self.worker.host.logins.lookups.forget_user(message["user"])

    def _login_succeeded(self, message: Message, descriptors: list[int]) -> None:
        self.worker.host.logins.failed.succeeded(message["address"])

    # --- cancel requests ----------------------------------------------------------------------------------------------
    def pass_cancel_on(self, session: ClientSession, key: bytes) -> bool:
        """A key that is none of ours, and may be of another worker's client: the connection that brought it stays until that
        has seen to it. False: it is another daemon's."""
        own = self.worker.keys.peer_id
        if own and peer_of(key) != own:
            return False

        def done(message: Any) -> None:
            session.leave(errors.CANCEL_SENT if message["found"] else errors.CANCEL_UNKNOWN_KEY, monotonic())

        self.ask({"is": "cancel", "key": key.hex()}, done)
        return True

    def _cancel(self, message: Message, descriptors: list[int]) -> None:
        if self.worker.keys.find(bytes.fromhex(message["key"])) is None:
            self.say({"is": "cancelled", "id": message["id"], "asker": message["asker"], "found": False})
        else:
            self.worker.tasks.start(self._bring_cancel(message), "cancel of another worker")

    async def _bring_cancel(self, message: Message) -> None:
        """As if its client had come here: a connection of our own brings it, and lasts as long as the cancel does."""
        loop = asyncio.get_running_loop()
        ours, its = socket.socketpair()
        ours.setblocking(False)
        connection = ClientConnection(self.worker.listener)
        try:
            await loop.connect_accepted_socket(lambda: cast(asyncio.Protocol, connection), its)
            if connection.session is not None:
                self.worker.registry.uncount(connection.session)
            await loop.sock_sendall(ours, frontend.cancel_request(bytes.fromhex(message["key"])))
            while await loop.sock_recv(ours, 1024):
                pass
        except OSError:
            pass
        finally:
            ours.close()
            self.say({"is": "cancelled", "id": message["id"], "asker": message["asker"], "found": True})

    # --- orders -------------------------------------------------------------------------------------------------------
    def _do(self, message: Message, descriptors: list[int]) -> None:
        identifier: int = message["id"]
        self.say({"is": "accepted", "id": identifier})

        def done(report: Report | None) -> None:
            self._orders.pop(identifier, None)
            self.say({"is": "done", "id": identifier, "report": to_json(report)})

        pending = _carry_out(self.worker, message["name"], message["arguments"], done)
        if pending is not None:
            self._orders[identifier] = pending

    def _undo(self, message: Message, descriptors: list[int]) -> None:
        pending = self._orders.get(message["id"])
        if pending is not None:
            pending.cancel()

    def _part(self, message: Message, descriptors: list[int]) -> None:
        """A chunk a turn of the loop: a table may have thousands of rows."""
        table, identifier = message["table"], message["id"]
        observation = self.worker.observation
        chunks: Iterator[list[Any]]
        if table == READINESS:
            observation.readiness(lambda said: self._say_part(identifier, iter([list(said.reasons)])))
            return
        if table == SHARED:
            chunks = iter([[shared_state(self.worker)]])
        elif table == SNAPSHOT:
            chunks = merge.chunks(observation.own_snapshot())
        elif table == HISTORY:
            chunks = iter([list(observation.own_history())])
        elif table == LONG_WAITS:
            chunks = chunked(queues(self.worker))
        elif table == PERIODS:
            chunks = iter([[self.worker.stats.whole_period()]])
        else:
            try:
                chunks = part_of(table, self.worker.control)
            except Refused:
                chunks = iter([])
        self._say_part(identifier, chunks)

    def _say_part(self, identifier: int, chunks: Iterator[list[Any]]) -> None:
        chunk = next(chunks, None)
        self.say({"is": "part_is", "id": identifier, "records": chunk or [], "more": chunk is not None})
        if chunk is not None:
            self.worker.call_later(0.0, partial(self._say_part, identifier, chunks))

    # --- another worker in this one's place ---------------------------------------------------------------------------
    def _retire(self, message: Message, descriptors: list[int]) -> None:
        is_abroad = bool(message.get("is_abroad"))
        if is_abroad:
            self.worker.control.let_go()  # suspended, those who are here go on until their turn comes
        self._retirement = Retirement(self.worker, self, is_abroad=is_abroad)
        self._retirement.start()

    def _stay(self, message: Message, descriptors: list[int]) -> None:
        """Who is still here goes on here."""
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None

    def _hand_server(self, message: Message, descriptors: list[int]) -> None:
        """The worker whose place this one takes gives a server: the client that it names follows."""
        pool = self._pool(message)
        sock = socket.socket(fileno=descriptors[0])
        if pool is None:
            sock.close()
            database, user = message["key"]
            self.leases.say_closing(database, user, message["server"], 0)
        else:
            sock.setblocking(False)
            self._arrivals.take_server(sock, message["state"], pool, message["client"])

    def _hand_client(self, message: Message, descriptors: list[int]) -> None:
        pool = self._pool(message)
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        if pool is None:
            refuse(sock, message["key"][0], is_client=True)
            self.leases.say_ended("", "")
        else:
            self._arrivals.take_client(sock, message["state"], pool, message["client"])

    def _pool(self, message: Message) -> Pool | None:
        return self._pool_of(message["key"][0], message["state"]["pool_user"])

    def _pool_of(self, database: str, user: str) -> Pool | None:
        found = self.worker.registry.database(database)
        return self.worker.registry.pool_of(found, user) if found is not None else None

    def _secrets(self, message: Message, descriptors: list[int]) -> None:
        self.worker.host.take_secrets_over(message["secrets"])

    def _retired(self, message: Message, descriptors: list[int]) -> None:
        """What it has counted, from here on is ours."""
        self.worker.stats.go_on_from({name: tuple(values) for name, values in message["totals"].items()})

    # --- the end ------------------------------------------------------------------------------------------------------
    def drained(self) -> None:
        """Nobody is left who is to be waited for."""
        self.say({"is": "drained"})

    def _closing(self, message: Message, descriptors: list[int]) -> None:
        self.worker.begin_shutdown(message["mode"])

    def _stop(self, message: Message, descriptors: list[int]) -> None:
        self.worker.shutdown("now")


def _carry_out(worker: Worker, name: str, arguments: list[Any], done: Done) -> Pending | None:
    """An order, in this process."""
    control = worker.control
    if worker.membership is not None and (
        name == "reconnect" or (name == "configure" and leads_elsewhere(worker.config, unpacked(arguments[1])))
    ):
        worker.membership.forget_parameters()
    if name == "prepare":
        _prepare(worker, arguments[0], arguments[1], done)
    elif name == "configure":
        _configure(worker, arguments[0], arguments[1], done)
    elif name == "suspend":
        return control.suspend(None, done)
    elif name in ("pause", "wait_close"):
        return cast("Pending | None", getattr(control, name)(*arguments, done))
    elif name in ORDERS:
        getattr(control, name)(*arguments, done)
    else:
        done(errors.INTERNAL_ERROR.saying(f"a worker does not know {name}"))
    return None


def _prepare(worker: Worker, name: str, config: str, done: Done) -> None:
    """RELOAD and SET, the first half: read all files, and change nothing."""
    assert worker.membership is not None
    worker.membership.prepared = None
    try:
        if name == "reload":
            log.reopen()
        worker.membership.prepared = config, worker.read_files(unpacked(config))
    except ConfigError as failure:
        done(_failed(name, failure))
    else:
        done(None)


def _configure(worker: Worker, name: str, config: str, done: Done) -> None:
    """The second half, when all have done the first; who has come since reads for itself."""
    assert worker.membership is not None
    prepared, worker.membership.prepared = worker.membership.prepared, None
    files = prepared[1] if prepared is not None and prepared[0] == config else None
    fresh = unpacked(config)
    try:
        if name == "reload":
            worker.carry_out(plan(worker.config, fresh), files)
        else:
            worker.apply(fresh, files)
    except ConfigError as failure:
        done(_failed(name, failure))
    else:
        done(None)


def _failed(name: str, failure: ConfigError) -> Report:
    return (orders.RELOAD_FAILED if name == "reload" else orders.SET_FAILED).with_detail(str(failure))
