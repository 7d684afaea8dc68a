from __future__ import annotations

import hashlib

import pytest

from pgpool_proxy.auth.exchange import Accepted, Challenge, Reply, server_exchange
from pgpool_proxy.auth.md5 import md5_secret
from pgpool_proxy.auth.secret import Secret
from pgpool_proxy.errors import PASSWORD_FAILED, AuthenticationFailed, WrongSecret

SALT = b"\x01\x02\xff\x00"
MD5_OF_SECRET = "md5" + hashlib.md5(b"secretalice").hexdigest()


def answer(password: bytes, user: bytes = b"alice", salt: bytes = SALT) -> bytes:
    """As the protocol page has it: concat('md5', md5(concat(md5(concat(password, username)), random-salt)))."""
    inner = hashlib.md5(password + user).hexdigest().encode()
    return b"md5" + hashlib.md5(inner + salt).hexdigest().encode() + b"\0"


@pytest.mark.parametrize("stored", ["secret", MD5_OF_SECRET])
def test_right_answer_is_accepted(doors, stored):
    exchange = doors.server("md5", stored)
    assert exchange.start() == Challenge(5, SALT)
    assert exchange.receive(answer(b"secret")) == Accepted()


@pytest.mark.parametrize("stored", ["secret", MD5_OF_SECRET])
@pytest.mark.parametrize(
    "payload",
    [
        answer(b"wrong"),
        answer(b"secret", salt=b"\x01\x02\xff\x01"),
        answer(b"secret", user=b"bob"),
        answer(b"secret")[:-1],
        answer(b"secret") + b"\0",
        answer(b"secret").upper(),
        b"secret\0",
        b"",
        b"md5" * 1000,
    ],
)
def test_anything_else_is_refused(doors, stored, payload):
    exchange = doors.server("md5", stored)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(payload)


def test_an_answer_is_good_once(doors):
    exchange = doors.server("md5", "secret")
    exchange.start()
    exchange.receive(answer(b"secret"))
    with pytest.raises(AuthenticationFailed):
        exchange.receive(answer(b"secret"))


def test_an_answer_before_the_question_is_refused(doors):
    with pytest.raises(AuthenticationFailed):
        doors.server("md5", "secret").receive(answer(b"secret", salt=b""))


@pytest.mark.parametrize("mock_kind", ["plain", "md5"])
def test_unknown_user_sees_what_a_wrong_password_sees(doors, mock_kind):
    exchange = doors.server("md5", None, known=False, mock_kind=mock_kind)
    assert exchange.start() == Challenge(5, SALT)
    with pytest.raises(AuthenticationFailed) as failure:
        exchange.receive(answer(b"secret"))
    assert failure.value.report is PASSWORD_FAILED


def test_scram_secret_switches_the_user_to_scram(doors, scram_secret):
    assert doors.server("md5", scram_secret).start() == Challenge(10, b"SCRAM-SHA-256\0\0")


def test_unknown_user_is_asked_for_scram_where_known_ones_are(doors):
    exchange = doors.server("md5", None, known=False, mock_kind="scram")
    assert exchange.start() == Challenge(10, b"SCRAM-SHA-256\0\0")


def test_user_name_beyond_ascii_is_salt_in_its_own_bytes(doors):
    exchange = doors.server("md5", "secret", user="jürgen")
    exchange.start()
    assert exchange.receive(answer(b"secret", user="jürgen".encode())) == Accepted()


def test_user_name_that_is_no_utf8_is_salt_in_its_own_bytes(doors):
    exchange = doors.server("md5", "secret", user=b"j\xfcrgen".decode("utf-8", "surrogateescape"))
    exchange.start()
    assert exchange.receive(answer(b"secret", user=b"j\xfcrgen")) == Accepted()


def test_a_salt_of_the_wrong_length_is_not_sent():
    exchange = server_exchange(
        "md5", "alice", Secret.of("x"), True, salt=lambda: b"123", nonce=lambda: bytes(18), process_secret=b"p"
    )
    with pytest.raises(ValueError, match="4"):
        exchange.start()


@pytest.mark.parametrize("stored", ["secret", MD5_OF_SECRET])
def test_server_that_asks_for_md5_gets_the_answer(doors, stored):
    exchange = doors.client(stored)
    assert exchange.receive(5, SALT) == Reply(answer(b"secret"))
    assert exchange.receive(0, b"") == Accepted()


@pytest.mark.parametrize("salt", [b"", b"123", b"12345"])
def test_server_with_a_salt_of_the_wrong_length_is_refused(doors, salt):
    with pytest.raises(AuthenticationFailed):
        doors.client("secret").receive(5, salt)


def test_md5_secret_is_the_one_of_pg_authid():
    assert md5_secret(b"secret", "alice") == MD5_OF_SECRET.encode()


@pytest.mark.parametrize("new", ["new", "md5" + hashlib.md5(b"newalice").hexdigest()])
@pytest.mark.parametrize("old", ["secret", MD5_OF_SECRET])
def test_an_answer_is_held_against_a_newer_secret_with_the_salt_it_is_for(doors, old, new):
    exchange = doors.server("md5", old)
    exchange.start()
    with pytest.raises(WrongSecret):
        exchange.receive(answer(b"new"))
    assert exchange.again(Secret.of(new)) == Accepted()


@pytest.mark.parametrize("new", ["", "neither", "scram"])
@pytest.mark.parametrize("payload", [answer(b"new"), b""])
def test_a_newer_secret_that_does_not_fit_either_refuses(doors, scram_secret, payload, new):
    exchange = doors.server("md5", "secret")
    exchange.start()
    with pytest.raises(WrongSecret):
        exchange.receive(payload)
    with pytest.raises(AuthenticationFailed):
        exchange.again(Secret.of(scram_secret if new == "scram" else new))
