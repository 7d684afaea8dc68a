"""The list of modules that mypyc compiles; all else about the build is in pyproject.toml.

Compiling is an optimisation, never a condition. Without a C compiler, or where a compile fails, the same files are
installed as plain Python, and the build says so. The environment variable PGPOOL_PROXY_PURE decides:

    unset   compile if possible
    1       do not compile
    0       compile, or fail the build
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "pgpool_proxy"
ROOT = Path(__file__).resolve().parent
COMPILED = (
    f"{PACKAGE}/wire/*.py",
    f"{PACKAGE}/pool/*.py",
    f"{PACKAGE}/session/*.py",
    f"{PACKAGE}/net/client_connection.py",
    f"{PACKAGE}/net/listener.py",
    f"{PACKAGE}/net/server_connection.py",
    f"{PACKAGE}/net/tls_transport.py",
    f"{PACKAGE}/process/counters.py",
    f"{PACKAGE}/process/failed_logins.py",
    f"{PACKAGE}/process/host.py",
    f"{PACKAGE}/process/logins.py",
    f"{PACKAGE}/log_lines.py",
    f"{PACKAGE}/auth/*.py",
)
MUST_COMPILE = os.environ.get("PGPOOL_PROXY_PURE") == "0"
ONLY_TELLS = ("dist_info", "egg_info", "sdist")  # commands that build nothing: mypyc's minute is not theirs


def compiled_modules() -> list[str]:
    """The files that COMPILED names, as far as they exist and say something."""
    paths = (path for pattern in COMPILED for path in sorted(ROOT.glob(pattern)))
    return [
        str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py" and path.read_text().strip()
    ]


def why_not() -> str:
    """Why nothing can be compiled here; empty when it can."""
    if os.environ.get("PGPOOL_PROXY_PURE") == "1":
        return "PGPOOL_PROXY_PURE=1"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's header files are missing ({header}; Debian: apt-get install python3-dev)"
    try:
        import mypyc.build  # noqa: F401  (asked, not used)
    except ImportError as error:
        return f"mypyc cannot be imported ({error})"
    return ""


def go_on_plain(reason: str) -> None:
    """Say loudly that plain Python is installed, or fail when that is not wanted."""
    if MUST_COMPILE:
        sys.exit(f"{PACKAGE}: cannot compile: {reason}")
    print(f"\n*** {PACKAGE} is installed as plain Python, not compiled: {reason}\n", file=sys.stderr, flush=True)


class BuildAllOrNothing(build_ext):
    """Compile the whole group, or install none of it: a half compiled package would be a third build to test."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            go_on_plain(f"the compile failed: {error}")
            for output in map(Path, self.get_outputs()):
                output.unlink(missing_ok=True)
            self.extensions = []
            self.distribution.ext_modules = []


def extensions() -> list[Extension]:
    if sys.argv[1:2] and sys.argv[1] in ONLY_TELLS:
        return []
    modules = compiled_modules()
    reason = why_not() or ("" if modules else "no module to compile is written yet")
    if reason:
        go_on_plain(reason)
        return []
    from mypyc.build import mypycify

    # mypy --strict is the test run's business; here only what the compiler needs. Libraries that are absent from the
    # build environment count as Any.
    options = ["--config-file=", "--ignore-missing-imports", "--python-version", "{}.{}".format(*sys.version_info)]
    try:
        return list(mypycify([*options, *modules], opt_level="3", group_name=PACKAGE, strip_asserts=False))
    except (Exception, SystemExit) as error:  # mypycify exits on a type error
        go_on_plain(f"mypyc refused the source: {error}")
        return []


if __name__ == "__main__":  # a test reads COMPILED without building anything
    os.chdir(ROOT)
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildAllOrNothing})
