"""Host names of servers: asked of c-ares off the loop, kept for their time to live, watched by their zones' serials.

c-ares reads /etc/hosts and resolv.conf (or the file that resolv_conf names) as PgBouncer's does. A name is kept for its own
time to live, dns_max_ttl at the most; that it does not exist, for dns_nxdomain_ttl. When name servers do not answer, the last
answer is used on. Of several addresses each look-up begins with the next one. With dns_zone_check_period the SOA record of the
zones (a name without its first label) is asked for that often; another serial makes their names be looked up anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

import aiodns
import pycares

from pgpool_proxy import log
from pgpool_proxy.net.tasks import Tasks

NOT_THERE: Final = frozenset({pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME})
RESOLVER_OPTIONS: Final = {"timeout": "timeout", "attempts": "tries", "ndots": "ndots"}
SHORTEST_TTL_S: Final = 1.0  # of an answer that says 0: those from /etc/hosts do
IDLE_S: Final = 3600.0  # a name that nobody has asked for that long is forgotten


class DnsSettings(Protocol):
    @property
    def dns_max_ttl(self) -> float: ...

    @property
    def dns_nxdomain_ttl(self) -> float: ...

    @property
    def dns_zone_check_period(self) -> float: ...

    @property
    def resolv_conf(self) -> str: ...


class Name:
    """A host name that was asked for. No addresses: it does not exist, or was not found out yet."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: tuple[str, ...] = ()
        self.error = ""
        self.until = 0.0
        self.used_at = 0.0
        self.turn = 0
        self.query: asyncio.Future[None] | None = None

    @property
    def zone(self) -> str:
        """The name without its first label; empty for one of a single label."""
        return self.host.rstrip(".").partition(".")[2]

    def __repr__(self) -> str:
        return f"<Name {self.host} {','.join(self.addresses)}>"


class Dns:
    """All names of this process. `changed(host, gone)` is told which addresses a name has no more."""

    def __init__(self, tasks: Tasks, changed: Callable[[str, frozenset[str]], None]) -> None:
        self._tasks = tasks
        self._changed = changed
        self._names: dict[str, Name] = {}
        self._zones: dict[str, int] = {}  # serials; 0: not known
        self._max_ttl = 15.0
        self._nxdomain_ttl = 15.0
        self._check_period = 0.0
        self._check_due = 0.0
        self._resolv_conf = ""
        self.queries = 0  # under way

    def configure(self, settings: DnsSettings) -> None:
        self._max_ttl = settings.dns_max_ttl
        self._nxdomain_ttl = settings.dns_nxdomain_ttl
        self._check_period = settings.dns_zone_check_period
        self._resolv_conf = settings.resolv_conf

    # --- look-ups -------------------------------------------------------------------------------------------------------
    async def addresses(self, host: str) -> list[str]:
        """IP addresses, the one to try first at the front. Raises `socket.gaierror`."""
        if _is_address(host):
            return [host]
        name = self._names.setdefault(host, Name(host))
        now = monotonic()
        name.used_at = now
        if now >= name.until:
            await self._ask(name)
        if not name.addresses:
            raise socket.gaierror(socket.EAI_NONAME, name.error or "host name not known")
        name.turn = (name.turn + 1) % len(name.addresses)
        return [*name.addresses[name.turn :], *name.addresses[: name.turn]]

    async def _ask(self, name: Name) -> None:
        """One query at a time for a name; who comes meanwhile waits for the same answer."""
        under_way = name.query
        if under_way is None:
            under_way = name.query = asyncio.get_running_loop().create_future()
            self._tasks.start(self._query(name), f"looking up {name.host}")
        await asyncio.shield(under_way)

    async def _query(self, name: Name) -> None:
        self.queries += 1
        found: list[tuple[str, int]] = []
        failure: aiodns.error.DNSError | None = None
        try:
            async with self._channel() as channel:
                answer = await channel.getaddrinfo(name.host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
            found = [(_text(node.addr[0]), node.ttl) for node in answer.nodes]
        except aiodns.error.DNSError as error:
            failure = error
        finally:
            self.queries -= 1
            waiting, name.query = name.query, None
            self._answered(name, found, failure, monotonic())
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _answered(
        self, name: Name, found: list[tuple[str, int]], failure: aiodns.error.DNSError | None, now: float
    ) -> None:
        if found:
            name.error = ""
            ttl = min(self._max_ttl, max(min(ttl for _, ttl in found), SHORTEST_TTL_S))
            self._replace(name, tuple(dict.fromkeys(address for address, _ in found)))
            name.until = now + ttl
            return
        name.error = str(failure.args[1]) if failure is not None and len(failure.args) > 1 else "no addresses"
        name.until = now + self._nxdomain_ttl
        if name.addresses and failure is not None and failure.args[0] not in NOT_THERE:
            log.get_logger().warning(f"DNS: {name.host}: {name.error}, going on with its last addresses")
        else:
            self._replace(name, ())

    def _replace(self, name: Name, addresses: tuple[str, ...]) -> None:
        gone = frozenset(name.addresses) - frozenset(addresses)
        name.addresses = addresses
        if gone and addresses:
            self._changed(name.host, gone)

    def _channel(self) -> aiodns.DNSResolver:
        """One for each question: c-ares keeps answers itself, for longer than we may, and reads resolv.conf but once."""
        options = resolver_options(self._resolv_conf) if self._resolv_conf else {}
        return aiodns.DNSResolver(loop=asyncio.get_running_loop(), **options)

    # --- time -------------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Called by the janitor: names that nobody uses are forgotten, zones are looked at."""
        for host, name in list(self._names.items()):
            if name.query is None and now - name.used_at >= IDLE_S:
                del self._names[host]
        if self._check_period > 0 and now >= self._check_due:
            self._check_due = now + self._check_period
            zones = {name.zone for name in self._names.values()} - {""}
            self._zones = {zone: self._zones.get(zone, 0) for zone in zones}
            for zone in zones:
                self._tasks.start(self._check(zone), f"serial of {zone}")
        elif self._check_period <= 0 and self._zones:
            self._zones.clear()

    async def _check(self, zone: str) -> None:
        """Ask for a zone's serial; with another one, for its names."""
        try:
            async with self._channel() as channel:
                answer = await channel.query_dns(zone, "SOA")
            serial = next(int(record.data.serial) for record in answer.answer if hasattr(record.data, "serial"))
        except (aiodns.error.DNSError, StopIteration):
            return  # asked again in a while
        old = self._zones.get(zone)
        if old is None:
            return
        self._zones[zone] = serial
        if old not in (0, serial):
            log.get_logger().info(f"zone {zone} serial changed: old={old} new={serial}")
            for name in list(self._names.values()):
                if name.zone == zone:
                    name.until = 0.0
                    self._tasks.start(self._ask(name), f"looking up {name.host} again")

    # --- what SHOW says ---------------------------------------------------------------------------------------------------
    def hosts(self) -> Iterator[tuple[str, int, str]]:
        """Host name, seconds that its answer is still good for, addresses."""
        now = monotonic()
        for host, name in sorted(self._names.items()):
            yield host, max(0, int(name.until - now)), ",".join(name.addresses)

    def zones(self) -> Iterator[tuple[str, int, int]]:
        """Zone, serial, how many names it has here."""
        for zone, serial in sorted(self._zones.items()):
            yield zone, serial, sum(name.zone == zone for name in self._names.values())


def resolver_options(path: str) -> dict[str, Any]:
    """What a file like resolv.conf(5) says, as arguments of a resolver; what cannot be read counts as empty, as for c-ares.

    pycares has an argument for the file's name, but frees the text before c-ares has read it (5.2.1): now and then another
    file, or none, is read.
    """
    options: dict[str, Any] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            options.setdefault("nameservers", []).append(words[1])
        elif words[0] == "domain":
            options["domains"] = words[1:2]
        elif words[0] == "search":
            options["domains"] = words[1:]
        elif words[0] == "options":
            for word in words[1:]:
                name, _, value = word.partition(":")
                if name in RESOLVER_OPTIONS and value.isdecimal():
                    options[RESOLVER_OPTIONS[name]] = int(value)
                elif name == "rotate":
                    options["rotate"] = True
    return options


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _text(address: bytes | str) -> str:
    return address.decode() if isinstance(address, bytes) else address
