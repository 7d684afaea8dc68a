"""Client-to-server messages that we send."""

from __future__ import annotations

import pytest

from pgpool_proxy.wire import frontend
from pgpool_proxy.wire.codes import PROTOCOL_3_2
from pgpool_proxy.wire.framing import Framer


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (frontend.TERMINATE_MESSAGE, b"X\0\0\0\4"),
        (frontend.SYNC_MESSAGE, b"S\0\0\0\4"),
        (frontend.FLUSH_MESSAGE, b"H\0\0\0\4"),
        (frontend.CLOSE_UNNAMED_MESSAGE, frontend.close_statement(b"")),
        (frontend.query(b"select 1"), b"Q\0\0\0\x0dselect 1\0"),
        (frontend.query(b""), b"Q\0\0\0\5\0"),
        (frontend.password(b"secret\0"), b"p\0\0\0\x0bsecret\0"),
        (frontend.parse(b"s", b"select $1\0\0\1\0\0\0\x17"), b"P\0\0\0\x16s\0select $1\0\0\1\0\0\0\x17"),
        (frontend.close_statement(b"s"), b"C\0\0\0\7Ss\0"),
    ],
)
def test_a_message_is_laid_out_as_the_protocol_page_says(built: bytes, expected: bytes) -> None:
    assert built == expected
    for chunks in ([built], [built[at : at + 1] for at in range(len(built))], [built + built[:3]]):
        framer = Framer()
        seen = 0
        for chunk in chunks:
            if framer.feed(chunk):
                while framer.next():
                    seen += 1
        assert seen == 1


def test_the_head_of_a_bind_counts_the_bytes_that_follow_it() -> None:
    rest = b"\0\0\0\0\0\0"
    head = frontend.bind_head(b"portal", b"PGPOOL_7", len(rest))
    assert head + rest == frontend.message(ord("B"), b"portal\0PGPOOL_7\0" + rest)
    framer = Framer()
    assert framer.feed(head + rest)
    assert framer.next()
    assert framer.stop == framer.size


def test_first_packets_have_a_length_and_no_type() -> None:
    assert frontend.startup([(b"user", b"a")]) == b"\0\0\0\x10\0\3\0\0user\0a\0\0"
    assert frontend.startup([], PROTOCOL_3_2) == b"\0\0\0\x09\0\3\0\2\0"
    assert frontend.cancel_request(b"12345678") == b"\0\0\0\x10\x04\xd2\x16\x2e12345678"
    assert frontend.SSL_REQUEST_PACKET == b"\0\0\0\x08\x04\xd2\x16\x2f"
