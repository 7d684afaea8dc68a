"""SCRAM-SHA-256 arithmetic (RFC 5802 section 3, RFC 7677): keys, proofs, signatures, secrets.

Pure functions of bytes. Must not know messages (scram_messages) nor whose turn it is (scram_server, scram_client).
The names are the RFC's: ClientKey, StoredKey, ServerKey, ClientProof, ServerSignature, AuthMessage.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.auth.secret import KEY_BYTES, ScramSecret, encoded

SALT_BYTES: Final = 16  # PostgreSQL's SCRAM_DEFAULT_SALT_LEN
BLOCK_BYTES: Final = 64  # of SHA-256
INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
NONCE_BYTES: Final = 18  # PostgreSQL's SCRAM_RAW_NONCE_LEN; 24 characters of base64


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104). `hmac.digest` takes twice as long: OpenSSL 3 looks its parts up anew for each."""
    if len(key) > BLOCK_BYTES:
        key = hashlib.sha256(key).digest()
    block = key.ljust(BLOCK_BYTES, b"\0")
    inner = hashlib.sha256(block.translate(INNER_PAD) + message).digest()
    return hashlib.sha256(block.translate(OUTER_PAD) + inner).digest()


def salted_password(password: bytes, salt: bytes, iterations: int) -> bytes:
    """SaltedPassword, 32 bytes: the slow part (about 1.5 ms for 4,096 iterations). Never call it on the loop."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def client_key_from(salted: bytes) -> bytes:
    return hmac_sha256(salted, b"Client Key")


def server_key_from(salted: bytes) -> bytes:
    return hmac_sha256(salted, b"Server Key")


def stored_key_from(client_key: bytes) -> bytes:
    return hashlib.sha256(client_key).digest()


def build_secret(salted: bytes, salt: bytes, iterations: int) -> ScramSecret:
    """The secret to be stored for a password, from its SaltedPassword."""
    return ScramSecret(salt, iterations, stored_key_from(client_key_from(salted)), server_key_from(salted))


def new_secret(password: bytes, salt: bytes, iterations: int) -> ScramSecret:
    """The secret for a plain password. Slow: for command lines and tests."""
    return build_secret(salted_password(saslprep(password), salt, iterations), salt, iterations)


def client_proof(client_key: bytes, auth_message: bytes) -> bytes:
    """ClientProof = ClientKey XOR HMAC(StoredKey, AuthMessage)."""
    return exclusive_or(client_key, hmac_sha256(stored_key_from(client_key), auth_message))


def client_key_of_proof(proof: bytes, stored_key: bytes, auth_message: bytes) -> bytes | None:
    """The ClientKey that a proof carries, or None where the proof is not one for `stored_key`."""
    client_key = exclusive_or(proof, hmac_sha256(stored_key, auth_message))
    return client_key if hmac.compare_digest(stored_key_from(client_key), stored_key) else None


def server_signature(server_key: bytes, auth_message: bytes) -> bytes:
    return hmac_sha256(server_key, auth_message)


def exclusive_or(left: bytes, right: bytes) -> bytes:
    """Two keys of 32 bytes, bit by bit."""
    return bytes([left[at] ^ right[at] for at in range(KEY_BYTES)])


def salt_of_name(user: str, process_secret: bytes) -> bytes:
    """A salt that is constant for a name and tells nothing about it.

    Used for users that do not exist and for those whose password is stored plain: asking twice, the two look alike, and
    every worker that shares `process_secret` gives the same one.
    """
    return hmac_sha256(process_secret, b"salt " + encoded(user))[:SALT_BYTES]


def mock_secret(user: str, process_secret: bytes, iterations: int) -> ScramSecret:
    """A secret for a user that has none. Nobody knows a password for it; its exchange must be doomed all the same."""
    name = encoded(user)
    stored_key = hmac_sha256(process_secret, b"stored key " + name)
    server_key = hmac_sha256(process_secret, b"server key " + name)
    return ScramSecret(salt_of_name(user, process_secret), iterations, stored_key, server_key)
