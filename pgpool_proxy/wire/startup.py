"""The first packet of a connection: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest (which have no type byte).

Knows their layout and their limits. Everything here comes from strangers: lengths are checked before anything is cut, and a
packet may be 10,000 bytes at the most (PostgreSQL's MAX_STARTUP_PACKET_LENGTH).
"""

from __future__ import annotations

from typing import Final

from pgpool_proxy import errors
from pgpool_proxy.wire.codes import CANCEL_REQUEST, GSSENC_REQUEST, MAX_STARTUP_PACKET, PROTOCOL_3_0, SSL_REQUEST
from pgpool_proxy.wire.framing import int32_at

DIRECT_TLS: Final = 0x16  # first byte of a TLS ClientHello record
MIN_CANCEL_KEY: Final = 8
MAX_CANCEL_KEY: Final = 260  # protocol 3.2: process id and a secret of up to 256 bytes


class FirstPacket:
    """A first packet: its request `code` and, by code, `parameters` (StartupMessage) or `key` (CancelRequest)."""

    def __init__(self, code: int, parameters: dict[str, bytes], options: list[bytes], key: bytes) -> None:
        self.code = code
        self.parameters = parameters
        self.options = options
        self.key = key

    @property
    def is_ssl_request(self) -> bool:
        return self.code == SSL_REQUEST

    @property
    def is_gssenc_request(self) -> bool:
        return self.code == GSSENC_REQUEST

    @property
    def is_cancel_request(self) -> bool:
        return self.code == CANCEL_REQUEST

    @property
    def minor(self) -> int:
        """Minor version of the protocol that a StartupMessage asks for."""
        return self.code & 0xFFFF


def packet_size(data: bytes) -> int:
    """Size of the first packet, which begins at `data[0]`, or 0 while its length field is not there.

    Raises `errors.ProtocolViolation` on a length that no first packet has.
    """
    if len(data) < 4:
        return 0
    size = int(int32_at(data, 0))
    if size < 8 or size > MAX_STARTUP_PACKET:
        raise errors.ProtocolViolation(errors.STARTUP_TOO_LONG)
    return size


def parse(packet: bytes) -> FirstPacket:
    """Decode a whole first packet, length field included.

    Raises `errors.ProtocolViolation`: protocol 2 and 4, a layout without its terminator, a name without a value, an empty
    name, a CancelRequest's key of an impossible size. Of a name that comes twice the last value counts; who the user is, and
    whether there is one, the login sees to.
    """
    code = int(int32_at(packet, 4))
    if code in (SSL_REQUEST, GSSENC_REQUEST):
        if len(packet) != 8:
            raise errors.ProtocolViolation(errors.STARTUP_TOO_LONG)
        return FirstPacket(code, {}, [], b"")
    if code == CANCEL_REQUEST:
        key = packet[8:]
        if not MIN_CANCEL_KEY <= len(key) <= MAX_CANCEL_KEY:
            raise errors.ProtocolViolation(errors.STARTUP_TOO_LONG)
        return FirstPacket(code, {}, [], key)
    if code >> 16 == 2:
        raise errors.ProtocolViolation(errors.OLD_PROTOCOL)
    if code >> 16 != PROTOCOL_3_0 >> 16:
        raise errors.ProtocolViolation(
            errors.UNSUPPORTED_PROTOCOL.saying(f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}")
        )
    parameters, options = _pairs(packet[8:])
    return FirstPacket(code, parameters, options, b"")


def _pairs(body: bytes) -> tuple[dict[str, bytes], list[bytes]]:
    """(parameters, names of `_pq_.` protocol options) of a StartupMessage's body."""
    if not body or body[-1] != 0 or (len(body) > 1 and body[-2] != 0):
        raise errors.ProtocolViolation(errors.BAD_STARTUP)
    strings = body[:-2].split(b"\0") if len(body) > 1 else []
    if len(strings) % 2:
        raise errors.ProtocolViolation(errors.BAD_STARTUP)
    parameters: dict[str, bytes] = {}
    options: list[bytes] = []
    for at in range(0, len(strings), 2):
        name, value = strings[at], strings[at + 1]
        if not name:
            raise errors.ProtocolViolation(errors.BAD_STARTUP)
        if name.startswith(b"_pq_."):
            options.append(name)
        else:
            parameters[name.decode("utf-8", "replace")] = value  # the last one wins, as in PostgreSQL
    return parameters, options
