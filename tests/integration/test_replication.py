"""Replication connections: physical and logical, each with a server of its own, by the programs that people use."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL

import pytest
from fix_clients import settle
from fix_postgres import Postgres, as_account, environment
from fix_proxy import ADMIN_USER, MakeProxy, Proxy
from fix_raw import MakeRawClient, Message, RawClient, cancel_request, message, query
from fix_wait import hand_over, wait_until

Make = Callable[..., Postgres]
Walsender = Callable[[str], RawClient]


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


# --- a stream, by its bytes -------------------------------------------------------------------------------------------------
@pytest.fixture(params=["direct", "pooled"])
def walsender(
    request: pytest.FixtureRequest, pooler: Proxy, source: Postgres, make_raw_client: MakeRawClient
) -> Walsender:
    """Logs in to PostgreSQL itself or through the pooler, for the same answers."""

    def login(replication: str) -> RawClient:
        client = make_raw_client(source.port if request.param == "direct" else pooler.port)
        assert client.login(user="postgres", database="postgres", replication=replication)[-1].type == b"Z"
        return client

    return login


STREAMS = {
    "true": ["START_REPLICATION PHYSICAL {at}"],
    "database": [
        "CREATE_REPLICATION_SLOT stream TEMPORARY LOGICAL pgoutput",
        "START_REPLICATION SLOT stream LOGICAL 0/0 (proto_version '1', publication_names 'everything')",
    ],
}


def begin_stream(client: RawClient, source: Postgres, replication: str) -> None:
    """Until CopyBothResponse and the first data."""
    at = source.sql("select pg_current_wal_flush_lsn()::text")[0][0]
    *before, last = STREAMS[replication]
    for command in before:
        assert client.query(command)[-1].body == b"I"
    client.send(query(last.format(at=at)))
    assert client.read_message().type == b"W"
    source.sql("insert into streamed values (1)")
    found = client.read_message()
    assert (found.type, found.body[:1] in (b"w", b"k")) == (b"d", True)


@pytest.fixture
def streamed(source: Postgres) -> None:
    source.sql("create table streamed (i int)")
    source.sql("create publication everything for table streamed")


def without_data(messages: list[Message]) -> list[tuple[bytes, bytes]]:
    """What is no copy data; of rows and descriptions, the type alone."""
    return [(found.type, found.body if found.type in b"CZc" else b"") for found in messages if found.type != b"d"]


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("replication", ["true", "database"])
def test_a_stream_ends_by_copy_done_and_the_connection_goes_on(
    walsender: Walsender, source: Postgres, replication: str, size: int
) -> None:
    client = walsender(replication)
    for _ in range(2 if replication == "true" else 1):  # a second logical one ends at once, by PostgreSQL itself
        begin_stream(client, source, replication)
        status = b"r" + struct.pack("!qqqqb", 0, 0, 0, 0, 1)  # standby status update: asks for an answer
        client.send_message(b"d", status)
        while client.read_message().body[:1] != b"k":
            pass
        client.send_chopped(message(b"c"), size or 5)
        ended = without_data(client.read_until(b"Z"))
        first = b"START_STREAMING\0" if replication == "true" else b"COPY 0\0"
        assert ended == [(b"c", b""), (b"C", first), (b"C", b"START_REPLICATION\0"), (b"Z", b"I")]
        assert client.query("IDENTIFY_SYSTEM")[-1].body == b"I"
        if replication == "database":
            assert [found.type for found in client.query("select 1")] == [b"T", b"D", b"C", b"Z"]
            client.query("DROP_REPLICATION_SLOT stream")


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("replication", ["true", "database"])
def test_a_stream_that_is_cancelled_ends_with_57014_and_the_connection_goes_on(
    walsender: Walsender, source: Postgres, make_raw_client: MakeRawClient, replication: str
) -> None:
    client = walsender(replication)
    begin_stream(client, source, replication)
    messenger = make_raw_client(client.socket.getpeername()[1])
    messenger.send(cancel_request(client.pid, client.secret))
    assert messenger.is_closed()
    ended = [found for found in client.read_until(b"Z") if found.type != b"d"]
    assert [found.type for found in ended] == [b"E", b"Z"]
    assert ended[0].fields()["C"] == "57014"
    assert client.query("IDENTIFY_SYSTEM")[-1].body == b"I"
    if replication == "true":
        begin_stream(client, source, replication)


@pytest.mark.usefixtures("streamed")
def test_clients_of_the_pool_do_not_notice_a_stream_that_is_cancelled(
    pooler: Proxy, source: Postgres, make_raw_client: MakeRawClient
) -> None:
    stream = make_raw_client(pooler.port)
    stream.login(user="postgres", database="postgres", replication="true")
    begin_stream(stream, source, "true")
    with pooler.connect(user="postgres", dbname="postgres") as client:
        client.execute("begin")
        messenger = make_raw_client(pooler.port)
        messenger.send(cancel_request(stream.pid, stream.secret))
        assert stream.read_until(b"Z")[-2].fields()["C"] == "57014"
        client.execute("select 1")
        client.execute("commit")


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

    def streams() -> list[str]:
        return [row["state"] for row in pooler.admin("SHOW CLIENTS") if row["replication"] == "logical"]

    wait_until(lambda: streams() == ["active"], what="those that copied what was there are gone")
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


            def servers() -> tuple[int, int]:
                row = pooler.show("POOLS", database="postgres", user="postgres")
                return row["sv_active"], row["sv_idle"]

            wait_until(lambda: servers() == (2, 0), what="it has its client")
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
        # Not before its first report has come: if the next one met a connection that is closed, the last words would be lost.
        said_so = "select count(*) from pg_stat_replication where state = 'streaming' and reply_time is not null"
        wait_until(lambda: source.sql(said_so) == [(1,)], 30, "it streams")
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


def test_no_timeout_cuts_a_stream_or_an_idle_replication_client(
    make_proxy: MakeProxy, source: Postgres, place: Path, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(
        databases={"postgres": f"host={source.host} port={source.port} dbname=postgres"},
        users={"postgres": ""},
        query_timeout=0.3, transaction_timeout=0.3, idle_transaction_timeout=0.3, client_idle_timeout=0.3,
        query_wait_timeout=0.3, server_idle_timeout=0.3, server_lifetime=0.3, server_check_delay=0.3,
    )  # fmt: skip
    idle = make_raw_client(proxy.port)
    idle.login(user="postgres", database="postgres", replication="database")
    with running(streaming(source, proxy, place), place) as process:
        wait_until(lambda: walsenders(source) == 2, 30, "it streams")
        with pytest.raises(Exception, match=r"timeout|closed|cancel"):
            proxy.sql("select pg_sleep(2)", user="postgres", dbname="postgres")  # the others' are cut
        ordinary = make_raw_client(proxy.port)
        ordinary.login(user="postgres", database="postgres")
        assert ordinary.read_message().fields()["M"] == "client_idle_timeout"
        assert process.poll() is None
        assert walsenders(source) == 2
        assert idle.query("IDENTIFY_SYSTEM")[-1].body == b"I"


@pytest.mark.parametrize("limit", ["max_db_connections", "max_user_connections"])
def test_its_server_counts_in_the_limits_of_the_database_and_of_the_user(
    make_proxy: MakeProxy, source: Postgres, make_raw_client: MakeRawClient, limit: str
) -> None:
    entry = f"host={source.host} port={source.port} dbname=postgres"
    proxy = make_proxy(
        databases={"postgres": entry, "again": entry}, users={"postgres": "", "trust_user": "", ADMIN_USER: ""},
        pool_mode="transaction", default_pool_size=5, **{limit: 2},
    )  # fmt: skip
    # another pool that shares the limit: of the same database, or of the same user
    who = {"user": "postgres", "database": "again"}
    if limit == "max_db_connections":
        who = {"user": "trust_user", "database": "postgres"}
    holder, other, waiting = (make_raw_client(proxy.port) for _ in range(3))
    for client in (holder, other, waiting):
        client.login(**who)
    other.query("select 1")
    holder.query("begin")  # the only server
    other.query("begin")  # the second
    other.query("commit")
    stream = make_raw_client(proxy.port)
    stream.login(user="postgres", database="postgres", replication="true")
    assert stream.query("IDENTIFY_SYSTEM")[-1].type == b"Z"
    assert proxy.log_contains("closing because: evicted")
    waiting.send(query("select 1"))
    settle(proxy)
    assert waiting.is_silent(0.3)
    assert proxy.show("POOLS", **who)["cl_waiting"] == 1
    stream.close()
    assert waiting.read_until(b"Z")[-1].body == b"I"
