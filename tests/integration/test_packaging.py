"""The sdist has what a build needs, the wheel has the whole package, and both say what pyproject.toml says."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "pgpool_proxy").rglob("*")
    if path.is_file() and path.suffix not in (".pyc", ".so")
}


def build(kind: str, source: Path, out: Path) -> Path:
    """Build `source` with the tools that are installed here, as plain Python: the file that was made."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=source, timeout=100,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "PGPOOL_PROXY_PURE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built of it and of nothing else."""
    work = tmp_path_factory.mktemp("packaging")
    clean = work / "clean"  # as a checkout has it: a build writes into its source
    for path in ROOT.iterdir():
        if path.name not in ("build", "dist") and (path.name == ".dockerignore" or not path.name.startswith(".")):
            to = clean / path.name
            to.parent.mkdir(exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))  # other tests may write there meanwhile
            else:
                shutil.copy2(path, to)
    sdist = build("sdist", clean, work)
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, work)


def test_the_sdist_has_the_package_its_tests_and_its_documentation(made: tuple[Path, Path]) -> None:
    with tarfile.open(made[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= SOURCES
    assert names >= {"pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "Makefile", "Dockerfile", "docker-compose.yml"}
    for folder in ("tests", "docs", "config", "deploy"):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
        assert names >= {str(path.relative_to(ROOT)) for path in files}
    assert not [name for name in names if name.endswith((".so", ".pyc", ".c"))]


def test_the_wheel_of_the_sdist_has_the_package_and_no_more(made: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(made[1]) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if ".dist-info/" not in name} == SOURCES


def test_the_wheel_says_what_it_is_and_what_it_needs(made: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(made[1]) as wheel:
        (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata.get_payload().lstrip().startswith("# pgpool_proxy")
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert len(needs) == len(PROJECT["dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert f"pgpool-proxy = {PROJECT['scripts']['pgpool-proxy']}" in scripts


def needed(*declared: str) -> set[str]:
    """The modules that these requirements bring, with what they need in turn."""
    waiting, names = list(declared), set[str]()
    while waiting:
        need = waiting.pop()
        name = re.split(r"[^\w.-]", need)[0].lower().replace("_", "-")
        if "extra ==" not in need and name not in names:
            names.add(name)
            try:
                waiting += importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # for another platform
                names.discard(name)
    brought = importlib.metadata.packages_distributions().items()
    return {module for module, by in brought if {one.lower().replace("_", "-") for one in by} & names}


def test_what_is_imported_is_declared() -> None:
    """An install without extras has all that is imported at the top; what functions import may come with an extra for users."""
    always = needed(*PROJECT["dependencies"])
    extras = needed(*(need for extra in ("demo", "ldap", "pam") for need in PROJECT["optional-dependencies"][extra]))
    for source in sorted(path for path in SOURCES if path.endswith(".py")):
        tree = ast.parse((ROOT / source).read_text())
        tried = [node for node in tree.body if isinstance(node, ast.Try | ast.If)]
        at_the_top = {*tree.body, *(inner for node in tried for inner in ast.walk(node))}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            known = {*sys.stdlib_module_names, "pgpool_proxy", *always, *(() if node in at_the_top else extras)}
            assert {module.partition(".")[0] for module in modules} <= known, f"{source}:{node.lineno}"


def test_what_the_wheel_has_runs_by_itself(made: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(made[1]) as wheel:
        wheel.extractall(tmp_path)
    command = [sys.executable, "-P", "-m", "pgpool_proxy", "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd="/", env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.stdout.startswith(f"pgpool_proxy {PROJECT['version']}\nbuild: plain Python\n")
