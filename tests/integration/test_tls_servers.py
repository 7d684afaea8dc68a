"""TLS with servers: every mode against a real PostgreSQL, hostile answers, settings per database, new files by RELOAD."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_postgres import USERS, Postgres
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy
from fix_raw import SSL_REQUEST, Peer, RawServer, message
from fix_tls import Certificates, reload_by_signal
from fix_wait import wait_until

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def in_use(proxy: Proxy, **keywords: object) -> tuple[bool, str | None]:
    """(does our server connection have TLS, its version)."""
    row = proxy.sql("select ssl, version from pg_stat_ssl where pid = pg_backend_pid()", **keywords)[0]
    return bool(row[0]), row[1]


def entry(server: Postgres, host: str = "localhost", **keywords: object) -> dict[str, str]:
    extra = "".join(f" {key}={value}" for key, value in keywords.items())
    return {"app": f"host={host} port={server.port}{extra}"}


# --- modes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_reaches_a_server_with_tls(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates, mode: str
) -> None:
    proxy = make_proxy(databases=entry(tls_postgres), server_tls_sslmode=mode, server_tls_ca_file=certificates.ca)
    encrypted = mode != "disable"
    assert in_use(proxy) == (encrypted, "TLSv1.3" if encrypted else None)
    assert proxy.log_contains("SSL established: TLSv1.3/TLS_AES_256_GCM_SHA384") == encrypted
    assert proxy.show("SERVERS", database="app")["tls"] == ("TLSv1.3/TLS_AES_256_GCM_SHA384" if encrypted else "")


def test_versions_and_ciphers_are_those_of_the_settings(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    proxy = make_proxy(
        databases=entry(tls_postgres), server_tls_sslmode="require", server_tls_protocols="tlsv1.2",
        server_tls_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
    )  # fmt: skip
    assert in_use(proxy) == (True, "TLSv1.2")
    assert proxy.show("SERVERS", database="app")["tls"].startswith("TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256")


@pytest.mark.parametrize("mode", MODES)
def test_a_server_without_tls_is_for_the_modes_that_may_be_plain(
    make_proxy: MakeProxy, shared_postgres: Postgres, certificates: Certificates, mode: str
) -> None:
    proxy = make_proxy(server_tls_sslmode=mode, server_tls_ca_file=certificates.ca)
    if mode in ("disable", "allow", "prefer"):
        assert in_use(proxy) == (False, None)
        return
    with pytest.raises(psycopg.OperationalError, match="server refused SSL"):
        proxy.connect()


@pytest.mark.parametrize(
    ("mode", "pair", "host", "fits"),
    [
        ("require", "stranger_server", "localhost", True),
        ("verify-ca", "stranger_server", "localhost", False),
        ("verify-full", "stranger_server", "localhost", False),
        ("require", "other_name", "localhost", True),
        ("verify-ca", "other_name", "localhost", True),
        ("verify-full", "other_name", "localhost", False),
        ("verify-full", "server", "localhost", True),
        ("verify-full", "server", "127.0.0.1", True),
    ],
)
def test_what_each_mode_verifies(
    make_proxy: MakeProxy, raw_tls_front: Callable[..., int], certificates: Certificates,
    mode: str, pair: str, host: str, fits: bool,
) -> None:  # fmt: skip
    port = raw_tls_front(getattr(certificates, pair))
    proxy = make_proxy(
        databases={"app": f"host={host} port={port}"}, server_tls_sslmode=mode, server_tls_ca_file=certificates.ca
    )
    if fits:
        assert proxy.sql("select 1") == [(1,)]
        return
    with pytest.raises(psycopg.OperationalError, match="server refused SSL"):
        proxy.connect()
    assert proxy.wait_log("certificate verify failed")


@pytest.fixture
def raw_tls_front(shared_postgres: Postgres) -> Any:
    """A TLS front for the shared server: `raw_tls_front(pair)` is the port it listens on."""
    import threading

    listeners: list[socket.socket] = []
    serving: list[threading.Thread] = []
    relays: list[threading.Thread] = []
    peers: list[socket.socket] = []

    def end(sock: socket.socket) -> None:
        """Whoever reads from it or writes to it hears of the end. Not SSLSocket's own shutdown(), which takes the TLS away from
        under the other thread, nor close(), which frees the descriptor that it reads from for somebody else's socket."""
        try:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def relay(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            end(source)
            end(target)

    def serve(listener: socket.socket, context: ssl.SSLContext, direct: bool) -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            peers.append(raw)
            try:
                if not direct:
                    assert raw.recv(8) == struct.pack("!ii", 8, SSL_REQUEST)
                    raw.sendall(b"S")
                front = context.wrap_socket(raw, server_side=True)
            except (OSError, AssertionError):
                raw.close()
                continue
            peers.append(front)
            back = socket.create_connection((shared_postgres.host, shared_postgres.port))
            peers.append(back)
            for source, target in ((front, back), (back, front)):
                relays.append(threading.Thread(target=relay, args=(source, target), daemon=True))
                relays[-1].start()

    def make(pair: tuple[Any, Any], *, direct: bool = False, alpn: tuple[str, ...] = ("postgresql",)) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        serving.append(threading.Thread(target=serve, args=(listener, context, direct), daemon=True))
        serving[-1].start()
        return int(listener.getsockname()[1])

    yield make
    for listener in listeners:
        end(listener)
    for thread in serving:
        thread.join(10)
    for peer in peers:
        end(peer)
    for thread in relays:
        thread.join(10)
        assert not thread.is_alive()
    for sock in (*listeners, *peers):
        sock.close()


def test_each_host_of_a_list_is_verified_by_its_own_name(
    make_proxy: MakeProxy, raw_tls_front: Callable[..., int], certificates: Certificates
) -> None:
    only_address = certificates.issue("only_address", "127.0.0.1")
    port = raw_tls_front(only_address)
    proxy = make_proxy(
        databases={"app": f"host=localhost,127.0.0.1 port={port} load_balance_hosts=disable"},
        server_tls_sslmode="verify-full", server_tls_ca_file=certificates.ca, server_login_retry=0,
    )  # fmt: skip
    assert proxy.sql("select 1") == [(1,)]
    assert {row["addr"] for row in proxy.admin("SHOW SERVERS")} == {"127.0.0.1"}
    assert proxy.log_contains("host localhost of app is passed over")
    proxy.databases["app"] = f"host=localhost port={port}"
    proxy.reload()
    with pytest.raises(psycopg.OperationalError, match="server refused SSL"):
        proxy.connect()


def _try(proxy: Proxy) -> list[tuple[Any, ...]]:
    try:
        return proxy.sql("select 1")
    except psycopg.OperationalError:
        return []


# --- identity -------------------------------------------------------------------------------------------------------------
def test_a_client_certificate_proves_us_to_a_server(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    certificates.client("cert_user")
    pair = (certificates.directory / "client-cert_user.crt", certificates.directory / "client-cert_user.key")
    proxy = make_proxy(
        databases=entry(tls_postgres), users={"cert_user": "x"}, server_tls_sslmode="require",
        **certificates.settings("server", pair),
    )  # fmt: skip
    assert proxy.sql("select current_user", user="cert_user") == [("cert_user",)]


def test_scram_binds_to_the_servers_certificate(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    proxy = make_proxy(
        databases=entry(tls_postgres), users={"ssl_user": "ssl-secret"}, server_tls_sslmode="require",
        server_require_auth="scram-sha-256",
    )  # fmt: skip
    assert proxy.sql("select current_user", user="ssl_user") == [("ssl_user",)]


def test_scram_binds_to_a_certificate_of_any_signature_where_there_is_a_way(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    """Ed25519 has none: PostgreSQL offers -PLUS all the same, and refuses it."""
    proxy = make_proxy(
        databases=entry(tls_postgres), users={"ssl_user": "ssl-secret", ADMIN_USER: ADMIN_PASSWORD},
        server_tls_sslmode="require", server_require_auth="scram-sha-256", server_login_retry=0,
    )  # fmt: skip
    try:
        for name in ("rsa-pss-sha384", "ed25519"):
            certificate, key = certificates.self_signed(name)
            tls_postgres.configure(ssl_cert_file=f"'{certificate}'", ssl_key_file=f"'{key}'")
            wait_until(lambda: not proxy.admin("SHOW SERVERS"))
            assert proxy.sql("select current_user", user="ssl_user") == [("ssl_user",)], name
    finally:
        certificate, key = certificates.server
        tls_postgres.configure(ssl_cert_file=f"'{certificate}'", ssl_key_file=f"'{key}'")


def test_scram_passes_the_clients_keys_through(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    secret = tls_postgres.sql("select rolpassword from pg_authid where rolname = 'ssl_user'")[0][0]
    proxy = make_proxy(
        databases=entry(tls_postgres), users={"ssl_user": secret}, auth_type="scram-sha-256",
        server_tls_sslmode="require", client_tls_sslmode="require", **certificates.settings(),
    )  # fmt: skip
    rows = proxy.sql(
        "select current_user", user="ssl_user", password="ssl-secret", sslmode="require", channel_binding="require"
    )
    assert rows == [("ssl_user",)]


# --- per database ---------------------------------------------------------------------------------------------------------
def test_a_database_has_tls_settings_of_its_own(
    make_proxy: MakeProxy, tls_postgres: Postgres, shared_postgres: Postgres, certificates: Certificates
) -> None:
    certificates.client("cert_user")
    own = {
        "sslmode": "verify-full", "sslrootcert": certificates.ca,
        "sslcert": certificates.directory / "client-cert_user.crt", "sslkey": certificates.directory / "client-cert_user.key",
    }  # fmt: skip
    extra = " ".join(f"{key}={value}" for key, value in own.items())
    proxy = make_proxy(
        databases={
            "app": f"host=localhost port={tls_postgres.port} {extra}",
            "other": f"host=localhost port={tls_postgres.port} sslmode=disable",
            "*": f"host=127.0.0.1 port={shared_postgres.port}",
        },
        users={"cert_user": "x", "trust_user": "x"},
        server_tls_sslmode="prefer",
    )  # fmt: skip
    assert proxy.sql("select current_user", user="cert_user") == [("cert_user",)]
    assert in_use(proxy, dbname="other") == (False, None)
    assert proxy.sql("select 1", dbname="postgres") == [(1,)]


# --- direct TLS -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpn", [("postgresql",), ("h2",), ()])
def test_direct_tls_with_servers_wants_alpn(
    make_proxy: MakeProxy, raw_tls_front: Callable[..., int], certificates: Certificates, alpn: tuple[str, ...]
) -> None:
    port = raw_tls_front(certificates.server, direct=True, alpn=alpn)
    proxy = make_proxy(
        databases={"app": f"host=localhost port={port}"}, server_tls_sslmode="verify-full",
        server_tls_negotiation="direct", server_tls_ca_file=certificates.ca,
    )  # fmt: skip
    if alpn == ("postgresql",):
        assert proxy.sql("select 1") == [(1,)]
    else:
        with pytest.raises(psycopg.OperationalError, match="server refused SSL"):
            proxy.connect()


def test_direct_tls_is_not_for_modes_that_may_be_plain(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, server_tls_negotiation="direct", server_tls_sslmode="prefer")
    assert proxy.run_to_end() == 1
    assert "server_tls_negotiation" in proxy.log()


# --- hostile servers ------------------------------------------------------------------------------------------------------
def ssl_request(server: RawServer) -> Peer:
    peer = server.accept()
    assert server.read_startup(peer) == struct.pack("!i", SSL_REQUEST)
    return peer


def start_login(proxy: Proxy) -> Any:
    """A raw client whose login waits for the server."""
    from fix_raw import RawClient, startup_message

    client = RawClient(socket.create_connection((proxy.host, proxy.port), timeout=10), 10)
    client.send(startup_message())
    return client


@pytest.mark.parametrize("mode", ["prefer", "require"])
@pytest.mark.parametrize(
    "answer",
    [
        b"S" + message(b"R", struct.pack("!i", 0)),  # CVE-2021-23222
        b"N" + message(b"R", struct.pack("!i", 0)),
        message(b"E", b"SFATAL\0C28000\0Mtrust me\0\0"),  # CVE-2024-10977
        b"X",
        b"SS",
    ],
)
def test_cve_2021_23222_and_2024_10977_an_odd_answer_to_the_ssl_request_ends_the_connection(
    make_proxy: MakeProxy, raw_server: RawServer, mode: str, answer: bytes
) -> None:
    proxy = make_proxy(databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, server_tls_sslmode=mode)
    client = start_login(proxy)
    peer = ssl_request(raw_server)
    peer.send(answer)
    assert peer.is_closed()
    told = client.read_until(b"E")[-1].fields()
    assert "server refused SSL" in told["M"]
    assert "trust me" not in str(told)
    assert not proxy.log_contains("trust me")
    client.close()


def test_a_server_that_does_not_answer_the_ssl_request_meets_server_connect_timeout(
    make_proxy: MakeProxy, raw_server: RawServer
) -> None:
    proxy = make_proxy(databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, server_connect_timeout=1)
    client = start_login(proxy)
    peer = ssl_request(raw_server)
    assert "connect timeout" in client.read_until(b"E")[-1].fields()["M"]
    assert peer.is_closed()
    client.close()


def test_a_server_that_hangs_in_the_handshake_meets_server_connect_timeout(
    make_proxy: MakeProxy, raw_server: RawServer
) -> None:
    proxy = make_proxy(databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, server_connect_timeout=1)
    client = start_login(proxy)
    peer = ssl_request(raw_server)
    peer.send(b"S")
    assert peer.read_bytes(1) == b"\x16"
    assert client.read_until(b"E")[-1].type == b"E"
    client.close()


# --- cancel requests ------------------------------------------------------------------------------------------------------
def test_a_cancel_request_goes_over_tls_too(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    proxy = make_proxy(
        databases=entry(tls_postgres), users={"ssl_user": "ssl-secret"}, server_tls_sslmode="verify-full",
        server_tls_ca_file=certificates.ca, client_tls_sslmode="require", **certificates.settings(),
    )  # fmt: skip
    connection = proxy.connect(user="ssl_user", sslmode="require")
    import threading

    def cancel() -> None:
        wait_until(lambda: tls_postgres.stat_activity(usename="ssl_user", state="active"))
        connection.cancel_safe()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("select pg_sleep(30)")
    thread.join()
    assert connection.execute("select 1").fetchone() == (1,)


# --- RELOAD ---------------------------------------------------------------------------------------------------------------
def pid_of(connection: Any) -> int:
    return int(connection.execute("select pg_backend_pid()").fetchone()[0])


def test_reload_reconnects_when_tls_with_servers_has_changed_and_only_then(
    make_proxy: MakeProxy, tls_postgres: Postgres, certificates: Certificates
) -> None:
    proxy = make_proxy(databases=entry(tls_postgres), pool_mode="transaction", server_tls_sslmode="require")
    with proxy.connect() as connection:
        before = pid_of(connection)
        reload_by_signal(proxy)
        assert pid_of(connection) == before
        proxy.settings |= {"server_tls_sslmode": "verify-full", "server_tls_ca_file": certificates.ca}
        reload_by_signal(proxy)
        assert pid_of(connection) != before
        before = pid_of(connection)
        proxy.settings["server_tls_ca_file"] = "/nonexistent.crt"
        reload_by_signal(proxy)
        assert proxy.wait_log("RELOAD failed")
        assert pid_of(connection) == before


def test_the_defaults_reach_every_kind_of_server(make_proxy: MakeProxy, tls_postgres: Postgres) -> None:
    users = {name: password or "x" for name, (_, password) in USERS.items()}
    proxy = make_proxy(databases=entry(tls_postgres), users=users)
    for user in USERS:
        assert proxy.sql("select current_user", user=user) == [(user,)]
