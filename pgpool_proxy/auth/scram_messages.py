"""The four SCRAM messages (RFC 5802 section 7) and the SASL envelopes PostgreSQL puts them in: parse and build.

Strict: every attribute in its place, canonical base64, no terminators, nothing after the last attribute that the
grammar does not give. Knows layout and limits only; must not know keys, nor whether a value is the right one. What a
client sends badly raises AuthenticationFailed with SASL_FAILED, what a server sends badly with SERVER_LOGIN_FAILED.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pgpool_proxy.auth.secret import KEY_BYTES, base64_of, parse_count, strict_base64
from pgpool_proxy.errors import SASL_FAILED, SERVER_LOGIN_FAILED, AuthenticationFailed, Report

MECHANISM: Final = b"SCRAM-SHA-256"
MECHANISM_PLUS: Final = b"SCRAM-SHA-256-PLUS"
BINDING_TYPE: Final = b"tls-server-end-point"  # the only one PostgreSQL has

# A message of PostgreSQL's own is below 200 bytes: a nonce of 48 characters, a salt of 24, keys of 44. 1,024 leaves
# room for drivers with long nonces and certificates with SHA-512 hashes; anything longer is an attack (CVE-2026-6664
# and CVE-2026-6665).
MAX_MESSAGE: Final = 1024
MAX_NONCE: Final = 512  # both halves
MAX_SALT: Final = 256  # raw bytes; PostgreSQL's is 16
# PBKDF2 of 1,000,000 iterations takes about 0.4 s of a worker thread; OWASP's advice is 600,000, PostgreSQL's default
# is 4,096. A server that asks for more is burning our CPU (CVE-2026-42198).
MAX_ITERATIONS: Final = 1_000_000
MAX_MECHANISMS: Final = 16

PRINTABLE: Final = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x2C)
LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
RESERVED: Final = frozenset(b"anmrcsipve")  # RFC 5802 section 5.1: no extension may use these


class ClientFirst:
    """`flag` is b"n", b"y" or b"p"; `gs2_header` is what `c=` repeats; `bare` goes into AuthMessage."""

    __slots__ = ("bare", "flag", "gs2_header", "nonce")

    def __init__(self, flag: bytes, gs2_header: bytes, bare: bytes, nonce: bytes) -> None:
        self.flag = flag
        self.gs2_header = gs2_header
        self.bare = bare
        self.nonce = nonce


@dataclass(frozen=True, slots=True)
class ServerFirst:
    nonce: bytes
    salt: bytes = field(repr=False)
    iterations: int


class ClientFinal:
    """`binding` is the decoded `c=`; `without_proof` goes into AuthMessage."""

    __slots__ = ("binding", "nonce", "proof", "without_proof")

    def __init__(self, binding: bytes, nonce: bytes, proof: bytes, without_proof: bytes) -> None:
        self.binding = binding
        self.nonce = nonce
        self.proof = proof
        self.without_proof = without_proof


# --- as the server: read the client ----------------------------------------------------------------------------------


def parse_initial_response(payload: bytes) -> tuple[bytes, bytes]:
    """SASLInitialResponse -> mechanism, client-first-message. A response that is left out (length -1) is refused."""
    mechanism, terminator, rest = payload[: MAX_MESSAGE * 2].partition(b"\0")
    if not terminator or len(payload) > MAX_MESSAGE * 2:
        raise refused("no SASL mechanism was selected")
    if len(rest) < 4 or rest[:4] != (len(rest) - 4).to_bytes(4, "big"):
        raise refused("the SASL response has not the length it claims")
    return mechanism, rest[4:]


def parse_client_first(message: bytes) -> ClientFirst:
    """gs2-cbind-flag "," "," "n=" saslname "," "r=" nonce ["," extensions]. Authorization identities are refused."""
    check_message(message, SASL_FAILED)
    flag, comma, rest = message.partition(b",")
    if not comma or (flag not in {b"n", b"y"} and not flag.startswith(b"p=")):
        raise refused("malformed SCRAM message (channel-binding flag)")
    if flag[:1] == b"p" and flag[2:] != BINDING_TYPE:
        raise refused("unsupported SCRAM channel-binding type")
    identity, comma, bare = rest.partition(b",")
    if not comma or identity:
        raise refused("the client uses an authorization identity, which is not supported")
    attributes = bare.split(b",")
    if attributes[0].startswith(b"m="):
        raise refused("the client requires an unsupported SCRAM extension")
    if len(attributes) < 2:
        raise refused("malformed SCRAM message (no nonce)")
    attribute(attributes[0], b"n", SASL_FAILED)  # PostgreSQL ignores the name too: StartupMessage has it
    nonce = parse_nonce(attributes[1], SASL_FAILED)
    check_extensions(attributes[2:])
    return ClientFirst(flag[:1], message[: len(message) - len(bare)], bare, nonce)


def parse_client_final(message: bytes) -> ClientFinal:
    """The grammar: "c=" base64 "," "r=" nonce ["," extensions] "," "p=" base64 of 32 bytes."""
    check_message(message, SASL_FAILED)
    attributes = message.split(b",")
    if len(attributes) < 3:
        raise refused("malformed SCRAM message (no proof)")
    binding = strict_base64(attribute(attributes[0], b"c", SASL_FAILED))
    nonce = parse_nonce(attributes[1], SASL_FAILED)
    check_extensions(attributes[2:-1])
    proof = strict_base64(attribute(attributes[-1], b"p", SASL_FAILED))
    if binding is None or proof is None or len(proof) != KEY_BYTES:
        raise refused("malformed SCRAM message (channel binding or proof)")
    return ClientFinal(binding, nonce, proof, message[: -len(attributes[-1]) - 1])


# --- as the client: read the server ----------------------------------------------------------------------------------


def parse_mechanisms(payload: bytes) -> list[bytes]:
    """AuthenticationSASL: names, each ended by a zero byte, and an empty one."""
    if len(payload) > MAX_MESSAGE or not payload.endswith(b"\0\0"):
        raise distrusted("malformed list of SASL mechanisms")
    names = payload[:-2].split(b"\0")
    if len(names) > MAX_MECHANISMS or not all(names):
        raise distrusted("malformed list of SASL mechanisms")
    return names


def parse_server_first(message: bytes) -> ServerFirst:
    """The grammar: "r=" nonce "," "s=" base64 "," "i=" count, and no more, as libpq reads it."""
    check_message(message, SERVER_LOGIN_FAILED)
    attributes = message.split(b",")
    if len(attributes) != 3:
        raise distrusted("malformed SCRAM message (server-first-message)")
    nonce = parse_nonce(attributes[0], SERVER_LOGIN_FAILED)
    salt = strict_base64(attribute(attributes[1], b"s", SERVER_LOGIN_FAILED))
    if not salt or len(salt) > MAX_SALT:
        raise distrusted("malformed SCRAM message (salt)")
    iterations = parse_count(attribute(attributes[2], b"i", SERVER_LOGIN_FAILED), MAX_ITERATIONS)
    if iterations is None:
        raise distrusted(f"malformed SCRAM message (iteration count, or more than {MAX_ITERATIONS})")
    return ServerFirst(nonce, salt, iterations)


def parse_server_final(message: bytes) -> bytes:
    """The grammar: "v=" base64. Gives ServerSignature, 32 bytes. A server error ("e=") is a failure."""
    check_message(message, SERVER_LOGIN_FAILED)
    if message.startswith(b"e="):
        raise distrusted(f"the server ended the SCRAM exchange: {message[2:66].decode('ascii', 'backslashreplace')}")
    signature = strict_base64(attribute(message, b"v", SERVER_LOGIN_FAILED))
    if signature is None or len(signature) != KEY_BYTES:
        raise distrusted("malformed SCRAM message (server signature)")
    return signature


# --- build -----------------------------------------------------------------------------------------------------------


def build_initial_response(mechanism: bytes, message: bytes) -> bytes:
    return mechanism + b"\0" + len(message).to_bytes(4, "big") + message


def build_server_first(nonce: bytes, salt: bytes, iterations: int) -> bytes:
    return b"r=%s,s=%s,i=%d" % (nonce, base64_of(salt), iterations)


def build_client_final(binding: bytes, nonce: bytes) -> bytes:
    """client-final-message-without-proof."""
    return b"c=%s,r=%s" % (base64_of(binding), nonce)


def with_proof(without_proof: bytes, proof: bytes) -> bytes:
    return b"%s,p=%s" % (without_proof, base64_of(proof))


def build_server_final(signature: bytes) -> bytes:
    return b"v=" + base64_of(signature)


# --- the grammar's small parts ---------------------------------------------------------------------------------------


def check_message(message: bytes, report: Report) -> None:
    if not message or len(message) > MAX_MESSAGE or 0 in message:
        raise AuthenticationFailed(report, f"malformed SCRAM message (empty, zero byte, or over {MAX_MESSAGE} bytes)")


def attribute(text: bytes, letter: bytes, report: Report) -> bytes:
    """The value of `letter=value`."""
    if text[:1] != letter or text[1:2] != b"=":
        raise AuthenticationFailed(report, f'malformed SCRAM message (attribute "{letter.decode()}" expected)')
    return text[2:]


def parse_nonce(text: bytes, report: Report) -> bytes:
    nonce = attribute(text, b"r", report)
    if not 1 <= len(nonce) <= MAX_NONCE or nonce.translate(None, PRINTABLE):
        raise AuthenticationFailed(report, "malformed SCRAM message (nonce)")
    return nonce


def check_extensions(attributes: list[bytes]) -> None:
    """Optional extensions are to be ignored (RFC 5802 section 5.1), as long as they are ones."""
    for text in attributes:
        if len(text) < 3 or text[0] not in LETTERS or text[0] in RESERVED or text[1:2] != b"=":
            raise refused("malformed SCRAM message (extension)")


def refused(reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(SASL_FAILED, reason)


def distrusted(reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(SERVER_LOGIN_FAILED, reason)
