"""search_path, which PostgreSQL 18 reports: it follows a client from server to server, and nobody meets another's."""

from __future__ import annotations

import pytest
from fix_clients import Database, Login, backend_pid, refusal, run, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient

REPORTS_IT = 18_00_00


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    if int(database.sql("show server_version_num")[0][0]) < REPORTS_IT:
        pytest.skip("this PostgreSQL does not report search_path")
    for schema in ("mine", "theirs", '"Mine"'):
        database.sql(f"create schema {schema}; create table {schema}.t as select '{schema}' as x")
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)


@pytest.mark.parametrize("how", ["set search_path = {}", "select set_config('search_path', '{}', false)", "set schema '{}'"])
def test_search_path_follows_its_client(pooled: Proxy, login: Login, how: str) -> None:
    clients = {name: login(pooled) for name in ("mine", "theirs")}
    holder = login(pooled)
    for name, client in clients.items():
        run(client, how.format(name))
    met: dict[str, set[int]] = {name: set() for name in clients}
    for _ in range(3):
        for name, client in clients.items():
            assert value(client, "select x from t") == name
            met[name].add(backend_pid(client))
            run(holder, "begin")  # takes the server that was used last
            assert value(client, "select x from t") == name
            met[name].add(backend_pid(client))
            run(holder, "commit")
    assert len(met["mine"]) == len(met["theirs"]) == 2


def test_a_client_that_did_not_set_it_has_the_servers_own(pooled: Proxy, login: Login) -> None:
    one, other = login(pooled), login(pooled)
    before = value(other, "show search_path")
    run(one, "set search_path = theirs, public")
    assert value(other, "show search_path") == before
    assert value(one, "show search_path") == "theirs, public"
    run(one, "reset search_path")
    assert value(one, "show search_path") == before


def test_upper_and_lower_case_are_two_schemas(pooled: Proxy, login: Login) -> None:
    one, other = login(pooled), login(pooled)
    run(one, "set search_path = mine")
    run(other, 'set search_path = "Mine"')
    for _ in range(2):
        assert value(one, "select x from t") == "mine"
        assert value(other, "select x from t") == '"Mine"'


def test_a_search_path_of_one_transaction_ends_with_it(pooled: Proxy, login: Login) -> None:
    one, other = login(pooled), login(pooled)
    run(one, "set search_path = mine")
    run(one, "begin; set local search_path = theirs")
    assert value(one, "select x from t") == "theirs"
    run(one, "commit")
    run(other, "begin")
    assert value(one, "select x from t") == "mine"
    run(other, "rollback")
    run(one, "begin; set search_path = theirs")
    run(one, "rollback")
    assert value(one, "select x from t") == "mine"


def test_at_login_it_is_refused_as_before_unless_startup_parameters_are_tracked(
    pooled: Proxy, make_raw_client: MakeRawClient, login: Login
) -> None:
    assert "unsupported startup parameter" in refusal(make_raw_client(pooled.port), search_path="mine")["M"]
    with pooled.run_with_config(track_startup_parameters=1):
        client, other = login(pooled, search_path="mine"), login(pooled)
        assert value(client, "select x from t") == "mine"
        run(other, "begin; set search_path = theirs")
        assert value(client, "select x from t") == "mine"
        run(other, "commit")
        for _ in range(2):
            assert value(client, "select x from t") == "mine"
            assert value(other, "select x from t") == "theirs"
