"""Limits on servers: who may open one more, who gives way, and that nobody starves."""

from __future__ import annotations

import pytest
from fix_sessions import Client, World, kinds

from pgpool_proxy import errors
from pgpool_proxy.pool import limits
from pgpool_proxy.pool.limits import STARVED_S, decide, longest_wait
from pgpool_proxy.wire import frontend

QUERY = frontend.query(b"select 1")
BEGIN = frontend.query(b"begin")
COMMIT = frontend.query(b"commit")
ANSWER = "TDCZ"


def busy(world: World, database: str = "app", user: str = "alice") -> Client:
    client = world.client(database, user)
    client.send(BEGIN)
    world.settle()
    assert kinds(client.take()) == "CZ"
    return client


def done(world: World, *clients: Client) -> None:
    for client in clients:
        client.send(COMMIT)
        world.settle()
        assert "CZ" in kinds(client.take())


def in_turns(world: World, seconds: float, step: float = 0.1) -> None:
    """The janitor ticks, servers open and answer."""
    for _ in range(round(seconds / step)):
        world.pass_time(step)
        world.settle()


# --- one pool -----------------------------------------------------------------------------------------------------------
def test_pool_size_bounds_a_pool_and_0_does_not() -> None:
    world = World(pool_size=2)
    pool = world.pool()
    for _ in range(2):
        busy(world)
    assert decide(pool, world.now).verdict == limits.FULL
    pool.limits.pool_size = 0
    assert decide(pool, world.now).verdict == limits.OPEN


def test_the_reserve_is_for_those_who_wait_for_long() -> None:
    world = World(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=5.0)
    busy(world)
    waiting = world.client()
    waiting.send(QUERY)
    in_turns(world, 4.0, 1.0)
    assert waiting.take() == b""
    assert longest_wait(world.pool(), world.now) == 4.0
    in_turns(world, 2.0, 1.0)
    assert kinds(waiting.take()) == ANSWER
    assert world.configurator.reserve_count == 1
    another = world.client()
    another.send(BEGIN)
    world.settle()
    assert kinds(another.take()) == "CZ"
    late = world.client()
    late.send(QUERY)
    in_turns(world, 20.0, 1.0)
    assert world.pool().server_count == 2, "the reserve has an end, too"
    assert late.take() == b""


def test_min_pool_size_does_not_make_use_of_the_reserve() -> None:
    world = World(pool_size=1, min_pool_size=3, reserve_pool_size=3, reserve_pool_timeout=0.1)
    world.client()
    in_turns(world, 2.0)
    assert world.pool().server_count == 1


# --- limits that pools share ----------------------------------------------------------------------------------------------
SHARED = [
    ({"databases": {"app": {"max_connections": 2}}}, ("app", "alice"), ("app", "bob")),
    ({"users": {"alice": {"max_connections": 2}}}, ("app", "alice"), ("other", "alice")),
]


@pytest.mark.parametrize(("world", "one", "two"), SHARED)
def test_a_server_that_is_idle_elsewhere_gives_way(world: dict, one: tuple[str, str], two: tuple[str, str]) -> None:
    world = World(**world)
    first, second = busy(world, *one), busy(world, *one)
    victim = next(server for server in world.servers if server.session is first.session.server)
    world.now += 1
    done(world, first)
    world.now += 1
    done(world, second)
    client = world.connect(*two)
    assert victim.reason is errors.EVICTED, "the one that was idle longest goes"
    world.settle()
    client.send(QUERY)
    world.settle()
    assert kinds(client.take()).endswith(ANSWER)
    assert len(world.open_servers) == 2


@pytest.mark.parametrize(("world", "one", "two"), SHARED)
def test_where_nothing_is_idle_the_next_server_that_becomes_so_gives_way(
    world: dict, one: tuple[str, str], two: tuple[str, str]
) -> None:
    world = World(**world)
    first, _ = busy(world, *one), busy(world, *one)
    client = world.connect(*two)
    assert world.registry.starving == [world.pool(*two)]
    done(world, first)
    world.settle()
    assert kinds(client.take()).endswith("Z")
    assert world.registry.starving == []
    assert len(world.open_servers) == 2


def test_a_server_of_a_pool_with_waiters_is_never_evicted() -> None:
    world = World(databases={"app": {"max_connections": 1}})
    world.client()
    world.registry.paused = True
    world.client().send(QUERY)
    pool = world.pool()
    assert (pool.idle.count, pool.waiting.count) == (1, 1)
    world.registry.paused = False
    other = world.connect(user="bob")
    assert pool.idle.count == 1
    assert world.registry.starving == [world.pool(user="bob")]
    assert other.take() == b""


def test_both_limits_at_once_need_a_victim_for_each() -> None:
    world = World(databases={"app": {"max_connections": 1}, "other": {}}, users={"bob": {"max_connections": 1}})
    held = busy(world, "app", "alice")
    in_other = world.client("other", "bob")
    client = world.connect("app", "bob")
    assert len(world.open_servers) == 2, "bob's idle server was closed for nothing: the database is still full"
    done(world, held)
    world.settle()
    assert kinds(client.take()).endswith("Z")
    assert [server.session.pool for server in world.open_servers] == [world.pool("app", "bob")]
    in_other.send(QUERY)
    world.settle()
    assert kinds(in_other.take()) == ANSWER


def test_a_pool_that_is_always_busy_does_not_starve_another() -> None:
    """Nothing is ever idle in a pool that always has waiters: after a while it gives one server up all the same."""
    world = World(databases={"app": {"max_connections": 2}})
    greedy = [world.client(user="alice") for _ in range(6)]
    for client in greedy:
        client.send(QUERY)
    starved = world.connect(user="bob")
    waited = 0.0
    while not starved.take():
        waited += 0.1
        assert waited < STARVED_S + 1.0, "it starves"
        world.pass_time(0.1)
        for server in world.opening:
            server.open()
        for server in world.open_servers:
            server.answer()
        for client in greedy:
            if client.take():
                client.send(QUERY)
        assert world.pool(user="alice").waiting.count
    assert waited >= STARVED_S
    assert world.registry.databases["app"].server_count <= 2


def test_a_pool_with_a_server_of_its_own_does_not_take_from_others() -> None:
    world = World(databases={"app": {"max_connections": 2}})
    mine = busy(world, user="bob")
    theirs = busy(world, user="alice")
    world.client(user="bob").send(QUERY)
    world.now += 10
    next_one = world.client(user="alice")
    next_one.send(QUERY)
    theirs.send(COMMIT)
    for server in world.open_servers:
        server.answer()
    assert next_one.session.server is not None
    assert mine.session.server is not None
    assert len(world.servers) == 2


def test_a_pool_that_cannot_log_in_does_not_cost_others_their_servers() -> None:
    world = World(databases={"app": {"max_connections": 1}})
    bob = world.client(user="bob")
    alice = [world.client(user="alice") for _ in range(3)]
    alice[0].send(QUERY)
    bob.send(QUERY)
    world.now += STARVED_S
    for client in alice[1:]:
        client.send(QUERY)
    world.open_servers[0].answer()
    assert [server.session.pool.user.name for server in world.opening] == ["bob"]
    world.opening[0].fail()
    assert [server.session.pool.user.name for server in world.opening] == ["alice"]
    world.settle()
    assert [kinds(client.take()) for client in alice] == [ANSWER] * 3
    assert not bob.is_closed


def test_the_room_of_a_server_that_died_goes_to_whoever_waits_longest() -> None:
    world = World(databases={"app": {"max_connections": 2}})
    busy(world, user="alice")
    other = busy(world, user="alice")
    world.now += 1
    bob = world.connect(user="bob")
    world.now += 1
    world.client(user="alice").send(QUERY)
    next(server for server in world.servers if server.session is other.session.server).die()
    assert [server.session.pool.user.name for server in world.opening] == ["bob"]
    world.settle()
    assert kinds(bob.take()).endswith("Z")


@pytest.mark.parametrize(
    ("keys", "pools"),
    [
        ({"pool_size": 10, "min_pool_size": 5, "databases": {"app": {"max_connections": 3}}}, ["alice"]),
        ({"pool_size": 10, "min_pool_size": 2, "databases": {"app": {"max_connections": 3}}}, ["alice", "bob"]),
    ],
)
def test_min_pool_size_over_a_shared_limit_does_not_churn(keys: dict, pools: list[str]) -> None:
    world = World(**keys)
    for user in pools:
        world.client(user=user)
    in_turns(world, 1.0)
    opened = len(world.servers)
    in_turns(world, 5.0)
    assert len(world.open_servers) == 3
    assert len(world.servers) == opened, "servers are closed and opened again for min_pool_size"


def test_what_was_evicted_does_not_come_back_for_min_pool_size() -> None:
    world = World(pool_size=10, min_pool_size=2, databases={"app": {"max_connections": 2}})
    world.client(user="alice")
    in_turns(world, 0.5)
    client = world.connect(user="bob")
    assert [server.session.pool.user.name for server in world.opening] == ["bob"]
    world.settle()
    assert kinds(client.take()).endswith("Z")
    opened = len(world.servers)
    in_turns(world, 5.0)
    assert len(world.servers) == opened
