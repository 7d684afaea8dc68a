from __future__ import annotations

import base64

import pytest

from pgpool_proxy.auth import scram_messages as messages
from pgpool_proxy.errors import SASL_FAILED, SERVER_LOGIN_FAILED, AuthenticationFailed

PROOF = base64.b64encode(bytes(32))


def test_client_first_is_taken_apart():
    first = messages.parse_client_first(b"n,,n=,r=abc")
    assert (first.flag, first.gs2_header, first.bare, first.nonce) == (b"n", b"n,,", b"n=,r=abc", b"abc")


def test_client_first_may_bind_and_have_extensions():
    first = messages.parse_client_first(b"p=tls-server-end-point,,n=alice,r=abc,x=1,Y=a=b")
    assert (first.flag, first.gs2_header, first.nonce) == (b"p", b"p=tls-server-end-point,,", b"abc")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=",
        b"n,,n=,",
        b"n,,n=,r=",
        b"n,,r=abc",
        b"n,,r=abc,n=",
        b"n,a=bob,n=,r=abc",
        b"n,a=,n=,r=abc",
        b"x,,n=,r=abc",
        b"N,,n=,r=abc",
        b"nn,,n=,r=abc",
        b"p,,n=,r=abc",
        b"p=,,n=,r=abc",
        b"p=tls-unique,,n=,r=abc",
        b"p=tls-server-end-point ,,n=,r=abc",
        b"y=,,n=,r=abc",
        b"n,,m=1,n=,r=abc",
        b"n,,n=,r=abc,m=1",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,x",
        b"n,,n=,r=abc,x=",
        b"n,,n=,r=abc,1=2",
        b"n,,n=,r=abc,r=def",
        b"n,,n=,r=a b",
        b"n,,n=,r=ab\x7f",
        b"n,,n=,r=abc\n",
        b"n,,n=,r=abc\0",
        "n,,n=,r=äbc".encode(),
        b"n,,n=,r=" + b"x" * 513,
        b"n,,n=" + b"x" * 2000 + b",r=abc",
        b",,n=,r=abc",
    ],
)
def test_malformed_client_first_is_refused(message):
    with pytest.raises(AuthenticationFailed) as failure:
        messages.parse_client_first(message)
    assert failure.value.report is SASL_FAILED


def test_client_final_is_taken_apart():
    final = messages.parse_client_final(b"c=biws,r=abcdef,x=y,p=" + PROOF)
    assert (final.binding, final.nonce, final.proof) == (b"n,,", b"abcdef", bytes(32))
    assert final.without_proof == b"c=biws,r=abcdef,x=y"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"c=biws",
        b"c=biws,r=abc",
        b"c=biws,p=" + PROOF,
        b"r=abc,c=biws,p=" + PROOF,
        b"c=biws,r=abc,p=",
        b"c=biws,r=abc,p=" + PROOF[:-1],
        b"c=biws,r=abc,p=" + PROOF[:-2] + b"B=",
        b"c=biws,r=abc,p=" + base64.b64encode(bytes(31)),
        b"c=biws,r=abc,p=" + base64.b64encode(bytes(33)),
        b"c=biws,r=abc,p=" + PROOF + b",x=y",
        b"c=biws,r=abc,p=" + PROOF + b",",
        b"c=biws,r=abc,p=" + PROOF + b"\0",
        b"c=biws,r=abc,p=" + PROOF + b"\n",
        b"c=biws,r=abc,p=" + PROOF + b",p=" + PROOF,
        b"c=bi ws,r=abc,p=" + PROOF,
        b"c=biw,r=abc,p=" + PROOF,
        b"c=biws,r=,p=" + PROOF,
        b"c=biws,r=abc,,p=" + PROOF,
        b"c=biws,r=abc,x=" + b"y" * 1024 + b",p=" + PROOF,
    ],
)
def test_malformed_client_final_is_refused(message):
    with pytest.raises(AuthenticationFailed) as failure:
        messages.parse_client_final(message)
    assert failure.value.report is SASL_FAILED


def test_server_first_is_taken_apart():
    first = messages.parse_server_first(b"r=abc,s=AAEC,i=4096")
    assert (first.nonce, first.salt, first.iterations) == (b"abc", b"\0\1\2", 4096)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"r=abc",
        b"r=abc,s=AAEC",
        b"r=abc,i=4096",
        b"s=AAEC,r=abc,i=4096",
        b"r=abc,s=,i=4096",
        b"r=abc,s=AAE,i=4096",
        b"r=abc,s=AA EC,i=4096",
        b"r=abc,s=AAEC,i=",
        b"r=abc,s=AAEC,i=0",
        b"r=abc,s=AAEC,i=-1",
        b"r=abc,s=AAEC,i=4096.0",
        b"r=abc,s=AAEC,i=0x10",
        b"r=abc,s=AAEC,i=1000001",
        b"r=abc,s=AAEC,i=2147483648",
        b"r=abc,s=AAEC,i=" + b"9" * 900,
        b"r=abc,s=AAEC,i=4096,x=y",
        b"r=abc,s=AAEC,i=4096,",
        b"r=abc,s=AAEC,i=4096\0",
        b"m=x,r=abc,s=AAEC,i=4096",
        b"r=" + b"x" * 513 + b",s=AAEC,i=4096",
        b"r=abc,s=" + base64.b64encode(bytes(257)) + b",i=4096",
        "r=abc,s=AAEC,i=٤٠".encode(),
    ],
)
def test_malformed_server_first_is_refused(message):
    with pytest.raises(AuthenticationFailed) as failure:
        messages.parse_server_first(message)
    assert failure.value.report is SERVER_LOGIN_FAILED


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"v=",
        b"v=AAAA",
        b"e=invalid-proof",
        b"e=",
        b"x=" + PROOF,
        b"v=" + PROOF + b",x=y",
        b"v=" + PROOF + b"\0",
        b"v=" + PROOF + b" ",
        b"V=" + PROOF,
    ],
)
def test_malformed_server_final_is_refused(message):
    with pytest.raises(AuthenticationFailed) as failure:
        messages.parse_server_final(message)
    assert failure.value.report is SERVER_LOGIN_FAILED


def test_initial_response_is_taken_apart():
    payload = messages.build_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc")
    assert messages.parse_initial_response(payload) == (b"SCRAM-SHA-256", b"n,,n=,r=abc")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\0\0\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\xff\xff\xff\xffn,,n=,r=abc",
        b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=abc",
        b"SCRAM-SHA-256\0\x00\x00\x00\x0cn,,n=,r=abc",
        b"SCRAM-SHA-256\0\x00\x00\x00\x0an,,n=,r=abc",
        b"\0" * 4096,
        b"x" * 4096 + b"\0\0\0\0\0",
    ],
)
def test_malformed_initial_response_is_refused(payload):
    with pytest.raises(AuthenticationFailed):
        messages.parse_initial_response(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0\0",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0",
        b"a\0\0b\0\0",
        b"a\0" * 17 + b"\0",
        b"x" * 2000 + b"\0\0",
    ],
)
def test_malformed_mechanism_list_is_refused(payload):
    with pytest.raises(AuthenticationFailed):
        messages.parse_mechanisms(payload)
