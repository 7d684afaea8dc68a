"""What SHOW STATS counts, exactly, for a load that is known."""

from __future__ import annotations

import re
import time
from typing import Any

from fix_clients import Database, Login, answer, ask, run, settle
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, bind, execute, parse, query, sync, terminate
from fix_wait import wait_until

COUNTS = (
    "server_assignment_count", "xact_count", "query_count", "client_parse_count", "server_parse_count", "bind_count",
    "client_login_count",
)  # fmt: skip


def totals(proxy: Proxy, database: str = "app") -> dict[str, Any]:
    return proxy.show("STATS_TOTALS", database=database)


def counts(proxy: Proxy) -> dict[str, int]:
    """Those that are counts, as far as they are not 0."""
    found = totals(proxy)
    return {name: int(found[name]) for name in COUNTS if found[name]}


def pooled(make_proxy: MakeProxy, database: Database, **settings: object) -> Proxy:
    connect_query = settings.pop("connect_query", None)
    entry = database.entry() if connect_query is None else database.entry(connect_query=f"'{connect_query}'")
    return make_proxy(
        databases={"app": entry}, **{"pool_mode": "transaction", "default_pool_size": 1, **settings}
    )


def test_each_query_each_transaction_and_each_assignment_counts_once(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = pooled(make_proxy, database)
    client = login(proxy)
    assert counts(proxy) == {"client_login_count": 1}
    for _ in range(7):
        run(client, "select 1")
    expected = {"client_login_count": 1, "server_assignment_count": 7, "xact_count": 7, "query_count": 7}
    assert counts(proxy) == expected
    for sql in ("begin", "select 1", "commit"):  # three queries in one transaction on one server
        run(client, sql)
    expected = {"client_login_count": 1, "server_assignment_count": 8, "xact_count": 8, "query_count": 10}
    assert counts(proxy) == expected


def test_what_comes_before_everything_is_answered_is_one_query(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = pooled(make_proxy, database)
    client = login(proxy)
    client.send(query("select pg_sleep(0.1)"), query("select 2"), query("select 3"))
    for _ in range(3):
        client.read_until(b"Z")
    assert counts(proxy) == {"client_login_count": 1, "server_assignment_count": 1, "xact_count": 1, "query_count": 1}


def test_a_pipeline_that_waits_for_its_own_answers_is_one_query_and_its_bytes_count_once(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    """A message that depends on names waits behind a Sync that is not answered yet; so does a Terminate."""
    proxy = pooled(make_proxy, database)
    client = login(proxy)
    once = parse("select 1") + bind() + execute() + sync()
    named = parse("select 2", "two") + sync() + bind("two") + execute() + sync()
    received = 0
    for sent, answers in ((once * 3, 3), (named, 2), (once[:-3], 0), (once[-3:], 1)):
        client.send(sent)
        for _ in range(answers):
            received += sum(5 + len(found.body) for found in client.read_until(b"Z"))
        settle(proxy)
    found = totals(proxy)
    assert (found["query_count"], found["xact_count"], found["server_assignment_count"]) == (3, 3, 3)
    sent_in_all = len(once) * 4 + len(named)
    assert (found["bytes_received"], found["bytes_sent"]) == (sent_in_all, received)
    client.send(query("select 1"), terminate())
    received += sum(5 + len(message.body) for message in client.read_to_end())
    found = totals(proxy)
    assert (found["query_count"], found["xact_count"]) == (4, 4)
    assert found["bytes_sent"] == received


def test_what_is_rolled_back_for_a_client_that_has_left_was_sent_to_nobody(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = pooled(make_proxy, database)
    client = login(proxy)
    received = sum(5 + len(message.body) for message in client.query("begin"))
    client.close()
    wait_until(lambda: proxy.show("POOLS", database="app")["sv_idle"] == 1)
    found = totals(proxy)
    assert (found["bytes_sent"], found["query_count"], found["xact_count"]) == (received, 1, 1)


def test_prepared_statements_are_counted_for_clients_and_for_servers(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = pooled(make_proxy, database)
    first, second = login(proxy), login(proxy)
    for client in (first, second):
        client.send(parse("select 1", "one"), bind("one"), execute(), sync())
        assert answer(client) == "1"
        for _ in range(2):
            client.send(bind("one"), execute(), sync())
            assert answer(client) == "1"
        client.send(parse("select 2"), bind(), execute(), sync())  # unnamed: not counted
        assert answer(client) == "2"
    assert counts(proxy) == {
        "client_login_count": 2, "server_assignment_count": 8, "xact_count": 8, "query_count": 8,
        "client_parse_count": 2, "server_parse_count": 1, "bind_count": 6,
    }  # fmt: skip


def test_bytes_are_counted_from_the_login_on(make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient) -> None:
    proxy = pooled(make_proxy, database)
    client: RawClient = make_raw_client(proxy.port)
    client.login()
    sent = received = 0
    for sql in ("select 1", "select repeat('x', 100000)", "select generate_series(1, 1000)", "select nonsense"):
        message = query(sql)
        client.send(message)
        sent += len(message)
        received += sum(5 + len(found.body) for found in client.read_until(b"Z"))
    found = totals(proxy)
    assert (found["bytes_received"], found["bytes_sent"]) == (sent, received)


def test_times_are_those_that_pass(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = pooled(make_proxy, database)
    holder, waiter = login(proxy), login(proxy)
    before = totals(proxy)["wait_time"]  # for the pool's first server
    began = time.monotonic()
    run(holder, "begin")
    ask(waiter, "select 1")
    run(holder, "select pg_sleep(0.3)")
    run(holder, "commit")
    answer(waiter)
    passed = (time.monotonic() - began) * 1_000_000
    found = totals(proxy)
    assert 300_000 <= found["query_time"] <= passed
    assert 300_000 <= found["xact_time"] <= passed
    assert 300_000 <= found["wait_time"] - before <= passed
    assert found["query_time"] <= found["xact_time"]


def test_who_waits_for_the_first_server_of_a_pool_waits(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = pooled(make_proxy, database, connect_query="select pg_sleep(0.2)")
    login(proxy)
    first = totals(proxy)["wait_time"]
    assert first >= 200_000
    login(proxy)  # is told what the first server has said
    assert totals(proxy)["wait_time"] == first


def test_the_console_counts_for_its_own_database(make_proxy: MakeProxy, database: Database) -> None:
    proxy = pooled(make_proxy, database)
    before = totals(proxy, "pgbouncer")
    after = totals(proxy, "pgbouncer")  # one login and one statement later
    assert after["client_login_count"] - before["client_login_count"] == 1
    assert after["query_count"] - before["query_count"] == 1


def test_totals_and_stats_agree(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = pooled(make_proxy, database)
    run(login(proxy), "select 1")
    row, stats = totals(proxy), proxy.show("STATS", database="app")
    renamed = {"bytes_received": "received", "bytes_sent": "sent"}
    for name, value in row.items():
        if name != "database":
            assert stats[f"total_{renamed.get(name, name)}"] == value
    assert stats["avg_xact_time"] == row["xact_time"] // row["xact_count"]  # in the first period, since the start
    assert stats["avg_wait_time"] == row["wait_time"] // row["server_assignment_count"]
    everything = {row["name"]: row["value"] for row in proxy.admin("SHOW TOTALS")}
    assert everything["total_xact_count"] >= row["xact_count"]
    assert everything["total_ps_bind_count"] == 0


def test_averages_count_from_the_beginning_of_the_last_whole_period_and_are_logged(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = pooled(make_proxy, database, stats_period=1)
    client = login(proxy)

    def periods() -> int:
        return len(re.findall(r"stats: \d+ xacts/s", proxy.log()))

    def one_period() -> dict[str, Any]:
        """Twenty queries within one period, and what that period's averages are; nothing if they were cut in two by its end."""
        seen = periods()
        wait_until(lambda: periods() > seen)
        seen = periods()
        before = totals(proxy)
        for _ in range(20):
            run(client, "select 1")
        row = proxy.show("STATS", database="app")
        is_whole = periods() == seen
        wait_until(lambda: periods() > seen)
        found = proxy.show("STATS", database="app")
        spent = row["total_xact_time"] - before["xact_time"]
        return {**found, "spent": spent} if is_whole and periods() == seen + 1 else {}

    found = wait_until(one_period, 60, "a period that is not cut in two")
    assert found["avg_query_count"] == found["avg_xact_count"]
    assert 6 <= found["avg_query_count"] <= 20  # one to two periods, which have a second and a bit each
    assert abs(found["avg_xact_time"] - found["spent"] // 20) <= 1
    line = proxy.wait_log(r"stats: [12]\d xacts/s")
    assert re.search(
        r"stats: \d+ xacts/s, \d+ queries/s, \d+ client parses/s, \d+ server parses/s, \d+ binds/s, \d+ client logins/s, "
        r"in \d+ B/s, out \d+ B/s, xact \d+ us, query \d+ us, wait \d+ us$",
        line,
    )


def test_counts_outlive_their_pool(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = pooled(make_proxy, database, pool_idle_timeout=0.2, server_idle_timeout=0.1)
    client = login(proxy)
    run(client, "select 1")
    client.close()
    proxy.wait_log("cleaning up idle pool")
    assert counts(proxy)["query_count"] == 1
    run(login(proxy), "select 1")
    assert counts(proxy)["query_count"] == 2
    proxy.admin("KILL app")
    assert counts(proxy)["query_count"] == 2
