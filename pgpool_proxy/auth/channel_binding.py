"""tls-server-end-point (RFC 5929 section 4): what SCRAM-SHA-256-PLUS ties a login to.

Knows of a certificate only where the hash of its signature stands. Must not know TLS: the certificate comes as DER.
"""

from __future__ import annotations

import hashlib
from typing import Final

SEQUENCE: Final = 0x30
OBJECT_IDENTIFIER: Final = 0x06
# DER of the object identifiers, without tag and length. MD5 and SHA-1 count as SHA-256 (RFC 5929).
RSA: Final = bytes.fromhex("2a864886f70d0101")  # 1.2.840.113549.1.1
ECDSA_SHA1: Final = bytes.fromhex("2a8648ce3d0401")  # 1.2.840.10045.4.1
ECDSA: Final = bytes.fromhex("2a8648ce3d0403")  # 1.2.840.10045.4.3
SHA2: Final = bytes.fromhex("6086480165030402")  # 2.16.840.1.101.3.4.2
HASHES: Final = {
    **{RSA + bytes([last]): "sha256" for last in (4, 5, 11)},
    RSA + b"\x0c": "sha384",
    RSA + b"\x0d": "sha512",
    RSA + b"\x0e": "sha224",
    ECDSA_SHA1: "sha256",
    ECDSA + b"\x01": "sha224",
    ECDSA + b"\x02": "sha256",
    ECDSA + b"\x03": "sha384",
    ECDSA + b"\x04": "sha512",
}
RSA_PSS: Final = RSA + b"\x0a"
PSS_HASHES: Final = {b"\x01": "sha256", b"\x02": "sha384", b"\x03": "sha512", b"\x04": "sha224"}


def tls_server_end_point(certificate: bytes) -> bytes | None:
    """The hash of a DER certificate, or None where the RFC defines none (Ed25519) or it is no certificate."""
    name = signature_hash(certificate)
    return None if name is None else hashlib.new(name, certificate, usedforsecurity=False).digest()


def signature_hash(certificate: bytes) -> str | None:
    """Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters }, signature }."""
    outer = element(certificate, 0, SEQUENCE)
    tbs = None if outer is None else element(outer[0], 0, SEQUENCE)
    algorithm = None if outer is None or tbs is None else element(outer[0], tbs[1], SEQUENCE)
    identifier = None if algorithm is None else element(algorithm[0], 0, OBJECT_IDENTIFIER)
    if algorithm is None or identifier is None:
        return None
    if identifier[0] != RSA_PSS:
        return HASHES.get(identifier[0])
    # The parameters name the hash first, then the mask function's; left out, the hash is SHA-1.
    parameters = algorithm[0][identifier[1] :]
    at = parameters.find(SHA2)
    return "sha256" if at < 0 else PSS_HASHES.get(parameters[at + len(SHA2) : at + len(SHA2) + 1])


def element(data: bytes, at: int, tag: int) -> tuple[bytes, int] | None:
    """The content of the DER element at `at` and the place behind it; None where it is not `tag` or not whole."""
    if len(data) < at + 2 or data[at] != tag:
        return None
    length, at = data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4:
            return None
        length, at = int.from_bytes(data[at : at + count], "big"), at + count
    return None if len(data) < at + length else (data[at : at + length], at + length)
