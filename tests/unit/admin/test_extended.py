"""console.py by the extended protocol: what psycopg, asyncpg and JDBC send."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from fix_raw import bind, close, describe, execute, flush, message, parse, query, sync

from pgpool_proxy.admin.console import MAX_STATEMENTS
from pgpool_proxy.admin.show import TABLES


def types(messages: list[Any]) -> bytes:
    return b"".join(found.type for found in messages)


def bind_as(formats: list[int], statement: str = "") -> bytes:
    """Bind of the unnamed portal with result formats."""
    return message(b"B", b"\0" + statement.encode() + b"\0\0\0\0\0" + struct.pack(f"!h{len(formats)}h", len(formats), *formats))


def whole(sql: str) -> bytes:
    return parse(sql) + bind() + describe() + execute() + sync()


def test_a_show_by_the_extended_protocol(house: Any) -> None:
    messages = house.console().send(whole("SHOW STATE"))
    assert types(messages) == b"12TDDDCZ"
    assert messages[-2].body == b"SHOW\0"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_describe_of_a_statement_knows_the_columns_before_anything_runs(house: Any, name: str) -> None:
    talk = house.console()
    simple = talk.ask_whole(f"SHOW {name}")[0]
    messages = talk.send(parse(f"SHOW {name}", "s"), describe("S", "s"), flush())
    assert types(messages) == b"1tT"
    assert messages[1].body == b"\0\0"
    assert messages[2] == simple


@pytest.mark.parametrize("sql", ["RELOAD", "SHOW HELP", "BEGIN", "", "SET datestyle = x"])
def test_what_gives_no_rows_is_described_as_no_data(house: Any, sql: str) -> None:
    assert types(house.console().send(parse(sql), describe("S"), bind(), describe("P"), sync())) == b"1tn2nZ"


@pytest.mark.parametrize(
    ("sql", "answer"),
    [("RESUME", b"12E"), ("RELOAD", b"12C"), ("SHOW HELP", b"12NC"), ("", b"12I"), ("SET timezone = x", b"12NC")],
)
def test_commands_by_the_extended_protocol(house: Any, sql: str, answer: bytes) -> None:
    assert types(house.console().send(parse(sql), bind(), execute(), sync())) == answer + b"Z"


def test_a_named_statement_can_be_run_again_and_again(house: Any) -> None:
    talk = house.console()
    talk.send(parse("SHOW VERSION", "v"), sync())
    for _ in range(3):
        assert types(talk.send(bind("v"), execute(), sync())) == b"2DCZ"
    assert types(talk.send(close("S", "v"), sync())) == b"3Z"
    assert talk.send(bind("v"), sync())[0].fields()["C"] == "26000"


def test_numbers_can_be_had_in_binary(house: Any, columns_of: Any) -> None:
    house.client()
    messages = house.console().send(parse("SHOW POOLS"), bind_as([1]), describe("P"), execute(), sync())
    assert {code for _, _, code in columns_of(messages[2])} == {1}
    assert messages[3].values()[:3] == [b"app", b"alice", b"\0\0\0\1"]


def test_numerics_can_be_had_in_binary(house: Any) -> None:
    messages = house.console().send(parse("SHOW STATS_TOTALS"), bind_as([1]), execute(), sync())
    values = messages[2].values()
    assert values[0] == b"pgbouncer"
    assert values[1] == b"\0\0\0\0\0\0\0\0"
    assert values[-1] == b"\0\1\0\0\0\0\0\0\0\1"


def test_each_column_can_have_its_own_format(house: Any) -> None:
    messages = house.console().send(parse("SHOW PEERS"), bind_as([1, 0, 0, 1]), execute(), sync())
    assert messages[2].values() == [b"\0\0\0\2", b"/sockets", b"6433", b"\0\0\0\5"]


@pytest.mark.parametrize(("formats", "sqlstate"), [([2], "22023"), ([0, 0], "08P01"), ([-1], "22023")])
def test_formats_that_do_not_exist_are_refused(house: Any, formats: list[int], sqlstate: str) -> None:
    messages = house.console().send(parse("SHOW PEERS"), bind_as(formats), execute(), sync())
    assert types(messages) == b"1EZ"
    assert messages[1].fields()["C"] == sqlstate


def test_parameters_are_refused(house: Any) -> None:
    messages = house.console().send(parse("SHOW STATE"), bind("", "", "x"), sync())
    assert types(messages) == b"1EZ"
    assert "no parameters" in messages[1].fields()["M"]


def test_after_an_error_everything_is_skipped_up_to_sync(house: Any, orders: Any) -> None:
    talk = house.console(control=orders)
    assert types(talk.send(parse("nonsense"), bind(), execute(), parse("RELOAD"), bind(), execute())) == b"E"
    assert types(talk.send(query("RELOAD"))) == b""
    assert types(talk.send(sync(), whole("SHOW VERSION"))) == b"Z12TDCZ"
    assert orders.asked == []


def test_stats_users_learn_at_parse_that_they_may_not(house: Any, orders: Any) -> None:
    messages = house.console(is_admin=False, control=orders).send(parse("PAUSE"), bind(), execute(), sync())
    assert types(messages) == b"EZ"
    assert messages[0].fields()["C"] == "42501"
    assert orders.asked == []


def test_rows_can_be_had_some_at_a_time(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(parse("SHOW STATE"), bind(), execute("", 2), flush())) == b"12DDs"
    assert types(talk.send(execute("", 2), flush())) == b"DC"
    assert types(talk.send(execute("", 2), sync())) == b"CZ"


def test_exactly_as_many_rows_as_there_are_suspend_the_portal_all_the_same(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(parse("SHOW STATE"), bind(), execute("", 3), execute("", 3), sync())) == b"12DDDsCZ"


def test_sync_ends_portals_and_keeps_statements(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(parse("SHOW STATE", "s"), bind("s", "p"), sync())) == b"12Z"
    messages = talk.send(execute("p"), sync())
    assert types(messages) == b"EZ"
    assert messages[0].fields()["C"] == "34000"
    assert types(talk.send(bind("s"), execute("", 1), sync())) == b"2DsZ"


def test_a_command_does_not_run_twice_by_one_portal(house: Any, orders: Any) -> None:
    messages = house.console(control=orders).send(parse("RELOAD"), bind(), execute(), execute(), sync())
    assert types(messages) == b"12CEZ"
    assert messages[3].fields()["C"] == "55000"
    assert orders.asked == [("reload",)]


def test_a_name_is_used_once(house: Any) -> None:
    talk = house.console()
    messages = talk.send(parse("SHOW STATE", "s"), parse("SHOW STATE", "s"), sync())
    assert messages[1].fields()["C"] == "42P05"
    messages = talk.send(bind("s", "p"), bind("s", "p"), sync())
    assert messages[1].fields()["C"] == "42P05"


def test_the_unnamed_statement_and_portal_are_replaced(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(parse("SHOW STATE"), parse("SHOW VERSION"), bind(), bind(), execute(), sync())) == b"1122DCZ"


def test_closing_what_does_not_exist_is_no_error(house: Any) -> None:
    assert types(house.console().send(close("S", "x"), close("P", "y"), sync())) == b"33Z"


def test_discard_all_forgets_statements(house: Any) -> None:
    talk = house.console()
    talk.send(parse("SHOW STATE", "s"), sync())
    assert talk.outcome("DISCARD ALL") == "RESET"
    assert types(talk.send(parse("SHOW STATE", "s"), sync())) == b"1Z"


def test_statements_and_portals_have_a_bound(house: Any) -> None:
    talk = house.console()
    messages = talk.send(*[parse("SHOW STATE", f"s{number}") for number in range(MAX_STATEMENTS + 1)], sync())
    assert types(messages) == b"1" * MAX_STATEMENTS + b"EZ"
    messages = talk.send(*[bind("s0", f"p{number}") for number in range(MAX_STATEMENTS + 1)], sync())
    assert types(messages) == b"2" * MAX_STATEMENTS + b"EZ"


def test_a_command_that_waits_holds_the_rest_of_its_pipeline(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    assert types(talk.send(parse("PAUSE"), bind(), describe(), execute(), sync(), whole("SHOW VERSION"))) == b"12n"
    orders.done(None)
    assert types(talk.heard()) == b"CZ12TDCZ"


def test_a_cancelled_command_skips_the_rest_of_its_pipeline(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    talk.send(parse("PAUSE"), bind(), execute(), parse("RELOAD"), bind(), execute(), sync())
    talk.cancel()
    assert types(talk.heard()) == b"EZ"
    assert [asked[0] for asked in orders.asked] == ["pause"]


@pytest.mark.parametrize(
    "broken",
    [
        message(b"P", b"name\0SHOW STATE"),
        message(b"P", b"\0SHOW STATE\0\0\1"),
        message(b"P", b"\0SHOW STATE\0\0\0junk"),
        message(b"P", b"\0SHOW STATE\0\x7f\xff"),
        message(b"B", b"\0\0\0\0\0\1\x7f\xff\xff\xff"),
        message(b"B", b"\0\0\0\0\0\0"),
        message(b"B", b""),
        message(b"D", b"X\0"),
        message(b"D", b"S"),
        message(b"C", b""),
        message(b"E", b"\0\0\0"),
    ],
)
def test_a_broken_message_is_an_error_up_to_sync(house: Any, broken: bytes) -> None:
    talk = house.console()
    messages = talk.send(broken, sync())
    assert types(messages) == b"EZ"
    assert messages[0].fields()["M"] == "invalid message format"
    assert types(talk.send(whole("SHOW VERSION"))) == b"12TDCZ"


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_the_borders_of_chunks_do_not_matter(house: Any, size: int) -> None:
    data = whole("SHOW STATE") + whole("nonsense") + whole("RESUME")
    expected = house.console().send(data)
    talk = house.console()
    found = [one for at in range(0, len(data), size) for one in talk.send(data[at : at + size])]
    assert types(found) == types(expected) == b"12TDDDCZ" + b"EZ" + b"12nEZ"
