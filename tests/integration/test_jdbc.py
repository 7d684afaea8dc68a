"""JDBC, where a Java and PostgreSQL's driver are installed (Debian: default-jdk-headless, libpostgresql-jdbc-java)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fix_clients import Database
from fix_postgres import environment
from fix_proxy import MakeProxy, Proxy
from fix_tls import Certificates

JAR = Path("/usr/share/java/postgresql.jar")
PROGRAM = """
import java.sql.*;

public class Program {
    public static void main(String[] urls) throws Exception {
        for (String url : urls) {
            try (Connection connection = DriverManager.getConnection(url)) {
                System.out.println(work(connection));
            } catch (SQLException error) {
                System.out.println(error.getSQLState() + " " + error.getMessage());
            }
        }
    }

    static String work(Connection connection) throws SQLException {
        StringBuilder said = new StringBuilder();
        try (Statement statement = connection.createStatement();
                ResultSet found = statement.executeQuery("select current_user")) {
            found.next();
            said.append(found.getString(1));
        }
        try (PreparedStatement statement = connection.prepareStatement("select ?::int + 1")) {
            long sum = 0;  // from its fifth run on, a statement is prepared on the server
            for (int number = 0; number < 12; number++) {
                statement.setInt(1, number);
                try (ResultSet found = statement.executeQuery()) {
                    found.next();
                    sum += found.getInt(1);
                }
            }
            said.append(" ").append(sum);
        }
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("insert into jdbc values (?)")) {
            for (int number = 0; number < 100; number++) {
                statement.setInt(1, number);
                statement.addBatch();
            }
            statement.executeBatch();
        }
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(7);  // a portal that is read in pieces, within the transaction
            long count = 0;
            try (ResultSet found = statement.executeQuery("select * from jdbc")) {
                while (found.next()) {
                    count++;
                }
            }
            said.append(" ").append(count);
            statement.execute("savepoint here");
            try {
                statement.execute("select 1/0");
            } catch (SQLException error) {
                said.append(" ").append(error.getSQLState());
            }
            statement.execute("rollback to here");
        }
        connection.rollback();
        return said.toString();
    }
}
"""

pytestmark = pytest.mark.skipif(
    shutil.which("javac") is None or shutil.which("java") is None or not JAR.exists(),
    reason=f"JDBC: there is no JDK on the PATH, or no {JAR}",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program; URLs follow."""
    directory = tmp_path_factory.mktemp("jdbc")
    (directory / "Program.java").write_text(PROGRAM)
    subprocess.run(["javac", "Program.java"], cwd=directory, check=True, timeout=100)
    return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{directory}:{JAR}", "Program"]


def run(program: list[str], proxy: Proxy, *parameters: str) -> list[str]:
    """A line for each connection."""
    urls = [f"jdbc:postgresql://localhost:{proxy.port}/app?{text}" for text in parameters]
    done = subprocess.run(
        [*program, *urls], env=environment(), capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


DONE = "78 100 22012"
WHO = {
    "plain": "user=plain_user&password=plain-secret",
    "md5": "user=md5_user&password=md5-secret",
    "scram-sha-256": "user=scram_user&password=scram-secret",
}


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("method", list(WHO))
def test_jdbc_works_by_each_method_with_and_without_tls(
    make_proxy: MakeProxy, database: Database, certificates: Certificates, program: list[str], method: str, pool_mode: str
) -> None:
    database.sql("create table jdbc (i int)")
    database.sql("grant all on jdbc to public")
    proxy = make_proxy(
        databases={"app": database.entry()}, auth_type=method, pool_mode=pool_mode, client_tls_sslmode="prefer",
        **certificates.settings(),
    )  # fmt: skip
    who, ca = WHO[method], f"sslrootcert={certificates.ca}"
    user = method.partition("-")[0] + "_user"
    assert run(
        program, proxy,
        f"{who}&sslmode=disable", f"{who}&sslmode=prefer", f"{who}&sslmode=require",
        f"{who}&sslmode=verify-ca&{ca}", f"{who}&sslmode=verify-full&{ca}",
    ) == [f"{user} {DONE}"] * 5  # fmt: skip
    attempts = [line for line in proxy.log().splitlines() if "login attempt" in line]
    assert ["tls=TLS" in line for line in attempts] == [False, True, True, True, True]
    wrong = who.replace("-secret", "-wrong")
    (told,) = run(program, proxy, f"{wrong}&sslmode=require")
    assert told.startswith("28P01 ")


def test_jdbc_refuses_a_certificate_of_another_name(
    make_proxy: MakeProxy, certificates: Certificates, program: list[str]
) -> None:
    proxy = make_proxy(
        client_tls_sslmode="require",
        **certificates.settings(pair=certificates.other_name),
    )  # fmt: skip
    who = f"user=trust_user&sslrootcert={certificates.ca}"
    plain, full = run(program, proxy, "user=trust_user&sslmode=disable", f"{who}&sslmode=verify-full")
    assert "SSL required" in plain
    assert "could not be verified" in full or "hostname" in full.lower()
