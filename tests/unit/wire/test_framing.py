"""Chunks in, message boundaries out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from pgpool_proxy import errors
from pgpool_proxy.errors import ProtocolViolation
from pgpool_proxy.wire.backend import message
from pgpool_proxy.wire.codes import COPY_DATA, DATA_ROW, HEADER_SIZE, MAX_PACKET_SIZE, PARSE, QUERY, SYNC
from pgpool_proxy.wire.framing import Framer, MessageReader, int32_at, nul_at

BAD_LENGTHS = [0, 1, 3, -1, 0xFFFFFFFF, 0x80000000]
ONE_QUERY = message(QUERY, b"select 1\0")
ONE_SYNC = message(SYNC, b"")


def header(length: int, kind: int = QUERY) -> bytes:
    return bytes((kind,)) + (length & 0xFFFFFFFF).to_bytes(4, "big")


def walk(framer: Framer, data: bytes) -> list[int]:
    """The types of the messages that begin in this chunk."""
    found: list[int] = []
    if framer.feed(data):
        while framer.next():
            found.append(int(framer.kind))
    return found


def passed_on(framer: Framer, chunks: list[bytes]) -> bytes:
    out = b""
    for chunk in chunks:
        if framer.feed(chunk):
            while framer.next():
                pass
            out += framer.data[: framer.end]
    return out


def whole(framer: Framer, chunks: Iterator[bytes] | list[bytes]) -> list[bytes]:
    """Every message of the stream, each held until it is whole."""
    found: list[bytes] = []
    for chunk in chunks:
        if not framer.feed(chunk):
            continue
        while framer.next():
            if not framer.hold():
                break
            found.append(framer.data[framer.start : framer.stop])
    return found


def by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# --- numbers ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [0, 1, 255, 256, 0x01020304, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_int32_is_read_unsigned_at_its_place(value: int) -> None:
    assert int32_at(b"xyz" + value.to_bytes(4, "big") + b"!", 3) == value


def test_the_first_nul_is_found_within_its_bounds_only() -> None:
    assert nul_at(b"ab\0cd\0", 0, 6) == 2
    assert nul_at(b"ab\0cd\0", 3, 6) == 5
    assert nul_at(b"ab\0cd\0", 3, 5) == -1
    assert nul_at(b"", 0, 0) == -1


# --- boundaries ---------------------------------------------------------------------------------------------------------
def test_a_chunk_of_whole_messages_gives_each_with_its_boundaries() -> None:
    framer = Framer()
    data = ONE_QUERY + ONE_SYNC
    assert framer.feed(data)
    assert framer.next()
    assert (framer.kind, framer.start, framer.stop) == (QUERY, 0, len(ONE_QUERY))
    assert framer.next()
    assert (framer.kind, framer.start, framer.stop) == (SYNC, len(ONE_QUERY), len(data))
    assert not framer.next()
    assert framer.end == len(data)
    assert framer.at_boundary


@pytest.mark.parametrize("cut", range(1, HEADER_SIZE))
def test_a_header_cut_at_any_byte_is_put_in_front_of_the_next_chunk(cut: int) -> None:
    framer = Framer()
    assert walk(framer, ONE_SYNC + ONE_QUERY[:cut]) == [SYNC]
    assert framer.end == len(ONE_SYNC)
    assert not framer.at_boundary
    assert not framer.is_holding
    assert walk(framer, ONE_QUERY[cut:]) == [QUERY]
    assert framer.data == ONE_QUERY
    assert framer.at_boundary


def test_a_body_that_is_cut_is_passed_on_and_its_tail_is_walked_over() -> None:
    framer = Framer()
    assert walk(framer, ONE_QUERY[:7]) == [QUERY]
    assert framer.end == 7
    assert framer.remaining == len(ONE_QUERY) - 7
    assert walk(framer, ONE_QUERY[7:9]) == []
    assert framer.end == 2
    assert walk(framer, ONE_QUERY[9:] + ONE_SYNC) == [SYNC]
    assert framer.at_boundary


def test_a_tail_that_looks_like_a_message_is_not_one() -> None:
    framer = Framer()
    smuggled = message(QUERY, ONE_QUERY + b"\0")
    assert walk(framer, smuggled[:HEADER_SIZE]) == [QUERY]
    assert walk(framer, smuggled[HEADER_SIZE:]) == []
    assert framer.at_boundary


def test_a_stream_fed_byte_by_byte_is_passed_on_unchanged() -> None:
    data = ONE_QUERY + message(COPY_DATA, b"row\n") + ONE_SYNC + message(PARSE, b"s\0select 1\0\0\0")
    assert passed_on(Framer(COPY_DATA), by_byte(data)) == data
    assert whole(Framer(), by_byte(ONE_QUERY + ONE_SYNC)) == [ONE_QUERY, ONE_SYNC]


def test_messages_of_the_bulk_type_are_stepped_over() -> None:
    framer = Framer(DATA_ROW)
    rows = message(DATA_ROW, b"\0\1\0\0\0\1x") * 3
    assert walk(framer, rows + message(0x43, b"SELECT 3\0")) == [0x43]
    assert walk(framer, rows[:20]) == []
    assert framer.remaining == 4
    assert walk(framer, rows[20:24] + ONE_SYNC) == [SYNC]


def test_copy_data_is_stepped_over_whatever_the_bulk_type() -> None:
    assert walk(Framer(DATA_ROW), message(COPY_DATA, b"x") * 2 + ONE_SYNC) == [SYNC]
    assert walk(Framer(), message(COPY_DATA, b"x") * 2 + ONE_SYNC) == [SYNC]


def test_an_empty_body_is_a_message() -> None:
    assert walk(Framer(), header(4) + header(4, SYNC)) == [QUERY, SYNC]


# --- holding ------------------------------------------------------------------------------------------------------------
def test_a_held_message_comes_again_when_it_is_whole() -> None:
    framer = Framer()
    assert framer.feed(ONE_SYNC + ONE_QUERY[:7])
    assert framer.next()
    assert framer.hold()
    assert framer.next()
    assert not framer.hold()
    assert framer.end == len(ONE_SYNC)
    assert framer.is_holding
    assert not framer.next()
    assert not framer.feed(ONE_QUERY[7:8])
    assert framer.feed(ONE_QUERY[8:] + ONE_SYNC)
    assert framer.next()
    assert framer.hold()
    assert framer.data[framer.start : framer.stop] == ONE_QUERY
    assert framer.next()
    assert framer.kind == SYNC
    assert not framer.next()
    assert framer.at_boundary
    assert not framer.is_holding


def test_hold_until_waits_for_the_head_only() -> None:
    framer = Framer()
    assert framer.feed(ONE_QUERY[:6])
    assert framer.next()
    assert not framer.hold_until(8)
    assert not framer.feed(ONE_QUERY[6:7])
    assert framer.feed(ONE_QUERY[7:10])
    assert framer.next()
    assert framer.hold_until(8)
    assert framer.data == ONE_QUERY[:10]
    assert framer.end == 10
    assert framer.remaining == len(ONE_QUERY) - 10
    assert walk(framer, ONE_QUERY[10:] + ONE_SYNC) == [SYNC]


def test_what_is_kept_can_be_taken_away() -> None:
    framer = Framer()
    assert walk(framer, ONE_SYNC + ONE_QUERY[:3]) == [SYNC]
    assert framer.take_kept() == ONE_QUERY[:3]
    assert framer.take_kept() == b""
    assert framer.at_boundary
    assert walk(framer, ONE_SYNC) == [SYNC]


def test_reset_forgets_a_message_under_way() -> None:
    framer = Framer()
    walk(framer, ONE_QUERY[:8])
    framer.reset()
    assert framer.at_boundary
    assert walk(framer, ONE_SYNC) == [SYNC]
    walk(framer, ONE_QUERY[:2])
    framer.reset()
    assert walk(framer, ONE_SYNC) == [SYNC]


def test_holding_a_message_in_small_chunks_costs_linear_time() -> None:
    framer = Framer()
    body = bytes(200_000)
    data = message(QUERY, body)
    joins = 0
    for at in range(0, len(data), 16):
        if framer.feed(data[at : at + 16]):
            joins += 1
            while framer.next() and framer.hold():
                pass
    assert joins == 2  # the first chunk, and the one that made it whole
    assert framer.at_boundary


def test_a_byte_of_a_message_is_folded_and_zero_when_it_is_not_there() -> None:
    framer = Framer()
    assert framer.feed(ONE_QUERY[:6])
    assert framer.next()
    assert framer.may_be(HEADER_SIZE, ord("S"))
    assert not framer.may_be(HEADER_SIZE, ord("D"))
    assert framer.may_be(HEADER_SIZE + 1, ord("D")), "it is not there yet"


# --- lengths that nobody sends ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", BAD_LENGTHS)
@pytest.mark.parametrize("kind", [QUERY, COPY_DATA, DATA_ROW, 0, 255])
def test_an_impossible_length_breaks_the_protocol(length: int, kind: int) -> None:
    for chunks in ([header(length, kind)], [header(length, kind) + b"tail" * 4], by_byte(header(length, kind))):
        framer = Framer(DATA_ROW)
        assert walk(framer, ONE_SYNC) == [SYNC]
        with pytest.raises(ProtocolViolation) as caught:
            passed_on(framer, chunks)
        expected = errors.BAD_PACKET if 0 <= length < 4 else errors.PACKET_TOO_LONG
        assert caught.value.report is expected


def test_what_stands_before_an_impossible_length_may_be_passed_on() -> None:
    framer = Framer()
    assert framer.feed(ONE_QUERY + header(3))
    assert framer.next()
    with pytest.raises(ProtocolViolation):
        framer.next()
    assert framer.data[: framer.end] == ONE_QUERY


def test_a_length_over_the_bound_is_refused_and_one_at_it_is_not() -> None:
    assert walk(Framer(max_length=100), header(100)) == [QUERY]
    with pytest.raises(ProtocolViolation) as caught:
        walk(Framer(max_length=100), header(101))
    assert caught.value.report is errors.PACKET_TOO_LONG


@pytest.mark.parametrize("kind", [QUERY, COPY_DATA])
def test_nothing_is_allocated_by_a_claimed_length(kind: int) -> None:
    framer = Framer(COPY_DATA)
    tracemalloc.start()
    try:
        framer.feed(header(0x7FFFFFFF, kind) + b"x" * 100)
        if framer.next():
            assert not framer.hold()
        framer.feed(b"y" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_the_longest_length_does_not_wrap() -> None:
    framer = Framer()
    assert walk(framer, header(MAX_PACKET_SIZE) + b"x") == [QUERY]
    assert framer.remaining == MAX_PACKET_SIZE - 4 - 1


# --- whole messages -----------------------------------------------------------------------------------------------------
def test_a_reader_gives_whole_messages_and_leaves_the_rest() -> None:
    for chunks in ([ONE_QUERY + ONE_SYNC + b"tail"], by_byte(ONE_QUERY + ONE_SYNC + b"tail")):
        reader = MessageReader(100)
        found: list[tuple[int, bytes]] = []
        for chunk in chunks:
            reader.feed(chunk)
            while reader.next():
                found.append((int(reader.kind), reader.body))
        assert found == [(QUERY, b"select 1\0"), (SYNC, b"")]
        assert reader.rest() == b"tail"
        assert reader.rest() == b""


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_a_reader_refuses_an_impossible_length_as_soon_as_it_is_said(length: int) -> None:
    reader = MessageReader(1000)
    reader.feed(header(length)[:4])
    assert not reader.next()
    reader.feed(header(length)[4:])
    with pytest.raises(ProtocolViolation):
        reader.next()


def test_a_readers_limit_is_that_of_the_whole_message() -> None:
    reader = MessageReader(20)
    reader.feed(message(QUERY, bytes(15)))
    assert reader.next()
    reader.feed(message(QUERY, bytes(16))[:5])
    with pytest.raises(ProtocolViolation) as caught:
        reader.next()
    assert caught.value.report is errors.PACKET_TOO_LONG
