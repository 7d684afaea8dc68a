"""The five methods that a session asks of its connection. asyncio's transports have them; tests pass a recorder."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    def write(self, data: bytes) -> None:
        """Send, now or as soon as the peer takes it; never blocks."""
        ...

    def close(self) -> None:
        """Close after what was written has gone out."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...
