"""Replication connections: physical and logical, each with a server of its own, by the programs that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL

import pytest
from fix_postgres import Postgres, as_account, environment
from fix_proxy import ADMIN_USER, MakeProxy, Proxy
from fix_wait import hand_over, wait_until

Make = Callable[..., Postgres]


@pytest.fixture
def source(make_postgres: Make) -> Postgres:
    """A server of this test's own: its slots and walsenders are nobody else's."""
    return make_postgres()


@pytest.fixture
def place(run_dir: Path) -> Iterator[Path]:
    """A directory that the programs' account may write to."""
    directory = Path(tempfile.mkdtemp(prefix="replica-", dir=run_dir))
    hand_over(directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def pooler(make_proxy: MakeProxy, source: Postgres) -> Proxy:
    entry = f"host={source.host} port={source.port}"
    return make_proxy(
        databases={"postgres": f"{entry} dbname=postgres", "app": entry, "replication": entry},
        users={"postgres": "", "trust_user": "", ADMIN_USER: ""},
        pool_mode="transaction",
        default_pool_size=2,
    )


def command(source: Postgres, program: str, *arguments: str) -> list[str]:
    path = source.bindir / program
    if not path.exists():
        pytest.skip(f"{program} does not come with this PostgreSQL")
    return [str(path), *arguments]


def psql(source: Postgres, proxy: Proxy, replication: str, statement: str) -> subprocess.CompletedProcess[str]:
    where = f"host={proxy.host} port={proxy.port} user=postgres dbname=postgres replication={replication}"
    return subprocess.run(
        command(source, "psql", "-XAt", where, "-c", statement),
        capture_output=True, text=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip


def walsenders(source: Postgres) -> int:
    return int(source.sql("select count(*) from pg_stat_activity where backend_type = 'walsender'")[0][0])


@contextmanager
def running(arguments: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments, cwd=directory, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **as_account()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- commands -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("replication", ["database", "true", "on", "yes", "1"])
def test_a_walsender_answers(pooler: Proxy, source: Postgres, replication: str) -> None:
    done = psql(source, pooler, replication, "IDENTIFY_SYSTEM")
    assert done.returncode == 0, done.stderr
    system, timeline, _, dbname = done.stdout.strip().split("|")
    assert system == source.sql("select system_identifier::text from pg_control_system()")[0][0]
    assert timeline == "1"
    assert dbname == ("postgres" if replication == "database" else "")
    wait_until(lambda: walsenders(source) == 0, 10, "the server went with its client")
    assert pooler.log_contains(f"replication={'database' if replication == 'database' else 'yes'}")
    wait_until(lambda: pooler.log_contains("closing because: replication client was closed"), 10, "it is said")


@pytest.mark.parametrize("replication", ["off", "false", "no", "0"])
def test_what_is_no_replication_is_an_ordinary_client(pooler: Proxy, source: Postgres, replication: str) -> None:
    done = psql(source, pooler, replication, "select 1")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert pooler.log_contains("replication=no")


def test_a_value_that_means_nothing_is_refused(pooler: Proxy, source: Postgres) -> None:
    done = psql(source, pooler, "perhaps", "select 1")
    assert 'invalid value for parameter "replication": "perhaps"' in done.stderr


def test_startup_parameters_go_to_its_server(pooler: Proxy, source: Postgres) -> None:
    where = f"host={pooler.host} port={pooler.port} user=postgres dbname=postgres replication=database"
    done = subprocess.run(
        command(
            source, "psql", "-XAt", f"{where} application_name=standby1 options='-c work_mem=7777kB'",
            "-c", "SHOW work_mem", "-c", "SHOW application_name",
        ),
        capture_output=True, text=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["7777kB", "standby1"]), done.stderr


def test_the_console_replicates_nothing(pooler: Proxy, source: Postgres) -> None:
    where = f"host={pooler.host} port={pooler.port} user=postgres dbname=pgbouncer replication=database"
    done = subprocess.run(
        command(source, "psql", "-X", where, "-c", "IDENTIFY_SYSTEM"),
        capture_output=True, text=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip
    assert "unsupported startup parameter: replication" in done.stderr


# --- programs -------------------------------------------------------------------------------------------------------------
def test_pg_basebackup(pooler: Proxy, source: Postgres, place: Path) -> None:
    source.sql("create table kept as select generate_series(1, 1000) i")
    where = f"host={pooler.host} port={pooler.port} user=postgres dbname=replication"
    backup = place / "backup"
    program = command(source, "pg_basebackup", "-d", where, "-D", str(backup), "-X", "stream", "-c", "fast")
    with running(program, place) as process:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    verify = source.bindir / "pg_verifybackup"
    if verify.exists():
        done = subprocess.run(
            [verify, str(backup)], capture_output=True, text=True, check=False, env=environment(), **as_account()
        )
        assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: walsenders(source) == 0, 10, "both servers went with their clients")


def test_pg_receivewal_streams_and_ends_by_ctrl_c(pooler: Proxy, source: Postgres, place: Path) -> None:
    where = f"host={pooler.host} port={pooler.port} user=postgres dbname=replication"
    with running(command(source, "pg_receivewal", "-d", where, "-D", str(place), "-v", "--no-loop"), place) as process:
        wait_until(lambda: any(place.glob("*.partial")), 30, "it streams")
        assert pooler.show("CLIENTS", replication="physical")["state"] == "active"
        assert pooler.show("SERVERS", replication="physical")["link"]
        assert pooler.show("POOLS", database="replication")["sv_active"] == 1
        before = source.sql("select pg_switch_wal()")[0][0]
        wait_until(lambda: [p for p in place.iterdir() if p.suffix != ".partial"], 30, f"the segment of {before} is whole")
        process.send_signal(SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0, said
    wait_until(lambda: walsenders(source) == 0, 10, "its server went with it")


def test_a_subscription_replicates_rows(pooler: Proxy, source: Postgres, make_postgres: Make) -> None:
    target = make_postgres()
    for server in (source, target):
        server.sql("create table replicated (i int primary key, t text)")
    source.sql("insert into replicated select i, 'before ' || i from generate_series(1, 500) i")
    source.sql("create publication everything for table replicated")
    where = f"host={pooler.host} port={pooler.port} user=postgres dbname=app"
    target.sql(f"create subscription through connection '{where}' publication everything")
    wait_until(lambda: target.sql("select count(*) from replicated")[0][0] == 500, 30, "what was there is copied")
    source.sql("insert into replicated values (501, 'after')")
    source.sql("update replicated set t = 'changed' where i = 1")
    wait_until(lambda: target.sql("select t from replicated where i in (1, 501) order by i") == [("changed",), ("after",)], 30)
    assert pooler.show("CLIENTS", replication="logical")["state"] == "active"
    target.sql("drop subscription through")
    wait_until(lambda: walsenders(source) == 0, 10, "its servers went with it")


# --- among the others -----------------------------------------------------------------------------------------------------
def streaming(source: Postgres, proxy: Proxy, directory: Path) -> list[str]:
    where = f"host={proxy.host} port={proxy.port} user=postgres dbname=postgres"
    return command(source, "pg_receivewal", "-d", where, "-D", str(directory), "-v", "--no-loop")


def test_it_counts_in_the_size_of_its_pool_and_may_take_an_idle_servers_place(
    pooler: Proxy, source: Postgres, place: Path
) -> None:
    with pooler.connect(user="postgres", dbname="postgres") as one, pooler.connect(user="postgres", dbname="postgres") as two:
        one.execute("begin")
        two.execute("begin")
        two.execute("rollback")  # two servers, one of them idle
        with running(streaming(source, pooler, place), place):
            wait_until(lambda: walsenders(source) == 1, 30, "the idle server has given way")
            row = pooler.show("POOLS", database="postgres", user="postgres")
            assert (row["sv_active"], row["sv_idle"]) == (2, 0)
        wait_until(lambda: walsenders(source) == 0, 10, "its server went with it")
        two.execute("select 1")  # there is room again
        one.execute("rollback")


def test_a_client_that_is_killed_frees_its_server(pooler: Proxy, source: Postgres, place: Path) -> None:
    with running(streaming(source, pooler, place), place) as process:
        wait_until(lambda: walsenders(source) == 1, 30, "it streams")
        os.kill(process.pid, SIGKILL)
        wait_until(lambda: walsenders(source) == 0, 10, "its server is gone")
    wait_until(lambda: not pooler.admin("SHOW SERVERS"), 10, "none is left")


def test_a_server_that_dies_is_told_to_its_client(pooler: Proxy, source: Postgres, place: Path) -> None:
    with running(streaming(source, pooler, place), place) as process:
        wait_until(lambda: walsenders(source) == 1, 30, "it streams")
        source.sql("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'")
        said, _ = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "terminating connection due to administrator command" in said


def test_a_server_that_cannot_be_had_costs_the_others_nothing(make_proxy: MakeProxy, source: Postgres) -> None:
    proxy = make_proxy(
        databases={"postgres": f"host={source.host} port={source.port} dbname=postgres"},
        users={"trust_user": ""},
        pool_mode="transaction",
    )  # fmt: skip
    with proxy.connect(user="trust_user", dbname="postgres") as client:  # who may not replicate, and has no HBA line for it
        client.execute("select 1")
        where = f"host={proxy.host} port={proxy.port} user=trust_user dbname=postgres replication=true"
        done = subprocess.run(
            command(source, "psql", "-X", where, "-c", "IDENTIFY_SYSTEM"),
            capture_output=True, text=True, check=False, env=environment(), timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        assert "replication" in done.stderr
        client.execute("select 1")
    assert proxy.sql("select 1", user="trust_user", dbname="postgres") == [(1,)]


def test_reconnect_ends_a_stream(pooler: Proxy, source: Postgres, place: Path) -> None:
    with running(streaming(source, pooler, place), place) as process:
        wait_until(lambda: walsenders(source) == 1, 30, "it streams")
        pooler.admin("RECONNECT postgres")
        process.communicate(timeout=30)
        assert process.returncode != 0
    wait_until(lambda: walsenders(source) == 0, 10, "its server is gone")
    assert pooler.sql("select 1", user="postgres", dbname="postgres") == [(1,)]


def test_query_timeout_does_not_cut_a_stream(make_proxy: MakeProxy, source: Postgres, place: Path) -> None:
    proxy = make_proxy(
        databases={"postgres": f"host={source.host} port={source.port} dbname=postgres"},
        users={"postgres": ""},
        query_timeout=0.3,
        transaction_timeout=0.3,
    )
    with running(streaming(source, proxy, place), place) as process:
        wait_until(lambda: walsenders(source) == 1, 30, "it streams")
        with pytest.raises(Exception, match=r"timeout|closed|cancel"):
            proxy.sql("select pg_sleep(2)", user="postgres", dbname="postgres")  # the others' are cut
        assert process.poll() is None
        assert walsenders(source) == 1
