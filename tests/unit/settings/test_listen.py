"""listen_addr: addresses, with ports of their own or without."""

from __future__ import annotations

import pytest

from pgpool_proxy.settings.listen import listen_addresses
from pgpool_proxy.settings.model import parse_setting


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" , ", []),
        ("127.0.0.1", [("127.0.0.1", 6432)]),
        ("*", [("*", 6432)]),
        ("localhost, ::1 ,", [("localhost", 6432), ("::1", 6432)]),
        ("10.0.0.5:6433,db.internal:1", [("10.0.0.5", 6433), ("db.internal", 1)]),
        ("[fd00::5]:6433,[fd00::5]", [("fd00::5", 6433), ("fd00::5", 6432)]),
        ("*:6433,:6434", [("*", 6433), ("*", 6434)]),
        ("fd00::5:6433", [("fd00::5:6433", 6432)]),  # an address of IPv6: with a port it stands in brackets
    ],
)
def test_an_address_may_have_a_port(text: str, found: list[tuple[str, int]]) -> None:
    assert listen_addresses(text, 6432) == found
    assert parse_setting("listen_addr", text) == text


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.0.0.1,[::1]:65536"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a port from 1 to 65535"):
        parse_setting("listen_addr", text)
