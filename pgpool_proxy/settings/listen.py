"""What `listen_addr` says: addresses, each at `listen_port` or at a port of its own."""

from __future__ import annotations

import re
from typing import Final

WITH_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


def listen_addresses(listen_addr: str, listen_port: int) -> list[tuple[str, int]]:
    """(address, host name or `*`; port) of a list like `127.0.0.1, ::1, 10.0.0.5:6433, [fd00::5]:6433`. Raises ValueError."""
    found: list[tuple[str, int]] = []
    for entry in listen_addr.split(","):
        name, port = entry.strip().removeprefix("[").removesuffix("]"), listen_port
        match = WITH_PORT.fullmatch(entry.strip())
        if match is not None:
            name, port = match["v6"] or match["host"] or "*", int(match["port"])
            if not 1 <= port <= 65535:
                raise ValueError(f'expected a port from 1 to 65535, got "{match["port"]}"')
        if name:
            found.append((name, port))
    return found
