"""log_slow_queries, leak_detection_threshold and log_long_waits: what the log says of what takes too long."""

from __future__ import annotations

import json
import threading

import pytest
from fix_clients import Database, Login, ask, run
from fix_proxy import MakeProxy
from fix_wait import wait_until


def test_a_slow_query_is_logged_with_its_text_and_without_its_values(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(pool_mode="transaction", log_slow_queries=400)
    with proxy.connect(prepare_threshold=0) as client:
        client.execute("select 'quick'")
        client.execute("select pg_sleep(0.5)")
        line = proxy.wait_log("slow query: .*pg_sleep")
        assert ": select pg_sleep(0.5)" in line
        assert f"/{client.info.user}@127.0.0.1:" in line
        client.execute("select pg_sleep(0.5), %s::text", ["a-secret-value"])
        client.execute("select pg_sleep(0.5), %s::text", ["a-secret-value"])  # by its name now
        wait_until(lambda: proxy.log_contains(r"slow query: .*: select pg_sleep\(0\.5\), \$1::text", 2), 10, "both are logged")
        client.execute("select pg_sleep(0.5), %s::text", ["another"], prepare=False)
        wait_until(lambda: proxy.log_contains(r"slow query: .*: select pg_sleep\(0\.5\), \$1::text", 3), 10, "the unnamed one")
    assert "a-secret-value" not in proxy.log()
    assert "quick" not in proxy.log()


def test_the_text_is_cut_off_and_escaped(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(pool_mode="transaction", log_slow_queries=100, log_statement_chars=30)
    proxy.sql("select pg_sleep(0.2) /* \x1b[31m\nforged line, and much more text than is wanted */")
    line = proxy.wait_log("slow query: .*pg_sleep")
    assert line.endswith(": select pg_sleep(0.2) /* \\x1b[31m\\n")


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_who_holds_a_server_in_a_transaction_is_told_of_once(make_proxy: MakeProxy, mode: str) -> None:
    proxy = make_proxy(pool_mode=mode, leak_detection_threshold=0.3, log_format="json")
    with proxy.connect() as client:
        client.execute("begin")
        client.execute("select 'work that was done'")
        told = json.loads(proxy.wait_log("has been held for"))
        assert told["statement"] == "select 'work that was done'"
        assert told["idle_in_transaction"] is True
        assert told["held_s"] >= 0.3
        assert told["side"] == "C"
        client.execute("rollback")
        client.execute("select pg_sleep(1.5)")
        wait_until(lambda: proxy.log_contains("running a query for"), 10, "a transaction of one long query is told of, too")
    assert proxy.log_contains("idle in transaction for", 1)


def test_a_session_that_keeps_its_server_is_named_to_those_who_wait_for_it(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(pool_mode="session", default_pool_size=1, log_long_waits=0.2)
    with proxy.connect() as holder:
        holder.execute("select 1")
        asking = threading.Thread(target=lambda: proxy.sql("select 1"))
        asking.start()
        line = proxy.wait_log("waiting for a server")
        holder.close()
        asking.join(10)
    assert "all 1 servers of the pool are busy (none in a transaction, longest idle: C-" in line


def test_of_several_workers_one_says_what_all_were_doing(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1, log_long_waits=0.2, workers=2
    )
    holder, *waiters = [login(proxy) for _ in range(5)]
    run(holder, "begin")
    for waiter in waiters:
        ask(waiter, "select 1")
    wait_until(lambda: {row["worker"] for row in proxy.admin("SHOW WAITS")} == {1, 2}, 10, "somebody waits in each worker")
    line = proxy.wait_log("waiting for a server")
    assert "all 1 servers of the pool are busy (longest: C-" in line
    run(holder, "rollback")
    for waiter in waiters:
        waiter.read_until(b"Z")


def test_a_long_wait_says_what_the_pool_was_doing(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(pool_mode="transaction", default_pool_size=1, log_long_waits=0.2)
    with proxy.connect() as holder:
        holder.execute("begin")
        asking = threading.Thread(target=lambda: proxy.sql("select 1"))
        asking.start()
        try:
            line = proxy.wait_log("waiting for a server")
        finally:
            holder.execute("rollback")
            asking.join(10)
    assert "1 waiting for a server, the first for" in line
    assert "all 1 servers of the pool are busy (longest: C-" in line
