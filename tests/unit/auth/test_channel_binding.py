from __future__ import annotations

import base64
import hashlib

import pytest

from pgpool_proxy.auth.channel_binding import signature_hash, tls_server_end_point

# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha384 -subj /CN=x
CERTIFICATE = base64.b64decode(
    "MIIBbzCCARWgAwIBAgIUBswUqZCqnk1fKnEPycmAfq7lLN4wCgYIKoZIzj0EAwMwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjIyMzA3"
    "NDdaGA8yMDU0MDQwODIzMDc0N1owDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAWJhL/7ofNSuXC7NmTF"
    "1N38YdzfwwYcDSsWmjP4CcI/hvLPQpN1FHnj+s5c61NoQJS94oguxQxaYQOn6pB66cajUzBRMB0GA1UdDgQWBBQSEhLrgEIvOr8N"
    "qJAWEOA7RcOd0jAfBgNVHSMEGDAWgBQSEhLrgEIvOr8NqJAWEOA7RcOd0jAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMDA0gA"
    "MEUCIHc+yc9xYY4Jm5CzSqFRwzN715Ru2sZJjREb1ZKFoK/aAiEAjYofHmD/4FcGAjgq1yTJFpsaBMoqPOmI75bLddtpyLs="
)


def der(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def certificate(identifier: str, parameters: bytes = b"") -> bytes:
    """The skeleton of one, signed with that algorithm."""
    algorithm = der(0x30, der(0x06, bytes.fromhex(identifier)) + parameters)
    return der(0x30, der(0x30, b"\x02\x01\x00") + algorithm + der(0x03, b"\x00"))


def test_a_certificate_is_hashed_as_it_was_signed():
    assert tls_server_end_point(CERTIFICATE) == hashlib.sha384(CERTIFICATE).digest()


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("2a864886f70d010104", "sha256"),  # md5WithRSAEncryption
        ("2a864886f70d010105", "sha256"),  # sha1WithRSAEncryption
        ("2a864886f70d01010b", "sha256"),
        ("2a864886f70d01010c", "sha384"),
        ("2a864886f70d01010d", "sha512"),
        ("2a8648ce3d040302", "sha256"),
        ("2a8648ce3d040304", "sha512"),
        ("2b6570", None),  # Ed25519
    ],
)
def test_md5_and_sha1_count_as_sha256_and_ed25519_has_none(identifier, name):
    assert signature_hash(certificate(identifier)) == name


def test_pss_names_its_hash_in_the_parameters():
    sha512 = der(0x30, der(0xA0, der(0x30, der(0x06, bytes.fromhex("608648016503040203")))))
    assert signature_hash(certificate("2a864886f70d01010a", sha512)) == "sha512"
    assert signature_hash(certificate("2a864886f70d01010a", der(0x30, b""))) == "sha256"


def test_what_is_no_certificate_has_no_hash():
    for length in range(len(CERTIFICATE)):
        assert tls_server_end_point(CERTIFICATE[:length]) is None
    assert tls_server_end_point(b"\x30\x80\x00\x00") is None
    assert tls_server_end_point(b"\x30\x85" + bytes(20)) is None
