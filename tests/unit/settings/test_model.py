"""The list of settings: names, defaults and how SHOW CONFIG prints them."""

from __future__ import annotations

import pytest

from pgpool_proxy.settings import KEYS, Settings, config_rows
from pgpool_proxy.settings.keys import Flag, Seconds, Whole, Word, strtol
from pgpool_proxy.settings.model import read_settings

ROWS = {name: (value, default, changeable) for name, value, default, changeable in config_rows(Settings())}


def test_all_hundred_keys_of_pgbouncer_are_there() -> None:
    assert sum(not key.own for key in KEYS.values()) == 100


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("unix_socket_mode", ("511", "0777", "no")),
        ("verbose", ("0", None, "yes")),
        ("auth_file", (None, None, "yes")),
        ("auth_hba_file", ("", "", "yes")),
        ("query_wait_timeout", ("120", "120", "yes")),
        ("pool_mode", ("session", "session", "yes")),
        ("log_connections", ("1", "1", "yes")),
        ("max_packet_size", ("2147483647", "2147483647", "yes")),
        ("server_check_query", ("<empty>", "<empty>", "yes")),
        ("track_extra_parameters", ("IntervalStyle", "IntervalStyle", "no")),
    ],
)
def test_show_config_prints_as_pgbouncer_does(name: str, row: tuple[str | None, str | None, str]) -> None:
    assert ROWS[name] == row


def test_show_config_is_in_alphabetical_order() -> None:
    names = [row[0] for row in config_rows(Settings())]
    assert names == sorted(names)


def test_the_keys_that_need_a_restart_are_pgbouncers() -> None:
    expected = (
        "disable_pqexec job_name listen_addr listen_backlog listen_port pidfile pkt_buf resolv_conf so_reuseport "
        "track_extra_parameters unix_socket_dir unix_socket_group unix_socket_mode user"
    )
    assert [name for name, key in KEYS.items() if not key.changeable and not key.own] == expected.split()


def test_the_keys_whose_default_is_null_are_pgbouncers() -> None:
    expected = (
        "auth_dbname auth_file auth_ident_file auth_ldap_options auth_user client_tls13_ciphers conffile "
        "server_tls13_ciphers user verbose"
    )
    assert [name for name, key in KEYS.items() if key.unset] == expected.split()


def test_every_default_is_a_value_that_its_key_reads() -> None:
    for name, key in KEYS.items():
        default = Settings.model_fields[name].default
        if default is not None:
            shown = key.show(default)
            assert shown is not None
            assert key.parse(shown) == default


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("10", 10), ("010", 8), ("0x10", 16), ("0XfF", 255), ("-3", -3), ("+3", 3), ("0777", 511)],
)
def test_whole_numbers_are_read_as_strtol_does(text: str, number: int) -> None:
    assert strtol(text) == number


@pytest.mark.parametrize("text", ["", " ", "08", "0x", "1a", "1 2", "1.0", "1e3", "1_000", "--1", "\u0661"])
def test_what_strtol_does_not_read_whole_is_no_number(text: str) -> None:
    assert strtol(text) is None


@pytest.mark.parametrize("text", ["1", "on", "TRUE", "yes", "2", "on # really", "0x1", "true ;"])
def test_a_boolean_is_on(text: str) -> None:
    assert Flag("").parse(text) is True


@pytest.mark.parametrize("text", ["0", "off", "False", "no", "0 ; not now", "00"])
def test_a_boolean_is_off(text: str) -> None:
    assert Flag("").parse(text) is False


@pytest.mark.parametrize(("text", "value"), [("5", 5.0), ("0.25", 0.25), (".5", 0.5), ("1e2", 100.0), ("5\t# s", 5.0)])
def test_a_time_is_decimal_seconds(text: str, value: float) -> None:
    assert Seconds("").parse(text) == value


@pytest.mark.parametrize("text", ["", "-1", "5s", "nan", "inf", "0x10", "1e999", "1,5", ".", "5#", "5 6"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected seconds"):
        Seconds("").parse(text)


def test_a_comment_needs_a_blank_before_it() -> None:
    assert Whole("").parse("7 # seven") == 7
    with pytest.raises(ValueError, match="whole number"):
        Whole("").parse("7# seven")
    assert Word("", words=("a-b",)).parse("A-B ; both") == "a-b"


def test_free_text_keeps_what_looks_like_a_comment() -> None:
    assert read_settings({"server_reset_query": "DISCARD ALL # x"}, {}).server_reset_query == "DISCARD ALL # x"


def test_settings_cannot_be_changed_in_place_and_show_only_what_differs() -> None:
    settings = Settings(listen_port=1)
    with pytest.raises(ValueError, match="frozen"):
        settings.listen_port = 2
    assert repr(settings) == "Settings(listen_port=1)"
