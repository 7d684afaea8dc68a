"""Pools under anything that can happen, in any order: clients, servers, limits, pauses, time.

Real sessions over transports that record (fix_sessions). After every step everything that must always hold is looked at.
"""

from __future__ import annotations

from fix_sessions import SYNC, Client, FakeTransport, World, close, parse
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgpool_proxy.pool.pool import MAX_OPENING, SESSION, TRANSACTION, Pool
from pgpool_proxy.pool.registry import Database, User
from pgpool_proxy.pool.states import (
    CL_CLOSED,
    CL_LOGIN,
    CL_WAITING,
    SV_ACTIVE,
    SV_BEING_CANCELED,
    SV_CLOSED,
    SV_LOGIN,
    SV_TESTED,
)
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.wire import frontend

LIMITS = st.fixed_dictionaries(
    {
        "pool_mode": st.sampled_from([TRANSACTION, TRANSACTION, SESSION]),
        "pool_size": st.sampled_from([1, 2, 3, 0]),
        "min_pool_size": st.sampled_from([0, 0, 1, 4]),
        "reserve_pool_size": st.sampled_from([0, 1]),
        "reserve_pool_timeout": st.just(2.0),
        "server_lifetime": st.sampled_from([3600.0, 5.0, 0.0]),
        "server_idle_timeout": st.sampled_from([600.0, 4.0]),
        "server_check_delay": st.sampled_from([30.0, 3.0, 0.0]),
        "server_check_query": st.sampled_from([b"", b"select 1", None]),
        "server_round_robin": st.booleans(),
        "query_wait_timeout": st.sampled_from([120.0, 8.0]),
        "query_wait_notify": st.sampled_from([5.0, 0.0]),
    }
)
SHARED = st.sampled_from([0, 0, 1, 2, 3])
REQUESTS = {
    "query": frontend.query(b"select 1"),
    "begin": frontend.query(b"begin"),
    "commit": frontend.query(b"commit"),
    "error": frontend.query(b"error"),
    "prepare": parse(b"s", b"select 1") + SYNC,
    "close": close(b"s"),
    "half": b"Q\0\0\0",
    "broken": b"Q\0\0\0\1",
    "terminate": frontend.TERMINATE_MESSAGE,
}


def is_full(owner: Database | User) -> bool:
    return 0 < owner.max_connections <= owner.server_count


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world: World = World()
        self.cancels: list[tuple[CancelSession, FakeTransport]] = []

    @initialize(limits=LIMITS, of_app=SHARED, of_alice=SHARED, forced=st.booleans())
    def configure(self, limits: dict, of_app: int, of_alice: int, forced: bool) -> None:
        databases: dict = {"app": {"max_connections": of_app}, "other": {"forced_user": "alice" if forced else None}}
        self.world = World(databases=databases, users={"alice": {"max_connections": of_alice}}, **limits)
        self.world.janitor.pool_idle_timeout = 20.0
        for user in ("alice", "alice", "bob"):
            self.world.connect("app", user)
        self.world.settle()

    # --- whom something happens to ---
    def clients(self) -> list[Client]:
        return [client for client in self.world.clients if not client.is_closed]

    def pick(self, candidates: list, number: int):  # -> one of them, or None
        return candidates[number % len(candidates)] if candidates else None

    def ready(self) -> list[Client]:
        return [client for client in self.clients() if client.session.state != CL_LOGIN]

    def busy(self) -> list[ServerSession]:
        servers = [one.session for one in self.world.open_servers if one.session.cancel is None]
        return [one for one in servers if one.state == SV_ACTIVE and not one.link.is_over]

    def pools(self) -> list[Pool]:
        return list(self.world.registry.pools.values())

    # --- clients ---
    @rule(database=st.sampled_from(["app", "other"]), user=st.sampled_from(["alice", "bob"]))
    @precondition(lambda self: len(self.clients()) < 12)
    def a_client_arrives(self, database: str, user: str) -> None:
        self.world.connect(database, user)

    @rule()
    @precondition(lambda self: len(self.clients()) < 12)
    def somebody_connects_and_says_nothing(self) -> None:
        self.world.clients.append(Client(self.world))

    @rule(number=st.integers(0, 11), what=st.sampled_from(["query", "query", "begin", "begin", "commit", *REQUESTS]))
    @precondition(lambda self: self.ready())
    def a_client_sends(self, number: int, what: str) -> None:
        self.pick(self.ready(), number).send(REQUESTS[what])

    @rule(what=st.sampled_from(["query", "begin", "prepare"]))
    def everybody_sends(self, what: str) -> None:
        for client in self.ready():
            if client.session.state != CL_WAITING:
                client.send(REQUESTS[what])

    @rule(number=st.integers(0, 11))
    def a_client_vanishes(self, number: int) -> None:
        client = self.pick(self.clients(), number)
        if client is not None:
            client.vanish()

    @rule(number=st.integers(0, 11))
    @precondition(lambda self: any(one.session.state == CL_WAITING for one in self.clients()))
    def a_waiting_client_is_cancelled(self, number: int) -> None:
        client = self.pick([one for one in self.clients() if one.session.state == CL_WAITING], number)
        if client is not None and client.session.login is None:
            client.session.cancel_waiting(self.world.now)

    # --- servers ---
    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.world.opening)
    def a_server_opens(self, number: int) -> None:
        server = self.pick(self.world.opening, number)
        if server is not None:
            server.open()

    @rule(number=st.integers(0, 9), code=st.sampled_from(["", "28P01", "57P03"]))
    @precondition(lambda self: self.world.opening)
    def a_server_does_not_open(self, number: int, code: str) -> None:
        server = self.pick(self.world.opening, number)
        if server is not None and code:
            server.refuse(code)
        elif server is not None:
            server.fail()

    @rule(number=st.integers(0, 9), size=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: any(one.transport.sent for one in self.world.open_servers))
    def a_server_answers(self, number: int, size: int) -> None:
        server = self.pick([one for one in self.world.open_servers if one.transport.sent], number)
        if server is not None:
            server.answer(size)

    @rule()
    def everything_settles(self) -> None:
        self.world.settle()

    @rule(number=st.integers(0, 9))
    def a_server_dies(self, number: int) -> None:
        server = self.pick(self.world.open_servers, number)
        if server is not None:
            server.die()

    @rule(number=st.integers(0, 9))
    def a_server_is_to_be_closed(self, number: int) -> None:
        server = self.pick(self.world.open_servers, number)
        if server is not None:
            server.session.close_needed = True

    # --- cancels ---
    @rule(number=st.integers(0, 9), at_once=st.booleans())
    @precondition(lambda self: self.busy())
    def a_query_is_cancelled(self, number: int, at_once: bool) -> None:
        cancel, transport = self.world.cancel(self.pick(self.busy(), number))
        self.cancels.append((cancel, transport))
        if at_once:
            cancel.connected(transport, self.world.now)

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.busy())
    def a_query_ends_before_its_cancel(self, number: int) -> None:
        self.a_query_is_cancelled(number, True)
        self.world.settle()

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: any(cancel.state == SV_LOGIN for cancel, _ in self.cancels))
    def a_cancel_is_sent(self, number: int) -> None:
        found = self.pick([one for one in self.cancels if one[0].state == SV_LOGIN], number)
        if found is not None:
            found[0].connected(found[1], self.world.now)

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: any(cancel.state != SV_CLOSED for cancel, _ in self.cancels))
    def a_cancel_ends(self, number: int) -> None:
        found = self.pick([one for one in self.cancels if one[0].state != SV_CLOSED], number)
        if found is not None:
            found[0].connection_lost(self.world.now)

    # --- the operator, and time ---
    @rule()
    def requests_come_in_a_pause(self) -> None:
        """PAUSE and RESUME in so short a time that the idle servers are still there."""
        self.the_process_is_paused_or_resumed(True)
        self.everybody_sends("query")
        self.the_process_is_paused_or_resumed(False)

    @rule(paused=st.booleans())
    def the_process_is_paused_or_resumed(self, paused: bool) -> None:
        self.world.registry.paused = paused
        for pool in self.pools():
            pool.grow(self.world.now)

    @rule(paused=st.booleans())
    def a_database_is_paused_or_resumed(self, paused: bool) -> None:
        database = self.world.registry.databases.get("app")
        if database is not None:
            database.paused = paused
            for pool in list(database.pools):
                pool.grow(self.world.now)

    @rule()
    def servers_are_to_be_opened_anew(self) -> None:
        for pool in self.pools():
            pool.forget_parameters()
        for server in self.world.servers:
            server.session.close_needed = True

    @rule(size=st.sampled_from([1, 2, 5]))
    def pool_sizes_change(self, size: int) -> None:
        """Downwards it takes until the janitor and the clients have let go, so only growth is checked at once."""
        now = int(str(self.world.limit_keys["pool_size"]))
        self.world.limit_keys["pool_size"] = max(size, now) if now else 0
        self.world.registry.reconfigure()

    @rule()
    def nobody_does_anything_for_a_while(self) -> None:
        self.world.settle()
        self.world.pass_time(3.0)

    @rule(seconds=st.sampled_from([0.1, 0.1, 0.5, 2.0, 6.0, 21.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # --- what always holds ------------------------------------------------------------------------------------------------
    @invariant()
    def everybody_stands_in_one_container_that_of_its_state(self) -> None:
        registry = self.world.registry
        seen: set[int] = set()
        for pool in self.pools():
            for kind, containers in (("client", pool.clients), ("server", pool.servers)):
                for state, container in enumerate(containers):
                    members = container.members()
                    assert len(members) == container.count
                    for member in members:
                        assert isinstance(member, ClientSession if kind == "client" else (ServerSession, CancelSession))
                        assert id(member) not in seen
                        seen.add(id(member))
                        assert member.state == state
                        assert member.home is container
                        assert member.pool is pool
        for client in self.world.clients:
            session = client.session
            if session.state == CL_LOGIN:
                assert session.home is registry.login_clients
            else:
                assert (id(session) in seen) == (session.state != CL_CLOSED)
        for server in self.world.servers:
            assert (id(server.session) in seen) == (server.session.state != SV_CLOSED)

    @invariant()
    def counts_are_sums(self) -> None:
        registry = self.world.registry
        assert registry.client_count == len(registry.all_clients()) == len(self.clients())
        for owner in (*registry.databases.values(), *registry.users.values()):
            assert owner.server_count == sum(pool.server_count for pool in owner.pools)
        for database in registry.databases.values():
            assert database.client_count == sum(pool.client_count for pool in database.pools)

    @invariant()
    def every_limit_holds(self) -> None:
        for pool in self.pools():
            limits = pool.limits
            if limits.pool_size:
                assert pool.server_count <= limits.pool_size + limits.reserve_pool_size
            assert not pool.database.max_connections or pool.database.server_count <= pool.database.max_connections
            assert not pool.user.max_connections or pool.user.server_count <= pool.user.max_connections
            assert pool.opening.count <= MAX_OPENING

    @invariant()
    def links_are_the_same_from_both_ends(self) -> None:
        for server in self.world.servers:
            session = server.session
            client = session.client
            if client is not None:
                assert session.state == SV_ACTIVE
                assert client.server is session or client.is_closed
            assert client is session.link.client or session.link.client is None
        for one in self.clients():
            held = one.session.server
            if held is not None:
                assert held.client is one.session
                assert one.session.link is held.link
                assert held.pool is one.session.pool
            else:
                assert one.session.link is None

    @invariant()
    def nobody_waits_beside_an_idle_server(self) -> None:
        for pool in self.pools():
            assert not pool.handing
            if pool.waiting.count and not pool.is_paused:
                assert pool.idle.count == 0

    @invariant()
    def somebody_sees_to_those_who_wait(self) -> None:
        """A pool with waiters has servers, or some on their way, or a reason why it may not, or the janitor's next tick."""
        now = self.world.now
        for pool in self.pools():
            if not (pool.waiting.count or pool.waiting_login.count) or pool.is_paused or now < pool.retry_at:
                continue
            if pool.server_count == 0:
                assert is_full(pool.database) or is_full(pool.user)
                assert pool in self.world.registry.starving or pool.wanted_servers(now) > 0

    @invariant()
    def waiters_stand_in_the_order_in_which_they_came(self) -> None:
        for pool in self.pools():
            since = [member.wait_start for member in pool.waiting.members()]
            assert since == sorted(since)
            assert all(since)

    @invariant()
    def nothing_is_given_away_while_a_cancel_is_under_way(self) -> None:
        for server in self.world.servers:
            assert server.session.cancels in (0, 1)
            if server.session.cancels:
                assert server.session.state in (SV_ACTIVE, SV_TESTED, SV_BEING_CANCELED, SV_CLOSED)
            elif server.session.state == SV_BEING_CANCELED:
                raise AssertionError(f"{server} waits for no cancel")

    def teardown(self) -> None:
        """Whatever has happened: a resumed process with servers that open serves everybody who waits, and ends clean."""
        world = self.world
        self.the_process_is_paused_or_resumed(False)
        self.a_database_is_paused_or_resumed(False)
        for cancel, _ in self.cancels:
            if cancel.state != SV_CLOSED:
                cancel.connection_lost(world.now)
        for _ in range(40):
            for client in self.clients():
                if client.session.server is not None:
                    client.vanish()
            world.pass_time(0.5)
            world.settle()
        waiting = [client for client in self.clients() if client.session.state == CL_WAITING and client.session.login is None]
        assert waiting == [], "somebody still waits although nobody holds a server"
        for client in self.clients():
            client.vanish()
        world.settle()
        for server in world.servers:
            if not server.is_closed:
                assert server.session.client is None
                server.die()
        self.counts_are_sums()
        self.everybody_stands_in_one_container_that_of_its_state()


PoolMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPools = PoolMachine.TestCase
