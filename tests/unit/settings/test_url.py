"""DATABASE_URL alone makes a working sidecar."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import load


def test_a_url_alone_makes_one_database_one_user_and_a_listener() -> None:
    config = load(None, {}, {"DATABASE_URL": "postgresql://user:p%40ss@db:5433/mydb?sslmode=require"})
    entry = config.databases["mydb"]
    assert (entry.hosts, entry.port, entry.dbname) == (("db",), 5433, "mydb")
    assert (entry.user, entry.password) == ("user", "p@ss")
    assert config.implied_users == {"user": "p@ss"}
    assert config.autodb is None
    s = config.settings
    assert (s.listen_addr, s.listen_port, s.auth_type, s.server_tls_sslmode) == ("*", 6432, "scram-sha-256", "require")
    assert config.where["pgbouncer", "server_tls_sslmode"] == ("environment", 0)
    assert "p@ss" not in repr(config) + repr(entry)


def test_a_user_and_a_password_that_the_url_does_not_have_come_from_libpqs_variables() -> None:
    environ = {"DATABASE_URL": "postgresql://db:5432/mydb", "PGUSER": "u", "PGPASSWORD": "p%40@/"}
    config = load(None, {}, environ)
    assert (config.databases["mydb"].user, config.databases["mydb"].password) == ("u", "p%40@/")
    assert config.implied_users == {"u": "p%40@/"}
    config = load(None, {}, {**environ, "DATABASE_URL": "postgresql://own:secret@db:5432/mydb"})
    assert config.implied_users == {"own": "secret"}
    config = load(None, {}, {**environ, "DATABASE_URL": "postgresql://own@db:5432/mydb"})
    assert config.implied_users == {"own": "p%40@/"}
    with pytest.raises(ConfigError, match="zero byte or a line break") as caught:
        load(None, {}, {**environ, "PGPASSWORD": "hunter2\n"})
    assert "hunter2" not in str(caught.value)


def test_what_is_given_beats_what_the_url_implies() -> None:
    environ = {
        "DATABASE_URL": "postgres://u:p@db/mydb?sslmode=require",
        "PGPOOL_PROXY_LISTEN_ADDR": "127.0.0.1",
        "PGPOOL_PROXY_SERVER_TLS_SSLMODE": "disable",
    }
    s = load(None, {"auth_type": "md5"}, environ).settings
    assert (s.listen_addr, s.auth_type, s.server_tls_sslmode) == ("127.0.0.1", "md5", "disable")


def test_without_a_url_nothing_listens_by_itself() -> None:
    s = load(None, {}, {}).settings
    assert (s.listen_addr, s.auth_type) == ("", "md5")


def test_a_url_is_used_only_when_the_file_has_no_database(tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    environ = {"DATABASE_URL": "postgres://u:p@db/mydb"}
    path.write_text("[pgbouncer]\nlisten_addr=::1\n")
    config = load(str(path), {}, environ)
    assert list(config.databases) == ["mydb"]
    assert config.settings.listen_addr == "::1"
    path.write_text("[pgbouncer]\n[databases]\nother = host=x\n")
    config = load(str(path), {}, environ)
    assert list(config.databases) == ["other"]
    assert config.settings.auth_type == "md5"
    assert config.implied_users == {}


@pytest.mark.parametrize(
    ("address", "hosts", "port"),
    [
        ("[::1]:5", ("::1",), 5),
        ("[::1]", ("::1",), 5432),
        ("a,b", ("a", "b"), 5432),
        ("a:7,b:7", ("a", "b"), 7),
        ("%2Ftmp", ("/tmp",), 5432),
    ],
)
def test_hosts_of_a_url(address: str, hosts: tuple[str, ...], port: int) -> None:
    entry = load(None, {}, {"DATABASE_URL": f"postgres://u:p@{address}/d"}).databases["d"]
    assert (entry.hosts, entry.port) == (hosts, port)


def test_a_unix_socket_is_given_as_the_host_parameter() -> None:
    entry = load(None, {}, {"DATABASE_URL": "postgres://u:p@/d?host=/run/pg&port=7"}).databases["d"]
    assert (entry.hosts, entry.port) == (("/run/pg",), 7)


def test_a_further_url_makes_a_further_database_of_its_own_name() -> None:
    environ = {"DATABASE_URL": "postgres://u:p@a/one", "DATABASE_URL_REPORTS": "postgres://v:q@b/two"}
    config = load(None, {}, environ)
    assert {name: entry.dbname for name, entry in config.databases.items()} == {"one": "one", "reports": "two"}
    assert config.implied_users == {"u": "p", "v": "q"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:hunter2@h/d", "expected postgresql://"),
        ("postgres://:hunter2@h/d", "no user"),
        ("postgres://u:hunter2@h/", "no dbname"),
        ("postgres://u:hunter2@h", "no dbname"),
        ("postgres://u:hunter2@/d", "no host"),
        ("postgres://u:hunter2@h:x/d", "port"),
        ("postgres://u:hunter2@h:0/d", "port"),
        ("postgres://u:hunter2@h:1,i:2/d", "same port"),
        ("postgres://u:hunter2@::1/d", "brackets"),
        ("postgres://u:hunter2%zz@h/d", "%25"),
        ("postgres://u:hunter2%00@h/d", "zero byte"),
        ("postgres://u:hunter2/x@h/d", "%2F"),
        ("postgres://u:hunter2?x@h/d", "%3F"),
        ("postgres://u:hunter2@h/d?gssencmode=disable", '"gssencmode" is not supported'),
        ("postgres://u:hunter2@h/d?sslmode=maybe", "expected one of disable"),
        ("postgres://u:hunter2@h/d?sslmode", "name=value"),
        ("postgres://u:hunter2@h/pgbouncer", "reserved"),
        ("postgres://u@h/d", "no password"),
    ],
)
def test_a_bad_url_is_refused_without_showing_the_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"DATABASE_URL": url})
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.key == "DATABASE_URL"


def test_no_password_is_needed_when_clients_log_in_another_way() -> None:
    config = load(None, {"auth_type": "trust"}, {"DATABASE_URL": "postgres://u@h/d"})
    assert config.implied_users == {"u": ""}


@pytest.mark.parametrize("other", ["postgres://u:other@b/two", "postgres://u:p@b/two?sslmode=disable", "postgres://u:p@b/two"])
def test_urls_that_contradict_each_other_are_refused(other: str) -> None:
    environ = {
        "DATABASE_URL": "postgres://u:p@a/one?sslmode=require",
        "DATABASE_URL_TWO": other,
        "DATABASE_URL_Two": "postgres://u:p@b/two",
    }
    with pytest.raises(ConfigError, match="two URLs"):
        load(None, {}, environ)
