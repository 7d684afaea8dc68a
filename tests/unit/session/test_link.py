"""A client and a server joined: what goes through, what is put in and left out, and when the server is free.

CONVERSATIONS are had twice: with the small PostgreSQL of fix_sessions itself, and through sessions, pool and link. The
client must not see a difference, however its bytes and the answers are chopped.
"""

from __future__ import annotations

import pytest
from fix_sessions import (
    COPY_DONE,
    COPY_FAIL,
    FLUSH,
    SYNC,
    TERMINATE,
    Backend,
    Client,
    Server,
    World,
    bind,
    close,
    copy_data,
    describe,
    error_code,
    execute,
    function_call,
    kinds,
    messages,
    parse,
)

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.pool import IGNORE, PIN, RESET, SESSION, STATEMENT, TRANSACTION, WARN
from pgpool_proxy.pool.states import SV_ACTIVE, SV_IDLE, SV_TESTED
from pgpool_proxy.session.cancel import CancelSession
from pgpool_proxy.session.prepared_statements import NAME_COST, STATEMENT_COST, ClientStatements, Statements
from pgpool_proxy.session.server_session import CANCEL_GRACE_S
from pgpool_proxy.wire import backend, frontend

query = frontend.query
SELECT = query(b"select 1")
BEGIN = query(b"begin")
COMMIT = query(b"commit")
ANSWER = "TDCZ"

#: name -> what the client sends; a list is sent in steps, each after the answer to the one before
CONVERSATIONS: dict[str, bytes | list[bytes]] = {
    "a query": SELECT,
    "an empty query": query(b""),
    "several statements in one query": query(b"select 1; select 2"),
    "an error": query(b"error"),
    "an error among several statements": query(b"select 1; error; select 2"),
    "queries sent ahead": SELECT + query(b"error") + SELECT,
    "a transaction": [BEGIN, SELECT, COMMIT],
    "a failed transaction": [BEGIN, query(b"error"), SELECT, query(b"rollback")],
    "COPY out": query(b"copy out") + SELECT,
    "COPY in": [query(b"copy in"), copy_data() * 3 + COPY_DONE, SELECT],
    "COPY in sent ahead": query(b"copy in") + copy_data() * 3 + COPY_DONE + SELECT,
    "COPY in that the client fails": [query(b"copy in"), copy_data() + COPY_FAIL, SELECT],
    "COPY in a transaction": [BEGIN, query(b"copy in") + copy_data() + COPY_DONE, COMMIT],
    "a function call": function_call() + SELECT,
    "a function call in a failed transaction": [BEGIN, query(b"error"), function_call(), query(b"rollback")],
    "the unnamed statement": parse(b"", b"select 1") + bind(b"") + describe(b"", b"P") + execute() + SYNC,
    "the unnamed statement described": parse(b"", b"select 1") + describe(b"") + bind(b"") + execute() + SYNC,
    "only a Sync": SYNC,
    "only Syncs": SYNC * 3,
    "a Flush in the middle": parse(b"", b"select 1") + FLUSH + bind(b"") + execute() + FLUSH + SYNC,
    "a named statement": parse(b"s", b"select 1") + bind(b"s") + execute() + SYNC,
    "a named statement used later": [
        parse(b"s", b"select 1") + SYNC,
        bind(b"s") + execute() + SYNC,
        bind(b"s") + execute() + SYNC,
    ],
    "a named statement described": [parse(b"s", b"select 1") + describe(b"s") + SYNC, describe(b"s") + SYNC],
    "two names of one text": parse(b"a", b"select 1") + parse(b"b", b"select 1") + bind(b"b") + execute() + SYNC,
    "one name of two texts": [
        parse(b"s", b"select 1") + close(b"s") + parse(b"s", b"select 2") + SYNC,
        bind(b"s") + execute() + SYNC,
    ],
    "a Close of what is there and what is not": parse(b"s", b"select 1") + SYNC + close(b"s") + close(b"t") + SYNC,
    "a statement that was closed": [parse(b"s", b"select 1") + SYNC, close(b"s") + SYNC, bind(b"s") + SYNC],
    "a name that is taken": [parse(b"s", b"select 1") + SYNC, parse(b"s", b"select 2") + SYNC, bind(b"s") + execute() + SYNC],
    "a name that was never prepared": bind(b"nothing") + execute() + SYNC + SELECT,
    "a named portal": [BEGIN, parse(b"", b"select 1") + bind(b"", b"p") + SYNC, execute(b"p") + close(b"s") + SYNC, COMMIT],
    "several Syncs in one pipeline": (parse(b"", b"select 1") + bind(b"") + execute() + SYNC) * 4,
    "a name behind an answer that nobody asks for yet": [
        BEGIN,
        parse(b"s", b"select 1") + bind(b"s", b"p") + SYNC,
        parse(b"t", b"select 2") + SYNC + execute(b"p") + bind(b"t") + execute() + SYNC,
        COMMIT,
    ],
    "an error in mid-pipeline": parse(b"", b"error") + bind(b"") + execute() + bind(b"") + execute() + SYNC + SELECT,
    "an error and then another pipeline": (
        parse(b"a", b"error") + bind(b"a") + execute() + parse(b"b", b"select 2") + SYNC + parse(b"b", b"select 3") + SYNC
    ),
    "a syntax error": parse(b"s", b"syntax error")
    + bind(b"s")
    + execute()
    + SYNC
    + parse(b"s", b"select 1")
    + bind(b"s")
    + SYNC,
    "an error, and names after it": [
        parse(b"a", b"select 1") + SYNC,
        bind(b"x") + parse(b"b", b"select 1") + close(b"a") + SYNC,
        bind(b"a") + execute() + SYNC,
        bind(b"b") + execute() + SYNC,
    ],
    "a simple query behind an open pipeline": parse(b"", b"select 1") + bind(b"") + execute() + SELECT,
    "a query that is skipped after an error": bind(b"x") + SELECT + SYNC,
    "extended COPY in": [parse(b"", b"copy in") + bind(b"") + execute() + FLUSH, copy_data() + COPY_DONE + SYNC],
    "extended COPY in with its Sync ahead": parse(b"", b"copy in")
    + bind(b"")
    + execute()
    + SYNC
    + copy_data()
    + COPY_DONE
    + SYNC,
    "extended COPY in that fails": parse(b"", b"copy in") + bind(b"") + execute() + copy_data() + COPY_FAIL + SYNC + SELECT,
    "extended COPY out": parse(b"", b"copy out") + bind(b"") + execute() + SYNC,
    "late copy data": copy_data() + COPY_DONE + SELECT,
    "DEALLOCATE ALL": [
        parse(b"s", b"select 1") + SYNC,
        query(b"deallocate all"),
        bind(b"s") + SYNC,
        parse(b"s", b"select 2") + SYNC,
    ],
    "DEALLOCATE of a name": [
        parse(b"s", b"select 1") + SYNC,
        query(b"deallocate s"),
        bind(b"s") + SYNC,
        parse(b"s", b"select 2") + bind(b"s") + execute() + SYNC,
    ],
    "DEALLOCATE of a name that is sent ahead": parse(b"s", b"select 1")
    + SYNC
    + query(b"deallocate s")
    + parse(b"s", b"select 2")
    + bind(b"s")
    + execute()
    + SYNC,
    "DEALLOCATE of a name behind an open pipeline": parse(b"s", b"select 1") + query(b"deallocate s") + bind(b"s") + SYNC,
    "DEALLOCATE ends the unnamed statement": [
        parse(b"s", b"select 1") + parse(b"", b"select 2") + SYNC,
        query(b"deallocate s"),
        bind(b"") + SYNC,
    ],
    "DEALLOCATE of a name in a pipeline": [
        parse(b"s", b"select 1") + SYNC,
        parse(b"", b"deallocate s") + describe(b"") + bind(b"") + describe(b"", b"P") + execute() + SYNC,
        bind(b"s") + SYNC,
        parse(b"s", b"select 2") + bind(b"s") + execute() + SYNC,
        parse(b"", b"deallocate s") + bind(b"") + execute() + parse(b"s", b"select 3") + bind(b"s") + execute() + SYNC,
        parse(b"", b"deallocate s") + bind(b"") + execute() + SYNC + parse(b"", b"deallocate s") + bind(b"") + execute() + SYNC,
        SELECT,
    ],
    "DEALLOCATE of a name, bound in a later round": [
        parse(b"s", b"select 1") + SYNC,
        parse(b"", b"deallocate s") + SYNC,
        bind(b"") + execute() + SYNC,
        bind(b"s") + SYNC,
    ],
    "DEALLOCATE of a name that is discarded": [
        parse(b"s", b"select 1") + SYNC,
        bind(b"x") + parse(b"", b"deallocate s") + bind(b"") + execute() + SYNC,
        parse(b"", b"deallocate s") + bind(b"x") + execute() + SYNC,
        bind(b"s") + execute() + SYNC,
        BEGIN + query(b"error"),
        parse(b"", b"deallocate s") + bind(b"") + execute() + SYNC,
        query(b"deallocate s"),
        query(b"rollback"),
        bind(b"s") + execute() + SYNC,
    ],
    "DISCARD ALL in a pipeline": [
        parse(b"s", b"select 1") + SYNC,
        parse(b"", b"discard all") + bind(b"") + execute() + SYNC,
        bind(b"s") + SYNC,
    ],
    "statements in a failed transaction": [
        parse(b"s", b"select 1") + SYNC,
        BEGIN,
        query(b"error"),
        bind(b"s") + execute() + SYNC,
        parse(b"t", b"select 1") + SYNC,
        query(b"rollback"),
        bind(b"t") + SYNC,
        bind(b"s") + execute() + SYNC,
    ],
    "a transaction by named statements": [
        parse(b"b", b"begin") + parse(b"c", b"commit") + parse(b"s", b"select 1") + SYNC,
        bind(b"b") + execute() + bind(b"s") + execute() + SYNC,
        bind(b"c") + execute() + SYNC,
    ],
    "a setting": [query(b"set TimeZone='Asia/Tokyo'"), SELECT],
}


def steps(conversation: bytes | list[bytes]) -> list[bytes]:
    return conversation if isinstance(conversation, list) else [conversation]


def by_postgresql(conversation: bytes | list[bytes]) -> list[bytes]:
    server = Backend()
    return [server.answer(step) for step in steps(conversation)]


def through(world: World, client: Client, conversation: bytes | list[bytes], size: int, back: int, eager: bool) -> list[bytes]:
    """What the client gets: its bytes in chunks of `size`, the answers in chunks of `back`, and `eager`: at once."""
    answers = []
    for step in steps(conversation):
        if eager and size:
            for at in range(0, len(step), size):
                client.send(step[at : at + size])
                world.settle(back)
        else:
            client.send(step, size)
        world.settle(back)
        answers.append(client.take())
    return answers


WAYS = [(0, 0, False), (1, 0, False), (1, 1, True), (7, 0, True), (0, 1, False), (3, 5, True)]


@pytest.mark.parametrize("mode", [SESSION, TRANSACTION])
@pytest.mark.parametrize(("size", "back", "eager"), WAYS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_client_sees_what_postgresql_would_have_said(name: str, size: int, back: int, eager: bool, mode: int) -> None:
    conversation = CONVERSATIONS[name]
    world = World(pool_mode=mode, pool_size=1)
    client = world.client()
    got = through(world, client, conversation, size, back, eager)
    assert [messages(one) for one in got] == [messages(one) for one in by_postgresql(conversation)]
    server = world.servers[0]
    assert not server.is_closed
    assert not client.is_closed
    assert server.session.link.outstanding.is_empty
    if mode == TRANSACTION:
        assert server.session.state == SV_IDLE, "the server is not given back"


#: what leaves something behind, and what follows right behind it
STATES: dict[str, bytes | list[bytes]] = {
    "settings": [query(b"set a='b'"), SELECT, query(b"reset a"), SELECT, query(b"reset all"), SELECT],
    "settings in pipelines": parse(b"", b"set a='b'") + bind(b"") + execute() + SYNC + SELECT + query(b"reset a") + SELECT,
    "doubt and a request": query(b"listen a") + query(b"unlisten a") + SELECT + parse(b"", b"select 2") + bind(b"") + SYNC,
    "doubt and COPY": [query(b"listen a"), query(b"unlisten a") + query(b"copy in") + copy_data() + COPY_DONE],
    "SQL's PREPARE in a transaction": [BEGIN, query(b"prepare p"), query(b"error"), query(b"rollback"), SELECT],
    "locks": [
        parse(b"s", b"select pg_advisory_lock(1)") + parse(b"t", b"select pg_advisory_unlock(1)") + SYNC,
        bind(b"s") + execute() + SYNC,
        bind(b"t") + execute() + SYNC + SELECT,
    ],
}


@pytest.mark.parametrize("session_state", [WARN, RESET, PIN])
@pytest.mark.parametrize(("size", "back", "eager"), WAYS)
@pytest.mark.parametrize("name", [*CONVERSATIONS, *STATES])
def test_it_is_the_same_when_session_state_watches(name: str, size: int, back: int, eager: bool, session_state: int) -> None:
    conversation = {**CONVERSATIONS, **STATES}[name]
    world = World(pool_size=1, session_state=session_state)
    client = world.client()
    got = through(world, client, conversation, size, back, eager)
    assert [messages(one) for one in got] == [messages(one) for one in by_postgresql(conversation)]
    assert not client.is_closed
    client.vanish()
    world.settle()
    server = world.servers[0]
    assert not server.is_closed
    assert server.session.link.outstanding.is_empty
    assert server.session.state == SV_IDLE, "the server is not given back"


@pytest.mark.parametrize(("size", "back", "eager"), WAYS[:3])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_it_is_the_same_when_every_step_meets_another_server(name: str, size: int, back: int, eager: bool) -> None:
    conversation = CONVERSATIONS[name]
    world = World(pool_size=1, server_lifetime=0.0)  # each server is used once
    client = world.client()
    got = through(world, client, conversation, size, back, eager)
    assert [messages(one) for one in got] == [messages(one) for one in by_postgresql(conversation)]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_two_clients_that_take_turns_do_not_see_each_other(name: str) -> None:
    conversation = CONVERSATIONS[name]
    world = World(pool_size=2)
    clients = [world.client(), world.client()]
    got: list[list[bytes]] = [[], []]
    for step in steps(conversation):
        for client in clients:
            client.send(step)
        world.settle()
        for client, answers in zip(clients, got, strict=True):
            answers.append(client.take())
    expected = [messages(one) for one in by_postgresql(conversation)]
    for answers in got:
        assert [messages(one) for one in answers] == expected


@pytest.mark.parametrize(
    ("name", "session_state"),
    [*((name, IGNORE) for name in CONVERSATIONS), *((name, mode) for name in STATES for mode in (RESET, PIN))],
)
def test_a_client_may_vanish_at_any_point_and_the_next_finds_a_clean_server(name: str, session_state: int) -> None:
    conversation = {**CONVERSATIONS, **STATES}[name]
    for sent in range(1, len(b"".join(steps(conversation))) + 1):
        world = World(pool_size=1, session_state=session_state)
        client = world.client()
        left = sent
        for step in steps(conversation):
            client.send(step[:left])
            left -= len(step)
            if left <= 0:
                break
            world.settle()
        client.vanish()
        world.settle()
        after = world.client()
        after.send(SELECT)
        world.settle()
        if world.pool().waiting.count:  # a server that cannot be brought back is closed in time
            world.pass_time(CANCEL_GRACE_S)
            world.settle()
        assert kinds(after.take()) == ANSWER, f"after {sent} bytes"
        assert world.pool().server_count == 1
        server = world.open_servers[0]
        assert server.backend.status == b"I"
        assert server.session.link.outstanding.is_empty


# --- named statements ---------------------------------------------------------------------------------------------------
def two_servers(world: World) -> tuple[Server, Server]:
    """Two idle servers, the first of which is used next."""
    clients = [world.client(), world.client()]
    for client in clients:
        client.send(BEGIN)
        world.settle()
    held = [next(one for one in world.servers if one.session is client.session.server) for client in clients]
    for client in reversed(clients):
        client.send(COMMIT)
        world.settle()
        client.vanish()
    return held[0], held[1]


def held_by_another(world: World) -> Client:
    other = world.client()
    other.send(BEGIN)
    world.settle()
    return other


def test_a_statement_is_prepared_on_the_server_that_lacks_it_and_the_client_does_not_see() -> None:
    world = World(pool_size=2)
    first, second = two_servers(world)
    client = world.client()
    client.send(parse(b"s", b"select 1") + SYNC)
    world.settle()
    assert kinds(client.take()) == "1Z"
    held_by_another(world)  # takes the first
    client.send(bind(b"s") + execute() + SYNC)
    assert kinds(second.transport.sent) == "PBES"
    world.settle()
    assert kinds(client.take()) == "2DCZ"
    assert list(first.backend.statements) == list(second.backend.statements) == [b"PGPOOL_1"]


def test_a_parse_of_what_the_server_has_is_answered_in_its_place() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    one.send(parse(b"s", b"select 1") + SYNC)
    world.settle()
    pipeline = parse(b"", b"select 2") + bind(b"") + parse(b"mine", b"select 1") + bind(b"mine") + execute() + SYNC
    other.send(pipeline)
    server = world.servers[0]
    assert kinds(server.transport.sent) == "PBBES"
    world.settle(1)
    assert kinds(other.take()) == "1212DCZ"


def test_a_parse_alone_of_what_the_server_has_costs_no_round_trip() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    one.send(parse(b"s", b"select 1") + SYNC)
    world.settle()
    other.send(parse(b"mine", b"select 1") + FLUSH)
    assert kinds(other.take()) == "1"


def test_statements_over_the_limit_are_closed_and_nobody_sees() -> None:
    world = World(pool_size=1, max_prepared_statements=2)
    client = world.client()
    for at in range(5):
        client.send(parse(b"s%d" % at, b"select %d" % at) + SYNC)
        world.settle()
        assert kinds(client.take()) == "1Z"
        assert len(world.servers[0].backend.statements) <= 2
    for at in range(5):
        client.send(bind(b"s%d" % at) + execute() + SYNC)
        world.settle()
        answer = client.take()
        assert kinds(answer) == "2DCZ"
        assert b"%d" % at in dict(messages(answer))["D"]
    assert world.pool().stats.server_parse_count > world.pool().stats.client_parse_count


def test_an_unnamed_statement_is_sent_again_after_its_sync() -> None:
    world = World(pool_size=2)
    two_servers(world)
    client = world.client()
    client.send(parse(b"", b"select 7") + SYNC)
    world.settle()
    assert kinds(client.take()) == "1Z"
    held_by_another(world)
    client.send(bind(b"") + execute() + SYNC)
    world.settle()
    answer = client.take()
    assert kinds(answer) == "2DCZ"
    assert b"7" in dict(messages(answer))["D"]


def test_nobody_meets_the_unnamed_statement_of_another() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    one.send(parse(b"", b"select 7") + SYNC)
    world.settle()
    other.send(bind(b"") + execute() + SYNC)
    world.settle()
    assert error_code(other.take()) == "26000"


def test_nobody_meets_the_unnamed_statement_of_another_who_has_sent_deallocate() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    one.send(parse(b"s", b"select 1") + parse(b"", b"select 7") + SYNC)
    world.settle()
    one.send(query(b"deallocate s"))
    other.send(bind(b"") + execute() + SYNC)
    world.settle()
    assert error_code(other.take()) == "26000"


def test_deallocate_of_one_client_leaves_the_statement_to_another() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    for client in (one, other):
        client.send(parse(b"s", b"select 1") + SYNC)
        world.settle()
        client.take()
    one.send(parse(b"", b"deallocate s") + bind(b"") + execute() + SYNC)
    world.settle()
    assert kinds(one.take()) == "12CZ"
    before = world.servers[0].backend.seen.count("P")
    other.send(bind(b"s") + execute() + SYNC)
    world.settle()
    assert kinds(other.take()) == "2DCZ"
    assert world.servers[0].backend.seen.count("P") == before


def test_deallocate_all_of_one_client_costs_another_nothing_but_a_parse() -> None:
    world = World(pool_size=1)
    one, other = world.client(), world.client()
    for client in (one, other):
        client.send(parse(b"s", b"select 1") + SYNC)
        world.settle()
        client.take()
    one.send(query(b"deallocate all"))
    world.settle()
    assert world.servers[0].backend.statements == {}
    other.send(bind(b"s") + execute() + SYNC)
    world.settle()
    assert kinds(other.take()) == "2DCZ"
    one.take()
    one.send(bind(b"s") + SYNC)
    world.settle()
    assert error_code(one.take()) == "26000"


def test_statements_of_a_client_and_a_server_that_are_gone_are_forgotten() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(parse(b"s", b"select 1") + parse(b"t", b"select 2") + SYNC)
    world.settle()
    client.vanish()
    assert len(world.context.statements) == 2
    world.servers[0].die()
    assert len(world.context.statements) == 0


@pytest.mark.parametrize("cut", [1, 5, 8, 20])
def test_statements_of_a_pipeline_that_was_never_finished_are_forgotten(cut: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    data = parse(b"s", b"select 1") + bind(b"s") + execute() + close(b"s") + parse(b"t", b"error") + SYNC
    client.send(data[:-cut])
    client.vanish()
    world.settle()
    for server in world.open_servers:
        server.die()
    assert len(world.context.statements) == 0


def test_who_begins_a_message_that_is_too_large_for_postgresql_loses_its_server_and_nobody_else_does() -> None:
    world = World(pool_size=2)
    client, other = world.client(), world.client()
    other.send(query(b"begin"))
    world.settle()
    client.send(b"Q" + (1 << 30).to_bytes(4) + bytes(10))
    world.settle()
    assert client.is_closed
    assert error_code(client.take()) == "08006"
    assert not other.is_closed
    assert len(world.open_servers) == 1


# --- how much a client may have -------------------------------------------------------------------------------------------
def room_for(count: int, world: World) -> None:
    """Each client may have so many statements of 16 bytes (name and text)."""
    world.context.statements.limit = 2 * count * (16 + NAME_COST + STATEMENT_COST)


def numbered(at: int) -> bytes:
    return parse(b"s%03d" % at, b"select %02d" % at)


@pytest.mark.parametrize("size", [0, 1])
def test_a_parse_that_there_is_no_room_for_fails_in_its_place_and_the_client_goes_on(size: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    room_for(3, world)
    for at in range(3):
        client.send(numbered(at) + SYNC)
        world.settle()
        assert kinds(client.take()) == "1Z"
    client.send(parse(b"", b"select 1") + bind(b"") + numbered(3) + bind(b"s003") + execute() + SYNC + SELECT, size)
    world.settle(size)
    answer = client.take()
    assert kinds(answer) == "12EZ" + ANSWER
    assert error_code(answer) == "53400"
    client.send(bind(b"s002") + execute() + SYNC)
    client.send(close(b"s001") + SYNC)
    world.settle()
    assert kinds(client.take()) == "2DCZ3Z"
    client.send(numbered(3) + SYNC)
    world.settle()
    assert kinds(client.take()) == "1Z"
    assert not client.is_closed


def test_a_parse_that_there_is_no_room_for_fails_the_transaction_as_any_error() -> None:
    world = World(pool_size=1)
    client = world.client()
    room_for(0, world)
    world.context.statements.limit = 1
    client.send(BEGIN + numbered(1) + SYNC)
    world.settle()
    answer = client.take()
    assert (kinds(answer), answer[-1:], error_code(answer)) == ("CZEZ", b"E", "53400")


def test_a_server_that_goes_instead_has_the_last_word() -> None:
    world = World(pool_size=1)
    client = world.client()
    world.context.statements.limit = 1
    client.send(numbered(1) + SYNC)
    world.servers[0].send(backend.error_response(Report("terminating connection", "57P01", "FATAL")))
    assert error_code(client.take()) == "57P01"


def test_one_client_takes_half_of_the_room_and_the_others_the_rest() -> None:
    world = World(pool_size=1)
    greedy, other, third = world.client(), world.client(), world.client()
    room_for(5, world)
    for client, texts, made in ((greedy, range(20), 5), (other, range(20, 40), 5), (third, range(40, 60), 0)):
        for at in texts:
            client.send(numbered(at) + SYNC)
        world.settle()
        assert kinds(client.take()).count("1") == made
    third.send(parse(b"s999", b"select 03") + SYNC)  # costs no more than a name, for which there is no room either
    world.settle()
    assert error_code(third.take()) == "53400"
    greedy.vanish()
    third.send(numbered(50) + SYNC)
    world.settle()
    assert kinds(third.take()) == "1Z"
    for client in (other, third):
        client.vanish()
    assert world.context.statements.size == 0


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_clients_hold_is_counted_up_and_down(name: str) -> None:
    world = World(pool_size=1)
    client = world.client()
    through(world, client, CONVERSATIONS[name], 0, 0, False)
    held = client.session.statements
    assert (held is None or len(held) == 0) == (world.context.statements.size == 0)
    assert held is None or held.size >= world.context.statements.size
    client.vanish()
    assert world.context.statements.size == 0


def test_a_million_texts_of_one_client_stay_below_the_limit() -> None:
    statements = Statements()
    statements.limit = 8_000_000
    known = ClientStatements(statements)
    for at in range(1_000_000):
        name, rest = b"s%d" % at, b"select %d\0\0\0" % at
        if statements.has_room(known, name, rest):
            known.put(name, statements.find_fresh(rest))
    assert statements.size <= 4_000_000
    assert 5000 < len(known) == len(statements) < 8000


# --- when the server is free ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sent", [parse(b"", b"select 1") + FLUSH, parse(b"", b"select 1") + bind(b"") + execute()])
def test_a_server_is_kept_while_a_pipeline_is_open(sent: bytes) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(sent)
    world.settle()
    assert world.servers[0].session.state == SV_ACTIVE
    client.send(SYNC)
    world.settle()
    assert world.servers[0].session.state == SV_IDLE


def test_a_server_is_kept_until_the_last_of_several_answers() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT * 3)
    answer = world.servers[0].backend.answer(world.servers[0].take())
    ends = [at for at in range(len(answer)) if answer[at : at + 6] == backend.READY_IDLE]
    begin = 0
    for end in ends:
        assert world.servers[0].session.state == SV_ACTIVE
        world.servers[0].send(answer[begin : end + 6])
        begin = end + 6
    assert world.servers[0].session.state == SV_IDLE
    assert kinds(client.take()) == ANSWER * 3


def test_a_server_is_not_free_at_the_first_bytes_of_ready_for_query() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT)
    answer = world.servers[0].backend.answer(world.servers[0].take())
    world.servers[0].send(answer[:-1])
    assert world.servers[0].session.state == SV_ACTIVE
    world.servers[0].send(answer[-1:])
    assert world.servers[0].session.state == SV_IDLE


def test_a_server_is_kept_while_copy_data_is_expected() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(query(b"copy in"))
    world.settle()
    client.send(copy_data() * 2)
    world.settle()
    assert world.servers[0].session.state == SV_ACTIVE
    client.send(COPY_DONE)
    world.settle()
    assert world.servers[0].session.state == SV_IDLE
    assert kinds(client.take()) == "GCZ"


@pytest.mark.parametrize("extended", [False, True])
def test_an_error_in_the_data_of_a_copy_lets_the_rest_of_it_be_dropped(extended: bool) -> None:
    world = World(pool_size=1)
    client = world.client()
    pipeline = parse(b"", b"copy in") + bind(b"") + execute() + FLUSH
    client.send(pipeline if extended else query(b"copy in"))
    world.settle()
    client.take()
    server = world.servers[0]
    client.send(copy_data())
    server.answer()
    server.send(server.backend.copy_fails())
    client.send(copy_data() * 2 + COPY_DONE + (SYNC if extended else b""))
    world.settle()
    assert kinds(client.take()) == "EZ"
    assert server.session.state == SV_IDLE
    client.send(SELECT)
    world.settle()
    assert kinds(client.take()) == ANSWER


def test_late_copy_data_takes_no_server() -> None:
    world = World(pool_size=1)
    client = world.client()
    for size in (0, 1, 3):
        client.send(copy_data(b"x" * 50) * 2 + COPY_FAIL + COPY_DONE, size)
        assert world.servers[0].session.state == SV_IDLE
    client.send(copy_data() + SELECT, 1)
    world.settle()
    assert kinds(client.take()) == ANSWER


def test_transactions_end_both_connections_in_statement_mode() -> None:
    world = World(pool_mode=STATEMENT, pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    assert error_code(client.take()) == errors.NO_TRANSACTION_BLOCKS.sqlstate
    assert client.is_closed
    assert world.servers[0].is_closed


def test_in_session_mode_the_server_stays() -> None:
    world = World(pool_mode=SESSION, pool_size=1)
    client = world.client()
    client.send(SELECT)
    world.settle()
    server = world.servers[0]
    assert server.session.state == SV_ACTIVE
    client.send(TERMINATE)
    assert client.is_closed
    assert server.session.state == SV_TESTED
    assert kinds(server.transport.sent) == "Q"
    world.settle()
    assert server.session.state == SV_IDLE


# --- parameters -----------------------------------------------------------------------------------------------------------
def test_a_clients_parameters_are_set_before_its_query_and_the_client_does_not_see() -> None:
    world = World(pool_size=1)
    plain = world.client()
    client = world.client(application_name="mine")
    client.send(SELECT)
    server = world.servers[0]
    assert messages(bytes(server.transport.sent)) == [("Q", b"SET application_name='mine';\0")]
    world.settle(1)
    assert kinds(client.take()) == ANSWER
    plain.send(SELECT)
    assert b"SET application_name=''" in server.transport.sent
    world.settle()
    assert kinds(plain.take()) == ANSWER


def test_a_parameter_that_a_client_sets_follows_it() -> None:
    world = World(pool_size=2)
    _, second = two_servers(world)
    client = world.client()
    client.send(query(b"set TimeZone='Asia/Tokyo'"))
    world.settle()
    assert kinds(client.take()) == "CSZ"
    held_by_another(world)
    client.send(SELECT)
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert second.backend.parameters[b"TimeZone"] == b"Asia/Tokyo"


def test_parameters_that_the_server_refuses_end_the_client_and_not_the_server() -> None:
    world = World(pool_size=1)
    client = world.client(application_name="mine")
    client.send(SELECT)
    server = world.servers[0]
    server.take()
    refusal = backend.error_response(Report("no", "22023", "ERROR"))
    server.send(refusal + backend.READY_IDLE)
    assert error_code(client.take()) == "22023"
    assert client.is_closed
    assert world.pool().active.count == 0


# --- cancelling what a server does ---------------------------------------------------------------------------------------
def preparing() -> tuple[World, Client, Client]:
    """A client whose parameters are being set at its server, before its query goes there, and one that is idle."""
    world = World(pool_size=1)
    client, other = world.client(application_name="mine"), world.client()
    client.send(frontend.query(b"select 1"))
    assert b"SET application_name='mine'" in world.servers[0].transport.sent
    return world, client, other


def test_a_cancel_does_not_meet_the_setting_of_parameters_but_the_query_behind_it() -> None:
    world, client, _ = preparing()
    server = world.servers[0]
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    assert transport.take() == b""
    server.answer()
    assert transport.take() == frontend.cancel_request(server.session.cancel_key)
    assert server.session.cancels == 1
    cancel.connection_lost(world.now)
    world.settle()
    assert kinds(client.take()) == "TDCZ"


@pytest.mark.parametrize("end", ["client", "server", "next"])
def test_a_cancel_that_waits_for_the_setting_of_parameters_ends_with_what_it_waits_for(end: str) -> None:
    world, client, other = preparing()
    server = world.servers[0]
    other.send(frontend.query(b"select 1"))
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    if end == "server":
        server.die()
    elif end == "client":
        client.vanish()
    else:
        client.session.take_pending()
    world.settle()
    assert transport.take() == b""
    assert cancel.is_closed
    assert transport.is_closed
    assert kinds(other.take()) == "TDCZ"


def cancelling(world: World, server: Server) -> CancelSession:
    """A CancelRequest that has been sent, and is still under way to `server`."""
    cancel, transport = world.cancel(server.session)
    cancel.connected(transport, world.now)
    assert transport.take(), "it was sent"
    return cancel


def reset_and_cancelled(pool_mode: int) -> tuple[World, Client, CancelSession]:
    """A client that has a server for itself has sent RESET ALL; a CancelRequest for that comes late."""
    world = World(pool_size=1, pool_mode=pool_mode)
    client = world.client(application_name="mine")
    client.send(SELECT if pool_mode == SESSION else BEGIN)
    world.settle()
    server = world.servers[0]
    client.take()
    client.send(query(b"reset all"))
    cancel = cancelling(world, server)
    server.transport.take()
    server.send(backend.command_complete(b"RESET") + backend.parameter_status(b"application_name", b""))
    server.send(backend.ready_for_query(ord("I" if pool_mode == SESSION else "T")))
    server.backend.parameters[b"application_name"] = b""
    return world, client, cancel


@pytest.mark.parametrize("pool_mode", [SESSION, TRANSACTION])
@pytest.mark.parametrize("early", [True, False], ids=["the next query comes at once", "it comes later"])
def test_a_late_cancel_does_not_meet_the_setting_of_parameters_behind_a_reset(pool_mode: int, early: bool) -> None:
    world, client, cancel = reset_and_cancelled(pool_mode)
    server = world.servers[0]
    assert kinds(client.take()) == "CSZ"
    if early:
        client.send(SELECT)
    assert server.transport.take() == b"", "nothing is sent while the cancel may still come"
    cancel.connection_lost(world.now)
    assert messages(server.transport.sent)[0] == ("Q", b"SET application_name='mine';\0")
    world.settle()
    if not early:
        client.send(SELECT)
        world.settle()
    assert kinds(client.take()) == ANSWER
    assert server.backend.parameters[b"application_name"] == b"mine"


@pytest.mark.parametrize("pool_mode", [SESSION, TRANSACTION])
def test_a_client_that_leaves_before_its_parameters_could_be_set_leaves_a_clean_server(pool_mode: int) -> None:
    world, client, cancel = reset_and_cancelled(pool_mode)
    server = world.servers[0]
    client.vanish()
    cancel.connection_lost(world.now)
    world.settle()
    assert not server.is_closed
    assert world.pool().idle.count == 1
    assert b"SET application_name='mine'" not in server.transport.sent
    other = world.client()
    other.send(query(b"select 1"))
    world.settle()
    assert kinds(other.take()) == ANSWER
    assert server.backend.parameters[b"application_name"] == b""


def test_a_server_that_goes_before_parameters_could_be_set_takes_its_client_along() -> None:
    world, client, cancel = reset_and_cancelled(SESSION)
    world.servers[0].die()
    cancel.connection_lost(world.now)
    assert client.is_closed
    world.settle()


def test_a_second_cancel_waits_for_the_setting_of_parameters_and_meets_the_query_behind_it() -> None:
    world, client, cancel = reset_and_cancelled(SESSION)
    client.send(SELECT)
    server = world.servers[0]
    server.session.cancel = None
    second, transport = world.cancel(server.session)
    second.connected(transport, world.now)
    cancel.connection_lost(world.now)
    assert transport.take() == b""
    server.answer()
    assert transport.take() == frontend.cancel_request(server.session.cancel_key)


def test_a_late_cancel_does_not_meet_the_rollback_for_a_client_that_has_left() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    client.send(SELECT)
    server = world.servers[0]
    cancel = cancelling(world, server)
    client.vanish()
    server.answer()
    assert server.transport.take() == b"", "no ROLLBACK while the cancel may still come"
    cancel.connection_lost(world.now)
    assert messages(server.transport.sent) == [("Q", b"ROLLBACK\0")]
    world.settle()
    assert world.pool().idle.count == 1


def test_a_cancel_that_is_not_sent_yet_does_not_meet_the_rollback_for_a_client_that_has_left() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    client.send(SELECT)
    server = world.servers[0]
    cancel, transport = world.cancel(server.session)
    client.vanish()
    server.answer()
    assert messages(server.transport.sent) == [("Q", b"ROLLBACK\0")]
    cancel.connected(transport, world.now)
    assert transport.take() == b""
    world.settle()
    assert cancel.is_closed
    assert world.pool().idle.count == 1


# --- cancelling a client that waits -----------------------------------------------------------------------------------------
def waiting_client(world: World, data: bytes) -> tuple[Client, Client]:
    busy = held_by_another(world)
    busy.take()
    client = world.client()
    client.send(data)
    assert client.take() == b""
    return busy, client


@pytest.mark.parametrize("size", [0, 1])
def test_a_query_that_waits_can_be_cancelled(size: int) -> None:
    world = World(pool_size=1)
    busy, client = waiting_client(world, SELECT)
    client.session.cancel_waiting(world.now)
    answer = client.take()
    assert (kinds(answer), error_code(answer)) == ("EZ", "57014")
    client.send(SELECT, size)
    busy.send(COMMIT)
    world.settle()
    assert kinds(client.take()) == ANSWER


def test_only_the_first_of_the_queries_that_wait_is_cancelled() -> None:
    world = World(pool_size=1)
    busy, client = waiting_client(world, SELECT + SELECT)
    client.session.cancel_waiting(world.now)
    assert kinds(client.take()) == "EZ"
    busy.send(COMMIT)
    world.settle()
    assert kinds(client.take()) == ANSWER


@pytest.mark.parametrize("size", [1, 3, 9, 1000])
def test_a_pipeline_that_waits_is_cancelled_up_to_its_sync(size: int) -> None:
    world = World(pool_size=1)
    pipeline = parse(b"s", b"select 1") + bind(b"s") + execute() + SYNC
    busy, client = waiting_client(world, pipeline[:12])
    client.session.cancel_waiting(world.now)
    assert kinds(client.take()) == "E"
    client.send(pipeline[12:] + SELECT, size)
    assert kinds(client.take()) == "Z"
    busy.send(COMMIT)
    world.settle()
    assert kinds(client.take()) == ANSWER


@pytest.mark.parametrize("sent", [1, 4, 5, 8])
def test_a_query_that_is_cancelled_before_it_is_whole_is_left_out_whole(sent: int) -> None:
    world = World(pool_size=1)
    if sent < 5:
        client = world.client()
        client.send(SELECT[:sent])
        assert world.pool().waiting.count == 0, "no server is asked for before the request has a header"
        return
    busy, client = waiting_client(world, SELECT[:sent])
    client.session.cancel_waiting(world.now)
    assert kinds(client.take()) == "EZ"
    client.send(SELECT[sent:] + SELECT)
    busy.send(COMMIT)
    world.settle()
    assert kinds(client.take()) == ANSWER


# --- back-pressure ------------------------------------------------------------------------------------------------------
def test_a_client_that_does_not_read_stops_its_server() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    server = world.servers[0]
    client.session.writing_paused(world.now)
    assert not server.transport.is_reading
    assert not client.transport.is_reading
    client.session.writing_resumed()
    assert server.transport.is_reading
    assert client.transport.is_reading


def test_a_server_that_does_not_read_stops_its_client() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(query(b"copy in"))
    world.settle()
    world.servers[0].session.writing_paused()
    assert not client.transport.is_reading
    world.servers[0].session.writing_resumed()
    assert client.transport.is_reading


def test_what_stops_a_client_holds_for_as_long_as_one_reason_does() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(BEGIN)
    world.settle()
    world.servers[0].session.writing_paused()
    client.session.writing_paused(world.now)
    world.servers[0].session.writing_resumed()
    assert not client.transport.is_reading
    client.session.writing_resumed()
    assert client.transport.is_reading


def test_back_pressure_ends_with_the_link() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT)
    server = world.servers[0]
    client.session.writing_paused(world.now)
    world.settle()
    assert server.session.state == SV_IDLE
    assert server.transport.is_reading, "the next client would never get an answer"
    client.session.writing_resumed()
    assert client.transport.is_reading


def test_a_client_that_cannot_take_its_answers_brings_its_back_pressure_along() -> None:
    world = World(pool_size=1)
    busy, client = waiting_client(world, SELECT)
    client.session.writing_paused(world.now)
    busy.send(COMMIT)
    server = world.servers[0]
    server.answer()
    assert client.session.server is server.session
    assert not server.transport.is_reading
    client.session.writing_resumed()
    assert server.transport.is_reading


def test_a_waiting_client_that_sends_a_lot_is_not_read_any_further() -> None:
    world = World(pool_size=1)
    busy, client = waiting_client(world, query(b"x" * 70_000)[:60_000])
    assert client.transport.is_reading
    client.send(b"x" * 10_006)
    assert not client.transport.is_reading
    busy.send(COMMIT)
    world.settle()
    assert client.transport.is_reading
    assert kinds(client.take()) == "CZ"


# --- ends ---------------------------------------------------------------------------------------------------------------
def test_the_words_of_a_server_that_goes_reach_its_client() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT)
    server = world.servers[0]
    server.send(backend.error_response(Report("terminating connection", "57P01", "FATAL")))
    server.die()
    answer = client.take()
    assert (kinds(answer), error_code(answer)) == ("E", "57P01")
    assert client.is_closed


def test_a_server_that_breaks_the_protocol_is_closed_with_its_client() -> None:
    for data in (b"Z\0\0\0\5X", b"Z\0\0\0\3", b"2\0\0\0\4", b"R\0\0\0\x08\0\0\0\0", b"!\0\0\0\4", b"Z\xff\xff\xff\xff"):
        world = World(pool_size=1)
        client = world.client()
        client.send(parse(b"", b"select 1") + SYNC)
        world.servers[0].send(data)
        assert client.is_closed, data
        assert world.servers[0].is_closed
        assert kinds(client.take()) == "E"


def test_a_message_of_a_type_that_nobody_sends_ends_the_client_and_not_the_server() -> None:
    for kind in (0, ord("!"), ord("p"), ord("T"), 255):
        world = World(pool_size=1)
        client = world.client()
        client.send(bytes((kind,)) + b"\0\0\0\4")
        world.settle()
        (told,) = [part for part in bytes(client.take()).split(b"\0") if part.startswith(b"M")]
        assert told == b"Munknown pkt", kind
        assert client.is_closed
        assert not world.servers[0].is_closed
        assert world.servers[0].session.state == SV_IDLE


@pytest.mark.parametrize("length", [0, 3, 0xFFFFFFFF, 0x80000000])
def test_a_length_that_nobody_sends_ends_the_client_and_not_the_server(length: int) -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(b"Q" + length.to_bytes(4, "big"))
    assert error_code(client.take()) == "08P01"
    assert client.is_closed
    after = world.client()
    after.send(SELECT)
    world.settle()
    assert kinds(after.take()) == ANSWER
    assert len(world.servers) == 1


def test_a_client_that_takes_its_leave_gets_its_answers_first() -> None:
    world = World(pool_size=1)
    client = world.client()
    client.send(SELECT)
    world.settle()
    client.send(TERMINATE)
    assert kinds(client.take()) == ANSWER
    assert client.reason is errors.CLIENT_CLOSE_REQUEST
