"""What time brings."""

from __future__ import annotations

import pytest
from fix_sessions import Client, Server, World, error_code, kinds, messages

from pgpool_proxy import errors
from pgpool_proxy.pool import janitor as orders
from pgpool_proxy.pool.pool import RESET, SESSION
from pgpool_proxy.pool.states import SV_BEING_CANCELED, SV_IDLE, SV_TESTED, SV_USED
from pgpool_proxy.wire import frontend

QUERY = frontend.query(b"select 1")
BEGIN = frontend.query(b"begin")
COMMIT = frontend.query(b"commit")
ANSWER = "TDCZ"


def actions(world: World, seconds: float) -> list[int]:
    """What is done, but for attempts to open servers in pools that are full."""
    return [int(order.action) for order in world.pass_time(seconds) if order.action != orders.GROW]


def idle_servers(world: World, count: int) -> list[Server]:
    clients = [world.client() for _ in range(count)]
    for client in clients:
        client.send(BEGIN)
        world.settle()
    for client in clients:
        client.send(COMMIT)
        world.settle()
        client.take()
    assert world.pool().idle.count == count
    return world.open_servers


def test_a_quiet_pool_is_left_alone() -> None:
    world = World()
    idle_servers(world, 2)
    assert actions(world, 1.0) == []


# --- clients ------------------------------------------------------------------------------------------------------------
def test_a_login_that_takes_too_long_is_ended_in_order_of_arrival() -> None:
    world = World()
    old = Client(world)
    world.now += 30
    young = Client(world)
    assert actions(world, 30.0) == [orders.CLOSE_CLIENT]
    assert old.reason is errors.CLIENT_LOGIN_TIMEOUT
    assert not young.is_closed
    world.janitor.client_login_timeout = 0
    assert actions(world, 1000.0) == []


def test_a_login_that_waits_for_a_server_is_told_why_there_is_none() -> None:
    world = World()
    client = world.connect()
    for _ in range(3):
        world.opening[0].refuse("57P03")
        world.pass_time(25.0)
    assert error_code(client.take()) == errors.CLIENT_LOGIN_TIMEOUT_SERVER_DOWN.sqlstate
    assert client.is_closed


def test_a_query_that_waits_too_long_is_ended_after_a_notice() -> None:
    world = World(pool_size=1, query_wait_notify=5.0, query_wait_timeout=20.0)
    busy = world.client()
    busy.send(BEGIN)
    world.settle()
    waiting = world.client()
    waiting.send(QUERY)
    assert actions(world, 4.0) == []
    assert actions(world, 1.0) == [orders.NOTIFY_CLIENT]
    assert actions(world, 1.0) == []
    world.client().send(QUERY)
    assert actions(world, 14.0) == [orders.CLOSE_CLIENT, orders.NOTIFY_CLIENT]
    assert error_code(waiting.take()) == errors.QUERY_WAIT_TIMEOUT.sqlstate
    assert world.pool().waiting.count == 1


def test_an_idle_client_is_ended_and_one_that_holds_a_server_is_not() -> None:
    world = World(client_idle_timeout=10.0)
    idle, busy = world.client(), world.client()
    for client in (idle, busy):
        client.send(QUERY if client is idle else BEGIN)
        world.settle()
        client.take()
    assert actions(world, 9.0) == []
    assert actions(world, 2.0) == [orders.CLOSE_CLIENT]
    assert idle.reason is errors.CLIENT_IDLE_TIMEOUT
    assert not busy.is_closed


def test_a_transaction_that_takes_too_long_ends_with_its_server() -> None:
    world = World(idle_transaction_timeout=10.0)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    client.take()
    assert actions(world, 11.0) == [orders.CLOSE_SERVER]
    assert error_code(client.take()) == errors.IDLE_TRANSACTION_TIMEOUT.sqlstate
    assert world.pool().server_count == 0


# --- servers ------------------------------------------------------------------------------------------------------------
def test_a_connect_that_takes_too_long_is_given_up() -> None:
    world = World()
    world.connect()
    hanging = world.opening[0]
    world.pass_time(16.0)
    assert hanging.reason is errors.CONNECT_TIMEOUT
    assert world.pool().retry_at > world.now


def test_servers_that_are_idle_for_long_are_closed_down_to_min_pool_size() -> None:
    world = World(pool_size=5, min_pool_size=2, server_idle_timeout=60.0)
    idle_servers(world, 4)
    assert actions(world, 61.0) == [orders.CLOSE_SERVER] * 2
    assert len(world.open_servers) == 2
    assert {server.reason for server in world.servers if server.is_closed} == {errors.SERVER_IDLE_TIMEOUT}
    assert actions(world, 61.0) == []


def test_a_pool_that_has_become_too_large_loses_what_is_idle() -> None:
    world = World(pool_size=4)
    idle_servers(world, 4)
    world.pool().limits.pool_size = 1
    world.pool().limits.reserve_pool_size = 1
    assert actions(world, 0.1) == [orders.CLOSE_SERVER] * 2
    assert {server.reason for server in world.servers if server.is_closed} == {errors.TOO_MANY_SERVERS}


def test_servers_of_replication_clients_count_among_those_that_are_too_many() -> None:
    world = World(pool_size=4)
    idle_servers(world, 4)
    replica = world.connect(replication="database")
    world.settle()
    assert kinds(replica.take()).endswith("Z")
    pool = world.pool()
    assert (pool.idle.count, pool.taken) == (3, 4)
    pool.limits.pool_size = 2
    assert actions(world, 0.1) == [orders.CLOSE_SERVER] * 2
    assert (pool.idle.count, pool.taken) == (1, 2)
    assert not replica.is_closed


@pytest.mark.parametrize("lifetime", [0.0, 3600.0])
def test_a_pause_closes_what_is_idle(lifetime: float) -> None:
    world = World(server_lifetime=lifetime, min_pool_size=1)
    world.client()
    assert world.pool().idle.count == 1
    world.registry.paused = True
    assert actions(world, 0.1)[:1] == [orders.CLOSE_SERVER]
    assert world.servers[0].reason is errors.PAUSE_MODE
    world.settle()
    assert world.open_servers == []


def test_a_server_that_is_to_be_closed_is_closed_while_it_is_idle() -> None:
    world = World()
    idle_servers(world, 2)[0].session.close_needed = True
    assert actions(world, 0.1) == [orders.CLOSE_SERVER]
    assert world.servers[0].reason is errors.CLOSE_NEEDED


def test_a_fresh_server_of_lifetime_0_waits_for_its_use() -> None:
    world = World(server_lifetime=0.0)
    world.client()
    assert actions(world, 5.0) == []
    assert world.pool().idle.count == 1


def test_servers_that_were_idle_for_long_are_marked_for_a_check() -> None:
    world = World(server_check_delay=30.0)
    servers = idle_servers(world, 2)
    assert actions(world, 31.0) == []
    assert [server.session.state for server in servers] == [SV_USED] * 2
    world = World(server_check_delay=30.0, server_check_query=None)
    servers = idle_servers(world, 2)
    world.pass_time(31.0)
    assert [server.session.state for server in servers] == [SV_IDLE] * 2


def test_a_check_that_is_never_answered_holds_nobody_up_and_ends() -> None:
    world = World(pool_size=2)
    world.client()
    world.pass_time(31.0)
    client = world.client()
    client.send(QUERY)
    dead = world.servers[0]
    dead.take()
    assert dead.session.state == SV_TESTED
    assert world.opening == [], "a check takes a moment: it is waited for"
    world.pass_time(1.0)
    world.settle()
    assert kinds(client.take()) == ANSWER
    world.pass_time(16.0)
    assert dead.reason.message == errors.CHECK_FAILED.message
    assert world.pool().server_count == 1


def test_a_reset_that_takes_its_time_is_not_taken_for_one_that_hangs() -> None:
    world = World(pool_mode=SESSION, pool_size=1)
    client = world.client()
    client.send(QUERY)
    world.settle()
    world.now += 600
    client.send(frontend.TERMINATE_MESSAGE)
    assert world.servers[0].session.state == SV_TESTED
    world.pass_time(0.1)
    world.pass_time(14.0)
    world.settle()
    assert world.servers[0].session.state == SV_IDLE
    assert world.servers[0].session.tested_since == 0.0


def test_a_cancel_that_never_ends_costs_the_server_in_the_end() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(QUERY)
    cancel, transport = world.cancel(world.servers[0].session)
    cancel.connected(transport, world.now)
    world.settle()
    client.take()
    assert world.servers[0].session.state == SV_BEING_CANCELED
    client.send(QUERY)
    world.pass_time(11.0)
    assert world.servers[0].reason is errors.CANCEL_WAIT_TIMEOUT
    world.settle()
    assert kinds(client.take()) == ANSWER


@pytest.mark.parametrize("mode", ["session", "always", "session_state"])
def test_a_server_is_not_cleaned_while_a_cancel_for_its_last_query_may_still_come(mode: str) -> None:
    limits: dict[str, object] = {
        "session": {"pool_mode": SESSION},
        "always": {"server_reset_query_always": True},
        "session_state": {"session_state": RESET},
    }[mode]
    world = World(pool_size=1, **limits)
    client, waiting = world.client(), world.client()
    server = world.servers[0]
    client.send(frontend.query(b"listen a"))
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    server.answer()
    client.take()
    client.vanish()
    waiting.send(QUERY)
    assert server.session.state == SV_BEING_CANCELED
    assert server.take() == b"", "nothing of ours for the cancel to meet"
    cancel.connection_lost(world.now)
    assert server.session.state == SV_TESTED
    world.settle()
    assert kinds(waiting.take()) == ANSWER
    assert world.servers == [server]


def test_a_cancel_that_never_ends_costs_a_server_that_is_to_be_cleaned_too() -> None:
    world = World(pool_mode=SESSION, pool_size=1)
    client = world.client()
    client.send(QUERY)
    cancel, transport = world.cancel(world.servers[0].session)
    cancel.connected(transport, world.now)
    world.settle()
    world.now += 600.0
    client.vanish()
    assert actions(world, 9.0) == []
    assert actions(world, 2.0) == [orders.CLOSE_SERVER]
    assert world.servers[0].reason is errors.CANCEL_WAIT_TIMEOUT


def test_the_end_of_a_cancel_for_a_replication_client_is_not_its_own() -> None:
    world = World(pool_mode=SESSION)
    replica = world.connect(replication="database")
    world.settle()
    replica.take()
    replica.send(QUERY)
    requester = Client(world)
    cancel, transport = world.cancel(world.servers[0].session)
    cancel.add(requester.session, world.now)
    cancel.connected(transport, world.now)
    cancel.connection_lost(world.now)
    assert requester.reason is errors.CANCEL_SENT
    assert not replica.is_closed
    world.settle()
    assert kinds(replica.take()) == ANSWER
    cancel, transport = world.cancel(world.servers[0].session)
    cancel.add(Client(world).session, world.now)
    replica.vanish()
    world.settle()
    assert world.open_servers == []
    assert cancel.is_closed
    assert world.registry.all_servers() == []


# --- pools --------------------------------------------------------------------------------------------------------------
def test_a_pool_that_nobody_uses_is_forgotten() -> None:
    world = World()
    world.janitor.pool_idle_timeout = 100.0
    client = world.client()
    pool = world.pool()
    assert orders.DROP_POOL not in actions(world, 101.0)
    client.vanish()
    world.servers[0].die()
    assert actions(world, 99.0) == []
    assert actions(world, 2.0) == [orders.DROP_POOL]
    assert world.registry.pools == {}
    assert (pool.database.pools, pool.user.pools) == ([], [])
    assert world.pool() is not pool


def test_a_pool_that_opens_servers_for_nobody_is_not_forgotten() -> None:
    world = World(databases={"app": {"forced_user": "owner"}}, min_pool_size=1)
    world.janitor.pool_idle_timeout = 10.0
    pool = world.pool()
    world.pass_time(0.1)
    world.opening[0].fail()
    assert actions(world, 20.0) == []
    assert world.pool() is pool
    assert world.registry.all_servers() == [world.opening[0].session]


def test_an_order_shows_what_it_is_about() -> None:
    world = World()
    world.client()
    world.servers[0].session.close_needed = True
    assert "close_needed" in repr(world.janitor.tick(world.now)[0])
    assert messages(b"") == []


# --- databases that * made ------------------------------------------------------------------------------------------------
def test_a_database_that_star_made_is_forgotten_when_nobody_has_used_it_for_long() -> None:
    world = World()
    world.janitor.autodb_idle_timeout = 10.0
    database = world.pool().database
    database.is_auto = True
    client = world.connect()
    world.settle()
    client.send(QUERY)
    world.settle()
    assert actions(world, 60.0) == []
    client.vanish()
    for server in world.open_servers:
        server.die()
    assert actions(world, 9.9) == []
    database.paused = True
    assert actions(world, 0.2) == []
    database.paused = False
    assert actions(world, 0.2) == [orders.DROP_DATABASE]
    world.janitor.autodb_idle_timeout = 0.0
    assert actions(world, 60.0) == []
