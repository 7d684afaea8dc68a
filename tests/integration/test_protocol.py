"""The protocol by hand: what drivers seldom send, compared where possible with the same bytes sent to PostgreSQL itself."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from fix_clients import Database, Login, answer, ask, backend_pid, error, run, value
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    GSSENC_REQUEST,
    SSL_REQUEST,
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


@pytest.fixture(params=["session", "transaction"])
def either(request: pytest.FixtureRequest, make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode=request.param, default_pool_size=2)


def function_call(oid: int, *values: bytes) -> bytes:
    body = struct.pack("!ihhh", oid, 1, 0, len(values))
    body += b"".join(struct.pack("!i", len(value)) + value for value in values)
    return message(b"F", body + struct.pack("!h", 0))


SETUP = "drop table if exists t; create table t (x int); insert into t select generate_series(1, 10)"
LENGTH_OID = 1317  # pg_catalog.length(text)

#: name -> what is sent, and the number of ReadyForQuery that come back
CONVERSATIONS: dict[str, tuple[bytes, int]] = {
    "an empty query": (query(""), 1),
    "only a semicolon": (query(";"), 1),
    "several statements": (query("select 1; select 2, 3; insert into t values (11); select count(*) from t"), 1),
    "several statements, the second fails": (query("insert into t values (12); select 1/0; select 2"), 1),
    "begin twice": (query("begin") + query("begin") + query("commit"), 3),
    "a savepoint in a failed transaction": (
        query("begin") + query("savepoint s") + query("select 1/0") + query("rollback to s") + query("select 1") + query("end"),
        6,
    ),
    "a whole extended query": (parse("select $1::int + 1") + bind("", "", "41") + describe() + execute() + sync(), 1),
    "an empty extended query": (parse("") + bind() + describe() + execute() + sync(), 1),
    "a statement is described": (parse("select 1 as x, $1::text") + describe("S") + sync(), 1),
    "sync alone": (sync(), 1),
    "many syncs": (sync() * 5, 5),
    "flush and sync": (flush() + sync(), 1),
    "a pipeline over three syncs": ((parse("select 7") + bind() + execute() + sync()) * 3, 3),
    "an error in the middle of three": (
        parse("select 1") + bind() + execute() + sync()
        + parse("select nonsense") + bind() + execute() + parse("select 2") + bind() + execute() + sync()
        + parse("select 3") + bind() + execute() + sync(),
        3,
    ),
    "an error at execute, then more before the sync": (
        parse("select 1/x from t where x < $1::int - 1 union select 1/(x-1) from t") + bind("", "", "5")
        + execute() + parse("select 1", "named") + bind("named") + execute() + sync() + query("select 'after'"),
        2,
    ),
    "a simple query among extended ones": (
        parse("select 1") + bind() + execute() + query("select 2") + parse("select 3") + bind() + execute() + sync(),
        2,
    ),
    "a portal read in pieces": (
        query("begin") + parse("select x from t order by x") + bind("", "cursor") + execute("cursor", 3)
        + execute("cursor", 3) + execute("cursor", 3) + execute("cursor", 3) + sync() + query("commit"),
        3,
    ),
    "a portal that outlives a sync in its transaction": (
        query("begin") + parse("select x from t order by x") + bind("", "c") + execute("c", 2) + sync()
        + execute("c", 2) + close("P", "c") + sync() + query("commit"),
        4,
    ),
    "a portal that does not outlive its transaction": (
        parse("select x from t") + bind("", "c") + execute("c", 2) + sync() + execute("c", 2) + sync(),
        2,
    ),
    "an unknown statement and an unknown portal": (bind("nowhere") + sync() + execute("nowhere") + sync(), 2),
    "unknown ones are described and closed": (
        describe("S", "nowhere") + sync() + describe("P", "nowhere") + sync()
        + close("S", "nowhere") + close("P", "nowhere") + sync(),
        3,
    ),
    "a named statement, used twice and closed": (
        parse("select $1::text", "s") + describe("S", "s") + bind("s", "", "a") + execute() + sync()
        + bind("s", "", "b") + execute() + close("S", "s") + sync() + bind("s", "", "c") + sync(),
        3,
    ),
    "a named statement is prepared twice": (parse("select 1", "s") + sync() + parse("select 2", "s") + sync(), 2),
    "a name is closed and prepared anew": (
        parse("select 1", "s") + close("S", "s") + parse("select 'new'", "s") + bind("s") + execute() + sync(),
        1,
    ),
    "the unnamed statement outlives its sync": (
        parse("select 'kept'") + sync() + bind() + execute() + sync() + bind() + execute() + sync(),
        3,
    ),
    "a simple query ends the unnamed statement": (parse("select 1") + sync() + query("select 2") + bind() + sync(), 3),
    "a simple query that is discarded does not end the unnamed statement": (
        parse("select 1") + bind("unknown") + query("select 2") + sync() + bind() + execute() + sync(),
        2,
    ),
    "a simple query in a pipeline ends the unnamed statement": (
        parse("select 1") + bind() + execute() + query("select 2") + bind() + sync() + bind() + sync(),
        3,
    ),
    "a function call": (function_call(LENGTH_OID, b"twelve bytes"), 1),
    "a function call that fails": (function_call(1) + function_call(LENGTH_OID, b"x"), 2),
    "a function call in a transaction": (query("begin") + function_call(LENGTH_OID, b"xx") + query("commit"), 3),
    "copy in": (
        query("copy t from stdin") + message(b"d", b"21\n") + message(b"d", b"22\n") + message(b"c")
        + query("select count(*) from t"),
        2,
    ),
    "copy in that the client ends with an error": (
        query("copy t from stdin") + message(b"d", b"21\n") + message(b"f", b"changed my mind\0")
        + query("select count(*) from t"),
        2,
    ),
    "copy in that the server ends with an error": (
        query("copy t from stdin") + message(b"d", b"nonsense\n") + message(b"d", b"22\n") + message(b"c") + query("select 1"),
        2,
    ),
    "copy in by the extended protocol": (
        parse("copy t from stdin") + bind() + execute() + message(b"d", b"21\n") + message(b"c") + sync() + query("select 1"),
        2,
    ),
    "copy in by a named statement, twice": (
        parse("copy t from stdin", "s") + bind("s") + execute() + message(b"d", b"21\n") + message(b"c") + sync()
        + bind("s") + execute() + message(b"d", b"nonsense\n") + message(b"c") + sync() + close("S", "s") + sync(),
        3,
    ),
    "copy in by the extended protocol with a sync before its data": (
        parse("copy t from stdin") + bind() + execute() + sync() + message(b"d", b"21\n") + message(b"c") + sync(),
        1,
    ),
    "sync in copy in": (query("copy t from stdin") + message(b"d", b"21\n") + sync() + flush() + message(b"c"), 1),
    "copy out": (query("copy t to stdout"), 1),
    "copy out by the extended protocol": (parse("copy t to stdout") + bind() + execute() + sync(), 1),
    "two copies in one query": (
        query("copy t from stdin; select 'between'; copy t from stdin")
        + message(b"d", b"31\n") + message(b"c") + message(b"d", b"32\n") + message(b"c"),
        1,
    ),
    "a query of another kind inside copy in": (query("copy t from stdin") + query("select 1") + query("select 2"), 2),
    "copy data behind a copy that has failed": (
        query("copy nowhere from stdin") + message(b"d", b"1\n") + message(b"c") + query("select 1"),
        2,
    ),
    "a notice": (query("do $$ begin raise notice 'n'; raise warning 'w'; end $$"), 1),
    "a parameter that the server reports": (query("set application_name = 'x'") + query("show application_name"), 2),
    "a parameter that is taken back": (query("begin; set local timezone = 'Asia/Tokyo'") + query("rollback"), 2),
    "a parameter that is not reported": (query("set work_mem = '1MB'"), 1),
    "listen and notify oneself": (query("listen c; notify c, 'me'") + query("unlisten c"), 2),
    "null and empty values": (query("select null, ''"), 1),
    "a statement that discards itself": (
        parse("discard all", "s") + bind("s") + execute() + describe("S", "s") + sync() + parse("select 1", "s") + sync(), 2,
    ),
    "a statement is deallocated by its name": (
        parse("select 1", "s") + sync() + query("deallocate s") + bind("s") + sync() + parse("select 2", "s") + sync(), 4,
    ),
    "a statement is deallocated by the extended protocol": (
        parse("select 1", "s") + sync()
        + parse("DEALLOCATE PREPARE s") + describe("S") + bind() + describe() + execute() + sync()
        + bind("s") + sync() + parse("select 2", "s") + bind("s") + execute() + sync(),
        4,
    ),
    "a statement is not deallocated in a failed transaction": (
        parse("select 1", "s") + sync() + query("begin; select 1/0") + parse("deallocate s") + bind() + execute() + sync()
        + query("deallocate s") + query("rollback") + bind("s") + execute() + sync(),
        6,
    ),
    "names and portals behind a sync that is not answered yet": (
        query("begin") + parse("select x from t order by x", "s") + bind("s", "p") + sync()
        + parse("select 2", "u") + sync() + execute("p", 2) + bind("u") + execute() + sync() + query("commit"),
        5,
    ),
    "deallocate and discard": (parse("select 1", "s") + sync() + query("deallocate all") + parse("select 2", "s") + sync(), 3),
}


def comparable(messages: list[Message]) -> list[object]:
    """Without what differs from server process to server process."""
    found: list[object] = []
    for one in messages:
        if one.type in b"EN":
            fields = one.fields()
            found.append((one.type, {key: fields.get(key) for key in "SVCMDHP"}))
        elif one.type == b"A":
            found.append((one.type, one.body[4:]))
        else:
            found.append(one)
    return found


def talk(client: RawClient, sent: bytes, ends: int, chop: int) -> list[object]:
    """Send, and read up to so many ReadyForQuery, or to the end of the connection."""
    with suppress(BrokenPipeError, ConnectionResetError):  # what ends the connection may do so before the last piece
        client.send_chopped(sent, chop) if chop else client.send(sent)
    found: list[Message] = []
    try:
        while ends:
            found.append(client.read_message())
            ends -= found[-1].type == b"Z"
    except (EOFError, ConnectionResetError):
        return [*comparable(found), "closed"]
    return comparable(found)


@pytest.mark.parametrize("chop", [0, 1, 2, 7], ids=["whole", "byte by byte", "in twos", "in sevens"])
def test_every_conversation_gets_the_answers_of_postgresql_itself(
    either: Proxy, database: Database, make_raw_client: MakeRawClient, login: Login, chop: int
) -> None:
    different = []
    for name, (sent, ends) in CONVERSATIONS.items():
        direct = make_raw_client(database.server.port)
        direct.login(database=database.name)
        run(direct, SETUP)
        expected = talk(direct, sent, ends, 0)
        direct.close()
        client = login(either)
        run(client, SETUP)
        got = talk(client, sent, ends, chop)
        if got != expected:
            different.append(f"{name}\n    expected {expected}\n    got      {got}")
        elif expected[-1] != "closed":
            assert value(client, "select 'usable'") == "usable", name
            client.send(terminate())
            assert client.is_closed()
    assert not different, "\n".join(different)


def test_asynchronous_messages_between_requests_reach_the_linked_client(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session")
    client = login(proxy)
    run(client, "listen c")
    database.sql("notify c, 'out of the blue'")
    found = client.read_message()
    assert (found.type, found.body[4:]) == (b"A", b"c\0out of the blue\0")
    assert value(client, "select 1") == "1"


def test_a_flushed_pipeline_is_answered_before_its_sync(either: Proxy, login: Login) -> None:
    client = login(either)
    client.send(parse("select 1"), flush())
    assert client.read_message().type == b"1"
    client.send(bind(), describe(), flush())
    assert client.read_types(until=b"T") == b"2T"
    client.send(execute(), flush())
    assert client.read_types(until=b"C") == b"DC"
    client.send(sync())
    assert client.read_types() == b"Z"


def test_a_named_statement_is_known_on_a_server_that_never_saw_it(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    client, other = login(proxy), login(proxy)
    client.send(parse("select pg_backend_pid()", "s"), sync())
    assert client.read_types() == b"1Z"
    run(other, "begin")
    first = backend_pid(other)
    for pipeline, types in (
        (bind("s") + execute() + sync(), b"2DCZ"),
        (describe("S", "s") + bind("s") + execute() + sync(), b"tT2DCZ"),
        (close("S", "s") + sync(), b"3Z"),
        (bind("s") + sync(), b"EZ"),
    ):
        client.send(pipeline)
        messages = client.read_until(b"Z")
        assert b"".join(found.type for found in messages) == types
        assert [found.values() for found in messages if found.type == b"D"] != [[b"%d" % first]]
    run(other, "commit")


def test_a_name_whose_statement_was_refused_is_free_for_another(either: Proxy, login: Login) -> None:
    client = login(either)
    for _ in range(2):
        client.send(parse("select nonsense", "s"), sync())
        assert error(client.read_until(b"Z"))["C"] == "42703"
    client.send(parse("select 1", "s"), bind("s"), execute(), sync())
    assert client.read_types() == b"12DCZ"


def test_an_error_in_a_pipeline_does_not_make_the_pool_believe_in_discarded_statements(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    client, other = login(proxy), login(proxy)
    failing = parse("select 1/0", "bad") + bind("bad") + execute()
    client.send(failing, parse("select 'lost'", "s"), bind("s"), execute(), sync())
    assert error(client.read_until(b"Z"))["C"] == "22012"
    other.send(parse("select 'lost'", "s"), bind("s"), execute(), sync())
    assert other.read_types() == b"12DCZ"
    client.send(bind("s"), execute(), sync())
    assert error(client.read_until(b"Z"))["C"] == "26000"
    client.send(parse("select 'lost'", "s"), bind("s"), execute(), sync())
    assert client.read_types() == b"12DCZ"


def test_a_client_that_leaves_between_parse_and_sync_costs_only_its_own_work(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    for leave in (RawClient.close, RawClient.reset):
        client = login(proxy)
        client.send(parse("select 'half'", "s"), flush())
        assert client.read_message().type == b"1"
        leave(client)
        other = login(proxy)
        other.send(parse("select 'half'", "s"), bind("s"), execute(), sync())
        assert other.read_types() == b"12DCZ"
        other.close()


@pytest.mark.parametrize("code", [SSL_REQUEST, GSSENC_REQUEST])
def test_encryption_is_declined_and_the_login_goes_on(proxy: Proxy, make_raw_client: MakeRawClient, code: int) -> None:
    client = make_raw_client(proxy.port)
    for asked in (code, SSL_REQUEST + GSSENC_REQUEST - code):
        client.send(request(asked))
        assert client.read_bytes(1) == b"N"
    assert client.login()[-1].type == b"Z"
    assert value(client, "select 1") == "1"


def test_bytes_that_hurry_ahead_of_the_answer_to_an_ssl_request_end_the_connection(
    proxy: Proxy, make_raw_client: MakeRawClient
) -> None:
    client = make_raw_client(proxy.port)
    client.send(request(SSL_REQUEST), startup_message())
    assert all(found.type == b"E" for found in client.read_to_end())


def test_a_newer_minor_protocol_is_negotiated_down(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    client = make_raw_client(proxy.port)
    client.send(startup_message(protocol=196_608 + 9_999, **{"_pq_.fancy": "1"}))
    first = client.read_message()
    assert first.type == b"v"  # before the authentication begins
    newest, count = struct.unpack_from("!ii", first.body)
    assert (newest, count, first.body[8:]) == (3 << 16, 1, b"_pq_.fancy\0")
    client.read_until(b"Z")
    assert value(client, "select 1") == "1"


@pytest.mark.parametrize(
    ("packet", "sqlstate", "text"),
    [
        (startup_message(protocol=2 << 16), "0A000", "old V2 protocol not supported"),
        (startup_message(protocol=4 << 16), "0A000", "unsupported frontend protocol"),
        (startup_message(user=""), "28000", "no username supplied"),
        (startup_message(user="u" * 200), "28000", "username too long"),
        (startup_message(nonsense="1"), "08P01", "unsupported startup parameter: nonsense"),
        (startup_message()[:-1] + b"x", "08P01", "invalid startup packet layout"),
        (startup_message(options="--nonsense"), "08P01", "unsupported options startup parameter"),
        (startup_message(replication="perhaps"), "22023", 'invalid value for parameter "replication"'),
    ],
)
def test_a_startup_message_that_cannot_be_served_is_answered_with_the_reason(
    proxy: Proxy, make_raw_client: MakeRawClient, packet: bytes, sqlstate: str, text: str
) -> None:
    client = make_raw_client(proxy.port)
    client.send(packet)
    fields = error([found for found in client.read_to_end() if found.type == b"E"])
    assert (fields["S"], fields["C"]) == ("FATAL", sqlstate)
    assert fields["M"].startswith(text)


def test_options_and_parameters_of_the_startup_message_reach_the_server(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy, application_name="mine", client_encoding="LATIN1", options="-c DateStyle=German")
    assert client.parameters["application_name"] == "mine"
    assert value(client, "show application_name") == "mine"
    assert value(client, "show client_encoding") == "LATIN1"
    assert (value(client, "show datestyle") or "").startswith("German")


STARTUP_MESSAGES = {
    "pgjdbc": {"client_encoding": "UTF8", "DateStyle": "ISO", "TimeZone": "Europe/Paris", "extra_float_digits": "2"},
    "pgjdbc 9.0": {"client_encoding": "UTF8", "DateStyle": "ISO", "extra_float_digits": "3", "application_name": "JDBC"},
    "lib/pq": {"client_encoding": "UTF8", "datestyle": "ISO, MDY", "extra_float_digits": "2"},
    "sqlx": {"DateStyle": "ISO, MDY", "client_encoding": "UTF8", "TimeZone": "UTC", "extra_float_digits": "2"},
    "options": {"options": "-c Extra_Float_Digits=0"},
}  # fmt: skip


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_what_drivers_send_at_their_defaults_is_taken_and_stays_with_its_client(
    make_proxy: MakeProxy, database: Database, login: Login, pool_mode: str
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode=pool_mode, default_pool_size=2)
    wanted = {"pgjdbc": "2", "pgjdbc 9.0": "3", "lib/pq": "2", "sqlx": "2", "options": "0"}
    assert database.sql("show extra_float_digits") == [("1",)]
    clients = {}
    if pool_mode == "transaction":
        clients = {name: login(proxy, **said) for name, said in STARTUP_MESSAGES.items()}
    for _ in range(2):
        plain = login(proxy)
        assert value(plain, "show extra_float_digits") == "1"
        plain.close()
        for name, said in STARTUP_MESSAGES.items():
            client = clients.get(name) or login(proxy, **said)
            assert value(client, "show extra_float_digits") == wanted[name], name
            run(client, "reset all")
            assert value(client, "show extra_float_digits") == wanted[name], name
            if name not in clients:
                client.close()
    assert len(database.pids()) <= 2


def test_extra_float_digits_is_dropped_where_it_is_to_be_ignored_and_refused_where_the_server_does(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    fields = error(make_raw_client(proxy.port).login(extra_float_digits="9")[-1:])
    assert (fields["S"], fields["C"]) == ("FATAL", "22023"), fields
    with proxy.run_with_config(ignore_startup_parameters="extra_float_digits"):
        client = login(proxy, extra_float_digits="9")
        assert value(client, "show extra_float_digits") == "1"


def test_a_login_byte_by_byte_works(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    client = make_raw_client(proxy.port)
    client.send_chopped(startup_message() + query("select 1"))
    assert client.read_types().endswith(b"Z")
    assert client.read_types() == b"TDCZ"
    client.send_chopped(terminate())
    assert client.is_closed()


def test_half_closing_after_a_query_still_brings_its_answer_or_a_clean_end(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    import socket

    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)
    client, other = login(proxy), login(proxy)
    ask(client, "select 1")
    client.socket.shutdown(socket.SHUT_WR)
    client.read_to_end()
    assert value(other, "select 2") == "2"


def test_a_disabled_simple_protocol_is_refused(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", disable_pqexec=1)
    client = login(proxy)
    client.send(parse("select 1"), bind(), execute(), sync())
    assert client.read_types() == b"12DCZ"
    ask(client, "select 1")
    assert error(client.read_to_end())["M"] == "PQexec disallowed"


def test_a_message_over_max_packet_size_is_refused(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", max_packet_size=100_000)
    client, other = login(proxy), login(proxy)
    assert value(client, f"select length('{'x' * 90_000}')") == "90000"
    client.send(b"Q" + struct.pack("!i", 100_001))
    fields = error([found for found in client.read_to_end() if found.type == b"E"])
    assert fields["C"] == "08P01"
    assert value(other, "select 1") == "1"


def test_a_million_small_answers_and_one_large_row_pass(either: Proxy, login: Login, postgres: Postgres) -> None:
    client = login(either, timeout=30)
    assert len(client.query("select generate_series(1, 50000)")) == 50_000 + 3
    assert len(value(client, "select repeat('x', 30000000)") or "") == 30_000_000
    ask(client, "select 1")
    assert answer(client) == "1"


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_reset_gives_back_what_it_resets_and_nothing_else(
    make_proxy: MakeProxy, database: Database, login: Login, pool_mode: str
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode=pool_mode, default_pool_size=2)
    client, other = login(proxy, application_name="mine"), login(proxy)
    run(client, "set time zone 'Asia/Tokyo'; set application_name = 'changed'")
    for harmless in ("reset work_mem", "reset role", "begin; reset work_mem; commit", "begin; reset all; rollback"):
        run(client, harmless)
        assert (value(client, "show timezone"), value(client, "show application_name")) == ("Asia/Tokyo", "changed"), harmless
        run(other, "set time zone 'Europe/Paris'")
    run(client, "reset application_name; set time zone 'Asia/Tokyo'")
    assert (value(client, "show timezone"), value(client, "show application_name")) == ("Asia/Tokyo", "mine")
    run(client, "set application_name = 'changed'")
    run(client, "reset all")
    assert (value(client, "show timezone"), value(client, "show application_name")) == ("Etc/UTC", "mine")
    run(client, "set time zone 'Asia/Tokyo'")
    run(client, "discard all")
    assert (value(client, "show timezone"), value(client, "show application_name")) == ("Etc/UTC", "mine")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_reset_gives_back_startup_parameters_that_servers_do_not_report(
    make_proxy: MakeProxy, database: Database, login: Login, pool_mode: str
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode=pool_mode, default_pool_size=2, track_startup_parameters=1
    )
    own = {"statement_timeout": "12s", "lock_timeout": "3s", "options": "-c app.tenant=7"}
    client, other = login(proxy, **own), login(proxy)
    names = ("statement_timeout", "lock_timeout", "app.tenant")

    def has(*values: str) -> None:
        assert tuple(value(client, f"show {name}") for name in names) == values

    has("12s", "3s", "7")
    for harmless in ("reset work_mem", "reset role", "begin; reset all; rollback", "reset statement_timeout", "reset all"):
        run(client, harmless)
        has("12s", "3s", "7")
        if pool_mode == "transaction":
            assert value(other, "show statement_timeout") == "0", "and nobody else has them"
    run(client, "begin")
    run(client, "reset all")
    has("12s", "3s", "7")
    run(client, "commit")
    has("12s", "3s", "7")
    run(client, "begin; set statement_timeout = '5s'; set app.tenant = '8'")
    run(client, "reset lock_timeout")
    has("5s", "3s", "8")
    run(client, "reset app.tenant")
    has("5s", "3s", "7")
    run(client, "discard temp; rollback")
    has("12s", "3s", "7")
    run(client, "discard all")
    has("12s", "3s", "7")
    if pool_mode == "transaction":
        assert value(other, "show app.tenant") in (None, "")
