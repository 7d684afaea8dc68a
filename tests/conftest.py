"""The fixtures live in fix_*.py, one topic a file. What Hypothesis tries may take as long as a busy machine takes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

pytest_plugins = ["fix_postgres", "fix_proxy", "fix_tcp", "fix_raw", "fix_clients", "fix_tls", "fix_dns", "fix_drivers"]
