"""Databases, users, pools: found or made, and clients counted."""

from __future__ import annotations

import pytest
from fix_sessions import Client, World, error_code, kinds

from pgpool_proxy import errors
from pgpool_proxy.pool.registry import Registry


def counts(world: World) -> tuple[int, int, int]:
    """Clients of the process, of app, of alice."""
    registry = world.registry
    return int(registry.client_count), int(registry.databases["app"].client_count), int(registry.user("alice").client_count)


def test_what_is_asked_for_is_made_once() -> None:
    registry: Registry = World().registry
    database = registry.database("app")
    assert database is not None
    assert registry.database("app") is database
    assert registry.user("alice") is registry.user("alice")
    pool = registry.pool(database, "alice")
    assert registry.pool(database, "alice") is pool
    assert database.pools == registry.user("alice").pools == [pool]
    assert registry.database("nowhere") is None


def test_a_forced_user_has_one_pool_for_everybody() -> None:
    world = World(databases={"app": {"forced_user": "owner"}})
    assert world.pool(user="alice") is world.pool(user="bob")
    database = world.registry.databases["app"]
    assert world.registry.pool_of(database, "auth").user.name == "auth"


def test_clients_are_counted_from_login_to_end() -> None:
    world = World()
    client = world.client()
    assert counts(world) == (1, 1, 1)
    early = Client(world)
    assert counts(world) == (2, 1, 1)
    early.vanish()
    client.vanish()
    assert counts(world) == (0, 0, 0)
    world.registry.depart(client.session, world.now)
    assert counts(world) == (0, 0, 0)


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"databases": {"app": {"max_client_connections": 1}}}, "53300", errors.MAX_DB_CLIENT_CONN.message),
        ({"users": {"alice": {"max_client_connections": 1}}}, "53300", errors.MAX_USER_CLIENT_CONN.message),
    ],
)
def test_a_client_too_many_is_refused(keys: dict, code: str, message: str) -> None:
    world = World(**keys)
    first = world.client()
    second = world.connect()
    told = second.take()
    assert error_code(told) == code
    assert message.encode() in told
    assert counts(world) == (1, 1, 1)
    first.vanish()
    assert kinds(world.connect().take()).endswith("Z")


def test_max_client_conn_is_that_of_the_process() -> None:
    world = World()
    world.registry.max_client_conn = 1
    world.client()
    assert error_code(world.connect(user="bob").take()) == errors.MAX_CLIENT_CONN.sqlstate
    assert counts(world) == (1, 1, 1)


def test_everybody_is_found_on_a_walk() -> None:
    world = World()
    client, early = world.client(), Client(world)
    world.client("other", "bob").send(b"")
    assert set(world.registry.all_clients()) == {client.session, early.session, world.clients[1].session}
    assert world.registry.all_servers() == [server.session for server in world.servers]


def test_a_change_of_the_configuration_reaches_every_pool() -> None:
    world = World(pool_size=2)
    pool = world.pool()
    world.limit_keys["pool_size"] = 7
    world.user_keys["alice"] = {"max_connections": 3}
    world.registry.reconfigure()
    assert (pool.limits.pool_size, pool.user.max_connections) == (7, 3)


def test_names_say_who_it_is() -> None:
    world = World()
    world.client()
    assert repr(world.registry.databases["app"]) == "<Database app servers=1 clients=1>"
    assert repr(world.registry.user("alice")) == "<User alice servers=1 clients=1>"
