"""Who wins where user, database and [pgbouncer] each say something."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgpool_proxy.settings import Config, DatabaseEntry, Settings, UserEntry, resolve

Resolver = Callable[[Config, DatabaseEntry, str], object]

THREE: list[tuple[Resolver, str, str, object, object, object]] = [
    (resolve.pool_mode, "pool_mode", "pool_mode", "statement", "transaction", "session"),
    (resolve.session_state, "session_state", "session_state", "ignore", "pin", "reset"),
    (resolve.pool_size, "pool_size", "default_pool_size", 0, 0, 20),
    (resolve.reserve_pool_size, "reserve_pool_size", "reserve_pool_size", 0, 0, 7),
    (resolve.query_wait_timeout, "query_wait_timeout", "query_wait_timeout", 0.0, 0.0, 5.0),
]


@pytest.mark.parametrize(("function", "key", "main_key", "at_user", "at_database", "at_main"), THREE)
def test_user_beats_database_beats_main_and_zero_counts(
    function: Resolver, key: str, main_key: str, at_user: object, at_database: object, at_main: object
) -> None:
    user = UserEntry("u", **{key: at_user})  # type: ignore[arg-type]
    database = DatabaseEntry("d", **{key: at_database})  # type: ignore[arg-type]
    config = Config(settings=Settings().model_copy(update={main_key: at_main}), users={"u": user})
    assert function(config, database, "u") == at_user
    assert function(config, database, "other") == at_database
    assert function(config, DatabaseEntry("d"), "other") == at_main


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (resolve.max_db_connections, "max_db_connections"),
        (resolve.max_db_client_connections, "max_db_client_connections"),
        (resolve.server_lifetime, "server_lifetime"),
    ],
)
def test_a_database_beats_main_but_its_zero_says_nothing(function: Callable[[Config, DatabaseEntry], float], key: str) -> None:
    config = Config(settings=Settings().model_copy(update={key: 9}))
    for value, expected in ((5, 5), (0, 9), (None, 9)):
        assert function(config, DatabaseEntry("d", **{key: value})) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (resolve.max_user_connections, "max_user_connections"),
        (resolve.max_user_client_connections, "max_user_client_connections"),
        (resolve.query_timeout, "query_timeout"),
        (resolve.idle_transaction_timeout, "idle_transaction_timeout"),
        (resolve.transaction_timeout, "transaction_timeout"),
        (resolve.client_idle_timeout, "client_idle_timeout"),
    ],
)
def test_a_user_beats_main_but_its_zero_says_nothing(function: Callable[[Config, str], float], key: str) -> None:
    for value, expected in ((5, 5), (0, 9), (None, 9)):
        users = {"u": UserEntry("u", **{key: value})}  # type: ignore[arg-type]
        config = Config(settings=Settings().model_copy(update={key: 9}), users=users)
        assert function(config, "u") == expected
        assert function(config, "other") == 9


def test_min_pool_size_zero_at_the_database_counts() -> None:
    config = Config(settings=Settings(min_pool_size=4))
    assert resolve.min_pool_size(config, DatabaseEntry("d", min_pool_size=0)) == 0
    assert resolve.min_pool_size(config, DatabaseEntry("d")) == 4


def test_the_forced_user_is_the_pools_user() -> None:
    assert resolve.pool_user(DatabaseEntry("d", user="f"), "u") == "f"
    assert resolve.pool_user(DatabaseEntry("d"), "u") == "u"


def test_no_host_means_the_unix_socket_directory() -> None:
    assert resolve.hosts(Config(), DatabaseEntry("d")) == ("/tmp",)
    assert resolve.hosts(Config(), DatabaseEntry("d", hosts=("a",))) == ("a",)
    assert resolve.hosts(Config(settings=Settings(unix_socket_dir="")), DatabaseEntry("d")) == ()


def test_auth_query_of_the_database_comes_first() -> None:
    config = Config(settings=Settings(auth_user="g", auth_dbname="gd"))
    entry = DatabaseEntry("d", auth_user="a", auth_query="q", auth_dbname="ad")
    resolved = resolve.auth_user(config, entry), resolve.auth_query(config, entry), resolve.auth_dbname(config, entry)
    assert resolved == ("a", "q", "ad")
    assert resolve.auth_user(config, DatabaseEntry("d")) == "g"
    assert resolve.auth_dbname(config, DatabaseEntry("d")) == "gd"
    assert resolve.auth_dbname(Config(), DatabaseEntry("d")) == "d"
    assert resolve.auth_user(Config(), DatabaseEntry("d")) is None
