"""The HBA and ident files in force: read, read again, and asked for the rule of a login.

Knows files and this host's networks; names are asked of net/dns.py, as those of servers. What a rule's method means is
logins.py's affair.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from pgpool_proxy import log
from pgpool_proxy.auth.addresses import Interface
from pgpool_proxy.auth.hba import HbaRule, HbaRules, parse_hba, parse_options
from pgpool_proxy.auth.ident import IdentMaps, parse_ident
from pgpool_proxy.auth.tokens import split_fields
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.net.tasks import Tasks
from pgpool_proxy.pool.pool import PHYSICAL
from pgpool_proxy.process.outside import directory
from pgpool_proxy.session.client_login import ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.settings.config import Config, beside

KEPT_S: Final = 1.0  # long enough for the login that has asked; dns.py keeps it for as long as it may be kept
SIOCGIFADDR: Final = 0x8915
SIOCGIFNETMASK: Final = 0x891B
IPV6_INTERFACES: Final = Path("/proc/net/if_inet6")


class NameNeeded(Exception):
    """A rule's host name is not known yet; never leaves this module."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


@dataclass(frozen=True)
class RuleFiles:
    """What both files hold."""

    hba: HbaRules
    ident: IdentMaps


def read_rules(config: Config) -> RuleFiles:
    """Read both files, with auth_type hba. Raises ConfigError when either has a line that is wrong, or cannot be read; and
    for auth_type cert where nobody has to show a certificate."""
    settings = config.settings
    if settings.auth_type == "cert" and settings.client_tls_sslmode not in {"verify-ca", "verify-full"}:
        raise ConfigError("cert needs client_tls_sslmode = verify-full", key="auth_type")
    if settings.auth_type == "ldap":
        try:
            directory(parse_options(split_fields(settings.auth_ldap_options or ""), "ldap"))
        except ConfigError as wrong:
            raise ConfigError(str(wrong), key="auth_ldap_options") from None
    hba, ident = HbaRules([], [], []), IdentMaps([], [])
    if settings.auth_type == "hba":
        if not settings.auth_hba_file:
            raise ConfigError("auth_type hba needs it", key="auth_hba_file")
        path = beside(config, settings.auth_hba_file)
        hba = parse_hba(_text(path, "auth_hba_file"), path, _read, _listing, interfaces())
    if settings.auth_ident_file:
        path = beside(config, settings.auth_ident_file)
        ident = parse_ident(_text(path, "auth_ident_file"), path, _read, _listing)
    problems = hba.problems + ident.problems + _problems_of_ldap(hba)
    for problem in problems:
        log.get_logger().error(f"could not parse hba config: {problem}")
    if problems:
        raise problems[0]
    for warning in hba.warnings:
        log.get_logger().warning(str(warning))
    return RuleFiles(hba, ident)


def _problems_of_ldap(hba: HbaRules) -> list[ConfigError]:
    """Lines whose options let nobody be asked: each login would be refused, and only then would the log say why."""
    problems: list[ConfigError] = []
    for rule in hba.rules:
        if rule.method == "ldap":
            try:
                directory(rule.options)
            except ConfigError as problem:
                problems.append(ConfigError(str(problem), file=rule.file, line=rule.line))
    return problems


class Rules:
    """The rules in force. `resolve` gives the addresses of a host name, and raises OSError."""

    def __init__(self, tasks: Tasks, resolve: Callable[[str], Awaitable[Sequence[str]]]) -> None:
        self._tasks = tasks
        self._resolve = resolve
        self._files = RuleFiles(HbaRules([], [], []), IdentMaps([], []))
        self._addresses: dict[str, tuple[float, tuple[str, ...]]] = {}  # name -> until when, addresses

    @property
    def ident(self) -> IdentMaps:
        return self._files.ident

    def use(self, files: RuleFiles) -> None:
        self._files = files
        self._addresses.clear()

    def find(self, login: ClientLogin, done: Callable[[HbaRule | None], None]) -> None:
        """The first rule for a login, or None: told to `done`, at once unless a host name has to be resolved first."""
        try:
            rule = self._match(login)
        except NameNeeded as needed:
            self._tasks.start(self._resolve_and_find(login, needed.name, done), f"resolving {needed.name} for an HBA rule")
            return
        done(rule)

    def _match(self, login: ClientLogin) -> HbaRule | None:
        session: ClientSession = login.session
        return self._files.hba.match(
            "local" if session.is_unix else "host",
            login.database_name,
            login.user,
            None if session.is_unix else session.address,
            bool(session.tls),
            login.replication == PHYSICAL,
            self._known_addresses,
        )

    def _known_addresses(self, name: str) -> Sequence[str]:
        until, addresses = self._addresses.get(name, (0.0, ()))
        if monotonic() >= until:
            raise NameNeeded(name)
        return addresses

    async def _resolve_and_find(self, login: ClientLogin, name: str, done: Callable[[HbaRule | None], None]) -> None:
        addresses: tuple[str, ...] = ()
        try:
            addresses = tuple(await self._resolve(name))
        except OSError as error:
            log.get_logger().warning(f'HBA: host name "{name}" could not be resolved: {error}')
        self._addresses[name] = (monotonic() + KEPT_S, addresses)
        if login.session.login is login:
            self.find(login, done)


def _text(path: str, key: str) -> str:
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"could not read {path}: {error}", key=key) from None


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def _listing(path: str) -> list[str]:
    return [entry.name for entry in Path(path).iterdir()]


def interfaces() -> list[Interface]:
    """This host's addresses with their networks, for samehost and samenet."""
    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = socket.inet_ntoa(fcntl.ioctl(sock, SIOCGIFADDR, request)[20:24])
                mask = socket.inet_ntoa(fcntl.ioctl(sock, SIOCGIFNETMASK, request)[20:24])
            except OSError:  # an interface without an IPv4 address
                continue
            found.append(ipaddress.IPv4Interface(f"{address}/{mask}"))
    try:
        lines = IPV6_INTERFACES.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        digits, _, length = line.split()[:3]
        found.append(ipaddress.IPv6Interface((int(digits, 16), int(length, 16))))
    return found
