"""HBA and ident files: any text is read without an exception, and no line comes out of a broken one."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.auth.channel_binding import tls_server_end_point
from pgpool_proxy.auth.hba import METHODS, TYPES, parse_hba
from pgpool_proxy.auth.ident import parse_ident
from pgpool_proxy.auth.regex import compile_pattern
from pgpool_proxy.errors import ConfigError

WORDS = """
local host hostssl all sameuser replication samehost samenet db alice trust md5 cert peer map=x include @f +g /^a$ /(
10.0.0.0/8 ::1/128 10.0.0.1 255.0.0.0 ::ffff:1.2.3.4/100 h.example.com .x 1.2.3
"""
MARKS = [" ", " ", " ", "\n", ",", '"', "#", "\\", "\0", "\r", "%", "\u00a0", "\\1", "m"]
PIECES = st.sampled_from(WORDS.split() + MARKS)
FILES = st.lists(PIECES, max_size=24).map("".join) | st.lists(PIECES, max_size=24).map(" ".join) | st.text(max_size=60)
NAMES = st.sampled_from(["db", "alice", "all", "", "\n", "\0", "é"]) | st.text(max_size=8)
ADDRESSES = st.none() | st.ip_addresses().map(str) | st.text(max_size=12)
PATTERNS = st.text(st.sampled_from(r"ab[]^$\-*+?{}()|.:=!<dwsmM1,&~# "), max_size=14) | st.text(max_size=14)


@given(FILES, FILES, NAMES, NAMES, ADDRESSES, st.booleans(), st.booleans(), st.booleans())
def test_any_hba_text_is_read_and_matched(text, other, database, user, address, local, tls, replication):
    rules = parse_hba(text, "hba", lambda path: other, lambda path: ["a.conf", "b.conf"])
    assert all(rule.method in METHODS and rule.conn_type in TYPES for rule in rules.rules)
    assert all(problem.line >= 1 for problem in rules.problems)
    found = rules.match("local" if local else "host", database, user, address, tls, replication, lambda name: [name])
    assert found is None or found in rules.rules


@given(FILES, FILES, NAMES, NAMES)
def test_any_ident_text_is_read_and_matched(text, other, system_user, user):
    maps = parse_ident(text, "ident", lambda path: other)
    for map_name in ("m", "all", ""):
        assert maps.match(map_name, system_user, user) in {True, False}


@given(PATTERNS, NAMES)
def test_any_pattern_is_compiled_or_refused(pattern, name):
    try:
        compiled = compile_pattern(pattern)
    except ConfigError:
        return
    compiled.search(name)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_networks_match_as_ipaddress_says(address, bits, peer):
    bits = min(bits, address.max_prefixlen)
    network = ipaddress.ip_network((address, bits), strict=False)
    rules = parse_hba(f"host all all {network} trust")
    assert rules.problems == []
    if getattr(peer, "ipv4_mapped", None) is None and getattr(network.network_address, "ipv4_mapped", None) is None:
        assert (rules.match("host", "d", "u", str(peer), False) is not None) == (peer in network)


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda t: not set(t) & set("\0\n\\")), min_size=1, max_size=5))
def test_quoted_names_mean_themselves(names):
    quoted = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    plain = [name for name in names if not name.startswith("/")]
    rules = parse_hba(f"host {quoted} all all trust")
    if plain == names:
        assert rules.problems == []
        assert rules.rules[0].databases.names == frozenset(names)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"\x30\x82\x01\x00\x30\x03\x02\x01\x00\x30" + tail))
def test_any_bytes_are_asked_for_their_signature(data):
    tls_server_end_point(data)
