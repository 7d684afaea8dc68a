"""The HTTP side of the real daemon: metrics, health, readiness, the status page, and whoever knocks there."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGTERM
from time import monotonic
from typing import Any

import psycopg
import pytest
import yaml
from fix_clients import Database
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_wait import accepts, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
Get = Callable[..., tuple[int, bytes]]


@pytest.fixture
def observed(make_proxy: MakeProxy) -> tuple[Proxy, int]:
    """A proxy with its HTTP side open, and that side's port."""
    port = free_port()
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, pool_mode="transaction")
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    return proxy, port


def answers(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except OSError:
        return False


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(HOST, port, timeout=10)) as http:
        http.request(method, path, headers=headers)
        answer = http.getresponse()
        return answer.status, answer.read()


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, body = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


# --- metrics --------------------------------------------------------------------------------------------------------------
def test_metrics_count_what_was_done(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    with proxy.connect() as client:
        client.autocommit = True
        for _ in range(5):
            client.execute("select 1")
        found = samples(port)
        user = client.info.user
        at = (("database", "app"), ("user", user))
        assert found["pgpool_proxy_queries_total", at] == 5
        assert found["pgpool_proxy_transactions_total", at] == 5
        assert found["pgpool_proxy_query_seconds_count", at] == 5
        assert found["pgpool_proxy_login_seconds_count", at] == 1
        assert found["pgpool_proxy_server_connect_seconds_count", at] == 1
        assert found["pgpool_proxy_clients", (("database", "app"), ("state", "active"), ("user", user))] == 1
        assert found["pgpool_proxy_servers", (("database", "app"), ("state", "idle"), ("user", user))] == 1
        assert found["pgpool_proxy_used_clients", ()] == 1

    def said_goodbye() -> bool:
        return samples(port).get(
            ("pgpool_proxy_disconnects_total", (("reason", "client close request"), ("side", "client"))), 0
        ) == 1  # fmt: skip

    wait_until(said_goodbye, 10, "the client's end is counted")


def test_pins_are_counted(make_proxy: MakeProxy) -> None:
    port = free_port()
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, pool_mode="transaction", session_state="pin")
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    with proxy.connect() as client:
        client.autocommit = True
        at = (("database", "app"), ("user", client.info.user))
        client.execute("select 1")
        assert samples(port)["pgpool_proxy_pinned_servers", at] == 0
        client.execute("listen news")
        found = samples(port)
        assert found["pgpool_proxy_pinned_servers", at] == 1
        assert found["pgpool_proxy_session_states_total", (at[0], ("kind", "listen"), at[1])] == 1
        assert not [labels for _, labels in found if ("kind", "temp") in labels]
        client.execute("unlisten *")
        wait_until(lambda: samples(port)["pgpool_proxy_pinned_servers", at] == 0, 10, "nothing holds it any more")


def test_a_process_alone_is_worker_1(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    with proxy.connect() as client:
        client.execute("select 1")
        found = {name: value for (name, labels), value in samples(port).items() if ("worker", "1") in labels}
        (shown,) = proxy.admin("SHOW WORKERS")
    assert found["pgpool_proxy_worker_up"] == 1
    assert (found["pgpool_proxy_worker_clients"], found["pgpool_proxy_worker_servers"]) == (1, 1)
    assert (found["pgpool_proxy_worker_leases"], found["pgpool_proxy_worker_restarts_total"]) == (1, 0)
    assert found["pgpool_proxy_worker_memory_bytes"] > 10_000_000
    assert 0 < found["pgpool_proxy_worker_cpu_seconds_total"] <= float(shown["cpu_seconds"]) + 0.01
    assert (shown["worker"], shown["state"], shown["servers"]) == (1, "active", 1)


def test_errors_are_counted_by_class(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    with pytest.raises(Exception, match="nowhere"):
        proxy.connect(dbname="nowhere")
    assert samples(port)["pgpool_proxy_errors_total", (("class", "3D"),)] == 1


def test_servers_that_cannot_be_had_are_counted_by_the_reasons_that_an_alert_knows(
    make_proxy: MakeProxy, postgres: Postgres
) -> None:
    """deploy/prometheus: a dead port is told apart by the pooler's words, PostgreSQL's own refusals by their SQLSTATE."""
    rules = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "prometheus" / "pgpool_proxy.rules.yml").read_text())
    (alert,) = [rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "PgpoolProxyServersFail"]
    (asked,) = re.findall(r'reason=~"([^"]*)"', alert["expr"])
    port = free_port()
    there = f"host={postgres.host} port={postgres.port}"
    databases = {
        "off": f"host={HOST} port={free_port()}",
        "wrong": f"{there} user=scram_user password=nope dbname=postgres",
        "none": f"{there} user=trust_user dbname=nowhere",
    }
    proxy = make_proxy(databases=databases, metrics_listen_addr=HOST, metrics_port=port)
    for database in databases:
        with pytest.raises(psycopg.OperationalError):
            proxy.connect(dbname=database)
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    ended = [dict(labels) for name, labels in samples(port) if name == "pgpool_proxy_disconnects_total"]
    ends = {labels["reason"] for labels in ended if labels["side"] == "server"}
    assert ends == {"connect failed", "28P01", "3D000"}
    assert ends <= set(asked.split("|"))


def test_every_documented_metric_is_there_and_every_metric_is_documented(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    with proxy.connect() as client:
        client.execute("select 1")
        body = get(port, "/metrics")[1].decode()
    families = {family.name for family in text_string_to_metric_families(body) if family.name.startswith("pgpool_proxy_")}
    docs = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = {line.split("`")[1] for line in docs.splitlines() if line.startswith("| `pgpool_proxy_")}
    assert {name.removesuffix("_total") for name in documented} == families


# --- health ---------------------------------------------------------------------------------------------------------------
def test_ready_unless_paused(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    assert get(port, "/readyz")[0] == 200
    proxy.sql("select 1", dbname="app")
    for command, paused in (("PAUSE", 1), ("RESUME", 0)):  # as /readyz says, an alert can say
        proxy.admin(command)
        status, body = get(port, "/readyz")
        assert (status, json.loads(body).get("reasons")) == ((503, ["paused"]) if paused else (200, None))
        assert samples(port)["pgpool_proxy_database_paused", (("database", "app"),)] == paused
        assert get(port, "/healthz")[0] == 200


def test_a_database_without_a_server_is_asked_for_one(make_proxy: MakeProxy, postgres: Postgres) -> None:
    port = free_port()
    proxy = make_proxy(
        databases={
            "app": f"host={postgres.host} port={postgres.port} dbname=postgres",
            "off": f"host={HOST} port={free_port()}",
        },
        metrics_listen_addr=HOST,
        metrics_port=port,
        readiness_databases="app",
    )
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    assert get(port, "/readyz")[0] == 200
    for databases, reasons in (
        ("app, off, nowhere", "database nowhere: there is none"),
        ("app, off", "database off: 127.0.0.1:"),
    ):
        proxy.settings["readiness_databases"] = databases
        proxy.reload()
        status, body = get(port, "/readyz")
        assert status == 503
        (reason,) = json.loads(body)["reasons"]
        assert reason.startswith(reasons)


def test_who_keeps_servers_is_ready_when_they_can_be_had(make_proxy: MakeProxy, database: Database) -> None:
    """That PostgreSQL answers is not enough where the daemon itself logs in, again and again."""
    port = free_port()
    entry = f"host={database.server.host} port={database.server.port} dbname={database.name}_later user=trust_user"
    proxy = make_proxy(
        databases={"app": f"{entry} min_pool_size=1"},
        metrics_listen_addr=HOST,
        metrics_port=port,
        readiness_databases="app",
        server_login_retry=0.2,
    )
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    refused = (503, ["database app: server login has been failing"])

    def said() -> tuple[int, list[str]]:
        status, body = get(port, "/readyz")
        return status, json.loads(body).get("reasons", [])

    wait_until(lambda: said() == refused, 10, "it knows")
    database.server.create_database(f"{database.name}_later")
    wait_until(lambda: said() == (200, []), 10, "it is ready")
    proxy.stop()
    database.server.sql(f"drop database {database.name}_later with (force)", dbname="postgres")


def test_readiness_falls_before_the_shutdown_begins(make_proxy: MakeProxy) -> None:
    port = free_port()
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, shutdown_ready_delay=60)
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    proxy.signal(SIGTERM)

    def has_fallen() -> bool:
        status, body = get(port, "/readyz")
        return status == 503 and json.loads(body)["reasons"] == ["shutting down"]

    wait_until(has_fallen, 10, "readiness falls")
    with proxy.connect() as client:  # and clients still come in
        client.execute("select 1")
    proxy.signal(SIGTERM)
    assert proxy.wait_exit() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_when_the_delay_is_over_nobody_is_accepted_and_who_is_here_stays(make_proxy: MakeProxy, workers: int) -> None:
    port, delay = free_port(), 0.5
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, shutdown_ready_delay=delay, workers=workers)
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    with proxy.connect() as client:
        begin = monotonic()
        proxy.signal(SIGTERM)
        wait_until(lambda: not accepts(proxy.port), 10, "the listener is closed")
        assert monotonic() - begin >= delay
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["shutting down"])
        assert get(port, "/healthz")[0] == 200
        client.execute("select 1")
    assert proxy.wait_exit() == 0


# --- who may ask ----------------------------------------------------------------------------------------------------------
def test_the_token_is_asked_for_and_never_shown(make_proxy: MakeProxy) -> None:
    port = free_port()
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, metrics_auth_token="open-sesame")
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    for path in ("/metrics", "/", "/status.json"):
        assert get(port, path)[0] == 401
        assert get(port, path, authorization="Bearer wrong")[0] == 401
        assert get(port, path, authorization="Bearer open-sesame")[0] == 200
    assert get(port, "/readyz")[0] == 200
    shown = [row for row in proxy.admin("SHOW CONFIG") if "open-sesame" in str(row)]
    assert not shown
    assert "open-sesame" not in proxy.log()


def test_a_token_file_that_cannot_be_read_lets_nobody_in(make_proxy: MakeProxy) -> None:
    port = free_port()
    proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port, metrics_auth_token_file="missing", start=False)
    proxy.expected_trouble = "could not read metrics_auth_token_file"
    proxy.start()
    wait_until(lambda: answers(port), 10, "the HTTP side listens")
    assert get(port, "/metrics", authorization="Bearer ")[0] == 401
    (proxy.directory / "missing").write_text("trouvé\n", encoding="utf-8")
    proxy.admin("RELOAD")
    assert get(port, "/metrics", authorization="Bearer found")[0] == 401
    in_utf8 = "trouvé".encode().decode("latin-1")  # as curl sends it; http.client encodes in latin-1
    assert get(port, "/metrics", authorization=f"Bearer {in_utf8}")[0] == 200


# --- strangers ------------------------------------------------------------------------------------------------------------
def exchange(port: int, sent: bytes) -> bytes:
    """Everything that is answered until the other side closes."""
    with socket.create_connection((HOST, port), timeout=15) as sock:
        sock.sendall(sent)
        parts: list[bytes] = []
        while data := sock.recv(65536):
            parts.append(data)
        return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /healthz HTTP/1.0\r\n\r\n", b"405"),
        (b"GET /secrets HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f" * 4 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000, b"431"),
    ],
)
def test_whatever_comes_gets_one_answer(observed: tuple[Proxy, int], sent: bytes, answer: bytes) -> None:
    _, port = observed
    assert exchange(port, sent).split(b" ")[1] == answer
    assert get(port, "/healthz")[0] == 200


def test_a_connection_serves_many_requests(observed: tuple[Proxy, int]) -> None:
    _, port = observed
    with closing(HTTPConnection(HOST, port, timeout=10)) as http:
        for path in ("/metrics", "/healthz", "/status.json", "/metrics"):
            http.request("GET", path)
            answer = http.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)


def test_no_more_connections_than_the_bound(observed: tuple[Proxy, int]) -> None:
    from pgpool_proxy.metrics.http import MAX_CONNECTIONS

    _, port = observed
    opened = [socket.create_connection((HOST, port), timeout=10) for _ in range(MAX_CONNECTIONS)]
    try:
        with pytest.raises(OSError):
            get(port, "/healthz")
    finally:
        for sock in opened:
            sock.close()
    wait_until(lambda: answers(port), 10, "there is room again")


def test_a_port_that_is_taken_costs_the_pooler_nothing(make_proxy: MakeProxy) -> None:
    port = free_port()  # not one that the kernel may give to whoever connects to somebody, while nobody listens at it
    with socket.create_server((HOST, port)):
        proxy = make_proxy(metrics_listen_addr=HOST, metrics_port=port)
        wait_until(lambda: proxy.log_contains("for metrics"), 10, "the trouble is said")
        with proxy.connect() as client:
            client.execute("select 1")
    wait_until(lambda: answers(port), 15, "the port is tried again")


# --- the status page ------------------------------------------------------------------------------------------------------
def test_the_status_page_and_its_data(observed: tuple[Proxy, int]) -> None:
    proxy, port = observed
    status, page = get(port, "/")
    assert status == 200
    assert page.startswith(b"<!doctype html>")
    assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b"")
    with proxy.connect() as client:
        client.execute("select 1")

        def data() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(get(port, "/status.json")[1])
            return found

        (pool,) = data()["pools"]
        assert (pool["database"], pool["mode"]) == ("app", "transaction")
        wait_until(lambda: len(data()["history"]["rows"]) >= 2, 10, "the history grows")
        row = dict(zip(data()["history"]["columns"], data()["history"]["rows"][-1], strict=True))
        assert row["clients"] == 1
