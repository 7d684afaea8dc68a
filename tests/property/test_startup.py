"""First packets of any bytes: what they say, or the documented error, and nothing else."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.errors import ProtocolViolation
from pgpool_proxy.wire import startup
from pgpool_proxy.wire.codes import CANCEL_REQUEST, GSSENC_REQUEST, MAX_STARTUP_PACKET, PROTOCOL_3_0, SSL_REQUEST

CODES = st.sampled_from([CANCEL_REQUEST, GSSENC_REQUEST, PROTOCOL_3_0, PROTOCOL_3_0 + 2, SSL_REQUEST, 2 << 16]) | st.integers(
    0, 2**32 - 1
)
WORDS = st.binary(max_size=20).map(lambda word: word.replace(b"\0", b""))


@given(st.binary(max_size=64))
def test_a_size_is_within_the_limits_or_refused(data: bytes) -> None:
    try:
        size = startup.packet_size(data)
    except ProtocolViolation:
        return
    assert size == 0 or 8 <= size <= MAX_STARTUP_PACKET


@given(CODES, st.binary(max_size=300))
def test_any_packet_is_read_or_refused(code: int, body: bytes) -> None:
    try:
        found = startup.parse(struct.pack("!II", len(body) + 8, code) + body)
    except ProtocolViolation:
        return
    assert found.code == code


@given(st.dictionaries(WORDS.filter(bool), WORDS, max_size=8))
def test_parameters_come_back_as_they_were_sent(parameters: dict[bytes, bytes]) -> None:
    body = b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items()) + b"\0"
    found = startup.parse(struct.pack("!II", len(body) + 8, PROTOCOL_3_0) + body)
    sent = {name.decode("utf-8", "replace"): value for name, value in parameters.items() if not name.startswith(b"_pq_.")}
    assert found.parameters == sent
    assert found.options == [name for name in parameters if name.startswith(b"_pq_.")]
