"""The ini format, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.ini import MAX_INCLUDE_DEPTH, pairs, parse_ini, read_ini


def parsed(text: str) -> list[tuple[str, str | None, str, int]]:
    return [(entry.section, entry.key, entry.value, entry.line) for entry in parse_ini(text)]


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("a=b", "a", "b"),
        ("  a \t=\t b c \r", "a", "b c"),
        ("a =", "a", ""),
        ("a = b = c", "a", "b = c"),
        ("a = b ; c # d", "a", "b ; c # d"),
        ("A_b.c-d* = 1", "A_b.c-d*", "1"),
        ("'my db' = x", "my db", "x"),
        ("'a;b' = x", "a;b", "x"),
        ("* = host=x", "*", "host=x"),
    ],
)
def test_a_line_is_a_key_and_the_rest_of_the_line(line: str, key: str, value: str) -> None:
    assert parsed("[s]\n" + line) == [("s", None, "", 1), ("s", key, value, 2)]


@pytest.mark.parametrize("line", ["", "   ", "; x = y", "  # x = y", ";[t]", "#%include x"])
def test_comments_and_empty_lines_are_nothing(line: str) -> None:
    assert parsed(f"[s]\n{line}\n") == [("s", None, "", 1)]


def test_a_section_may_share_its_line() -> None:
    assert parsed("[a] x = 1") == [("a", None, "", 1), ("a", "x", "1", 1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[s", "[section]"),
        ("x", "key = value"),
        ("a b = c", "single quotes"),
        ('"a" = c', "not double ones"),
        ("'a = c", "single quotes"),
        ("'' = c", "single quotes"),
        ("= c", "key = value"),
        ("é = c", "key = value"),
        ("%includex y", "key = value"),
    ],
)
def test_a_line_that_is_nothing_of_this_names_its_number(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(f"[s]\n\n{line}")
    assert caught.value.line == 3
    assert words in str(caught.value)


def test_include_goes_on_in_the_section_and_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "main.ini").write_text("[a]\nx=1\n  %include more.ini \ny=2\n")
    (tmp_path / "more.ini").write_text("z=3\n[b]\n")
    monkeypatch.chdir(tmp_path)
    found = [(e.section, e.key, e.file, e.line) for e in read_ini("etc/main.ini") if e.key is not None]
    assert found == [("a", "x", "etc/main.ini", 2), ("a", "z", "more.ini", 1), ("b", "y", "etc/main.ini", 4)]


def test_an_include_that_cannot_be_read_is_named_at_the_line_that_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[a]\n%include /nowhere.ini\n")
    with pytest.raises(ConfigError, match=r'a\.ini:2: could not read "/nowhere\.ini": No such file'):
        list(read_ini(str(path)))


def test_includes_are_at_most_ten_deep(tmp_path: Path) -> None:
    for depth in range(MAX_INCLUDE_DEPTH + 1):
        (tmp_path / f"{depth}").write_text(f"[s]\n%include {tmp_path}/{depth + 1}\n")
    (tmp_path / f"{MAX_INCLUDE_DEPTH}").write_text("[s]\nx=1\n")
    assert [e.value for e in read_ini(str(tmp_path / "0")) if e.key == "x"] == ["1"]
    (tmp_path / "self").write_text(f"%include {tmp_path}/self\n")
    with pytest.raises(ConfigError, match="deeper than 10"):
        list(read_ini(str(tmp_path / "self")))


def test_a_zero_byte_is_refused_and_other_bytes_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes(b"\xef\xbb\xbf[a]\nx=\xff\xc3\xa9\n")
    assert [e.value.encode("utf-8", "surrogateescape") for e in read_ini(str(path))][1] == b"\xff\xc3\xa9"
    path.write_bytes(b"[a]\nx=\0\n")
    with pytest.raises(ConfigError, match=":2: a zero byte"):
        list(read_ini(str(path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("a=b", [("a", "b")]),
        (" a = b  c=d ", [("a", "b"), ("c", "d")]),
        ("a='b c' d='it''s' e=''''", [("a", "b c"), ("d", "it's"), ("e", "'")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=b'c", [("a", "b'c")]),
        ("a='b'c=d", [("a", "b"), ("c", "d")]),
    ],
)
def test_a_connection_string_is_pairs(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text) == expected


@pytest.mark.parametrize("text", ["a", "a=", "a= ", "a=''", "a='b", "a=b c", "=b", "a=b =c", "a='b''"])
def test_a_broken_connection_string_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected key=value|no value|is empty|not closed"):
        pairs(text)
