"""`pgpool-proxy check FILE.ini`: says what is wrong and where, and never a password."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_postgres import Postgres
from fix_wait import free_port

from pgpool_proxy import cli
from pgpool_proxy.process import check

SECRETS = ("plain-secret", "scram-secret", "md5-secret", "wrong-secret")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Write an ini with these databases, users and keys of [pgbouncer], and check it: (exit code, what was printed)."""

    def run_check(databases: dict[str, str], users: str | None = None, **settings: object) -> tuple[int, str]:
        lines = ["[databases]", *(f"{name} = {value}" for name, value in databases.items()), "[pgbouncer]"]
        if users is not None:
            (tmp_path / "users.txt").write_text(users)
            settings.setdefault("auth_file", "users.txt")
        settings.setdefault("auth_type", "plain")
        lines += [f"{key} = {value}" for key, value in settings.items()]
        ini = tmp_path / "proxy.ini"
        ini.write_text("\n".join(lines) + "\n")
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("PGPOOL_PROXY_")]:
                patch.delenv(name)  # the developer's own settings
            code = check.main([str(ini)])
        told = capsys.readouterr()
        assert told.err == ""
        assert not [secret for secret in SECRETS if secret in told.out], "a password was printed"
        return code, told.out.replace(f"{tmp_path}/", "")

    return run_check


def at(postgres: Postgres, **keywords: object) -> str:
    return " ".join(f"{key}={value}" for key, value in {"host": postgres.host, "port": postgres.port, **keywords}.items())


# --- whom it tries --------------------------------------------------------------------------------------------------------
def test_every_entry_is_tried_as_its_own_user(run: Run, postgres: Postgres) -> None:
    code, out = run(
        {
            "app": at(postgres, user="scram_user", password="scram-secret"),
            "second": at(postgres, dbname="other", user="plain_user"),
        },
        users='"plain_user" "plain-secret"\n',
    )
    assert code == 0, out
    where = f"on 127.0.0.1:{postgres.port}"
    assert f'proxy.ini:2: database "app" {where} as "scram_user" (user= and password= of the entry): OK (PostgreSQL' in out
    assert f'proxy.ini:3: database "second" {where} as "plain_user" (user= of the entry): OK (PostgreSQL' in out
    assert out.endswith("nothing is wrong\n")


def test_an_entry_without_a_user_is_tried_as_the_auth_user(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres)}, users='"scram_user" "scram-secret"\n', auth_user="trust_user")
    assert code == 0, out
    assert 'as "trust_user" (auth_user): OK' in out


def test_an_entry_without_any_user_is_tried_as_those_of_auth_file_until_one_is_let_in(run: Run, postgres: Postgres) -> None:
    users = '"plain_user" "wrong-secret"\n"md5_user" "md5-secret"\n"scram_user" "scram-secret"\n'
    code, out = run({"app": at(postgres)}, users=users)
    assert code == 0, out
    assert 'as "md5_user" (auth_file): OK' in out
    assert "plain_user" not in out
    assert "scram_user" not in out


def test_everybody_who_was_tried_is_named_when_nobody_is_let_in(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres)}, users='"plain_user" "wrong-secret"\n"md5_user" "wrong-secret"\n')
    assert code == 1
    assert out.count("password authentication failed") == 2
    assert 'as "plain_user" (auth_file): ' in out
    assert 'as "md5_user" (auth_file): ' in out


def test_a_user_whose_password_is_not_known_in_clear_is_said_to_be_so(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres, user="md5_user")}, users=f'"md5_user" "md5{"0" * 32}"\n')
    assert code == 1
    assert "no password was given: it is not known in clear" in out


def test_with_nobody_to_try_it_says_that(run: Run, postgres: Postgres) -> None:
    _, out = run({"app": at(postgres)})
    assert "neither auth_file nor auth_user is set" in out
    assert "not tried, since no user is known" in out


def test_the_template_is_tried_with_a_database_that_is_always_there(run: Run, postgres: Postgres) -> None:
    code, out = run({"*": at(postgres)}, users='"trust_user" ""\n')
    assert code == 0, out
    assert 'database "*"' in out


def test_what_the_environment_says_of_postgresql_does_not_count(
    run: Run, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "scram-secret")
    code, out = run({"app": at(postgres, user="scram_user")})
    assert code == 1
    assert "OK" not in out


# --- what may be wrong ------------------------------------------------------------------------------------------------------
def test_every_host_of_a_list_is_tried(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": f"host=127.0.0.1,{postgres.socket_dir},127.0.0.2 port={postgres.port} user=trust_user"})
    assert code == 1
    assert f'database "app" on 127.0.0.1:{postgres.port} as "trust_user" (user= of the entry): OK' in out
    assert f"on {postgres.socket_dir}:{postgres.port} as " in out
    refused = next(line for line in out.splitlines() if "127.0.0.2" in line)
    assert "error: " in refused


def test_a_server_that_is_not_there_is_said_once_with_its_line(run: Run) -> None:
    port = free_port()
    users = '"a" "plain-secret"\n"b" "md5-secret"\n'
    code, out = run({"app": f"host=127.0.0.1 port={port}"}, users=users)
    assert code == 1
    lines = [line for line in out.splitlines() if "error" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f'proxy.ini:2: error: database "app" on 127.0.0.1:{port} as "a" (auth_file): ')
    assert out.endswith("something is wrong\n")


def test_a_database_that_does_not_exist_is_said_in_the_servers_words(run: Run, postgres: Postgres) -> None:
    code, out = run({"nowhere": at(postgres, user="trust_user")})
    assert code == 1
    assert 'database "nowhere" does not exist' in out


def test_a_password_in_the_words_of_a_server_is_not_shown(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres, dbname="wrong-secret", user="plain_user", password="wrong-secret")})
    assert code == 1
    assert "password authentication failed" in out


def test_a_broken_ini_is_said_with_its_line(run: Run) -> None:
    code, out = run({"app": "host=127.0.0.1 prot=5432"})
    assert code == 1
    assert "proxy.ini:2: " in out
    assert "prot" in out


def test_an_ini_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path / "none.ini")]) == 1
    assert "none.ini" in capsys.readouterr().out


def test_an_auth_file_that_is_not_there_is_an_error(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres, user="trust_user")}, auth_file="nobody.txt")
    assert code == 1
    assert "proxy.ini:4: error: auth_file nobody.txt: No such file or directory" in out


def test_a_broken_auth_file_is_said_with_its_line_and_the_users_before_it_count(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres)}, users='"trust_user" ""\nscram_user scram-secret\n')
    assert code == 1
    assert "users.txt:2" in out
    assert 'as "trust_user" (auth_file): OK' in out


def test_an_hba_file_that_is_not_there_is_an_error(run: Run, postgres: Postgres) -> None:
    code, out = run({"app": at(postgres, user="trust_user")}, auth_type="hba", auth_hba_file="none.conf")
    assert code == 1
    assert "none.conf" in out


# --- what makes no sense ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pool_size": 20, "max_db_connections": 5}, "pool_size 20 is over max_db_connections 5"),
        ({"pool_size": 5, "reserve_pool_size": 2, "max_db_connections": 5}, "together are over max_db_connections 5"),
        ({"pool_size": 5, "min_pool_size": 6}, "min_pool_size 6 is over pool_size 5"),
        ({"pool_size": 1000}, "up to 1000 servers for one user"),
        ({"pool_size": 0}, "nothing limits the servers"),
    ],
)
def test_limits_that_make_no_sense_are_a_warning(run: Run, postgres: Postgres, keys: dict[str, int], words: str) -> None:
    code, out = run({"app": at(postgres, user="trust_user", **keys)})
    assert code == 0, out
    assert [line for line in out.splitlines() if line.startswith("proxy.ini:2: warning: ") and words in line]


def test_limits_that_fit_are_no_warning(run: Run, postgres: Postgres) -> None:
    entry = at(postgres, user="trust_user", pool_size=5, min_pool_size=5, max_db_connections=5)
    code, out = run({"app": entry}, users='"trust_user" ""\n')
    assert code == 0
    assert "warning" not in out


def test_entries_that_fit_one_by_one_may_be_too_many_together(run: Run, postgres: Postgres) -> None:
    entries = {name: at(postgres, dbname="app", user="trust_user", pool_size=200) for name in ("one", "two")}
    code, out = run(entries)
    assert code == 0
    assert "one, two together: up to 400 servers" in out


def test_queries_in_clear_over_a_network_are_a_warning(run: Run) -> None:
    _, out = run({"app": "host=192.0.2.1 port=1 user=trust_user"}, server_tls_sslmode="prefer")
    assert "sslmode prefer lets queries cross the network to 192.0.2.1 in clear" in out


def test_the_command_line_has_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.ini").write_text("[pgbouncer]\n")
    assert cli.main(["check", str(tmp_path / "p.ini")]) == 1
    assert "[databases] is empty" in capsys.readouterr().out
