"""Whatever a peer sends, auth answers with a step or with AuthenticationFailed, and accepts nobody by accident."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgpool_proxy.auth import scram, scram_messages
from pgpool_proxy.auth.exchange import (
    Accepted,
    Challenge,
    ClientExchange,
    Derive,
    Reply,
    Secret,
    ServerExchange,
    Wait,
    server_exchange,
)
from pgpool_proxy.auth.saslprep import saslprep
from pgpool_proxy.errors import AuthenticationFailed

SALT = b"0123456789abcdef"
STORED = {
    "plain": Secret.of("secret"),
    "md5": Secret.of("md5" + "0" * 32),
    "scram": Secret.of_scram(scram.new_secret(b"secret", SALT, 16)),
    "none": None,
}
PROOF = base64.b64encode(bytes(32))

# Pieces of real messages: put together at random they reach further into a parser than random bytes do.
WORDS = b"SCRAM-SHA-256 -PLUS n,, y,, p=tls-server-end-point,, n= , r= abc c=biws c= e=x s=AAEC i=4096 i= m= a= =".split()
PIECES = st.sampled_from([*WORDS, b"\0", b"\0\0\0\x0b", b"p=" + PROOF, b"v=" + PROOF, b"\xff", b"999999999999", b"x" * 600])
BROKEN = st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=14).map(b"".join))


def server(method: str, kind: str, binding: bytes | None, known: bool = True) -> ServerExchange:
    return server_exchange(
        method,
        "alice",
        STORED[kind],
        known,
        salt=lambda: b"salt",
        nonce=lambda: bytes(18),
        process_secret=b"p" * 32,
        scram_iterations=16,
        channel_binding=binding,
    )


@pytest.mark.parametrize(
    "parse",
    [
        scram_messages.parse_client_first,
        scram_messages.parse_client_final,
        scram_messages.parse_server_first,
        scram_messages.parse_server_final,
        scram_messages.parse_initial_response,
        scram_messages.parse_mechanisms,
    ],
)
@given(data=BROKEN)
def test_a_parser_raises_nothing_but_the_documented_error(parse, data):
    try:
        parse(data)
    except AuthenticationFailed:
        pass


@settings(deadline=None)
@given(
    method=st.sampled_from(["plain", "md5", "scram-sha-256"]),
    kind=st.sampled_from(sorted(STORED)),
    binding=st.sampled_from([None, bytes(32)]),
    messages=st.lists(BROKEN, max_size=4),
)
def test_a_hostile_client_is_never_accepted(method, kind, binding, messages):
    exchange = server(method, kind, binding)
    exchange.start()
    for message in messages:
        if message == b"secret\0":
            continue
        try:
            step = exchange.receive(message)
            if isinstance(step, Derive):
                step = exchange.derived(scram.salted_password(step.password, step.salt, step.iterations))
        except AuthenticationFailed:
            continue
        assert isinstance(step, Challenge)


@settings(deadline=None)
@given(
    kind=st.sampled_from(sorted(STORED)),
    binding=st.sampled_from([None, bytes(32)]),
    messages=st.lists(st.tuples(st.integers(1, 13), BROKEN), max_size=5),
)
def test_a_hostile_server_never_gets_past_scram(kind, binding, messages):
    exchange = ClientExchange(
        "alice", STORED[kind], None, lambda: bytes(18), binding, frozenset({"scram-sha-256"}), binding is not None
    )
    for code, message in [*messages, (0, b"")]:
        try:
            step = exchange.receive(code, message)
        except AuthenticationFailed:
            continue
        assert isinstance(step, (Reply, Derive))


@given(
    password=st.binary(min_size=1, max_size=40).filter(lambda text: b"\0" not in text),
    typed=st.none() | st.binary(min_size=1, max_size=40).filter(lambda text: b"\0" not in text),
    method=st.sampled_from(["plain", "md5", "scram-sha-256"]),
    stored_as=st.sampled_from(["plain", "scram"]),
    binding=st.sampled_from([None, bytes(32)]),
)
@settings(max_examples=200, deadline=None)
def test_our_two_roles_agree_exactly_when_the_passwords_do(password, typed, method, stored_as, binding):
    secret = Secret("plain", password)
    if stored_as == "scram":
        secret = Secret.of_scram(scram.new_secret(password, SALT, 16))
    typed = password if typed is None else typed
    upstream = server_exchange(
        method,
        "alice",
        secret,
        True,
        salt=lambda: b"salt",
        nonce=lambda: bytes(18),
        process_secret=b"p" * 32,
        scram_iterations=16,
        channel_binding=binding,
    )
    login = ClientExchange(
        "alice", Secret("plain", typed), None, lambda: bytes(range(18)), binding, frozenset(), binding is not None
    )
    same = saslprep(password) == saslprep(typed) if stored_as == "scram" or method == "scram-sha-256" else password == typed
    try:
        step = upstream.start()
        while isinstance(step, Challenge):
            answer = login.receive(step.code, step.payload)
            if isinstance(answer, Derive):
                answer = login.derived(scram.salted_password(answer.password, answer.salt, answer.iterations))
            assert isinstance(answer, Reply)
            step = upstream.receive(answer.payload)
            if isinstance(step, Derive):
                step = upstream.derived(scram.salted_password(step.password, step.salt, step.iterations))
    except AuthenticationFailed:
        assert not same
        return
    assert same
    assert isinstance(step, Accepted)
    if step.final is not None:
        assert login.receive(12, step.final) == Wait()
    assert login.receive(0, b"") == Accepted()


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_saslprep_takes_any_bytes(password):
    saslprep(password)


@given(st.binary(max_size=60))
def test_a_stored_secret_of_any_bytes_has_a_kind(value):
    assert Secret.of(value).kind in {"plain", "md5", "scram"}


@given(
    salt=st.binary(min_size=1, max_size=64),
    iterations=st.integers(1, 2**31 - 1),
    stored=st.binary(min_size=32, max_size=32),
    server_key=st.binary(min_size=32, max_size=32),
)
def test_a_scram_secret_reads_back_as_it_was_written(salt, iterations, stored, server_key):
    secret = Secret.of_scram(scram.ScramSecret(salt, iterations, stored, server_key))
    assert Secret.of(secret.value) == secret
