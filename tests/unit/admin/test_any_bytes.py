"""Whatever a client of the console sends: it is answered or thrown out, and nothing else breaks."""

from __future__ import annotations

from typing import Any

import pytest
from fix_raw import bind, close, describe, execute, flush, message, parse, query, sync
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgpool_proxy.errors import ProtocolViolation

SQL = st.sampled_from(
    ["SHOW STATE", "SHOW POOLS", "PAUSE app", "RESUME app", "BEGIN", "", "nonsense", "SET datestyle = x", "RELOAD"]
)
NAMES = st.sampled_from(["", "a", "b"])
MESSAGES = st.one_of(
    SQL.map(query),
    st.builds(parse, SQL, NAMES),
    st.builds(bind, NAMES, NAMES),
    st.builds(describe, st.sampled_from(["S", "P"]), NAMES),
    st.builds(execute, NAMES, st.sampled_from([0, 1, 2])),
    st.builds(close, st.sampled_from(["S", "P"]), NAMES),
    st.just(sync()),
    st.just(flush()),
    st.just(message(b"F", b"")),
)
ANEW_EACH_TIME = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@ANEW_EACH_TIME
@given(st.lists(MESSAGES, max_size=12), st.integers(1, 40))
def test_each_query_and_each_sync_has_one_ready_for_query(house: Any, sent: list[bytes], size: int) -> None:
    talk = type(house)().console()
    data = b"".join(sent) + sync()
    heard = [one for at in range(0, len(data), size) for one in talk.send(data[at : at + size])]
    ready = [one for one in heard if one.type == b"Z"]
    skipped = 0
    failed = False
    for one in sent:  # after an error of the extended protocol, queries are skipped like everything else up to Sync
        kind = one[:1]
        if kind == b"S":
            failed = False
        elif failed:
            skipped += kind in (b"Q", b"F")
        elif kind not in (b"Q", b"F"):
            failed = _fails(one, sent, type(house))
    assert len(ready) == sum(one[:1] in (b"Q", b"F", b"S") for one in sent) + 1 - skipped
    assert heard[-1].type == b"Z"


def _fails(one: bytes, sent: list[bytes], house_type: Any) -> bool:
    """Whether this message is answered with an error when it comes after those before it."""
    talk = house_type().console()
    at = next(number for number, other in enumerate(sent) if other is one)
    talk.send(*sent[:at])
    return any(answer.type == b"E" for answer in talk.send(one))


@ANEW_EACH_TIME
@given(st.binary(max_size=200))
def test_any_bytes_at_all(house: Any, data: bytes) -> None:
    talk = type(house)().console()
    try:
        talk.send(data)
    except ProtocolViolation:
        pytest.fail("the console answers for itself")


@ANEW_EACH_TIME
@given(st.sampled_from(list(b"QPBDECSHFdcf")), st.binary(max_size=60))
def test_any_body_of_a_known_type(house: Any, kind: int, body: bytes) -> None:
    talk = type(house)().console()
    heard = talk.send(message(bytes([kind]), body), sync())
    assert heard[-1].type == b"Z"
