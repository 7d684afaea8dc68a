"""One test for each advisory (of poolers and their neighbours) that is about logging in."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from pgpool_proxy.auth.exchange import Challenge, Reply
from pgpool_proxy.errors import AuthenticationFailed

OFFER = b"SCRAM-SHA-256\0\0"
NONCE = base64.b64encode(bytes(range(100, 118)))


def after_first(doors, message: bytes) -> None:
    """A server's challenge after our first message."""
    exchange = doors.client("secret")
    exchange.receive(10, OFFER)
    exchange.receive(11, message)


def test_cve_2015_6817_failed_lookup_never_falls_through_to_the_secret_at_hand(doors):
    """PgBouncer left a client logged in as auth_user when the lookup failed."""
    for method in ("plain", "md5", "scram-sha-256"):
        exchange = doors.server(method, "auth_user's password", user="mallory", known=False)
        step = exchange.start()
        assert isinstance(step, Challenge)
        answers = {
            "plain": b"auth_user's password\0",
            "md5": b"md5"
            + hashlib.md5(hashlib.md5(b"auth_user's passwordmallory").hexdigest().encode() + step.payload).hexdigest().encode()
            + b"\0",
            "scram-sha-256": doors.initial(b"n,,n=,r=abc"),
        }
        if method == "scram-sha-256":
            exchange.receive(answers[method])
            answers[method] = b"c=biws,r=abc" + NONCE + b",p=" + base64.b64encode(bytes(32))
        with pytest.raises(AuthenticationFailed):
            doors.settled(exchange, exchange.receive(answers[method]))


@pytest.mark.parametrize(
    "payload",
    [
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\x7f\xff\xff\xff",
        b"SCRAM-SHA-256\0\x80\x00\x00\x00n,,n=,r=abc",
        b"SCRAM-SHA-256\0\x00\x00\x00\x01",
        b"SCRAM-SHA-256\0\x00\x00\x00\x00",
        b"SCRAM-SHA-256",
        b"",
    ],
)
def test_cve_2026_6664_malformed_sasl_packet_is_refused(doors, scram_secret, payload):
    """PgBouncer crashed before login when the length of a SCRAM packet overflowed."""
    exchange = doors.server("scram-sha-256", scram_secret)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(payload)


@pytest.mark.parametrize("length", [489, 2000, 1 << 20])
def test_cve_2026_6665_long_server_nonce_is_refused(doors, length):
    """PgBouncer's stack overflowed when a server sent a long nonce."""
    with pytest.raises(AuthenticationFailed):
        after_first(doors, b"r=" + NONCE + b"x" * length + b",s=AAEC,i=4096")


@pytest.mark.parametrize("iterations", [1_000_001, 2**31 - 1, 2**31, 2**63, 10**400])
def test_cve_2026_42198_huge_iteration_count_is_refused(doors, iterations):
    """A server kept pgjdbc busy for as long as it liked."""
    with pytest.raises(AuthenticationFailed):
        after_first(doors, b"r=%sX,s=AAEC,i=%d" % (NONCE, iterations))


def test_huge_salt_is_refused(doors):
    with pytest.raises(AuthenticationFailed):
        after_first(doors, b"r=%sX,s=%s,i=4096" % (NONCE, base64.b64encode(bytes(1 << 20))))


@pytest.mark.parametrize("server_asks", [(3, b""), (5, b"salt"), (10, OFFER)])
@pytest.mark.parametrize("client_method", ["plain", "md5", "scram-sha-256"])
@pytest.mark.parametrize("known", [True, False])
def test_cve_2025_46801_each_leg_stands_for_itself(doors, server_asks, client_method, known):
    """Pgpool-II let anybody in where each leg relied on the other.

    Without a secret here, no client is accepted and no server is answered, whichever methods meet.
    """
    client_leg = doors.server(client_method, None, known=known)
    client_leg.start()
    last = b"anything\0"
    if client_method == "scram-sha-256":
        assert isinstance(client_leg.receive(doors.initial(b"n,,n=,r=abc")), Challenge)
        last = b"c=biws,r=abc" + NONCE + b",p=" + base64.b64encode(bytes(32))
    with pytest.raises(AuthenticationFailed):
        doors.settled(client_leg, client_leg.receive(last))
    server_leg = doors.client(None)
    with pytest.raises(AuthenticationFailed):
        server_leg.receive(*server_asks)


@pytest.mark.parametrize("length", [0, 1, 996, 1023, 1024, 1025, 65530])
def test_pgbouncer_1215_long_passwords_do_no_harm(doors, length):
    """A password of 1,024 bytes or more crashed PgBouncer."""
    exchange = doors.server("plain", "secret")
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(b"x" * length + b"\0")
    assert length == 0 or doors.client("x" * length).receive(3, b"") == Reply(b"x" * length + b"\0")


def test_supavisor_1032_secrets_are_compared_in_constant_time(doors, monkeypatch, scram_secret):
    """Every decision goes through hmac.compare_digest."""
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda left, right: compared.append(1) or False)
    for method, stored in (("plain", "secret"), ("plain", scram_secret), ("md5", "secret")):
        exchange = doors.server(method, stored)
        exchange.start()
        with pytest.raises(AuthenticationFailed):
            doors.settled(exchange, exchange.receive(b"secret\0"))
    assert len(compared) == 3
