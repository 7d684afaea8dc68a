"""The fixtures live in fix_*.py, one topic a file. What Hypothesis tries may take as long as a busy machine takes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

TOPICS = ("postgres", "warm", "proxy", "tcp", "raw", "clients", "tls", "dns", "drivers")
pytest_plugins = [f"fix_{topic}" for topic in TOPICS]
