"""The parameters that follow a client, and what is SET for it."""

from __future__ import annotations

import pytest

from pgpool_proxy.session import parameters as module
from pgpool_proxy.session.parameters import ALWAYS_TRACKED, TrackedParameters, literal, parse_options

REPORTED = {
    b"client_encoding": b"UTF8",
    b"DateStyle": b"ISO, MDY",
    b"TimeZone": b"UTC",
    b"standard_conforming_strings": b"on",
    b"application_name": b"",
}


def test_some_are_always_tracked_and_others_on_demand_once() -> None:
    assert tuple(TrackedParameters().names) == (*ALWAYS_TRACKED, b"search_path")
    tracked = TrackedParameters((b"IntervalStyle", b"timezone", b"", b"intervalstyle"))
    assert tracked.names == [*ALWAYS_TRACKED, b"IntervalStyle", b"search_path"]
    assert tracked.asked_for == 6
    assert tracked.index(b"INTERVALSTYLE") == 5
    assert tracked.index(b"lc_messages") == -1


def test_search_path_is_tracked_where_it_is_reported() -> None:
    tracked = TrackedParameters()
    old = tracked.from_reported(REPORTED)
    new = tracked.from_reported({**REPORTED, b"search_path": b"a, b"})
    assert tracked.difference(old, new) == tracked.difference(new, old).partition(b"SELECT")[0] == b""
    other = tracked.from_reported({**REPORTED, b"search_path": b"a, B"})
    assert tracked.difference(other, new) == b"SELECT pg_catalog.set_config('search_path','a, B',false);"


def test_equal_values_are_one_object() -> None:
    tracked = TrackedParameters()
    assert tracked.from_reported(REPORTED) is tracked.from_reported(dict(REPORTED))
    assert tracked.make(tuple([None] * 6)) is tracked.nothing


def test_sharing_is_bounded() -> None:
    tracked = TrackedParameters()
    first = tracked.from_reported(REPORTED)
    for at in range(module.MAX_SHARED + 1):
        tracked.replaced(first, 4, b"%d" % at)
    assert len(tracked._shared) <= module.MAX_SHARED
    assert first.values[0] == b"UTF8"


def test_one_value_is_replaced_and_the_same_value_changes_nothing() -> None:
    tracked = TrackedParameters()
    old = tracked.from_reported(REPORTED)
    assert tracked.replaced(old, 2, b"UTC") is old
    new = tracked.replaced(old, 2, b"Asia/Tokyo")
    assert (old.values[2], new.values[2]) == (b"UTC", b"Asia/Tokyo")
    assert tracked.replaced(new, 2, b"UTC") is old


def test_a_clients_own_values_are_laid_over_in_any_case() -> None:
    tracked = TrackedParameters()
    base = tracked.from_reported(REPORTED)
    found = tracked.overlaid(base, {b"timezone": b"Asia/Tokyo", b"unknown": b"x"})
    assert found is tracked.replaced(base, 2, b"Asia/Tokyo")
    assert tracked.overlaid(base, {}) is base


def difference(**wanted: str) -> bytes:
    tracked = TrackedParameters((b"search_path",))
    base = tracked.from_reported(REPORTED)
    return tracked.difference(tracked.overlaid(base, {name.encode(): value.encode() for name, value in wanted.items()}), base)


def test_only_what_differs_is_set() -> None:
    assert difference() == b""
    assert difference(TimeZone="Asia/Tokyo") == b"SET TimeZone='Asia/Tokyo';"
    assert difference(application_name="x", DateStyle="German") == b"SET DateStyle='German';SET application_name='x';"


def test_values_are_compared_without_case_but_for_the_application_name() -> None:
    assert difference(TimeZone="utc", client_encoding="utf8") == b""
    tracked = TrackedParameters()
    base = tracked.from_reported({**REPORTED, b"application_name": b"App"})
    assert tracked.difference(tracked.overlaid(base, {b"application_name": b"app"}), base) == b"SET application_name='app';"


def test_what_a_client_does_not_know_is_left_alone() -> None:
    tracked = TrackedParameters()
    assert tracked.difference(tracked.nothing, tracked.from_reported(REPORTED)) == b""
    assert tracked.difference(tracked.from_reported(REPORTED), tracked.nothing).count(b"SET ") == 5


def test_a_search_path_stays_a_list() -> None:
    assert difference(search_path='"$user", public') == (
        b"""SELECT pg_catalog.set_config('search_path','"$user", public',false);"""
    )


def test_untracked_parameters_are_set_and_reset() -> None:
    tracked = TrackedParameters()
    base = tracked.from_reported(REPORTED)
    one = tracked.with_extras(base, ((b"my.a", b"1"), (b"work_mem", b"4MB")))
    two = tracked.with_extras(base, ((b"work_mem", b"8MB"),))
    assert tracked.difference(base, base) == b""
    assert tracked.difference(base, two) == b"RESET work_mem;"
    assert tracked.difference(two, one) == b"RESET my.a;SELECT pg_catalog.set_config('work_mem','8MB',false);"
    assert tracked.with_extras(one, one.extras) is one


def test_reset_gives_the_values_of_the_connect_back() -> None:
    tracked = TrackedParameters()
    at_login = tracked.from_reported(REPORTED)
    at_connect = tracked.overlaid(at_login, {b"TimeZone": b"Asia/Tokyo", b"DateStyle": b"German"})
    before = tracked.overlaid(at_login, {b"TimeZone": b"Europe/Paris", b"application_name": b"set before"})
    after = tracked.overlaid(at_login, {b"application_name": b"set behind it"})
    found = tracked.restored(before, after, at_login, at_connect)
    assert found.values[2] == b"Asia/Tokyo"
    assert found.values[4] == b"set behind it"
    assert found.values[1] == at_login.values[1], "the client has set it to what the server has, and the RESET was of another"
    assert tracked.restored(None, at_login, at_login, at_connect) is at_connect


def test_a_reset_of_something_else_changes_nothing() -> None:
    tracked = TrackedParameters()
    at_login = tracked.from_reported(REPORTED)
    at_connect = tracked.overlaid(at_login, {b"TimeZone": b"Asia/Tokyo"})
    assert tracked.restored(at_login, at_login, at_login, at_connect) is at_login


@pytest.mark.parametrize(
    ("value", "sql"),
    [(b"x", b"'x'"), (b"", b"''"), (b"it's", b"'it''s'"), (b"a\\b", rb"E'a\\b'"), (b"\\'", rb"E'\\'''"), (b"';--", b"''';--'")],
)
def test_a_literal_reads_the_same_whatever_standard_conforming_strings_is(value: bytes, sql: bytes) -> None:
    assert literal(value) == sql


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        (b"", []),
        (b"   ", []),
        (b"-c a=b", [(b"a", b"b")]),
        (b"-ca=b --work-mem=4MB", [(b"a", b"b"), (b"work_mem", b"4MB")]),
        (b"-c search_path=a\\ b", [(b"search_path", b"a b")]),
        (b"-c a=b\\\\c", [(b"a", b"b\\c")]),
        (b"-c a=b=c\t-c\nd=", [(b"a", b"b=c"), (b"d", b"")]),
        (b"-c", None),
        (b"-c a", None),
        (b"-c =b", None),
        (b"--a", None),
        (b"-d 5", None),
        (b"x", None),
        (b"-c a=b x", None),
    ],
)
def test_options_are_split_as_postgresql_does(options: bytes, pairs: list[tuple[bytes, bytes]] | None) -> None:
    assert parse_options(options) == pairs
