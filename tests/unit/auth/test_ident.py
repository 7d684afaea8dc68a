from __future__ import annotations

import pytest

from pgpool_proxy.auth.ident import parse_ident


def lets(text, system_user, user, map_name="m"):
    maps = parse_ident(text, "pg_ident.conf")
    assert maps.problems == []
    return maps.match(map_name, system_user, user)


def test_a_line_lets_its_system_user_be_its_user():
    assert lets("m os alice", "os", "alice")
    assert not lets("m os alice", "os", "bob")
    assert not lets("m os alice", "other", "alice")
    assert not lets("other os alice", "os", "alice")


def test_one_system_user_may_be_many():
    text = "m os alice\nm os bob\n# comment\n\nm root all\n"
    assert lets(text, "os", "alice")
    assert lets(text, "os", "bob")
    assert not lets(text, "os", "carol")
    assert lets(text, "root", "anybody")


def test_without_a_map_the_names_must_be_the_same():
    assert lets("", "alice", "alice", map_name="")
    assert not lets("m alice bob", "alice", "bob", map_name="")


def test_a_map_that_is_not_there_lets_nobody_in():
    maps = parse_ident("m os alice")
    assert not maps.match("gone", "alice", "alice")
    assert maps.has("m")
    assert not maps.has("gone")


def test_quoted_all_is_a_user_of_that_name():
    assert not lets('m os "all"', "os", "alice")
    assert lets('m os "all"', "os", "all")


def test_patterns_of_system_users():
    text = r"m /^(.*)@example\.com$ \1"
    assert lets(text, "alice@example.com", "alice")
    assert not lets(text, "alice@example.com", "bob")
    assert not lets(text, "alice@example.com.evil.org", "alice")
    assert not lets(text, "alice@exampleXcom", "alice")


def test_patterns_of_users():
    assert lets("m os /^app_", "os", "app_1")
    assert not lets("m os /^app_", "os", "application")
    assert lets(r"m /^o /^app_\d$", "os", "app_1")


def test_caught_text_is_put_in_once_and_anywhere():
    assert lets(r"m /^(.*)@x$ pre_\1_post", "alice@x", "pre_alice_post")
    assert lets(r"m /^(.*)@x$ \1\1", "a@x", r"a\1")


@pytest.mark.parametrize(
    ("system_user", "user"),
    [
        ("all@example.com", "alice"),  # `all` from outside is a name
        ("/@example.com", "alice"),  # so is a pattern
        ("/.*@example.com", "postgres"),
        ("+admins@example.com", "alice"),
        ("alice@example.com\n", "alice"),
        ("mallory@evil.org\nalice@example.com", "alice"),
        ("alice@example.com\0.evil.org", "alice"),
        ("\0alice@example.com", "alice"),
        ("alice\0@example.com", "alice"),
        ("", ""),
        ("", "alice"),
    ],
)
def test_a_name_from_outside_cannot_say_more_than_itself(system_user, user):
    assert not lets(r"m /^([^\n]*)@example\.com$ \1", system_user, user)
    assert not lets("", system_user, user, map_name="")


def test_dot_takes_newlines_as_postgresql_does_but_the_user_then_has_one_too():
    assert not lets(r"m /^(.*)@example\.com$ \1", "x\nalice@example.com", "alice")


def test_parentheses_that_caught_nothing_end_the_search():
    text = r"m /^(?:(a)|b)$ x\1" + "\nm b alice"
    assert lets(text, "a", "xa")
    assert not lets(text, "b", "alice")


def test_backslash_one_beside_a_plain_name_is_text():
    assert lets(r"m os \1", "os", r"\1")


@pytest.mark.parametrize(
    "text",
    [
        "m",
        "m os",
        "m os alice extra",
        "m os,ot alice",
        "m os alice,bob",
        "m os +admins",
        "m /( alice",
        "m os /(",
        r"m /^x$ \1",
        'm "os alice',
        "include gone",
    ],
)
def test_a_broken_line_is_left_out_and_named(text):
    maps = parse_ident("m first one\n" + text + "\nm last one\n", "pg_ident.conf")
    assert [(problem.file, problem.line) for problem in maps.problems] == [("pg_ident.conf", 2)]
    assert [line.system_user.text for line in maps.lines] == ["first", "last"]


def test_files_are_included():
    maps = parse_ident("include more", "etc/ident", {"etc/more": "m os alice"}.__getitem__)
    assert maps.match("m", "os", "alice")
    assert repr(maps) == "<IdentMaps lines=1 problems=0>"
