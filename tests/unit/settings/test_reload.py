"""What RELOAD and SET change, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import Config, load, reload


def config_of(tmp_path: Path, main: str, rest: str = "") -> Config:
    path = tmp_path / "a.ini"
    path.write_text(f"[pgbouncer]\n{main}\n{rest}\n")
    return load(str(path), {}, {})


def test_an_unchanged_file_changes_nothing(tmp_path: Path) -> None:
    text = ("listen_port=7\nauth_user=x", "[databases]\na=host=x\n*=host=y\n[users]\nu=pool_size=1\n[peers]\n1=host=z")
    plan = reload.plan(config_of(tmp_path, *text), config_of(tmp_path, *text))
    assert plan.settings_changed == frozenset()
    assert plan.databases_added + plan.databases_changed + plan.databases_removed + plan.close_needed == ()
    assert (plan.autodb_changed, plan.users_changed, plan.peers_changed, plan.auth_file_changed) == (
        False,
        (),
        (),
        False,
    )


def test_a_setting_that_needs_a_restart_keeps_its_value_silently(tmp_path: Path) -> None:
    plan = reload.plan(config_of(tmp_path, "listen_port=1\nverbose=1"), config_of(tmp_path, "listen_port=2\nverbose=2"))
    assert plan.config.settings.listen_port == 1
    assert plan.config.settings.verbose == 2
    assert plan.settings_changed == {"verbose"}


def test_a_setting_that_left_the_file_falls_back_to_its_default_but_one_without_default_stays(tmp_path: Path) -> None:
    old = config_of(tmp_path, "max_client_conn=7\nauth_user=me\nverbose=1")
    plan = reload.plan(old, config_of(tmp_path, ""))
    assert (plan.config.settings.max_client_conn, plan.config.settings.auth_user) == (100, "me")
    assert plan.config.settings.verbose == 1
    assert reload.plan(old, config_of(tmp_path, "verbose=0")).config.settings.verbose == 0


def test_reload_undoes_set_but_not_of_a_key_without_default(tmp_path: Path) -> None:
    old = config_of(tmp_path, "pool_mode=transaction")
    changed = reload.set_value(reload.set_value(old, "pool_mode", "Statement"), "auth_user", "me")
    assert (changed.settings.pool_mode, changed.settings.auth_user) == ("statement", "me")
    after = reload.plan(changed, config_of(tmp_path, "pool_mode=transaction")).config.settings
    assert (after.pool_mode, after.auth_user) == ("transaction", "me")


@pytest.mark.parametrize(
    ("new", "close"),
    [
        ("host=y", True),
        ("host=x port=1", True),
        ("host=x user=u", True),
        ("host=x dbname=b", True),
        ("host=x connect_query='select 1'", True),
        ("host=x auth_dbname=b", True),
        ("host=x auth_query='select 1'", True),
        ("host=x load_balance_hosts=disable", True),
        ("host=x pool_size=3", False),
        ("host=x pool_mode=session", False),
        ("host=x password=other", False),
    ],
)
def test_servers_are_obsolete_when_the_database_leads_elsewhere(tmp_path: Path, new: str, close: bool) -> None:
    old = config_of(tmp_path, "", "[databases]\na = host=x")
    plan = reload.plan(old, config_of(tmp_path, "", f"[databases]\na = {new}"))
    assert plan.databases_changed == ("a",)
    assert plan.close_needed == (("a",) if close else ())


def test_databases_users_and_peers_that_come_and_go_are_named(tmp_path: Path) -> None:
    old = config_of(tmp_path, "", "[databases]\na=host=x\nb=host=x\n[users]\nu=pool_size=1\n[peers]\n1=host=x")
    new = config_of(tmp_path, "", "[databases]\nb=host=x\nc=host=x\n*=host=x\n[users]\nv=pool_size=1\n[peers]\n2=host=x")
    plan = reload.plan(old, new)
    assert (plan.databases_added, plan.databases_removed, plan.databases_changed) == (("c",), ("a",), ())
    assert (plan.users_changed, plan.peers_changed, plan.autodb_changed) == (("u", "v"), (1, 2), True)


def test_auth_file_is_read_again_only_when_its_stat_changed(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text('"a" "b"\n')
    old = config_of(tmp_path, f"auth_file={users}")
    assert not reload.plan(old, config_of(tmp_path, f"auth_file={users}")).auth_file_changed
    users.write_text('"a" "bc"\n')
    assert reload.plan(old, config_of(tmp_path, f"auth_file={users}")).auth_file_changed
    assert reload.plan(old, config_of(tmp_path, "")).config.settings.auth_file == str(users)
    assert reload.plan(old, config_of(tmp_path, f"auth_file={users}2")).auth_file_changed


def test_tls_changes_are_told_apart(tmp_path: Path) -> None:
    old = config_of(tmp_path, "")
    plan = reload.plan(old, config_of(tmp_path, "server_tls_sslmode=require"))
    assert (plan.server_tls_changed, plan.client_tls_changed) == (True, False)
    plan = reload.plan(old, config_of(tmp_path, "client_tls13_ciphers=x"))
    assert (plan.server_tls_changed, plan.client_tls_changed) == (False, True)


def test_set_refuses_unknown_keys_and_bad_values_and_ignores_keys_that_need_a_restart(tmp_path: Path) -> None:
    config = config_of(tmp_path, "")
    with pytest.raises(ConfigError, match='unknown key "pol_mode", did you mean "pool_mode"'):
        reload.set_value(config, "pol_mode", "session")
    with pytest.raises(ConfigError, match="pool_mode: expected one of session"):
        reload.set_value(config, "pool_mode", "x")
    assert reload.set_value(config, "listen_port", "nonsense") is config


def test_set_conffile_decides_what_the_next_reload_reads(tmp_path: Path) -> None:
    config = config_of(tmp_path, "")
    assert config.settings.conffile == config.path
    assert reload.set_value(config, "conffile", "/other").settings.conffile == "/other"
