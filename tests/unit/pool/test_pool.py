"""Who gets which server."""

from __future__ import annotations

import pytest
from fix_sessions import SYNC, Client, Server, World, close, error_code, kinds, parse

from pgpool_proxy import errors
from pgpool_proxy.errors import IllegalTransition
from pgpool_proxy.pool.pool import MAX_OPENING, SESSION, TRANSACTION, retry_pause
from pgpool_proxy.pool.states import SV_ACTIVE, SV_BEING_CANCELED, SV_IDLE, SV_TESTED, SV_USED
from pgpool_proxy.wire import frontend

QUERY = frontend.query(b"select 1")
BEGIN = frontend.query(b"begin")
COMMIT = frontend.query(b"commit")
ANSWER = "TDCZ"


def holder(world: World, **keywords: str) -> Client:
    """A client that holds a server by a transaction."""
    client = world.client(**keywords)
    client.send(BEGIN)
    world.settle()
    assert kinds(client.take()) == "CZ"
    return client


def waiter(world: World, **keywords: str) -> Client:
    client = world.client(**keywords)
    client.send(QUERY)
    assert client.take() == b""
    return client


# --- logging in ---------------------------------------------------------------------------------------------------------
def test_the_first_client_waits_for_the_parameters_of_the_first_server() -> None:
    world = World()
    first, second = world.connect(), world.connect()
    assert repr(world.pool()) == "<Pool app/alice cl_waiting_login=2 sv_login=1>"
    world.opening[0].open()
    assert kinds(first.take()) == kinds(second.take()) == "RSSSSSSKZ"
    assert repr(world.pool()) == "<Pool app/alice cl_active=2 sv_idle=1>"


def test_a_later_client_is_welcome_without_a_server() -> None:
    world = World()
    world.client()
    world.servers[0].die()
    assert kinds(world.connect().take()).endswith("Z")
    assert world.opening == []


def test_early_requests_of_many_logins_open_a_server_for_each_that_waits() -> None:
    world = World(pool_size=20)
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        client.send(QUERY)
    world.opening[0].open()
    assert len(world.opening) == 2
    world.settle()
    assert [kinds(client.take())[-4:] for client in clients] == [ANSWER] * 3


def test_parameters_of_a_server_that_is_to_be_replaced_are_not_learnt() -> None:
    world = World()
    client = world.connect()
    pool = world.pool()
    pool.forget_parameters()  # RECONNECT while the first server logs in
    world.opening[0].open({b"TimeZone": b"Europe/Old"})
    assert client.take() == b""
    assert pool.server_parameters is None
    world.opening[0].open({b"TimeZone": b"Europe/New"})
    assert b"Europe/New" in client.take()


# --- assigning ----------------------------------------------------------------------------------------------------------
def test_an_idle_server_is_given_at_once() -> None:
    world = World()
    client = world.client()
    client.send(QUERY)
    assert world.pool().active.count == 1
    assert client.session.server is world.servers[0].session
    assert world.servers[0].session.client is client.session
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert client.session.server is None
    assert world.servers[0].session.client is None
    assert world.pool().idle.count == 1


def two_idle(world: World) -> list[Server]:
    holders = [holder(world), holder(world)]
    servers = [next(one for one in world.open_servers if one.session is client.session.server) for client in holders]
    for client in holders:
        client.send(COMMIT)
        world.settle()
        client.take()
    return servers


def test_the_server_that_was_used_last_is_used_next() -> None:
    world = World()
    _, last = two_idle(world)
    client = world.client()
    client.send(QUERY)
    assert client.session.server is last.session


def test_round_robin_takes_the_one_that_was_idle_longest() -> None:
    world = World(server_round_robin=True)
    first, _ = two_idle(world)
    client = world.client()
    client.send(QUERY)
    assert client.session.server is first.session


def test_waiters_are_served_first_come_first_served() -> None:
    world = World(pool_size=1)
    busy = holder(world)
    waiting = [waiter(world) for _ in range(3)]
    busy.send(COMMIT)
    served = []
    while len(served) < 3:
        assert world.servers[0].answer()
        served += [client for client in waiting if client not in served and kinds(client.take()) == ANSWER]
    assert served == waiting


def test_a_released_server_goes_from_hand_to_hand() -> None:
    world = World(pool_size=1)
    busy, waiting = holder(world), None
    waiting = waiter(world)
    world.now += 2.0
    busy.send(COMMIT)
    world.servers[0].answer()
    assert waiting.session.server is world.servers[0].session
    assert world.servers[0].session.client is waiting.session
    assert world.pool().stats.wait_time == 2_000_000
    assert world.pool().idle.count == 0


def test_a_waiter_that_leaves_is_passed_over() -> None:
    world = World(pool_size=1)
    busy = holder(world)
    gone, patient = waiter(world), waiter(world)
    gone.vanish()
    busy.send(COMMIT)
    world.settle()
    assert kinds(patient.take()) == ANSWER
    assert world.pool().waiting.count == 0


def test_a_server_that_is_to_be_closed_is_not_given_away() -> None:
    world = World()
    _, last = two_idle(world)
    last.session.close_needed = True
    client = world.client()
    client.send(QUERY)
    assert last.is_closed
    assert last.reason is errors.OBSOLETE_CONNECTION
    assert client.session.server is not None


def test_a_server_opened_in_place_of_an_obsolete_one_is_as_old_as_it_is() -> None:
    world = World(pool_size=1, min_pool_size=1)
    client = world.client()
    world.now += 500.0
    world.servers[0].session.close_needed = True
    client.send(QUERY)
    assert [server.session.connect_time for server in world.opening] == [world.now]
    assert [order.action for order in world.pass_time(0.1)] == []
    world.settle()
    assert kinds(client.take()) == ANSWER


def test_a_server_that_dies_takes_its_client_along_and_nobody_else() -> None:
    world = World()
    victim, other = holder(world), holder(world)
    server = next(server for server in world.open_servers if server.session is victim.session.server)
    server.die()
    assert error_code(victim.take()) == errors.SERVER_CRASHED.sqlstate
    assert victim.is_closed
    other.send(QUERY)
    world.settle()
    assert kinds(other.take()) == ANSWER
    assert world.pool().server_count == world.pool().database.server_count == world.pool().user.server_count == 1


def test_many_waiters_that_are_answered_without_the_server_do_not_pile_up() -> None:
    """Each hand-over ends within the one before; a thousand of them must not be a thousand calls deep."""
    world = World(pool_size=1)
    clients = [world.client() for _ in range(400)]
    for client in clients:
        client.send(parse(b"s", b"select 1") + SYNC)
        world.settle()
    busy = holder(world)
    for client in clients:
        client.take()
        client.send(close(b"s"))
    assert world.pool().waiting.count == 400
    busy.send(COMMIT)
    world.settle()
    assert [kinds(client.take()) for client in clients] == ["3"] * 400
    assert repr(world.pool()) == "<Pool app/alice cl_active=401 sv_idle=1>"


def test_a_move_that_the_tables_do_not_have_raises() -> None:
    world = World()
    world.client()
    pool = world.pool()
    with pytest.raises(IllegalTransition, match="server: IDLE -> BEING_CANCELED"):
        pool.move_server(world.servers[0].session, SV_BEING_CANCELED)


# --- opening ------------------------------------------------------------------------------------------------------------
def test_no_more_servers_are_opened_than_clients_wait() -> None:
    world = World(pool_size=20)
    world.client()
    clients = [world.client() for _ in range(4)]
    for client in clients:
        client.send(QUERY)
    assert clients[0].session.server is not None
    assert len(world.opening) == 3


def test_logins_of_one_pool_are_bounded() -> None:
    world = World(pool_size=100)
    clients = [world.client() for _ in range(20)]
    for client in clients:
        client.send(QUERY)
    assert len(world.opening) == MAX_OPENING
    world.settle()
    assert {kinds(client.take()) for client in clients} == {ANSWER}


def test_a_pool_of_min_size_is_filled_while_it_has_clients() -> None:
    world = World(pool_size=5, min_pool_size=3)
    client = world.client()
    world.pass_time(0.1)
    world.settle()
    assert world.pool().idle.count == 3
    client.vanish()
    world.servers[0].die()
    world.pass_time(0.1)
    assert world.pool().server_count == 2


def test_a_pool_of_a_forced_user_is_filled_without_clients() -> None:
    world = World(pool_size=5, min_pool_size=2, databases={"app": {"forced_user": "owner"}, "other": {}})
    pool = world.pool("app", "alice")
    elsewhere = world.pool("other", "owner")  # the same user where it is not forced
    world.pass_time(0.1)
    world.settle()
    assert (pool.user.name, pool.idle.count) == ("owner", 2)
    assert elsewhere.server_count == 0


def test_a_failed_login_puts_off_the_next_attempt() -> None:
    world = World()
    client = world.client()
    world.servers[0].die()
    client.send(QUERY)
    world.opening[0].fail()
    assert world.opening == []
    world.pass_time(0.5)
    assert world.opening == []
    world.pass_time(0.6)
    assert len(world.opening) == 1
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert (world.pool().failures, world.pool().last_failure) == (0, None)


def test_a_refused_login_sends_those_who_wait_away_unless_there_is_a_server() -> None:
    world = World(pool_size=3)
    busy = holder(world)
    waiting = waiter(world)
    world.opening[0].refuse()
    assert not waiting.is_closed
    busy.send(COMMIT)
    world.settle()
    assert kinds(waiting.take()) == ANSWER
    for server in world.open_servers:
        server.die()
    waiting.send(QUERY)
    world.pass_time(2.0)
    world.opening[0].refuse()
    assert error_code(waiting.take()) == "28P01"
    assert waiting.is_closed


def test_a_full_server_lets_them_wait_on() -> None:
    world = World()
    client = world.client()
    world.servers[0].die()
    client.send(QUERY)
    world.opening[0].refuse("53300")
    assert not client.is_closed
    world.pass_time(1.5)
    world.settle()
    assert kinds(client.take()) == ANSWER


def test_while_no_server_can_be_had_new_clients_are_refused_and_queries_of_the_others_wait() -> None:
    world = World()
    client, other = world.client(), world.client()
    world.servers[0].die()
    client.send(QUERY)
    world.opening[0].fail()
    other.send(QUERY)
    newcomer = world.connect()
    assert newcomer.is_closed
    assert error_code(newcomer.take()) == "08006"
    assert (client.is_closed, other.is_closed) == (False, False)
    world.pass_time(1.1)
    world.settle()
    assert kinds(client.take()) == kinds(other.take()) == ANSWER


def test_attempts_that_fail_together_are_one_failure_and_one_attempt_follows() -> None:
    world = World(pool_size=10)
    clients = [world.client() for _ in range(10)]
    world.servers[0].die()
    for client in clients:
        client.send(QUERY)
    assert len(world.opening) == MAX_OPENING
    for server in world.opening:
        server.fail()
    pool = world.pool()
    assert (pool.failures, pool.retry_at) == (1, world.now + 1.0)
    for failures in (2, 3):
        world.pass_time(1.1)
        (server,) = world.opening
        server.fail()
        assert pool.failures == failures
    world.pass_time(1.1)
    (server,) = world.opening
    server.open()
    assert len(world.opening) == MAX_OPENING, "a success opens the gate"
    world.settle()
    assert {kinds(client.take()) for client in clients} == {ANSWER}


def test_pauses_grow_and_stay_short_while_the_server_may_return_any_moment() -> None:
    assert [retry_pause(failures, False, 15.0) for failures in range(10)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15]
    away = [retry_pause(failures, True, 15.0) for failures in range(200)]
    assert away[:6] == [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]
    assert sum(pause * 0.75 for pause in away if pause < 1) > 90, "a restart takes no longer"
    assert away == sorted(away)
    assert away[-1] == 15
    assert retry_pause(1_000_000, True, 15.0) == retry_pause(1_000_000, False, 15.0) == 15
    assert retry_pause(5, True, 0.5) == 0.5


def test_without_backoff_queries_are_refused_as_well_until_the_next_attempt_is_due() -> None:
    world = World(server_login_retry_backoff=False)
    client, other, third = world.client(), world.client(), world.client()
    world.servers[0].die()
    client.send(QUERY)
    world.opening[0].fail()
    assert not client.is_closed, "it waited already"
    other.send(QUERY)
    assert error_code(other.take()) == "08006"
    assert other.is_closed
    world.now += 1.1
    third.send(QUERY)
    assert not third.is_closed
    world.settle()
    assert kinds(client.take()) == kinds(third.take()) == ANSWER


def test_a_query_waits_while_there_is_a_server_that_is_only_busy() -> None:
    world = World(pool_size=3, server_login_retry_backoff=False)
    busy = holder(world)
    waiting = waiter(world)
    world.opening[0].fail()
    late = world.client()
    late.send(QUERY)
    assert not late.is_closed
    busy.send(COMMIT)
    world.settle()
    assert kinds(waiting.take()) == kinds(late.take()) == ANSWER


def test_no_server_is_opened_for_a_database_that_was_removed() -> None:
    world = World(min_pool_size=1)
    client = world.client()
    world.pool().database.is_removed = True
    world.servers[0].die()
    client.send(QUERY)
    world.pass_time(1.0)
    assert world.opening == []


# --- pausing ------------------------------------------------------------------------------------------------------------
def test_nobody_is_served_in_a_pause_and_everybody_after_it() -> None:
    world = World(pool_size=2)
    busy = holder(world)
    pool = world.pool()
    pool.database.paused = True
    waiting = [waiter(world), waiter(world)]
    busy.send(COMMIT)
    world.settle()
    assert pool.server_count == 0
    assert kinds(busy.take()) == "CZ"
    assert pool.waiting.count == 2
    pool.database.paused = False
    pool.grow(world.now)
    world.settle()
    assert [kinds(client.take()) for client in waiting] == [ANSWER] * 2


def test_idle_servers_that_outlived_a_pause_serve_those_who_waited_in_it() -> None:
    world = World(pool_size=1)
    world.client()
    world.registry.paused = True
    first = waiter(world)
    world.registry.paused = False  # resumed before the janitor has closed the idle server
    second = world.client()
    second.send(QUERY)
    assert first.session.server is world.servers[0].session, "a newcomer was served before a waiter"
    world.settle()
    assert kinds(first.take()) == kinds(second.take()) == ANSWER


def test_the_janitor_wakes_those_who_waited_in_a_pause() -> None:
    world = World(pool_size=1)
    world.client()
    world.registry.paused = True
    first = waiter(world)
    world.registry.paused = False
    world.pass_time(0.1)
    world.settle()
    assert kinds(first.take()) == ANSWER


# --- releasing ----------------------------------------------------------------------------------------------------------
def test_a_server_whose_lifetime_is_over_is_closed_when_it_is_released() -> None:
    world = World(pool_size=1, server_lifetime=60.0)
    busy = holder(world)
    waiting = waiter(world)
    world.now += 61.0
    busy.send(COMMIT)
    world.servers[0].answer()
    assert world.servers[0].reason is errors.LIFETIME_OVER
    world.settle()
    assert kinds(waiting.take()) == ANSWER


def test_closings_for_age_are_spaced() -> None:
    world = World(pool_size=2, server_lifetime=60.0)
    two_idle(world)
    world.pass_time(61.0)
    assert len(world.open_servers) == 1
    world.pass_time(29.0)
    assert len(world.open_servers) == 1
    world.pass_time(2.0)
    assert len(world.open_servers) == 0


@pytest.mark.parametrize("check_delay", [0.0, 30.0])
def test_a_lifetime_of_0_is_one_use(check_delay: float) -> None:
    world = World(pool_size=1, server_lifetime=0.0, server_check_delay=check_delay)
    client = world.client()
    for _ in range(2):
        client.send(QUERY)
        world.settle()
        assert kinds(client.take()) == ANSWER
    assert len(world.servers) == 2
    assert world.open_servers == []


def test_a_check_delay_of_0_checks_before_every_use() -> None:
    world = World(pool_size=1, server_check_delay=0.0, server_check_query=b"select 2")
    client = world.client()
    client.send(QUERY)
    world.servers[0].answer()
    assert kinds(client.take()) == ANSWER
    assert world.servers[0].session.state == SV_TESTED
    client.send(QUERY)
    assert client.session.server is None
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert world.servers[0].backend.seen.count("Q") == 4  # two queries, a check after each


def test_a_check_that_fails_costs_the_server_and_not_the_client() -> None:
    world = World(pool_size=1, server_check_delay=10.0, server_check_query=b"error")
    client = world.client()
    world.pass_time(11.0)
    assert world.servers[0].session.state == SV_USED
    client.send(QUERY)
    world.settle()
    assert world.servers[0].reason.message == errors.CHECK_FAILED.message
    assert kinds(client.take()) == ANSWER


# --- servers that were idle for long --------------------------------------------------------------------------------------
def used(world: World) -> list[Server]:
    servers = two_idle(world)
    world.pass_time(31.0)
    assert [server.session.state for server in servers] == [SV_USED] * 2
    return servers


def test_a_used_server_is_checked_and_then_given() -> None:
    world = World()
    servers = used(world)
    client = world.client()
    client.send(QUERY)
    assert sorted(server.session.state for server in servers) == [SV_USED, SV_TESTED]
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert len(world.servers) == 2


def test_more_waiters_than_used_servers_have_others_opened() -> None:
    world = World(pool_size=5)
    used(world)
    clients = [world.client() for _ in range(4)]
    for client in clients:
        client.send(QUERY)
    assert world.pool().servers[SV_TESTED].count == 2
    assert len(world.opening) == 2
    world.settle()
    assert {kinds(client.take()) for client in clients} == {ANSWER}


def test_used_servers_do_not_hold_up_a_login_that_needs_a_new_one() -> None:
    world = World(pool_size=5)
    servers = used(world)
    world.pool().forget_parameters()  # RECONNECT
    for server in servers:
        server.session.close_needed = True
    client = world.connect()
    assert len(world.opening) == 1
    world.settle()
    assert kinds(client.take()).endswith("Z")


def test_used_servers_that_are_not_fit_are_closed_one_by_one() -> None:
    world = World()
    servers = used(world)
    world.pool().limits.server_check_query = None  # changed by RELOAD
    for server in servers:
        server.session.close_needed = True
    clients = [world.client(), world.client()]
    for client in clients:
        client.send(QUERY)
    assert all(server.is_closed for server in servers)
    world.settle()
    assert [kinds(client.take()) for client in clients] == [ANSWER] * 2


def test_used_servers_are_given_without_a_check_when_there_is_none() -> None:
    world = World()
    servers = used(world)
    world.pool().limits.server_check_query = None
    client = world.client()
    client.send(QUERY)
    assert client.session.server in [server.session for server in servers]


# --- cancels ------------------------------------------------------------------------------------------------------------
def test_a_server_with_a_cancel_under_way_is_not_given_to_anybody() -> None:
    world = World(pool_size=1)
    busy = holder(world)
    waiting = waiter(world)
    server = world.servers[0]
    busy.send(QUERY)
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    world.settle()
    busy.send(COMMIT)
    world.settle()
    assert server.session.state == SV_BEING_CANCELED
    assert waiting.take() == b""
    assert world.pool().server_count == 1
    cancel.connection_lost(world.now)
    assert server.session.state == SV_ACTIVE
    world.settle()
    assert kinds(waiting.take()) == ANSWER
    assert (server.session.state, server.session.cancels) == (SV_IDLE, 0)


def test_a_cancel_that_ends_in_time_changes_nothing() -> None:
    world = World(pool_size=1)
    busy = holder(world)
    server = world.servers[0]
    busy.send(QUERY)
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    assert transport.take() == frontend.cancel_request(server.session.cancel_key)
    cancel.connection_lost(world.now)
    assert server.session.state == SV_ACTIVE
    world.settle()
    assert kinds(busy.take()) == ANSWER


def test_a_cancel_of_a_server_that_is_gone_ends_with_it() -> None:
    world = World(pool_size=1)
    busy = holder(world)
    busy.send(QUERY)
    cancel, transport = world.cancel(world.servers[0].session)
    cancel.connected(transport, world.now)
    world.servers[0].die()
    cancel.connection_lost(world.now)
    assert repr(world.pool()) == "<Pool app/alice>"
    assert world.pool().database.server_count == 0


# --- session mode ---------------------------------------------------------------------------------------------------------
def test_in_session_mode_the_server_is_reset_before_it_is_given_away() -> None:
    world = World(pool_mode=SESSION, pool_size=1)
    first = world.client()
    first.send(QUERY)
    world.settle()
    second = waiter(world)
    first.send(frontend.TERMINATE_MESSAGE)
    assert world.servers[0].session.state == SV_TESTED
    assert second.take() == b""
    world.settle()
    assert kinds(second.take()) == ANSWER


def test_a_client_without_a_server_has_none_after_a_reset_between_transactions() -> None:
    world = World(pool_mode=TRANSACTION, server_reset_query_always=True)
    client = world.client()
    client.send(QUERY)
    world.settle()
    assert world.servers[0].session.client is None
    assert world.pool().idle.count == 1
