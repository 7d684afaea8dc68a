from __future__ import annotations

import base64

import pytest

from pgpool_proxy.auth import scram
from pgpool_proxy.auth.exchange import Accepted, Challenge, Derive, Secret
from pgpool_proxy.errors import SASL_FAILED, AuthenticationFailed, IllegalTransition, WrongSecret

scramp = pytest.importorskip("scramp")

BINDING = bytes(range(32))
OUR_NONCE = base64.b64encode(bytes(range(100, 118)))


def login(doors, exchange, password, mechanisms=("SCRAM-SHA-256",), binding=None):
    """Another implementation logs in; the step at the end, and that implementation's opinion of our signature."""
    challenge = exchange.start()
    assert isinstance(challenge, Challenge)
    bound = None if binding is None else ("tls-server-end-point", binding)
    client = scramp.ScramClient(list(mechanisms), "alice", password, channel_binding=bound)
    initial = doors.initial(client.get_client_first().encode(), client.mechanism_name.encode())
    server_first = exchange.receive(initial)
    assert isinstance(server_first, Challenge)
    assert server_first.code == 11
    client.set_server_first(server_first.payload.decode())
    accepted = doors.settled(exchange, exchange.receive(client.get_client_final().encode()))
    assert isinstance(accepted, Accepted)
    assert accepted.final is not None
    client.set_server_final(accepted.final.decode())
    return accepted


def own_login(exchange, salted: bytes, first=b"n,,n=,r=abc", binding=b"", mechanism=b"SCRAM-SHA-256", **changed):
    """A client written out step by step, so that each part can be spoiled: nonce, gs2, proof."""
    exchange.start()
    step = exchange.receive(mechanism + b"\0" + len(first).to_bytes(4, "big") + first)
    assert isinstance(step, Challenge)
    gs2 = b",".join(first.split(b",")[:2]) + b","
    nonce = changed.get("nonce", step.payload[2:].split(b",")[0])
    without_proof = b"c=" + base64.b64encode(changed.get("gs2", gs2) + binding) + b",r=" + nonce
    auth_message = b",".join((first[len(gs2) :], step.payload, without_proof))
    proof = changed.get("proof", scram.client_proof(scram.client_key_from(salted), auth_message))
    return exchange.receive(without_proof + b",p=" + base64.b64encode(proof))


@pytest.fixture
def salted() -> bytes:
    return scram.salted_password(b"secret", b"0123456789abcdef", 4096)


def test_right_password_is_accepted_and_our_signature_believed(doors, scram_secret):
    accepted = login(doors, doors.server("scram-sha-256", scram_secret), "secret")
    salted = scram.salted_password(b"secret", b"0123456789abcdef", 4096)
    assert accepted.keys is not None
    assert accepted.keys.client_key == scram.client_key_from(salted)
    assert accepted.keys.server_key == scram.server_key_from(salted)


def test_plain_password_is_derived_once_and_accepted(doors):
    login(doors, doors.server("scram-sha-256", "secret"), "secret")


def test_derived_secret_serves_the_next_login_without_deriving(doors):
    exchange = doors.server("scram-sha-256", "secret", iterations=5000)
    exchange.start()
    step = exchange.receive(doors.initial(b"n,,n=,r=abc"))
    salt = scram.salt_of_name("alice", bytes(range(32)))
    assert step.payload == b"r=abc%s,s=%s,i=5000" % (OUR_NONCE, base64.b64encode(salt))
    cached = scram.build_secret(scram.salted_password(b"secret", salt, 5000), salt, 5000)
    login(doors, doors.server("scram-sha-256", Secret.of_scram(cached)), "secret")


@pytest.mark.parametrize("password", ["pässwörd", "I\u00adX", "\u2168", "x" * 900])
def test_password_is_prepared_as_other_implementations_do(doors, password):
    login(doors, doors.server("scram-sha-256", password), password)


def test_wrong_proof_is_refused(doors, scram_secret):
    for stored in (scram_secret, "secret"):
        with pytest.raises(AuthenticationFailed) as failure:
            login(doors, doors.server("scram-sha-256", stored), "wrong")
        assert failure.value.report is SASL_FAILED
        assert "wrong password" in failure.value.reason


def test_a_client_that_fails_early_costs_no_derivation(doors):
    exchange = doors.server("scram-sha-256", "secret")
    with pytest.raises(AuthenticationFailed):
        own_login(exchange, bytes(32), nonce=b"abcX")


def test_stored_key_is_no_client_key(doors, scram_secret, salted):
    stored_key = scram.stored_key_from(scram.client_key_from(salted))
    with pytest.raises(AuthenticationFailed):
        own_login(doors.server("scram-sha-256", scram_secret), salted, proof=stored_key)


@pytest.mark.parametrize("nonce", [b"abc", b"abcX", b"X" + OUR_NONCE, b"abc" + OUR_NONCE + b"x", OUR_NONCE])
def test_nonce_that_is_not_this_exchanges_is_refused(doors, scram_secret, salted, nonce):
    with pytest.raises(AuthenticationFailed, match="nonce"):
        own_login(doors.server("scram-sha-256", scram_secret), salted, nonce=nonce)


def test_proof_of_another_exchange_is_refused(doors, scram_secret, salted):
    final = {}
    nonces = iter([bytes(18), bytes(range(18))])

    def record(exchange):
        exchange.start()
        step = exchange.receive(doors.initial(b"n,,n=,r=abc"))
        return step.payload

    first = doors.server("scram-sha-256", scram_secret, nonce=lambda: next(nonces))
    server_first = record(first)
    without_proof = b"c=biws,r=" + server_first[2:].split(b",")[0]
    proof = scram.client_proof(scram.client_key_from(salted), b",".join((b"n=,r=abc", server_first, without_proof)))
    final = without_proof + b",p=" + base64.b64encode(proof)
    assert isinstance(first.receive(final), Accepted)
    second = doors.server("scram-sha-256", scram_secret, nonce=lambda: next(nonces))
    record(second)
    with pytest.raises(AuthenticationFailed):
        second.receive(final)


def test_unknown_user_sees_what_a_wrong_password_sees(doors):
    """Same steps, same salt each time, same report as a known user with a plain password."""
    seen = []
    for stored, known in ((None, False), (None, False), ("secret", True)):
        exchange = doors.server("scram-sha-256", stored, known=known)
        offered = exchange.start()
        challenge = exchange.receive(doors.initial(b"n,,n=,r=abc"))
        final = b"c=biws,r=abc" + OUR_NONCE + b",p=" + base64.b64encode(bytes(32))
        with pytest.raises(AuthenticationFailed) as failure:
            doors.settled(exchange, exchange.receive(final))
        seen.append((offered, challenge, failure.value.report))
    assert seen[0] == seen[1] == seen[2]


def test_mock_salts_differ_by_name_and_by_process():
    assert scram.salt_of_name("alice", b"p" * 32) != scram.salt_of_name("bob", b"p" * 32)
    assert scram.salt_of_name("alice", b"p" * 32) != scram.salt_of_name("alice", b"q" * 32)
    assert len(scram.salt_of_name("alice", b"p" * 32)) == 16


def test_the_right_proof_of_a_doomed_exchange_is_refused(doors, scram_secret, salted):
    """Whatever secret comes with a user who is not known, it is not that user's."""
    exchange = doors.server("scram-sha-256", scram_secret, known=False, mock_kind="scram")
    with pytest.raises(AuthenticationFailed):
        own_login(exchange, salted)


def test_md5_hash_under_scram_fails_like_a_wrong_password(doors):
    exchange = doors.server("scram-sha-256", "md5" + "0" * 32, mock_kind="md5")
    with pytest.raises(AuthenticationFailed) as failure:
        own_login(exchange, bytes(32))
    assert failure.value.report is SASL_FAILED


# --- channel binding ----------------------------------------------------------------------------------------------


def test_plus_is_offered_first_where_there_is_a_certificate(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret, binding=BINDING)
    assert exchange.start() == Challenge(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")


def test_bound_login_is_accepted(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret, binding=BINDING)
    login(doors, exchange, "secret", ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"], BINDING)


def test_login_bound_to_another_certificate_is_refused(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret, binding=BINDING)
    with pytest.raises(AuthenticationFailed, match="binding"):
        login(doors, exchange, "secret", ["SCRAM-SHA-256-PLUS"], BINDING[::-1])


def test_client_that_cannot_bind_is_accepted_over_tls(doors, scram_secret, salted):
    exchange = doors.server("scram-sha-256", scram_secret, binding=BINDING)
    assert isinstance(own_login(exchange, salted), Accepted)


def test_client_that_could_have_bound_is_accepted_without_tls(doors, scram_secret, salted):
    exchange = doors.server("scram-sha-256", scram_secret)
    assert isinstance(own_login(exchange, salted, b"y,,n=,r=abc"), Accepted)


def test_downgrade_of_channel_binding_is_refused(doors, scram_secret, salted):
    exchange = doors.server("scram-sha-256", scram_secret, binding=BINDING)
    with pytest.raises(AuthenticationFailed, match="downgrade"):
        own_login(exchange, salted, b"y,,n=,r=abc")


def test_flag_that_changes_between_messages_is_refused(doors, scram_secret, salted):
    with pytest.raises(AuthenticationFailed, match="binding"):
        own_login(doors.server("scram-sha-256", scram_secret), salted, b"y,,n=,r=abc", gs2=b"n,,")


def test_binding_data_of_a_client_that_does_not_bind_is_refused(doors, scram_secret, salted):
    with pytest.raises(AuthenticationFailed, match="binding"):
        own_login(doors.server("scram-sha-256", scram_secret), salted, binding=BINDING)


@pytest.mark.parametrize(
    ("mechanism", "first", "binding"),
    [
        (b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc", None),
        (b"SCRAM-SHA-256-PLUS", b"n,,n=,r=abc", None),
        (b"SCRAM-SHA-256-PLUS", b"n,,n=,r=abc", BINDING),
        (b"SCRAM-SHA-256-PLUS", b"y,,n=,r=abc", BINDING),
        (b"SCRAM-SHA-256-PLUS", b"p=tls-unique,,n=,r=abc", BINDING),
        (b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc", BINDING),
        (b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc", None),
        (b"SCRAM-SHA-1", b"n,,n=,r=abc", None),
        (b"scram-sha-256", b"n,,n=,r=abc", None),
        (b"", b"n,,n=,r=abc", None),
    ],
)
def test_mechanism_that_was_not_offered_or_does_not_fit_is_refused(doors, scram_secret, mechanism, first, binding):
    exchange = doors.server("scram-sha-256", scram_secret, binding=binding)
    exchange.start()
    with pytest.raises(AuthenticationFailed):
        exchange.receive(doors.initial(first, mechanism))


# --- out of turn --------------------------------------------------------------------------------------------------


def test_message_before_the_offer_is_refused(doors, scram_secret):
    with pytest.raises(AuthenticationFailed):
        doors.server("scram-sha-256", scram_secret).receive(doors.initial(b"n,,n=,r=abc"))


def test_second_mechanism_is_refused(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret)
    exchange.start()
    exchange.receive(doors.initial(b"n,,n=,r=abc"))
    with pytest.raises(AuthenticationFailed):
        exchange.receive(doors.initial(b"n,,n=,r=abc"))


def test_message_while_the_key_is_derived_is_refused(doors, salted):
    exchange = doors.server("scram-sha-256", "secret")
    assert isinstance(own_login(exchange, salted), Derive)
    with pytest.raises(AuthenticationFailed):
        exchange.receive(b"c=biws,r=abc,p=" + base64.b64encode(bytes(32)))


def test_nothing_follows_a_refusal(doors, scram_secret, salted):
    exchange = doors.server("scram-sha-256", scram_secret)
    with pytest.raises(AuthenticationFailed):
        own_login(exchange, salted, proof=bytes(32))
    with pytest.raises(AuthenticationFailed, match="out of turn"):
        exchange.receive(b"c=biws,r=abc,p=" + base64.b64encode(bytes(32)))


def test_calls_out_of_turn_are_our_own_fault(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret)
    exchange.start()
    with pytest.raises(IllegalTransition):
        exchange.start()
    with pytest.raises(IllegalTransition):
        exchange.derived(bytes(32))


def test_a_short_nonce_is_not_sent(doors, scram_secret):
    exchange = doors.server("scram-sha-256", scram_secret, nonce=lambda: b"short")
    exchange.start()
    with pytest.raises(ValueError, match="18"):
        exchange.receive(doors.initial(b"n,,n=,r=abc"))


# --- a newer secret -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("old", ["another", "scram of another"])
@pytest.mark.parametrize("new", ["secret", "scram with the same salt"])
def test_a_proof_is_held_against_a_newer_secret_with_the_salt_that_was_sent(doors, old, new):
    salt, iterations = scram.salt_of_name("alice", bytes(range(32))), 4096
    forms = {
        "scram of another": scram.build_secret(scram.salted_password(b"another", salt, iterations), salt, iterations),
        "scram with the same salt": scram.build_secret(scram.salted_password(b"secret", salt, iterations), salt, iterations),
    }
    old_secret, new_secret = (Secret.of_scram(forms[form]) if form in forms else Secret.of(form) for form in (old, new))
    exchange = doors.server("scram-sha-256", old_secret)
    with pytest.raises(WrongSecret):
        login(doors, exchange, "secret")
    step = doors.settled(exchange, exchange.again(new_secret))
    assert isinstance(step, Accepted)
    assert step.final is not None


@pytest.mark.parametrize("new", ["", "neither", "md5" + "0" * 32, "scram"])
def test_a_newer_secret_that_does_not_fit_the_proof_refuses(doors, scram_secret, new):
    exchange = doors.server("scram-sha-256", "another")
    with pytest.raises(WrongSecret):
        login(doors, exchange, "secret")
    with pytest.raises(AuthenticationFailed) as failure:
        doors.settled(exchange, exchange.again(Secret.of(scram_secret if new == "scram" else new)))
    assert failure.value.report is SASL_FAILED
    with pytest.raises(IllegalTransition):
        exchange.derived(bytes(32))


# --- what costs time ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stored", ["secret", None, "md5" + "0" * 32], ids=["known", "unknown", "an md5 hash"])
@pytest.mark.parametrize("mock_kind", ["plain", "scram"])
def test_a_key_is_derived_for_nobody_where_it_is_for_most(doors, stored, mock_kind):
    """A password that is stored plain costs a derivation at its first login: so does a user that there is not."""

    def attempt(key: bytes):
        return own_login(doors.server("scram-sha-256", stored, known=stored is not None, mock_kind=mock_kind), key)

    if stored != "secret" and mock_kind == "scram":
        with pytest.raises(WrongSecret):
            attempt(bytes(32))
        return
    step = attempt(bytes(32))
    assert isinstance(step, Derive)
    assert step.for_nobody == (stored != "secret")
    if step.for_nobody:  # and the password that is made up for nobody lets nobody in
        right = scram.salted_password(step.password, step.salt, step.iterations)
        exchange = doors.server("scram-sha-256", stored, known=stored is not None, mock_kind=mock_kind)
        with pytest.raises(WrongSecret):
            doors.settled(exchange, own_login(exchange, right))


def test_a_refusal_takes_as_long_where_the_key_is_known_from_an_earlier_login(doors, salted):
    """The second wrong password of a known user costs what the first of an unknown one does."""
    exchange = doors.server("scram-sha-256", "secret")
    step = own_login(exchange, bytes(32))
    assert isinstance(step, Derive)
    step.was_kept = True
    decoy = exchange.derived(scram.salted_password(step.password, step.salt, step.iterations))
    assert isinstance(decoy, Derive)
    assert (decoy.iterations, decoy.for_nobody, decoy.cacheable) == (step.iterations, True, False)
    with pytest.raises(WrongSecret, match="proof"):
        exchange.derived(bytes(32))
    with pytest.raises(IllegalTransition):
        exchange.derived(bytes(32))


def test_the_right_password_is_accepted_at_once_where_the_key_is_known(doors):
    salt = scram.salt_of_name("alice", bytes(range(32)))
    exchange = doors.server("scram-sha-256", "secret")
    step = own_login(exchange, scram.salted_password(b"secret", salt, 4096))
    assert isinstance(step, Derive)
    step.was_kept = True
    assert isinstance(doors.settled(exchange, step), Accepted)


def test_a_proof_that_waits_for_its_refusal_can_be_held_against_a_newer_secret(doors):
    salt = scram.salt_of_name("alice", bytes(range(32)))
    exchange = doors.server("scram-sha-256", "old")
    step = own_login(exchange, scram.salted_password(b"new", salt, 4096))
    assert isinstance(step, Derive)
    step.was_kept = True
    with pytest.raises(WrongSecret):
        doors.settled(exchange, doors.settled(exchange, step))
    assert isinstance(doors.settled(exchange, exchange.again(Secret.of("new"))), Accepted)
