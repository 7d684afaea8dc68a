"""What the metrics port and the log say of several workers: one daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from fix_clients import Database, Login, run
from fix_proxy import MakeProxy, Proxy
from fix_wait import free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
Seen = tuple[Proxy, int]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def make(make_proxy: MakeProxy, database: Database) -> Callable[..., Seen]:
    def made(**settings: Any) -> Seen:
        port = free_port()
        proxy = make_proxy(
            databases={"app": database.entry()},
            workers=2,
            pool_mode="transaction",
            metrics_listen_addr=HOST,
            metrics_port=port,
            **settings,
        )
        wait_until(lambda: answers(port), 10, "the HTTP side listens")
        return proxy, port

    return made


def answers(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except OSError:
        return False


def get(port: int, path: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(HOST, port, timeout=10)) as http:
        http.request("GET", path)
        answer = http.getresponse()
        return answer.status, answer.read()


def samples(port: int) -> Samples:
    status, body = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def labelled(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_metrics_are_of_all_workers(make: Callable[..., Seen], login: Login) -> None:
    _, port = seen = make()
    clients = [login(seen[0]) for _ in range(6)]
    for client in clients:
        run(client, "select 1")
    found = samples(port)
    by_worker = [labelled(found, "pgpool_proxy_worker_clients", worker=str(number)) for number in (1, 2)]
    assert sum(by_worker) == 6
    assert max(by_worker) <= 4
    assert [labelled(found, "pgpool_proxy_worker_up", worker=str(number)) for number in (1, 2)] == [1, 1]
    queries = [value for (name, labels), value in found.items()
               if name == "pgpool_proxy_queries_total" and ("database", "app") in labels]  # fmt: skip
    assert sum(queries) == 6


def test_show_fds_has_the_sockets_that_all_workers_clients_come_by(make: Callable[..., Seen], login: Login) -> None:
    proxy, _ = make()
    clients = [login(proxy) for _ in range(2)]
    found = proxy.admin("SHOW FDS")
    assert {(row["addr"], row["port"], row["worker"]) for row in found if row["task"] == "pooler"} == {
        (HOST, proxy.port, None), ("unix", proxy.port, None),
    }  # fmt: skip
    ports = {client.socket.getsockname()[1] for client in clients}
    assert {row["port"] for row in found if row["task"] == "client"} == ports
    assert {row["worker"] for row in found if row["task"] == "client"} == {1, 2}


def test_counters_do_not_fall_while_a_worker_is_replaced(make: Callable[..., Seen], login: Login) -> None:
    """The second time it is left alone for a while, since it has died soon after its start."""
    proxy, _ = make()
    for _ in range(4):
        run(login(proxy), "select 1")
    for _ in range(2):
        row = proxy.show("WORKERS", worker=1)
        said = row["cpu_seconds"]
        wait_until(lambda said=said: proxy.show("WORKERS", worker=1)["cpu_seconds"] > said, 10, "news")
        os.kill(row["pid"], signal.SIGKILL)
        proxy.wait_log(rf"\(pid {row['pid']}\) has ended")
        assert proxy.show("STATS_TOTALS", database="app")["query_count"] == 4
        wait_until(lambda row=row: is_up_again(proxy, row["pid"]), 10, "it is replaced")
        assert proxy.show("STATS_TOTALS", database="app")["query_count"] == 4


def is_up_again(proxy: Proxy, former: int) -> bool:
    rows = [row for row in proxy.admin("SHOW WORKERS") if row["worker"] == 1]
    return bool(rows) and rows[0]["pid"] not in (0, former) and rows[0]["state"] == "active"


def test_what_a_dead_worker_has_counted_is_not_lost(make: Callable[..., Seen], login: Login) -> None:
    proxy, _ = make()
    for _ in range(4):
        run(login(proxy), "select 1")
    wait_until(lambda: proxy.show("STATS_TOTALS", database="app")["query_count"] == 4, 10, "all are counted")
    for row in proxy.admin("SHOW WORKERS"):
        said = row["cpu_seconds"]
        wait_until(lambda row=row, said=said: proxy.show("WORKERS", worker=row["worker"])["cpu_seconds"] > said, 10, "news")
        os.kill(row["pid"], signal.SIGKILL)
        proxy.wait_log(rf"\(pid {row['pid']}\) has ended")
    wait_until(lambda: proxy.show("STATS_TOTALS", database="app")["query_count"] == 4, 10, "the new ones go on from there")


def test_readiness_is_one(make: Callable[..., Seen]) -> None:
    proxy, port = make(readiness_databases="app", shutdown_ready_delay=60)
    assert get(port, "/readyz")[0] == 200
    proxy.admin("PAUSE app")
    status, body = get(port, "/readyz")
    assert status == 503
    assert json.loads(body)["reasons"] == ["database app: paused"]
    proxy.admin("RESUME app")
    assert get(port, "/readyz")[0] == 200
    proxy.signal(signal.SIGINT)
    proxy.wait_log("not ready any more, shutting down in 60 s")
    assert json.loads(get(port, "/readyz")[1])["reasons"] == ["shutting down"]
    assert get(port, "/healthz")[0] == 200
    proxy.signal(signal.SIGTERM)
    assert proxy.wait_exit() == 0


def test_the_status_page_has_one_history(make: Callable[..., Seen]) -> None:
    _, port = make()
    found: list[Any] = []

    def has_history() -> bool:
        found[:] = json.loads(get(port, "/status.json")[1])["history"]["rows"]
        return len(found) >= 2

    wait_until(has_history, 10, "two seconds are noted")


def test_one_line_of_statistics(make: Callable[..., Seen], login: Login) -> None:
    proxy, _ = make(stats_period=1)
    clients = [login(proxy) for _ in range(4)]

    def counts() -> bool:
        for client in clients:
            run(client, "select 1")
        return proxy.log_contains(r"stats: [1-9]\d* xacts/s, [1-9]\d* queries/s")

    wait_until(counts, 10, "the line has them")
    lines = [line for line in proxy.log().splitlines() if "LOG stats:" in line]
    assert all(f"[{proxy.pid}]" in line for line in lines)  # the supervisor's, not one of each worker
