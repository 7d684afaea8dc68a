"""Server role of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: proves one client.

Theory of operation::

    NEW --start--> OFFERED --SASLInitialResponse--> CHALLENGED --SASLResponse--> [DERIVING --derived-->] ENDED
                                                                  DERIVING --derived--> REFUSING --derived--> ENDED

OFFERED has sent the mechanisms, CHALLENGED the server-first-message. DERIVING is for passwords stored plain only, and
comes last: a client that does not get that far costs no PBKDF2. REFUSING derives once more, for nobody: the key of this user
was kept from an earlier login, and a refusal at once would tell that there is such a user. Any message out of turn ends the
exchange. `again` goes back from ENDED to where the proof is held against a secret: the salt and the iterations that were
sent stay, so a newer secret has to be a plain password or have the same ones.

Must not know where the secret came from. An exchange for a user that does not exist is given a mock secret and is
`doomed`: it takes the same steps, computes the same things and is refused in the same words as a wrong password.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

from pgpool_proxy.auth import scram
from pgpool_proxy.auth import scram_messages as messages
from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.auth.secret import PLAIN, ScramKeys, ScramSecret, Secret, base64_of
from pgpool_proxy.auth.steps import (
    AUTH_REQ_SASL,
    AUTH_REQ_SASL_CONT,
    Accepted,
    Challenge,
    Derive,
    ServerExchange,
    Step,
)
from pgpool_proxy.errors import SASL_FAILED, IllegalTransition, WrongSecret

NEW: Final = 0
OFFERED: Final = 1
CHALLENGED: Final = 2
DERIVING: Final = 3
ENDED: Final = 4
REFUSING: Final = 5

OFFER: Final = Challenge(AUTH_REQ_SASL, b"%s\0\0" % messages.MECHANISM)
OFFER_WITH_PLUS: Final = Challenge(AUTH_REQ_SASL, b"%s\0%s\0\0" % (messages.MECHANISM_PLUS, messages.MECHANISM))


class ScramServerExchange(ServerExchange):
    """One client's SCRAM exchange.

    `secret` is the stored one; for a password stored plain it is None, and `password`, `salt`, `iterations` make an
    ad-hoc one with a `Derive` step. `channel_binding` is the tls-server-end-point hash of our certificate, None
    without TLS. `nonce` gives at least 18 random bytes a call.
    """

    __slots__ = (
        "_asked",
        "_auth_message",
        "_binding",
        "_doomed",
        "_final",
        "_first",
        "_iterations",
        "_nonce",
        "_password",
        "_refusal",
        "_salt",
        "_secret",
        "_server_first",
        "_state",
    )

    def __init__(
        self,
        secret: ScramSecret | None,
        *,
        nonce: Callable[[], bytes],
        channel_binding: bytes | None = None,
        doomed: bool = False,
        password: bytes = b"",
        salt: bytes = b"",
        iterations: int = 0,
    ) -> None:
        self._secret = secret
        self._password = password
        self._salt = salt if secret is None else secret.salt
        self._iterations = iterations if secret is None else secret.iterations
        self._nonce: Callable[[], bytes] = nonce
        self._binding = channel_binding
        self._doomed = doomed
        self._state = NEW
        self._first: messages.ClientFirst | None = None
        self._final: messages.ClientFinal | None = None
        self._server_first = b""
        self._auth_message = b""
        self._asked: Derive | None = None
        self._refusal: WrongSecret | None = None

    def start(self) -> Step:
        if self._state != NEW:
            raise IllegalTransition(f"ScramServerExchange: started in state {self._state}")
        self._state = OFFERED
        return OFFER if self._binding is None else OFFER_WITH_PLUS

    def receive(self, payload: bytes) -> Step:
        state, self._state = self._state, ENDED  # unless the message is good, there is no next one
        if state == OFFERED:
            return self._receive_first(payload)
        if state == CHALLENGED and self._first is not None:
            return self._receive_final(self._first, payload)
        raise messages.refused("a SASL message out of turn")

    def _receive_first(self, payload: bytes) -> Step:
        mechanism, message = messages.parse_initial_response(payload)
        if mechanism != messages.MECHANISM and mechanism != messages.MECHANISM_PLUS:
            raise messages.refused("the client selected an unknown SASL mechanism")
        plus = mechanism == messages.MECHANISM_PLUS
        if plus and self._binding is None:
            raise messages.refused("the client selected SCRAM-SHA-256-PLUS, which was not offered")
        first = messages.parse_client_first(message)
        if plus != (first.flag == b"p"):
            raise messages.refused("the SASL mechanism and the channel-binding flag disagree")
        if first.flag == b"y" and self._binding is not None:
            # The client believes that we cannot bind: somebody between us took PLUS off the list.
            raise messages.refused("the client supports channel binding but was told that we do not (a downgrade)")
        random = self._nonce()
        if len(random) < scram.NONCE_BYTES:
            raise ValueError(f"the nonce source gave {len(random)} bytes, not {scram.NONCE_BYTES}")
        nonce = first.nonce + base64_of(random)
        self._first = first
        self._server_first = messages.build_server_first(nonce, self._salt, self._iterations)
        self._state = CHALLENGED
        return Challenge(AUTH_REQ_SASL_CONT, self._server_first)

    def _receive_final(self, first: messages.ClientFirst, payload: bytes) -> Step:
        final = messages.parse_client_final(payload)
        bound = self._binding if first.flag == b"p" and self._binding is not None else b""
        if not hmac.compare_digest(final.binding, first.gs2_header + bound):
            raise messages.refused("SCRAM channel binding check failed")
        nonce, _, _ = self._server_first[2:].partition(b",")
        if not hmac.compare_digest(final.nonce, nonce):
            raise messages.refused("the SCRAM nonce is not the one of this exchange")
        self._final = final
        self._auth_message = b",".join((first.bare, self._server_first, final.without_proof))
        if self._secret is None:
            return self._derive(saslprep(self._password))
        return self._decided(self._secret, final.proof)

    def derived(self, salted_password: bytes) -> Step:
        final, asked, refusal = self._final, self._asked, self._refusal
        state, self._state = self._state, ENDED
        if state == REFUSING and refusal is not None:
            raise refusal
        if state != DERIVING or final is None or asked is None:
            raise IllegalTransition(f"ScramServerExchange: no key was to be derived in state {state}")
        secret = scram.build_secret(salted_password, self._salt, self._iterations)
        try:
            return self._decided(secret, final.proof)
        except WrongSecret as failure:
            if not asked.was_kept:
                raise
            self._refusal = failure
            self._state = REFUSING
            return Derive(asked.password, self._salt, self._iterations, cacheable=False, for_nobody=True)

    def _derive(self, password: bytes) -> Step:
        self._state = DERIVING
        self._asked = Derive(password, self._salt, self._iterations, cacheable=not self._doomed, for_nobody=self._doomed)
        return self._asked

    def again(self, secret: Secret) -> Step:
        final = self._final
        if self._state != ENDED or final is None:
            return super().again(secret)
        self._doomed = secret.is_empty
        if secret.kind == PLAIN:
            return self._derive(saslprep(secret.value))
        stored = secret.scram
        if stored is None or (stored.salt, stored.iterations) != (self._salt, self._iterations):
            raise messages.refused("the secret has changed: the proof was made with the salt of the old one")
        return self._decided(stored, final.proof)

    def _decided(self, secret: ScramSecret, proof: bytes) -> Step:
        client_key = scram.client_key_of_proof(proof, secret.stored_key, self._auth_message)
        signature = scram.server_signature(secret.server_key, self._auth_message)
        if self._doomed:
            raise WrongSecret(SASL_FAILED, "no such user, or no secret that SCRAM can use")
        if client_key is None:
            raise WrongSecret(SASL_FAILED, "wrong password (the SCRAM proof does not match)")
        return Accepted(ScramKeys(client_key, secret.server_key), messages.build_server_final(signature))
