"""psycopg in front of transaction pooling: sync, async, pipelines, COPY, prepared statements, cursors."""

from __future__ import annotations

import asyncio
import io
import threading

import psycopg
import pytest
from fix_clients import Database
from fix_proxy import MakeProxy, Proxy
from psycopg import sql


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    """Transaction pooling on two servers."""
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)


@pytest.fixture(params=["session", "transaction"])
def either(request: pytest.FixtureRequest, make_proxy: MakeProxy, database: Database) -> Proxy:
    """What a driver sees is the same in both modes."""
    return make_proxy(databases={"app": database.entry()}, pool_mode=request.param)


def other_server(proxy: Proxy, connection: psycopg.Connection[tuple[object, ...]]) -> psycopg.Connection[tuple[object, ...]]:
    """A connection that holds, by a transaction, the server which `connection` used last."""
    last = connection.execute("select pg_backend_pid()").fetchone()
    holder = proxy.connect()
    holder.execute("begin")
    assert holder.execute("select pg_backend_pid()").fetchone() == last
    return holder


def test_parameters_types_and_results_pass_unchanged(either: Proxy) -> None:
    connection = either.connect()
    values = (1, 2**40, "ä\n'\"\\", None, [1, 2], b"\0\xff", 1.5, True)
    query = "select %s::int, %s::bigint, %s, %s::text, %s::int[], %s::bytea, %s::float8, %s"
    assert connection.execute(query, values).fetchone() == values
    row = connection.cursor(binary=True).execute("select %b::int, %b::bytea", (1, b"\0\xff")).fetchone()
    assert row == (1, b"\0\xff")


def test_a_result_of_many_rows_arrives_whole(either: Proxy) -> None:
    rows = either.connect().execute("select n, repeat('x', n %% 500) from generate_series(1, %s) n", [20_000]).fetchall()
    assert [number for number, _ in rows] == list(range(1, 20_001))
    assert all(len(text) == number % 500 for number, text in rows)


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_a_large_parameter_and_a_large_value_pass_unchanged(either: Proxy, size: int) -> None:
    connection = either.connect()
    text = "0123456789" * (size // 10)
    assert connection.execute("select %s::text", [text]).fetchone() == (text,)
    assert connection.execute(sql.SQL("select {}").format(text)).fetchone() == (text,)


def test_a_block_is_one_transaction_on_one_server(pooled: Proxy) -> None:
    connection = pooled.connect()
    connection.execute("create table t (x int)")
    with connection.transaction():
        first = connection.execute("select pg_backend_pid()").fetchone()
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():  # noqa: PT012 - the block is what is tested
            connection.execute("insert into t values (1)")
            connection.execute("select 1/0")
        connection.execute("insert into t values (2)")
        assert connection.execute("select pg_backend_pid()").fetchone() == first
    assert connection.execute("select x from t").fetchall() == [(2,)]
    with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():  # noqa: PT012 - the block is what is tested
        connection.execute("create unique index on t (x)")
        connection.execute("insert into t values (2)")
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_prepared_statements_follow_their_client_from_server_to_server(pooled: Proxy) -> None:
    connection = pooled.connect(prepare_threshold=0)
    seen = set()
    for number in range(6):
        pid, result = connection.execute("select pg_backend_pid(), %s::int * 2", [number]).fetchone()
        assert result == 2 * number
        seen.add(pid)
        with other_server(pooled, connection):
            pid, result = connection.execute("select pg_backend_pid(), %s::int * 2", [number]).fetchone()
            assert result == 2 * number
            seen.add(pid)
    assert len(seen) == 2


def test_prepared_statements_of_many_clients_with_equal_names_do_not_meet(pooled: Proxy) -> None:
    connections = [pooled.connect(prepare_threshold=0) for _ in range(8)]
    for _ in range(3):
        for number, connection in enumerate(connections):  # psycopg calls the first statement of each _pg3_0
            assert connection.execute(f"select {number} + %s::int", [100]).fetchone() == (100 + number,)


def test_more_statements_than_a_server_may_keep_still_work(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(
        databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1, max_prepared_statements=5
    )
    connection = proxy.connect(prepare_threshold=0)
    for _ in range(3):
        for number in range(30):
            assert connection.execute(f"select {number} + %s::int", [1]).fetchone() == (number + 1,)
    assert len(database.pids()) == 1
    simple = proxy.connect(cursor_factory=psycopg.ClientCursor)
    assert simple.execute("select count(*) from pg_prepared_statements").fetchone()[0] <= 5


def test_a_pipeline_of_several_syncs_and_an_error_in_its_middle(either: Proxy) -> None:
    connection = either.connect()
    connection.execute("create table t (x int)")
    with connection.pipeline() as pipeline:
        connection.execute("insert into t values (1)")
        pipeline.sync()
        # An error is raised by whichever call happens to read it: each of them is asked for where it is expected.
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0").fetchone()
        pipeline.sync()
        connection.execute("insert into t values (3)")
        pipeline.sync()
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("select * from nowhere").fetchone()
        with pytest.raises(psycopg.errors.PipelineAborted):  # discarded by the server, up to the sync
            connection.execute("insert into t values (4)").fetchone()
        pipeline.sync()
        cursor = connection.execute("select array_agg(x order by x) from t")
        assert cursor.fetchone() == ([1, 3],)


def test_a_long_pipeline_with_prepared_statements_on_two_servers(pooled: Proxy) -> None:
    first, second = pooled.connect(prepare_threshold=1), pooled.connect(prepare_threshold=1)
    for connection in (first, second, first):
        with connection.pipeline():
            cursors = [connection.execute("select %s::int", [number]) for number in range(500)]
            assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(500)]


def test_executemany_with_returning(either: Proxy) -> None:
    connection = either.connect()
    connection.execute("create table t (x int)")
    cursor = connection.cursor()
    cursor.executemany("insert into t values (%s) returning x", [(n,) for n in range(300)], returning=True)
    found = [result.fetchone()[0] for result in cursor.results()]
    assert found == list(range(300))


def test_copy_in_and_out_of_100000_rows(either: Proxy) -> None:
    connection = either.connect()
    connection.execute("create table t (n int, text text)")
    with connection.cursor().copy("copy t from stdin") as copy:
        for number in range(100_000):
            copy.write_row((number, "row"))
    assert connection.execute("select count(*), sum(n) from t").fetchone() == (100_000, 4_999_950_000)
    out = io.BytesIO()
    with connection.cursor().copy("copy (select n from t order by n) to stdout") as copy:
        for chunk in copy:
            out.write(chunk)
    assert out.getvalue().split() == [b"%d" % number for number in range(100_000)]
    with connection.cursor().copy("copy t to stdout (format binary)") as copy:
        copy.set_types(["int4", "text"])
        assert sum(row[0] for row in copy.rows()) == 4_999_950_000


def test_a_copy_that_fails_on_either_side_leaves_the_connection_usable(either: Proxy) -> None:
    connection = either.connect()
    connection.execute("create table t (n int)")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation), connection.cursor().copy("copy t from stdin") as copy:
        copy.write(b"1\nnonsense\n" + b"2\n" * 50_000)
    into_t = connection.cursor()
    with pytest.raises(ValueError, match="CopyFail"), into_t.copy("copy t from stdin") as copy:  # noqa: PT012 - that is it
        copy.write(b"1\n")
        raise ValueError("what makes the driver say CopyFail")
    assert connection.execute("select count(*) from t").fetchone() == (0,)


def test_a_server_side_cursor_in_a_transaction(pooled: Proxy) -> None:
    connection, other = pooled.connect(), pooled.connect()
    with connection.transaction(), connection.cursor("numbers") as cursor:
        cursor.itersize = 100
        cursor.execute("select n from generate_series(1, 1000) n")
        assert cursor.fetchmany(10) == [(n,) for n in range(1, 11)]
        other.execute("select 1")
        assert [n for (n,) in cursor] == list(range(11, 1001))


def test_stream_reads_a_result_row_by_row(either: Proxy) -> None:
    connection = either.connect()
    assert [n for (n,) in connection.cursor().stream("select generate_series(1, 5000)")] == list(range(1, 5001))


def test_notices_reach_the_client_that_caused_them(pooled: Proxy) -> None:
    loud, silent = pooled.connect(), pooled.connect()
    heard: list[tuple[str, str | None]] = []
    loud.add_notice_handler(lambda notice: heard.append(("loud", notice.message_primary)))
    silent.add_notice_handler(lambda notice: heard.append(("silent", notice.message_primary)))
    for _ in range(2):
        loud.execute("do $$ begin raise notice 'hear, hear'; end $$")
        silent.execute("select 1")
    assert heard == [("loud", "hear, hear")] * 2


def test_notifications_arrive_in_session_mode(make_proxy: MakeProxy, database: Database) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode="session")
    listener = proxy.connect()
    listener.execute("listen news")
    database.sql("select pg_notify('news', 'first')")
    database.sql("select pg_notify('news', 'second')")
    heard = [notify.payload for notify in listener.notifies(timeout=10, stop_after=2)]
    assert heard == ["first", "second"]


def test_a_listener_that_has_left_bequeaths_nothing(pooled: Proxy, database: Database) -> None:
    connection = pooled.connect()
    connection.execute("listen news")
    database.sql("select pg_notify('news', 'to nobody')")
    for _ in range(3):
        assert connection.execute("select 1").fetchone() == (1,)


def test_errors_arrive_as_the_server_gave_them(either: Proxy) -> None:
    connection = either.connect()
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        connection.execute("select nonsense")
    assert caught.value.diag.message_primary == 'column "nonsense" does not exist'
    assert caught.value.diag.statement_position == "8"
    assert connection.execute("select 1").fetchone() == (1,)


def test_threads_with_connections_of_their_own(pooled: Proxy) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with psycopg.connect(pooled.dsn(), autocommit=True) as connection:
                for turn in range(50):
                    assert connection.execute("select %s::int, %s::int", [number, turn]).fetchone() == (number, turn)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


async def test_async_connections_share_servers(pooled: Proxy, database: Database) -> None:
    async def work(number: int) -> None:
        async with await pooled.aconnect(prepare_threshold=2) as connection:
            for turn in range(20):
                async with connection.transaction():
                    cursor = await connection.execute("select %s::int + %s::int", [number, turn])
                    assert await cursor.fetchone() == (number + turn,)
            async with connection.pipeline():
                cursors = [await connection.execute("select %s::int", [turn]) for turn in range(20)]
                assert [await cursor.fetchone() for cursor in cursors] == [(turn,) for turn in range(20)]

    await asyncio.gather(*(work(number) for number in range(20)))
    assert len(database.pids()) == 2


async def test_async_copy_in_and_out(pooled: Proxy) -> None:
    async with await pooled.aconnect() as connection:
        await connection.execute("create table t (n int)")
        async with connection.cursor().copy("copy t from stdin") as copy:
            for number in range(10_000):
                await copy.write_row((number,))
        async with connection.cursor().copy("copy (select n from t order by n) to stdout") as copy:
            assert [row[0] async for row in copy.rows()] == [str(number) for number in range(10_000)]


def test_a_client_with_a_transaction_started_by_the_driver_needs_no_autocommit(pooled: Proxy) -> None:
    with psycopg.connect(pooled.dsn()) as connection:
        connection.execute("create table t (x int)")
        connection.execute("insert into t values (1)")
        connection.rollback()
        connection.execute("create table t (x int)")
    assert pooled.sql("select count(*) from t") == [(0,)]


def test_two_phase_commit(either: Proxy) -> None:
    connection = either.connect()
    connection.execute("create table t (x int)")
    first, second = psycopg.connect(either.dsn()), psycopg.connect(either.dsn())
    name = f"two-phase-{either.port}"
    first.tpc_begin(name)
    first.execute("insert into t values (1)")
    first.tpc_prepare()
    first.close()
    second.tpc_commit(name)
    second.close()
    assert connection.execute("select x from t").fetchall() == [(1,)]
