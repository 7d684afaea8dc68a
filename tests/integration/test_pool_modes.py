"""When a server is taken and when it is released, in each pool mode."""

from __future__ import annotations

import pytest
from fix_clients import Database, Gate, Login, answer, ask, backend_pid, error, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import RawClient, bind, execute, flush, message, parse, query, sync

WHOSE = "select pg_backend_pid()"


def must_wait(proxy: Proxy, client: RawClient) -> None:
    """The client has asked for the only server, and somebody else holds it."""
    ask(client, WHOSE)
    settle(proxy)
    assert client.is_silent(0.03)


@pytest.fixture
def single(make_proxy: MakeProxy, database: Database) -> Proxy:
    """Transaction pooling on one server."""
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)


def test_session_mode_keeps_the_server_until_the_client_leaves(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session", default_pool_size=1)
    first, second = login(proxy), login(proxy)
    server = backend_pid(first)
    must_wait(proxy, second)
    assert backend_pid(first) == server
    first.close()
    assert answer(second) == str(server)


def test_session_mode_resets_the_server_between_two_clients(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session", default_pool_size=1)
    first = login(proxy)
    server = backend_pid(first)
    run(first, "set work_mem = '77MB'; create temp table mine(); select pg_advisory_lock(1); prepare p as select 1")
    first.close()
    second = login(proxy)
    assert backend_pid(second) == server
    assert value(second, "show work_mem") != "77MB"
    assert value(second, "select to_regclass('pg_temp.mine')") is None
    assert value(second, "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()") == "0"
    assert value(second, "select count(*) from pg_prepared_statements") == "0"


def test_server_reset_query_runs_after_each_transaction_if_it_always_is_to(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    settings: dict[str, object] = {"pool_mode": "transaction", "default_pool_size": 1, "workers": 1}
    proxy = make_proxy(databases={"app": database.entry()}, server_reset_query="reset work_mem", **settings)
    first, second = login(proxy), login(proxy)
    run(first, "set work_mem = '77MB'")
    assert value(second, "show work_mem") == "77MB"
    with proxy.run_with_config(server_reset_query_always=1):
        run(first, "set work_mem = '78MB'")
        assert value(second, "show work_mem") != "78MB"
        run(first, "begin; set work_mem = '79MB'")
        assert value(first, "show work_mem") == "79MB"
        run(first, "commit")
        assert value(second, "show work_mem") != "79MB"
    run(first, "set work_mem = '80MB'")
    assert value(second, "show work_mem") == "80MB"


def test_transaction_mode_shares_one_server_between_transactions(single: Proxy, login: Login) -> None:
    clients = [login(single) for _ in range(5)]
    assert len({backend_pid(client) for _ in range(3) for client in clients}) == 1


@pytest.mark.parametrize("status", ["in a transaction", "in a failed transaction"])
def test_a_server_in_a_transaction_is_not_released(single: Proxy, login: Login, status: str) -> None:
    first, second = login(single), login(single)
    run(first, "begin")
    if "failed" in status:
        assert error(first.query("select 1/0"))["C"] == "22012"
    must_wait(single, second)
    first.query("rollback")
    answer(second)


def test_commit_and_chain_keeps_the_server(single: Proxy, login: Login) -> None:
    first, second = login(single), login(single)
    run(first, "begin")
    run(first, "commit and chain")
    must_wait(single, second)
    run(first, "commit")
    answer(second)


def test_a_pipeline_that_was_only_flushed_keeps_the_server(single: Proxy, login: Login) -> None:
    first, second = login(single), login(single)
    first.send(parse("select 1"), bind(), execute(), flush())
    assert first.read_types(until=b"C") == b"12DC"
    must_wait(single, second)
    first.send(sync())
    assert first.read_types() == b"Z"
    answer(second)


def test_a_pipeline_keeps_the_server_until_its_last_answer(single: Proxy, gate: Gate, login: Login) -> None:
    first, second = login(single), login(single)
    first.send(parse("select 1"), bind(), execute(), sync(), parse(gate.sql()), bind(), execute(), sync())
    assert first.read_types() == b"12DCZ"
    must_wait(single, second)
    gate.open()
    assert first.read_types() == b"12DCZ"
    answer(second)


def test_copy_in_keeps_the_server_until_it_is_done(single: Proxy, login: Login) -> None:
    first, second = login(single), login(single)
    run(first, "create table t (x text)")
    ask(first, "copy t from stdin")
    assert first.read_message().type == b"G"
    first.send_message(b"d", b"one\n")
    must_wait(single, second)
    first.send(message(b"d", b"two\n"), message(b"c"))
    assert first.read_types() == b"CZ"
    answer(second)
    assert value(second, "select count(*) from t") == "2"


def test_statement_mode_refuses_a_transaction_of_several_statements(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="statement", default_pool_size=1)
    first, second = login(proxy), login(proxy)
    assert value(first, "select 1") == "1"
    run(first, "begin; select 1; commit")
    ask(first, "begin")
    fields = error([found for found in first.read_to_end() if found.type == b"E"])
    assert fields["S"] == "FATAL"
    assert fields["C"] == "0A000"
    assert fields["M"] == "transaction blocks not allowed in statement pooling mode"
    assert value(second, "select 1") == "1"


def test_pool_mode_is_the_users_then_the_databases_then_the_global_one(
    make_proxy: MakeProxy, database: Database, login: Login
) -> None:
    proxy = make_proxy(
        databases={"plain": database.entry(), "pooled": database.entry(pool_mode="transaction")},
        sections={"users": {"md5_user": "pool_mode=session"}},
        pool_mode="session",
        default_pool_size=1,
    )

    def holds_its_server(name: str, user: str) -> bool:
        first, second = login(proxy, database=name, user=user), login(proxy, database=name, user=user)
        backend_pid(first)
        ask(second, WHOSE)
        settle(proxy)
        held = second.is_silent(0.1)
        first.close()
        answer(second)
        second.close()
        return held

    assert holds_its_server("plain", "trust_user")
    assert not holds_its_server("pooled", "trust_user")
    assert holds_its_server("pooled", "md5_user")


def test_waiting_clients_are_served_first_come_first_served(single: Proxy, login: Login) -> None:
    holder = login(single)
    run(holder, "create table served (turn serial, who int)")
    run(holder, "begin")
    waiting = [login(single) for _ in range(8)]
    for number, client in enumerate(waiting):
        ask(client, f"insert into served (who) values ({number})")
        settle(single)
    run(holder, "commit")
    for client in waiting:
        client.read_until(b"Z")
    assert value(holder, "select array_agg(who order by turn) from served") == "{0,1,2,3,4,5,6,7}"


def test_a_client_that_gives_its_server_back_queues_behind_those_who_wait(single: Proxy, login: Login) -> None:
    first, second = login(single), login(single)
    run(first, "create table served (turn serial, who int)")
    run(first, "begin")
    ask(second, "insert into served (who) values (2)")
    settle(single)
    run(first, "commit")
    run(first, "insert into served (who) values (1)")
    second.read_until(b"Z")
    assert value(first, "select array_agg(who order by turn) from served") == "{2,1}"


def test_two_queries_sent_at_once_are_answered_by_one_server_without_a_gap(single: Proxy, login: Login) -> None:
    first, second = login(single), login(single)
    run(first, "create table served (turn serial, who int)")
    run(first, "begin")
    ask(second, "insert into served (who) values (2)")
    settle(single)
    first.send(query("commit"), query("insert into served (who) values (1)"))
    assert first.read_types() + first.read_types() == b"CZCZ"
    second.read_until(b"Z")
    assert value(first, "select array_agg(who order by turn) from served") == "{1,2}"


@pytest.mark.parametrize(("round_robin", "expected"), [(0, "the last"), (1, "the first")])
def test_the_server_that_was_released_last_is_used_next_unless_round_robin(
    make_proxy: MakeProxy, database: Database, login: Login, round_robin: int, expected: str
) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=3, server_round_robin=round_robin
    )
    clients = [login(proxy) for _ in range(3)]
    for client in clients:
        run(client, "begin")
    servers = [backend_pid(client) for client in clients]
    assert len(set(servers)) == 3
    for at in (1, 2, 0):
        run(clients[at], "commit")
    if expected == "the last":
        assert [backend_pid(clients[1]) for _ in range(3)] == [servers[0]] * 3
    else:
        assert [backend_pid(clients[1]) for _ in range(4)] == [servers[at] for at in (1, 2, 0, 1)]


def test_parameters_of_a_client_follow_it_to_another_clients_server(single: Proxy, login: Login) -> None:
    berlin = login(single, application_name="in berlin", TimeZone="Europe/Berlin")
    tokyo = login(single, application_name="in tokyo", TimeZone="Asia/Tokyo")
    for _ in range(2):
        for client, name, zone in ((berlin, "in berlin", "Europe/Berlin"), (tokyo, "in tokyo", "Asia/Tokyo")):
            assert value(client, "show application_name") == name
            assert value(client, "show timezone") == zone
    messages = tokyo.query("set timezone = 'Asia/Seoul'")
    assert [found.body for found in messages if found.type == b"S"] == [b"TimeZone\0Asia/Seoul\0"]
    assert value(berlin, "show timezone") == "Europe/Berlin"
    assert value(tokyo, "show timezone") == "Asia/Seoul"


@pytest.mark.parametrize("leaves", [False, True], ids=["the client goes on", "the client leaves"])
def test_a_server_is_not_released_inside_a_message_of_its_client(single: Proxy, login: Login, leaves: bool) -> None:
    """A COPY fails while the client sends: what comes behind must not be the beginning of the next client's query."""
    first, second = login(single), login(single)
    run(first, "create table t (n int)")
    ask(first, "copy t from stdin")
    assert first.read_message().type == b"G"
    late = message(b"d", b"1\n" * 100)
    first.send(message(b"d", b"nonsense\n"), late[:77])
    assert error(first.read_until(b"Z"))["C"] == "22P02"
    ask(second, "select 'served'")
    settle(single)
    if leaves:
        first.close()
    else:
        assert second.is_silent(0.05)
        first.send(late[77:], message(b"c"), query("select 'next'"))
        assert answer(first) == "next"
    assert answer(second) == "served"
