"""The doors of auth/: the exchange that proves a client, and the one that logs us in to a server.

`server_exchange` picks the exchange for an auth_type and a user, so that one who does not exist and one with a wrong
password see the same. `ClientExchange` answers whatever a server asks for, within what it may ask for. Must not know
HBA files (`hba`), certificates, LDAP and PAM, nor how steps are carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pgpool_proxy.auth import scram, scram_messages
from pgpool_proxy.auth.md5 import SALT_BYTES, Md5Exchange, md5_response, stored_md5
from pgpool_proxy.auth.plain import MAX_PASSWORD, OpenExchange, PlainExchange, mock_plain
from pgpool_proxy.auth.scram_client import ScramClientExchange
from pgpool_proxy.auth.scram_server import ScramServerExchange
from pgpool_proxy.auth.secret import MD5, PLAIN, SCRAM, ScramKeys, Secret
from pgpool_proxy.auth.steps import (
    AUTH_REQ_MD5,
    AUTH_REQ_OK,
    AUTH_REQ_PASSWORD,
    AUTH_REQ_SASL,
    AUTH_REQ_SASL_CONT,
    AUTH_REQ_SASL_FIN,
    Accepted,
    Challenge,
    Derive,
    Inquire,
    Reply,
    ServerExchange,
    Step,
    Wait,
)
from pgpool_proxy.errors import (
    LOGIN_REJECTED,
    SERVER_LOGIN_FAILED,
    TRUST_FAILED,
    WRONG_PASSWORD_TYPE,
    AuthenticationFailed,
    ConfigError,
    IllegalTransition,
)

__all__ = [
    "Accepted",
    "Challenge",
    "ClientExchange",
    "Derive",
    "Inquire",
    "REQUIRE_AUTH",
    "Reply",
    "ScramKeys",
    "Secret",
    "ServerExchange",
    "Step",
    "Wait",
    "parse_require_auth",
    "server_exchange",
]

REQUIRE_AUTH: Final = frozenset({"password", "md5", "scram-sha-256", "none"})  # of libpq's require_auth
DEFAULT_ITERATIONS: Final = 4096
NO_PASSWORD: Final = "the server wants a password and none is known"


def server_exchange(
    method: str,
    user: str,
    secret: Secret | None,
    known: bool,
    *,
    salt: Callable[[], bytes],
    nonce: Callable[[], bytes],
    process_secret: bytes,
    scram_iterations: int = DEFAULT_ITERATIONS,
    channel_binding: bytes | None = None,
    max_password: int = MAX_PASSWORD,
    mock_kind: str = PLAIN,
    mock_iterations: int = 0,
) -> ServerExchange:
    """The exchange for one login.

    `method`: any, trust, reject, plain (or password), md5, scram-sha-256; another raises ConfigError. `secret` is the
    user's, None (or an empty one) where it has none: such a user can only come in by trust. `salt` gives 4, `nonce`
    at least 18 random bytes a call. `process_secret` is random and the same in all workers. `mock_kind` and
    `mock_iterations` (0: `scram_iterations`) are what the secret of an unknown user seems to be like, and that of one whose
    md5 hash proves nothing by SCRAM: give those of most users (`usual`), since what is asked for goes by the kind.
    """
    mock_iterations = mock_iterations or scram_iterations
    if method == "any":
        return OpenExchange(None)
    if method == "trust":
        return OpenExchange(None if known else TRUST_FAILED)
    if method == "reject":
        return OpenExchange(LOGIN_REJECTED)
    if method not in {"plain", "password", "md5", "scram-sha-256"}:
        raise ConfigError(f'no login exchange for "{method}"', key="auth_type")

    doomed = not known or secret is None or secret.is_empty
    if secret is None or doomed:  # whatever came with an unknown user is not its own (CVE-2015-6817)
        secret = mock(mock_kind, user, process_secret, mock_iterations)
    if method in {"plain", "password"}:
        return PlainExchange(user, secret, doomed, max_password)
    if method == "md5" and secret.kind != SCRAM:  # a SCRAM secret cannot answer md5: that user is asked for SCRAM
        return Md5Exchange(user, secret, doomed, salt)
    if secret.kind == MD5 and mock_kind == PLAIN:  # no proof can be checked with a hash, and it does not show
        doomed, secret = True, mock_plain(user, process_secret)
    if secret.kind == PLAIN:
        return ScramServerExchange(
            None,
            nonce=nonce,
            channel_binding=channel_binding,
            doomed=doomed,
            password=secret.value,
            salt=scram.salt_of_name(user, process_secret),
            iterations=scram_iterations,
        )
    stored = secret.scram
    if stored is None:  # an md5 hash, where most have another secret
        doomed, stored = True, scram.mock_secret(user, process_secret, mock_iterations)
    return ScramServerExchange(stored, nonce=nonce, channel_binding=channel_binding, doomed=doomed)


def mock(kind: str, user: str, process_secret: bytes, iterations: int) -> Secret:
    """A secret of that kind which nobody knows."""
    if kind == SCRAM:
        return Secret.of_scram(scram.mock_secret(user, process_secret, iterations))
    plain = mock_plain(user, process_secret)
    return Secret(MD5, stored_md5(plain, user)) if kind == MD5 else plain


def parse_require_auth(text: str) -> frozenset[str]:
    """libpq's require_auth: a list of methods, or of methods with `!` that are forbidden. Raises ConfigError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    forbidden = {name[1:] for name in names if name.startswith("!")}
    if forbidden and len(forbidden) != len(set(names)):
        raise ConfigError("methods with and without ! cannot be mixed", key="require_auth")
    for name in forbidden or names:
        if name not in REQUIRE_AUTH:
            raise ConfigError(f'unknown method "{name}"', key="require_auth")
    return REQUIRE_AUTH - forbidden if forbidden else frozenset(names)


class ClientExchange:
    """Client role: logs in to one server, once.

    `secret` is what is known of `user` there; `keys` pass a SCRAM login of our client through. `nonce` gives at least
    18 random bytes. `channel_binding` is the tls-server-end-point hash of the server's certificate, or None.
    `require` are libpq's require_auth names; empty allows anything. A server that asks for more than it may, or that
    does not prove itself, raises AuthenticationFailed; every message of it may be hostile.
    """

    __slots__ = ("_binding", "_ended", "_keys", "_nonce", "_require", "_scram", "_secret", "_sent", "_tls", "_user")

    def __init__(
        self,
        user: str,
        secret: Secret | None,
        keys: ScramKeys | None,
        nonce: Callable[[], bytes],
        channel_binding: bytes | None = None,
        require: frozenset[str] = frozenset(),
        tls: bool = False,
    ) -> None:
        self._user = user
        self._secret = None if secret is None or secret.is_empty else secret
        self._keys = keys
        self._nonce: Callable[[], bytes] = nonce
        self._binding = channel_binding if tls else None
        self._require = require
        self._tls = tls
        self._scram: ScramClientExchange | None = None
        self._sent = False
        self._ended = False

    def receive(self, code: int, payload: bytes) -> Step:
        """An Authentication* message of the server: Reply, Derive, Wait, or Accepted at AuthenticationOk."""
        if self._ended:
            raise scram_messages.distrusted("an authentication request after the end")
        self._ended = True  # unless this one is good: after a refusal not even AuthenticationOk counts
        if code == AUTH_REQ_OK:
            return self._ok(payload)
        step = self._answer(code, payload)
        self._ended = False
        return step

    def _answer(self, code: int, payload: bytes) -> Step:
        if code == AUTH_REQ_SASL_CONT and self._scram is not None:
            return self._scram.challenge(payload)
        if code == AUTH_REQ_SASL_FIN and self._scram is not None:
            return self._scram.final(payload)
        if self._sent or code in {AUTH_REQ_SASL_CONT, AUTH_REQ_SASL_FIN}:
            raise scram_messages.distrusted(f"authentication request {code} out of turn")
        self._sent = True
        if code == AUTH_REQ_PASSWORD:
            return self._cleartext(payload)
        if code == AUTH_REQ_MD5:
            return self._md5(payload)
        if code == AUTH_REQ_SASL:
            self._allow("scram-sha-256")
            if self._secret is None and self._keys is None:
                raise AuthenticationFailed(SERVER_LOGIN_FAILED, NO_PASSWORD)
            self._scram = ScramClientExchange(self._secret, self._keys, self._nonce, self._binding)
            return self._scram.begin(scram_messages.parse_mechanisms(payload), self._tls)
        raise scram_messages.distrusted(f"authentication request {code} is not supported")

    def derived(self, salted_password: bytes) -> Step:
        """The answer to a `Derive` step."""
        if self._scram is None:
            raise IllegalTransition("ClientExchange: no key was to be derived")
        return self._scram.derived(salted_password)

    def _ok(self, payload: bytes) -> Step:
        if payload:
            raise scram_messages.distrusted("malformed AuthenticationOk")
        if self._scram is not None and not self._scram.is_proved:
            raise scram_messages.distrusted("the server accepted without proving that it knows the password")
        if not self._sent:
            self._allow("none")
        return Accepted()

    def _cleartext(self, payload: bytes) -> Step:
        self._allow("password")
        secret = self._known_secret()
        if secret.kind != PLAIN or payload:
            raise AuthenticationFailed(WRONG_PASSWORD_TYPE, "the server wants a plain password; a hash is stored")
        return Reply(secret.value + b"\0")

    def _md5(self, payload: bytes) -> Step:
        self._allow("md5")
        secret = self._known_secret()
        if secret.kind == SCRAM:
            raise AuthenticationFailed(WRONG_PASSWORD_TYPE, "the server wants md5; only a SCRAM secret is stored")
        if len(payload) != SALT_BYTES:
            raise scram_messages.distrusted("malformed md5 request")
        return Reply(md5_response(stored_md5(secret, self._user), payload) + b"\0")

    def _known_secret(self) -> Secret:
        if self._secret is None:
            raise AuthenticationFailed(SERVER_LOGIN_FAILED, NO_PASSWORD)
        return self._secret

    def _allow(self, method: str) -> None:
        if self._require and method not in self._require:
            wanted = ", ".join(sorted(self._require))
            raise AuthenticationFailed(SERVER_LOGIN_FAILED, f'the server asks for "{method}"; allowed are: {wanted}')
