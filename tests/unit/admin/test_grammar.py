"""grammar.py: what a statement looks like."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.admin.control import Refused
from pgpool_proxy.admin.grammar import Statement, parse


def read(text: str) -> tuple[str, str, str, float]:
    found = parse(text)
    return found.verb, found.argument, found.value, found.timeout_s


@pytest.mark.parametrize(
    ("text", "verb", "argument"),
    [
        ("SHOW POOLS", "SHOW", "POOLS"),
        ("show pools;", "SHOW", "pools"),
        ("  \t\r\n show\npools ; \n", "SHOW", "pools"),
        ("PAUSE", "PAUSE", ""),
        ("pause MyDb", "PAUSE", "MyDb"),
        ('pause "my db"', "PAUSE", "my db"),
        ('pause "a""b;=\'x"', "PAUSE", "a\"b;='x"),
        ("kill_client 17", "KILL_CLIENT", "17"),
        ("select version", "SELECT", "version"),
        ("pause timeout", "PAUSE", "timeout"),
        ("frobnicate x", "FROBNICATE", "x"),
    ],
)
def test_a_command_is_a_verb_and_an_argument(text: str, verb: str, argument: str) -> None:
    assert read(text) == (verb, argument, "", 0.0)


@pytest.mark.parametrize(
    ("text", "argument", "timeout_s"),
    [
        ("PAUSE app TIMEOUT 30", "app", 30.0),
        ("pause app timeout 1.5", "app", 1.5),
        ("PAUSE TIMEOUT 30;", "", 30.0),
        ("pause timeout timeout 3", "timeout", 3.0),
        ('pause "timeout" timeout 3', "timeout", 3.0),
    ],
)
def test_a_timeout_may_stand_at_the_end(text: str, argument: str, timeout_s: float) -> None:
    assert read(text) == ("PAUSE", argument, "", timeout_s)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("SET pool_mode = session", "pool_mode", "session"),
        ("set pool_mode=session;", "pool_mode", "session"),
        ("set pool_mode to session", "pool_mode", "session"),
        ("set x = 'it''s'", "x", "it's"),
        ("set x = ''", "x", ""),
        ('set "x" = "a b"', "x", "a b"),
        ("set server_lifetime = 1.5", "server_lifetime", "1.5"),
        ("set auth_file=/etc/a-b.txt", "auth_file", "/etc/a-b.txt"),
    ],
)
def test_set_takes_words_identifiers_strings_and_plain_values(text: str, key: str, value: str) -> None:
    assert read(text) == ("SET", key, value, 0.0)


@pytest.mark.parametrize("text", ["", " ", ";", " ; ;; "])
def test_nothing_is_a_statement_that_says_nothing(text: str) -> None:
    assert parse(text).verb == ""


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("BEGIN", "BEGIN"),
        ("begin transaction isolation level read committed;", "BEGIN"),
        ("START TRANSACTION READ ONLY", "BEGIN"),
        ("commit", "COMMIT"),
        ("END", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("abort work", "ROLLBACK"),
        ("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;", "RESET"),
        ("DISCARD ALL", "RESET"),
    ],
)
def test_what_drivers_say_unasked_is_understood(text: str, verb: str) -> None:
    assert parse(text).verb == verb


@pytest.mark.parametrize(
    "text",
    [
        "show pools; show clients",
        "show pools clients",
        "show 'pools'",
        'pause "my db',
        "set x = 'open",
        "set x = ",
        "set x",
        "set = 3",
        "set x 3 4",
        "set x = a b",
        "set x = ;",
        "pause my-db",
        "(",
        "\x00",
        "pause timeout x y",
        "=",
        "discard all; show pools",
    ],
)
def test_everything_else_is_refused_in_pgbouncers_words(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(text)
    assert caught.value.report.message == f"invalid command '{text}', use SHOW HELP;"
    assert caught.value.report.sqlstate == "08P01"
    assert caught.value.report.severity == "ERROR"


def test_the_log_does_not_repeat_what_was_refused() -> None:
    with pytest.raises(Refused) as caught:
        parse("set auth_ldap_options 'password=secret'")
    assert "secret" not in caught.value.logged.message


@pytest.mark.parametrize("seconds", ["0", "1000001", "'-1'", "nan", "x"])
def test_a_timeout_is_a_positive_number(seconds: str) -> None:
    with pytest.raises(Refused):
        parse(f"pause app timeout {seconds}")


@pytest.mark.parametrize("text", ["pause " + "x" * 128, "set " + "k" * 128 + " = 1", 'set "" = 1'])
def test_names_have_a_bound(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(text)
    assert caught.value.report.message == "bad arguments"


def test_a_long_wrong_statement_is_repeated_in_part() -> None:
    with pytest.raises(Refused) as caught:
        parse("x " * 10_000)
    assert len(caught.value.report.message) < 1100


@pytest.mark.parametrize(
    "text",
    [
        '"' + "a" * 60_000, "'" * 60_001, '""' * 30_000 + '"', " " * 60_000 + "(", ";" * 60_000, "= " * 30_000, "x;" * 30_000,
        "begin " * 10_000,
    ],
)  # fmt: skip
def test_no_statement_takes_long_to_refuse(text: str) -> None:
    start = time.thread_time()
    try:
        parse(text)
    except Refused:
        pass
    assert time.thread_time() - start < 0.5


@given(st.text(max_size=60))
def test_any_text_is_a_statement_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except Refused:
        return
    assert isinstance(found, Statement)
