"""The address column of HBA files: networks, samehost, samenet, host names.

Knows addresses as numbers only. Must not resolve a name: who asks brings what names resolve to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pgpool_proxy.auth.tokens import Token
from pgpool_proxy.errors import ConfigError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Resolve: TypeAlias = Callable[[str], Sequence[Address | str]]

HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
MAPPED_BITS: Final = 96  # ::ffff:a.b.c.d


@dataclass(frozen=True, slots=True)
class AddressTest:
    """Which client addresses a line is for: `everything`, one of `networks`, or what `name` resolves to."""

    everything: bool = False
    networks: tuple[Network, ...] = ()
    name: str = ""

    def match(self, address: Address | None, resolve: Resolve) -> bool:
        """True where `address` (None where it is not known) is meant. `resolve` is asked for `name` only."""
        if self.everything:
            return True
        if address is None:
            return False
        if self.name:
            return any(parse_address(found) == address for found in resolve(self.name))
        return any(address in network for network in self.networks)


def parse_address(text: Address | str) -> Address | None:
    """An address without its zone, IPv4 where it is IPv4 in IPv6's clothes; None where it is no address."""
    if isinstance(text, str):
        try:
            text = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return None
    if isinstance(text, ipaddress.IPv6Address) and text.ipv4_mapped is not None:
        return text.ipv4_mapped
    return text


def parse_test(tokens: list[Token], interfaces: Sequence[Interface], warnings: list[str]) -> tuple[AddressTest, int]:
    """The address and, if it stands apart, its mask -> the test, and how many tokens it took. Raises ConfigError."""
    first = tokens[0]
    if first.is_keyword("all"):
        return AddressTest(everything=True), 1
    if first.is_keyword("samehost"):
        return AddressTest(networks=tuple(unmapped(whole(interface.ip)) for interface in interfaces)), 1
    if first.is_keyword("samenet"):
        return AddressTest(networks=tuple(unmapped(interface.network) for interface in interfaces)), 1
    text, slash, length = first.text.partition("/")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if slash:
            raise ConfigError(f'invalid address "{first.text}"') from None
        return AddressTest(name=host_name(text)), 1
    if "%" in text:
        raise ConfigError(f'address "{text}": a zone cannot be used here')
    if slash:
        bits = parse_length(length, address.max_prefixlen)
    elif len(tokens) > 1:
        bits = parse_mask(tokens[1].text, address)
    else:
        raise ConfigError(f'address "{text}" needs a mask: {text}/{address.max_prefixlen} is this host only')
    network = ipaddress.ip_network((address, bits), strict=False)
    if network.network_address != address:
        warnings.append(f'address does not match mask: "{text}" is read as {network}')
    return AddressTest(networks=(unmapped(network),)), 1 if slash else 2


def parse_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= most):
        raise ConfigError(f'invalid mask length "{text}"')
    return int(text)


def parse_mask(text: str, address: Address) -> int:
    """255.255.255.0 -> 24. A mask with holes, or of the other family, is a problem."""
    try:
        mask = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f'invalid mask "{text}"') from None
    holes = int(mask) ^ ((1 << mask.max_prefixlen) - 1)
    if mask.version != address.version or holes & (holes + 1):
        raise ConfigError(f'mask "{text}" does not fit address "{address}"')
    return mask.max_prefixlen - holes.bit_length()


def unmapped(network: Network) -> Network:
    """The IPv4 network that an IPv4-mapped one stands for, as client addresses are compared."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= MAPPED_BITS:
        inside = network.network_address.ipv4_mapped
        if inside is not None:
            return ipaddress.IPv4Network((inside, network.prefixlen - MAPPED_BITS))
    return network


def whole(address: Address) -> Network:
    """The network of one host."""
    return ipaddress.ip_network(int(address).to_bytes(address.max_prefixlen // 8, "big"))


def host_name(text: str) -> str:
    """A name to be resolved. Raises ConfigError."""
    if text.startswith("."):
        raise ConfigError(f'"{text}": a domain suffix needs reverse lookups, which are not supported')
    last = text.rstrip(".").rpartition(".")[2]
    if len(text) > 255 or HOST_NAME.fullmatch(text) is None or last.isdigit():
        raise ConfigError(f'invalid address "{text}"')
    return text.rstrip(".").lower()
