"""Clients that leave in the middle of something, and those that say Terminate first: what their server is left with."""

from __future__ import annotations

import pytest
from fix_sessions import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    World,
    bind,
    copy_data,
    error_code,
    execute,
    function_call,
    kinds,
    messages,
    parse,
)

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.pool import SESSION, TRANSACTION
from pgpool_proxy.pool.states import SV_IDLE
from pgpool_proxy.wire import backend, frontend

query = frontend.query
SELECT = query(b"select 1")
BEGIN = query(b"begin")
ANSWER = "TDCZ"
PIPELINE = parse(b"", b"select 1") + bind(b"") + execute()


def is_clean(world: World) -> bool:
    """The one server is there for the next client."""
    after = world.client()
    after.send(SELECT)
    world.settle()
    assert kinds(after.take()) == ANSWER
    assert len(world.servers) == 1
    after.vanish()
    world.settle()
    return world.servers[0].session.state == SV_IDLE and world.servers[0].backend.status == b"I"


# --- without a word -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [query(b"copy in"), parse(b"", b"copy in") + bind(b"") + execute() + FLUSH])
@pytest.mark.parametrize("sync", [b"", SYNC])
def test_a_copy_in_that_begins_after_its_client_has_left_is_failed(data: bytes, sync: bytes) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(data + (sync if data[:1] == b"P" else b""))
    client.vanish()
    world.settle()
    assert world.servers[0].backend.rows == 0
    assert is_clean(world)


def test_a_copy_in_that_was_ended_ahead_is_not_failed() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(query(b"copy in") + copy_data() + COPY_DONE)
    client.vanish()
    world.settle()
    assert "f" not in world.servers[0].backend.seen
    assert is_clean(world)


@pytest.mark.parametrize("last", [SELECT, function_call(), SELECT + SELECT])
def test_a_query_that_the_server_skips_after_an_error_is_followed_by_a_sync(last: bytes) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(bind(b"x") + last)
    client.vanish()
    world.settle()
    assert is_clean(world)


@pytest.mark.parametrize("mode", [TRANSACTION, SESSION])
@pytest.mark.parametrize("answered", [False, True])
def test_a_pipeline_without_its_sync_is_rolled_back_and_not_committed(mode: int, answered: bool) -> None:
    world = World(pool_mode=mode, pool_size=1)
    client = world.client()
    client.send(PIPELINE + FLUSH)
    server = world.servers[0]
    if answered:
        world.settle()
        assert kinds(client.take()) == "12DC"
        client.vanish()
    else:
        answers = server.backend.answer(server.take())
        client.vanish()
        assert kinds(server.take()) == "H"
        server.send(answers, 1)
    assert [body for kind, body in messages(server.transport.sent) if kind == "Q"] == [b"ROLLBACK\0"]
    assert kinds(server.transport.sent) == "QS"


def test_a_pipeline_that_failed_in_a_transaction_is_brought_back() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    client.send(bind(b"x") + FLUSH)
    world.settle()
    client.vanish()
    world.settle()
    assert is_clean(world)


def test_a_server_whose_client_leaves_while_its_parameters_are_set_has_no_client() -> None:
    world = World(pool_size=1)
    client = world.client(application_name="mine")
    client.send(SELECT)
    server = world.servers[0].session
    client.vanish()
    assert server.client is None
    world.settle()
    assert is_clean(world)


def test_parameters_that_are_not_reported_are_known_of_a_server_whose_client_left_while_they_were_set() -> None:
    world = World(pool_size=1)
    world.context.track_startup_parameters = True
    client = world.connect(statement_timeout="5s")
    world.settle()
    plain = world.client()
    plain.send(SELECT)
    world.settle()
    client.send(SELECT)
    assert b"statement_timeout" in world.servers[0].transport.sent
    client.vanish()
    world.settle()
    plain.send(SELECT)
    assert b"RESET statement_timeout" in world.servers[0].transport.sent


# --- with Terminate -----------------------------------------------------------------------------------------------------
TO_THE_END = {
    "a query": (SELECT, ANSWER),
    "queries": (SELECT * 3, ANSWER * 3),
    "a function call": (function_call(), "VZ"),
    "a pipeline": (PIPELINE + SYNC, "12DCZ"),
    "a statement with a name": (parse(b"s", b"select 1") + bind(b"s") + execute() + SYNC, "12DCZ"),
    "COPY in that is ended": (query(b"copy in") + copy_data() + COPY_DONE, "GCZ"),
    "a pipeline behind a query": (SELECT + PIPELINE, ANSWER),
    "an error": (query(b"error"), "EZ"),
}


@pytest.mark.parametrize("mode", [TRANSACTION, SESSION])
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", TO_THE_END)
def test_a_client_that_says_terminate_behind_its_requests_gets_their_answers(name: str, size: int, mode: int) -> None:
    data, answers = TO_THE_END[name]
    world = World(pool_mode=mode, pool_size=1)
    client = world.client()
    client.send(data + TERMINATE + b"what follows is not read", size)
    assert not client.is_closed
    assert world.host.cancelled == []
    world.settle(size)
    assert kinds(client.take()).startswith(answers)
    assert client.is_closed
    assert client.reason is errors.CLIENT_CLOSE_REQUEST
    if data[-5:] == SYNC or (data[:1] != b"P" and PIPELINE not in data):  # without its Sync a pipeline comes to nothing
        assert world.host.cancelled == []
    assert is_clean(world)


def test_a_client_that_says_terminate_and_is_gone_is_not_waited_for() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT + TERMINATE)
    client.vanish()
    assert world.host.cancelled == [world.servers[0].session]
    world.settle()
    assert is_clean(world)


def test_a_transaction_that_is_open_at_terminate_is_rolled_back() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN + SELECT + TERMINATE)
    world.settle()
    assert kinds(client.take()) == "CZ" + ANSWER
    assert client.is_closed
    assert is_clean(world)


@pytest.mark.parametrize("data", [query(b"copy in") + TERMINATE, PIPELINE + TERMINATE, PIPELINE + FLUSH + TERMINATE])
def test_terminate_in_the_middle_of_something_ends_it(data: bytes) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(data)
    world.settle()
    assert client.is_closed
    assert is_clean(world)


def test_a_client_that_waits_says_terminate() -> None:
    world = World(pool_size=1)
    busy = world.client()
    busy.send(BEGIN)
    world.settle()
    client = world.client()
    client.send(SELECT + TERMINATE)
    busy.send(query(b"commit"))
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert client.is_closed
    assert is_clean(world)


# --- a broken message behind good ones ----------------------------------------------------------------------------------
BROKEN = [
    b"Q\0\0\0\0",
    b"Q\0\0\0\3",
    b"Q\xff\xff\xff\xff",
    b"!\0\0\0\4",
    b"P\0\0\0\x0a" + b"no end",
    b"B\0\0\x40\x00" + b"x" * 9000,
    b"C\0\0\x40\x00S",
]


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("before", [SELECT, parse(b"s", b"select 1") + SYNC, PIPELINE + SYNC, PIPELINE])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_stands_before_a_broken_message_reaches_the_server(broken: bytes, before: bytes, size: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(before + broken, size)
    world.settle(size)
    if broken[:1] in b"PBC" and before == PIPELINE + SYNC and not client.is_closed:
        world.settle()
    assert error_code(client.take()) == "08P01"
    assert client.is_closed
    assert is_clean(world)
    assert world.servers[0].backend.seen[0] == chr(before[0])


def test_a_query_that_is_not_allowed_takes_nothing_with_it() -> None:
    world = World(pool_size=1)
    world.context.disable_pqexec = True
    client = world.client()
    client.send(PIPELINE + SYNC + SELECT)
    world.settle()
    assert error_code(client.take()) == errors.PQEXEC_DISALLOWED.sqlstate
    world.context.disable_pqexec = False
    assert is_clean(world)


def test_a_broken_message_of_a_client_that_has_just_logged_in_is_not_its_servers_fault() -> None:
    world = World(pool_size=1)
    client = world.connect()
    client.send(b"d\0\0\0\0")  # in no server's hands: its first one is still opening
    world.settle()
    assert client.is_closed
    assert kinds(client.take()).endswith("ZE")
    assert is_clean(world)


# --- what a server said before it broke the protocol ----------------------------------------------------------------------
@pytest.mark.parametrize("broken", [b"Z\0\0\0\5X", b"2\0\0\0\4", b"D\0\0\0\0", b"Z\xff\xff\xff\xff"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_client_gets_what_its_server_said_before_it_broke_the_protocol(broken: bytes, size: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT + SELECT)
    server = world.servers[0]
    answer = server.backend.answer(SELECT)
    server.send(answer + broken, size)
    assert kinds(client.take()) == ANSWER + "E"
    assert client.is_closed
    assert server.is_closed


def test_statement_mode_refuses_a_transaction_behind_the_answers_that_came_with_it() -> None:
    world = World(pool_mode=2, pool_size=1)
    client = world.client()
    client.send(SELECT + BEGIN)
    world.settle()
    answer = client.take()
    assert kinds(answer) == ANSWER + "CE"
    assert error_code(answer) == errors.NO_TRANSACTION_BLOCKS.sqlstate


def test_half_a_message_is_not_taken_for_a_whole_one_when_the_server_breaks_off() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT)
    server = world.servers[0]
    server.send(backend.error_response(Report("x" * 100, "42601", "ERROR"))[:50])
    server.die()
    assert kinds(client.take()) == "E"
    assert client.is_closed


# --- DEALLOCATE ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cut", range(1, 18))
def test_a_deallocate_that_is_cut_anywhere_is_understood(cut: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(parse(b"s", b"select 1") + SYNC)
    world.settle()
    client.take()
    data = query(b"deallocate s")
    client.send(data[:cut])
    client.send(data[cut:])
    world.settle()
    assert kinds(client.take()) == "CZ"


def test_a_parse_without_a_body_waits_for_nothing() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(b"P\0\0\0\4")
    assert kinds(world.servers[0].transport.sent) == "P"
