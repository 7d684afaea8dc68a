"""Client role of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: logs in to one server, and has the server prove itself.

Theory of operation::

    NEW --begin--> FIRST_SENT --server-first--> [DERIVING --derived-->] FINAL_SENT --server-final--> PROVED

DERIVING is left out where the keys of a client pass through. Only PROVED may be followed by AuthenticationOk: a
server that skips its signature may be anybody (it cannot have known the secret). Must not know the other
authentication requests.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Final

from pgpool_proxy.auth import scram
from pgpool_proxy.auth import scram_messages as messages
from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.auth.secret import PLAIN, SCRAM, ScramKeys, Secret
from pgpool_proxy.auth.steps import Derive, Reply, Step, Wait
from pgpool_proxy.errors import WRONG_PASSWORD_TYPE, AuthenticationFailed, IllegalTransition

NEW: Final = 0
FIRST_SENT: Final = 1
DERIVING: Final = 2
FINAL_SENT: Final = 3
PROVED: Final = 4
ENDED: Final = 5


class ScramClientExchange:
    """One SCRAM login. `secret` is plain, or SCRAM with the `keys` of a client that has just proved itself by it.

    `channel_binding` is the tls-server-end-point hash of the server's certificate, None where there is no TLS or no
    hash.
    """

    __slots__ = (
        "_auth_message",
        "_bare",
        "_binding",
        "_gs2_header",
        "_keys",
        "_make_nonce",
        "_nonce",
        "_secret",
        "_server_key",
        "_state",
        "_without_proof",
    )

    def __init__(
        self,
        secret: Secret | None,
        keys: ScramKeys | None,
        nonce: Callable[[], bytes],
        channel_binding: bytes | None,
    ) -> None:
        self._secret = secret
        self._keys = keys
        self._make_nonce: Callable[[], bytes] = nonce
        self._binding = channel_binding
        self._state = NEW
        self._nonce = b""
        self._bare = b""
        self._gs2_header = b"n,,"
        self._auth_message = b""
        self._without_proof = b""
        self._server_key = b""

    @property
    def is_proved(self) -> bool:
        """True once the server showed that it knows the secret too."""
        return self._state == PROVED

    def begin(self, offered: list[bytes], tls: bool) -> Step:
        """AuthenticationSASL: picks a mechanism and sends the client-first-message."""
        plain = self._secret is not None and self._secret.kind == PLAIN
        if not plain and self._keys is None:
            raise AuthenticationFailed(WRONG_PASSWORD_TYPE, "SCRAM needs a plain password or the keys of a SCRAM login")
        if messages.MECHANISM_PLUS in offered and not tls:
            raise messages.distrusted("the server offered SCRAM-SHA-256-PLUS without TLS")
        if messages.MECHANISM_PLUS in offered and self._binding is not None:
            mechanism, self._gs2_header = messages.MECHANISM_PLUS, b"p=" + messages.BINDING_TYPE + b",,"
        elif messages.MECHANISM in offered:
            mechanism = messages.MECHANISM
            # 'y' tells the server that we would have bound: it refuses where it had offered PLUS and somebody hid that.
            self._gs2_header = b"n,," if self._binding is None else b"y,,"
            self._binding = None
        else:
            raise messages.distrusted("the server offers no SASL mechanism that is known here")
        random = self._make_nonce()
        if len(random) < scram.NONCE_BYTES:
            raise ValueError(f"the nonce source gave {len(random)} bytes, not {scram.NONCE_BYTES}")
        self._nonce = base64.b64encode(random)
        self._bare = b"n=,r=" + self._nonce  # the name is in StartupMessage; libpq leaves it out here too
        self._state = FIRST_SENT
        return Reply(messages.build_initial_response(mechanism, self._gs2_header + self._bare))

    def challenge(self, message: bytes) -> Step:
        """AuthenticationSASLContinue: the server-first-message."""
        state, self._state = self._state, ENDED
        if state != FIRST_SENT:
            raise messages.distrusted("a SASL challenge out of turn")
        first = messages.parse_server_first(message)
        if len(first.nonce) <= len(self._nonce) or not first.nonce.startswith(self._nonce):
            raise messages.distrusted("the server's SCRAM nonce does not extend ours")
        self._without_proof = messages.build_client_final(self._gs2_header + (self._binding or b""), first.nonce)
        self._auth_message = b",".join((self._bare, message, self._without_proof))
        secret, keys = self._secret, self._keys
        if secret is not None and secret.kind == PLAIN:
            self._state = DERIVING
            return Derive(saslprep(secret.value), first.salt, first.iterations)
        if secret is not None and secret.kind == SCRAM and secret.scram is not None:
            ours = secret.scram
            if (first.salt, first.iterations) != (ours.salt, ours.iterations):
                raise AuthenticationFailed(WRONG_PASSWORD_TYPE, "the server stores another SCRAM secret than we do")
        if keys is None:  # begin() made sure
            raise IllegalTransition("ScramClientExchange: neither password nor keys")
        return self._proof(keys.client_key, keys.server_key)

    def derived(self, salted_password: bytes) -> Step:
        """The answer to `Derive`."""
        if self._state != DERIVING:
            raise IllegalTransition(f"ScramClientExchange: no key was to be derived in state {self._state}")
        return self._proof(scram.client_key_from(salted_password), scram.server_key_from(salted_password))

    def _proof(self, client_key: bytes, server_key: bytes) -> Step:
        self._server_key = server_key
        self._state = FINAL_SENT
        proof = scram.client_proof(client_key, self._auth_message)
        return Reply(messages.with_proof(self._without_proof, proof))

    def final(self, message: bytes) -> Step:
        """AuthenticationSASLFinal: the server's signature."""
        state, self._state = self._state, ENDED
        if state != FINAL_SENT:
            raise messages.distrusted("a SASL final message out of turn")
        expected = scram.server_signature(self._server_key, self._auth_message)
        if not hmac.compare_digest(messages.parse_server_final(message), expected):
            raise messages.distrusted("the server's SCRAM signature is wrong: it does not know the password")
        self._state = PROVED
        return Wait()
