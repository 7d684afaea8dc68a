"""What runs: the version of the package, and which of its two builds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from pgpool_proxy.wire import framing


def _installed() -> str:
    try:
        return version("pgpool-proxy")
    except PackageNotFoundError:
        return "unknown"


# Now: later we may be an account that cannot read it.
VERSION: Final = _installed()
UVLOOP: Final = version("uvloop")


def package_version() -> str:
    return VERSION


def is_compiled() -> bool:
    """Is this the build that mypyc compiled?"""
    return not framing.__file__.endswith(".py")


def build() -> str:
    return "compiled" if is_compiled() else "plain Python"
