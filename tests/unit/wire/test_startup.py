"""The first packet of a connection, from strangers."""

from __future__ import annotations

import pytest

from pgpool_proxy import errors
from pgpool_proxy.errors import ProtocolViolation, Report
from pgpool_proxy.wire import frontend
from pgpool_proxy.wire.codes import (
    CANCEL_REQUEST,
    GSSENC_REQUEST,
    MAX_STARTUP_PACKET,
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    SSL_REQUEST,
)
from pgpool_proxy.wire.startup import FirstPacket, packet_size, parse


def packet(code: int, body: bytes = b"") -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body


def parsed(body: bytes, code: int = PROTOCOL_3_0) -> FirstPacket:
    return parse(packet(code, body))


def refused(data: bytes) -> Report:
    with pytest.raises(ProtocolViolation) as caught:
        parse(data[: packet_size(data)])
    return caught.value.report


# --- sizes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, MAX_STARTUP_PACKET + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_no_first_packet_has_is_refused(length: int) -> None:
    assert refused(length.to_bytes(4, "big") + bytes(20)) is errors.STARTUP_TOO_LONG


@pytest.mark.parametrize("length", [8, 9, 100, MAX_STARTUP_PACKET])
def test_a_length_that_may_be_is_the_packets_size(length: int) -> None:
    assert packet_size(length.to_bytes(4, "big") + b"trailing") == length


def test_the_size_is_unknown_until_the_length_field_is_there() -> None:
    data = packet(SSL_REQUEST)
    assert [packet_size(data[:at]) for at in range(8)] == [0, 0, 0, 0, 8, 8, 8, 8]


def test_a_packet_cut_out_byte_by_byte_leaves_what_follows_alone() -> None:
    data = frontend.startup([(b"user", b"alice")]) + b"p\0\0\0\5"
    buffer = b""
    for at in range(len(data)):
        buffer += data[at : at + 1]
        size = packet_size(buffer)
        if size and len(buffer) >= size:
            assert parse(buffer[:size]).parameters == {"user": b"alice"}
    assert buffer[size:] == b"p\0\0\0\5"


def test_http_is_refused_by_its_length() -> None:
    assert refused(b"GET / HTTP/1.1\r\n\r\n") is errors.STARTUP_TOO_LONG


# --- requests -----------------------------------------------------------------------------------------------------------
def test_the_requests_for_encryption_are_told_apart() -> None:
    ssl, gss = parse(packet(SSL_REQUEST)), parse(packet(GSSENC_REQUEST))
    assert (ssl.is_ssl_request, ssl.is_gssenc_request, ssl.is_cancel_request) == (True, False, False)
    assert (gss.is_ssl_request, gss.is_gssenc_request, gss.is_cancel_request) == (False, True, False)
    assert parse(frontend.SSL_REQUEST_PACKET).is_ssl_request


@pytest.mark.parametrize("code", [SSL_REQUEST, GSSENC_REQUEST])
def test_a_request_for_encryption_has_no_body(code: int) -> None:
    assert refused(packet(code, b"x")) is errors.STARTUP_TOO_LONG


@pytest.mark.parametrize("size", [8, 12, 260])
def test_a_cancel_key_of_protocol_3_0_and_3_2_is_taken(size: int) -> None:
    key = bytes(range(1, 9)) + bytes(size - 8)
    found = parse(frontend.cancel_request(key))
    assert found.is_cancel_request
    assert found.key == key


@pytest.mark.parametrize("size", [0, 4, 7, 261, 1000])
def test_a_cancel_key_of_another_size_is_refused(size: int) -> None:
    assert refused(packet(CANCEL_REQUEST, bytes(size))) is errors.STARTUP_TOO_LONG


# --- StartupMessage -----------------------------------------------------------------------------------------------------
def test_parameters_come_by_name_and_values_as_they_stood() -> None:
    found = parsed(b"user\0al\xffice\0database\0d\0options\0\0\0")
    assert found.parameters == {"user": b"al\xffice", "database": b"d", "options": b""}
    assert found.minor == 0


def test_a_startup_message_that_we_build_reads_back() -> None:
    pairs = [(b"user", b"u"), (b"database", b"db"), (b"application_name", b"")]
    assert parse(frontend.startup(pairs)).parameters == {"user": b"u", "database": b"db", "application_name": b""}


def test_a_message_without_parameters_has_only_its_terminator() -> None:
    assert parsed(b"\0").parameters == {}


def test_the_last_of_two_values_counts_as_in_postgresql() -> None:
    assert parsed(b"user\0a\0user\0b\0\0").parameters == {"user": b"b"}


def test_a_name_that_is_no_utf8_is_kept_apart_from_those_that_are() -> None:
    assert list(parsed(b"us\xffer\0a\0\0").parameters) == ["us\ufffder"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"user",
        b"user\0alice",
        b"user\0alice\0",
        b"user\0alice\0x",
        b"user\0\0",
        b"user\0alice\0database\0\0",
        b"\0\0",
        b"\0alice\0\0",
        b"user\0alice\0\0\0\0",
        b"x",
    ],
)
def test_a_broken_layout_is_refused(body: bytes) -> None:
    assert refused(packet(PROTOCOL_3_0, body)) is errors.BAD_STARTUP


def test_as_many_parameters_as_fit_are_taken() -> None:
    count = (MAX_STARTUP_PACKET - 9) // 8
    body = b"".join([b"%05d\0v\0" % at for at in range(count)]) + b"\0"
    assert len(parsed(body).parameters) == count


@pytest.mark.parametrize("size", [63, 64, 65, 8192])
def test_a_long_name_is_kept_whole(size: int) -> None:
    assert parsed(b"user\0" + b"u" * size + b"\0\0").parameters["user"] == b"u" * size


# --- versions -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("minor", [0, 1, 2, 9999])
def test_any_minor_version_of_protocol_3_is_understood(minor: int) -> None:
    assert parsed(b"user\0a\0\0", PROTOCOL_3_0 | minor).minor == minor
    assert parsed(b"user\0a\0\0", PROTOCOL_3_2).minor == 2


def test_protocol_options_are_listed_and_are_no_parameters() -> None:
    found = parsed(b"user\0a\0_pq_.test\0on\0_pq_.x\0\0\0")
    assert found.options == [b"_pq_.test", b"_pq_.x"]
    assert found.parameters == {"user": b"a"}


def test_protocol_2_is_refused_by_its_own_words() -> None:
    assert refused(packet(2 << 16, b"user\0a\0\0")) is errors.OLD_PROTOCOL


@pytest.mark.parametrize("code", [4 << 16, 1 << 16, 0, 0xFFFFFFFF, 1234 << 16 | 5681])
def test_any_other_protocol_is_refused_with_its_number(code: int) -> None:
    report = refused(packet(code, b"user\0a\0\0"))
    assert report.sqlstate == errors.UNSUPPORTED_PROTOCOL.sqlstate
    assert report.message == f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}"
