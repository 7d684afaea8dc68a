"""Both sides of a login without a network: who carries out the steps of an exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.exchange import ClientExchange, Derive, ScramKeys, Secret, ServerExchange, Step, server_exchange
from pgpool_proxy.auth.scram_messages import build_initial_response

PROCESS_SECRET = bytes(range(32))
MD5_SALT = b"\x01\x02\xff\x00"
NONCE = bytes(range(100, 118))


def settled(exchange: ServerExchange | ClientExchange, step: Step) -> Step:
    """The step after the key was derived, as the daemon does it."""
    if isinstance(step, Derive):
        return exchange.derived(scram.salted_password(step.password, step.salt, step.iterations))
    return step


class Doors:
    """Exchanges with fixed salts and nonces."""

    def server(
        self,
        method: str,
        stored: str | Secret | None,
        *,
        user: str = "alice",
        known: bool = True,
        binding: bytes | None = None,
        mock_kind: str = "plain",
        iterations: int = 4096,
        nonce: Callable[[], bytes] = lambda: NONCE,
    ) -> ServerExchange:
        return server_exchange(
            method,
            user,
            Secret.of(stored) if isinstance(stored, str) else stored,
            known,
            salt=lambda: MD5_SALT,
            nonce=nonce,
            process_secret=PROCESS_SECRET,
            scram_iterations=iterations,
            channel_binding=binding,
            mock_kind=mock_kind,
        )

    def client(
        self,
        stored: str | Secret | None,
        *,
        user: str = "alice",
        keys: ScramKeys | None = None,
        binding: bytes | None = None,
        require: frozenset[str] = frozenset(),
        tls: bool = False,
    ) -> ClientExchange:
        secret = Secret.of(stored) if isinstance(stored, str) else stored
        return ClientExchange(user, secret, keys, lambda: NONCE, binding, require, tls)

    @staticmethod
    def initial(message: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
        return build_initial_response(mechanism, message)

    settled = staticmethod(settled)


@pytest.fixture
def doors() -> Doors:
    return Doors()


@pytest.fixture
def scram_secret() -> str:
    """The stored secret of the password "secret"."""
    return scram.new_secret(b"secret", b"0123456789abcdef", 4096).formatted().decode()
