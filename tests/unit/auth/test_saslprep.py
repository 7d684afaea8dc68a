from __future__ import annotations

import pytest

from pgpool_proxy.auth.saslprep import saslprep


@pytest.mark.parametrize(
    ("typed", "prepared"),
    [
        ("I\u00adX", "IX"),  # RFC 4013 section 3: soft hyphen maps to nothing
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),  # NFKC
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),  # other spaces
        ("pass\u1680word", "pass word"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("é", "é"),
        ("e\u0301", "é"),
    ],
)
def test_password_is_prepared_as_rfc_4013_says(typed, prepared):
    assert saslprep(typed.encode()) == prepared.encode()


@pytest.mark.parametrize(
    "typed",
    [
        b"\x07bell",  # ASCII is not touched
        "\x07é".encode(),  # forbidden
        "\u0627\u0031".encode(),  # right-to-left must end so
        "\u0627a\u0628".encode(),  # and have no left-to-right letters
        "\u00ad".encode(),  # nothing would be left
        "\U000e0001é".encode(),
        "\u0221".encode(),  # unassigned in Unicode 3.2
        b"\xff\xfe",  # no UTF-8
        b"\xed\xa0\x80",  # a surrogate
        b"",
    ],
)
def test_password_that_saslprep_refuses_is_used_raw(typed):
    assert saslprep(typed) == typed


@pytest.mark.parametrize("characters", [513, 32_765])
def test_password_that_would_take_long_to_prepare_is_used_raw(characters):
    """Normalizing sorts combining marks in a time that grows with the square of their number."""
    typed = ("\u0301" * (characters // 2 + characters % 2) + "\u0323" * (characters // 2)).encode()
    assert saslprep(typed) == typed


def test_password_of_a_kilobyte_is_prepared():
    assert saslprep("\u00aa".encode() * 512) == b"a" * 512
