"""Whatever a client says, it is answered as by a PostgreSQL of its own: the same bytes, directly and through the pooler.

Hypothesis makes streams of Parse, Bind, Describe, Execute, Close, Sync, Flush and Query, with errors thrown in; each is sent to
the server and through the pooler (transaction mode, with other clients' traffic on the same servers in between, so that
statements meet servers that do not have them), whole and chopped, and the answers are compared message by message.
"""

from __future__ import annotations

import socket

import pytest
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    Message,
    RawClient,
    bind,
    close,
    describe,
    execute,
    flush,
    parse,
    query,
    sync,
)
from fix_wait import LOOPBACK
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

NAMES = ["", "a", "b", "long_statement_name"]
TEXTS = [
    "SELECT 1",
    "SELECT $1::int + 1",
    "SELECT $1::text, 2",
    "SELECT 1/0",
    "SELEC broken",
    "SELECT generate_series(1, 5)",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "",
]
SIMPLE = [
    "SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1/0",
    "SELECT 1; SELECT 1/0; SELECT 2",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "",
    "DEALLOCATE ALL",
    "SELEC broken",
    "SELECT repeat('x', 20000)",
    "DO $$ BEGIN RAISE NOTICE 'hello'; END $$",
    "DISCARD ALL",
]
PORTALS = ["", "p"]
VALUES = st.sampled_from([(), ("7",)])
UNSTABLE_FIELDS = b"FLRW"  # of an error: file, line and routine of the server's source, and the context
Request = tuple[str, bytes]


def requests() -> st.SearchStrategy[Request]:
    names = st.sampled_from(NAMES)
    portals = st.sampled_from(PORTALS)
    return st.one_of(
        st.builds(lambda text, name: ("P", parse(text, name)), st.sampled_from(TEXTS), names),
        st.builds(lambda name, portal, values: ("B", bind(name, portal, *values)), names, portals, VALUES),
        st.builds(lambda name: ("D", describe("S", name)), names),
        st.builds(lambda portal: ("D", describe("P", portal)), portals),
        st.builds(lambda portal, limit: ("E", execute(portal, limit)), portals, st.sampled_from([0, 2])),
        st.builds(lambda name: ("C", close("S", name)), names),
        st.builds(lambda portal: ("C", close("P", portal)), portals),
        st.just(("S", sync())),
        st.just(("H", flush())),
        st.builds(lambda text: ("Q", query(text)), st.sampled_from(SIMPLE)),
    )


def normal(found: Message) -> tuple[bytes, bytes]:
    if found.type in (b"E", b"N"):
        parts = [part for part in found.body.split(b"\0") if part and part[:1] not in UNSTABLE_FIELDS]
        return found.type, b"\0".join(parts)
    return found.type, found.body


def answers(client: RawClient, stream: list[Request], chop: int) -> list[tuple[bytes, bytes]]:
    """All that is answered to the stream and to a last Sync."""
    data = b"".join(part for _, part in stream) + sync()
    if chop:
        client.send_chopped(data, chop)
    else:
        client.send(data)
    wanted = expected_ready(stream)
    found: list[tuple[bytes, bytes]] = []
    while wanted:
        got = client.read_message()
        if got.type == b"S":
            continue  # ParameterStatus: DISCARD ALL gives back other values behind a pooler, as documented
        found.append(normal(got))
        wanted -= got.type == b"Z"
    return found


def expected_ready(stream: list[Request]) -> int:
    """How many ReadyForQuery there must be: one a Sync, and one a Query that is not skipped. Asked of the direct answers."""
    return sum(kind in ("S", "Q") for kind, _ in stream) + 1


def well_formed(stream: list[Request]) -> list[Request]:
    """A Query only at the beginning of a pipeline, since one that is skipped after an error has no ReadyForQuery."""
    kept: list[Request] = []
    open_pipeline = False
    for kind, data in stream:
        if kind == "Q" and open_pipeline:
            kept.append(("S", sync()))
            open_pipeline = False
        kept.append((kind, data))
        open_pipeline = kind not in ("Q", "S") if kind != "H" else open_pipeline
    return kept


@pytest.fixture
def pooled(make_proxy: MakeProxy) -> Proxy:
    """Three servers: one may be held by an open transaction, two for the others' traffic."""
    return make_proxy(pool_mode="transaction", default_pool_size=3, max_prepared_statements=3)


def disturb(proxy: Proxy) -> None:
    """Another client uses both servers: its unnamed statement and its own named ones are there now."""
    with logged_in(proxy.port) as one, logged_in(proxy.port) as two:
        for client in (one, two):
            client.send(parse("SELECT 'not yours'"), parse("SELECT 'nor this'", "a"), sync())
        for client in (one, two):
            client.read_until(b"Z")


def logged_in(port: int) -> RawClient:
    client = RawClient(socket.create_connection((LOOPBACK, port)))
    client.login()
    return client


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rounds=st.lists(st.lists(requests(), min_size=1, max_size=12), min_size=1, max_size=3),
    chop=st.sampled_from([0, 1, 2, 7]),
)
@example(rounds=[[("P", parse("SELECT 1", "a")), ("S", sync())], [("B", bind("a")), ("E", execute())]], chop=0)
@example(rounds=[[("P", parse("SELECT 1"))], [("B", bind()), ("E", execute())]], chop=1)
@example(rounds=[[("P", parse("SELEC broken", "a")), ("P", parse("SELECT 1", "a"))], [("P", parse("SELECT 1", "a"))]], chop=0)
def test_every_stream_is_answered_as_by_the_server_itself(
    rounds: list[list[Request]], chop: int, shared_postgres: Postgres, pooled: Proxy
) -> None:
    with logged_in(shared_postgres.port) as direct, logged_in(pooled.port) as through:
        for stream in map(well_formed, rounds):
            expected = answers(direct, stream, 0)
            assert answers(through, stream, chop) == expected
            disturb(pooled)
