"""Python's drivers at their defaults: psycopg2, pg8000, and SQLAlchemy with psycopg and asyncpg."""

from __future__ import annotations

import asyncio
import io
from contextlib import closing

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
import sqlalchemy
from fix_drivers import CLIENTS, COPIED, FIRST_COPIED, PASSWORD, TURNS, USER, Ledger, in_threads, text_of
from sqlalchemy import bindparam, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

NUMBERS = range(FIRST_COPIED, FIRST_COPIED + COPIED)
INSERT = "insert into item values (%s, %s, %s)"


def copy_lines(owner: int) -> str:
    quoted = {ord("\\"): "\\\\", ord("\t"): "\\t"}
    return "".join(f"{owner}\t{number}\t{text_of(owner, number).translate(quoted)}\n" for number in NUMBERS)


# --- psycopg2 -------------------------------------------------------------------------------------------------------------
def test_psycopg2(ledger: Ledger) -> None:
    proxy = ledger.proxy

    def life(owner: int) -> None:
        dsn = {"host": proxy.host, "port": proxy.port, "user": USER, "password": PASSWORD, "dbname": "app"}
        with closing(psycopg2.connect(**dsn)) as connection:
            for number in range(TURNS):
                with connection.cursor() as cursor:
                    cursor.execute(INSERT, (owner, number, "taken back"))
                    with pytest.raises(psycopg2.errors.DivisionByZero):
                        cursor.execute("select 1 / 0")
                connection.rollback()
                with connection, connection.cursor() as cursor:
                    cursor.execute(INSERT, (owner, number, text_of(owner, number)))
                    cursor.execute("select number, text from item where owner = %s and number < 1000 order by number", (owner,))
                    assert cursor.fetchall() == [(at, text_of(owner, at)) for at in range(number + 1)]
            with connection, connection.cursor() as cursor:
                cursor.copy_expert("copy item from stdin", io.StringIO(copy_lines(owner)))
                assert cursor.rowcount == COPIED
            with connection, connection.cursor() as cursor:
                out = io.StringIO()
                query = f"select * from item where owner = {owner} and number >= {FIRST_COPIED} order by number"
                cursor.copy_expert(f"copy ({query}) to stdout", out)
                assert out.getvalue() == copy_lines(owner)
            with connection, connection.cursor("by_name") as cursor:  # DECLARE, FETCH
                cursor.itersize = 50
                cursor.execute("select number from item where owner = %s order by number", (owner,))
                assert [row[0] for row in cursor] == [*range(TURNS), *NUMBERS]

    in_threads(life)
    ledger.check()


def test_psycopg2_executes_many_values_at_once(ledger: Ledger) -> None:
    proxy = ledger.proxy
    with closing(psycopg2.connect(host=proxy.host, port=proxy.port, user=USER, password=PASSWORD, dbname="app")) as connection:
        with connection, connection.cursor() as cursor:
            rows = [(0, number, "x") for number in range(3000)]
            returned = psycopg2.extras.execute_values(
                cursor, "insert into item values %s returning number", rows, page_size=250, fetch=True
            )
            assert [row[0] for row in returned] == list(range(3000))
        connection.set_session(autocommit=True)
        with connection.cursor() as cursor:
            changes = [("y", number) for number in range(300)]
            psycopg2.extras.execute_batch(cursor, "update item set text = %s where number = %s", changes)
            cursor.execute("select count(*) from item where text = 'y'")
            assert cursor.fetchone() == (300,)


# --- pg8000 ---------------------------------------------------------------------------------------------------------------
def test_pg8000(ledger: Ledger) -> None:
    proxy = ledger.proxy

    def life(owner: int) -> None:
        """It parses in one round trip and binds in the next, by names of its own; `run` uses the unnamed statement."""
        with closing(
            pg8000.dbapi.connect(host=proxy.host, port=proxy.port, user=USER, password=PASSWORD, database="app", timeout=30)
        ) as connection:
            cursor = connection.cursor()
            for number in range(TURNS):
                cursor.execute(INSERT, (owner, number, "taken back"))
                with pytest.raises(pg8000.dbapi.DatabaseError, match="22012"):
                    cursor.execute("select 1 / 0")
                connection.rollback()
                cursor.execute(INSERT, (owner, number, text_of(owner, number)))
                cursor.execute("select number, text from item where owner = %s and number < 1000 order by number", (owner,))
                assert [tuple(row) for row in cursor.fetchall()] == [(at, text_of(owner, at)) for at in range(number + 1)]
                connection.commit()
            cursor.execute("copy item from stdin", stream=io.BytesIO(copy_lines(owner).encode()))
            connection.commit()
            out = io.BytesIO()
            query = f"select * from item where owner = {owner} and number >= {FIRST_COPIED} order by number"
            cursor.execute(f"copy ({query}) to stdout", stream=out)
            connection.commit()
            assert out.getvalue().decode() == copy_lines(owner)

    in_threads(life)
    ledger.check()


def test_pg8000_prepares_statements_of_its_own(ledger: Ledger) -> None:
    proxy = ledger.proxy

    def life(owner: int) -> None:
        with closing(
            pg8000.native.Connection(USER, host=proxy.host, port=proxy.port, password=PASSWORD, database="app", timeout=30)
        ) as connection:
            double = connection.prepare("select :n::int * 2, :t::text")
            other = connection.prepare("select :n::int + 1")
            for number in range(20):
                assert connection.run("select :n::int", n=number) == [[number]]
                assert double.run(n=number, t=f"{owner}") == [[number * 2, f"{owner}"]]
                assert other.run(n=number) == [[number + 1]]
            double.close()
            other.close()

    in_threads(life)


# --- SQLAlchemy -----------------------------------------------------------------------------------------------------------
class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    owner: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


OWN = select(Item.number, Item.text).where(Item.owner == bindparam("owner"), Item.number < FIRST_COPIED).order_by(Item.number)


def test_sqlalchemy_with_psycopg(ledger: Ledger) -> None:
    engine = sqlalchemy.create_engine(ledger.url("postgresql+psycopg"), pool_size=CLIENTS)

    def life(owner: int) -> None:
        for number in range(TURNS):
            with engine.connect() as connection:
                connection.execute(insert(Item).values(owner=owner, number=number, text="taken back"))
                with pytest.raises(sqlalchemy.exc.DataError):
                    connection.execute(text("select 1 / 0"))
            with Session(engine) as session:
                session.add(Item(owner=owner, number=number, text="taken back"))
                session.flush()
                session.rollback()
                with session.begin_nested() as savepoint:
                    session.add(Item(owner=owner, number=number, text="taken back, too"))
                    session.flush()
                    savepoint.rollback()
                session.add(Item(owner=owner, number=number, text=text_of(owner, number)))
                session.commit()
                found = session.execute(OWN, {"owner": owner}).all()
                assert [tuple(row) for row in found] == [(at, text_of(owner, at)) for at in range(number + 1)]
        with engine.begin() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            with raw.cursor().copy("copy item from stdin") as copy:
                for number in NUMBERS:
                    copy.write_row((owner, number, text_of(owner, number)))
        with engine.connect().execution_options(stream_results=True, yield_per=100) as connection:
            rows = connection.execute(select(Item.number).where(Item.owner == owner).order_by(Item.number))
            assert [row[0] for row in rows] == [*range(TURNS), *NUMBERS]

    try:
        in_threads(life)
        ledger.check()
    finally:
        engine.dispose()


async def test_sqlalchemy_with_asyncpg(ledger: Ledger) -> None:
    engine = create_async_engine(ledger.url("postgresql+asyncpg"), pool_size=CLIENTS)
    try:
        await asyncio.gather(*(asyncpg_life(engine, owner) for owner in range(CLIENTS)))
        await asyncio.to_thread(ledger.check)
    finally:
        await engine.dispose()


async def asyncpg_life(engine: AsyncEngine, owner: int) -> None:
    """asyncpg prepares each statement, under a name, and keeps a hundred of them."""
    for number in range(TURNS):
        async with engine.connect() as connection:
            await connection.execute(insert(Item).values(owner=owner, number=number, text="taken back"))
            with pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero"):
                await connection.execute(text("select 1 / 0"))
        async with engine.begin() as connection:
            await connection.execute(insert(Item).values(owner=owner, number=number, text=text_of(owner, number)))
            found = (await connection.execute(OWN, {"owner": owner})).all()
            assert [tuple(row) for row in found] == [(at, text_of(owner, at)) for at in range(number + 1)]
    async with engine.begin() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert isinstance(raw, asyncpg.Connection)
        records = [(owner, number, text_of(owner, number)) for number in NUMBERS]
        assert await raw.copy_records_to_table("item", records=records) == f"COPY {COPIED}"
    async with engine.connect() as connection:
        rows = await connection.stream(select(Item.number).where(Item.owner == owner).order_by(Item.number))
        assert [row[0] async for row in rows] == [*range(TURNS), *NUMBERS]


def test_sqlalchemy_meets_a_changed_table_at_most_once_a_statement(ledger: Ledger) -> None:
    """The statement is prepared on all servers when another client changes the table."""
    engine = sqlalchemy.create_engine(ledger.url("postgresql+psycopg"), pool_size=CLIENTS, isolation_level="AUTOCOMMIT")
    everything = text("select * from item where owner = :owner")
    try:
        with engine.connect() as connection:
            connection.execute(insert(Item).values(owner=1, number=1, text="x"))
            for _ in range(10):
                assert connection.execute(everything, {"owner": 1}).one() == (1, 1, "x")
            ledger.database.sql("alter table item add column more int")
            failures = 0
            for _ in range(10):
                try:
                    assert connection.execute(everything, {"owner": 1}).one() == (1, 1, "x", None)
                except sqlalchemy.exc.NotSupportedError:
                    failures += 1
            assert failures <= 1
            assert connection.execute(select(func.count()).select_from(Item)).scalar() == 1
    finally:
        engine.dispose()
