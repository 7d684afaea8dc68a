"""The console asked by drivers at their defaults: what they get is what `psql` gets, by either protocol, as text or binary."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2
import pytest
from fix_postgres import environment
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy

JAR = Path("/usr/share/java/postgresql.jar")
#: tables whose rows are the same whenever they are asked for
QUIET = ("DATABASES", "CONFIG", "USERS", "PEERS", "STATE", "VERSION", "LISTS", "POOLS")


@pytest.fixture
def proxy(keep_proxy: MakeProxy) -> Proxy:
    peers = {"1": "host=127.0.0.1", "2": "host=127.0.0.1 port=7777 pool_size=3"}
    return keep_proxy(sections={"users": {"trust_user": "pool_size=7"}, "peers": peers}, client_idle_timeout=0)


def where(proxy: Proxy) -> dict[str, Any]:
    return {"host": proxy.host, "port": proxy.port, "user": ADMIN_USER, "password": ADMIN_PASSWORD}


Told = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def told(proxy: Proxy) -> Iterator[Told]:
    """What a table has by the simple protocol, as text; its connection counts among the clients all the time."""
    with psycopg.connect(
        **where(proxy), dbname="pgbouncer", autocommit=True, cursor_factory=psycopg.ClientCursor
    ) as connection:
        yield lambda table: connection.execute(f"SHOW {table}").fetchall()


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_psycopg_asks_by_the_extended_protocol(proxy: Proxy, told: Told, binary: bool) -> None:
    with psycopg.connect(**where(proxy), dbname="pgbouncer", autocommit=True) as connection:
        for table in QUIET:
            for _ in range(2):  # the second time a statement that is prepared already
                found = connection.execute(f"SHOW {table}", prepare=True, binary=binary).fetchall()
                assert found == told(table), table
        assert connection.execute("PAUSE app").statusmessage == "PAUSE"
        assert connection.execute("RESUME app").statusmessage == "RESUME"
        with pytest.raises(psycopg.Error, match="invalid command 'nonsense', use SHOW HELP;"):
            connection.execute("nonsense")
        assert connection.execute("SHOW VERSION", binary=binary).fetchall() == told("VERSION")


def test_a_transaction_of_psycopg_is_no_obstacle(proxy: Proxy, told: Told) -> None:
    with psycopg.connect(**where(proxy), dbname="pgbouncer") as connection:  # BEGIN before the first, COMMIT at the end
        assert connection.execute("SHOW STATE").fetchall() == told("STATE")


async def test_asyncpg_and_its_pool(proxy: Proxy, told: Told) -> None:
    async with asyncpg.create_pool(**where(proxy), database="pgbouncer", ssl=False, min_size=1, max_size=1) as pool:
        for _ in range(2):  # what it says when a connection goes back to its pool is accepted
            async with pool.acquire() as connection:
                for table in QUIET:
                    assert [tuple(row) for row in await connection.fetch(f"SHOW {table}")] == told(table), table
                statement = await connection.prepare("SHOW STATS_TOTALS")
                assert {row["database"] for row in await statement.fetch()} >= {"pgbouncer"}
                assert [attribute.type.name for attribute in statement.get_attributes()[:2]] == ["text", "numeric"]
                assert await connection.execute("SET query_wait_timeout = 120") == "SET query_wait_timeout=120"


def test_psycopg2_and_pg8000(proxy: Proxy, told: Told) -> None:
    with closing(psycopg2.connect(**where(proxy), dbname="pgbouncer")) as connection, connection.cursor() as cursor:
        for table in QUIET:
            cursor.execute(f"SHOW {table}")
            assert cursor.fetchall() == told(table), table
    with closing(pg8000.dbapi.connect(**where(proxy), database="pgbouncer")) as connection:
        asking = connection.cursor()
        for table in QUIET:
            asking.execute(f"SHOW {table}")
            assert [tuple(row) for row in asking.fetchall()] == told(table), table
        connection.commit()


PROGRAM = """
import java.sql.*;

public class Console {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            for (int at = 1; at < arguments.length; at++) {
                try (PreparedStatement statement = connection.prepareStatement("SHOW " + arguments[at])) {
                    for (int turn = 0; turn < 7; turn++) {  // from the fifth on, prepared on the server, with binary results
                        try (ResultSet found = statement.executeQuery()) {
                            int columns = found.getMetaData().getColumnCount();
                            while (found.next()) {
                                StringBuilder line = new StringBuilder(arguments[at]);
                                for (int column = 1; column <= columns; column++) {
                                    line.append("|").append(found.getString(column));
                                }
                                System.out.println(line);
                            }
                        }
                    }
                }
            }
        }
    }
}
"""


@pytest.mark.skipif(
    shutil.which("javac") is None or shutil.which("java") is None or not JAR.exists(),
    reason=f"JDBC: there is no JDK on the PATH, or no {JAR}",
)
def test_jdbc(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "Console.java").write_text(PROGRAM)
    subprocess.run(["javac", "Console.java"], cwd=tmp_path, check=True, timeout=100)
    url = f"jdbc:postgresql://{proxy.host}:{proxy.port}/pgbouncer?user={ADMIN_USER}&password={ADMIN_PASSWORD}"
    java = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{tmp_path}:{JAR}", "Console"]
    done = subprocess.run(
        [*java, url, *QUIET], env=environment(), capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    expected: list[str] = []
    for table in QUIET:
        shown = [row.values() for row in proxy.admin(f"SHOW {table}")]  # alone, as JDBC was
        lines = ["|".join([table, *("null" if cell is None else str(cell) for cell in row)]) for row in shown]
        expected += lines * 7
    assert done.stdout.splitlines() == expected
