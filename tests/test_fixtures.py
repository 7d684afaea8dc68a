"""The fixtures do what they say: a test that trusts a broken one proves nothing."""

from __future__ import annotations

import socket
import threading
from typing import Any

import psycopg
import pytest
from fix_postgres import USERS, Postgres
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawServer, query, startup_message
from fix_tcp import MakeMiddleman
from fix_wait import wait_until


@pytest.mark.parametrize("user", USERS)
def test_each_user_gets_in_with_the_password_of_its_method(postgres: Postgres, user: str) -> None:
    assert postgres.sql("select current_user", user=user) == [(user,)]


@pytest.mark.parametrize("user", [user for user, (method, _) in USERS.items() if method != "trust"])
def test_a_wrong_password_is_refused(postgres: Postgres, user: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        postgres.connect(user=user, password="wrong")


def test_a_private_server_can_be_restarted_in_each_mode(private_postgres: Postgres) -> None:
    for mode in ("smart", "fast", "immediate"):
        before = private_postgres.pid
        private_postgres.restart(mode)
        assert private_postgres.pid != before
        assert private_postgres.sql("select 1") == [(1,)]
    private_postgres.stop()
    with pytest.raises(psycopg.OperationalError):
        private_postgres.connect()


def test_stat_activity_finds_a_connection_by_its_name(postgres: Postgres) -> None:
    with postgres.connect(application_name="to be found"):
        assert [row["usename"] for row in postgres.stat_activity(application_name="to be found")] == ["postgres"]
        assert postgres.terminate(application_name="to be found") == 1


def test_a_raw_client_talks_to_postgres(postgres: Postgres, make_raw_client: MakeRawClient) -> None:
    client = make_raw_client(postgres.port)
    client.login()
    assert client.parameters["client_encoding"] == "UTF8"
    assert [found.type for found in client.query("select 'x'")] == [b"T", b"D", b"C", b"Z"]
    assert client.query("select 'x', null")[1].values() == [b"x", None]
    assert client.query("nonsense")[0].fields()["C"] == "42601"
    assert client.is_silent(0.05)


@pytest.mark.parametrize("user", ["plain_user", "md5_user"])
def test_a_raw_client_logs_in_with_a_password(postgres: Postgres, make_raw_client: MakeRawClient, user: str) -> None:
    assert make_raw_client(postgres.port).login(user, password=USERS[user][1])[-1].type == b"Z"


def test_a_server_by_hand_answers_a_raw_client(raw_server: RawServer, make_raw_client: MakeRawClient) -> None:
    client = make_raw_client(raw_server.port)
    client.send(startup_message())
    peer = raw_server.accept_login()
    assert client.read_types() == b"RSSSSKZ"
    client.send_chopped(query("select 1"))
    assert peer.read_message() == (b"Q", b"select 1\0")
    peer.reset()
    assert client.is_closed()


def test_middleman_passes_on_chops_and_counts(postgres: Postgres, make_middleman: MakeMiddleman) -> None:
    middleman = make_middleman(postgres.port)
    middleman.up.chop = middleman.down.chop = 1
    assert postgres.sql("select repeat('x', 1000)", port=middleman.port) == [("x" * 1000,)]
    assert middleman.accepted == 1
    assert middleman.down.writes == middleman.down.bytes > 1000


def test_middleman_ends_connections_as_it_is_told(postgres: Postgres, make_middleman: MakeMiddleman) -> None:
    middleman = make_middleman(postgres.port)
    for end in (middleman.drop, middleman.reset):
        with postgres.connect(port=middleman.port) as connection:
            assert end() == 1
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
    middleman.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.connect(port=middleman.port)
    middleman.deaf_listen()
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        postgres.connect(port=middleman.port, connect_timeout=2)
    middleman.refuse()
    middleman.listen()
    assert postgres.sql("select 1", port=middleman.port) == [(1,)]


def test_middleman_pauses_swallows_and_cuts(
    postgres: Postgres, make_middleman: MakeMiddleman, make_raw_client: MakeRawClient
) -> None:
    middleman = make_middleman(postgres.port)
    client = make_raw_client(middleman.port)
    client.login()
    middleman.pause()
    client.send(query("select 1"))
    assert client.is_silent(0.05)
    middleman.resume()
    assert client.read_types() == b"TDCZ"
    middleman.down.cut_after = middleman.down.bytes + 10
    client.send(query("select 1"))
    # What arrived before the RST may be lost with it.
    with pytest.raises((EOFError, ConnectionResetError)):
        client.read_until(b"Z")


def test_middleman_that_stops_ends_whom_it_is_just_accepting(
    postgres: Postgres, make_middleman: MakeMiddleman, monkeypatch: pytest.MonkeyPatch
) -> None:
    middleman = make_middleman(postgres.port)
    connect, drop = socket.create_connection, middleman.drop
    connecting, dropped = threading.Event(), threading.Event()

    def slow_connection(*arguments: Any, **options: Any) -> socket.socket:
        connecting.set()
        dropped.wait(0.5)  # to the end, unless the connections are ended before this one is there
        return connect(*arguments, **options)

    def drop_and_tell() -> int:
        ended = drop()
        dropped.set()
        return ended

    monkeypatch.setattr(socket, "create_connection", slow_connection)
    monkeypatch.setattr(middleman, "drop", drop_and_tell)
    with socket.socket() as client:
        client.settimeout(10)
        client.connect((middleman.host, middleman.port))
        assert connecting.wait(10)
        middleman.stop()
        assert client.recv(1) == b""
    assert middleman.accepted == 1
    assert not middleman.open


def test_middleman_closes_one_half(
    raw_server: RawServer, make_middleman: MakeMiddleman, make_raw_client: MakeRawClient
) -> None:
    middleman = make_middleman(raw_server.port)
    client = make_raw_client(middleman.port)
    peer = raw_server.accept()
    wait_until(lambda: middleman.open)
    middleman.open[0].half_close("up")
    assert peer.is_closed()
    peer.send(b"still here")
    assert client.read_bytes(10) == b"still here"


def test_proxy_serves_queries_and_its_console(proxy: Proxy) -> None:
    assert proxy.sql("select 1 + %s", [1]) == [(2,)]
    assert {row["name"] for row in proxy.admin("SHOW DATABASES")} >= {"pgbouncer"}
    assert proxy.rss() > proxy.pss() // 2 > 0


async def test_proxy_serves_async_connections(proxy: Proxy) -> None:
    async with await proxy.aconnect() as connection:
        cursor = await connection.execute("select 1")
        assert await cursor.fetchone() == (1,)


def test_run_with_config_changes_a_setting_and_changes_it_back(proxy: Proxy) -> None:
    with proxy.run_with_config(default_pool_size=7):
        assert proxy.show("CONFIG", key="default_pool_size")["value"] == "7"
    proxy.settings["default_pool_size"] = 3
    proxy.reload()
    assert proxy.show("CONFIG", key="default_pool_size")["value"] == "3"


def test_a_traceback_in_the_log_fails_the_test(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with proxy.log_file.open("a") as log:
        log.write("Traceback (most recent call last):\n  planted\n")
    assert proxy.wait_log("planted") == "  planted"
    with pytest.raises(pytest.fail.Exception, match="planted"):
        proxy.stop()
    proxy.expected_trouble = "planted"


def test_a_proxy_that_refuses_its_configuration_is_seen_to_end(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, pool_mode="nonsense")
    assert proxy.run_to_end() != 0
    assert proxy.log_contains("pool_mode|nonsense")
