"""What is believed to be held after each conversation, in transactions that end one way or the other, and what follows from it.

The real statements, on a real PostgreSQL, are in tests/integration/test_session_state.py.
"""

from __future__ import annotations

import pytest
from fix_sessions import SYNC, Client, World, bind, execute, kinds, parse

from pgpool_proxy import errors
from pgpool_proxy.pool.pool import IGNORE, PIN, RESET, SESSION, STATEMENT, TRANSACTION, WARN
from pgpool_proxy.pool.states import SV_ACTIVE, SV_IDLE, SV_TESTED
from pgpool_proxy.session.session_state import names
from pgpool_proxy.wire import backend, frontend

query = frontend.query


def world_with(mode: int, **limits: object) -> tuple[World, Client]:
    world = World(session_state=mode, pool_size=1, **limits)
    return world, world.client()


def run(world: World, client: Client, *steps: str | bytes) -> None:
    """Each step is sent after the answer to the one before; text is a simple query."""
    for step in steps:
        client.send(query(step.encode()) if isinstance(step, str) else step)
        world.settle()
    client.take()


def held(*steps: str | bytes, **limits: object) -> str:
    """What is held after these; in mode warn, which changes nothing."""
    world, client = world_with(WARN, **limits)
    run(world, client, *steps)
    return names(world.servers[0].session.link.session_state.held)


def prepared(text: bytes) -> list[bytes]:
    """A statement is prepared first, and run in another pipeline."""
    return [parse(b"s", text) + SYNC, bind(b"s") + execute() + SYNC]


def at_once(text: bytes) -> bytes:
    return parse(b"", text) + bind(b"") + execute()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["set a='b'"], "set"),
        (["set local a='b'"], ""),
        (["set application_name='b'"], ""),
        (["listen a"], "listen"),
        (["prepare p"], "prepare"),
        (["load 'x'"], "load"),
        (["select pg_advisory_lock(1)"], "lock"),
        (["select pg_advisory_xact_lock(1)"], ""),
        (["begin; set a='b'; commit"], "set"),
        (["begin", "set a='b'", "commit"], "set"),
        (["begin", "set a='b'", "rollback"], ""),
        (["begin; set a='b'; rollback"], ""),
        (["begin", "set a='b'", "error", "rollback"], ""),
        (["begin", "set a='b'", "error", "commit"], ""),
        (["set a='b'; error"], ""),
        (["begin; set a='b'; commit; error"], "set"),
        (["begin; set a='b'; rollback; set c='d'"], "set"),
        (["begin", "listen a", "error", "rollback; listen b"], "listen"),
        (["begin", "prepare p", "rollback"], "prepare"),
        (["begin", "select pg_advisory_lock(1)", "rollback"], "lock"),
        (["set a='b'", "begin", "reset all", "rollback"], "set"),
        (["set a='b'", "begin", "reset all", "commit"], ""),
        (["set a='b'", "reset all"], ""),
        (["set a='b'; reset all"], ""),
        (["reset all; set a='b'"], "set"),
        (["set a='b'", "reset a"], "set"),  # in doubt
        (["begin", "set a='b'", "reset all", "rollback to s", "commit"], "set"),
        (["prepare p", "deallocate all"], ""),
        (["load 'x'", "set a='b'", "prepare p", "discard all"], "load"),
    ],
)  # fmt: skip
def test_what_is_held_after(steps: list[str | bytes], expected: str) -> None:
    assert held(*steps, pool_mode=SESSION) == expected  # one link for all of them


@pytest.mark.parametrize("max_prepared_statements", [200, 0])
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([at_once(b"set local a='b'") + SYNC], ""),
        ([at_once(b"set a='b'") + SYNC], "set"),
        ([at_once(b"set a='b'") + at_once(b"error") + SYNC], ""),
        ([at_once(b"set a='b'") + SYNC + at_once(b"error") + SYNC], "set"),
        ([at_once(b"set a='b'") + SYNC + query(b"error")], "set"),
        ([query(b"set a='b'") + query(b"error")], "set"),
        ([query(b"error") + query(b"set a='b'")], "set"),
        ([query(b"begin"), at_once(b"set a='b'") + SYNC, at_once(b"rollback") + SYNC], ""),
        (prepared(b"set a='b'"), "set"),
    ],
)
def test_what_is_held_after_pipelines(steps: list[bytes], expected: str, max_prepared_statements: int) -> None:
    assert held(*steps, max_prepared_statements=max_prepared_statements) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([*prepared(b"set local a='b'")], ""),
        ([*prepared(b"select pg_advisory_lock(1)")], "lock"),
        ([parse(b"", b"set local a='b'") + SYNC, bind(b"") + execute() + SYNC], ""),
        ([parse(b"s", b"select pg_advisory_lock(1)") + SYNC], ""),  # prepared, and never run
    ],
)
def test_a_bind_leads_to_the_text_of_its_statement(steps: list[bytes], expected: str) -> None:
    assert held(*steps) == expected


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_text_in_pieces_is_understood(size: int) -> None:
    for step in (query(b"set local a='b'"), parse(b"", b"set local a='b'") + bind(b"") + execute() + SYNC):
        world, client = world_with(WARN)
        client.send(step, size)
        world.settle(size)
        assert names(world.servers[0].session.link.session_state.held) == ""
        assert kinds(client.take()).endswith("CZ")


def test_a_text_longer_than_what_is_looked_at_goes_through() -> None:
    world, client = world_with(WARN)
    client.send(query(b"select " + b"x" * 20_000), 1000)
    world.settle()
    assert kinds(client.take()) == "TDCZ"


def test_ignore_watches_nothing() -> None:
    world, client = world_with(IGNORE)
    run(world, client, "set a='b'")
    link = world.servers[0].session.link
    assert not link.watch
    assert link.session_state.held == 0
    assert world.servers[0].session.state == SV_IDLE
    assert world.pool().stats.states_seen == [0] * 8


# --- warn ---------------------------------------------------------------------------------------------------------------
def test_warn_tells_once_for_each_client_and_kind_and_counts_all() -> None:
    world, client = world_with(WARN)
    other = world.client()
    run(world, client, "set a='b'", "set c='d'", "set e='f'; listen x")
    run(world, other, "set a='b'", "begin", "set c='d'", "rollback")
    numbers = int(client.session.number), int(other.session.number)
    assert world.host.states_seen == [(numbers[0], "set"), (numbers[0], "listen"), (numbers[1], "set")]
    assert world.pool().stats.states_seen == [4, 0, 1, 0, 0, 0, 0, 0]
    assert world.servers[0].session.state == SV_IDLE


def test_warn_speaks_in_session_mode_too() -> None:
    world, client = world_with(WARN, pool_mode=SESSION)
    run(world, client, "set a='b'", parse(b"s", b"set local a='b'") + bind(b"s") + execute() + SYNC)
    assert world.host.states_seen == [(int(client.session.number), "set")]
    assert world.pool().stats.states_seen[0] == 1
    assert world.servers[0].session.client is client.session


@pytest.mark.parametrize("mode", [RESET, PIN])
def test_the_others_have_no_meaning_in_session_mode(mode: int) -> None:
    world, client = world_with(mode, pool_mode=SESSION)
    run(world, client, "set a='b'")
    assert not world.servers[0].session.link.watch
    client.vanish()
    assert world.servers[0].take() == query(b"DISCARD ALL")


# --- reset --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "cleaning"),
    [
        ("set a='b'", b"RESET ALL"),
        ("listen a", b"UNLISTEN *"),
        ("prepare p", b"DEALLOCATE ALL"),
        ("select pg_advisory_lock(1)", b"SELECT pg_catalog.pg_advisory_unlock_all()"),
        ("set role x; listen a", b"RESET SESSION AUTHORIZATION; RESET ROLE; UNLISTEN *"),
    ],
)
def test_reset_cleans_by_what_is_enough_before_anybody_has_the_server(text: str, cleaning: bytes) -> None:
    world, client = world_with(RESET)
    other = world.client()
    server = world.servers[0]
    client.send(query(text.encode()))
    server.answer()
    assert kinds(client.take()).endswith("Z")
    assert server.session.state == SV_TESTED
    assert server.session.client is None
    assert client.session.server is None
    other.send(query(b"select 1"))
    assert server.take() == query(cleaning)  # and nothing of the other client
    server.send(backend.command_complete(b"X") + backend.READY_IDLE)
    world.settle()
    assert kinds(other.take()) == "TDCZ"


def test_reset_leaves_a_clean_server_alone() -> None:
    world, client = world_with(RESET)
    run(world, client, "select 1", "set local a='b'", "begin", "set a='b'", "rollback", "begin; listen x; error", "rollback")
    assert world.servers[0].session.state == SV_IDLE
    assert world.servers[0].backend.seen.count("Q") == 7


def test_reset_that_fails_closes_the_server() -> None:
    world, client = world_with(RESET)
    client.send(query(b"set a='b'"))
    world.servers[0].answer()
    world.servers[0].take()
    world.servers[0].send(backend.error_response(errors.INTERNAL_ERROR) + backend.READY_IDLE)
    assert world.servers[0].is_closed
    assert world.servers[0].reason.message == errors.RESET_FAILED.message


def test_deallocate_all_empties_the_servers_map() -> None:
    world, client = world_with(RESET)
    run(world, client, parse(b"s", b"select 1") + bind(b"s") + execute() + SYNC, "prepare p")
    server = world.servers[0]
    assert len(server.session.statements) == 0
    client.send(bind(b"s") + execute() + SYNC)
    world.settle()
    assert kinds(client.take()) == "2DCZ"


@pytest.mark.parametrize("mode", [RESET, PIN])
def test_a_library_is_never_handed_on(mode: int) -> None:
    world, client = world_with(mode)
    run(world, client, "load 'x'")
    if mode == PIN:
        assert world.servers[0].session.client is client.session
        client.vanish()
    assert world.servers[0].is_closed
    assert world.servers[0].reason is errors.STATE_REMAINS


def test_server_reset_query_always_comes_after_the_cleaning() -> None:
    world, client = world_with(RESET, server_reset_query=b"reset work_mem", server_reset_query_always=True)
    run(world, client, "listen a")
    assert world.servers[0].session.state == SV_IDLE
    assert world.servers[0].backend.seen == ["Q"] * 3


# --- pin ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pool_mode", [TRANSACTION, STATEMENT])
def test_pin_keeps_the_server_until_the_client_gives_back_what_it_has(pool_mode: int) -> None:
    world, client = world_with(PIN, pool_mode=pool_mode)
    other = world.client()
    server = world.servers[0]
    run(world, client, "set a='b'")
    assert server.session.state == SV_ACTIVE
    other.send(query(b"select 1"))
    world.settle()
    assert other.take() == b""
    run(world, client, "select 2", "listen a", "reset all")
    assert other.take() == b""
    run(world, client, "discard all")
    assert kinds(other.take()) == "TDCZ"
    assert server.session.state == SV_IDLE
    run(world, client, "select 3")
    assert server.session.state == SV_IDLE


def test_pin_ends_with_the_client_and_the_server_is_cleaned() -> None:
    world, client = world_with(PIN)
    other = world.client()
    run(world, client, "set a='b'")
    other.send(query(b"select 1"))
    client.vanish()
    server = world.servers[0]
    assert server.session.state == SV_TESTED
    assert server.take() == query(b"RESET ALL")
    server.send(backend.command_complete(b"RESET") + backend.READY_IDLE)
    world.settle()
    assert kinds(other.take()) == "TDCZ"


def test_pin_of_a_client_that_vanishes_in_a_query_cleans_too() -> None:
    world, client = world_with(PIN)
    run(world, client, "set a='b'", "begin")
    client.send(query(b"select 1"))
    client.vanish()
    server = world.servers[0]
    assert world.host.cancelled == [server.session]
    server.answer()
    assert server.take() == query(b"ROLLBACK")
    server.send(server.backend.answer(query(b"rollback")))
    assert server.take() == query(b"RESET ALL")


def doubtful() -> tuple[World, Client]:
    """A client is pinned for a channel and something that is in doubt: the question is under way."""
    world, client = world_with(PIN)
    run(world, client, "listen a")
    client.send(query(b"unlisten a"))
    world.servers[0].answer()
    assert kinds(client.take()) == "CZ"
    return world, client


@pytest.mark.parametrize(("rows", "stays"), [(0, False), (1, True)])
@pytest.mark.parametrize("size", [0, 1])
def test_what_is_in_doubt_is_asked_of_the_server(rows: int, stays: bool, size: int) -> None:
    world, client = doubtful()
    server = world.servers[0]
    assert b"pg_listening_channels" in server.take()
    client.send(query(b"select 1"))
    assert server.take() == b"", "the client's bytes wait"
    row = backend.row_description([("x", 25, -1)]) + backend.data_row([b"1"]) * rows
    server.send(row + backend.command_complete(b"SELECT %d" % rows) + backend.READY_IDLE, size)
    world.settle()
    assert kinds(client.take()) == "TDCZ"
    assert (server.session.state == SV_ACTIVE) is stays
    if not stays:
        assert server.backend.seen[-2:] == ["Q", "Q"], "the server was cleaned, since it was pinned"


def test_a_question_that_fails_leaves_the_client_pinned_and_untold() -> None:
    world, client = doubtful()
    server = world.servers[0]
    server.take()
    server.send(backend.error_response(errors.CANCELED) + backend.READY_IDLE)
    assert client.take() == b""
    run(world, client, "select 1")
    assert server.session.state == SV_ACTIVE
    assert server.backend.seen[-1] == "Q"
    assert not server.take(), "it is not asked again and again"


def test_a_client_that_leaves_during_the_question_leaves_a_clean_server() -> None:
    world, client = doubtful()
    server = world.servers[0]
    client.vanish()
    assert not server.is_closed
    server.take()
    server.send(backend.command_complete(b"SELECT 1") + backend.READY_IDLE)
    assert server.take() == query(b"UNLISTEN *")


def test_a_pinned_client_is_told_what_the_server_says_unasked() -> None:
    world, client = world_with(PIN)
    run(world, client, "listen a")
    world.servers[0].send(backend.message(ord("A"), bytes(4) + b"a\0hello\0"))
    assert kinds(client.take()) == "A"


def test_a_pinned_clients_reset_all_gives_back_its_own_parameters_at_once() -> None:
    world = World(session_state=PIN, pool_size=1)
    client = world.client(application_name="mine")
    run(world, client, "listen a", "set application_name='other'", "reset all")
    assert world.servers[0].session.state == SV_ACTIVE
    assert world.servers[0].session.parameters is client.session.parameters


def test_a_change_of_the_setting_holds_from_the_next_link_on() -> None:
    world, client = world_with(PIN)
    run(world, client, "listen a")
    world.pool().limits.session_state = IGNORE
    run(world, client, "select 1")
    assert world.servers[0].session.state == SV_ACTIVE
    run(world, client, "unlisten *")
    assert world.servers[0].session.state == SV_IDLE
    run(world, client, "listen a")
    assert world.servers[0].session.state == SV_IDLE


# --- what a reset takes with it -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pool_mode", [SESSION, TRANSACTION])
def test_parameters_that_servers_do_not_report_are_set_again_after_a_reset(pool_mode: int) -> None:
    world = World(pool_mode=pool_mode, session_state=RESET, pool_size=1)
    world.context.track_startup_parameters = True
    first, second = world.client(statement_timeout="5s"), None
    run(world, first, "select 1")
    assert world.servers[0].session.parameters.extras == ((b"statement_timeout", b"5s"),)
    run(world, first, "set a='b'")
    first.vanish()
    world.settle()
    second = world.client(statement_timeout="5s")
    second.send(query(b"select 1"))
    assert b"set_config('statement_timeout','5s',false)" in world.servers[0].take()
