"""A name server that a test speaks through: names, addresses, times to live, zones, all changed as it goes."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_wait import hand_over

A, SOA = 1, 6


class NameServer:
    """`names` maps a host to its addresses, `zones` a zone to its serial; `asked` counts the questions for a name."""

    def __init__(self, directory: Path, address: str) -> None:
        self.address = address
        self.names: dict[str, list[str]] = {}
        self.zones: dict[str, int] = {}
        self.ttl = 60
        self.is_silent = False
        self.asked: dict[str, int] = {}
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {address}\noptions timeout:2 attempts:2\n")
        hand_over(self.resolv_conf)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                packet, who = self._socket.recvfrom(4096)
            except OSError:
                return
            if not packet:
                return
            answer = self._answer(packet)
            if not self.is_silent:
                self._socket.sendto(answer, who)

    def _answer(self, packet: bytes) -> bytes:
        labels, at = [], 12
        while packet[at]:
            labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
            at += 1 + packet[at]
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from("!H", packet, at + 1)
        question = packet[12 : at + 5]
        records = b""
        count = 0
        if kind == A:
            self.asked[name] = self.asked.get(name, 0) + 1
            for address in self.names.get(name, []):
                records += b"\xc0\x0c" + struct.pack("!HHIH", A, 1, self.ttl, 4) + socket.inet_aton(address)
                count += 1
        elif kind == SOA and name in self.zones:
            data = b"\0\0" + struct.pack("!5I", self.zones[name], 60, 60, 60, 60)
            records = b"\xc0\x0c" + struct.pack("!HHIH", SOA, 1, self.ttl, len(data)) + data
            count = 1
        code = 0 if name in self.names or name in self.zones else 3
        return packet[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, count, 0, 0) + question + records

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, 53))
        self._thread.join(5)
        self._socket.close()


OwnLoopback = Callable[[int], str]


@pytest.fixture(scope="session")
def own_loopback(worker_id: str) -> OwnLoopback:
    """`own_loopback(7)`: a loopback address that no other worker's tests know, where ports of their servers are free."""
    number = int(worker_id.removeprefix("gw") if worker_id.startswith("gw") else 0)
    return lambda last: f"127.0.{53 + number}.{last}"


@pytest.fixture
def name_server(run_dir: Path, own_loopback: OwnLoopback) -> Iterator[NameServer]:
    """Needs port 53 of a loopback address, since resolv.conf knows no ports, so the right to bind it."""
    directory = Path(tempfile.mkdtemp(prefix="dns-", dir=run_dir))
    directory.chmod(0o755)
    try:
        server = NameServer(directory, own_loopback(53))
    except PermissionError:
        pytest.skip("port 53 cannot be had")
    yield server
    server.stop()
