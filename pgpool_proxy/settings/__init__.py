"""The configuration: read, checked, resolved and reloaded. Knows no sockets, no pools and no event loop."""

from pgpool_proxy.settings.config import Config, load
from pgpool_proxy.settings.entries import DatabaseEntry, PeerEntry, UserEntry
from pgpool_proxy.settings.model import KEYS, Settings, config_rows

__all__ = ["Config", "DatabaseEntry", "KEYS", "PeerEntry", "Settings", "UserEntry", "config_rows", "load"]
