from __future__ import annotations

import pytest

from pgpool_proxy.auth.secret import Secret
from pgpool_proxy.auth.userlist import format_entry, parse_userlist
from pgpool_proxy.errors import ConfigError


def test_users_are_read_with_their_secrets():
    users, problems = parse_userlist('"alice" "secret"\n"bob" "md5' + "0" * 32 + '"\n')
    assert problems == []
    assert users == {"alice": Secret.of("secret"), "bob": Secret.of("md5" + "0" * 32)}


def test_the_rest_of_a_line_is_ignored():
    users, problems = parse_userlist('"alice" "secret" "autodb" and more\n"bob" "x" ; comment')
    assert problems == []
    assert list(users) == ["alice", "bob"]


def test_doubled_quotation_marks_stand_for_one():
    users, _ = parse_userlist('"a""b" """"\n"""" "x"\n')
    assert users == {'a"b': Secret.of('"'), '"': Secret.of("x")}


def test_comments_blank_lines_and_blanks_before_a_name_are_skipped():
    users, problems = parse_userlist('; "not" "this"\n\n\t  "alice" "secret"\r\n  ; nor "this" "one"\n')
    assert problems == []
    assert list(users) == ["alice"]


def test_what_stands_between_name_and_password_does_not_matter():
    assert parse_userlist('"alice", "secret"')[0] == {"alice": Secret.of("secret")}
    assert parse_userlist('"alice""bob" "secret"')[0] == {'alice"bob': Secret.of("secret")}


def test_a_later_line_wins():
    assert parse_userlist('"alice" "one"\n"alice" "two"')[0] == {"alice": Secret.of("two")}


def test_a_user_with_an_empty_password_is_known():
    users, problems = parse_userlist('"alice" ""\n')
    assert problems == []
    assert users["alice"].is_empty


def test_strings_may_go_over_lines():
    assert parse_userlist('"alice" "two\nlines"\n"bob" "x"')[0] == {
        "alice": Secret.of("two\nlines"),
        "bob": Secret.of("x"),
    }


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ('"alice" "secret"\nbob "x"\n"carol" "y"', 2),
        ('"alice" "secret"\n"bob\n', 2),
        ('"alice" "secret"\n\n"bob" "x\n', 3),
        ('"alice" "secret"\n"bob"\n"carol" "y"\n', 2),
        ('"alice" "secret"\n# bob', 2),
        ('"alice" "secret"\n"' + "b" * 128 + '" "x"', 2),
        ('"alice" "secret"\n"bob" "' + "x" * 65531 + '"', 2),
        ('"alice" "secret"\n"b\0b" "x"', 2),
        ('"alice" "secret"\n\u00a0"bob" "x"', 2),
    ],
)
def test_a_syntax_error_ends_the_reading(broken, line):
    users, problems = parse_userlist(broken, "users.txt")
    assert list(users) == ["alice"]
    assert len(problems) == 1
    assert isinstance(problems[0], ConfigError)
    assert (problems[0].file, problems[0].line) == ("users.txt", line)
    assert "secret" not in str(problems[0])


def test_the_next_users_name_is_never_a_password():
    users, _ = parse_userlist('"bob"\n"carol" "y"\n')
    assert "bob" not in users


def test_an_entry_reads_back_as_it_was_written():
    line = format_entry('a"b', Secret.of('p"w'))
    assert line == '"a""b" "p""w"\n'
    assert parse_userlist(line) == ({'a"b': Secret.of('p"w')}, [])


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a" * 128, "x"), ("a\0", "x"), ("a", "x\0"), ("a", "x" * 65531)])
def test_what_the_file_cannot_hold_is_not_written(user, password):
    with pytest.raises(ConfigError):
        format_entry(user, password)
