"""Any stream of messages, however it is chopped, has the same messages."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from pgpool_proxy.errors import ProtocolViolation
from pgpool_proxy.wire import frontend, startup
from pgpool_proxy.wire.backend import error_report, error_response, message
from pgpool_proxy.wire.codes import COPY_DATA, DATA_ROW
from pgpool_proxy.wire.framing import Framer, MessageReader

KINDS = st.sampled_from([0x51, 0x50, 0x42, 0x53, COPY_DATA, DATA_ROW, 0, 255])
MESSAGES = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=8)
CUTS = st.lists(st.integers(1, 30), max_size=60)


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    chunks: list[bytes] = []
    at = 0
    for cut in cuts:
        if at >= len(data):
            break
        chunks.append(data[at : at + cut])
        at += cut
    if at < len(data):
        chunks.append(data[at:])
    return chunks


@given(MESSAGES, CUTS, st.sampled_from([COPY_DATA, DATA_ROW]))
def test_what_is_passed_on_is_the_stream_itself(messages, cuts, bulk):
    data = b"".join([message(kind, body) for kind, body in messages])
    framer = Framer(bulk)
    out, seen = b"", []
    for chunk in chopped(data, cuts):
        if framer.feed(chunk):
            while framer.next():
                seen.append(framer.kind)
            out += framer.data[: framer.end]
    assert out == data
    assert seen == [kind for kind, _ in messages if kind not in (bulk, COPY_DATA)]
    assert framer.at_boundary


@given(MESSAGES, CUTS, st.lists(st.sampled_from(["hold", "head", "pass"]), min_size=1))
def test_held_and_passed_messages_keep_their_order_and_their_bytes(messages, cuts, ways):
    """Each message is by turns held until it is whole, held until its head is there, or passed on as it comes."""
    data = b"".join([message(kind, body) for kind, body in messages])
    expected = [(kind, body) for kind, body in messages if kind != COPY_DATA]
    framer = Framer(COPY_DATA)
    out, seen = b"", []
    for chunk in chopped(data, cuts):
        if not framer.feed(chunk):
            continue
        while framer.next():
            way = ways[len(seen) % len(ways)]
            kind, body = expected[len(seen)]
            if way == "hold":
                if not framer.hold():
                    break
                assert framer.data[framer.start : framer.stop] == message(kind, body)
            elif way == "head":
                wanted = min(len(body) + 5, 12)
                if not framer.hold_until(wanted):
                    break
                assert framer.data[framer.start : framer.start + wanted] == message(kind, body)[:wanted]
            seen.append(framer.kind)
        out += framer.data[: framer.end]
    assert out == data
    assert seen == [kind for kind, _ in expected]
    assert framer.at_boundary


@given(MESSAGES, CUTS)
def test_a_reader_gives_every_message_whole(messages, cuts):
    reader = MessageReader(100)
    seen = []
    for chunk in chopped(b"".join([message(kind, body) for kind, body in messages]), cuts):
        reader.feed(chunk)
        while reader.next():
            seen.append((reader.kind, reader.body))
    assert seen == messages
    assert reader.rest() == b""


@given(st.binary(max_size=200), CUTS, st.booleans())
def test_garbage_ends_in_a_violation_or_in_messages_and_in_nothing_else(data, cuts, holds):
    ends = []
    for chunks in ([data] if data else [], chopped(data, cuts)):
        framer = Framer(DATA_ROW, 64)
        seen = []
        violation = False
        try:
            for chunk in chunks:
                if not framer.feed(chunk):
                    continue
                while framer.next():
                    if holds and not framer.hold():
                        break
                    seen.append(framer.kind)
        except ProtocolViolation:
            violation = True
        ends.append((seen, violation))
    assert ends[0] == ends[1]


@given(st.binary(max_size=60))
@example(b"\0\0\0\x09\0\3\0\0\0")
def test_any_first_packet_is_understood_or_refused(data):
    with suppress(ProtocolViolation):
        size = startup.packet_size(data)
        if size and len(data) >= size:
            startup.parse(data[:size])


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)


@given(st.dictionaries(NAMES, st.binary(max_size=12).map(lambda value: value.replace(b"\0", b"x")), max_size=6))
def test_startup_parameters_read_back(pairs):
    packet = frontend.startup(list(pairs.items()))
    assert startup.packet_size(packet) == len(packet)
    found = startup.parse(packet)
    named = {name.decode("utf-8", "replace"): value for name, value in pairs.items() if not name.startswith(b"_pq_.")}
    assert found.parameters == named
    assert sorted(found.options) == sorted(name for name in pairs if name.startswith(b"_pq_."))


@given(st.binary(max_size=120))
def test_any_bytes_make_an_error_that_can_be_passed_on(body):
    report = error_report(body)
    assert error_report(error_response(report)[5:]).message == report.message
