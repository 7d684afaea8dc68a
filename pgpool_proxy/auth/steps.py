"""What an exchange tells its caller to do next, and the shape of the exchange with a client.

An exchange is bytes in and one `Step` out; it sends nothing, waits for nothing and derives no keys itself. Must not
know how a step is carried out. A failure is never a step: it is `AuthenticationFailed`, whose report is for the peer
and whose reason is for the log only.

The steps that each login takes are written out: what `dataclass` makes of a class stays interpreted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pgpool_proxy.auth.secret import ScramKeys, Secret
from pgpool_proxy.errors import IllegalTransition

# The codes of Authentication* messages ('R'), under PostgreSQL's names (protocol.h).
AUTH_REQ_OK: Final = 0
AUTH_REQ_PASSWORD: Final = 3
AUTH_REQ_MD5: Final = 5
AUTH_REQ_SASL: Final = 10
AUTH_REQ_SASL_CONT: Final = 11
AUTH_REQ_SASL_FIN: Final = 12


class Step:
    """One of the six below."""

    __slots__ = ()


class Challenge(Step):
    """Server role: send an 'R' message of int32 `code` and `payload`, then give the client's 'p' to `receive`."""

    __slots__ = ("code", "payload")

    def __init__(self, code: int, payload: bytes) -> None:
        self.code = code
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Challenge) and self.code == other.code and self.payload == other.payload

    def __hash__(self) -> int:
        return hash((self.code, self.payload))

    def __repr__(self) -> str:
        return f"Challenge({self.code}, {self.payload!r})"


@dataclass(frozen=True, slots=True)
class Reply(Step):
    """Client role: send a 'p' message whose body is exactly `payload`, then give the server's next 'R' to `receive`."""

    payload: bytes = field(repr=False)


@dataclass(slots=True)
class Derive(Step):
    """Compute PBKDF2-HMAC-SHA-256 (`scram.salted_password`) off the loop, then call `derived` with its 32 bytes.

    The result is a pure function of the three, so it may be cached under them. `cacheable` is False where `password`
    was typed by a client that has proved nothing yet: a cache that keeps those can be filled by strangers.
    `for_nobody`: for a login that will be refused, and takes as long whether there is such a user or not: it must delay
    nobody else, and is computed each time. `was_kept` is set by who carries it out, where nothing had to be computed.
    """

    password: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    iterations: int
    cacheable: bool = True
    for_nobody: bool = False
    was_kept: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Inquire(Step):
    """Server role: ask somebody outside (LDAP, PAM) off the loop whether `password` is the user's, then call `answered`."""

    password: bytes = field(repr=False)


class Accepted(Step):
    """The peer proved itself.

    Server role: `final`, if there, is the payload of an AuthenticationSASLFinal (12) to be sent before
    AuthenticationOk; `keys` are the client's, for logging in to servers that store the same SCRAM secret. Client
    role: both are None.
    """

    __slots__ = ("final", "keys")

    def __init__(self, keys: ScramKeys | None = None, final: bytes | None = None) -> None:
        self.keys = keys
        self.final = final

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Accepted) and self.keys == other.keys and self.final == other.final

    def __hash__(self) -> int:
        return hash((self.keys, self.final))

    def __repr__(self) -> str:
        return f"Accepted({self.keys!r}, {self.final!r})"


@dataclass(frozen=True, slots=True)
class Wait(Step):
    """Client role: send nothing; the server speaks next."""


class ServerExchange:
    """Server role: proves one client, once. `start` first, then `receive` or `derived` as the last step asked; after a
    WrongSecret also `again`."""

    __slots__ = ()

    def start(self) -> Step:
        """The first step. Raises AuthenticationFailed where there is nothing to ask for."""
        raise NotImplementedError

    def receive(self, payload: bytes) -> Step:
        """The body of the client's 'p' message, without type and length. Raises AuthenticationFailed."""
        raise NotImplementedError

    def derived(self, salted_password: bytes) -> Step:
        """The answer to a `Derive` step. Raises AuthenticationFailed; IllegalTransition where none was asked."""
        raise IllegalTransition(f"{type(self).__name__}: no key was to be derived")

    def answered(self, proved: bool) -> Step:
        """The answer to an `Inquire` step. Raises AuthenticationFailed; IllegalTransition where nobody was asked."""
        raise IllegalTransition(f"{type(self).__name__}: nobody was to be asked")

    def again(self, secret: Secret) -> Step:
        """Hold the answer that has just raised WrongSecret against a newer secret of the same user. Raises
        AuthenticationFailed where it does not fit either, or where what was asked of the client fits the old one only."""
        raise IllegalTransition(f"{type(self).__name__}: there is no answer to hold against another secret")
