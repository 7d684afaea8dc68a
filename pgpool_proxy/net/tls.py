"""TLS on both sides: contexts out of settings and files, and the handshakes.

Bytes that came in clear are never taken for encrypted ones (CVE-2021-3935, CVE-2021-23222): in the very call that sees a
client's request the socket is handed over to OpenSSL, and in the one that sees a server's answer reading is paused until it
is; anything beside the request or the answer breaks the connection. Until a client's handshake is done its session writes
into nothing, so no clear text gets into it either. The encrypted stream itself is net/tls_transport.py's.

A set-up that cannot be read raises ConfigError; who had one before keeps it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

from pgpool_proxy import errors, log
from pgpool_proxy.auth.channel_binding import tls_server_end_point
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.tls_transport import TlsTransport
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.settings.config import Config, beside
from pgpool_proxy.settings.entries import DatabaseEntry
from pgpool_proxy.wire.frontend import SSL_REQUEST_PACKET

ALPN: Final = "postgresql"
HANDSHAKE_S: Final = 60.0  # where the settings set no limit
VERSIONS: Final = {
    "tlsv1.0": ssl.TLSVersion.TLSv1,
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
GROUPS: Final = {"all": tuple(VERSIONS), "secure": ("tlsv1.2", "tlsv1.3"), "tlsv1": ("tlsv1.0",), "legacy": tuple(VERSIONS)}
OFF: Final = {
    "tlsv1.0": ssl.OP_NO_TLSv1,
    "tlsv1.1": ssl.OP_NO_TLSv1_1,
    "tlsv1.2": ssl.OP_NO_TLSv1_2,
    "tlsv1.3": ssl.OP_NO_TLSv1_3,
}
USUAL_CIPHERS: Final = frozenset({"", "default", "secure", "fast", "normal"})
VERIFYING: Final = frozenset({"verify-ca", "verify-full"})
SYSTEM: Final = "system"  # libpq's sslrootcert=system


@dataclass(frozen=True)
class Wanted:
    """What the settings say of one side, file names resolved."""

    mode: str
    ca: str
    cert: str
    key: str
    protocols: str
    ciphers: str
    tls13_ciphers: str
    curve: str = "auto"
    direct: bool = False

    def stamp(self) -> bytes:
        """What the files hold: a set-up is read again when this differs."""
        digest = hashlib.sha256()
        for name in (self.ca, self.cert, self.key):
            try:
                digest.update(Path(name).read_bytes() if name and name != SYSTEM else b"")
            except OSError as error:
                digest.update(str(error).encode())
            digest.update(b"|")
        return digest.digest()


# --- contexts -------------------------------------------------------------------------------------------------------------
def client_side(config: Config) -> Wanted:
    """What TLS with clients should be."""
    settings = config.settings
    return Wanted(
        settings.client_tls_sslmode,
        beside(config, settings.client_tls_ca_file),
        beside(config, settings.client_tls_cert_file),
        beside(config, settings.client_tls_key_file),
        settings.client_tls_protocols,
        settings.client_tls_ciphers,
        settings.client_tls13_ciphers or "",
        settings.client_tls_ecdhcurve,
    )


def server_side(config: Config, entry: DatabaseEntry) -> Wanted:
    """What TLS with the servers of a database should be: its entry over the settings."""
    settings = config.settings
    ca = entry.sslrootcert or settings.server_tls_ca_file
    return Wanted(
        entry.sslmode or settings.server_tls_sslmode,
        SYSTEM if ca == SYSTEM else beside(config, ca),
        beside(config, entry.sslcert or settings.server_tls_cert_file),
        beside(config, entry.sslkey or settings.server_tls_key_file),
        settings.server_tls_protocols,
        settings.server_tls_ciphers,
        settings.server_tls13_ciphers or "",
        direct=settings.server_tls_negotiation == "direct",
    )


def context_for_clients(wanted: Wanted) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
    context.num_tickets = 0  # libpq does not resume sessions; PostgreSQL sends none either
    _common(context, wanted, "client")
    if not wanted.cert or not wanted.key:
        raise ConfigError("TLS with clients needs client_tls_key_file and client_tls_cert_file", key="client_tls_sslmode")
    _load_own(context, wanted, "client")
    if wanted.mode in VERIFYING:
        if not wanted.ca:
            raise ConfigError(f"client_tls_sslmode {wanted.mode} needs it", key="client_tls_ca_file")
        context.verify_mode = ssl.CERT_REQUIRED
    elif wanted.ca:
        context.verify_mode = ssl.CERT_OPTIONAL  # one that is shown is verified
    if wanted.ca:
        _load_roots(context, wanted.ca, "client_tls_ca_file")
    if wanted.curve not in {"none", "auto"}:
        try:
            context.set_ecdh_curve(wanted.curve)
        except (ValueError, ssl.SSLError) as error:
            raise ConfigError(f'curve "{wanted.curve}" is not known', key="client_tls_ecdhcurve") from error
    return context


def context_for_servers(wanted: Wanted) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = wanted.mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if wanted.mode in VERIFYING else ssl.CERT_NONE
    _common(context, wanted, "server")
    if wanted.direct and wanted.mode not in VERIFYING | {"require"}:
        raise ConfigError(f"direct needs a TLS mode of require or more, not {wanted.mode}", key="server_tls_negotiation")
    if wanted.cert or wanted.key:
        if not wanted.cert or not wanted.key:
            raise ConfigError("server_tls_cert_file and server_tls_key_file go together", key="server_tls_cert_file")
        _load_own(context, wanted, "server")
    if wanted.mode in VERIFYING:
        if wanted.ca in {"", SYSTEM}:
            context.load_default_certs()
        else:
            _load_roots(context, wanted.ca, "server_tls_ca_file")
    return context


def _common(context: ssl.SSLContext, wanted: Wanted, side: str) -> None:
    allowed = protocol_versions(wanted.protocols, f"{side}_tls_protocols")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.minimum_version = min(VERSIONS[name] for name in allowed)
    context.maximum_version = max(VERSIONS[name] for name in allowed)
    for name in VERSIONS.keys() - allowed:
        if context.minimum_version < VERSIONS[name] < context.maximum_version:
            context.options |= OFF[name]
    context.set_alpn_protocols([ALPN])
    if wanted.ciphers not in USUAL_CIPHERS:
        try:
            context.set_ciphers("ALL:!aNULL:!eNULL" if wanted.ciphers == "all" else wanted.ciphers)
        except ssl.SSLError as error:
            raise ConfigError("no cipher of it is known", key=f"{side}_tls_ciphers") from error
    if wanted.tls13_ciphers:
        choose = getattr(context, "set_ciphersuites", None)  # newer Pythons have it
        if choose is None:
            log.get_logger().warning(f"{side}_tls13_ciphers: this Python cannot choose them, OpenSSL's own apply")
            return
        try:
            choose(wanted.tls13_ciphers)
        except ssl.SSLError as error:
            raise ConfigError("no cipher suite of it is known", key=f"{side}_tls13_ciphers") from error


def protocol_versions(text: str, key: str) -> frozenset[str]:
    """tlsv1.2, tlsv1.3, all, secure, ... -> names of versions. Raises ConfigError."""
    found: set[str] = set()
    for word in text.lower().replace(":", ",").split(","):
        name = word.strip()
        negated = name.startswith("!")
        names = GROUPS.get(name.lstrip("!"), (name.lstrip("!"),))
        if not set(names) <= VERSIONS.keys():
            raise ConfigError(f'expected a list of {", ".join(VERSIONS)}, all, secure, got "{text}"', key=key)
        if negated:
            found = (found or set(VERSIONS)) - set(names)
        else:
            found |= set(names)
    if not found:
        raise ConfigError("no TLS version is left", key=key)
    return frozenset(found)


def _load_own(context: ssl.SSLContext, wanted: Wanted, side: str) -> None:
    def no_password() -> str:
        raise ConfigError("the key is protected by a password", key=f"{side}_tls_key_file")

    try:
        context.load_cert_chain(wanted.cert, wanted.key, no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        problem = f"could not load {wanted.cert} and {wanted.key}: {_shown(error)}"
        raise ConfigError(problem, key=f"{side}_tls_cert_file") from None


def _load_roots(context: ssl.SSLContext, path: str, key: str) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"could not load {path}: {_shown(error)}", key=key) from None


def _shown(error: BaseException) -> str:
    """OpenSSL's reason without the place in its source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not usable").replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def own_binding(path: str) -> bytes | None:
    """tls-server-end-point of the first certificate in a PEM file; None where there is none for its signature."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    start = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find("-----END CERTIFICATE-----", start)
    if start < 0 or end < 0:
        return None
    return tls_server_end_point(ssl.PEM_cert_to_DER_cert(text[start : end + len("-----END CERTIFICATE-----")]))


def described(tls: asyncio.BaseTransport | TlsTransport) -> str:
    """`TLSv1.3/TLS_AES_256_GCM_SHA384`, for SHOW and the log."""
    connection = tls.get_extra_info("ssl_object")
    cipher = connection.cipher()
    return f"{connection.version()}/{cipher[0] if cipher else '?'}"


# --- clients --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ClientSetup:
    """`context` is None without TLS; `binding` is the tls-server-end-point of the certificate."""

    wanted: Wanted
    stamp: bytes
    context: ssl.SSLContext | None
    binding: bytes | None


class ClientTls:
    """TLS with clients: the set-up in force."""

    def __init__(self) -> None:
        self._setup: ClientSetup | None = None

    def read(self, config: Config) -> ClientSetup:
        """What the settings name. Raises ConfigError."""
        wanted = client_side(config)
        stamp = wanted.stamp()
        setup = self._setup
        if setup is not None and (setup.wanted, setup.stamp) == (wanted, stamp):
            return setup
        if wanted.mode == "disable":
            return ClientSetup(wanted, stamp, None, None)
        context = context_for_clients(wanted)
        return ClientSetup(wanted, stamp, context, own_binding(wanted.cert))

    def use(self, setup: ClientSetup) -> None:
        """Who is connected stays so."""
        self._setup = setup

    @property
    def is_on(self) -> bool:
        return self._setup is not None and self._setup.context is not None

    def begin(self, session: ClientSession, early: bytes, limit_s: float) -> bool:
        """Answer an SSLRequest, or take up direct TLS, which has begun with `early`. False: there is no TLS."""
        setup = self._setup
        if setup is None or setup.context is None:
            return False
        raw = cast(asyncio.Transport, session.transport)
        handshake = ClientHandshake(session, setup.context, setup.binding, bool(early), limit_s or HANDSHAKE_S)
        transport = TlsTransport(raw, cast(Any, raw.get_protocol()), setup.context, handshake)
        session.transport = transport
        if not early:
            raw.write(b"S")
        transport.begin(early)
        return True


class ClientHandshake:
    """What is to be done when a client's handshake has ended, or has not after `limit_s`."""

    def __init__(
        self, session: ClientSession, context: ssl.SSLContext, binding: bytes | None, is_direct: bool, limit_s: float
    ) -> None:
        self._session = session
        self._context = context
        self._binding = binding
        self._is_direct = is_direct
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._timed_out)

    def tls_opened(self, transport: TlsTransport) -> None:
        self._timer.cancel()
        session = self._session
        login = session.login
        if login is None or session.is_closed:
            transport.abort()
            return
        connection = transport.tls
        if self._is_direct and connection.selected_alpn_protocol() != ALPN:
            session.leave(errors.TLS_FAILED.with_detail("direct TLS without ALPN postgresql"), monotonic())
            return
        names = certificate_names(connection.getpeercert()) if self._context.verify_mode != ssl.CERT_NONE else []
        login.encrypted(described(transport), self._binding, names)
        log.connection_logger("C", session.number, "", "", session.address, session.port).debug(
            f"SSL established: {session.tls}"
        )

    def tls_failed(self, error: Exception) -> None:
        self._timer.cancel()
        self._session.leave(errors.TLS_FAILED.with_detail(_shown(error)), monotonic())

    def tls_lost(self, error: BaseException | None) -> None:
        self._timer.cancel()
        self._session.leave(errors.TLS_FAILED.with_detail("the client closed the connection"), monotonic())

    def _timed_out(self) -> None:
        self._session.leave(errors.TLS_FAILED.with_detail("the handshake took too long"), monotonic())


def certificate_names(certificate: Any) -> list[str]:
    """Common name first, then the alternative DNS names, of what `getpeercert` gave; without one, none."""
    if not certificate:
        return []
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    alternative = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return [*(common[:1] or [""]), *alternative]


# --- servers --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ServerSetup:
    """How to reach the servers of a database."""

    wanted: Wanted
    stamp: bytes
    context: ssl.SSLContext

    @property
    def may_be_plain(self) -> bool:
        return self.wanted.mode in {"allow", "prefer"}


class ServerTls:
    """TLS with servers: the set-ups in force, by database."""

    def __init__(self) -> None:
        self._setups: dict[str, ServerSetup | None] = {}

    def read(self, config: Config, template: str = "*") -> dict[str, ServerSetup | None]:
        """What the entries and settings name. Raises ConfigError. Databases made from `*` have its set-up, under that name."""
        entries = dict(config.databases)
        if config.autodb is not None:
            entries[template] = config.autodb
        before: dict[Wanted, ServerSetup] = {setup.wanted: setup for setup in self._setups.values() if setup is not None}
        read: dict[Wanted, ServerSetup] = {}
        fresh: dict[str, ServerSetup | None] = {}
        for name, entry in entries.items():
            wanted = server_side(config, entry)
            if wanted.mode == "disable":
                fresh[name] = None
                continue
            if wanted not in read:
                stamp = wanted.stamp()
                kept = before.get(wanted)
                same = kept is not None and kept.stamp == stamp
                read[wanted] = kept if kept is not None and same else ServerSetup(wanted, stamp, context_for_servers(wanted))
            fresh[name] = read[wanted]
        return fresh

    def use(self, fresh: dict[str, ServerSetup | None]) -> frozenset[str]:
        """The databases whose set-up has changed: their servers have to be made anew."""
        changed = frozenset(name for name in fresh if name in self._setups and self._setups[name] is not fresh[name])
        self._setups = fresh
        return changed

    def setup(self, database: str, template: str = "*") -> ServerSetup | None:
        """None: no TLS."""
        return self._setups.get(database, self._setups.get(template))


class SslAnswer(asyncio.Protocol):
    """Waits for the one byte that answers an SSLRequest, and stops reading with it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.pause_reading()
        if not self.answer.done():
            self.answer.set_result(data)

    def connection_lost(self, error: BaseException | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("the server closed the connection"))


class TlsRefused(OSError):
    """The server does not speak TLS as it should; the text says why."""


async def secured(
    setup: ServerSetup,
    host: str,
    connection: object,
    connect: Callable[[object], Awaitable[asyncio.Transport]],
    limit_s: float,
) -> asyncio.Transport:
    """Connect, and make TLS where it is wanted; `connection` is told what comes after that. Raises OSError.

    `connect(protocol)` makes the plain connection. Reading is paused in what is returned only as long as nobody can miss
    anything: plain or encrypted, the caller has it before the first bytes.
    """
    waiting = SslAnswer()
    raw = await connect(waiting)
    try:
        if setup.wanted.direct:
            raw.pause_reading()
        else:
            raw.write(SSL_REQUEST_PACKET)
            answer = await waiting.answer
            if answer == b"N" and setup.may_be_plain:
                raw.set_protocol(cast(asyncio.Protocol, connection))
                raw.resume_reading()
                return raw
            if answer == b"N":
                raise TlsRefused(errors.TLS_REFUSED.message)
            if answer[:1] == b"E":  # whatever it says is not to be trusted (CVE-2024-10977)
                raise TlsRefused("server answered the SSL request with an error")
            if answer != b"S":
                raise TlsRefused("server sent unencrypted data with its answer to the SSL request")
        return await _shake_hands_with_server(raw, setup, host, connection, limit_s or HANDSHAKE_S)
    except BaseException:
        raw.abort()
        raise
    finally:
        if not waiting.answer.done():
            waiting.answer.cancel()
        elif not waiting.answer.cancelled():
            waiting.answer.exception()  # it has been seen


async def _shake_hands_with_server(
    raw: asyncio.Transport, setup: ServerSetup, host: str, connection: object, limit_s: float
) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    handshake = ServerHandshake(loop.create_future())
    tls = TlsTransport(raw, cast(Any, connection), setup.context, handshake, host)
    timer = loop.call_later(limit_s, handshake.tls_failed, TlsRefused("the TLS handshake took too long"))
    try:
        tls.begin()
        raw.resume_reading()
        await handshake.ended
    finally:
        timer.cancel()
    if setup.wanted.direct and tls.tls.selected_alpn_protocol() != ALPN:
        raise TlsRefused("the server does not speak direct TLS: no ALPN")
    loop.call_soon(tls.begin_reading)  # after the caller, who goes on in this very step, has it
    return cast(asyncio.Transport, tls)


class ServerHandshake:
    """How a handshake with a server has ended, as a future."""

    def __init__(self, ended: asyncio.Future[None]) -> None:
        self.ended = ended

    def tls_opened(self, transport: TlsTransport) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def tls_failed(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(TlsRefused(_shown(error)) if isinstance(error, ssl.SSLError) else error)

    def tls_lost(self, error: BaseException | None) -> None:
        self.tls_failed(TlsRefused("the server closed the connection in the TLS handshake"))


def server_binding(tls: asyncio.BaseTransport) -> bytes | None:
    """tls-server-end-point of the certificate that the server showed."""
    certificate = tls.get_extra_info("ssl_object").getpeercert(True)
    return tls_server_end_point(certificate) if certificate else None

