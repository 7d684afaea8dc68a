"""Random streams against the daemon: it lives, others are unharmed, and what is well formed is answered as by PostgreSQL.

PGPOOL_PROXY_FUZZ=5000 tries so many examples of each kind.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
from fix_clients import Database, Login, assert_whole, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    MakeRawClient,
    Message,
    RawClient,
    bind,
    close,
    describe,
    execute,
    flush,
    message,
    parse,
    query,
    request,
    startup_message,
    sync,
    terminate,
)
from fix_wait import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SIZE = 3
FUZZ = settings(
    max_examples=int(os.environ.get("PGPOOL_PROXY_FUZZ", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = ("", "s", "t")
COPY_IN = "copy t from stdin"
PORTALS = ("", "", "p")
ROWS = (0, 0, 2)
DEALLOCATE = "deallocate s"  # by the simple protocol or the unnamed statement
LENGTH = message(b"F", struct.pack("!ihhhi", 1317, 1, 0, 1, 3) + b"abc" + struct.pack("!h", 0))  # pg_catalog.length('abc')
STATEMENTS = (
    "select 1",
    "select 'text'::text, null",
    "select 1/0",
    "select nonsense",
    "",
    "begin",
    "commit",
    "rollback",
    "savepoint a",
    "rollback to a",
    "insert into t values ('x')",
    "select count(*) >= 0 from t",
    "select generate_series(1, 300)",
    COPY_IN,
    "copy (select 1) to stdout",
    "set application_name = 'fuzz'",
    "set timezone = 'Asia/Tokyo'",
    "set local datestyle = 'german'",
    "show timezone",
    "reset timezone",
    "reset all",
    "select 3; select 1/0",
    "commit; select 5",
    "fetch 1 from p",
    "declare p cursor for select 7",
    "discard all",
    "deallocate all",
    DEALLOCATE,
    "do $$ begin raise notice 'n'; end $$",
)


def prepared(statement: str, name: str) -> bytes:
    return parse(statement, "" if statement == DEALLOCATE else name)


def query_of_its_own(statement: str) -> bytes:
    """Behind Execute without Sync, a Query or FunctionCall leaves PostgreSQL 15 in a state that is its next Sync's undoing."""
    return sync() + query(statement)


def extended(statement: str, name: str, portal: str, rows: int, described: bool, end: bytes) -> bytes:
    """A whole round of the extended protocol."""
    name = "" if statement == DEALLOCATE else name
    asked = describe("P", portal) if described else b""
    return parse(statement, name) + bind(name, portal) + asked + execute(portal, rows) + end


def well_formed(names: tuple[str, ...] = NAMES, statements: tuple[str, ...] = STATEMENTS) -> st.SearchStrategy[bytes]:
    """What a client may send, in its place or not: a message mostly."""
    name = st.sampled_from(names)
    portal = st.sampled_from(PORTALS)
    rows = st.sampled_from(ROWS)
    statement = st.sampled_from(statements)
    return st.one_of(
        statement.map(query_of_its_own),
        st.builds(prepared, statement, name),
        st.builds(extended, statement, name, portal, rows, st.booleans(), st.sampled_from((b"", sync(), flush()))),
        st.builds(lambda name, portal, rows: bind(name, portal) + execute(portal, rows), name, portal, rows),
        st.builds(bind, name, portal),
        st.builds(execute, portal, rows),
        st.builds(describe, st.just("S"), name),
        st.builds(describe, st.just("P"), portal),
        st.builds(close, st.just("S"), name),
        st.builds(close, st.just("P"), portal),
        st.just(sync()),
        st.just(sync()),
        st.just(flush()),
        st.just(sync() + LENGTH),
        st.just(message(b"d", b"row\n")),
        st.just(message(b"c")),
        st.just(message(b"f", b"no\0")),
    )


def hostile() -> st.SearchStrategy[bytes]:
    """A message that is broken in one way or another, or not one at all."""
    kind = st.integers(0, 255).map(lambda number: bytes([number]))
    lengths = st.sampled_from((0, 1, 3, 4, 5, 9, 100, 65_536, 2**30, 2**31 - 1, 2**31, 2**32 - 1))
    return st.one_of(
        st.binary(min_size=1, max_size=40),
        st.builds(message, kind, st.binary(max_size=30)),
        st.builds(
            lambda letter, length, rest: letter + struct.pack("!I", length) + rest, kind, lengths, st.binary(max_size=30)
        ),
        st.builds(lambda whole, at: whole[: 1 + at % len(whole)], well_formed(), st.integers(0, 50)),
        st.builds(
            lambda whole, at, byte: whole[: at % len(whole)] + bytes([byte]) + whole[at % len(whole) + 1 :],
            well_formed(), st.integers(0, 50), st.integers(0, 255),
        ),
        st.builds(bytes.__mul__, well_formed(), st.integers(2, 200)),
        st.just(terminate()),
        st.just(startup_message()),
    )  # fmt: skip


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    database.sql("create table t (x text)")
    return make_proxy(
        databases={"app": database.entry()},
        pool_mode="transaction",
        default_pool_size=SIZE,
        log_connections=0,
        log_disconnections=0,
    )


def deliver(client: RawClient, stream: bytes, chop: int, reset: bool) -> None:
    """Send in pieces, as far as the daemon takes it, and go."""
    try:
        client.send_chopped(stream, chop)
    except (BrokenPipeError, ConnectionResetError):
        pass
    client.reset() if reset else client.close()


CHOPS = st.sampled_from((1, 3, 7, 100, 100_000))


def test_any_stream_behind_a_login_harms_nobody_else(pooled: Proxy, database: Database, login: Login) -> None:
    bystander = login(pooled)
    run(bystander, "begin; insert into t values ('kept')")

    @FUZZ
    @given(st.lists(st.one_of(well_formed(), hostile()), max_size=12), CHOPS, st.booleans())
    def fuzz(stream: list[bytes], chop: int, reset: bool) -> None:
        deliver(login(pooled), b"".join(stream), chop, reset)
        assert value(bystander, "select 'unharmed'") == "unharmed"
        assert pooled.is_running()

    fuzz()
    run(bystander, "commit")
    bystander.close()
    settle(pooled)
    wait_until(lambda: not database.servers(state="active"))
    assert_whole(pooled, database, login, SIZE)
    assert database.sql("select count(*) from t where x = 'kept'") == [(1,)]


def test_any_stream_instead_of_a_login_harms_nobody_else(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    bystander = login(pooled)
    codes = st.sampled_from((196_608, 196_610, 131_072, 80_877_102, 80_877_103, 80_877_104, 0, 2**32 - 1))
    packet = st.one_of(
        st.binary(max_size=60),
        st.builds(lambda code, body: struct.pack("!iI", len(body) + 8, code) + body, codes, st.binary(max_size=60)),
        st.builds(request, st.sampled_from((80_877_103, 80_877_104))),
        st.builds(lambda at: startup_message()[:at], st.integers(0, 40)),
        st.builds(
            lambda at, byte: startup_message()[:at] + bytes([byte]) + startup_message()[at + 1 :],
            st.integers(0, 35), st.integers(0, 255),
        ),
        well_formed(),
    )  # fmt: skip

    @FUZZ
    @given(st.lists(packet, max_size=5), CHOPS, st.booleans())
    def fuzz(stream: list[bytes], chop: int, reset: bool) -> None:
        deliver(make_raw_client(pooled.port), b"".join(stream), chop, reset)
        assert value(bystander, "select 'unharmed'") == "unharmed"
        assert pooled.is_running()

    fuzz()
    bystander.close()
    settle(pooled)
    assert_whole(pooled, database, login, SIZE)


# --- the same as PostgreSQL ---------------------------------------------------------------------------------------------
END = message(b"f", b"end\0") + sync() + message(b"f", b"end\0") + sync() + query("rollback") + query("select 'the end'")
LAST = b"the end"
CLOSED = Message(b"", b"closed")
PATIENCE_S = 60  # for one example, on a machine that has other things to do


def send(client: RawClient, data: bytes, chop: int) -> None:
    """As far as the peer takes it: what closes the connection may do so before the last piece."""
    with suppress(BrokenPipeError, ConnectionResetError):
        client.send_chopped(data, chop)


def answers(client: RawClient) -> list[object]:
    """Everything up to the answer to the last query of END, less what differs from process to process."""
    found: list[Message] = []
    try:
        while not (found and found[-1].type == b"Z" and any(one.type == b"D" and LAST in one.body for one in found[-3:])):
            found.append(client.read_message())
        client.send(terminate())
        assert client.is_closed(), "or too many servers that are about to go would be there"
    except (EOFError, ConnectionResetError):
        found.append(CLOSED)
    client.close()
    return [
        (one.type, {key: one.fields().get(key) for key in "SCMDP"}) if one.type in b"EN" and one.type else one for one in found
    ]


def compare(got: list[object], expected: list[object]) -> None:
    if expected[-1] == got[-1] == CLOSED:
        # Closed by PostgreSQL while it was sent to: the kernel answers with RST, and drops what was not read yet.
        got = [one for one in got if "server conn crashed?" not in str(one)]
        both = min(len(got), len(expected)) - 1
        got, expected = got[:both], expected[:both]
    assert got == expected


#: pool_mode, servers, statements that each of them keeps, and what else is set
HOUSES: dict[str, tuple[str, int, int, dict[str, object]]] = {
    "session mode": ("session", 3, 200, {}),
    "transaction mode": ("transaction", 3, 200, {}),
    "few servers that keep few statements": ("transaction", 2, 2, {}),
    "servers that are used once": ("transaction", 3, 200, {"server_lifetime": 0}),
    "servers that are cleaned": ("transaction", 2, 2, {"session_state": "reset"}),
    "clients that are pinned": ("transaction", 3, 2, {"session_state": "pin"}),
}


#: what does not belong into COPY IN ends the connection, unless no server gets to see it: a Close of a name, mostly
NO_COPY_IN = tuple(text for text in STATEMENTS if text != COPY_IN)


def in_turns(messages: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[tuple[bool, bytes, int]]]:
    """Whose turn it is, what it sends, and 0 for a pause behind it."""
    return st.lists(st.tuples(st.booleans(), messages, st.integers(0, 4)), max_size=20)


@pytest.mark.parametrize("house", HOUSES)
def test_any_streams_of_clients_that_share_servers_are_answered_as_by_postgresql(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient, house: str
) -> None:
    """Two clients at a time send theirs in turns, by the same names; each gets what it gets from a server of its own."""
    database.sql("create table t (x text)")
    mode, servers, statements, keys = HOUSES[house]
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode=mode, default_pool_size=servers, max_prepared_statements=statements,
        log_connections=0, log_disconnections=0, **keys,
    )  # fmt: skip

    @settings(FUZZ, max_examples=max(FUZZ.max_examples // 2, 1))
    @given(st.one_of(in_turns(well_formed(statements=NO_COPY_IN)), in_turns(well_formed(names=("",)))), CHOPS)
    def fuzz(steps: list[tuple[bool, bytes, int]], chop: int) -> None:
        expected = []
        for second in (False, True):
            direct = make_raw_client(database.server.port, timeout=PATIENCE_S)
            assert direct.login(database=database.name)[-1].type == b"Z"
            send(direct, b"".join(data for which, data, _ in steps if which == second) + END, 100_000)
            expected.append(answers(direct))
        clients = [login(proxy, timeout=PATIENCE_S) for _ in range(2)]
        for which, data, pause in steps:
            send(clients[which], data, chop)
            if not pause:
                settle(proxy)  # the other one may get the server meanwhile
        for client in clients:
            send(client, END, chop)
        for client, one in zip(clients, expected, strict=True):
            compare(answers(client), one)

    fuzz()
