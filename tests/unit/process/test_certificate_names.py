"""Which user a name of a certificate is for."""

from __future__ import annotations

import pytest

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.tls import certificate_names, protocol_versions
from pgpool_proxy.process.logins import matches


@pytest.mark.parametrize(
    ("name", "user", "fits"),
    [
        ("alice", "alice", True),
        ("alice", "Alice", False),
        ("alice", "alic", False),
        ("", "", False),
        ("alice\0.example.com", "alice", False),
        ("alice\0", "alice\0", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "example.com", False),
        ("*.com", "example.com", False),
        ("*", "alice", False),
        ("a*.example.com", "ab.example.com", False),
        ("*.example.com", "*.example.com", True),
    ],
)
def test_a_name_is_for_one_user_and_a_wildcard_for_one_label(name: str, user: str, fits: bool) -> None:
    assert matches(name, user) is fits


def test_the_common_name_comes_first_and_only_the_first_one_counts() -> None:
    shown = {
        "subject": ((("organizationName", "x"),), (("commonName", "alice"),), (("commonName", "bob"),)),
        "subjectAltName": (("DNS", "carol"), ("email", "dave@example.com"), ("IP Address", "10.0.0.1")),
    }
    assert certificate_names(shown) == ["alice", "carol"]
    assert certificate_names({"subjectAltName": (("DNS", "carol"),)}) == ["", "carol"]
    assert certificate_names(None) == []
    assert certificate_names({}) == []


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("secure", {"tlsv1.2", "tlsv1.3"}),
        ("all", {"tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"}),
        ("tlsv1.3", {"tlsv1.3"}),
        ("TLSv1.2, tlsv1.3", {"tlsv1.2", "tlsv1.3"}),
        ("all:!tlsv1.0:!tlsv1.1", {"tlsv1.2", "tlsv1.3"}),
    ],
)
def test_protocol_lists(text: str, versions: set[str]) -> None:
    assert protocol_versions(text, "key") == versions


@pytest.mark.parametrize("text", ["", "sslv3", "all,!all", "tlsv1.2 tlsv1.3"])
def test_protocol_lists_that_say_nothing(text: str) -> None:
    with pytest.raises(ConfigError):
        protocol_versions(text, "key")
