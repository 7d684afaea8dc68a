"""Several workers, one pool: `SharedLedger` in each, `LeaseBook` between them (fix_workers)."""

from __future__ import annotations

import random

import pytest
from fix_sessions import Client, World, error_code, kinds
from fix_workers import Workers

from pgpool_proxy import errors
from pgpool_proxy.pool.states import SV_USED
from pgpool_proxy.wire import frontend

QUERY = frontend.query(b"select 1")
BEGIN = frontend.query(b"begin")
COMMIT = frontend.query(b"commit")
ANSWER = "TDCZ"
STEP_S = 0.01


def start(number: int, **keys: object) -> tuple[Workers, list[World]]:
    """Workers whose logins need no server of their own."""
    workers = Workers(number, **keys)
    for worker in workers.workers:
        for user in ("alice", "bob"):
            worker.world.pool(user=user)
            worker.ledger.learn("app", user, {b"server_version": b"18.0"}, workers.now)
    return workers, workers.worlds


def holder(workers: Workers, world: World, **keys: str) -> Client:
    """A client that holds a server by a transaction."""
    client = world.client(**keys)
    client.send(BEGIN)
    workers.in_turns(0.05)
    assert kinds(client.take()) == "CZ"
    return client


def waiter(world: World, **keys: str) -> Client:
    client = world.client(**keys)
    client.send(QUERY)
    assert client.take() == b""
    return client


def look(workers: Workers, seconds: float) -> None:
    """Time passes, and the workers that want something say so. No janitor comes by."""
    workers.now += seconds
    for worker in workers.workers:
        worker.world.now = workers.now
        if worker.ledger.is_wanting:
            worker.ledger.flush(workers.now)
    workers.deliver()


def said(workers: Workers, kind: str) -> int:
    return sum(worker.said.count(kind) for worker in workers.workers)


# --- one pool -----------------------------------------------------------------------------------------------------------
def test_a_pool_of_one_serves_two_workers_with_one_login() -> None:
    workers, worlds = start(2, pool_size=1)
    clients = [world.client() for world in worlds]
    for _ in range(3):
        for client in clients:
            client.send(QUERY)
            workers.in_turns(0.03)
            assert kinds(client.take()) == ANSWER
            assert workers.standing() == 1
    assert workers.logins == 1
    workers.check()


def test_pool_size_holds_over_all_workers() -> None:
    workers, worlds = start(4, pool_size=5)
    for world in worlds:
        for _ in range(10):
            waiter(world)
    for _ in range(100):
        workers.pass_time(0.005)
        workers.deliver()
        for world in worlds:
            for server in world.opening:
                server.open()
        workers.check()
        assert workers.standing() <= 5
    assert workers.standing() == 5
    assert sum(int(world.pool().server_count) for world in worlds) == 5


def test_an_idle_server_moves_within_50_ms_and_without_a_login() -> None:
    workers, (one, two) = start(2, pool_size=3)
    holders = [holder(workers, one) for _ in range(3)]
    for client in holders:
        client.send(COMMIT)
    workers.settle()
    assert one.pool().idle.count == 3
    waiting = [waiter(two) for _ in range(2)]
    workers.in_turns(0.04)
    assert [kinds(client.take()) for client in waiting] == [ANSWER] * 2
    assert workers.logins == 3
    assert (one.pool().server_count, two.pool().server_count) == (1, 2)


def test_a_server_comes_with_what_it_was() -> None:
    workers, (one, two) = start(2, pool_size=1)
    client = one.client(application_name="mover")
    client.send(QUERY)
    workers.settle()
    server = one.open_servers[0]
    number, key = server.session.number, server.session.cancel_key
    waiting = two.client(application_name="mover")
    waiting.send(QUERY)
    workers.in_turns(0.04)
    moved = two.open_servers[0]
    assert (moved.session.number, moved.session.cancel_key, moved.backend) == (number, key, server.backend)
    assert moved.backend.parameters[b"application_name"] == b"mover"
    assert kinds(waiting.take()) == ANSWER, "nothing had to be set anew"


def test_the_server_that_was_used_longest_ago_goes() -> None:
    workers, (one, two) = start(2, pool_size=2)
    first, second = holder(workers, one), holder(workers, one)
    oldest = first.session.server.number
    first.send(COMMIT)
    workers.in_turns(0.01)
    second.send(COMMIT)
    workers.in_turns(0.01)
    waiter(two)
    workers.in_turns(0.04)
    assert [server.session.number for server in two.open_servers] == [oldest]


def test_a_server_that_is_to_be_checked_is_checked_where_it_arrives() -> None:
    workers, (one, two) = start(2, pool_size=1, server_check_delay=3.0, server_check_query=b"select 1")
    holder(workers, one).send(COMMIT)
    workers.in_turns(5.0, 0.1)
    assert one.pool().servers[SV_USED].count == 1
    waiting = waiter(two)
    workers.deliver()
    assert two.pool().tested.count == 1
    workers.in_turns(0.02)
    assert kinds(waiting.take()) == ANSWER
    assert workers.logins == 1


def test_a_released_server_goes_to_the_client_that_has_waited_longer_in_a_worker_without_any() -> None:
    workers, (one, two) = start(2, pool_size=1)
    busy = holder(workers, one)
    there = waiter(two)
    workers.in_turns(0.02)
    here = waiter(one)
    workers.in_turns(0.02)
    busy.send(COMMIT)
    one.settle()
    assert (one.pool().server_count, here.take()) == (0, b"")
    two.settle()
    workers.in_turns(0.04)
    assert [kinds(client.take()) for client in (there, here)] == [ANSWER] * 2
    assert workers.logins == 1


def test_a_released_server_stays_for_a_client_that_has_waited_longer() -> None:
    workers, (one, two) = start(2, pool_size=1)
    busy = holder(workers, one)
    here = waiter(one)
    workers.in_turns(0.02)
    there = waiter(two)
    workers.in_turns(0.02)
    busy.send(COMMIT)
    workers.worlds[0].settle()
    assert kinds(here.take()) == ANSWER
    assert there.take() == b""
    workers.in_turns(0.03)
    assert kinds(there.take()) == ANSWER


def test_who_has_servers_gets_another_only_when_the_wait_is_uneven() -> None:
    workers, (one, two) = start(2, pool_size=2)
    theirs, ours = holder(workers, one), holder(workers, two)
    waiter(one)
    workers.in_turns(0.02)
    waiter(two)
    workers.in_turns(0.1)
    theirs.send(COMMIT)
    workers.settle()
    assert (one.pool().server_count, two.pool().server_count) == (1, 1), "as good as even"
    assert ours.session.server is not None


def test_a_holder_decides_by_how_long_its_own_clients_wait() -> None:
    """The supervisor may not know of them yet, when a server is released."""
    workers, (one, two) = start(2, pool_size=3)
    theirs = [holder(workers, one) for _ in range(2)]
    holder(workers, two)
    waiter(two)
    workers.in_turns(0.1)
    assert one.pool().recalls == 1
    one.now = workers.now = workers.now + 0.04
    here = waiter(one)
    here.session.wait_start -= 0.12  # as if its news had not reached the supervisor
    theirs[0].send(COMMIT)
    one.settle()
    assert kinds(here.take()) == ANSWER
    workers.in_turns(0.1)
    assert (one.pool().server_count, two.pool().server_count) == (1, 2)


def test_the_only_server_of_a_worker_that_uses_it_stays_for_a_moment() -> None:
    workers, (one, two) = start(2, pool_size=2)
    mine = holder(workers, one)
    holder(workers, two)
    waiting = waiter(two)
    workers.in_turns(0.04)
    mine.send(COMMIT)
    workers.settle()
    assert one.pool().idle.count == 1
    workers.in_turns(0.04)
    assert kinds(waiting.take()) == ANSWER


def test_the_supervisor_hears_who_is_the_first_to_wait_by_now() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one)
    first = waiter(two)
    workers.in_turns(0.05)
    second = waiter(two)
    workers.in_turns(0.05)
    want = workers.book.account("app", "alice").wants[1]
    assert want.since == first.session.wait_start
    first.vanish()
    look(workers, 0.01)
    assert (want.since, int(want.waiting)) == (second.session.wait_start, 1)


def test_a_wait_that_comes_and_goes_is_not_worth_a_message_each_time() -> None:
    workers, (one, _) = start(2, pool_size=1)
    holder(workers, one)
    client = one.client()
    workers.in_turns(0.02)
    before = said(workers, "wants")
    for _ in range(20):
        client.send(QUERY)
        workers.turn()
        client.session.cancel_waiting(one.now)
        look(workers, 0.001)
    assert said(workers, "wants") - before <= 5
    look(workers, 0.005)
    assert 0 not in workers.book.account("app", "alice").wants


def test_who_does_not_wait_any_more_says_so() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one)
    client = waiter(two)
    workers.deliver()
    assert workers.book.account("app", "alice").wants[1].waiting == 1
    client.vanish()
    look(workers, 0.01)
    assert 1 not in workers.book.account("app", "alice").wants
    assert one.pool().recalls == 0


def test_news_of_a_recall_that_was_answered_are_no_new_recall() -> None:
    workers, (one, two) = start(2, pool_size=2)
    for _ in range(2):
        holder(workers, one)
    for client in one.clients:
        client.send(COMMIT)
    workers.settle()
    first, second = workers.workers
    waiter(two)
    workers.turn()
    while workers.to_supervisor(second):
        pass
    assert first.down[-1][0] == "order"
    recall = first.down[-1]
    workers.to_worker(first)
    assert one.pool().idle.count == 1
    first.down.append(recall)  # it has crossed the answer
    workers.to_worker(first)
    assert one.pool().idle.count == 1
    workers.deliver()
    assert one.pool().server_count == 1


def test_a_recall_outlives_the_pool_that_it_was_made_of() -> None:
    workers, (one, two) = start(2, pool_size=1)
    client = holder(workers, one)
    waiter(two)
    workers.in_turns(0.05)
    assert one.pool().recalls == 1
    registry = one.registry
    old = one.pool()
    registry.drop_pool(old)
    assert one.pool() is not old
    assert one.pool().recalls == 1
    client.vanish()


def test_a_server_that_cannot_move_is_closed_and_another_one_opened() -> None:
    workers, (one, two) = start(2, pool_size=1)
    for worker in workers.workers:
        worker.can_move_servers = False
    holder(workers, one).send(COMMIT)
    workers.in_turns(0.03)
    closed = one.open_servers[0]
    waiting = waiter(two)
    workers.deliver()
    assert closed.reason is errors.EVICTED
    assert two.opening == [], "its connection still stands"
    assert workers.standing() == 1
    workers.settle()
    assert kinds(waiting.take()) == ANSWER
    assert (workers.logins, workers.standing()) == (2, 1)


def test_servers_that_cannot_move_are_not_closed_for_a_momentary_need() -> None:
    workers, (one, two) = start(2, pool_size=2)
    for worker in workers.workers:
        worker.can_move_servers = False
    holder(workers, two)
    holder(workers, one).send(COMMIT)
    workers.in_turns(0.05)
    waiting = waiter(two)
    workers.in_turns(0.02)
    assert workers.logins == 2
    workers.in_turns(0.05)
    assert kinds(waiting.take()) == ANSWER, "but they are for one that lasts"
    assert workers.logins == 3


def test_what_cannot_be_used_any_more_is_given_back() -> None:
    workers, (one, two) = start(2, pool_size=1)
    gone = waiter(one)
    workers.turn()
    workers.to_supervisor(workers.workers[0])
    gone.vanish()
    waiting = waiter(two)
    workers.in_turns(0.02)
    assert one.servers == []
    assert kinds(waiting.take()) == ANSWER
    assert workers.book.leases(0, "app", "alice") == 0


def test_a_failed_login_gives_its_lease_back() -> None:
    workers, (one, two) = start(2, pool_size=1)
    waiter(one)
    workers.deliver()
    one.opening[0].fail()
    waiting = waiter(two)
    workers.in_turns(0.02)
    assert kinds(waiting.take()) == ANSWER


def test_nothing_is_said_while_nothing_changes() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one)
    waiter(two)
    workers.in_turns(0.1)
    sent = sum(len(worker.said) for worker in workers.workers)
    workers.in_turns(1.0)
    assert sum(len(worker.said) for worker in workers.workers) == sent
    workers.in_turns(0.2)
    assert all(not worker.down for worker in workers.workers)


def test_requests_that_find_a_server_say_nothing_at_all() -> None:
    workers, (one, _) = start(2, pool_size=2)
    clients = [one.client() for _ in range(2)]
    for _ in range(2):
        for client in clients:
            client.send(QUERY)
        workers.in_turns(0.02)
    sent = len(workers.workers[0].said)
    for _ in range(50):
        for client in clients:
            client.send(QUERY)
        workers.in_turns(0.01)
    assert len(workers.workers[0].said) == sent


# --- limits of other kinds ----------------------------------------------------------------------------------------------
def test_the_reserve_is_one_for_all_workers() -> None:
    workers, worlds = start(2, pool_size=1, reserve_pool_size=1, reserve_pool_timeout=1.0)
    holder(workers, worlds[0])
    waiting = [waiter(world) for world in worlds]
    workers.in_turns(0.9, 0.1)
    assert workers.standing() == 1
    workers.in_turns(0.5, 0.1)
    assert workers.standing() == 2
    assert sum(world.configurator.reserve_count for world in worlds) == 1
    workers.in_turns(0.5, 0.1)
    assert [kinds(client.take()) for client in waiting] == [ANSWER] * 2
    workers.check()


def test_min_pool_size_is_kept_by_all_workers_together() -> None:
    workers, worlds = start(3, pool_size=10, min_pool_size=4)
    for world in worlds[:2]:
        world.client()
    workers.in_turns(2.0, 0.1)
    assert [int(world.pool().server_count) for world in worlds] == [2, 2, 0]
    workers.in_turns(5.0, 0.1)
    assert (workers.standing(), workers.logins) == (4, 4)
    workers.kill(workers.workers[0])
    workers.in_turns(2.0, 0.1)
    assert [int(world.pool().server_count) for world in workers.worlds] == [4, 0]


def test_min_pool_size_of_a_forced_user_needs_no_client() -> None:
    workers = Workers(2, pool_size=10, min_pool_size=3, databases={"app": {"forced_user": "alice"}})
    for world in workers.worlds:
        world.pool()
    workers.in_turns(2.0, 0.1)
    assert (workers.standing(), workers.logins) == (3, 3)


def test_min_pool_size_follows_the_configuration() -> None:
    workers, worlds = start(2, pool_size=10, min_pool_size=0)
    for world in worlds:
        world.client()
    workers.in_turns(1.0, 0.1)
    assert workers.standing() == 0
    workers.reload(min_pool_size=2)
    workers.in_turns(1.0, 0.1)
    assert [int(world.pool().server_count) for world in worlds] == [1, 1]
    workers.reload(server_idle_timeout=1.0)
    assert [int(world.pool().limits.min_pool_size) for world in worlds] == [1, 1]
    workers.in_turns(3.0, 0.1)
    assert (workers.standing(), workers.logins) == (2, 2)
    workers.reload(min_pool_size=0)
    workers.in_turns(1.0, 0.1)
    assert [int(world.pool().limits.min_pool_size) for world in worlds] == [0, 0]


def test_a_server_that_is_idle_in_another_pool_of_another_worker_gives_way() -> None:
    workers, (one, two) = start(2, pool_size=5, databases={"app": {"max_connections": 2}})
    first, second = holder(workers, one), holder(workers, one)
    waiting = waiter(two, user="bob")
    workers.in_turns(0.5)
    assert waiting.take() == b""
    first.send(COMMIT)
    workers.in_turns(0.05)
    assert kinds(waiting.take()) == ANSWER
    assert second.session.server is not None
    assert (workers.standing(), workers.standing(user="bob")) == (1, 1)
    workers.check()


def test_a_pool_that_is_always_busy_does_not_starve_another_in_another_worker() -> None:
    workers, (one, two) = start(2, pool_size=5, databases={"app": {"max_connections": 2}})
    greedy = [one.client() for _ in range(6)]
    for client in greedy:
        client.send(QUERY)
    workers.deliver()
    starved = waiter(two, user="bob")
    waited = 0.0
    while not starved.take():
        waited += STEP_S
        assert waited < 2.0, "it starves"
        workers.pass_time(STEP_S)
        workers.deliver()
        workers.end_all()
        for world in (one, two):
            for server in world.opening:
                server.open()
            for server in world.open_servers:
                server.answer()
        for client in greedy:
            if client.take():
                client.send(QUERY)
        workers.check()
    assert waited > 0.9


def test_a_pool_whose_own_clients_wait_longer_gives_way_to_nobody() -> None:
    workers, (one, two) = start(2, pool_size=5, databases={"app": {"max_connections": 1}})
    busy = holder(workers, one)
    waiter(two, user="bob")
    workers.in_turns(0.5)
    here = waiter(one)
    workers.in_turns(0.7)
    assert one.pool().recalls == 1
    here.session.wait_start -= 5.0  # as if its news had not reached the supervisor
    busy.send(COMMIT)
    one.settle()
    assert kinds(here.take()) == ANSWER


def test_a_smaller_pool_size_closes_servers_of_whichever_worker() -> None:
    workers, (one, two) = start(2, pool_size=4)
    holders = [holder(workers, world) for world in (one, two) for _ in range(2)]
    workers.reload(pool_size=1)
    for client in holders:
        client.send(COMMIT)
    workers.in_turns(0.4)
    assert workers.standing() == 1
    workers.check()


def test_a_replication_client_takes_the_place_of_an_idle_server_elsewhere() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one).send(COMMIT)
    workers.in_turns(0.05)
    client = two.connect(replication="database")
    workers.in_turns(0.05)
    assert kinds(client.take()).endswith("Z")
    assert (one.pool().server_count, two.pool().taken) == (0, 1)
    workers.check()
    waiting = waiter(one)
    workers.in_turns(1.0)
    assert waiting.take() == b"", "it is no server that others could have"
    client.vanish()
    workers.in_turns(0.05)
    assert kinds(waiting.take()) == ANSWER
    workers.check()


# --- workers that die ---------------------------------------------------------------------------------------------------
def test_a_worker_that_dies_gives_nothing_back_before_its_connections_have_ended() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one)
    waiting = waiter(two)
    workers.in_turns(0.05)
    workers.kill(workers.workers[0])
    workers.deliver()
    assert workers.book.limbo("app", "alice") == 1
    assert waiting.take() == b""
    workers.in_turns(0.02)
    assert kinds(waiting.take()) == ANSWER
    workers.check()


def test_a_server_on_its_way_to_a_worker_that_dies_is_not_lost() -> None:
    workers, (one, two) = start(2, pool_size=1)
    holder(workers, one).send(COMMIT)
    workers.in_turns(0.05)
    waiter(two)
    workers.turn()
    while workers.to_supervisor(workers.workers[1]):
        pass
    workers.to_worker(workers.workers[0])
    workers.to_supervisor(workers.workers[0])
    assert workers.workers[1].down, "it is under way"
    workers.kill(workers.workers[1])
    client = waiter(one)
    workers.in_turns(0.05)
    assert kinds(client.take()) == ANSWER
    workers.check()


# --- balance ------------------------------------------------------------------------------------------------------------
def waits_under_load(workers: Workers, clients: list[Client], seconds: float, service_s: float) -> list[float]:
    """Everybody asks again as soon as he is answered; messages take half a millisecond. The waits, from the second half."""
    chance = random.Random(5)
    end = workers.now + seconds
    middle = workers.now + seconds / 2
    sent = {id(client): workers.now for client in clients}
    ready: dict[int, float] = {}
    waits: list[float] = []
    for client in clients:
        client.send(QUERY)
    step = 0
    while workers.now < end:
        step += 1
        workers.now += 0.0005
        now = workers.now
        for worker in workers.workers:
            worker.world.now = now
            for _ in range(len(worker.up)):
                workers.to_supervisor(worker)
        for worker in workers.workers:
            for _ in range(len(worker.down)):
                workers.to_worker(worker)
            for server in worker.world.opening:
                server.open()
            for server in worker.world.open_servers:
                if server.transport.sent:
                    ready.setdefault(id(server), now + service_s * (0.5 + chance.random()))
                    if now >= ready[id(server)]:
                        del ready[id(server)]
                        server.answer()
        workers.end_all()
        for client in clients:
            if client.take():
                if now > middle:
                    waits.append(now - sent[id(client)])
                sent[id(client)] = now
                client.send(QUERY)
        workers.turn()
        if step % 20 == 0:
            workers.pass_time(0.0)
        workers.check()
    return sorted(waits)


@pytest.mark.parametrize(("pool_size", "service_s", "moves"), [(5, 0.01, 25), (1, 0.001, 120), (4, 0.001, 5)])
def test_even_load_over_workers_waits_as_evenly_as_in_one(pool_size: int, service_s: float, moves: int) -> None:
    alone, _ = start(1, pool_size=pool_size)
    waits = waits_under_load(alone, [alone.worlds[0].client() for _ in range(24)], 1.0, service_s)
    spread_alone = waits[int(0.99 * len(waits))] / waits[len(waits) // 2]
    workers, worlds = start(2, pool_size=pool_size)
    waits = waits_under_load(workers, [world.client() for world in worlds for _ in range(12)], 1.0, service_s)
    spread = waits[int(0.99 * len(waits))] / waits[len(waits) // 2]
    assert spread <= 1.5 * spread_alone
    assert workers.moves <= moves
    assert workers.logins == pool_size


def test_uneven_load_is_evened_out() -> None:
    workers, worlds = start(2, pool_size=6)
    clients = [worlds[0].client() for _ in range(20)]
    clients += [worlds[1].client() for _ in range(4)]
    waits_under_load(workers, clients, 1.0, 0.01)
    first, second = (int(world.pool().server_count) for world in worlds)
    assert first + second == 6
    assert first >= 4
    assert second >= 1


# --- clients ------------------------------------------------------------------------------------------------------------
def counted(**keys: object) -> tuple[Workers, list[World]]:
    return start(2, databases={"app": {"max_client_connections": 1}}, **keys)


def test_a_client_is_let_in_when_the_supervisor_has_counted_it() -> None:
    workers, (one, _) = counted(pool_size=2)
    client = one.connect()
    client.send(QUERY)  # early
    assert client.take() == b""
    assert workers.client_book.of_database("app") == 0
    workers.settle()
    assert kinds(client.take()).endswith("Z" + ANSWER)
    assert (workers.client_book.of_database("app"), workers.client_book.of_user("alice")) == (1, 1)
    client.vanish()
    workers.settle()
    assert workers.client_book.of_database("app") == 0


def test_one_client_too_many_over_all_workers_is_refused() -> None:
    workers, (one, two) = counted(pool_size=2)
    first, second = one.connect(), two.connect()
    workers.settle()
    assert kinds(first.take()).endswith("Z")
    assert error_code(second.take()) == "53300"
    assert second.reason is errors.MAX_DB_CLIENT_CONN
    first.vanish()
    workers.settle()
    third = two.connect()
    workers.settle()
    assert kinds(third.take()).endswith("Z")


def test_a_client_that_leaves_while_it_is_being_counted_does_not_count() -> None:
    workers, (one, two) = counted(pool_size=2)
    client = one.connect()
    workers.turn()
    workers.to_supervisor(workers.workers[0])
    client.vanish()
    workers.settle()
    assert workers.client_book.of_database("app") == 0
    other = two.connect()
    workers.settle()
    assert kinds(other.take()).endswith("Z")


def test_a_client_that_is_let_in_and_cannot_be_served_does_not_count() -> None:
    workers, (one, _) = counted(pool_size=2)
    pool = one.pool()
    pool.last_failure = errors.CONNECT_FAILED
    pool.retry_at = one.now + 10.0
    client = one.connect()
    workers.settle()
    assert client.is_closed
    assert workers.client_book.of_database("app") == 0
    assert workers.client_book.of_worker(0) == 0


def test_client_login_timeout_holds_while_a_client_is_being_counted() -> None:
    workers, (one, _) = counted(pool_size=2)
    client = one.connect()
    one.pass_time(61.0)
    assert client.is_closed
    assert client.reason is errors.CLIENT_LOGIN_TIMEOUT
    workers.now = one.now
    workers.settle()
    assert workers.client_book.of_database("app") == 0


def test_a_client_that_came_over_max_client_conn_is_asked_about() -> None:
    workers, (one, two) = start(2, pool_size=2, max_client_conn=1)
    first = one.connect()
    second = two.connect()
    workers.settle()
    assert kinds(first.take()).endswith("Z")
    assert second.reason is errors.MAX_CLIENT_CONN
    first.vanish()
    workers.settle()
    assert workers.client_book.total == 0


def test_clients_are_counted_without_being_asked_about_where_no_limit_is_set() -> None:
    workers, (one, two) = start(2, pool_size=2)
    clients = [one.client(), two.client(user="bob")]
    workers.settle()
    assert (workers.client_book.of_database("app"), workers.client_book.of_user("bob")) == (2, 1)
    for client in clients:
        client.vanish()
    workers.settle()
    assert (workers.client_book.total, workers.client_book.of_database("app")) == (0, 0)
