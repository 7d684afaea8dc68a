"""resolv.conf(5), as far as the resolver takes it."""

from __future__ import annotations

from pathlib import Path

from pgpool_proxy.net.dns import resolver_options


def test_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# ours\nnameserver 10.0.0.53 # the first\n nameserver ::1\ndomain example.org\nsearch a.example b.example\n"
        "options timeout:3 attempts:2 ndots:1 rotate edns0 timeout:x\nsortlist 10.0.0.0\nnameserver\n"
    )
    assert resolver_options(str(path)) == {
        "nameservers": ["10.0.0.53", "::1"],
        "domains": ["a.example", "b.example"],
        "timeout": 3,
        "tries": 2,
        "ndots": 1,
        "rotate": True,
    }


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert resolver_options(str(tmp_path / "missing")) == {}
