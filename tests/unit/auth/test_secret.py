from __future__ import annotations

import pytest

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.exchange import Derive, Reply, ScramKeys
from pgpool_proxy.auth.secret import Secret, encoded, parse_scram_secret

# CREATE ROLE ... PASSWORD 'pencil' with the salt of RFC 7677
PENCIL = (
    b"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
    b"$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_secret_of_rfc_7677_is_derived_and_parsed():
    derived = scram.new_secret(b"pencil", bytes.fromhex("5b6d99689d12358eeca04b141236fa81"), 4096)
    assert derived.formatted() == PENCIL
    assert parse_scram_secret(PENCIL) == derived


def test_kinds_are_told_apart_as_postgresql_does():
    assert Secret.of("md5" + "0" * 32).kind == "md5"
    assert Secret.of("md5" + "F" * 32).kind == "plain"
    assert Secret.of("md5" + "0" * 31).kind == "plain"
    assert Secret.of("MD5" + "0" * 32).kind == "plain"
    assert Secret.of(PENCIL).kind == "scram"
    assert Secret.of("pencil").kind == "plain"
    assert Secret.of("").is_empty


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"4096:", b"0:"),
        (b"4096:", b"-1:"),
        (b"4096:", b"+4096:"),
        (b"4096:", b" 4096:"),
        (b"4096:", b"4_096:"),
        (b"4096:", b"2147483648:"),
        (b"4096:", b"99999999999999999999:"),
        (b"4096:", b":"),
        (b"4096:", b"4096"),
        (b"gQ==$", b"gQ=$"),
        (b"gQ==$", b"gQ== $"),
        (b"gQ==$", b"gR==$"),
        (b"W22ZaJ0SNY7soEsUEjb6gQ==", b""),
        (b"qY=:", b"qY=$"),
        (b"qY=:", b"qY=:AAAA:"),
        (b"2dU=", b""),
        (b"2dU=", b"2dU=\n"),
        (b"2dU=", b"2dU=$"),
        (b"2dU=", b"2dUAAAA="),
        (b"SCRAM-SHA-256$", b"SCRAM-SHA-1$"),
        (b"SCRAM-SHA-256$", b"scram-sha-256$"),
    ],
)
def test_a_broken_scram_secret_is_none(old, new):
    assert old in PENCIL
    assert parse_scram_secret(PENCIL.replace(old, new)) is None


def test_no_repr_shows_a_secret():
    parsed = parse_scram_secret(PENCIL)
    assert parsed is not None
    shown = repr(
        [
            Secret.of("pencil"),
            Secret.of(PENCIL),
            parsed,
            ScramKeys(b"pencil", b"pencil"),
            Derive(b"pencil", b"pencil", 1),
            Reply(b"pencil"),
        ]
    )
    for hidden in ("pencil", "W22Z", "WG5d", "wfPL"):
        assert hidden not in shown


def test_names_go_back_to_the_bytes_they_came_in():
    assert encoded(b"j\xfc\x80".decode("utf-8", "surrogateescape")) == b"j\xfc\x80"
    assert encoded("jürgen") == "jürgen".encode()
    assert encoded("\ud800") == b"\\ud800"
