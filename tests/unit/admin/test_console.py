"""console.py by the simple protocol: messages in, answers out, whatever the borders of the chunks."""

from __future__ import annotations

import struct
from itertools import count
from typing import Any

import pytest
from fix_raw import message, query, sync, terminate

from pgpool_proxy import errors
from pgpool_proxy.admin.commands import COMMANDS
from pgpool_proxy.admin.console import CONSOLE_PARAMETERS, MAX_MESSAGE, MAX_WAITING, ROWS_AT_A_TIME
from pgpool_proxy.admin.control import error
from pgpool_proxy.admin.show import TABLES
from pgpool_proxy.pool.states import CL_CLOSED


def types(messages: list[Any]) -> bytes:
    return b"".join(found.type for found in messages)


def test_a_login_is_told_pgbouncers_version() -> None:
    assert CONSOLE_PARAMETERS == {
        b"server_version": b"1.25.2/bouncer",
        b"client_encoding": b"UTF8",
        b"server_encoding": b"UTF8",
        b"DateStyle": b"ISO",
        b"TimeZone": b"GMT",
        b"standard_conforming_strings": b"on",
        b"is_superuser": b"on",
    }


def test_a_show_is_answered_with_a_description_rows_and_the_tag_show(house: Any) -> None:
    messages = house.console().ask("show state")
    assert types(messages) == b"TDDDCZ"
    assert messages[-2].body == b"SHOW\0"
    assert messages[-1].body == b"I"


def test_select_is_another_word_for_show(house: Any) -> None:
    talk = house.console()
    assert talk.ask("SELECT version") == talk.ask("SHOW VERSION")


def test_help_is_a_notice_with_the_list_in_its_detail(house: Any) -> None:
    notice, complete, ready = house.console().ask("SHOW HELP")
    assert (notice.type, complete.body, ready.type) == (b"N", b"SHOW\0", b"Z")
    assert notice.fields()["M"] == "Console usage"
    assert notice.fields()["D"].startswith("\n\tSHOW HELP|CONFIG|")


@pytest.mark.parametrize("sql", ["", ";", "  "])
def test_a_query_that_says_nothing_is_answered_as_empty(house: Any, sql: str) -> None:
    assert types(house.console().ask(sql)) == b"IZ"


@pytest.mark.parametrize(
    "sql", ["SHOW", "SHOW NOTHING", "FROB", "SHOW POOLS x", "RELOAD x", "SHUTDOWN x", "SHOW POOLS TIMEOUT 3"]
)
def test_what_is_not_known_is_an_error_and_the_conversation_goes_on(house: Any, sql: str) -> None:
    talk = house.console()
    failure, ready = talk.ask(sql)
    assert failure.fields()["S"] == "ERROR"
    assert failure.fields()["C"] == "08P01"
    assert failure.fields()["M"] == f"invalid command '{sql}', use SHOW HELP;"
    assert ready.body == b"I"
    assert talk.outcome("SHOW STATE") == "SHOW"
    assert [report.message for report in house.notified] == ["invalid command"]


@pytest.mark.parametrize(
    ("name", "value"), [("client_encoding", "UTF-8"), ("DateStyle", "ISO"), ("timezone", "GMT"), ("extra_float_digits", "2")]
)
def test_parameters_that_drivers_ask_for_are_pretended(house: Any, name: str, value: str) -> None:
    talk = house.console(is_admin=False)
    assert talk.rows(f"SHOW {name}") == [{name.lower(): value}]
    notice, complete, _ = talk.ask(f"SET {name} = 'x'")
    assert notice.fields()["M"] == "SET ignored"
    assert complete.body == b"SET\0"


@pytest.mark.parametrize(
    ("sql", "tag"), [("BEGIN", "BEGIN"), ("COMMIT", "COMMIT"), ("ROLLBACK", "ROLLBACK"), ("DISCARD ALL", "RESET")]
)
def test_what_drivers_say_unasked_has_no_effect(house: Any, sql: str, tag: str) -> None:
    assert house.console(is_admin=False).outcome(sql) == tag


# --- commands -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sql", "order", "tag"),
    [
        ("PAUSE", ("pause", None, 0.0), "PAUSE"),
        ("pause app", ("pause", "app", 0.0), "PAUSE"),
        ("PAUSE app TIMEOUT 30;", ("pause", "app", 30.0), "PAUSE"),
        ("RESUME", ("resume", None), "RESUME"),
        ('RESUME "my db"', ("resume", "my db"), "RESUME"),
        ("SUSPEND", ("suspend",), "SUSPEND"),
        ("DISABLE app", ("disable", "app"), "DISABLE"),
        ("ENABLE app", ("enable", "app"), "ENABLE"),
        ("RECONNECT", ("reconnect", None), "RECONNECT"),
        ("RECONNECT app", ("reconnect", "app"), "RECONNECT"),
        ("WAIT_CLOSE", ("wait_close", None, 0.0), "WAIT_CLOSE"),
        ("WAIT_CLOSE app timeout 2", ("wait_close", "app", 2.0), "WAIT_CLOSE"),
        ("KILL", ("kill", None), "KILL"),
        ("KILL app", ("kill", "app"), "KILL"),
        ("KILL_CLIENT 42", ("kill_client", 42), "KILL_CLIENT"),
        ("RELOAD", ("reload",), "RELOAD"),
        ("SHUTDOWN WAIT_FOR_SERVERS", ("shutdown", "wait_for_servers"), "SHUTDOWN"),
        ("shutdown wait_for_clients", ("shutdown", "wait_for_clients"), "SHUTDOWN"),
        ("SHUTDOWN", ("shutdown", "now"), "SHUTDOWN"),
        ("SET pool_mode = 'session'", ("set", "pool_mode", "session"), "SET pool_mode=session"),
    ],
)
def test_a_command_becomes_an_order_and_is_answered_with_its_tag(
    house: Any, orders: Any, sql: str, order: tuple[object, ...], tag: str
) -> None:
    assert house.console(control=orders).outcome(sql) == tag
    assert orders.asked == [order]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_cve_2026_6667_stats_users_may_only_read(house: Any, orders: Any, name: str) -> None:
    talk = house.console(is_admin=False, control=orders)
    argument = {"DISABLE": " app", "ENABLE": " app", "KILL_CLIENT": " 1", "SET": " pool_mode = session"}.get(name, "")
    assert talk.outcome(name + argument) == "42501 admin access needed"
    assert orders.asked == []


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"FDS"}))
def test_stats_users_may_read_everything_but_sockets(house: Any, name: str) -> None:
    assert house.console(is_admin=False).outcome(f"SHOW {name}") == "SHOW"


def test_show_fds_shows_sockets_to_admins_and_no_secret(house: Any) -> None:
    client = house.busy()
    assert house.console(is_admin=False).outcome("SHOW FDS") == "42501 admin access needed"
    rows = house.console().rows("SHOW FDS")
    assert [row["task"] for row in rows] == ["pooler", "client", "server"]
    assert rows[1]["user"] == client.user_name
    for row in rows:
        assert (row["cancel"], row["password"], row["scram_client_key"], row["state"]) in [
            (None, None, None, None), ("0", None, None, None),
        ]  # fmt: skip


@pytest.mark.parametrize("sql", ["DISABLE", "ENABLE"])
def test_some_commands_need_a_database(house: Any, orders: Any, sql: str) -> None:
    assert house.console(control=orders).outcome(sql) == "08P01 a database is required"


@pytest.mark.parametrize("argument", ["", " x", " 0x12", ' "-1"', " 99999999999999999999"])
def test_kill_client_needs_a_number(house: Any, orders: Any, argument: str) -> None:
    assert house.console(control=orders).outcome("KILL_CLIENT" + argument) == "08P01 invalid client pointer supplied"
    assert orders.asked == []


def test_only_orders_that_wait_take_a_timeout(house: Any, orders: Any) -> None:
    assert house.console(control=orders).outcome("KILL app TIMEOUT 3").startswith("08P01 invalid command")


def test_an_order_that_fails_is_an_error_and_the_conversation_goes_on(house: Any, orders: Any) -> None:
    orders.answer = error("already suspended/paused")
    talk = house.console(control=orders)
    assert talk.outcome("PAUSE") == "08P01 already suspended/paused"
    assert talk.outcome("SHOW STATE") == "SHOW"


def test_an_order_that_is_done_with_a_but_has_a_notice(house: Any, orders: Any) -> None:
    orders.answer = errors.Report("TLS settings could not be applied, still using old configuration", "00000", "NOTICE")
    assert types(house.console(control=orders).ask("SET client_tls_sslmode = allow")) == b"NCZ"


# --- orders that wait ---------------------------------------------------------------------------------------------------
def test_what_comes_behind_an_order_that_waits_is_answered_after_it(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    assert talk.send(query("PAUSE"), query("SHOW STATE")) == []
    assert talk.ask("SHOW VERSION") == []
    orders.done(None)
    assert types(talk.heard()) == b"CZ" + b"TDDDCZ" + b"TDCZ"


def test_much_behind_an_order_that_waits_is_not_read(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    talk.ask("PAUSE")
    talk.send(query("SHOW STATE") * 1000)
    assert talk.wire.reading
    talk.send(query("SHOW STATE") * (MAX_WAITING // 16))
    assert not talk.wire.reading
    orders.done(None)
    assert talk.wire.reading
    assert types(talk.heard()).count(b"Z") == 1 + 1000 + MAX_WAITING // 16


def test_a_cancel_ends_an_order_that_waits(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    talk.ask("PAUSE")
    talk.cancel()
    failure, ready = talk.heard()
    assert (failure.fields()["C"], ready.body) == ("57014", b"I")
    assert orders.undone == 1


def test_a_cancel_when_nothing_waits_does_nothing(house: Any) -> None:
    talk = house.console()
    talk.cancel()
    assert talk.heard() == []


def test_a_client_that_leaves_abandons_its_order(house: Any, orders: Any) -> None:
    orders.waits = True
    talk = house.console(control=orders)
    talk.ask("PAUSE")
    talk.leaves()
    assert (orders.abandoned, orders.undone, len(orders.closed)) == (1, 0, 1)
    orders.done(None)
    assert talk.heard() == []


# --- long answers -------------------------------------------------------------------------------------------------------
def test_a_long_answer_is_sent_in_parts_between_which_others_have_their_turn(house: Any, orders: Any) -> None:
    orders.row_source = [(f"r{number}", "x") for number in range(ROWS_AT_A_TIME * 2 + 7)]
    talk = house.console(control=orders)
    assert types(talk.send(query("SHOW STATE"), query("SHOW VERSION"))) == b"T" + b"D" * ROWS_AT_A_TIME
    house.run_later()
    assert types(talk.heard()) == b"D" * ROWS_AT_A_TIME
    orders.row_source = [("v",)]
    house.run_later()
    assert types(talk.heard()) == b"D" * 7 + b"CZ" + b"TDCZ"


def test_rows_are_not_made_for_a_client_that_does_not_read_them(house: Any, orders: Any) -> None:
    made = count()
    orders.row_source = ((str(next(made)), "x") for _ in range(10_000))
    talk = house.console(control=orders)
    talk.ask("SHOW STATE")
    talk.session.writing_paused(house.clock_now)
    for _ in range(10):
        house.run_later()
    assert next(made) == ROWS_AT_A_TIME
    talk.session.writing_resumed()
    house.run_later()
    assert len(talk.heard()) == ROWS_AT_A_TIME


def test_statements_are_not_answered_for_a_client_that_does_not_read(house: Any) -> None:
    talk = house.console()
    talk.session.writing_paused(house.clock_now)
    assert talk.ask("SHOW STATE") == []
    house.run_later()
    assert talk.heard() == []
    talk.session.writing_resumed()
    house.run_later()
    assert types(talk.heard()) == b"TDDDCZ"
    assert house.later == []


def test_a_cancel_ends_a_long_answer(house: Any, orders: Any) -> None:
    orders.row_source = [("a", "b")] * 1000
    talk = house.console(control=orders)
    talk.ask("SHOW STATE")
    talk.cancel()
    assert types(talk.heard()) == b"EZ"
    house.run_later()
    assert talk.heard() == []
    assert talk.outcome("RELOAD") == "RELOAD"


def test_a_client_that_leaves_in_a_long_answer_gets_no_more(house: Any, orders: Any) -> None:
    orders.row_source = [("a", "b")] * 1000
    talk = house.console(control=orders)
    talk.ask("SHOW STATE")
    talk.leaves()
    house.run_later()
    assert talk.heard() == []


def test_a_fault_in_a_table_costs_its_client_the_connection_and_nobody_else(house: Any, orders: Any) -> None:
    def broken() -> Any:
        yield from [("a", "b")] * ROWS_AT_A_TIME
        raise ZeroDivisionError

    orders.row_source = broken()
    talk = house.console(control=orders)
    talk.ask("SHOW STATE")
    with pytest.raises(ZeroDivisionError):
        house.run_later()
    assert talk.heard()[-1].fields()["C"] == "XX000"
    assert talk.wire.closed


# --- bytes --------------------------------------------------------------------------------------------------------------
CONVERSATION = query("SHOW STATE") + query("nonsense") + query("SET datestyle = 'x'") + query("SHOW VERSION")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_borders_of_chunks_do_not_matter(house: Any, size: int) -> None:
    whole = types(house.console().send(CONVERSATION))
    talk = house.console()
    chopped = b"".join(types(talk.send(CONVERSATION[at : at + size])) for at in range(0, len(CONVERSATION), size))
    assert chopped == whole == b"TDDDCZ" + b"EZ" + b"NCZ" + b"TDCZ"


def test_a_message_that_is_too_long_ends_the_conversation_when_its_header_is_there(house: Any) -> None:
    talk = house.console()
    (failure,) = talk.send(b"Q" + struct.pack("!i", MAX_MESSAGE))
    assert (failure.fields()["S"], failure.fields()["C"]) == ("FATAL", "08P01")
    assert str(MAX_MESSAGE) in failure.fields()["M"]
    assert talk.wire.closed


def test_what_came_before_a_broken_message_is_answered(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(query("SHOW VERSION") + b"Q\0\0\0\x03")) == b"TDCZE"
    assert talk.wire.closed


@pytest.mark.parametrize("body", [b"SHOW STATE", b"SHOW STATE\0SHOW POOLS\0", b""])
def test_a_query_with_a_broken_body_is_an_error(house: Any, body: bytes) -> None:
    talk = house.console()
    failure, ready = talk.send(message(b"Q", body))
    assert failure.fields()["M"] == "invalid message format"
    assert ready.type == b"Z"
    assert talk.outcome("SHOW STATE") == "SHOW"


def test_bytes_that_are_not_utf8_are_an_error(house: Any) -> None:
    failure, _ = house.console().send(message(b"Q", b"PAUSE caf\xe9\0"))
    assert failure.fields()["C"] == "08P01"


@pytest.mark.parametrize("kind", [b"p", b"Z", b"\0", b"\xff"])
def test_a_message_of_an_unknown_type_ends_the_conversation(house: Any, kind: bytes) -> None:
    talk = house.console()
    (failure,) = talk.send(message(kind, b""))
    assert failure.fields()["M"] == "unknown pkt"
    assert talk.wire.closed


def test_a_function_call_is_refused(house: Any) -> None:
    messages = house.console().send(message(b"F", b"\0\0\0\1"))
    assert messages[0].fields()["C"] == "0A000"
    assert types(messages) == b"EZ"


def test_late_copy_data_is_dropped(house: Any) -> None:
    assert types(house.console().send(message(b"d", b"x"), message(b"c"), message(b"f", b"\0"), sync())) == b"Z"


def test_terminate_ends_the_conversation_behind_what_was_asked_before(house: Any) -> None:
    talk = house.console()
    assert types(talk.send(query("SHOW VERSION"), terminate(), query("SHOW VERSION"))) == b"TDCZ"
    assert talk.session.state == CL_CLOSED
    assert ("client closed", int(talk.session.number), "client close request") in house.orders


def test_many_statements_at_once_do_not_nest(house: Any) -> None:
    messages = house.console().send(query("RESUME nobody") * 5000)
    assert types(messages) == b"EZ" * 5000
