"""connect_query: run once on every new server, before anybody gets it."""

from __future__ import annotations

import pytest
from fix_clients import Database, Login, ask, refusal, run, value
from fix_proxy import MakeProxy
from fix_raw import MakeRawClient, RawServer, message, startup_message
from fix_wait import wait_until


def test_it_runs_once_on_every_server_before_its_first_client(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    database.sql("create table opened (pid int)")
    entry = database.entry(connect_query="'insert into opened values (pg_backend_pid())'")
    proxy = make_proxy(databases={"app": entry}, pool_mode="transaction", server_reset_query="")
    clients = [login(proxy) for _ in range(3)]
    for client in clients:
        run(client, "begin")
        assert value(client, "select count(*) from opened where pid = pg_backend_pid()") == "1"
    for client in clients:
        run(client, "commit")
        value(client, "select 1")
    assert sorted(pid for (pid,) in database.sql("select pid from opened")) == sorted(database.pids())


def test_what_it_sets_holds_for_every_client_and_is_reported_to_them(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    entry = database.entry(connect_query="'SET timezone = ''Asia/Tokyo''; SET statement_timeout = 12345'")
    proxy = make_proxy(databases={"app": entry}, pool_mode="transaction")
    client = make_raw_client(proxy.port)
    client.login()
    assert client.parameters["TimeZone"] == "Asia/Tokyo"
    assert value(client, "show timezone") == "Asia/Tokyo"
    assert value(login(proxy), "show statement_timeout") == "12345ms"


def test_its_errors_are_logged_and_ignored(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(databases={"app": database.entry(connect_query="'select nonsense'")}, pool_mode="transaction")
    assert value(login(proxy), "select 7") == "7"
    proxy.wait_log('error in connect_query: ERROR column "nonsense" does not exist')


def test_many_and_long_rows_of_it_reach_nobody(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    text = "'select repeat(''x'', 300000) from generate_series(1, 20); select 2'"
    proxy = make_proxy(databases={"app": database.entry(connect_query=text)}, pool_mode="transaction")
    assert value(login(proxy), "select 7") == "7"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("begin", "connect_query left a transaction open"),
        ("copy t from stdin", "connect_query wants copy data"),
        ("select pg_terminate_backend(pg_backend_pid())", "terminating connection due to administrator command"),
    ],
)
def test_a_server_that_it_leaves_unusable_is_given_to_nobody(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient, text: str, reason: str
) -> None:
    database.sql("create table t (a int)")
    proxy = make_proxy(databases={"app": database.entry(connect_query=f"'{text}'")}, pool_mode="transaction")
    told = refusal(make_raw_client(proxy.port))
    assert told["S"] == "FATAL"
    proxy.wait_log(reason)
    wait_until(lambda: not database.pids())


def test_the_answer_may_come_in_pieces(make_proxy: MakeProxy, make_raw_client: MakeRawClient, raw_server: RawServer) -> None:
    proxy = make_proxy(databases={"app": f"host={raw_server.host} port={raw_server.port} connect_query='select 5'"})
    client = make_raw_client(proxy.port)
    client.send(startup_message("trust_user", "app"))
    server = raw_server.accept_login()
    assert server.read_message() == (b"Q", b"select 5\0")
    answer = message(b"T", b"\0\0") + message(b"D", b"\0\0") + message(b"C", b"SELECT 1\0") + message(b"Z", b"I")
    server.send_chopped(answer)
    client.read_until(b"Z")
    ask(client, "select 6")
    assert server.read_message() == (b"Q", b"select 6\0")
