"""The book of leases: events in, orders out."""

from __future__ import annotations

import pytest

from pgpool_proxy.errors import IllegalTransition
from pgpool_proxy.pool.leases import (
    ADMITTED,
    ASK_S,
    COMING_S,
    FLIGHT_S,
    GRANT,
    MINIMUM,
    NOBODY,
    OVER_CLIENTS,
    OVER_DATABASE,
    OVER_USER,
    RECALL,
    RECALL_OFF,
    REFUSALS,
    SURPLUS_S,
    ClientBook,
    ClientLimits,
    LeaseBook,
    LeaseLimits,
    Order,
)
from pgpool_proxy.pool.limits import STARVED_S

Key = tuple[str, str]
ALICE: Key = ("app", "alice")
BOB: Key = ("app", "bob")
OTHER: Key = ("other", "alice")


class Desk:
    """A book, and workers of whom it only hears. Orders are kept until they are `taken`."""

    def __init__(self, workers: int = 2, **limits: float) -> None:
        self.now = 1000.0
        self.limits: dict[str, float] = limits
        self.of_pool: dict[Key, dict[str, float]] = {}
        self.book = LeaseBook(self.limits_of)
        self.orders: list[Order] = []
        self.dead: set[int] = set()
        for worker in range(workers):
            self.hear(self.book.joined(worker, self.now))

    def limits_of(self, database: str, user: str) -> LeaseLimits:
        limits = LeaseLimits()
        limits.pool_size = 2
        for name, value in {**self.limits, **self.of_pool.get((database, user), {})}.items():
            setattr(limits, name, value)
        return limits

    def hear(self, orders: list[Order]) -> None:
        for order in orders:
            assert order.worker not in self.dead
        self.orders += orders

    def die(self, worker: int) -> None:
        self.dead.add(worker)
        self.hear(self.book.left(worker, self.now))

    def wants(
        self, worker: int, waiting: int = 1, key: Key = ALICE, since: float = 0.0, received: int = 0, **more: int
    ) -> None:
        """`since` in seconds from the beginning."""
        self.hear(
            self.book.wants(
                worker, *key, waiting, more.get("logins", 0), more.get("dedicated", 0), more.get("minimum", 0),
                1000.0 + since, received, self.now,
            )
        )  # fmt: skip

    def busy(self, order: Order) -> None:
        self.hear(self.book.busy(order.worker, order.database, order.user, order.recall, self.now))

    def closing(self, worker: int, key: Key = ALICE, recall: int = 0) -> None:
        self.hear(self.book.closing(worker, *key, recall, self.now))

    def offered(self, order: Order) -> int:
        getter = self.book.offered(order.worker, order.database, order.user, order.recall, self.now)
        self.hear(self.book.take_orders())
        return getter

    def gone(self, key: Key = ALICE) -> None:
        self.hear(self.book.gone(*key, self.now))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.hear(self.book.tick(self.now))

    def take(self, kind: int | None = None) -> list[Order]:
        """What was ordered since the last time; the rest is dropped."""
        orders, self.orders = self.orders, []
        return [order for order in orders if kind is None or order.kind == kind]

    def grants(self) -> list[tuple[int, int]]:
        """(worker, number) of each grant since the last time."""
        return [(int(order.worker), int(order.number)) for order in self.take(GRANT)]

    def recalls(self) -> list[tuple[int, str]]:
        """(worker, user) of each recall since the last time."""
        return [(int(order.worker), order.user) for order in self.take(RECALL)]

    def hold(self, worker: int, number: int, key: Key = ALICE) -> None:
        """The worker has so many leases, and no waiters."""
        self.hear(self.book.adopted(worker, *key, number, self.now))


# --- grants -------------------------------------------------------------------------------------------------------------
def test_leases_are_granted_while_the_pool_has_room() -> None:
    desk = Desk(pool_size=3)
    desk.wants(0, 2)
    assert desk.grants() == [(0, 2)]
    desk.wants(1, 2)
    assert desk.grants() == [(1, 1)]
    assert (desk.book.leases(0, *ALICE), desk.book.leases(1, *ALICE)) == (2, 1)
    assert sorted(desk.book.leases_of(0)) == [("app", "alice", 2)]


def test_without_a_pool_size_everybody_gets_what_he_wants() -> None:
    desk = Desk(pool_size=0)
    desk.wants(0, 8)
    desk.wants(1, 8)
    assert desk.grants() == [(0, 8), (1, 8)]


def test_what_is_under_way_is_not_granted_again() -> None:
    desk = Desk(pool_size=5)
    desk.wants(0, 2)
    desk.wants(0, 2)  # said before the grant had come
    assert desk.grants() == [(0, 2)]
    desk.wants(0, 2, received=2)  # two more
    assert desk.grants() == [(0, 2)]
    desk.wants(0, 0, received=2)
    assert desk.grants() == []


def test_what_never_arrives_does_not_keep_a_worker_waiting() -> None:
    """A server that moved, and whose connection broke on the way: its receiver closes it, and confirms nothing."""
    desk = Desk(pool_size=1)
    desk.hold(0, 1)
    desk.wants(1)
    (recall,) = desk.take(RECALL)
    assert desk.offered(recall) == 1
    desk.closing(1)
    desk.gone()
    assert desk.grants() == []
    desk.wants(1)
    desk.tick(FLIGHT_S)
    assert desk.grants() == [(1, 1)]


def test_a_connection_that_is_being_closed_counts_until_it_has_gone() -> None:
    desk = Desk(pool_size=1)
    desk.wants(0)
    desk.wants(0, 0, received=1)
    desk.closing(0)
    desk.wants(1)
    assert desk.grants() == [(0, 1)]
    assert desk.book.limbo(*ALICE) == 1
    desk.tick(5.0)
    assert desk.grants() == []
    desk.gone()
    assert desk.grants() == [(1, 1)]
    assert desk.book.limbo(*ALICE) == 0


def test_a_free_lease_goes_to_the_worker_whose_client_has_waited_longest() -> None:
    desk = Desk(3, pool_size=1)
    desk.hold(0, 1)
    desk.wants(1, since=2.0)
    desk.wants(2, since=1.0)
    desk.now += 3.0
    desk.closing(0)
    desk.take()
    desk.gone()
    assert desk.grants() == [(2, 1)]


def test_leases_that_come_free_together_are_shared_as_if_waiters_had_come_one_by_one() -> None:
    desk = Desk(pool_size=6)
    desk.book.adopted(0, *ALICE, 6, desk.now)
    desk.wants(0, 8, since=0.0)
    desk.wants(1, 8, since=0.1)
    desk.now += 1.0
    desk.hear(desk.book.left(0, desk.now))
    desk.hear(desk.book.joined(0, desk.now))
    desk.limits["pool_size"] = 1  # so that nothing is granted one by one
    for _ in range(6):
        desk.gone()
    desk.take()
    desk.limits["pool_size"] = 7
    desk.wants(0, 8, since=0.0)
    desk.take()
    assert desk.book.leases(0, *ALICE) + desk.book.leases(1, *ALICE) == 7
    assert desk.book.leases(1, *ALICE) in (3, 4)


def test_what_was_not_used_goes_to_others() -> None:
    desk = Desk(pool_size=1)
    desk.wants(0)
    desk.wants(1, since=0.5)
    desk.take()
    desk.hear(desk.book.given_back(0, *ALICE, 1, desk.now))
    desk.wants(0, 0, received=1)
    assert desk.grants() == [(1, 1)]


def test_nobody_gives_what_he_has_not() -> None:
    desk = Desk()
    with pytest.raises(IllegalTransition):
        desk.closing(0)
    desk.wants(0)
    with pytest.raises(IllegalTransition):
        desk.hear(desk.book.given_back(0, *ALICE, 2, desk.now))
    with pytest.raises(IllegalTransition):
        desk.gone()


def test_a_pool_of_which_nothing_is_left_is_forgotten() -> None:
    desk = Desk(pool_size=1)
    desk.wants(0)
    desk.hear(desk.book.has_clients(0, *ALICE, True, desk.now))
    desk.wants(0, 0, received=1)
    desk.closing(0)
    desk.gone()
    assert desk.book.accounts() != []
    desk.hear(desk.book.has_clients(0, *ALICE, False, desk.now))
    assert desk.book.accounts() == []
    assert not desk.book.is_wanted


# --- the reserve --------------------------------------------------------------------------------------------------------
def test_the_reserve_is_for_clients_that_wait_for_long() -> None:
    desk = Desk(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=5.0)
    desk.wants(0)
    desk.wants(0, 0, received=1)
    desk.take()
    desk.wants(1, 2, since=1.0)
    desk.tick(5.9)
    assert desk.grants() == []
    desk.tick(0.2)
    (grant,) = desk.take(GRANT)
    assert (grant.worker, grant.number, grant.from_reserve) == (1, 1, True)
    desk.tick(20.0)
    assert desk.grants() == [], "the reserve has an end, too"


def test_a_login_does_not_make_use_of_the_reserve() -> None:
    desk = Desk(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=0.1)
    desk.hold(0, 1)
    desk.wants(1, 0, logins=1)
    desk.wants(0, 0, dedicated=1)
    desk.tick(5.0)
    assert desk.grants() == []


# --- min_pool_size ------------------------------------------------------------------------------------------------------
def shares(desk: Desk) -> dict[int, int]:
    return {int(order.worker): int(order.number) for order in desk.take(MINIMUM)}


def test_the_shares_of_min_pool_size_make_it_up() -> None:
    desk = Desk(3, pool_size=10, min_pool_size=4)
    desk.hear(desk.book.has_clients(1, *ALICE, True, desk.now))
    assert shares(desk) == {1: 4}
    desk.hear(desk.book.has_clients(0, *ALICE, True, desk.now))
    assert shares(desk) == {0: 2, 1: 2}
    desk.hear(desk.book.has_clients(2, *ALICE, True, desk.now))
    assert sum(desk.book.account(*ALICE).shares.values()) == 4
    desk.take()
    desk.hear(desk.book.left(0, desk.now))
    assert sorted(desk.book.account(*ALICE).shares.items()) == [(1, 2), (2, 2)]
    desk.take()
    desk.limits["min_pool_size"] = 0
    desk.hear(desk.book.limits_changed(desk.now))
    assert shares(desk) == {1: 0, 2: 0}


def test_min_pool_size_is_filled_from_what_is_free_and_never_by_recall() -> None:
    desk = Desk(pool_size=2, min_pool_size=2)
    desk.hold(0, 2)
    desk.wants(1, 0, minimum=1)
    desk.tick(10.0)
    assert desk.take() == []
    desk.closing(0)
    desk.gone()
    assert desk.grants() == [(1, 1)]


def test_min_pool_size_takes_neither_the_reserve_nor_more_than_itself() -> None:
    desk = Desk(pool_size=2, min_pool_size=2, reserve_pool_size=2, reserve_pool_timeout=0.1)
    desk.wants(0, 0, minimum=2)
    assert desk.grants() == [(0, 2)]
    desk.wants(1, 0, minimum=1)
    desk.tick(10.0)
    assert desk.grants() == []
    desk.limits["pool_size"] = 5
    desk.hear(desk.book.limits_changed(desk.now))
    assert desk.grants() == []


# --- recalls within a pool ----------------------------------------------------------------------------------------------
def test_the_holders_are_asked_one_after_the_other() -> None:
    desk = Desk(4, pool_size=4)
    for worker, number in ((0, 2), (1, 1), (2, 1)):
        desk.hold(worker, number)
    desk.wants(3)
    (first,) = desk.take(RECALL)
    assert (first.worker, first.since, first.starving, first.close) == (0, 1000.0, True, False)
    desk.busy(first)
    (second,) = desk.take(RECALL)
    assert second.worker == 1
    desk.tick(ASK_S + 0.001)
    (third,) = desk.take(RECALL)
    assert third.worker == 2, "who does not answer is not waited for"
    assert desk.offered(third) == 3
    assert {int(order.recall) for order in desk.take(RECALL_OFF)} == {int(first.recall), int(second.recall)}
    assert desk.book.leases(3, *ALICE) == 1


def test_those_without_waiters_are_asked_first() -> None:
    desk = Desk(3, pool_size=4)
    desk.hold(0, 3)
    desk.hold(1, 1)
    desk.wants(0, 1)
    assert desk.recalls() == []
    desk.wants(2)
    assert desk.recalls() == [(1, "alice")]


def test_as_many_are_asked_for_as_are_wanted() -> None:
    desk = Desk(pool_size=5)
    desk.hold(0, 5)
    desk.wants(1, 3)
    recalls = desk.take(RECALL)
    assert [int(order.worker) for order in recalls] == [0, 0, 0]
    assert [desk.offered(order) for order in recalls] == [1, 1, 1]
    assert desk.take(RECALL) == []
    assert desk.book.leases(1, *ALICE) == 3


def test_a_recall_is_off_when_nobody_waits_any_more() -> None:
    desk = Desk(pool_size=1)
    desk.hold(0, 1)
    desk.wants(1)
    (recall,) = desk.take(RECALL)
    desk.busy(recall)
    desk.wants(1, 0)
    (off,) = desk.take(RECALL_OFF)
    assert off.recall == recall.recall
    assert desk.offered(recall) == 0, "it has given it up already: it gets it back"
    assert desk.book.leases(0, *ALICE) == 1


def test_the_holder_hears_when_somebody_else_waits() -> None:
    desk = Desk(3, pool_size=1)
    desk.hold(0, 1)
    desk.wants(1, since=1.0)
    (recall,) = desk.take(RECALL)
    desk.busy(recall)
    desk.wants(2, since=0.5)
    news = desk.take(RECALL)
    assert [(order.recall, order.since) for order in news] == [(recall.recall, 1000.5)]
    assert desk.offered(recall) == 2


def test_a_worker_that_has_servers_asks_only_when_its_clients_wait_longer_than_the_others() -> None:
    desk = Desk(pool_size=2)
    desk.hold(0, 1)
    desk.hold(1, 1)
    desk.now += 1.0
    desk.wants(0, 5, since=0.9)  # 100 ms
    desk.wants(1, 5, since=0.88)  # 120 ms
    assert desk.recalls() == [(1, "alice")], "as long as nothing is known of those who wait there"
    desk.tick()
    assert desk.recalls() == []
    desk.wants(1, 5, since=0.8)
    assert desk.recalls() == [(0, "alice")], "one only: who has waiters gives up one after the other"


def test_a_worker_with_waiters_is_asked_for_one_server_after_the_other() -> None:
    desk = Desk(pool_size=6)
    desk.hold(0, 6)
    desk.now += 1.0
    desk.wants(0, 5, since=0.9)
    desk.wants(1, 5, since=0.5)
    (recall,) = desk.take(RECALL)
    desk.busy(recall)
    desk.tick(0.5)
    assert desk.recalls() == [], "it has not said so for nothing"
    desk.wants(0, 0)
    desk.wants(1, 5, since=0.5)
    assert desk.recalls() == [], "and gives what it can as soon as it can"
    assert desk.offered(recall) == 1
    assert len(desk.recalls()) == 4


def test_a_worker_that_has_servers_asks_one_without_waiters_after_10_ms() -> None:
    desk = Desk(pool_size=2)
    desk.hold(0, 1)
    desk.hold(1, 1)
    desk.wants(1)
    desk.tick(0.009)
    assert desk.recalls() == []
    desk.tick(0.002)
    assert desk.recalls() == [(0, "alice")]


def test_room_that_is_about_to_come_is_waited_for() -> None:
    desk = Desk(pool_size=2)
    desk.hold(0, 2)
    desk.closing(0)
    desk.wants(1)
    assert desk.recalls() == []
    desk.tick(COMING_S)
    assert desk.recalls() == [(0, "alice")], "but not for ever"


def test_a_server_of_a_pool_that_is_too_big_is_closed_instead_of_moved() -> None:
    desk = Desk(pool_size=2)
    desk.hold(0, 2)
    desk.wants(1)
    (recall,) = desk.take(RECALL)
    desk.limits["pool_size"] = 1
    desk.hear(desk.book.limits_changed(desk.now))
    desk.tick(SURPLUS_S)
    assert desk.offered(recall) == NOBODY
    assert desk.book.limbo(*ALICE) == 1
    desk.gone()
    assert desk.grants() == []


# --- limits that pools share --------------------------------------------------------------------------------------------
SHARED = [({"max_db_connections": 2}, BOB), ({"max_user_connections": 2}, OTHER)]


@pytest.mark.parametrize(("limits", "key"), SHARED)
def test_shared_limits_hold_over_pools_and_workers(limits: dict, key: Key) -> None:
    desk = Desk(pool_size=5, **limits)
    desk.wants(0, 1)
    desk.wants(1, 3, key=key)
    assert desk.grants() == [(0, 1), (1, 1)]


@pytest.mark.parametrize(("limits", "key"), SHARED)
def test_a_pool_without_waiters_has_to_close_a_server_for_another(limits: dict, key: Key) -> None:
    desk = Desk(pool_size=5, **limits)
    desk.hold(0, 1)
    desk.hold(1, 1)
    desk.wants(1, key=key)
    (first,) = desk.take(RECALL)
    assert (first.worker, first.database, first.user, first.close) == (0, *ALICE, True)
    desk.busy(first)
    (second,) = desk.take(RECALL)
    assert second.worker == 1, "it may be the worker itself"
    desk.closing(1, recall=int(second.recall))
    assert [int(order.recall) for order in desk.take(RECALL_OFF)] == [int(first.recall)]
    desk.gone()
    assert desk.grants() == [(1, 1)]


@pytest.mark.parametrize(("limits", "key"), SHARED)
def test_a_pool_with_waiters_gives_way_only_to_one_that_starves(limits: dict, key: Key) -> None:
    desk = Desk(pool_size=5, **limits)
    desk.hold(0, 2)
    desk.wants(0, 4, since=0.5)
    desk.wants(1, key=key)
    desk.tick(STARVED_S - 0.1)
    assert desk.recalls() == []
    desk.tick(0.2)
    (recall,) = desk.take(RECALL)
    assert (recall.worker, recall.user, recall.close, recall.starving) == (0, "alice", True, True)


def test_a_pool_that_has_a_server_does_not_starve() -> None:
    desk = Desk(pool_size=5, max_db_connections=3)
    desk.hold(0, 2)
    desk.hold(1, 1, BOB)
    desk.wants(0, 4, since=5.0)
    desk.take()
    desk.wants(0, 1, key=BOB, since=0.0)
    desk.tick(10.0)
    recalls = desk.take(RECALL)
    assert [(int(order.worker), order.user, order.close) for order in recalls] == [(1, "bob", False)], "it has one, elsewhere"


def test_room_goes_to_the_pool_that_waits_longest() -> None:
    desk = Desk(pool_size=5, max_db_connections=1)
    desk.hold(0, 1)
    desk.wants(0, 1, since=0.3)
    desk.wants(1, 1, key=BOB, since=0.2)
    desk.now += 1.0
    desk.closing(0)
    desk.take()
    desk.gone()
    assert desk.grants() == [(1, 1)]
    assert desk.book.leases(1, *BOB) == 1


def test_two_limits_that_need_a_server_of_each_are_asked_for_only_together() -> None:
    desk = Desk(pool_size=5)
    desk.of_pool[BOB] = {"max_db_connections": 1, "max_user_connections": 1}
    desk.of_pool[ALICE] = {"max_db_connections": 1}
    desk.hold(0, 1, ("other", "bob"))
    desk.hold(0, 1)
    desk.wants(0, 1, since=0.1)  # alice's are busy
    desk.take()
    desk.wants(1, key=BOB)
    assert desk.recalls() == [], "a server of bob's would be closed for nothing"
    desk.wants(0, 0)
    desk.tick()
    (first,) = desk.take(RECALL)
    assert first.close
    desk.closing(0, (first.database, first.user), int(first.recall))
    desk.gone((first.database, first.user))
    (second,) = desk.take(RECALL)
    assert {first.database, second.database} == {"app", "other"}
    desk.closing(0, (second.database, second.user), int(second.recall))
    desk.gone((second.database, second.user))
    assert desk.grants() == [(1, 1)]


def test_a_pool_takes_its_own_servers_from_other_workers_before_it_takes_those_of_other_pools() -> None:
    desk = Desk(pool_size=5, max_db_connections=2)
    desk.hold(0, 1)
    desk.hold(0, 1, BOB)
    desk.wants(1)
    (own,) = desk.take(RECALL)
    assert (own.user, own.close) == ("alice", False)
    desk.busy(own)
    (other,) = desk.take(RECALL)
    assert (other.user, other.close) == ("bob", True)


# --- replication --------------------------------------------------------------------------------------------------------
def test_a_replication_client_counts_in_its_pool_and_has_an_idle_server_closed() -> None:
    desk = Desk(pool_size=2, reserve_pool_size=5, reserve_pool_timeout=0.1)
    desk.hold(0, 1)
    desk.hold(1, 1)
    desk.wants(1, 0, dedicated=1)
    desk.tick(5.0)
    recalls = desk.take(RECALL)
    assert all(order.close for order in recalls)
    assert {int(order.worker) for order in recalls} <= {0, 1}
    desk.closing(int(recalls[0].worker), recall=int(recalls[0].recall))
    desk.gone()
    assert desk.grants() == [(1, 1)]


def test_a_server_that_moves_is_not_for_a_replication_client() -> None:
    desk = Desk(3, pool_size=1)
    desk.hold(0, 1)
    desk.wants(1, 0, dedicated=1, since=0.0)
    desk.wants(2, 1, since=0.5)
    moving = next(order for order in desk.take(RECALL) if not order.close)
    assert desk.offered(moving) == 2


# --- workers that come and go -------------------------------------------------------------------------------------------
def test_the_leases_of_a_dead_worker_are_free_when_its_connections_have_gone() -> None:
    desk = Desk(pool_size=2)
    desk.wants(0, 2)
    desk.wants(1, 2)
    desk.take()
    assert desk.book.leases_of(0) == [("app", "alice", 2)]
    desk.hear(desk.book.left(0, desk.now))
    assert desk.book.limbo(*ALICE) == 2
    assert desk.grants() == []
    desk.gone()
    assert desk.grants() == [(1, 1)]


def test_what_a_dead_worker_said_last_is_not_heard() -> None:
    desk = Desk(pool_size=2)
    desk.wants(0, 1)
    desk.hear(desk.book.left(0, desk.now))
    desk.take()
    desk.wants(0, 5)
    desk.closing(0)
    assert desk.book.offered(0, *ALICE, 0, desk.now) == NOBODY
    desk.hear(desk.book.given_back(0, *ALICE, 1, desk.now))
    desk.hear(desk.book.has_clients(0, *ALICE, True, desk.now))
    assert desk.take() == []
    assert (desk.book.limbo(*ALICE), desk.book.leases(0, *ALICE)) == (1, 0)


def test_a_recall_at_a_worker_that_dies_is_made_elsewhere() -> None:
    desk = Desk(3, pool_size=2)
    desk.hold(0, 1)
    desk.hold(1, 1)
    desk.wants(2)
    desk.take()
    desk.die(0)
    desk.tick(COMING_S)
    assert desk.recalls() == [(1, "alice")]
    desk.wants(2, 0)


def test_what_was_taken_over_counts_beyond_the_limits_and_goes_when_it_is_idle() -> None:
    desk = Desk(pool_size=1, max_db_connections=1)
    desk.hold(0, 2)
    desk.hold(1, 1)
    assert desk.book.account(*ALICE).taken == 3
    desk.tick(SURPLUS_S)
    recalls = desk.take(RECALL)
    assert [order.close for order in recalls] == [True, True]
    for order in recalls:
        desk.closing(int(order.worker), recall=int(order.recall))
        desk.gone()
    assert desk.book.account(*ALICE).taken == 1
    assert desk.take() == []


def test_a_server_that_is_handed_to_the_next_worker_costs_nobody_else_one() -> None:
    desk = Desk(4, pool_size=3)
    desk.hold(0, 2)
    desk.hold(1, 1)
    for _ in range(2):
        desk.hold(2, 1)
        desk.tick(0.05)
        desk.closing(0)
        desk.gone()
        desk.tick(0.2)
    assert desk.take() == []
    assert desk.book.leases(2, *ALICE) == 2
    desk.wants(3)
    recall = desk.take(RECALL)[0]
    desk.hold(1, 1)
    assert desk.offered(recall) == 3, "and it moves as ever meanwhile"


def test_a_smaller_pool_size_has_servers_closed_and_a_bigger_one_lets_them_be() -> None:
    desk = Desk(pool_size=3, reserve_pool_size=1)
    desk.hold(0, 3)
    desk.limits["pool_size"] = 1
    desk.hear(desk.book.limits_changed(desk.now))
    desk.tick(SURPLUS_S)
    (recall,) = desk.take(RECALL)
    assert recall.close
    desk.limits["pool_size"] = 2
    desk.hear(desk.book.limits_changed(desk.now))
    assert [int(order.recall) for order in desk.take(RECALL_OFF)] == [int(recall.recall)]


def test_a_bigger_limit_is_there_at_once() -> None:
    desk = Desk(pool_size=1)
    desk.wants(0, 3)
    desk.take()
    desk.limits["pool_size"] = 3
    desk.hear(desk.book.limits_changed(desk.now))
    assert desk.grants() == [(0, 2)]


def test_orders_say_what_they_are() -> None:
    desk = Desk(pool_size=1)
    desk.wants(0)
    (order,) = desk.take()
    assert repr(order) == "<Order grant 1 for 0 app/alice>"
    assert order.fields() == (GRANT, "app", "alice", 1, False, 0, 0.0, False, False)


# --- clients ------------------------------------------------------------------------------------------------------------
NO_LIMITS = ClientLimits(100, 0, 0)


def test_clients_are_counted_where_they_are_accepted_and_where_they_are_let_in() -> None:
    book = ClientBook()
    assert [book.arrived(worker, 2) for worker in (0, 1, 1)] == [False, False, True]
    assert (book.total, book.of_worker(0), book.of_worker(1)) == (3, 1, 2)
    book.settled(0, "app", "alice")
    assert book.admit(1, "app", "bob", False, NO_LIMITS) == ADMITTED
    assert (book.of_database("app"), book.of_user("alice"), book.of_user("bob")) == (2, 1, 1)
    book.ended(1, "app", "bob")
    book.ended(1, "", "")
    assert (book.total, book.of_database("app"), book.of_user("bob")) == (1, 1, 0)


def test_each_limit_on_clients_is_over_all_workers() -> None:
    book = ClientBook()
    for worker in (0, 1, 0):
        book.arrived(worker, 100)
    book.settled(0, "app", "alice")
    assert book.admit(1, "app", "bob", False, ClientLimits(100, 1, 0)) == OVER_DATABASE
    assert book.admit(1, "other", "alice", False, ClientLimits(100, 0, 1)) == OVER_USER
    assert book.admit(1, "other", "bob", False, ClientLimits(100, 1, 1)) == ADMITTED
    assert book.admit(1, "app", "carol", True, ClientLimits(2, 0, 0)) == OVER_CLIENTS
    assert book.admit(1, "app", "dave", False, ClientLimits(2, 0, 0)) == ADMITTED, "it was there before the others"
    book.ended(0, "app", "alice")
    assert book.admit(1, "app", "carol", True, ClientLimits(2, 0, 0)) == ADMITTED, "another one has left meanwhile"
    assert [REFUSALS[code].message for code in (OVER_CLIENTS, OVER_DATABASE, OVER_USER)] == [
        "no more connections allowed (max_client_conn)",
        "client connections exceeded (max_db_client_connections)",
        "client connections exceeded (max_user_client_connections)",
    ]


def test_the_clients_of_a_dead_worker_are_gone() -> None:
    book = ClientBook()
    for worker in (0, 0, 1):
        book.arrived(worker, 100)
        book.settled(worker, "app", "alice")
    book.left(0)
    assert (book.total, book.of_worker(0), book.of_database("app"), book.of_user("alice")) == (1, 0, 1, 1)
    book.ended(0, "app", "alice")
    book.withdrawn(0, "app", "alice")
    book.settled(0, "app", "alice")
    assert (book.total, book.of_database("app")) == (1, 1)
