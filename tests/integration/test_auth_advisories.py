"""The advisories of poolers and their neighbours, each by name, with a hostile server or client. Those about TLS and auth_query
stand with these (test_tls_clients, test_tls_servers, test_auth_query), that about each leg's word in test_auth_matrix, those
about the console (CVE-2023-22332, CVE-2026-6667) in tests/unit/admin, that about late cancels (PgBouncer 717) in test_cancel,
the codecs' own in tests/unit/auth/test_advisories.py.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_clients import Database, Login, ask, backend_pid, value
from fix_postgres import Postgres
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, STATS_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, Message, Peer, RawClient, RawServer, message, query, startup_message

PLAIN = {"somebody": "secret"}


def sasl(code: int, payload: bytes) -> bytes:
    return message(b"R", struct.pack("!i", code) + payload)


OFFER = sasl(10, b"SCRAM-SHA-256\0\0")


@pytest.fixture
def leg(make_proxy: MakeProxy, raw_server: RawServer, make_raw_client: MakeRawClient) -> Callable[..., tuple[RawClient, Peer]]:
    """A client that waits for its login, and the server that the proxy has sent its StartupMessage to."""

    def make(**settings: object) -> tuple[RawClient, Peer]:
        proxy = make_proxy(
            databases={"app": f"host=127.0.0.1 port={raw_server.port}"}, users=PLAIN, server_tls_sslmode="disable",
            **settings,
        )  # fmt: skip
        client = make_raw_client(proxy.port)
        client.send(startup_message(user="somebody"))
        peer = raw_server.accept()
        raw_server.read_startup(peer)
        client.proxy = proxy  # type: ignore[attr-defined]  # for what a test wants to know afterwards
        return client, peer

    return make


def client_first(peer: Peer) -> bytes:
    """Our nonce."""
    found = peer.read_message()
    return found.body.split(b"r=")[1]


def refusal(client: RawClient) -> Message:
    found = client.read_until(b"E")[-1]
    assert found.type == b"E"
    return found


SALT = base64.b64encode(b"0123456789abcdef")
FIRST = {
    "CVE-2026-6665 a nonce of 60 kB": lambda nonce: b"r=" + nonce + b"x" * 60_000 + b",s=" + SALT + b",i=4096",
    "a salt of 60 kB": lambda nonce: b"r=" + nonce + b"x,s=" + base64.b64encode(bytes(45_000)) + b",i=4096",
    "CVE-2026-42198 two milliard iterations": lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=2147483647",
    "no iterations": lambda nonce: b"r=" + nonce + b"x,s=" + SALT,
    "iterations that are no number": lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096x",
    "a nonce that does not extend ours": lambda nonce: b"r=other,s=" + SALT + b",i=4096",
    "a mandatory extension": lambda nonce: b"m=x,r=" + nonce + b"x,s=" + SALT + b",i=4096",
    "nothing": lambda nonce: b"",
}


@pytest.mark.parametrize("case", FIRST)
def test_a_hostile_servers_first_scram_message_costs_a_refused_login_only(
    leg: Callable[..., tuple[RawClient, Peer]], case: str
) -> None:
    client, peer = leg()
    peer.send(OFFER)
    nonce = client_first(peer)
    peer.send(sasl(11, FIRST[case](nonce)))
    assert "server login failed" in refusal(client).fields()["M"]  # two milliard iterations would take a quarter of an hour
    assert peer.is_closed()


def test_a_message_of_a_megabyte_in_a_login_is_not_read(leg: Callable[..., tuple[RawClient, Peer]]) -> None:
    client, peer = leg()
    peer.send(b"R" + struct.pack("!i", 1_000_000) + struct.pack("!i", 10))
    refusal(client)
    assert peer.is_closed()


@pytest.mark.parametrize("final", [b"v=" + base64.b64encode(bytes(32)), b"", b"e=other-error", None])
def test_a_server_that_does_not_prove_itself_is_left(
    leg: Callable[..., tuple[RawClient, Peer]], final: bytes | None
) -> None:
    client, peer = leg()
    peer.send(OFFER)
    nonce = client_first(peer)
    peer.send(sasl(11, b"r=" + nonce + b"x,s=" + SALT + b",i=4096"))
    assert peer.read_message().type == b"p"
    if final is not None:
        peer.send(sasl(12, final))
    else:
        peer.send(message(b"R", struct.pack("!i", 0)))  # AuthenticationOk without a final message
    assert "server login failed" in refusal(client).fields()["M"]
    assert peer.is_closed()


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ("scram-sha-256", message(b"R", struct.pack("!i", 3))),
        ("scram-sha-256", message(b"R", struct.pack("!i", 5) + b"salt")),
        ("scram-sha-256", message(b"R", struct.pack("!i", 0))),
        ("!password", message(b"R", struct.pack("!i", 3))),
        ("!none", message(b"R", struct.pack("!i", 0))),
    ],
)
def test_server_require_auth_keeps_the_password_from_servers_that_ask_otherwise(
    leg: Callable[..., tuple[RawClient, Peer]], allowed: str, asked: bytes
) -> None:
    client, peer = leg(server_require_auth=allowed)
    peer.send(asked)
    assert "server login failed" in refusal(client).fields()["M"]
    assert peer.is_closed()


def test_cve_2026_6666_an_error_without_sqlstate_is_told_in_neutral_terms(
    leg: Callable[..., tuple[RawClient, Peer]],
) -> None:
    client, peer = leg()
    peer.send(message(b"E", b"SFATAL\0Mno code\0\0"))
    fields = refusal(client).fields()
    assert (fields["M"], fields["C"]) == ("no code", "XX000")


# --- hostile clients --------------------------------------------------------------------------------------------------------
@pytest.fixture
def scram_proxy(keep_proxy: MakeProxy) -> Iterator[Proxy]:
    proxy = keep_proxy(auth_type="scram-sha-256", users={"scram_user": "scram-secret"})
    yield proxy
    assert proxy.sql("select 1", user="scram_user", password="scram-secret") == [(1,)]


def initial(mechanism: bytes, data: bytes, length: int | None = None) -> bytes:
    return message(b"p", mechanism + b"\0" + struct.pack("!i", len(data) if length is None else length) + data)


@pytest.mark.parametrize(
    "data",
    [
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", -2),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", 2**31 - 1),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=abc", 12),
        initial(b"SCRAM-SHA-256", b"n,,n=,r="),
        initial(b"SCRAM-SHA-256", b""),
        initial(b"SCRAM-SHA-256", b"n,,n=,r=" + b"x" * 5000),
        initial(b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc"),
        initial(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
        initial(b"SCRAM-SHA-1", b"n,,n=,r=abc"),
        initial(b"SCRAM-SHA-256", b"n,a=postgres,n=,r=abc"),
        message(b"p", b"SCRAM-SHA-256"),
        message(b"p", b""),
        message(b"p", b"\0"),
        b"p" + struct.pack("!i", 2**31 - 1),
        b"p" + struct.pack("!i", -1),
        b"p" + struct.pack("!i", 3),
    ],
)
def test_cve_2026_6664_a_malformed_scram_message_ends_one_login(
    scram_proxy: Proxy, make_raw_client: MakeRawClient, data: bytes
) -> None:
    client = make_raw_client(scram_proxy.port)
    client.send(startup_message(user="scram_user"))
    assert client.read_message().type == b"R"
    client.send(data)
    found = client.read_to_end()
    assert [one.type for one in found] == [b"E"]


def test_a_client_that_falls_silent_within_scram_meets_client_login_timeout(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(auth_type="scram-sha-256", client_login_timeout=1)
    first = initial(b"SCRAM-SHA-256", b"n,,n=,r=abc")
    silent: list[RawClient] = []
    for said in (b"", first[:7], first, first + message(b"p", b"c=biws")[:9]):
        client = make_raw_client(proxy.port)
        client.send(startup_message(user="scram_user"))
        assert client.read_message().body[:4] == struct.pack("!i", 10)
        client.send(said)
        silent.append(client)
    assert proxy.sql("select 1", user="scram_user", password="scram-secret") == [(1,)]
    for client in silent:
        assert client.read_to_end()[-1].fields()["M"] == "client_login_timeout"


def test_a_replayed_proof_is_of_no_use(scram_proxy: Proxy, make_raw_client: MakeRawClient) -> None:
    import scramp

    def exchange(replayed: bytes | None) -> tuple[bytes, Message]:
        client = make_raw_client(scram_proxy.port)
        client.send(startup_message(user="scram_user"))
        client.read_message()
        scram = scramp.ScramClient(["SCRAM-SHA-256"], "ignored", "scram-secret", c_nonce="fixed-nonce")
        client.send(initial(b"SCRAM-SHA-256", scram.get_client_first().encode()))
        scram.set_server_first(client.read_message().body[4:].decode())
        proof = replayed or scram.get_client_final().encode()
        client.send(message(b"p", proof))
        return proof, client.read_message()

    proof, answer = exchange(None)
    assert answer.type == b"R"
    assert exchange(proof)[1].fields()["M"] == "SASL authentication failed"


@pytest.mark.parametrize("size", [1, 996, 1023, 1024, 2047, 65530])
def test_pgbouncer_1215_a_password_of_any_size_is_compared(make_proxy: MakeProxy, size: int) -> None:
    proxy = make_proxy(auth_type="plain", users={"trust_user": "x" * size})
    assert proxy.sql("select 1", password="x" * size) == [(1,)]


def test_a_password_that_is_too_long_or_holds_a_zero_is_refused(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy(auth_type="plain", users={"trust_user": "secret"})
    for body in (b"x" * 65_535 + b"\0", b"secret\0secret\0", b"secret", b"\0", b"x" * 1_000_000 + b"\0"):
        client = make_raw_client(proxy.port)
        client.send(startup_message())
        assert client.read_message().type == b"R"
        try:
            client.send(message(b"p", body))
            assert client.read_message().type == b"E"
        except (ConnectionError, EOFError):
            pass
    assert proxy.sql("select 1", password="secret") == [(1,)]


@pytest.mark.parametrize("size", [63, 64, 127, 128, 8192, 9900])
def test_cve_2012_4575_a_long_database_name_is_a_name_like_any_other(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, postgres: Postgres, size: int
) -> None:
    """Up to 127 characters `*` stands for it, and the server says that it has none; beyond, we say so."""
    for databases in ({"app": f"host={postgres.host} port={postgres.port}"}, None):  # unknown, or made from `*`
        proxy = make_proxy(databases=databases)
        client = make_raw_client(proxy.port)
        client.send(startup_message(database="d" * size))
        fields = client.read_until(b"E")[-1].fields()
        assert fields["C"] == "3D000"
        assert ("no such database: " + "d" * size in fields["M"]) == (databases is not None or size > 127)
        assert proxy.sql("select 1") == [(1,)]


OUT_OF_TURN = {
    "a query before the password": (False, query("select 1")),
    "each message of a client before the password": (False, b"".join(message(bytes([kind])) for kind in b"BCDEFHPSXcdf")),
    "the password before it is asked for": (True, message(b"p", b"plain-secret\0")),
    "the password twice at once": (False, message(b"p", b"wrong\0") * 2),
    "a second startup message": (False, startup_message("plain_user") + b"\0" * 12_000),  # a promise of 11 kB of type 0
}


@pytest.mark.parametrize("case", OUT_OF_TURN)
def test_cve_2015_4054_messages_in_the_wrong_order_end_a_login(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, case: str
) -> None:
    is_first, data = OUT_OF_TURN[case]
    proxy = make_proxy(auth_type="plain")
    client = make_raw_client(proxy.port)
    if is_first:
        client.send(data)
    else:
        client.send(startup_message("plain_user"))
        assert client.read_message().type == b"R"
        client.send(data)
    assert [one.type for one in client.read_to_end()] in ([b"E"], [])
    assert proxy.sql("select 1", user="plain_user", password="plain-secret") == [(1,)]


def test_a_password_message_after_the_login_ends_the_connection(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(auth_type="plain")
    client = login(proxy, user="plain_user", password="plain-secret")
    client.send_message(b"p", b"plain-secret\0")
    assert [one.type for one in client.read_to_end()] == [b"E"]


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**31 - 1, 3, 0])
@pytest.mark.parametrize("kind", [b"Q", b"P", b"B"])
def test_cve_2024_27304_and_32655_a_length_that_wraps_smuggles_nothing(
    make_proxy: MakeProxy, database: Database, login: Login, kind: bytes, length: int
) -> None:
    """The body of a message whose length wraps around would be read as messages of its own."""
    database.sql("create table smuggled (i int)")
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy)
    client.send(kind + struct.pack("!I", length), query("insert into smuggled values (1)") * 3)
    if length != 2**31 - 1:  # that one is a promise of 2 GiB, which our or the server's patience may end
        assert [one.type for one in client.read_to_end()] == [b"E"]
    client.close()
    assert proxy.sql("select count(*) from smuggled") == [(0,)]


@pytest.mark.parametrize("method", ["plain", "md5", "scram-sha-256"])
def test_pgdog_1053_the_console_wants_the_right_password(make_proxy: MakeProxy, method: str) -> None:
    """With auth_query, too, whose users are not the console's."""
    proxy = make_proxy(auth_type=method, auth_user="trust_user", auth_query="select $1::text, 'anything'::text")
    assert proxy.admin("SHOW VERSION")
    for user in (ADMIN_USER, STATS_USER, "pgbouncer", "trust_user", "plain_user", "nobody"):
        for password in ("wrong", "anything", "", "plain-secret"):
            if (user, password) == ("plain_user", "plain-secret"):
                continue
            with pytest.raises(psycopg.OperationalError, match=r"failed|empty password|no password|not allowed"):
                proxy.admin("SHOW VERSION", user=user, password=password)
    with pytest.raises(psycopg.OperationalError, match="not allowed"):
        proxy.admin("SHOW VERSION", user="plain_user", password="plain-secret")
    assert proxy.admin("SHOW VERSION", user=STATS_USER, password=ADMIN_PASSWORD)


def test_pgdog_1285_notifications_stay_within_their_database(
    make_proxy: MakeProxy, database: Database, login: Login, postgres: Postgres
) -> None:
    other = f"host={postgres.host} port={postgres.port} dbname=other"
    proxy = make_proxy(databases={"app": database.entry(), "other": other}, pool_mode="session")
    listener, stranger, speaker = login(proxy), login(proxy, database="other"), login(proxy)
    for client in (listener, stranger):
        client.query("listen channel")
    assert backend_pid(listener) != backend_pid(speaker)
    speaker.query("notify channel, 'for us'")
    assert listener.read_message().type == b"A"
    assert stranger.is_silent()
    ask(stranger, "notify channel, 'for them'")
    assert any(one.type == b"A" for one in stranger.read_until(b"Z")) or stranger.read_message().type == b"A"
    assert listener.is_silent()


def test_cve_2024_45624_no_answer_is_given_to_another_user(make_proxy: MakeProxy) -> None:
    """The same text from users in turn, by both protocols: what one was answered is nobody else's."""
    proxy = make_proxy(pool_mode="transaction", auth_type="trust")
    users = ("trust_user", "scram_user", "trust_user", "plain_user")
    connections = [proxy.connect(user=user, prepare_threshold=0) for user in users]
    for _ in range(3):
        for user, connection in zip(users, connections, strict=True):
            assert connection.execute("select current_user, session_user").fetchone() == (user, user)
            assert connection.execute("select current_user, %s", [1]).fetchone() == (user, 1)


def test_the_answer_to_a_query_goes_to_who_asked(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(pool_mode="transaction", default_pool_size=1)
    clients = [login(proxy) for _ in range(5)]
    assert [value(client, f"select {number}") for number, client in enumerate(clients)] == ["0", "1", "2", "3", "4"]
