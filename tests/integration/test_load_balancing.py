"""Host lists: whose turn it is, and what happens when a host does not serve.

The one server has two addresses, TCP and its unix socket; at the others on the same port nobody listens, or somebody deaf.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from fix_clients import Database, Login, refusal, run, value
from fix_dns import OwnLoopback
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient
from fix_wait import LOOPBACK, wait_until


@pytest.fixture
def nobody(own_loopback: OwnLoopback) -> str:
    """A host that refuses."""
    return own_loopback(2)


@pytest.fixture
def deaf(database: Database, own_loopback: OwnLoopback) -> Iterator[str]:
    """A host that takes connections and says nothing."""
    with socket.create_server((own_loopback(3), database.server.port)):
        yield own_loopback(3)


def made(make_proxy: MakeProxy, database: Database, *hosts: str, how: str = "round-robin", **settings: object) -> Proxy:
    entry = database.entry(host=",".join(hosts), load_balance_hosts=how)
    return make_proxy(databases={"app": entry}, **{"pool_mode": "transaction", **settings})


def used(proxy: Proxy) -> Counter[str]:
    return Counter(row["addr"] for row in proxy.admin("SHOW SERVERS"))


def hold(proxy: Proxy, login: Login, count: int) -> list[RawClient]:
    """So many transactions, so many servers."""
    clients = [login(proxy) for _ in range(count)]
    for client in clients:
        run(client, "begin")
    return clients


def test_round_robin_gives_each_host_its_turn(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = made(make_proxy, database, LOOPBACK, str(database.server.directory))
    hold(proxy, login, 6)
    assert used(proxy) == {LOOPBACK: 3, "unix": 3}
    assert proxy.show("POOLS", database="app")["load_balance_hosts"] == "round-robin"
    assert proxy.show("DATABASES", name="app")["load_balance_hosts"] == "round-robin"


def test_disable_stays_with_a_host_until_it_fails(
    make_proxy: MakeProxy, database: Database, login: Login, nobody: str
) -> None:
    proxy = made(make_proxy, database, nobody, LOOPBACK, str(database.server.directory), how="disable")
    hold(proxy, login, 4)
    assert used(proxy) == {LOOPBACK: 4}


@pytest.mark.parametrize("how", ["round-robin", "disable"])
def test_a_host_that_refuses_costs_no_client_anything(
    make_proxy: MakeProxy, database: Database, login: Login, nobody: str, how: str
) -> None:
    proxy = made(make_proxy, database, nobody, LOOPBACK, how=how, server_login_retry=600)
    hold(proxy, login, 5)
    assert used(proxy) == {LOOPBACK: 5}
    assert proxy.log_contains(f"host {nobody} of app is passed over for 600s", times=1)
    assert not proxy.log_contains("pooler error")


def test_a_host_that_says_nothing_is_passed_over_after_server_connect_timeout(
    make_proxy: MakeProxy, database: Database, login: Login, deaf: str
) -> None:
    proxy = made(make_proxy, database, deaf, LOOPBACK, server_connect_timeout=1, server_login_retry=600)
    client = login(proxy)
    hold(proxy, login, 3)
    assert value(client, "select 1") == "1"
    wait_until(lambda: used(proxy).keys() == {LOOPBACK})
    assert proxy.log_contains(f"host {deaf} of app is passed over")


def test_when_no_host_serves_clients_are_told_why(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, nobody: str, own_loopback: OwnLoopback
) -> None:
    proxy = made(make_proxy, database, nobody, own_loopback(4))
    assert "connect failed" in refusal(make_raw_client(proxy.port))["M"]


def test_a_host_is_tried_again_after_server_login_retry(
    make_proxy: MakeProxy, database: Database, login: Login, nobody: str
) -> None:
    proxy = made(make_proxy, database, nobody, LOOPBACK, server_login_retry=0.2, server_lifetime=0)
    client = login(proxy)
    run(client, "select 1")
    proxy.wait_log("is passed over")
    with socket.create_server((nobody, database.server.port)) as again:
        again.settimeout(0.01)

        def asked() -> bool:
            run(client, "select 1")
            try:
                again.accept()[0].close()
            except TimeoutError:
                return False
            return True

        wait_until(asked)
    assert value(client, "select 1") == "1"


def test_a_server_that_is_lost_is_replaced_at_another_host(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = made(make_proxy, database, LOOPBACK, str(database.server.directory), server_round_robin=1)
    for client in hold(proxy, login, 2):
        run(client, "commit")
    for pid in database.pids():
        database.kill(pid)
    wait_until(lambda: not used(proxy))
    hold(proxy, login, 2)
    assert used(proxy) == {LOOPBACK: 1, "unix": 1}
