"""`pgpool-proxy passwd --import`: secrets out of a server's pg_authid, with which its users then log in."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_postgres import USERS, Postgres, environment
from fix_proxy import MakeProxy
from fix_tls import reload_by_signal


def passwd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "pgpool_proxy", "passwd", *map(str, arguments)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60,
        env={**environment(), "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip


def source(postgres: Postgres, dbname: str = "postgres", user: str = "postgres") -> str:
    return psycopg.conninfo.make_conninfo(host=postgres.host, port=postgres.port, dbname=dbname, user=user)


@pytest.fixture
def ascii_database(shared_postgres: Postgres) -> Iterator[str]:
    """A database without an encoding, where texts are bytes to a client that asks for none."""
    with shared_postgres.connect(dbname="postgres") as connection:
        connection.execute("create database no_encoding encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'")
    yield "no_encoding"
    with shared_postgres.connect(dbname="postgres") as connection:
        connection.execute("drop database no_encoding")


def test_imported_secrets_let_their_users_in(make_proxy: MakeProxy, shared_postgres: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text('; ours\n"scram_user" "old"\n"admin_user" "admin"\n')
    file.chmod(0o644)
    done = passwd("-f", file, "--import", source(shared_postgres), "scram_user", "md5_user")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = file.read_text()
    assert text.startswith('; ours\n"scram_user" "SCRAM-SHA-256$')
    assert '"admin_user" "admin"\n' in text
    assert '"md5_user" "md5' in text
    assert "plain_user" not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    proxy = make_proxy(auth_type="md5", users={})
    (proxy.directory / "users.txt").write_text(text)
    proxy.settings["auth_file"] = proxy.directory / "users.txt"
    reload_by_signal(proxy)
    for user in ("scram_user", "md5_user"):
        assert proxy.sql("select current_user", user=user, password=USERS[user][1]) == [(user,)]
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            proxy.connect(user=user, password="wrong")


def test_without_names_all_who_may_log_in_with_a_password_are_printed(shared_postgres: Postgres) -> None:
    done = passwd("--import", source(shared_postgres))
    assert done.returncode == 0, done.stderr
    names = {line.split('"')[1] for line in done.stdout.splitlines()}
    assert {user for user, (_, password) in USERS.items() if password} <= names
    assert "trust_user" not in names
    assert all(line.split('"')[3].startswith(("SCRAM-SHA-256$", "md5")) for line in done.stdout.splitlines())


def test_an_import_from_a_database_without_an_encoding(shared_postgres: Postgres, ascii_database: str) -> None:
    done = passwd("--import", source(shared_postgres, ascii_database), "scram_user")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('"scram_user" "SCRAM-SHA-256$')


def test_what_cannot_be_imported_changes_nothing(shared_postgres: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text('"alice" "x"\n')
    for conninfo, names, told in (
        (source(shared_postgres), ["scram_user", "nobody"], 'there is no role "nobody" that may log in with a password'),
        (source(shared_postgres), ["trust_user"], 'there is no role "trust_user" that may log in with a password'),
        (source(shared_postgres, user="trust_user"), [], "permission denied"),
        ("host=127.0.0.1 port=1 user=postgres", [], "could not import: "),
        ("no conninfo", [], "could not import: "),
    ):
        done = passwd("-f", file, "--import", conninfo, *names)
        assert done.returncode == 1
        assert done.stderr.startswith("pgpool-proxy passwd: ")
        assert told in done.stderr
        assert file.read_text() == '"alice" "x"\n'
