"""PostgreSQL's md5 login, both roles: "md5" + md5(md5(password + user) + salt).

Knows the arithmetic, and the exchange with a client. Must not know why md5 was chosen. MD5 is weak; it is here because
servers and drivers that know nothing else are still about.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from pgpool_proxy.auth.secret import MD5, SCRAM, Secret, encoded
from pgpool_proxy.auth.steps import AUTH_REQ_MD5, Accepted, Challenge, ServerExchange, Step
from pgpool_proxy.errors import EMPTY_PASSWORD, PASSWORD_FAILED, PASSWORD_TOO_LONG, AuthenticationFailed, WrongSecret

SALT_BYTES: Final = 4
RESPONSE_BYTES: Final = 35


def md5_hex(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


def md5_secret(password: bytes, user: str) -> bytes:
    """The stored form, as in pg_authid. The name is the salt, in the bytes it came in."""
    return b"md5" + md5_hex(password + encoded(user))


def md5_response(stored: bytes, salt: bytes) -> bytes:
    """What a client answers to `salt`, from the stored form, without the terminating zero byte."""
    return b"md5" + md5_hex(stored[3:] + salt)


def stored_md5(secret: Secret, user: str) -> bytes:
    """The stored form of a plain or md5 secret."""
    return secret.value if secret.kind == MD5 else md5_secret(secret.value, user)


class Md5Exchange(ServerExchange):
    """Asks for an md5 answer. `doomed`: goes through the same steps and refuses whatever comes."""

    __slots__ = ("_answer", "_doomed", "_make_salt", "_salt", "_stored", "_user")

    def __init__(self, user: str, secret: Secret, doomed: bool, salt: Callable[[], bytes]) -> None:
        self._user = user
        self._stored = stored_md5(secret, user)
        self._doomed = doomed
        self._make_salt = salt
        self._salt = b""
        self._answer = (b"", b"")  # what came, and the salt that it is for

    def start(self) -> Step:
        salt = self._make_salt()
        if len(salt) != SALT_BYTES:
            raise ValueError(f"the salt source gave {len(salt)} bytes, not {SALT_BYTES}")
        self._salt = salt
        return Challenge(AUTH_REQ_MD5, salt)

    def receive(self, payload: bytes) -> Step:
        salt, self._salt = self._salt, b""  # a salt is good for one answer
        if not salt:
            raise AuthenticationFailed(PASSWORD_FAILED, "a password that nobody asked for")
        if payload == b"\0":
            raise AuthenticationFailed(EMPTY_PASSWORD)
        if len(payload) > RESPONSE_BYTES + 1:
            raise AuthenticationFailed(PASSWORD_TOO_LONG, "an md5 answer of more than 35 bytes")
        self._answer = (payload, salt)
        return self._compared(payload, salt)

    def again(self, secret: Secret) -> Step:
        payload, salt = self._answer
        if not salt:
            return super().again(secret)
        if secret.kind == SCRAM:
            raise AuthenticationFailed(PASSWORD_FAILED, "the secret is one for SCRAM now, which was not asked for")
        self._stored = stored_md5(secret, self._user)
        self._doomed = secret.is_empty
        return self._compared(payload, salt)

    def _compared(self, payload: bytes, salt: bytes) -> Step:
        same = hmac.compare_digest(payload, md5_response(self._stored, salt) + b"\0")
        if self._doomed:
            raise WrongSecret(PASSWORD_FAILED, "no such user, or no password stored")
        if not same:
            raise WrongSecret(PASSWORD_FAILED, "wrong md5 answer")
        return Accepted()
