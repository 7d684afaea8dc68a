"""`pgpool-proxy check`: what is wrong with which line, without a daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fix_postgres import USERS, Postgres

PLAIN_USER = next(name for name, (method, _) in USERS.items() if method == "trust")


def check(path: Path) -> tuple[int, str]:
    found = subprocess.run(
        [sys.executable, "-P", "-m", "pgpool_proxy", "check", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found.returncode, found.stdout


def ini(directory: Path, databases: str, settings: str = "") -> Path:
    (directory / "userlist.txt").write_text(f'"{PLAIN_USER}" "a secret word"\n')
    path = directory / "pgpool_proxy.ini"
    path.write_text(
        f"[databases]\n{databases}\n[pgbouncer]\nlisten_port = 6432\nauth_type = md5\nauth_file = {directory}/userlist.txt\n"
        f"server_tls_sslmode = disable\n{settings}\n"
    )
    return path


def test_a_good_configuration_has_no_problem(tmp_path: Path, shared_postgres: Postgres) -> None:
    code, text = check(ini(tmp_path, f"app = host=127.0.0.1 port={shared_postgres.port}"))
    assert code == 0, text
    assert f"ok       {tmp_path}/pgpool_proxy.ini:2: app: 127.0.0.1:{shared_postgres.port} database app as {PLAIN_USER}" in text
    assert text.endswith("0 problems\n")


def test_a_database_that_the_server_does_not_have_is_named_with_its_line(tmp_path: Path, shared_postgres: Postgres) -> None:
    lines = f"app = host=127.0.0.1 port={shared_postgres.port}\nnope = host=127.0.0.1 port={shared_postgres.port}"
    code, text = check(ini(tmp_path, lines))
    assert code == 1
    assert f"PROBLEM  {tmp_path}/pgpool_proxy.ini:3: nope: " in text
    assert 'database "nope" does not exist' in text
    assert "1 problem\n" in text


def test_each_host_of_a_list_is_tried(tmp_path: Path, shared_postgres: Postgres) -> None:
    code, text = check(ini(tmp_path, f"app = host=127.0.0.1,127.0.0.9 port={shared_postgres.port}"))
    assert code == 1
    assert "ok       " in text
    assert "127.0.0.9" in text


def test_a_key_that_is_not_known_is_named_with_file_and_line(tmp_path: Path) -> None:
    code, text = check(ini(tmp_path, "app = host=127.0.0.1", "max_client_con = 5"))
    assert code == 1
    assert f"PROBLEM  {tmp_path}/pgpool_proxy.ini:8: " in text
    assert "max_client_conn" in text


def test_limits_that_contradict_each_other_are_a_problem(tmp_path: Path, shared_postgres: Postgres) -> None:
    code, text = check(ini(tmp_path, f"app = host=127.0.0.1 port={shared_postgres.port} pool_size=2 min_pool_size=5"))
    assert code == 1
    assert "min_pool_size 5 is more than pool_size 2" in text


def test_more_servers_than_the_server_takes_are_a_problem(tmp_path: Path, shared_postgres: Postgres) -> None:
    code, text = check(ini(tmp_path, f"app = host=127.0.0.1 port={shared_postgres.port} pool_size=5000"))
    assert code == 1
    assert "max_connections" in text


def test_a_missing_auth_file_is_a_problem_and_a_broken_one_says_its_line(tmp_path: Path, shared_postgres: Postgres) -> None:
    path = ini(tmp_path, f"app = host=127.0.0.1 port={shared_postgres.port} user={PLAIN_USER}")
    (tmp_path / "userlist.txt").write_text('"someone" "x"\nbroken\n')
    code, text = check(path)
    assert code == 1
    assert "userlist.txt:2: " in text
    (tmp_path / "userlist.txt").unlink()
    code, text = check(path)
    assert code == 1
    assert "userlist.txt: No such file or directory" in text


def test_no_password_is_shown(tmp_path: Path) -> None:
    _, text = check(ini(tmp_path, "app = host=127.0.0.1 port=1 user=u password='top secret'"))
    assert "top secret" not in text
    assert "a secret word" not in text
