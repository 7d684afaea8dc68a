"""psql and pgbench, as their users run them."""

from __future__ import annotations

import re
import subprocess

import pytest
from fix_clients import Database
from fix_postgres import environment
from fix_proxy import MakeProxy, Proxy


@pytest.fixture(params=["session", "transaction"])
def either(request: pytest.FixtureRequest, make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode=request.param, default_pool_size=4)


def client_program(database: Database, proxy: Proxy, name: str, *arguments: str, given: str = "") -> str:
    """Run psql or pgbench against the proxy: what it printed. Its failure fails the test."""
    command = [database.server.bindir / name, "-h", proxy.host, "-p", str(proxy.port), "-U", "trust_user", *arguments]
    done = subprocess.run(
        [*command, "app"], input=given, capture_output=True, text=True, check=False, env=environment(), timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_psql_runs_a_script_with_copy_a_transaction_and_an_error(either: Proxy, database: Database) -> None:
    script = """
        create table t (n int, s text);
        copy t from stdin;
1\tone
2\ttwo
\\.
        begin; insert into t values (3, 'three'); savepoint s; select 1/0; rollback to s; commit;
        copy t to stdout;
        select count(*) as total from t \\gset
        \\echo total is :total
        prepare p as select $1::int + 1; execute p(41); deallocate p;
        \\d t
        """
    printed = client_program(database, either, "psql", "-X", "-q", "-A", "-t", given=script)
    assert "3\tthree" in printed
    assert "total is 3" in printed
    assert "division by zero" in printed
    assert "42" in printed


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_ends_without_an_error(either: Proxy, database: Database, mode: str) -> None:
    client_program(database, either, "pgbench", "-i", "-q", "-s", "1")
    printed = client_program(database, either, "pgbench", "-n", "-M", mode, "-c", "4", "-j", "2", "-t", "30")
    assert re.search(r"actually processed: 120/120", printed), printed
    assert database.sql("select count(*), (select sum(abalance) from pgbench_accounts) - sum(delta) from pgbench_history") == [
        (120, 0)
    ]


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_with_many_more_clients_than_servers(
    make_proxy: MakeProxy, database: Database, mode: str
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    client_program(database, proxy, "pgbench", "-i", "-q", "-s", "1")
    printed = client_program(database, proxy, "pgbench", "-n", "-S", "-M", mode, "-c", "40", "-t", "20")
    assert re.search(r"actually processed: 800/800", printed), printed
    assert len(database.pids()) <= 2


def test_pgbench_connects_anew_for_each_transaction(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    client_program(database, proxy, "pgbench", "-i", "-q", "-s", "1")
    printed = client_program(database, proxy, "pgbench", "-n", "-S", "-C", "-c", "5", "-t", "40")
    assert re.search(r"actually processed: 200/200", printed), printed
    assert len(database.pids()) <= 2


def test_pgbench_pipelines(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)
    script = proxy.directory / "pipeline.sql"
    script.write_text("\\startpipeline\nselect 1;\nbegin;\nselect pg_backend_pid();\ncommit;\nselect 2;\n\\endpipeline\n")
    for mode in ("extended", "prepared"):
        printed = client_program(
            database, proxy, "pgbench", "-n", "-M", mode, "-f", str(script), "-c", "8", "-t", "20"
        )
        assert re.search(r"actually processed: 160/160", printed), printed
