"""usage.py: what each client has used, over periods."""

from __future__ import annotations

from fix_sessions import Client, World

from pgpool_proxy.session.usage import NOTHING, end_period, used_lately
from pgpool_proxy.wire.frontend import query


def lately(world: World, client: Client) -> tuple[int, ...]:
    return used_lately(client.session, world.now)


def test_who_has_asked_nothing_has_used_nothing() -> None:
    world = World()
    client = world.client()
    assert lately(world, client) == NOTHING
    end_period(client.session, world.now)
    assert lately(world, client) == NOTHING
    assert client.session.use is None


def test_counts_span_the_last_whole_period_and_what_came_since() -> None:
    world = World()
    client = world.client()
    for _ in range(3):
        client.send(query(b"select 1"))
        world.settle()
    size = len(query(b"select 1"))
    assert lately(world, client)[1:4] == (3, 3, 3 * size)
    end_period(client.session, world.now)
    client.send(query(b"select 1"))
    world.settle()
    assert lately(world, client)[1:4] == (4, 4, 4 * size)
    end_period(client.session, world.now)
    assert lately(world, client)[1:4] == (1, 1, size)
    end_period(client.session, world.now)
    assert lately(world, client) == NOTHING


def test_a_transaction_longer_than_a_period_takes_no_more_than_each() -> None:
    world = World()
    client = world.client()
    client.send(query(b"begin"))
    world.settle()
    world.now += 10
    assert lately(world, client)[0] == 10_000_000
    for _ in range(3):
        end_period(client.session, world.now)
        world.now += 10
    assert lately(world, client)[0] == 20_000_000
    client.send(query(b"commit"))
    world.settle()
    assert lately(world, client)[0] == 20_000_000
    assert lately(world, client)[2] == 1
    assert client.session.use is not None
    assert client.session.use.totals()[0] == 40_000_000
