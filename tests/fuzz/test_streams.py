"""Random streams against the daemon: it lives, others are unharmed, and what is well formed is answered as by PostgreSQL.

PGPOOL_PROXY_FUZZ=5000 tries so many examples of each kind.
"""

from __future__ import annotations

import os
import struct

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
    "copy t from stdin",
    "copy (select 1) to stdout",
    "set application_name = 'fuzz'",
    "set timezone = 'Asia/Tokyo'",
    "discard all",
    "deallocate all",
    "do $$ begin raise notice 'n'; end $$",
)


def well_formed() -> st.SearchStrategy[bytes]:
    """One message that a client may send, in its place or not."""
    name = st.sampled_from(NAMES)
    statement = st.sampled_from(STATEMENTS)
    return st.one_of(
        statement.map(query),
        st.builds(parse, statement, name),
        st.builds(bind, name, st.sampled_from(("", "p"))),
        st.builds(execute, st.sampled_from(("", "p")), st.sampled_from((0, 0, 2))),
        st.builds(describe, st.just("S"), name),
        st.builds(describe, st.just("P"), st.sampled_from(("", "p"))),
        st.builds(close, st.just("S"), name),
        st.builds(close, st.just("P"), st.sampled_from(("", "p"))),
        st.just(sync()),
        st.just(sync()),
        st.just(flush()),
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
        client_login_timeout=1,
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


def answers(client: RawClient, stream: bytes, chop: int) -> list[object]:
    """Everything up to the answer to the last query of END, less what differs from process to process."""
    found: list[Message] = []
    try:
        client.send_chopped(stream + END, chop)
        while not (found and found[-1].type == b"Z" and any(one.type == b"D" and LAST in one.body for one in found[-3:])):
            found.append(client.read_message())
    except (EOFError, ConnectionResetError, BrokenPipeError):
        found.append(CLOSED)
    client.close()
    return [
        (one.type, {key: one.fields().get(key) for key in "SCMDP"}) if one.type in b"EN" and one.type else one for one in found
    ]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_any_stream_of_well_formed_messages_is_answered_as_by_postgresql(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient, mode: str
) -> None:
    database.sql("create table t (x text)")
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode=mode, log_connections=0, log_disconnections=0)

    @FUZZ
    @given(st.lists(well_formed(), max_size=10), CHOPS)
    def fuzz(stream: list[bytes], chop: int) -> None:
        direct = make_raw_client(database.server.port)
        direct.login(database=database.name)
        expected = answers(direct, b"".join(stream), 100_000)
        got = answers(login(proxy), b"".join(stream), chop)
        if expected[-1] == got[-1] == CLOSED:
            # Closed by PostgreSQL while it was sent to: the kernel answers with RST, and drops what was not read yet.
            got = [one for one in got if "server conn crashed?" not in str(one)]
            both = min(len(got), len(expected)) - 1
            got, expected = got[:both], expected[:both]
        assert got == expected

    fuzz()
