"""SHOW TOP: who uses the servers most."""

from __future__ import annotations

from fix_clients import Database, Login, ask, run
from fix_proxy import MakeProxy
from fix_raw import RawClient, query
from fix_wait import wait_until


def bytes_of(client: RawClient, *texts: str) -> tuple[int, int]:
    """Run these queries: the bytes of all requests, and of all answers."""
    sent = received = 0
    for text in texts:
        client.send(query(text))
        sent += len(query(text))
        received += sum(len(message.body) + 5 for message in client.read_until(b"Z"))
    return sent, received


def test_top_counts_what_each_client_has_used(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=3)
    busy, slow, open_, idle = (login(proxy) for _ in range(4))
    ids = sorted(row["id"] for row in proxy.admin("SHOW CLIENTS") if row["database"] == "app")
    names = dict(zip(ids, ("busy", "slow", "open", "idle"), strict=True))
    texts = ["select 1"] * 5 + ["begin", "select generate_series(1, 1000)", "commit"]
    asked, answered = bytes_of(busy, *texts)
    run(slow, "select pg_sleep(0.2)")
    run(open_, "begin")
    rows = {names[row["id"]]: row for row in proxy.admin("SHOW TOP")}
    assert set(rows) == {"busy", "slow", "open"}
    one = rows["busy"]
    assert (one["query_count"], one["xact_count"], one["bytes_received"], one["bytes_sent"]) == (8, 6, asked, answered)
    assert 0 < one["server_time"] < 10_000_000
    assert (one["database"], one["user"], one["state"], one["worker"]) == ("app", "trust_user", "idle", 1)
    assert rows["slow"]["server_time"] >= 200_000
    assert (rows["open"]["state"], rows["open"]["query_count"], rows["open"]["xact_count"]) == ("active", 1, 1)
    times = [row["server_time"] for row in proxy.admin("SHOW TOP")]
    assert times == sorted(times, reverse=True)
    for client in (busy, slow, open_, idle):
        client.close()
    wait_until(lambda: proxy.admin("SHOW TOP") == [], 10, "only who is here is shown")


def test_a_query_under_way_counts_as_it_goes(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction")
    client = login(proxy)
    ask(client, "select pg_sleep(60)")
    wait_until(lambda: any(row["server_time"] > 100_000 for row in proxy.admin("SHOW TOP")), 10, "its time grows")
    (row,) = proxy.admin("SHOW TOP")
    assert (row["query_count"], row["xact_count"], row["state"]) == (0, 1, "active")
    assert row["bytes_received"] == len(query("select pg_sleep(60)"))


def test_top_of_several_workers_is_one_table(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", workers=2)
    clients = [login(proxy) for _ in range(6)]
    for number, client in enumerate(clients):
        for _ in range(number + 1):
            run(client, "select 1")
    rows = proxy.admin("SHOW TOP")
    assert sorted(row["query_count"] for row in rows) == [1, 2, 3, 4, 5, 6]
    assert {row["worker"] for row in rows} == {1, 2}
    times = [row["server_time"] for row in rows]
    assert times == sorted(times, reverse=True)
