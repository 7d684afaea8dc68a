"""Requests for peers: who goes, who waits, and for how long."""

from __future__ import annotations

import pytest
from fix_sessions import Client, FakeTransport, World

from pgpool_proxy import errors
from pgpool_proxy.session.peers import MAX_QUEUED, PeerCancel, Peers
from pgpool_proxy.wire import frontend

KEY = bytes((1, 2, 0, 1, 1, 1, 1, 0xF3))
ONWARD = KEY[:7] + b"\xf2"


class Town:
    """A process with peer id 1, and what it was asked to connect to."""

    def __init__(self, size: int = 1, wait_timeout: float = 10.0) -> None:
        self.world = World()
        self.world.keys.peer_id = 1
        self.launched: list[PeerCancel] = []
        self.peers = Peers(self.world.context, self.launched.append)
        self.wait_timeout = wait_timeout
        self.configure({2: ("h", 1, size)})

    def configure(self, peers: dict[int, tuple[str, int, int]]) -> None:
        self.peers.configure(peers, self.wait_timeout, self.world.now)

    def bring(self, key: bytes = KEY) -> Client:
        client = Client(self.world)
        self.peers.forward(client.session, key, self.world.now)
        return client

    def figures(self) -> list[str]:
        return [repr(pool) for pool in self.world.registry.peer_pools.values()]


def test_a_request_goes_as_it_came_with_one_hop_less_and_its_client_waits_for_the_end() -> None:
    town = Town()
    client = town.bring()
    assert town.figures() == ["<Pool peer-2/ cl_waiting_cancel=1 sv_login=1>"]
    (cancel,) = town.launched
    transport = FakeTransport()
    cancel.connected(transport, town.world.now)
    assert transport.take() == frontend.cancel_request(ONWARD)
    assert town.figures() == ["<Pool peer-2/ cl_active_cancel=1 sv_active_cancel=1>"]
    cancel.connection_lost(town.world.now)
    assert client.session.is_closed
    assert town.figures() == ["<Pool peer-2/>"]


def test_the_next_one_goes_when_a_place_is_free_whether_or_not_its_client_still_waits() -> None:
    town = Town(size=2)
    clients = [town.bring() for _ in range(4)]
    assert len(town.launched) == 2
    clients[2].session.connection_lost(town.world.now)
    town.launched[0].disconnect(errors.CONNECT_FAILED, town.world.now)
    assert clients[0].session.is_closed
    assert not clients[1].session.is_closed
    assert [cancel.requester for cancel in town.launched] == [client.session for client in clients[:3]]


def test_who_has_waited_too_long_does_not_go_and_a_silent_peer_is_left() -> None:
    town = Town()
    town.bring()
    town.launched[0].connected(FakeTransport(), town.world.now)
    town.bring()
    town.world.janitor.cancel_wait_timeout = 10.0
    town.world.pass_time(10.0)
    assert len(town.launched) == 1
    assert town.figures() == ["<Pool peer-2/>"]


def test_without_cancel_wait_timeout_it_waits() -> None:
    town = Town(wait_timeout=0.0)
    town.bring()
    town.bring()
    town.world.janitor.cancel_wait_timeout = 0.0
    town.world.pass_time(1000.0)
    town.launched[0].disconnect(errors.CONNECT_FAILED, town.world.now)
    assert len(town.launched) == 2


def test_the_queue_has_an_end() -> None:
    town = Town()
    for _ in range(MAX_QUEUED + 1):
        town.bring()
    late = town.bring()
    assert late.session.is_closed
    assert town.world.registry.peer_pools[2].client_count == MAX_QUEUED + 1


@pytest.mark.parametrize("peer", [0, 1, 3, 0xFFFF])
def test_a_key_of_no_peer_is_dropped(peer: int) -> None:
    town = Town()
    town.configure({1: ("h", 1, 1), 2: ("h", 1, 1)})
    assert town.bring(KEY[:1] + peer.to_bytes(2, "little") + KEY[3:]).session.is_closed
    assert not town.launched


def test_a_request_without_hops_is_dropped() -> None:
    town = Town()
    assert town.bring(KEY[:7] + b"\xf0").session.is_closed
    assert not town.launched


def test_peers_that_are_changed_and_removed() -> None:
    town = Town()
    first, second = town.bring(), town.bring()
    town.configure({2: ("other", 7, 2)})
    assert [(cancel.host, cancel.port) for cancel in town.launched] == [("h", 1), ("other", 7)]
    third = town.bring()
    town.configure({})
    assert all(client.session.is_closed for client in (first, second, third))
    assert len(town.launched) == 2
    assert town.world.registry.peer_pools == {}
    assert town.bring().session.is_closed


def test_the_end_of_the_process_ends_everything() -> None:
    town = Town()
    clients = [town.bring() for _ in range(3)]
    town.peers.close(town.world.now)
    assert all(client.session.is_closed for client in clients)
    assert len(town.launched) == 1
