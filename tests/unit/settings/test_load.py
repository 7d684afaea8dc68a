"""What `load` makes of a file, an environment and a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import KEYS, Settings, load
from pgpool_proxy.settings.config import beside
from pgpool_proxy.settings.keys import Flag, Seconds, Whole, Word
from pgpool_proxy.settings.model import default_text

SAMPLE = """\
[databases]
mydb = host=localhost dbname=mydb

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
auth_type = md5
auth_file = userlist.txt

pool_mode = transaction  # or session
max_client_conn = 1000
default_pool_size = 20
min_pool_size = 5
reserve_pool_size = 5
reserve_pool_timeout = 5
max_db_connections = 50
max_user_connections = 50
"""


def written(tmp_path: Path, text: str, name: str = "pgpool_proxy.ini") -> str:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


def failure(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), {}, {})
    return caught.value


def test_the_usual_file_loads_word_for_word(tmp_path: Path) -> None:
    config = load(written(tmp_path, SAMPLE), {}, {})
    s = config.settings
    assert (s.listen_addr, s.listen_port, s.auth_type, s.auth_file) == ("127.0.0.1", 6432, "md5", "userlist.txt")
    assert (s.pool_mode, s.max_client_conn, s.default_pool_size, s.min_pool_size) == ("transaction", 1000, 20, 5)
    assert (s.reserve_pool_size, s.reserve_pool_timeout) == (5, 5.0)
    assert (s.max_db_connections, s.max_user_connections) == (50, 50)
    entry = config.databases["mydb"]
    assert (entry.hosts, entry.port, entry.dbname, entry.user) == (("localhost",), 5432, "mydb", None)
    assert config.where["pgbouncer", "pool_mode"] == (config.path, 10)
    assert config.warnings == ()


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "[pgbouncer]\nmax_client_conn=1\nlisten_port=1\nverbose=1\n")
    config = load(path, {"listen_port": "3"}, {"PGPOOL_PROXY_LISTEN_PORT": "2", "PGPOOL_PROXY_VERBOSE": "2"})
    assert (config.settings.listen_port, config.settings.verbose, config.settings.max_client_conn) == (3, 2, 1)
    assert config.settings.default_pool_size == 20
    assert config.where["pgbouncer", "listen_port"] == ("command line", 0)
    assert config.where["pgbouncer", "verbose"] == ("environment", 0)
    assert config.where["pgbouncer", "max_client_conn"] == (path, 2)


OTHERS = {
    "client_tls_protocols": "tlsv1.3",
    "server_tls_protocols": "tlsv1.3",
    "server_require_auth": "md5",
    "unix_socket_mode": "0700",
}


def another(name: str) -> str:
    """A value of a key that is not its default."""
    key, default = KEYS[name], default_text(name)
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(key, Flag):
        return "1" if default == "0" else "0"
    if isinstance(key, Whole):
        number = int(default or "0", 0)
        return str(number + 1 if number < key.high else number - 1)
    if isinstance(key, Seconds):
        return f"{float(default or 0) + 1.5:g}"
    if isinstance(key, Word):
        return next(word for word in key.words if word != default)
    return "something_else"


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_has_its_variable_which_beats_the_file_and_is_beaten_by_the_command_line(
    tmp_path: Path, name: str
) -> None:
    key, text = KEYS[name], another(name)
    comment = " # or another" if isinstance(key, Flag | Whole | Seconds | Word) else ""
    path = written(tmp_path, f"[pgbouncer]\n{name} = {text}{comment}\n")
    wanted = getattr(load(path, {}, {}).settings, name)
    default = getattr(Settings(), name)
    assert wanted != default
    assert getattr(load(None, {}, {f"PGPOOL_PROXY_{name.upper()}": text}).settings, name) == wanted
    assert getattr(load(None, {name: text}, {}).settings, name) == wanted
    back = default_text(name)
    if back:
        variable = {f"PGPOOL_PROXY_{name.upper()}": back}
        assert getattr(load(path, {}, variable).settings, name) == default
        assert getattr(load(path, {name: text}, variable).settings, name) == wanted


def test_the_environment_of_the_process_is_not_read_behind_the_callers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPOOL_PROXY_LISTEN_PORT", "1")
    assert load(None, {}, {}).settings.listen_port == 6432


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[pgbouncer]\nlisten_prt = 1\n", 2, 'unknown key "listen_prt", did you mean "listen_port"?'),
        ("[pgbouncer]\n\nlisten_port = 70000\n", 3, "expected a whole number from 1 to 65535"),
        ("[pgbouncer]\nlisten_port = 08\n", 2, "whole number"),
        ("[pgbouncer]\npool_mode = sesion\n", 2, "expected one of session, transaction, statement"),
        ("[pgbouncer]\nquery_timeout = 5s\n", 2, "expected seconds"),
        ("[pgbouncer]\nquery_timeout = -1\n", 2, "expected seconds"),
        ("[pgbouncer]\nquery_timeout = inf\n", 2, "expected seconds"),
        ("[pgbouncer]\nsyslog = maybe\n", 2, "expected 0 or 1"),
        ("[pgbouncer]\npeer_id = 16384\n", 2, "from 0 to 16383"),
        ("[pgbouncer]\nauth_dbname = pgbouncer\n", 2, "reserved"),
        ("[pgbouncr]\n", 1, 'unknown section "pgbouncr", did you mean "pgbouncer"?'),
        ("listen_port = 1\n", 1, "before the first [section]"),
        ("[pgbouncer]\n[databases]\npgbouncer = host=x\n", 3, "reserved"),
        ("[pgbouncer]\n[databases]\na = host=\n", 3, "host= has no value"),
        ("[pgbouncer]\n[databases]\na = host=''\n", 3, "empty"),
        ("[pgbouncer]\n[databases]\na = host=x port=0\n", 3, "port: expected a whole number from 1 to 65535"),
        ("[pgbouncer]\n[databases]\na = pool_sise=1\n", 3, 'did you mean "pool_size"?'),
        ("[pgbouncer]\n[databases]\na = host=x,,y\n", 3, "one of them is empty"),
        (f"[pgbouncer]\n[databases]\n{'a' * 64} = host=x\n", 3, "more than 63 bytes"),
        ("[pgbouncer]\n[users]\na = pool_mode=x\n", 3, "expected one of session"),
        ("[pgbouncer]\n[peers]\n0 = host=x\n", 3, "from 1 to 65535"),
        ("[pgbouncer]\n[peers]\n1 = port=1\n", 3, "host= is missing"),
    ],
)
def test_an_error_names_file_line_and_what_was_expected(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = failure(tmp_path, text)
    assert error.file == str(tmp_path / "pgpool_proxy.ini")
    assert error.line == line
    assert words in str(error)


def test_a_bad_value_is_an_error_even_when_a_later_line_repairs_it(tmp_path: Path) -> None:
    assert failure(tmp_path, "[pgbouncer]\nlisten_port=x\nlisten_port=1\n").line == 2


def test_the_main_section_must_exist(tmp_path: Path) -> None:
    assert "[pgbouncer] is missing" in str(failure(tmp_path, "[databases]\n"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini.*No such file"):
        load(str(tmp_path / "none.ini"), {}, {})


def test_a_second_main_header_starts_from_the_defaults_again_but_keeps_keys_without_default(tmp_path: Path) -> None:
    text = "[pgbouncer]\nlisten_port=1\nauth_user=me\n[pgbouncer]\nverbose=1\n"
    config = load(written(tmp_path, text), {}, {})
    assert (config.settings.listen_port, config.settings.auth_user) == (6432, "me")
    assert ("pgbouncer", "listen_port") not in config.where


def test_every_key_of_a_database_arrives(tmp_path: Path) -> None:
    text = (
        "[pgbouncer]\n[databases]\n'my db' = dbname='it''s' host=a,/b,::1 port=1 user=u password='p w' auth_user=au"
        " auth_query='select 1' auth_dbname=ad pool_size=2 min_pool_size=3 reserve_pool=4 connect_query='select 2'"
        " pool_mode=Statement query_wait_timeout=1.5 load_balance_hosts=disable max_db_connections=5"
        " max_db_client_connections=6 server_lifetime=7 client_encoding=UTF8 datestyle=ISO timezone=UTC"
        " application_name=app\n"
    )
    e = load(written(tmp_path, text), {}, {}).databases["my db"]
    assert (e.name, e.dbname, e.hosts, e.port) == ("my db", "it's", ("a", "/b", "::1"), 1)
    assert (e.user, e.password) == ("u", "p w")
    assert (e.auth_user, e.auth_query, e.auth_dbname, e.connect_query) == ("au", "select 1", "ad", "select 2")
    assert (e.pool_size, e.min_pool_size, e.reserve_pool_size, e.pool_mode) == (2, 3, 4, "statement")
    assert (e.query_wait_timeout, e.load_balance_hosts, e.server_lifetime) == (1.5, "disable", 7.0)
    assert (e.max_db_connections, e.max_db_client_connections) == (5, 6)
    assert (e.client_encoding, e.datestyle, e.timezone, e.application_name) == ("UTF8", "ISO", "UTC", "app")
    assert e.line == 3


def test_the_star_entry_makes_a_database_of_any_name(tmp_path: Path) -> None:
    config = load(written(tmp_path, "[pgbouncer]\n[databases]\na = host=x\n* = host=y pool_size=-1\n"), {}, {})
    assert config.autodb is not None
    assert list(config.databases) == ["a"]
    made = config.database("any")
    assert made is not None
    assert (made.name, made.dbname, made.hosts, made.pool_size) == ("any", "any", ("y",), None)
    assert config.database("a") is config.databases["a"]


def test_without_star_an_unknown_database_is_none(tmp_path: Path) -> None:
    assert load(written(tmp_path, SAMPLE), {}, {}).database("other") is None


def test_users_and_peers_arrive(tmp_path: Path) -> None:
    text = "[pgbouncer]\n[users]\nu = pool_mode=session max_user_connections=3\n[peers]\n2 = host=/tmp port=7\n"
    config = load(written(tmp_path, text), {}, {})
    assert (config.users["u"].pool_mode, config.users["u"].max_user_connections) == ("session", 3)
    assert (config.peers[2].host, config.peers[2].port, config.peers[2].pool_size) == ("/tmp", 7, None)


def test_a_file_of_the_ini_is_found_in_the_working_directory_first_then_beside_the_ini(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc, cwd = tmp_path / "etc", tmp_path / "cwd"
    etc.mkdir()
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    config = load(written(etc, SAMPLE), {}, {})
    assert beside(config, "userlist.txt") == "userlist.txt"
    (etc / "userlist.txt").touch()
    assert beside(config, "userlist.txt") == str(etc / "userlist.txt")
    (cwd / "userlist.txt").touch()
    assert beside(config, "userlist.txt") == "userlist.txt"


def test_an_unknown_environment_variable_is_a_warning_but_those_of_kubernetes_are_not() -> None:
    environ = {"PGPOOL_PROXY_LISTEN_PRT": "1", "PGPOOL_PROXY_SERVICE_HOST": "x", "PGPOOL_PROXY_PORT_6432_TCP": "x"}
    (warning,) = load(None, {}, environ).warnings
    assert "PGPOOL_PROXY_LISTEN_PRT" in warning
    assert "listen_port" in warning


def test_a_bad_value_of_environment_or_command_line_says_where_it_came_from() -> None:
    with pytest.raises(ConfigError, match="environment PGPOOL_PROXY_LISTEN_PORT: listen_port: expected a whole number"):
        load(None, {}, {"PGPOOL_PROXY_LISTEN_PORT": "x"})
    with pytest.raises(ConfigError, match="command line: listen_prt: unknown key"):
        load(None, {"listen_prt": "x"}, {})


def test_no_error_and_no_repr_shows_a_password(tmp_path: Path) -> None:
    for text in (
        "[pgbouncer]\n[databases]\na = password=sec ret\n",
        "[pgbouncer]\n[databases]\na = password=sec ret=1\n",
        "[pgbouncer]\n[databases]\na = password='sec ret\n",
        "[pgbouncer]\n[databases]\na = host=x password=secret ='ret'\n",
    ):
        assert "ret" not in str(failure(tmp_path, text)).replace(str(tmp_path), "")
    text = (
        "[pgbouncer]\nauth_ldap_options=ldapbindpasswd=hunter2\n[databases]\na = password=hunter2 user=u\n"
        "* = password=hunter2 user=u\n"
    )
    config = load(written(tmp_path, text), {}, {})
    shown = repr(config) + repr(config.settings) + str(config.settings) + repr(config.databases) + repr(config.autodb)
    assert "hunter2" not in shown
    assert "auth_ldap_options" in shown
