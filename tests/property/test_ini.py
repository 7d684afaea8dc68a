"""Any text is either read or refused by name of the line; what is written by the rules reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import KEYS, load
from pgpool_proxy.settings.ini import pairs, parse_ini, quoted
from pgpool_proxy.settings.keys import Whole, strtol
from pgpool_proxy.settings.url import read_url

NAMES = st.text("abcXYZ019_.*-", min_size=1, max_size=10)
QUOTED_NAMES = st.text(st.characters(exclude_characters="'\n", exclude_categories=["Cs"]), min_size=1, max_size=10)
VALUES = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=30)
NOISE = st.text(st.sampled_from("[]=;#%' \t\r\nab\\*include"), max_size=80)


@given(st.text(max_size=200) | NOISE)
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        for entry in parse_ini(text):
            assert 1 <= entry.line <= text.count("\n") + 1
    except ConfigError as exc:
        assert 1 <= exc.line <= text.count("\n") + 1  # noqa: PT017 - either way is fine


@given(st.lists(st.tuples(QUOTED_NAMES, VALUES), max_size=8))
def test_entries_read_back_as_they_were_written(items: list[tuple[str, str]]) -> None:
    text = "[s]\n" + "".join(f"'{name}' = {value}\n" for name, value in items)
    found = [(entry.key, entry.value) for entry in parse_ini(text) if entry.key is not None]
    assert found == [(name, value.strip(" \t\r\v\f")) for name, value in items]


@given(st.lists(st.tuples(NAMES, VALUES.filter(bool)), max_size=8))
def test_pairs_read_back_as_they_were_quoted(items: list[tuple[str, str]]) -> None:
    assert pairs(" ".join(f"{name}={quoted(value)}" for name, value in items)) == items


@given(st.text(max_size=60) | NOISE)
def test_any_connection_string_is_read_or_refused(text: str) -> None:
    try:
        for name, value in pairs(text):
            assert name
            assert value
    except ValueError:
        pass


@given(st.integers(-(2**40), 2**40), st.sampled_from([str, hex, lambda n: f"{'-' if n < 0 else ''}0{abs(n):o}"]))
def test_whole_numbers_read_back_in_every_base(number: int, write: object) -> None:
    assert callable(write)
    assert strtol(write(number)) == number


@given(st.text(max_size=20), st.integers(-10, 10), st.integers(0, 10))
def test_a_whole_number_is_in_its_range_or_refused(text: str, low: int, span: int) -> None:
    key = Whole("", low=low, high=low + span)
    try:
        value = key.parse(text)
    except ValueError:
        return
    assert isinstance(value, int)
    assert low <= value <= low + span


@given(st.sampled_from(sorted(KEYS)), VALUES)
def test_any_value_of_any_key_is_read_and_shown_or_refused(name: str, text: str) -> None:
    try:
        value = KEYS[name].parse(text)
    except ValueError as exc:
        assert "expected" in str(exc)  # noqa: PT017 - either way is fine
        return
    shown = KEYS[name].show(value)
    assert shown is not None
    KEYS[name].parse(shown)


@given(NOISE | st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_file_loads_or_fails_with_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes(b"[pgbouncer]\n[databases]\n" + text.encode("utf-8", "replace"))
    try:
        load(str(path), {}, {})
    except ConfigError as exc:
        assert exc.file  # noqa: PT017 - either way is fine


@given(st.text(st.sampled_from("abc:/?@%=&[],.12"), max_size=40))
def test_no_url_ends_in_another_error_or_shows_its_password(rest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_url("DATABASE_URL", f"postgresql://u:hunter2hunter2@{rest}?nonsense=1&x", {})
    assert "hunter2" not in str(caught.value)
