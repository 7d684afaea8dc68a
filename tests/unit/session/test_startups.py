"""Startups: what is kept of StartupMessages, so that the same ones need not be read again, and when it does not count."""

from __future__ import annotations

import pytest
from fix_sessions import Client, World, kinds

from pgpool_proxy.session.login_parameters import MAX_KEPT, MAX_STARTUPS
from pgpool_proxy.wire import frontend


def _packet(**parameters: str) -> bytes:
    pairs = [("user", "alice"), ("database", "app"), *parameters.items()]
    return frontend.startup([(name.encode(), value.encode()) for name, value in pairs])


def _welcome(world: World, **parameters: str) -> bytes:
    client = world.connect(**parameters)
    world.settle()
    return client.take()


def test_clients_that_send_the_same_share_what_was_read() -> None:
    world = World()
    first = world.client(application_name="app").session
    second = world.client(application_name="app").session
    other = world.client(application_name="other").session
    assert len(world.context.startups) == 2
    assert second.parameters is first.parameters
    assert (second.user_name, second.database_name) == ("alice", "app")
    assert other.parameters is not first.parameters


def test_each_client_has_a_cancel_key_of_its_own_all_the_same() -> None:
    world = World()
    keys = {world.client().session.cancel_key for _ in range(3)}
    assert len(keys) == 3


def test_settings_that_have_changed_count_for_the_same_message() -> None:
    world = World()
    world.context.ignored_parameters = frozenset({"geqo"})
    assert not world.client(geqo="off").is_closed
    world.context.ignored_parameters = frozenset()
    refused = world.connect(geqo="off")
    assert b"unsupported startup parameter: geqo" in refused.take()
    world.context.track_startup_parameters = True
    assert world.client(geqo="off").session.parameters.extras == ((b"geqo", b"off"),)


def test_an_address_that_belongs_to_the_name_is_each_clients_own() -> None:
    world = World()
    world.client(application_name="app")
    world.context.application_name_add_host = True
    assert b"application_name\0app - 127.0.0.1:1\0" in _welcome(world, application_name="app")
    world.context.application_name_add_host = False
    assert b"application_name\0app\0" in _welcome(world, application_name="app")


def test_what_servers_report_anew_is_told_to_who_sends_the_same_message_again() -> None:
    world = World()
    world.client()
    pool = world.pool()
    assert pool.server_parameters is not None
    pool.server_parameters = {**pool.server_parameters, b"TimeZone": b"Mars/Olympus"}
    assert b"Mars/Olympus" in _welcome(world)


def test_a_spelling_that_was_learned_since_is_told() -> None:
    world = World()
    assert b"DateStyle\0iso, dmy" in _welcome(world, DateStyle="iso, dmy")
    pool = world.pool()
    assert pool.server_parameters is not None
    spellings = world.context.welcome_of(pool, pool.server_parameters).spellings
    asked = world.context.startups.find(_packet(DateStyle="iso, dmy"), world.context)
    assert asked is not None
    spellings.learn(asked.parameters, world.context.tracked.from_reported({b"DateStyle": b"SQL, DMY"}))
    assert b"DateStyle\0SQL, DMY" in _welcome(world, DateStyle="iso, dmy")


def test_no_more_than_so_many_are_kept_and_no_long_ones() -> None:
    world = World()
    world.client(application_name="x" * MAX_KEPT)
    assert len(world.context.startups) == 0
    world.client()
    for number in range(MAX_STARTUPS + 10):
        world.connect(application_name=f"app{number}").vanish()
        assert len(world.context.startups) <= MAX_STARTUPS


@pytest.mark.parametrize("cut", [1, 4, 10, -1])
def test_a_message_that_comes_in_two_pieces_is_the_same(cut: int) -> None:
    world = World()
    world.client()
    packet = _packet()
    client = Client(world)
    world.clients.append(client)
    client.send(packet[:cut])
    client.send(packet[cut:])
    world.settle()
    assert kinds(client.take()).endswith("Z")
    assert len(world.context.startups) == 1


def test_what_is_sent_right_behind_the_message_is_not_lost() -> None:
    world = World()
    world.client()
    client = Client(world)
    world.clients.append(client)
    client.send(_packet() + b"X\0\0\0\4")
    world.settle()
    assert client.session.is_closed
