from __future__ import annotations

import hashlib

import pytest

from pgpool_proxy.auth.exchange import Accepted, Challenge, Derive, Secret
from pgpool_proxy.auth.plain import parse_password
from pgpool_proxy.auth.scram import client_key_from, salted_password
from pgpool_proxy.errors import (
    EMPTY_PASSWORD,
    LOGIN_REJECTED,
    PASSWORD_FAILED,
    PASSWORD_TOO_LONG,
    TRUST_FAILED,
    AuthenticationFailed,
    ConfigError,
    IllegalTransition,
    WrongSecret,
)

MD5_OF_SECRET = "md5" + hashlib.md5(b"secretalice").hexdigest()


def test_any_accepts_a_name_that_nobody_knows(doors):
    assert doors.server("any", None, known=False).start() == Accepted()


def test_trust_accepts_a_known_user_without_a_password(doors):
    assert doors.server("trust", None).start() == Accepted()


def test_trust_refuses_an_unknown_user(doors):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.server("trust", None, known=False).start()
    assert failure.value.report is TRUST_FAILED


def test_reject_refuses_a_known_user(doors):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.server("reject", "secret").start()
    assert failure.value.report is LOGIN_REJECTED


def test_a_password_that_trust_did_not_ask_for_is_refused(doors):
    exchange = doors.server("trust", None)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(b"secret\0")


def test_an_auth_type_without_an_exchange_is_an_error_of_the_operator(doors):
    with pytest.raises(ConfigError, match="gss"):
        doors.server("gss", "secret")


def test_cleartext_request_is_code_three_without_payload(doors):
    assert doors.server("plain", "secret").start() == Challenge(3, b"")


@pytest.mark.parametrize("stored", ["secret", MD5_OF_SECRET])
def test_right_password_is_accepted(doors, stored):
    exchange = doors.server("plain", stored)
    exchange.start()
    assert exchange.receive(b"secret\0") == Accepted()


@pytest.mark.parametrize("stored", ["secret", MD5_OF_SECRET])
@pytest.mark.parametrize("typed", [b"Secret\0", b"secre\0", b"secrets\0", b" secret\0"])
def test_wrong_password_is_refused(doors, stored, typed):
    exchange = doors.server("plain", stored)
    exchange.start()
    with pytest.raises(AuthenticationFailed) as failure:
        exchange.receive(typed)
    assert failure.value.report is PASSWORD_FAILED


def test_the_stored_hash_itself_is_no_password(doors):
    exchange = doors.server("plain", MD5_OF_SECRET)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(MD5_OF_SECRET.encode() + b"\0")


def test_scram_secret_verifies_a_typed_password_and_gives_keys(doors, scram_secret):
    exchange = doors.server("password", scram_secret)
    exchange.start()
    step = exchange.receive(b"secret\0")
    assert isinstance(step, Derive)
    assert not step.cacheable
    salted = salted_password(b"secret", b"0123456789abcdef", 4096)
    accepted = exchange.derived(salted)
    assert isinstance(accepted, Accepted)
    assert accepted.keys is not None
    assert accepted.keys.client_key == client_key_from(salted)
    assert accepted.final is None


def test_scram_secret_refuses_a_wrong_password(doors, scram_secret):
    exchange = doors.server("plain", scram_secret)
    exchange.start()
    with pytest.raises(AuthenticationFailed) as failure:
        doors.settled(exchange, exchange.receive(b"wrong\0"))
    assert failure.value.report is PASSWORD_FAILED


def test_a_key_that_was_not_asked_for_is_our_own_fault(doors, scram_secret):
    for stored in ("secret", scram_secret):
        exchange = doors.server("plain", stored)
        exchange.start()
        with pytest.raises(IllegalTransition):
            exchange.derived(bytes(32))


def test_second_password_is_refused(doors, scram_secret):
    exchange = doors.server("plain", scram_secret)
    exchange.start()
    exchange.receive(b"secret\0")
    with pytest.raises(AuthenticationFailed):
        exchange.receive(b"secret\0")


@pytest.mark.parametrize("method", ["plain", "md5"])
def test_empty_password_is_refused_in_its_own_words(doors, method):
    exchange = doors.server(method, "secret")
    exchange.start()
    with pytest.raises(AuthenticationFailed) as failure:
        exchange.receive(b"\0")
    assert failure.value.report is EMPTY_PASSWORD


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
@pytest.mark.parametrize("stored", [None, ""])
def test_a_user_without_a_password_cannot_come_in_with_one(doors, method, stored):
    exchange = doors.server(method, stored)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(b"\0")


@pytest.mark.parametrize("payload", [b"", b"secret", b"sec\0ret\0", b"secret\0\0", b"\0secret\0"])
def test_password_message_must_be_one_string(payload):
    with pytest.raises(AuthenticationFailed):
        parse_password(payload)


@pytest.mark.parametrize("length", [1, 996, 1023, 1024, 2047, 65530])
def test_long_passwords_are_accepted(doors, length):
    exchange = doors.server("plain", Secret("plain", b"x" * length))
    exchange.start()
    assert exchange.receive(b"x" * length + b"\0") == Accepted()


@pytest.mark.parametrize("length", [65531, 1 << 20])
def test_too_long_a_password_is_refused(doors, length):
    exchange = doors.server("plain", "secret")
    exchange.start()
    with pytest.raises(AuthenticationFailed) as failure:
        exchange.receive(b"x" * length + b"\0")
    assert failure.value.report is PASSWORD_TOO_LONG


@pytest.mark.parametrize("mock_kind", ["plain", "md5"])
def test_unknown_user_is_refused_like_a_wrong_password(doors, mock_kind):
    exchange = doors.server("plain", None, known=False, mock_kind=mock_kind)
    assert exchange.start() == Challenge(3, b"")
    with pytest.raises(AuthenticationFailed) as failure:
        exchange.receive(b"secret\0")
    assert failure.value.report is PASSWORD_FAILED


def test_unknown_user_costs_a_derivation_where_known_ones_do(doors):
    exchange = doors.server("plain", None, known=False, mock_kind="scram")
    exchange.start()
    step = exchange.receive(b"secret\0")
    assert isinstance(step, Derive)
    with pytest.raises(AuthenticationFailed) as failure:
        doors.settled(exchange, step)
    assert failure.value.report is PASSWORD_FAILED


# --- a newer secret -------------------------------------------------------------------------------------------------------
def after_wrong(doors, stored, typed: bytes = b"new"):
    exchange = doors.server("plain", stored)
    exchange.start()
    with pytest.raises(WrongSecret):
        doors.settled(exchange, exchange.receive(typed + b"\0"))
    return exchange


@pytest.mark.parametrize("old", ["secret", MD5_OF_SECRET, "scram"])
@pytest.mark.parametrize("new", ["new", "md5" + hashlib.md5(b"newalice").hexdigest()])
def test_a_typed_password_is_held_against_a_newer_secret(doors, scram_secret, old, new):
    exchange = after_wrong(doors, scram_secret if old == "scram" else old)
    assert exchange.again(Secret.of(new)) == Accepted()


def test_a_typed_password_is_held_against_a_newer_scram_secret(doors, scram_secret):
    exchange = after_wrong(doors, "another", b"secret")
    step = doors.settled(exchange, exchange.again(Secret.of(scram_secret)))
    assert isinstance(step, Accepted)
    assert step.keys is not None


@pytest.mark.parametrize("new", ["", "neither"])
def test_a_newer_secret_that_is_empty_or_another_refuses(doors, new):
    with pytest.raises(AuthenticationFailed):
        after_wrong(doors, "secret").again(Secret.of(new))


def test_without_an_answer_there_is_nothing_to_hold_against_another_secret(doors):
    for method in ("plain", "md5", "scram-sha-256", "trust"):
        with pytest.raises(IllegalTransition):
            doors.server(method, "secret").again(Secret.of("secret"))
