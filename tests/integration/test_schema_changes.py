"""Tables, types and functions that change under prepared statements: each statement fails once at most."""

from __future__ import annotations

import pytest
from fix_clients import Database, Login, run
from fix_proxy import MakeProxy, Proxy
from fix_raw import RawClient, bind, describe, execute, parse, sync

SETUP = """
    drop table if exists t, old cascade;
    drop type if exists mood, pair cascade;
    drop function if exists f, rows_of;
    create type mood as enum ('ok');
    create type pair as (a int, b int);
    create table t (a int, b text default 'b', m mood default 'ok');
    insert into t values (1, 'x');
    create view v as select a, b from t;
    create function f(x int) returns int language sql as 'select x';
    create function rows_of() returns table (x int) language sql as 'select 1'
"""
REPLACED_MOOD = "drop type mood cascade; create type mood as enum ('ok', 'new'); alter table t add m mood default 'ok'"

#: name -> the statement, its parameters, what changes under it, and its rows afterwards
CHANGES: dict[str, tuple[str, tuple[str, ...], str, list[list[bytes]]]] = {
    "a column more": ("select * from t", (), "alter table t add c int default 3", [[b"1", b"x", b"ok", b"3"]]),
    "a column less": ("select * from t", (), "alter table t drop m", [[b"1", b"x"]]),
    "a result of another type": ("select m from t", (), "alter table t alter m type text", [[b"ok"]]),
    "a parameter of another type": (
        "select m from t where a = $1", ("1",), "drop view v; alter table t alter a type text using a::text", [[b"ok"]]
    ),
    "a parameter whose type is gone": ("select a from t where m = $1", ("ok",), REPLACED_MOOD, [[b"1"]]),
    "a cast to a type that is gone": ("select $1::mood", ("ok",), REPLACED_MOOD, [[b"ok"]]),
    "a composite type anew": (
        "select row(1, 2)::pair", (), "drop type pair; create type pair as (a int, b text)", [[b"(1,2)"]]
    ),
    "a table anew": (
        "select * from t", (), "drop table t cascade; create table t (z text); insert into t values ('z')", [[b"z"]]
    ),
    "a table under the name of another": (
        "select a from t", (), "alter table t rename to old; create table t (a text); insert into t values ('z')", [[b"z"]]
    ),
    "a view of another shape": (
        "select * from v", (), "create or replace view v as select a, b, 2 as c from t", [[b"1", b"x", b"2"]]
    ),
    "a function of another parameter": (
        "select f($1)", ("1",), "drop function f; create function f(x text) returns text language sql as 'select x'", [[b"1"]]
    ),
    "a function of another result": (
        "select f(1)", (), "drop function f; create function f(x int) returns text language sql as 'select x::text'", [[b"1"]]
    ),
    "a function of other rows": (
        "select * from rows_of()", (),
        "drop function rows_of; create function rows_of() returns table (x text) language sql as $$ select 'x' $$", [[b"x"]],
    ),
    "an enum that grows": ("select a from t where m = $1", ("ok",), "alter type mood add value 'new'", [[b"1"]]),
}  # fmt: skip


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)


def used(client: RawClient, values: tuple[str, ...], *before: bytes) -> list[list[bytes | None]] | str:
    """The rows of statement `s`, or the SQLSTATE of its error."""
    client.send(*before, bind("s", "", *values), execute(), sync())
    found = client.read_until(b"Z")
    failed = [one.fields()["C"] for one in found if one.type == b"E"]
    return failed[0] if failed else [one.values() for one in found if one.type == b"D"]


@pytest.mark.parametrize("through", [True, False], ids=["through the pooler", "beside it"])
def test_a_statement_fails_at_most_once_for_all_clients_and_servers(
    pooled: Proxy, database: Database, login: Login, through: bool
) -> None:
    holder = login(pooled)

    def on_both_servers(client: RawClient, values: tuple[str, ...]) -> list[object]:
        run(holder, "begin")
        first = used(client, values)
        run(holder, "commit")
        return [first, used(client, values)]

    for name, (text, values, change, expected) in CHANGES.items():
        database.sql(SETUP)
        clients = [login(pooled) for _ in range(2)]
        for client in clients:
            used(client, values, parse(text, "s"))
            assert on_both_servers(client, values) != [], name
        if through:
            run(holder, change)
        else:
            database.sql(change)
        newcomer = login(pooled)
        if through:
            assert used(newcomer, values, parse(text, "s"), describe("S", "s")) == expected, name
        found = [one for client in clients for one in on_both_servers(client, values)]
        assert found[1:] == [expected] * 3, f"{name}: {found}"
        assert found[0] == expected or isinstance(found[0], str), f"{name}: {found}"
        if not through:
            assert used(newcomer, values, parse(text, "s"), describe("S", "s")) == expected, name
        assert on_both_servers(newcomer, values) == [expected] * 2, name
        for client in (*clients, newcomer):
            client.close()
