from __future__ import annotations

import pytest

from pgpool_proxy.auth.exchange import Accepted, Reply, parse_require_auth
from pgpool_proxy.errors import SERVER_LOGIN_FAILED, WRONG_PASSWORD_TYPE, AuthenticationFailed, ConfigError

OFFER = b"SCRAM-SHA-256\0\0"
REQUESTS = {"password": (3, b""), "md5": (5, b"salt"), "scram-sha-256": (10, OFFER), "none": (0, b"")}


def test_trusting_server_lets_us_in(doors):
    assert doors.client(None).receive(0, b"") == Accepted()


def test_cleartext_request_gets_the_plain_password(doors):
    exchange = doors.client("secret")
    assert exchange.receive(3, b"") == Reply(b"secret\0")
    assert exchange.receive(0, b"") == Accepted()


@pytest.mark.parametrize("stored", ["md5" + "0" * 32, "scram"])
def test_a_hash_is_never_sent_as_a_password(doors, scram_secret, stored):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client(scram_secret if stored == "scram" else stored).receive(3, b"")
    assert failure.value.report is WRONG_PASSWORD_TYPE


def test_md5_request_cannot_be_answered_from_a_scram_secret(doors, scram_secret):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client(scram_secret).receive(5, b"salt")
    assert failure.value.report is WRONG_PASSWORD_TYPE


@pytest.mark.parametrize("stored", [None, ""])
@pytest.mark.parametrize("method", ["password", "md5", "scram-sha-256"])
def test_server_that_wants_a_password_nobody_knows_is_refused(doors, stored, method):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client(stored).receive(*REQUESTS[method])
    assert failure.value.report is SERVER_LOGIN_FAILED


@pytest.mark.parametrize("code", [-1, 1, 2, 4, 6, 7, 8, 9, 13, 0x7FFFFFFF])
def test_requests_that_are_not_supported_are_refused(doors, code):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client("secret").receive(code, b"")
    assert failure.value.report is SERVER_LOGIN_FAILED


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("allowed", REQUESTS)
def test_server_may_ask_only_for_what_is_required(doors, asked, allowed):
    exchange = doors.client("secret", require=frozenset({allowed}))
    if asked == allowed:
        exchange.receive(*REQUESTS[asked])
        return
    with pytest.raises(AuthenticationFailed, match=asked):
        exchange.receive(*REQUESTS[asked])
    with pytest.raises(AuthenticationFailed):  # and no AuthenticationOk makes up for it
        exchange.receive(0, b"")


@pytest.mark.parametrize(("code", "payload"), [(0, b"x"), (3, b"x")])
def test_requests_with_a_payload_too_many_are_refused(doors, code, payload):
    with pytest.raises(AuthenticationFailed):
        doors.client("secret").receive(code, payload)


def test_nothing_follows_ok(doors):
    exchange = doors.client("secret")
    exchange.receive(0, b"")
    for code, payload in REQUESTS.values():
        with pytest.raises(AuthenticationFailed):
            exchange.receive(code, payload)


def test_require_auth_is_read_as_libpq_does():
    assert parse_require_auth("") == frozenset()
    assert parse_require_auth("scram-sha-256, md5") == {"scram-sha-256", "md5"}
    assert parse_require_auth("!password,!md5") == {"scram-sha-256", "none"}


@pytest.mark.parametrize("text", ["gss", "!oauth", "md5,!password", "scram", "!!md5"])
def test_require_auth_that_cannot_be_kept_is_an_error(text):
    with pytest.raises(ConfigError):
        parse_require_auth(text)
