"""What a text may leave behind: each form of each statement, and what only looks like one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.session import state_texts as texts
from pgpool_proxy.session.parameters import TrackedParameters
from pgpool_proxy.session.state_texts import MAX_TEXT, scan

TRACKED = TrackedParameters([b"IntervalStyle", b"search_path"])
NAMES = {value: name for name, value in vars(texts).items() if name.isupper() and isinstance(value, int) and name != "MAX_TEXT"}


def hints(text: str) -> set[str]:
    found = int(scan(text.encode(), TRACKED))
    return {name for bit, name in NAMES.items() if bit & found and not bit & (bit - 1)}


@pytest.mark.parametrize(
    "text",
    [
        "set work_mem = 1",
        "SET work_mem TO '64MB'",
        "  set\n\tsession work_mem='1'",
        "/* a comment */ set work_mem=1",
        "-- a comment\nset work_mem=1",
        "select 1; set work_mem=1",
        'set "Work_Mem" = 1',
        "set session characteristics as transaction isolation level serializable",
        "set default_transaction_read_only = on;",
        "begin; set local x = 1; commit; set work_mem = 1",
        "select ';'; set work_mem=1",
        "select $$ it's $$; set work_mem = 1",
        "select $a$ $$ ' $a$; set work_mem = 1",
        r"select E'\'; --'; set work_mem = 1",
        "set seed = 0.5",
    ],
)
def test_a_set_that_lasts(text: str) -> None:
    assert "SETS" in hints(text)
    assert "SETS_CUSTOM" not in hints(text)


@pytest.mark.parametrize(
    "text",
    [
        "set local work_mem = 1",
        "set transaction isolation level serializable",
        "set constraints all deferred",
        "set application_name = 'x'",
        "set session datestyle = 'ISO'",
        'set "TimeZone" = 1',
        "set time zone 'UTC'",
        "set names 'utf8'",
        "set session time zone local",
    ],
)
def test_a_set_that_leaves_nothing(text: str) -> None:
    assert hints(text) == {"SETS_NOTHING"}


@pytest.mark.parametrize("text", ["set intervalstyle = iso_8601", "set search_path = a, b", "set schema 'a'"])
def test_a_set_of_an_extra_parameter(text: str) -> None:
    assert hints(text) == {"SETS_EXTRA"}


def test_search_path_is_a_matter_of_its_own_unless_it_is_asked_for() -> None:
    tracked = TrackedParameters([b"IntervalStyle"])
    for text in ("set search_path = a, b", "set schema 'a'"):
        assert texts.scan(text.encode(), tracked) == texts.SETS_PATH
    assert texts.scan(b"select set_config('search_path', '', false)", tracked) == texts.CONFIGURES_PATH


def test_a_parameter_with_a_dot_is_not_in_pg_settings() -> None:
    assert hints("set app.user_id = '5'") == {"SETS", "SETS_CUSTOM"}
    assert hints("select set_config('app.user_id', $1, false)") == {"CONFIGURES", "CONFIGURES_CUSTOM"}


@pytest.mark.parametrize("text", ["set work_mem to default", "set work_mem = DEFAULT ;"])
def test_set_to_default_is_a_reset(text: str) -> None:
    assert hints(text) == {"RESETS_ONE", "SETS_NOTHING"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set role bob", {"SETS_ROLE"}),
        ("set role to 'bob'", {"SETS_ROLE"}),
        ("set session role bob", {"SETS_ROLE"}),
        ("set session authorization 'bob'", {"SETS_ROLE"}),
        ("set session authorization default", {"RESETS_ROLE", "SETS_NOTHING"}),
        ("set role none", {"RESETS_ROLE", "SETS_NOTHING"}),
        ("set local role bob", {"SETS_NOTHING"}),
        ("reset role", {"RESETS_ROLE"}),
        ("reset session authorization", {"RESETS_ROLE"}),
        ("reset all", {"RESETS_ALL"}),
        ("reset work_mem", {"RESETS_ONE"}),
        ("select set_config('role', 'bob', false)", {"CONFIGURES_ROLE"}),
    ],
)
def test_roles_and_resets(text: str, expected: set[str]) -> None:
    assert hints(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select set_config('work_mem', '1', false)", {"CONFIGURES"}),
        ("SELECT pg_catalog.set_config('search_path', '', false);", {"CONFIGURES_EXTRA"}),
        ("select set_config('application_name', 'x', false)", set()),
        ("select set_config($1, $2, $3)", {"CONFIGURES", "CONFIGURES_CUSTOM"}),
        ("select set_config('work_mem', $1, true)", set()),
        ("select set_config('work_mem', 'a,b', TRUE)", set()),
        ("select set_config('work_mem', $1, true), set_config('role', $2, 't')", set()),
        ("select set_config('work_mem', $1, true), set_config('geqo', $2, false)", {"CONFIGURES"}),
    ],
)
def test_set_config(text: str, expected: set[str]) -> None:
    assert hints(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "create temp table t (x int)",
        "CREATE TEMPORARY TABLE IF NOT EXISTS t AS SELECT 1",
        "create local temp sequence s",
        "create or replace temp view v as select 1",
        "create table pg_temp.t (x int)",
        "select 1 into temp t",
        "with a as (select 1) select * into temporary table t from a",
        "create temp table t (x int) on commit delete rows",
        "create temp table a (x int) on commit drop; create temp table b (x int)",
    ],
)
def test_temporary_tables(text: str) -> None:
    assert hints(text) == {"MAKES_TEMP"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("declare c cursor with hold for select 1", {"HOLDS"}),
        ("declare c cursor for select 1", set()),
        ("declare c cursor without hold for select 1", set()),
        ("select pg_advisory_lock(1)", {"LOCKS"}),
        ("select pg_try_advisory_lock_shared(1, 2)", {"LOCKS"}),
        ("select pg_advisory_xact_lock(1)", set()),
        ("select pg_advisory_unlock($1)", {"UNLOCKS"}),
        ("select pg_advisory_unlock_all()", {"UNLOCKS_ALL"}),
        ("unlisten *", {"UNLISTENS_ALL"}),
        ("unlisten a", {"UNLISTENS_ONE"}),
        ("rollback to savepoint s", {"ROLLS_BACK_TO"}),
        ("rollback work to s", {"ROLLS_BACK_TO"}),
        ("rollback", set()),
        ("select pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", {"UNLOCKS_ALL", "UNLISTENS_ALL", "RESETS_ALL"}),
    ],
)
def test_the_others(text: str, expected: set[str]) -> None:
    assert hints(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";;",
        "select 1",
        "update t set x = 1",
        "insert into temperatures values (1)",
        "create table t (x text)",
        "create temp table t (x int) on commit drop",
        "select 'x; set work_mem = 1'",
        'select "x; set work_mem = 1" from t',
        "select 1 -- ; set work_mem = 1",
        "select 1 /* ; set work_mem = 1; */",
        "do $$ begin; set work_mem = 1; end $$",
        "create function f() returns int set work_mem = '1' language sql as 'select 1'",
        "select a$b$c; ",
        "select 1 offset 2",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert hints(text) == set()


def test_a_set_that_is_not_understood_has_no_hint_of_its_own() -> None:
    assert hints("set") == set()
    assert hints("set 'x'") == set()


def test_a_long_text_says_that_it_was_cut() -> None:
    assert hints("insert into t values ('" + "x" * MAX_TEXT) == {"CUT"}
    assert hints("set work_mem = 1;" + " " * MAX_TEXT) == {"SETS", "CUT"}
    assert hints("select 1; " + " " * MAX_TEXT + "; set work_mem = 1") == {"CUT"}


@given(st.binary(max_size=300))
def test_any_bytes_can_be_scanned(data: bytes) -> None:
    assert scan(b"set " + data, TRACKED) >= 0
    assert scan(data, TRACKED) >= 0


@pytest.mark.parametrize(
    "unit",
    ["/*", "'", '"', "$a$", "--", ";", "set ", "set_config(", "set_config('a',", "\\", "e'\\", "create temp ", "into temp ",
     "with hold ", "= default ", "to ", "declare with ", " ", "pg_advisory_lock", "create pg_temp "],
)  # fmt: skip
def test_no_text_takes_long(unit: str) -> None:
    """A hostile client must not stop the others: 4 KiB in some milliseconds at most."""
    for text in (unit * 5000, "set " + unit * 5000, "create " + unit * 5000, "; set set_config('" + unit * 5000):
        start = time.thread_time()
        scan(text.encode(), TRACKED)
        assert time.thread_time() - start < 0.25
