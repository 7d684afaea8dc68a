"""JDBC behind HikariCP, where both and a JDK are installed (Debian: libpostgresql-jdbc-java, libhikaricp-java)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_drivers import CLIENTS, COPIED, FIRST_COPIED, PASSWORD, TURNS, USER, Ledger
from fix_postgres import environment

JARS = [Path("/usr/share/java") / f"{name}.jar" for name in ("HikariCP", "postgresql", "slf4j-api", "slf4j-nop")]
ABSENT = [str(jar) for jar in JARS if not jar.exists()]
ABSENT += [name for name in ("javac", "java") if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"JDBC with HikariCP: there is no {', '.join(ABSENT)}")

PROGRAM = r"""
import com.zaxxer.hikari.*;
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.PGConnection;

public class Drivers {
    static int turns, copied, first;

    public static void main(String[] args) throws Exception {
        int clients = Integer.parseInt(args[3]);
        turns = Integer.parseInt(args[4]);
        copied = Integer.parseInt(args[5]);
        first = Integer.parseInt(args[6]);
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(args[0]);
        config.setUsername(args[1]);
        config.setPassword(args[2]);
        config.setMaximumPoolSize(clients);
        ExecutorService threads = Executors.newFixedThreadPool(clients);
        try (HikariDataSource pool = new HikariDataSource(config)) {
            List<Future<?>> lives = new ArrayList<>();
            for (int owner = 0; owner < clients; owner++) {
                int who = owner;
                lives.add(threads.submit(() -> { life(pool, who); return null; }));
            }
            for (Future<?> one : lives) {
                one.get();
            }
        } finally {
            threads.shutdownNow();
        }
        System.out.println("done");
    }

    static String text(int owner, int number) {
        return "\u00dcn\u00ef-" + owner + "'\\\"" + number;
    }

    static void expect(Object found, Object wanted) {
        if (!Objects.equals(found, wanted)) {
            throw new AssertionError("found " + found + ", wanted " + wanted);
        }
    }

    static void insert(Connection connection, int owner, int number, String text) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("insert into item values (?, ?, ?)")) {
            statement.setInt(1, owner);
            statement.setInt(2, number);
            statement.setString(3, text);
            expect(statement.executeUpdate(), 1);
        }
    }

    static void life(HikariDataSource pool, int owner) throws Exception {
        for (int number = 0; number < turns; number++) {
            try (Connection connection = pool.getConnection()) {
                connection.setAutoCommit(false);
                insert(connection, owner, number, "taken back");
                try (Statement statement = connection.createStatement()) {
                    statement.execute("select 1 / 0");
                    throw new AssertionError("no error");
                } catch (SQLException error) {
                    expect(error.getSQLState(), "22012");
                }
                connection.rollback();
                insert(connection, owner, number, text(owner, number));
                connection.commit();
            }
            try (Connection connection = pool.getConnection(); PreparedStatement statement = connection.prepareStatement(
                    "select number, text from item where owner = ? and number < 1000 order by number")) {
                for (int again = 0; again < 3; again++) {
                    statement.setInt(1, owner);
                    int at = 0;
                    try (ResultSet found = statement.executeQuery()) {
                        for (; found.next(); at++) {
                            expect(found.getInt(1), at);
                            expect(found.getString(2), text(owner, at));
                        }
                    }
                    expect(at, number + 1);
                }
            }
        }
        try (Connection connection = pool.getConnection()) {
            StringBuilder lines = new StringBuilder();
            for (int number = first; number < first + copied; number++) {
                lines.append(owner + "\t" + number + "\t" + text(owner, number).replace("\\", "\\\\") + "\n");
            }
            PGConnection own = connection.unwrap(PGConnection.class);
            expect(own.getCopyAPI().copyIn("copy item from stdin", new StringReader(lines.toString())), (long) copied);
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            own.getCopyAPI().copyOut("copy (select * from item where owner = " + owner + " and number >= " + first
                + " order by number) to stdout", out);
            expect(out.toString(StandardCharsets.UTF_8), lines.toString());
            connection.setAutoCommit(false);
            try (PreparedStatement statement = connection.prepareStatement("select number from item where owner = ?")) {
                statement.setFetchSize(50);  // a portal that is read in pieces
                statement.setInt(1, owner);
                int count = 0;
                try (ResultSet found = statement.executeQuery()) {
                    while (found.next()) {
                        count++;
                    }
                }
                expect(count, turns + copied);
            }
            try (PreparedStatement statement = connection.prepareStatement(
                    "update item set text = ? where owner = ? and number = ?")) {
                for (int number = 0; number < turns; number++) {
                    statement.setString(1, text(owner, number));
                    statement.setInt(2, owner);
                    statement.setInt(3, number);
                    statement.addBatch();
                }
                expect(Arrays.stream(statement.executeBatch()).sum(), turns);
            }
            connection.commit();
        }
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program; its arguments follow."""
    directory = tmp_path_factory.mktemp("hikari")
    classpath = os.pathsep.join([str(directory), *map(str, JARS)])
    (directory / "Drivers.java").write_text(PROGRAM)
    subprocess.run(["javac", "-cp", classpath, "Drivers.java"], cwd=directory, check=True, timeout=100)
    return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classpath, "Drivers"]


def test_jdbc_with_hikaricp(ledger: Ledger, program: list[str]) -> None:
    """Its prepareThreshold is 5, so that statements become named ones in the middle of the work."""
    numbers = map(str, (CLIENTS, TURNS, COPIED, FIRST_COPIED))
    url = f"jdbc:postgresql://{ledger.proxy.host}:{ledger.proxy.port}/app"
    done = subprocess.run(
        [*program, url, USER, PASSWORD, *numbers], env=environment(), capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    ledger.check()
