"""Random sessions: with pin a client sees what it would see on a server of its own, with reset nobody sees anything of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from uuid import uuid4

import pytest
from fix_clients import Database, Login, rows, run
from fix_postgres import Postgres
from fix_proxy import MakeProxy
from fix_raw import MakeRawClient, Message, RawClient, bind, execute, parse, sync

STATEMENTS = [
    *["begin", "commit", "rollback", "savepoint s", "rollback to s", "release s", "select 1/0", "select 1"] * 2,
    "set work_mem = '77MB'", "set local work_mem = '66MB'", "set work_mem to default", "reset work_mem", "reset all",
    "set app.tenant = 'x'", "reset app.tenant", "set application_name = 'me'", "set time zone 'Asia/Tokyo'",
    "select set_config('work_mem', '55MB', false)", "select set_config('work_mem', '44MB', true)",
    "set session characteristics as transaction read only", "set session characteristics as transaction read write",
    "set transaction isolation level serializable", "set role pg_monitor", "reset role", "set local role pg_monitor",
    "set session authorization md5_user", "reset session authorization", "set session authorization default",
    "listen a", "listen b", "unlisten a", "unlisten *",
    "prepare p as select 1", "prepare q (int) as select $1", "deallocate p", "deallocate all", "execute p",
    "declare c cursor with hold for select generate_series(1, 9)", "declare d cursor for select 1", "close c", "close all",
    "fetch 2 from c", "create temp table t (x int)", "create temp table u as select 1 as x", "drop table t", "drop table u",
    "create temp table v (x int) on commit drop", "discard temp", "discard all", "discard plans",
    "select pg_advisory_lock(1)", "select pg_advisory_lock(x) from generate_series(1, 2) as x",
    "select pg_try_advisory_lock_shared(1)", "select pg_advisory_unlock(1)", "select pg_advisory_unlock_shared(1)",
    "select pg_advisory_unlock_all()", "select pg_advisory_xact_lock(3)",
]  # fmt: skip

SHOWN = """select current_setting('work_mem'), nullif(current_setting('app.tenant', true), ''),
    current_setting('application_name'), current_setting('timezone'), current_setting('default_transaction_read_only'),
    current_user, session_user,
    (select string_agg(c, ',' order by c) from pg_listening_channels() as c),
    (select string_agg(name, ',' order by name) from pg_prepared_statements where from_sql),
    (select string_agg(name, ',' order by name) from pg_cursors where is_holdable),
    (select string_agg(relname, ',' order by relname) from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'),
    (select string_agg(format('%s %s', objid, mode), ',' order by objid, mode) from pg_locks
        where locktype = 'advisory' and pid = pg_backend_pid())"""


@pytest.fixture
def twin(shared_postgres: Postgres) -> Iterator[str]:
    """A database for the session that is compared with: advisory locks are each database's own."""
    name = f"t_{uuid4().hex[:12]}"
    shared_postgres.create_database(name)
    yield name
    shared_postgres.sql(f"drop database {name} with (force)", dbname="postgres")


def outcome(messages: list[Message]) -> list[object]:
    """What is the same on any server."""
    found: list[object] = []
    for one in messages:
        if one.type == b"E":
            found.append(one.fields()["C"])
        elif one.type in (b"C", b"D", b"Z"):
            found.append(one.body)
    return found


def do(client: RawClient, statements: list[str], extended: bool) -> list[object]:
    if extended:
        client.send(*(message for text in statements for message in (parse(text), bind(), execute())), sync())
        return outcome(client.read_until(b"Z"))
    return outcome(client.query("; ".join(statements)))


def session(seed: int) -> Iterator[tuple[list[str], bool]]:
    """Statements that are sent together, and whether in the extended protocol."""
    chance = random.Random(seed)
    for _ in range(40):
        yield chance.choices(STATEMENTS, k=chance.choice((1, 1, 1, 2, 3))), chance.random() < 0.4
    yield ["rollback"], False


def direct(make_raw_client: MakeRawClient, server: Postgres, name: str) -> RawClient:
    client = make_raw_client(server.port)
    assert client.login(user="postgres", database=name)[-1].type == b"Z"
    return client


@pytest.mark.parametrize("seed", range(4))
def test_a_pinned_session_cannot_be_told_from_one_of_its_own(
    make_proxy: MakeProxy, database: Database, twin: str, login: Login, make_raw_client: MakeRawClient, seed: int
) -> None:
    entry = database.entry(user="postgres")
    proxy = make_proxy(databases={"app": entry}, pool_mode="transaction", default_pool_size=2, session_state="pin")
    client, other = login(proxy), login(proxy)
    own = direct(make_raw_client, database.server, twin)
    history: list[object] = []
    for statements, extended in session(seed):
        history.append((statements, extended))
        found = do(client, statements, extended)
        assert found == do(own, statements, extended), history
        if found[-1] == b"I":  # somebody else uses the servers that are free, and leaves nothing in the end
            run(other, "set work_mem = '99MB'; listen z; create temp table t ()")
            assert rows(client.query(SHOWN)) == rows(own.query(SHOWN)), history
            run(other, "reset work_mem; unlisten z; drop table t")
        elif found[-1] == b"T":
            assert rows(client.query(SHOWN)) == rows(own.query(SHOWN)), history


@pytest.mark.parametrize("seed", range(4))
def test_nobody_meets_what_a_session_leaves_behind_when_it_is_reset(
    make_proxy: MakeProxy, database: Database, login: Login, seed: int
) -> None:
    entry = database.entry(user="postgres")
    proxy = make_proxy(databases={"app": entry}, pool_mode="transaction", default_pool_size=1, session_state="reset")
    client, other = login(proxy), login(proxy)
    clean = rows(other.query(SHOWN))
    history: list[object] = []
    for statements, extended in session(seed):
        history.append((statements, extended))
        found = do(client, statements, extended)
        if found[-1] == b"I":
            assert rows(other.query(SHOWN)) == clean, history
