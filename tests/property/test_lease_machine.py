"""Workers under anything that can happen, in any order: clients, servers, limits, messages that lag, deaths, time.

After every step no limit is exceeded, by leases or by connections, and every lease is accounted for: at a worker, in a message,
or in limbo. At the end messages are delivered and servers answer: then nobody waits any more (fix_workers).
"""

from __future__ import annotations

from fix_sessions import Client, World
from fix_workers import Connection, Worker, Workers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgpool_proxy.pool.leases import GRANT
from pgpool_proxy.pool.pool import SESSION, TRANSACTION
from pgpool_proxy.pool.states import CL_ACTIVE, CL_LOGIN, CL_WAITING, CL_WAITING_LOGIN
from pgpool_proxy.wire import frontend

LIMITS = st.fixed_dictionaries(
    {
        "pool_mode": st.sampled_from([TRANSACTION, TRANSACTION, SESSION]),
        "pool_size": st.sampled_from([1, 2, 3, 5, 0]),
        "min_pool_size": st.sampled_from([0, 0, 1, 4]),
        "reserve_pool_size": st.sampled_from([0, 0, 1]),
        "reserve_pool_timeout": st.sampled_from([0.02, 2.0]),
        "server_lifetime": st.sampled_from([3600.0, 5.0]),
        "server_idle_timeout": st.sampled_from([600.0, 4.0]),
        "server_check_delay": st.sampled_from([30.0, 3.0, 0.0]),
        "server_check_query": st.sampled_from([b"", b"select 1", None]),
        "server_round_robin": st.booleans(),
        "query_wait_timeout": st.just(0.0),
    }
)
SHARED = st.sampled_from([0, 0, 1, 2, 3])
POOLS = [("app", "alice"), ("app", "bob"), ("other", "alice")]
REQUESTS = {
    "query": frontend.query(b"select 1"),
    "begin": frontend.query(b"begin"),
    "commit": frontend.query(b"commit"),
    "terminate": frontend.TERMINATE_MESSAGE,
}
MOST_CLIENTS = 14
PATIENCE_S = 5.0


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.workers = Workers(2)
        self.taken: dict[tuple[str, str], int] = {}

    @initialize(number=st.sampled_from([2, 2, 3]), limits=LIMITS, of_app=SHARED, of_alice=SHARED, forced=st.booleans())
    def configure(self, number: int, limits: dict, of_app: int, of_alice: int, forced: bool) -> None:
        databases: dict = {"app": {"max_connections": of_app}, "other": {"forced_user": "alice" if forced else None}}
        self.workers = Workers(number, databases=databases, users={"alice": {"max_connections": of_alice}}, **limits)
        for world in self.workers.worlds:
            world.connect("app", "alice")
        self.workers.settle()

    # --- whom something happens to ---
    def pick(self, candidates: list, number: int):  # -> one of them, or None
        return candidates[number % len(candidates)] if candidates else None

    def world(self, number: int) -> World:
        return self.workers.worlds[number % len(self.workers.workers)]

    def clients(self) -> list[Client]:
        return [client for world in self.workers.worlds for client in world.clients if not client.is_closed]

    def ready(self) -> list[Client]:
        return [client for client in self.clients() if client.session.state in (CL_ACTIVE, CL_WAITING)]

    def ending(self) -> list[Connection]:
        return [connection for connection in self.workers.connections if connection.is_ending]

    # --- clients ---
    @rule(worker=st.integers(0, 3), pool=st.sampled_from([*POOLS, POOLS[0]]))
    @precondition(lambda self: len(self.clients()) < MOST_CLIENTS)
    def a_client_arrives(self, worker: int, pool: tuple[str, str]) -> None:
        self.world(worker).connect(*pool)

    @rule(number=st.integers(0, 13), what=st.sampled_from(["query", "query", "begin", "begin", "commit", "terminate"]))
    def a_client_sends(self, number: int, what: str) -> None:
        client = self.pick(self.ready(), number)
        if client is not None:
            client.send(REQUESTS[what])

    @rule(worker=st.integers(0, 3), what=st.sampled_from(["query", "begin", "commit"]))
    def all_clients_of_a_worker_send(self, worker: int, what: str) -> None:
        for client in self.world(worker).clients:
            if client.session.state == CL_ACTIVE:
                client.send(REQUESTS[what])

    @rule(number=st.integers(0, 13))
    def a_client_vanishes(self, number: int) -> None:
        client = self.pick(self.clients(), number)
        if client is not None:
            client.vanish()

    # --- servers ---
    @rule(worker=st.integers(0, 3), number=st.integers(0, 9), comes=st.booleans())
    def a_server_opens(self, worker: int, number: int, comes: bool) -> None:
        server = self.pick(self.world(worker).opening, number)
        if server is not None and comes:
            server.open()
        elif server is not None:
            server.fail()

    @rule(worker=st.integers(0, 3), number=st.integers(0, 9))
    def a_server_answers(self, worker: int, number: int) -> None:
        server = self.pick(self.world(worker).open_servers, number)
        if server is not None:
            server.answer()

    @rule(worker=st.integers(0, 3), number=st.integers(0, 9))
    def a_server_dies(self, worker: int, number: int) -> None:
        server = self.pick(self.world(worker).open_servers, number)
        if server is not None:
            server.die()

    @rule(number=st.integers(0, 9))
    def a_connection_ends(self, number: int) -> None:
        connection = self.pick(self.ending(), number)
        if connection is not None:
            self.workers.end(connection)

    @rule(worker=st.integers(0, 3))
    def the_servers_of_a_worker_settle(self, worker: int) -> None:
        self.world(worker).settle()

    # --- messages ---
    @rule(worker=st.integers(0, 3))
    def a_worker_ends_a_turn(self, worker: int) -> None:
        self.workers.workers[worker % len(self.workers.workers)].ledger.flush(self.workers.now)

    @rule(worker=st.integers(0, 3), number=st.integers(1, 3))
    def the_supervisor_reads(self, worker: int, number: int) -> None:
        for _ in range(number):
            self.workers.to_supervisor(self.workers.workers[worker % len(self.workers.workers)])

    @rule(worker=st.integers(0, 3), number=st.integers(1, 3))
    def a_worker_reads(self, worker: int, number: int) -> None:
        for _ in range(number):
            self.workers.to_worker(self.workers.workers[worker % len(self.workers.workers)])

    @rule()
    def all_messages_are_delivered(self) -> None:
        self.workers.deliver()

    @rule()
    def everything_settles(self) -> None:
        self.workers.settle()

    # --- workers, the operator, and time ---
    @rule(worker=st.integers(0, 3))
    @precondition(lambda self: self.workers.started < 6)
    def a_worker_is_killed_and_replaced(self, worker: int) -> None:
        self.workers.kill(self.workers.workers[worker % len(self.workers.workers)])
        self.workers.start()

    @rule(worker=st.integers(0, 3), can=st.booleans())
    def servers_can_move_or_not(self, worker: int, can: bool) -> None:
        self.workers.workers[worker % len(self.workers.workers)].can_move_servers = can

    @rule(worker=st.integers(0, 3), paused=st.booleans())
    def a_worker_is_paused_or_resumed(self, worker: int, paused: bool) -> None:
        world = self.world(worker)
        world.registry.paused = paused
        for pool in list(world.registry.pools.values()):
            pool.grow(world.now)

    @rule(size=st.sampled_from([1, 2, 4]), least=st.sampled_from([0, 2]), of_app=SHARED)
    def the_limits_change(self, size: int, least: int, of_app: int) -> None:
        self.workers.reload(pool_size=size, min_pool_size=least, of_app=of_app)

    @rule(seconds=st.sampled_from([0.002, 0.01, 0.01, 0.05, 0.1, 1.1, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.workers.pass_time(seconds)

    # --- what always holds ------------------------------------------------------------------------------------------------
    @invariant()
    def limits_hold(self) -> None:
        """What is over a limit since it was lowered may stay so, and does not grow."""
        taken: dict[tuple[str, str], int] = {}
        for account in self.workers.book.accounts():
            names = (account.database.name, account.user.name)
            limits = self.workers.limits_of(*names)
            of_pool = int(limits.pool_size + limits.reserve_pool_size) if limits.pool_size else 0
            for kind, name, number, limit in (
                ("pool", "/".join(names), int(account.taken), of_pool),
                ("database", names[0], int(account.database.taken), int(limits.max_db_connections)),
                ("user", names[1], int(account.user.taken), int(limits.max_user_connections)),
            ):
                taken[(kind, name)] = number
                assert not limit or number <= max(limit, self.taken.get((kind, name), 0)), (kind, name, limit, account)
        self.taken = taken

    @invariant()
    def the_book_adds_up(self) -> None:
        self.workers.check_sums()

    @invariant()
    def every_lease_is_somewhere(self) -> None:
        for worker in self.workers.workers:
            for key in POOLS:
                assert self.workers.book.leases(worker.number, *key) == has(worker, key), (worker, key)

    def teardown(self) -> None:
        """All transactions end, all messages come, everybody can log in: then nobody waits."""
        workers = self.workers
        for world in workers.worlds:
            world.registry.paused = False
            for pool in list(world.registry.pools.values()):
                pool.grow(world.now)
        workers.settle()
        for client in self.clients():
            if client.session.pool is not None and client.session.pool.limits.pool_mode == SESSION:
                client.send(REQUESTS["query"])
            else:
                client.send(REQUESTS["commit"])
        passed = 0.0
        while self.waiting() and passed < PATIENCE_S:
            workers.in_turns(0.05)
            passed += 0.05
            for client in self.clients():
                pool = client.session.pool
                if client.session.server is None or pool is None:
                    continue
                if pool.limits.pool_mode == SESSION:
                    client.send(REQUESTS["terminate"])  # it would hold its server for ever
                elif client.session.server is not None:
                    client.send(REQUESTS["commit"])
        assert not self.waiting(), (self.waiting(), workers.book.accounts(), workers.workers)
        workers.in_turns(0.1)
        self.the_book_adds_up()
        self.every_lease_is_somewhere()
        for account in workers.book.accounts():
            assert account.limbo == 0, account

    def waiting(self) -> list[Client]:
        return [one for one in self.clients() if one.session.state in (CL_WAITING, CL_WAITING_LOGIN, CL_LOGIN)]


def has(worker: Worker, key: tuple[str, str]) -> int:
    """The leases that a worker has: servers, grants, and what is said of them and not yet heard."""
    pool = worker.world.registry.pools.get(key)
    number = int(pool.taken) if pool is not None else 0
    share = worker.ledger._shares.get(key)
    number += int(share.grants) if share is not None else 0
    for kind, *fields in worker.down:
        if kind == "order" and fields[0] == GRANT and (fields[1], fields[2]) == key:
            number += fields[3]
        elif kind == "arrive" and (fields[0], fields[1]) == key:
            number += 1
    for kind, *fields in worker.up:
        if kind in ("closing", "offered") and (fields[0], fields[1]) == key:
            number += 1
        elif kind == "given_back" and (fields[0], fields[1]) == key:
            number += fields[2]
    return number


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
