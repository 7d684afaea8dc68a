from __future__ import annotations

import base64

import pytest

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.exchange import Accepted, Derive, Reply, ScramKeys, Secret, Wait
from pgpool_proxy.errors import SERVER_LOGIN_FAILED, WRONG_PASSWORD_TYPE, AuthenticationFailed, IllegalTransition

scramp = pytest.importorskip("scramp")

SALT = b"0123456789abcdef"
BINDING = bytes(range(32))
OUR_NONCE = base64.b64encode(bytes(range(100, 118)))
OFFER = b"SCRAM-SHA-256\0\0"
OFFER_PLUS = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"


def message_of(reply: Reply) -> bytes:
    """The SASL message inside SASLInitialResponse."""
    return reply.payload.partition(b"\0")[2][4:]


def run(exchange, server_salted: bytes, *, salt=SALT, iterations=4096, final: bytes | None = None, server_nonce=b"srv"):
    """A server written out step by step. Gives the client's proof message and the step after our signature."""
    first = exchange.receive(10, OFFER)
    bare = message_of(first)[3:]
    nonce = bare.partition(b"r=")[2] + server_nonce
    server_first = b"r=%s,s=%s,i=%d" % (nonce, base64.b64encode(salt), iterations)
    step = exchange.receive(11, server_first)
    if isinstance(step, Derive):
        step = exchange.derived(scram.salted_password(step.password, step.salt, step.iterations))
    assert isinstance(step, Reply)
    without_proof, _, proof = step.payload.rpartition(b",p=")
    auth_message = b",".join((bare, server_first, without_proof))
    stored_key = scram.stored_key_from(scram.client_key_from(server_salted))
    assert scram.client_key_of_proof(base64.b64decode(proof), stored_key, auth_message) is not None
    signature = scram.server_signature(scram.server_key_from(server_salted), auth_message)
    return exchange.receive(12, b"v=" + base64.b64encode(signature) if final is None else final)


@pytest.fixture
def salted() -> bytes:
    return scram.salted_password(b"secret", SALT, 4096)


@pytest.fixture
def keys(salted) -> ScramKeys:
    return ScramKeys(scram.client_key_from(salted), scram.server_key_from(salted))


def test_plain_password_logs_in(doors, salted):
    exchange = doors.client("secret")
    assert run(exchange, salted) == Wait()
    assert exchange.receive(0, b"") == Accepted()


@pytest.mark.parametrize("binding", [None, BINDING])
def test_another_implementation_believes_us(doors, binding):
    """scramp is the server. It wants the user name that PostgreSQL clients leave out: it is told one."""
    exchange = doors.client("pässwörd", binding=binding, tls=binding is not None)
    mechanism = scramp.ScramMechanism("SCRAM-SHA-256" if binding is None else "SCRAM-SHA-256-PLUS")
    stored = mechanism.make_auth_info("pässwörd", iteration_count=4096, salt=SALT)
    bound = None if binding is None else ("tls-server-end-point", binding)
    server = mechanism.make_server(lambda user: stored, channel_binding=bound)
    first = message_of(exchange.receive(10, OFFER if binding is None else OFFER_PLUS)).decode()
    server.set_client_first(first.replace("n=,r=", "n=alice,r="))
    server.client_first_bare = first[first.index("n=,r=") :]
    step = doors.settled(exchange, exchange.receive(11, server.get_server_first().encode()))
    server.set_client_final(step.payload.decode())
    assert exchange.receive(12, server.get_server_final().encode()) == Wait()
    assert exchange.receive(0, b"") == Accepted()


def test_keys_of_a_client_pass_through(doors, scram_secret, salted, keys):
    exchange = doors.client(scram_secret, keys=keys)
    assert run(exchange, salted) == Wait()
    assert exchange.receive(0, b"") == Accepted()


def test_keys_without_the_stored_secret_pass_through(doors, salted, keys):
    assert run(doors.client(None, keys=keys), salted) == Wait()


@pytest.mark.parametrize(("salt", "iterations"), [(b"another salt ...", 4096), (SALT, 4097)])
def test_keys_are_not_used_where_the_server_has_another_secret(doors, scram_secret, salted, keys, salt, iterations):
    with pytest.raises(AuthenticationFailed) as failure:
        run(doors.client(scram_secret, keys=keys), salted, salt=salt, iterations=iterations)
    assert failure.value.report is WRONG_PASSWORD_TYPE


def test_scram_secret_without_keys_is_the_wrong_type(doors, scram_secret):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client(scram_secret).receive(10, OFFER)
    assert failure.value.report is WRONG_PASSWORD_TYPE


def test_md5_secret_is_the_wrong_type(doors):
    with pytest.raises(AuthenticationFailed) as failure:
        doors.client("md5" + "0" * 32).receive(10, OFFER)
    assert failure.value.report is WRONG_PASSWORD_TYPE


# --- mechanisms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "binding", "tls", "mechanism", "header"),
    [
        (OFFER, None, False, b"SCRAM-SHA-256", b"n,,"),
        (OFFER, None, True, b"SCRAM-SHA-256", b"n,,"),
        (OFFER, BINDING, True, b"SCRAM-SHA-256", b"y,,"),
        (OFFER_PLUS, BINDING, True, b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,"),
        (OFFER_PLUS, None, True, b"SCRAM-SHA-256", b"n,,"),
        (OFFER, BINDING, False, b"SCRAM-SHA-256", b"n,,"),
    ],
)
def test_the_strongest_mechanism_that_fits_is_selected(doors, offer, binding, tls, mechanism, header):
    reply = doors.client("secret", binding=binding, tls=tls).receive(10, offer)
    message = header + b"n=,r=" + OUR_NONCE
    assert reply == Reply(mechanism + b"\0" + len(message).to_bytes(4, "big") + message)


def test_plus_without_tls_is_refused(doors):
    with pytest.raises(AuthenticationFailed, match="without TLS"):
        doors.client("secret").receive(10, OFFER_PLUS)


@pytest.mark.parametrize("offer", [b"SCRAM-SHA-1\0\0", b"OAUTHBEARER\0\0", b"SCRAM-SHA-256-PLUS\0\0", b"\0", b""])
def test_offer_without_a_known_mechanism_is_refused(doors, offer):
    with pytest.raises(AuthenticationFailed):
        doors.client("secret", tls=True).receive(10, offer)


# --- a server that lies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "final",
    [
        b"",
        b"v=",
        b"v=" + base64.b64encode(bytes(32)),
        b"v=" + base64.b64encode(bytes(31)),
        b"e=other-error",
        b"e=" + b"\xff" * 500,
    ],
)
def test_wrong_server_signature_is_refused(doors, salted, final):
    exchange = doors.client("secret")
    with pytest.raises(AuthenticationFailed) as failure:
        run(exchange, salted, final=final)
    assert failure.value.report is SERVER_LOGIN_FAILED
    with pytest.raises(AuthenticationFailed):
        exchange.receive(0, b"")


def test_server_that_does_not_know_our_password_cannot_sign(doors, salted):
    exchange = doors.client("secret")
    first = exchange.receive(10, OFFER)
    nonce = message_of(first).partition(b"r=")[2]
    server_first = b"r=%sX,s=%s,i=1" % (nonce, base64.b64encode(SALT))
    doors.settled(exchange, exchange.receive(11, server_first))
    with pytest.raises(AuthenticationFailed, match="does not know"):
        exchange.receive(12, b"v=" + base64.b64encode(scram.server_signature(bytes(32), b"")))


@pytest.mark.parametrize("nonce", [OUR_NONCE, OUR_NONCE[:-1] + b"srv", b"srv", b"srv" + OUR_NONCE])
def test_server_nonce_must_extend_ours(doors, nonce):
    exchange = doors.client("secret")
    exchange.receive(10, OFFER)
    with pytest.raises(AuthenticationFailed):
        exchange.receive(11, b"r=%s,s=AAEC,i=4096" % nonce)


def test_ok_after_each_stage_but_the_last_is_refused(doors, salted):
    for stages in range(3):
        exchange = doors.client("secret")
        step = exchange.receive(10, OFFER)
        nonce = message_of(step).partition(b"r=")[2]
        if stages > 0:
            step = exchange.receive(11, b"r=%sX,s=%s,i=4096" % (nonce, base64.b64encode(SALT)))
        if stages > 1:
            exchange.derived(salted)
        with pytest.raises(AuthenticationFailed, match="without proving"):
            exchange.receive(0, b"")


@pytest.mark.parametrize("codes", [(11,), (12,), (10, 12), (10, 10), (10, 3), (10, 5), (3, 11), (3, 10), (5, 3)])
def test_requests_out_of_turn_are_refused(doors, codes):
    payloads = {3: b"", 5: b"salt", 10: OFFER, 11: b"r=x,s=AAEC,i=1", 12: b"v=AAAA"}
    exchange = doors.client("secret")
    for code in codes[:-1]:
        exchange.receive(code, payloads[code])
    with pytest.raises(AuthenticationFailed):
        exchange.receive(codes[-1], payloads[codes[-1]])


def test_final_twice_is_refused(doors, salted):
    exchange = doors.client("secret")
    run(exchange, salted)
    with pytest.raises(AuthenticationFailed):
        exchange.receive(12, b"v=" + base64.b64encode(bytes(32)))


def test_keys_asked_of_nobody_are_our_own_fault(doors):
    exchange = doors.client("secret")
    with pytest.raises(IllegalTransition):
        exchange.derived(bytes(32))
    exchange.receive(10, OFFER)
    with pytest.raises(IllegalTransition):
        exchange.derived(bytes(32))


def test_secret_of_a_cached_derivation_is_scram():
    secret = Secret.of_scram(scram.new_secret(b"secret", SALT, 4096))
    assert secret == Secret.of(secret.value)
