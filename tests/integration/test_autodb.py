"""Databases that `*` makes, and logins without a database or a user that anybody has heard of."""

from __future__ import annotations

import re

from fix_clients import Database, Login, refusal, run, value
from fix_proxy import MakeProxy
from fix_raw import MakeRawClient, Peer, startup_message
from fix_wait import wait_until


def names(proxy: object) -> list[str]:
    return [row["name"] for row in proxy.admin("SHOW DATABASES")]  # type: ignore[attr-defined]


def star(database: Database, **keywords: object) -> dict[str, str]:
    pairs = {"host": database.server.host, "port": database.server.port, **keywords}
    return {"*": " ".join(f"{key}={value}" for key, value in pairs.items())}


def test_a_database_is_made_for_the_name_that_is_asked_for(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases=star(database, pool_size=3))
    assert value(login(proxy, database=database.name), "select current_database()") == database.name
    proxy.wait_log(f"registered new auto-database: {database.name}")
    assert proxy.show("DATABASES", name=database.name)["pool_size"] == 3


def test_an_entry_of_its_own_precedes_the_star(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"short": database.entry(), **star(database)})
    assert value(login(proxy, database="short"), "select current_database()") == database.name
    assert not proxy.log_contains("registered new auto-database")


def test_a_database_that_the_server_does_not_have_is_refused_in_its_words(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases=star(database))
    told = refusal(make_raw_client(proxy.port), database="nowhere")
    assert told["C"] == "3D000"
    assert 'database "nowhere" does not exist' in told["M"]
    lines = [line for line in proxy.log().splitlines() if re.search(r"S-\d+: nowhere/", line)]
    expected = (
        r" LOG S-\d+: \S+ new connection to server \(from \S+:\d+\)$",
        r' WARNING S-\d+: \S+ server login failed: FATAL database "nowhere" does not exist$',
        r" LOG S-\d+: \S+ closing because: login failed \(age=\d+s\)$",
    )
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


def test_no_database_is_made_for_a_name_that_no_server_can_have(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    """What a stranger asks for is kept for autodb_idle_timeout: it must not be as long as a StartupMessage."""
    proxy = make_proxy(databases=star(database))
    assert refusal(make_raw_client(proxy.port), database="x" * 128)["M"] == "no such database: " + "x" * 128
    assert not [name for name in names(proxy) if name.startswith("xxx")]


def test_without_a_database_the_name_of_the_user_is_taken(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(databases={"trust_user": database.entry()})
    client = make_raw_client(proxy.port)
    client.send(b"\0\0\0\x19\0\x03\0\0user\0trust_user\0\0")
    client.read_until(b"Z")
    assert value(client, "select current_database()") == database.name


def test_a_login_without_a_user_is_refused(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    proxy = make_proxy()
    client: Peer = make_raw_client(proxy.port)
    client.send(startup_message("", "app"))
    told = client.read_message().fields()
    assert (told["C"], told["M"]) == ("28000", "no username supplied")
    assert client.is_closed()


def test_one_that_nobody_uses_is_forgotten_with_its_counters(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases=star(database), autodb_idle_timeout=0.5, server_idle_timeout=0.2)
    client = login(proxy, database=database.name)
    run(client, "select 1")
    assert proxy.show("STATS_TOTALS", database=database.name)["query_count"] == 1
    client.close()
    wait_until(lambda: database.name not in names(proxy))
    assert proxy.log_contains(f"dropping database '{database.name}' as it does not exist anymore or inactive auto-database")
    assert all(row["database"] != database.name for row in proxy.admin("SHOW STATS"))
    assert all(row["database"] != database.name for row in proxy.admin("SHOW POOLS"))
    assert value(login(proxy, database=database.name), "select 1") == "1"
    assert proxy.log_contains(f"registered new auto-database: {database.name}", times=2)


def test_one_that_a_client_or_a_server_keeps_is_not(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases=star(database), autodb_idle_timeout=0.2)
    client = login(proxy, database=database.name)
    run(client, "select 1")
    probe = login(proxy, database="postgres")
    run(probe, "select pg_sleep(0.6)")  # three times the timeout
    assert database.name in names(proxy)
    client.close()
    run(probe, "select pg_sleep(0.6)")
    assert database.name in names(proxy)  # its server idles for server_idle_timeout still


def test_one_that_is_paused_or_disabled_stays_so(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases=star(database), autodb_idle_timeout=0.2)
    proxy.admin(f"DISABLE {database.name}")
    probe = login(proxy, database="postgres")
    run(probe, "select pg_sleep(0.6)")
    assert proxy.show("DATABASES", name=database.name)["disabled"] == 1
