"""Host names of servers: looked up, kept, looked up again, followed when they lead elsewhere."""

from __future__ import annotations

from fix_clients import Database, Login, backend_pid, refusal, run, value
from fix_dns import NameServer, OwnLoopback
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient
from fix_wait import wait_until


def made(
    make_proxy: MakeProxy, database: Database, server: NameServer, host: str = "db.example.com", **settings: object
) -> Proxy:
    return make_proxy(
        databases={"app": database.entry(host=host)}, pool_mode="transaction", resolv_conf=server.resolv_conf, **settings
    )


def test_a_name_is_looked_up_once_and_kept(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login
) -> None:
    name_server.names["db.example.com"] = ["127.0.0.1"]
    proxy = made(make_proxy, database, name_server)
    clients = [login(proxy) for _ in range(3)]
    for client in clients:
        run(client, "begin")  # a server for each
    assert name_server.asked["db.example.com"] == 1
    shown = proxy.show("DNS_HOSTS")
    assert (shown["hostname"], shown["addrs"]) == ("db.example.com", "127.0.0.1")
    assert 0 < shown["ttl"] <= 15  # dns_max_ttl
    assert proxy.show("LISTS", list="dns_names")["items"] == 1
    assert proxy.admin("SHOW DNS_ZONES") == []


def test_its_own_time_to_live_counts_when_it_is_shorter(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login
) -> None:
    name_server.names["db.example.com"] = ["127.0.0.1"]
    name_server.ttl = 5
    proxy = made(make_proxy, database, name_server)
    run(login(proxy), "select 1")
    assert proxy.show("DNS_HOSTS")["ttl"] <= 5


def test_after_dns_max_ttl_it_is_asked_for_again(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login
) -> None:
    name_server.names["db.example.com"] = ["127.0.0.1"]
    proxy = made(make_proxy, database, name_server, dns_max_ttl=0, server_lifetime=0)
    client = login(proxy)
    before = name_server.asked["db.example.com"]
    run(client, "select 1")
    run(client, "select 1")
    assert name_server.asked["db.example.com"] > before


def test_a_name_that_does_not_exist_is_refused_and_not_asked_for_again_at_once(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, make_raw_client: MakeRawClient, login: Login
) -> None:
    proxy = made(make_proxy, database, name_server, dns_nxdomain_ttl=600, server_login_retry=0.1)
    for _ in range(3):
        told = refusal(make_raw_client(proxy.port))
        assert told["C"] == "08006"
        assert "server DNS lookup failed" in told["M"]
    assert name_server.asked["db.example.com"] <= 2  # the name, and with the search domain of nobody
    name_server.names["db.example.com"] = ["127.0.0.1"]
    assert refusal(make_raw_client(proxy.port))["C"] == "08006"
    proxy.admin("SET dns_nxdomain_ttl = 0.1")


def test_the_last_answer_is_used_while_no_name_server_answers(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login
) -> None:
    name_server.names["db.example.com"] = ["127.0.0.1"]
    proxy = made(make_proxy, database, name_server, dns_max_ttl=0.1, server_lifetime=0)
    client = login(proxy)
    name_server.is_silent = True
    wait_until(lambda: backend_pid(client) and proxy.log_contains("going on with its last addresses"), 20)
    assert value(client, "select 1") == "1"


def test_of_several_addresses_one_that_does_not_answer_is_passed_over(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login, own_loopback: OwnLoopback
) -> None:
    name_server.names["db.example.com"] = [own_loopback(1), own_loopback(2), "127.0.0.1"]  # nobody listens at the first two
    proxy = made(make_proxy, database, name_server, server_lifetime=0)
    client = login(proxy)
    for _ in range(5):
        run(client, "select 1")
    assert {row["addr"] for row in proxy.admin("SHOW SERVERS")} <= {"127.0.0.1"}


def test_names_of_etc_hosts_and_addresses_need_no_name_server(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login
) -> None:
    assert value(login(made(make_proxy, database, name_server, host="localhost")), "select 1") == "1"
    assert value(login(made(make_proxy, database, name_server, host="127.0.0.1")), "select 1") == "1"
    assert name_server.asked == {}


def test_another_serial_of_the_zone_moves_servers_to_the_new_address(
    make_proxy: MakeProxy, database: Database, name_server: NameServer, login: Login, own_loopback: OwnLoopback
) -> None:
    name_server.names["db.example.com"] = ["127.0.0.1"]
    name_server.zones["example.com"] = 7
    proxy = made(make_proxy, database, name_server, dns_zone_check_period=0.3, dns_max_ttl=3600)
    client = login(proxy)
    pid = backend_pid(client)
    wait_until(lambda: proxy.admin("SHOW DNS_ZONES") == [{"zonename": "example.com", "serial": 7, "count": 1}])
    assert backend_pid(client) == pid
    name_server.names["db.example.com"] = [own_loopback(9)]
    name_server.zones["example.com"] = 8
    proxy.wait_log("zone example.com serial changed: old=7 new=8")
    proxy.wait_log("db.example.com is not at 127.0.0.1 any more")
    wait_until(lambda: not database.pids())
    assert proxy.show("DNS_HOSTS")["addrs"] == own_loopback(9)
