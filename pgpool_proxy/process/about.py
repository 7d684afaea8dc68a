"""What runs: the version of the package, and which of its two builds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pgpool_proxy.wire import framing


def package_version() -> str:
    try:
        return version("pgpool-proxy")
    except PackageNotFoundError:
        return "unknown"


def is_compiled() -> bool:
    """Is this the build that mypyc compiled?"""
    return not framing.__file__.endswith(".py")


def build() -> str:
    return "compiled" if is_compiled() else "plain Python"
