"""The fixtures live in fix_*.py, one topic a file."""

from __future__ import annotations

pytest_plugins = ["fix_postgres", "fix_proxy", "fix_tcp", "fix_raw", "fix_clients", "fix_tls", "fix_dns", "fix_drivers"]
