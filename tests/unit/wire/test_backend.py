"""Server-to-client messages, built and taken apart."""

from __future__ import annotations

import pytest

from pgpool_proxy.errors import Report
from pgpool_proxy.wire import backend
from pgpool_proxy.wire.framing import MessageReader


def body_of(data: bytes) -> bytes:
    """The body of one message, byte by byte and with something behind it."""
    reader = MessageReader(1 << 20)
    for at in range(len(data)):
        assert not reader.next()
        reader.feed(data[at : at + 1])
    assert reader.next()
    body = reader.body
    again = MessageReader(1 << 20)
    again.feed(data + b"trailing")
    assert again.next()
    assert again.body == body
    assert again.rest() == b"trailing"
    return body


# --- built --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (backend.PARSE_COMPLETE_MESSAGE, backend.message(ord("1"), b"")),
        (backend.BIND_COMPLETE_MESSAGE, backend.message(ord("2"), b"")),
        (backend.CLOSE_COMPLETE_MESSAGE, backend.message(ord("3"), b"")),
        (backend.EMPTY_QUERY_MESSAGE, backend.message(ord("I"), b"")),
        (backend.NO_DATA_MESSAGE, backend.message(ord("n"), b"")),
        (backend.READY_IDLE, backend.message(ord("Z"), b"I")),
        (backend.ready_for_query(ord("T")), b"Z\0\0\0\5T"),
        (backend.AUTHENTICATION_OK, backend.message(ord("R"), bytes(4))),
        (backend.authentication(0), backend.AUTHENTICATION_OK),
        (backend.authentication(5, b"salt"), b"R\0\0\0\x0c\0\0\0\5salt"),
        (backend.parameter_status(b"TimeZone", b"UTC"), b"S\0\0\0\x11TimeZone\0UTC\0"),
        (backend.backend_key_data(b"\0\0\0\1\0\0\0\2"), b"K\0\0\0\x0c\0\0\0\1\0\0\0\2"),
        (backend.command_complete(b"SELECT 1"), b"C\0\0\0\x0dSELECT 1\0"),
        (backend.negotiate_protocol_version(3 << 16, [b"_pq_.x"]), b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"),
        (backend.data_row([b"1", None, b""]), b"D\0\0\0\x13\0\3\0\0\0\x011\xff\xff\xff\xff\0\0\0\0"),
        (
            backend.row_description([("n", 23, 4), ("t", 25, -1)]),
            (
                b"T\0\0\0\x2e\0\2"
                b"n\0\0\0\0\0\0\0\0\0\0\x17\0\4\xff\xff\xff\xff\0\0"
                b"t\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
            ),
        ),
    ],
)
def test_a_message_is_laid_out_as_the_protocol_page_says(built: bytes, expected: bytes) -> None:
    assert built == expected
    body_of(built)


def test_an_error_has_its_fields_and_reads_back() -> None:
    report = Report("it broke", "XX001", "FATAL", "more of it", "mend it")
    data = backend.error_response(report)
    assert data[:1] == b"E"
    assert body_of(data) == b"SFATAL\0VFATAL\0CXX001\0Mit broke\0Dmore of it\0Hmend it\0\0"
    assert backend.error_report(body_of(data)) == report


def test_fields_that_say_nothing_are_left_out() -> None:
    assert backend.error_fields(body_of(backend.error_response(Report("x")))) == {
        "S": "FATAL", "V": "FATAL", "C": "08P01", "M": "x",
    }  # fmt: skip


def test_a_notice_is_one_whatever_the_severity_of_its_report() -> None:
    data = backend.notice_response(Report("hello", "00000", "FATAL"))
    assert data[:1] == b"N"
    assert backend.error_fields(body_of(data))["V"] == "NOTICE"


def test_a_nul_in_a_text_cannot_begin_a_field_of_its_own() -> None:
    report = Report("no such user\0C00000", "28P01", detail="a\0b")
    found = backend.error_report(body_of(backend.error_response(report)))
    assert (found.message, found.sqlstate, found.detail) == ("no such user?C00000", "28P01", "a?b")


def test_a_text_with_lone_surrogates_can_be_sent() -> None:
    body_of(backend.error_response(Report("no such database: \udcff")))


# --- taken apart --------------------------------------------------------------------------------------------------------
def test_an_error_without_sqlstate_has_a_neutral_one() -> None:  # CVE-2026-6666
    report = backend.error_report(b"SFATAL\0Mgo away\0\0")
    assert (report.sqlstate, report.message, report.severity) == ("XX000", "go away", "FATAL")


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\0\0\0", b"C", b"C\0", b"C\0M\0\0", b"S", b"\xff\xff", b"M" * 100_000, bytes(range(256)) * 3]
)
def test_a_broken_error_is_still_a_report(body: bytes) -> None:
    report = backend.error_report(body)
    assert report.sqlstate
    assert report.message
    assert report.severity
    assert backend.error_report(backend.error_response(report)[5:]).message == report.message


def test_of_a_field_given_twice_the_first_counts() -> None:
    assert backend.error_fields(b"Ma\0Mb\0\0") == {"M": "a"}


def test_the_severity_that_is_not_translated_goes_first() -> None:
    assert backend.error_report(b"SFEHLER\0VERROR\0\0").severity == "ERROR"


def test_bytes_that_are_no_utf8_do_not_hide_an_error() -> None:
    assert backend.error_report(b"M\xe4rger\0C42601\0\0").sqlstate == "42601"


@pytest.mark.parametrize(
    ("body", "pair"),
    [
        (b"TimeZone\0UTC\0", (b"TimeZone", b"UTC")),
        (b"search_path\0\0", (b"search_path", b"")),
        (b"", None),
        (b"\0", None),
        (b"\0\0", None),
        (b"a", None),
        (b"a\0b", None),
        (b"a\0b\0c", None),
        (b"a\0b\0c\0", None),
        (b"\0b\0", None),
    ],
)
def test_a_parameter_status_is_a_pair_or_broken(body: bytes, pair: tuple[bytes, bytes] | None) -> None:
    assert backend.parameter_status_pair(body) == pair
