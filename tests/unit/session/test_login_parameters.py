"""login_parameters.py: what a client's StartupMessage asks for, and how servers spell it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pgpool_proxy.errors import ProtocolViolation
from pgpool_proxy.session.login_parameters import LoginParameters, Spellings
from pgpool_proxy.session.parameters import TrackedParameters

TRACKED = TrackedParameters([b"IntervalStyle"])
REPORTED = {b"client_encoding": b"UTF8", b"DateStyle": b"ISO, MDY", b"TimeZone": b"UTC", b"server_version": b"18"}
BASE = TRACKED.from_reported(REPORTED)


def context(ignored: tuple[str, ...] = (), keeps_all: bool = False) -> Any:
    """What `LoginParameters` reads of a Context; in the compiled build a real one is asked for."""
    return SimpleNamespace(tracked=TRACKED, ignored_parameters=frozenset(ignored), track_startup_parameters=keeps_all)


def collected(given: dict[str, bytes], **how: Any) -> LoginParameters:
    found = LoginParameters()
    try:
        found.collect(context(**how), given)
    except TypeError:
        pytest.skip("the compiled build takes no stand-in for a Context")
    return found


def test_tracked_parameters_are_the_clients_own_and_others_of_the_packet_are_no_parameters() -> None:
    found = collected({"user": b"u", "database": b"d", "client_encoding": b"utf-8", "timezone": b"UTC"})
    assert found.own == {b"client_encoding": b"utf-8", b"timezone": b"UTC"}
    assert found.extras == ()


def test_options_are_taken_apart() -> None:
    assert collected({"options": b"-c datestyle=iso --timezone=Asia/Tokyo"}).own == {
        b"datestyle": b"iso",
        b"timezone": b"Asia/Tokyo",
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"geqo": b"off"}, "unsupported startup parameter: geqo"),
        ({"options": b"-c geqo=off"}, "unsupported startup parameter in options: geqo"),
        ({"options": b"-B 5"}, "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"),
    ],
)
def test_what_is_not_tracked_is_refused_in_pgbouncers_words(given: dict[str, bytes], text: str) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        collected(given)
    assert refused.value.report.message == text


def test_what_ignore_startup_parameters_names_is_ignored() -> None:
    assert collected({"geqo": b"off", "options": b"-c jit=off -c geqo=on"}, ignored=("geqo", "jit")).is_empty
    assert collected({"options": b"-c anything=1"}, ignored=("options",)).is_empty


def test_what_drivers_send_at_their_defaults_is_kept_unless_it_is_to_be_ignored() -> None:
    assert collected({"Extra_Float_Digits": b"2"}).extras == ((b"extra_float_digits", b"2"),)
    assert collected({"options": b"-c extra_float_digits=2"}).extras == ((b"extra_float_digits", b"2"),)
    assert collected({"extra_float_digits": b"2"}, ignored=("extra_float_digits",)).is_empty
    assert collected({"options": b"-c extra_float_digits=2"}, ignored=("options",)).is_empty


def test_any_parameter_is_kept_when_the_setting_says_so_but_no_name_that_is_none() -> None:
    found = collected({"statement_timeout": b"5s", "options": b"-c my.tenant=7"}, keeps_all=True)
    assert found.extras == ((b"my.tenant", b"7"), (b"statement_timeout", b"5s"))
    with pytest.raises(ProtocolViolation):
        collected({"a; DROP TABLE x": b""}, keeps_all=True)


def test_a_value_that_the_server_has_already_is_spelled_as_the_server_does() -> None:
    spellings = Spellings(TRACKED, BASE)
    asked = LoginParameters()
    asked.own = {b"Client_Encoding": b"utf8", b"application_name": b"psql"}
    assert not spellings.must_ask(asked)
    values = spellings.parameters_of(asked).values
    assert values[TRACKED.index(b"client_encoding")] == b"UTF8"
    assert values[TRACKED.index(b"application_name")] == b"psql"


def test_another_value_is_asked_for_once_and_known_from_then_on() -> None:
    spellings = Spellings(TRACKED, BASE)
    asked = LoginParameters()
    asked.own = {b"timezone": b"asia/tokyo"}
    assert spellings.must_ask(asked)
    spellings.learn(asked, TRACKED.overlaid(BASE, {b"TimeZone": b"Asia/Tokyo"}))
    assert not spellings.must_ask(asked)
    assert spellings.parameters_of(asked).values[TRACKED.index(b"TimeZone")] == b"Asia/Tokyo"


def test_an_application_name_that_the_server_would_change_is_asked_for() -> None:
    spellings = Spellings(TRACKED, BASE)
    asked = LoginParameters()
    asked.own = {b"application_name": "café".encode()}
    assert spellings.must_ask(asked)
    asked.own = {b"application_name": b"x" * 64}
    assert spellings.must_ask(asked)


def test_extras_are_part_of_a_clients_parameters_and_have_to_be_accepted_once() -> None:
    spellings = Spellings(TRACKED, BASE)
    asked = LoginParameters()
    asked.extras = ((b"statement_timeout", b"5s"),)
    assert spellings.must_ask(asked)
    wanted = spellings.parameters_of(asked)
    assert TRACKED.difference(wanted, BASE) == b"SELECT pg_catalog.set_config('statement_timeout','5s',false);"
    assert TRACKED.difference(BASE, wanted) == b"RESET statement_timeout;"
    spellings.learn(asked, wanted)
    assert not spellings.must_ask(asked)
