from __future__ import annotations

import pytest

from pgpool_proxy.auth.regex import compile_pattern
from pgpool_proxy.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("^app", "app_1"),
        ("_ro$", "app_ro"),
        ("^(a|b)$", "b"),
        (r"^\d+$", "42"),
        ("^[[:alpha:]]+$", "alice"),
        ("^[[:alnum:]_-]+$", "a-1_b"),
        ("^[]x]+$", "]x"),
        ("^[^]]+$", "abc"),
        ("[[]", "["),
        (r"^[\d\]]+$", "1]"),
        ("^a{2,3}$", "aaa"),
        ("^(?:x|y)z$", "yz"),
        ("(?i)^ALICE$", "alice"),
        (r"\mapp\M", "my app here"),
        (r"a\.b\@c", "a.b@c"),
        ("^a.b$", "a\nb"),
        ("[&|~-]", "~"),
        ("", "anything"),
    ],
)
def test_pattern_fits(pattern, name):
    assert compile_pattern(pattern).search(name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("^alice$", "alice\n"),  # Python's own $ would let this pass
        ("^alice$", "bob\nalice"),
        (r"^\d+$", "٤٢"),
        (r"^\w+$", "é"),
        ("^[[:alpha:]]+$", "a1"),
        ("^[^a-c]$", "b"),
        (r"\mapp\M", "myapp"),
        ("^a.b$", "axxb"),
    ],
)
def test_pattern_does_not_fit(pattern, name):
    assert not compile_pattern(pattern).search(name)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "*",
        "[",
        "[]",
        "[a",
        "[[:alpha:]",
        "[[:nonsense:]]",
        "[[.a.]]",
        "[[=a=]]",
        "[z-a]",
        "[+--]",
        "a\\",
        "[a\\",
        r"\b",
        r"\x41",
        r"[\x41]",
        r"\9",
        "***=a",
        "(?#comment)",
        "(?P<name>a)",
        "(?x)a b",
        "a(?i)b",
        "a{3,2}",
        "a" * 1001,
        "(" * 500,
        "a{99999999999}",
    ],
)
def test_what_has_no_counterpart_is_refused(pattern):
    with pytest.raises(ConfigError):
        compile_pattern(pattern)
