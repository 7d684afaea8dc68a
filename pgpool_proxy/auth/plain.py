"""Server role without a handshake of its own: trust, any, reject, and the cleartext password request.

Knows PasswordMessage and how a typed password is held against each kind of stored secret. Must not know LDAP or PAM:
`OutsideExchange` says when they are to be asked.
"""

from __future__ import annotations

import hmac
from typing import Final

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.md5 import md5_secret
from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.auth.secret import MD5, PLAIN, ScramKeys, Secret
from pgpool_proxy.auth.steps import AUTH_REQ_PASSWORD, Accepted, Challenge, Derive, Inquire, ServerExchange, Step
from pgpool_proxy.errors import (
    EMPTY_PASSWORD,
    PASSWORD_FAILED,
    PASSWORD_TOO_LONG,
    AuthenticationFailed,
    IllegalTransition,
    Report,
    WrongSecret,
)

MAX_PASSWORD: Final = 65530  # PgBouncer's MAX_PASSWORD: tokens of cloud providers are some kilobytes long
CLEARTEXT: Final = Challenge(AUTH_REQ_PASSWORD, b"")
AT_ONCE: Final = Accepted()


def parse_password(payload: bytes, max_password: int = MAX_PASSWORD) -> bytes:
    """PasswordMessage -> what was typed. Refuses an empty one (to LDAP it means anonymous) and zero bytes in it."""
    if len(payload) > max_password + 1:
        raise AuthenticationFailed(PASSWORD_TOO_LONG, f"a password of more than {max_password} bytes")
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise AuthenticationFailed(PASSWORD_FAILED, "malformed password message")
    if len(payload) == 1:
        raise AuthenticationFailed(EMPTY_PASSWORD)
    return payload[:-1]


class OpenExchange(ServerExchange):
    """Asks for nothing: accepts at once, or refuses with `report`."""

    __slots__ = ("_report",)

    def __init__(self, report: Report | None) -> None:
        self._report = report

    def start(self) -> Step:
        if self._report is not None:
            raise AuthenticationFailed(self._report)
        return AT_ONCE

    def receive(self, payload: bytes) -> Step:
        raise AuthenticationFailed(PASSWORD_FAILED, "a password that nobody asked for")


class PlainExchange(ServerExchange):
    """Asks for the password in clear. `doomed`: goes through the same steps and refuses whatever comes."""

    __slots__ = ("_asked", "_doomed", "_max_password", "_secret", "_typed", "_user", "_verifying")

    def __init__(self, user: str, secret: Secret, doomed: bool, max_password: int = MAX_PASSWORD) -> None:
        self._user = user
        self._secret = secret
        self._doomed = doomed
        self._max_password = max_password
        self._asked = False
        self._typed = b""
        self._verifying = False

    def start(self) -> Step:
        self._asked = True
        return CLEARTEXT

    def receive(self, payload: bytes) -> Step:
        if not self._asked:
            raise AuthenticationFailed(PASSWORD_FAILED, "a password that nobody asked for")
        self._asked = False
        self._typed = parse_password(payload, self._max_password)
        return self._compared(self._typed)

    def again(self, secret: Secret) -> Step:
        if not self._typed:
            return super().again(secret)
        self._secret = secret
        self._doomed = secret.is_empty
        return self._compared(self._typed)

    def _compared(self, typed: bytes) -> Step:
        stored = self._secret.scram
        if stored is not None:
            self._verifying = True
            return Derive(saslprep(typed), stored.salt, stored.iterations, cacheable=False)
        if self._secret.kind == MD5:
            typed = md5_secret(typed, self._user)
        return self._decided(hmac.compare_digest(typed, self._secret.value), None)

    def derived(self, salted_password: bytes) -> Step:
        stored = self._secret.scram
        if not self._verifying or stored is None:
            raise IllegalTransition("PlainExchange: no key was to be derived")
        self._verifying = False
        client_key = scram.client_key_from(salted_password)
        same = hmac.compare_digest(scram.stored_key_from(client_key), stored.stored_key)
        return self._decided(same, ScramKeys(client_key, scram.server_key_from(salted_password)))

    def _decided(self, same: bool, keys: ScramKeys | None) -> Step:
        if self._doomed:
            raise WrongSecret(PASSWORD_FAILED, "no such user, or no password stored")
        if not same:
            raise WrongSecret(PASSWORD_FAILED, "wrong password")
        return Accepted(keys)


def mock_plain(user: str, process_secret: bytes) -> Secret:
    """A plain secret that nobody knows, for users that have none."""
    return Secret(PLAIN, scram.mock_secret(user, process_secret, 1).stored_key.hex().encode())


class OutsideExchange(ServerExchange):
    """Asks for the password in clear and lets somebody outside say whether it is right; refuses with `report`."""

    __slots__ = ("_asked", "_inquired", "_max_password", "_report")

    def __init__(self, report: Report, max_password: int = MAX_PASSWORD) -> None:
        self._report = report
        self._max_password = max_password
        self._asked = False
        self._inquired = False

    def start(self) -> Step:
        self._asked = True
        return CLEARTEXT

    def receive(self, payload: bytes) -> Step:
        if not self._asked:
            raise AuthenticationFailed(self._report, "a password that nobody asked for")
        self._asked = False
        typed = parse_password(payload, self._max_password)
        self._inquired = True
        return Inquire(typed)

    def answered(self, proved: bool) -> Step:
        if not self._inquired:
            raise IllegalTransition("OutsideExchange: nobody was to be asked")
        self._inquired = False
        if not proved:
            raise AuthenticationFailed(self._report, "refused outside")
        return Accepted()
