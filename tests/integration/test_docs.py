"""What the documentation tells people to type does what it says: programs, configurations and commands are run as they stand.

A block of a page is everything between two fences, or a line that is indented by four blanks. Only the port is put in its
place.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from fix_postgres import Postgres, copy_of_template, locked, template
from fix_proxy import MakeProxy, Proxy, daemon_command

from pgpool_proxy import errors
from pgpool_proxy.cli import SUBCOMMANDS
from pgpool_proxy.settings import KEYS, load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PORT = "6432"
GO_LIBRARY = Path("/usr/share/gocode/src/github.com/lib/pq")  # Debian: golang-github-lib-pq-dev
JARS = [Path("/usr/share/java") / f"{name}.jar" for name in ("HikariCP", "postgresql", "slf4j-api", "slf4j-nop")]
NODE_PACKAGES = ("pg@8",)
INSTALL_S = 60


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text()
        found += [
            Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
            for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
            if match[1] in languages
        ]
    return found


def commands(*starts: str) -> list[Block]:
    """Indented lines that begin with one of these words, without their comments."""
    found: list[Block] = []
    for page in PAGES:
        fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
        text = fenced.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
        for number, line in enumerate(text.splitlines(), 1):
            words = [word for word in line.split() if not re.match(r"\w+=", word)] if line.startswith("    ") else []
            if words and words[0].rpartition("/")[2] in starts:
                found.append(Block(page, number, "sh", line.partition("  #")[0].strip()))
    return found


@pytest.fixture(scope="module")
def server(run_dir: Path) -> Iterator[Postgres]:
    """A PostgreSQL with what the pages speak of: database mydb, and user app with password secret."""
    with locked(run_dir):
        source, bindir = template(run_dir)
    found = copy_of_template(run_dir, source, bindir)
    found.sql("create role app login password 'secret'")
    found.sql("create database mydb owner app")
    rules = found.data / "pg_hba.conf"
    rules.write_text("host all app all scram-sha-256\n" + rules.read_text())
    found.sql("select pg_reload_conf()")
    yield found
    found.stop("immediate")
    shutil.rmtree(found.directory)


@pytest.fixture
def documented(make_proxy: MakeProxy, server: Postgres) -> Proxy:
    """A pooler in front of it, in transaction mode."""
    return make_proxy(
        databases={"mydb": f"host={server.host} port={server.port} dbname=mydb"},
        users={"app": "secret", "admin": "secret", "stats_user": "secret"},
        auth_type="scram-sha-256",
        pool_mode="transaction",
        admin_users="admin, app",
        stats_users="stats_user",
    )


Run = Callable[..., str]


@pytest.fixture
def run(documented: Proxy) -> Run:
    """Run a command that goes through the pooler as app: what it printed. `cwd` is where, `environ` comes on top."""

    def run_command(*command: object, cwd: Path, environ: dict[str, str] | None = None, who: str = "mydb/app@") -> str:
        before = documented.log()
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | (environ or {})
        words = [*map(str, command)]
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        assert who in documented.log().removeprefix(before), "it did not go through the pooler"
        return done.stdout

    return run_command


def with_port(text: str, proxy: Proxy) -> str:
    assert PORT in text
    return text.replace(PORT, str(proxy.port))


# --- programs ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_program_runs(block: Block, documented: Proxy, run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(with_port(block.text, documented))
    who, environ = ("pgbouncer/", {"PGPASSWORD": "secret"}) if "dbname=pgbouncer" in block.text else ("mydb/app@", {})
    printed = run(sys.executable, "-P", "-W", "error", "program.py", cwd=tmp_path, environ=environ, who=who)
    assert any(word in printed for word in ("app", "42", "pgbouncer")), printed


@pytest.mark.parametrize("block", blocks("java"), ids=str)
def test_a_java_program_runs(block: Block, documented: Proxy, run: Run, tmp_path: Path) -> None:
    absent = [str(jar) for jar in JARS if not jar.exists()] + [name for name in ("javac", "java") if not shutil.which(name)]
    if absent:
        pytest.skip(f"there is no {', '.join(absent)}")
    (tmp_path / "Main.java").write_text(with_port(block.text, documented))
    path = ":".join(map(str, [*JARS, tmp_path]))
    subprocess.run(["javac", "-cp", path, "Main.java"], cwd=tmp_path, check=True, timeout=90)
    assert run("java", "-cp", path, "Main", cwd=tmp_path) == "app through the pooler\n"


@pytest.mark.parametrize("block", blocks("go"), ids=str)
def test_a_go_program_runs(block: Block, documented: Proxy, run: Run, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None or not GO_LIBRARY.exists():
        pytest.skip(f"there is no go, or no {GO_LIBRARY}")
    (tmp_path / "main.go").write_text(with_port(block.text, documented))
    environ = {"GOPATH": "/usr/share/gocode", "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": ""}
    build = [go, "build", "-o", "program", "main.go"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=110, env={**os.environ, **environ})
    assert run(tmp_path / "program", cwd=tmp_path) == "app through the pooler\n"


@pytest.mark.parametrize("block", blocks("js"), ids=str)
def test_a_node_program_runs(block: Block, documented: Proxy, run: Run, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no node or no npm")
    (tmp_path / "package.json").write_text(json.dumps({"name": "client", "private": True}))
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", *NODE_PACKAGES]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm has not installed {NODE_PACKAGES} within {INSTALL_S} s")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {NODE_PACKAGES}: {done.stderr.strip()[-300:]}")
    (tmp_path / "program.js").write_text(with_port(block.text, documented))
    assert "through the pooler" in run("node", "program.js", cwd=tmp_path)


def test_every_block_of_code_has_a_test_that_runs_it() -> None:
    known = {"python", "java", "go", "js", "ini", "sql", "mermaid", ""}
    for page in PAGES:
        assert set(re.findall(r"^```(\w+)\n", page.read_text(), re.MULTILINE)) <= known, page
    for block in blocks(""):  # commands are indented lines: the tests below look for them there
        words = {word for line in block.text.splitlines() for word in line.split()[:2]}
        assert not words & {"pgpool-proxy", "make", "psql", "pip", "docker"}, block


# --- configurations ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_a_configuration_loads(block: Block, tmp_path: Path) -> None:
    text = re.sub(r"^%include .*$", "", block.text, flags=re.MULTILINE)
    if "[pgbouncer]" not in text:
        text += "[pgbouncer]\n"
    (tmp_path / "proxy.ini").write_text(text)
    config = load(str(tmp_path / "proxy.ini"), {}, {})
    assert config.databases or config.autodb or config.where


@pytest.mark.parametrize("block", blocks("sql"), ids=str)
def test_a_statement_is_one_that_postgresql_takes(block: Block, server: Postgres) -> None:
    server.sql("create schema if not exists pool")
    server.sql(block.text)


# --- commands ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", [block for block in commands("psql") if "://" in block.text], ids=str)
def test_a_psql_command_works(block: Block, documented: Proxy, run: Run, server: Postgres, tmp_path: Path) -> None:
    who = "pgbouncer/" if "/pgbouncer" in block.text else "mydb/app@"
    command = with_port(block.text, documented)
    path = f"{server.bindir}:{os.environ['PATH']}"
    assert run("sh", "-c", f"{command} </dev/null", cwd=tmp_path, environ={"PATH": path}, who=who) or "-c" not in command


@cache
def help_of(*subcommand: str) -> str:
    return subprocess.run([*daemon_command(), *subcommand, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("block", commands("pgpool-proxy"), ids=str)
def test_a_command_of_ours_has_options_that_there_are(block: Block) -> None:
    words = shlex.split(block.text)
    for variable in (word.partition("=")[0] for word in words if re.match(r"PGPOOL_PROXY_\w+=", word)):
        assert variable.removeprefix("PGPOOL_PROXY_").lower() in KEYS
    rest = words[next(at for at, word in enumerate(words) if word.endswith("pgpool-proxy")) + 1 :]
    known = rest[:1] if rest[:1] and rest[0] in SUBCOMMANDS else []
    told = help_of(*known)
    for word in rest[len(known) :]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}\b", told), word
    if rest and not known:
        assert rest[0].startswith("-") or rest[-1].endswith(".ini"), rest


@pytest.mark.parametrize("block", commands("make"), ids=str)
def test_a_make_command_has_a_target(block: Block) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    asked = [word for word in shlex.split(block.text)[1:] if "=" not in word]
    assert asked
    assert set(asked) <= set(targets[1].split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target
    for name in re.findall(r"(?<![\w/.])(?:config|deploy|docs)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name


# --- figures ----------------------------------------------------------------------------------------------------------------
def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    """Each row has the name of a row there, and figures of it."""

    def cells(row: str) -> list[str]:
        return [cell.strip() for cell in row.strip("|\n").split("|")]

    head = r"^\| \| PgBouncer [\d.]+ \| pgpool_proxy \| ratio \|\n\|[-|]+\n((?:\|.*\n)+)"
    (table,) = re.findall(head, PAGES[0].read_text(), re.MULTILINE)
    theirs = [cells(row) for row in re.findall(r"^\|.*", (ROOT / "docs" / "benchmarks.md").read_text(), re.MULTILINE)]
    assert len(table.splitlines()) >= 5
    for name, *figures in map(cells, table.splitlines()):
        (row,) = [row for row in theirs if re.match(re.escape(name) + r"(?![\w,:])(?: \*| \+|;|$)", row[0])][:1]
        for figure in figures:
            assert not figure or any(re.match(re.escape(figure) + r"(?![\w.,])", cell) for cell in row[1:]), (name, figure)


# --- messages ---------------------------------------------------------------------------------------------------------------
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text()


def test_every_message_that_somebody_is_told_is_explained() -> None:
    told = {value.message for value in vars(errors).values() if isinstance(value, errors.Report) and value.severity != "LOG"}
    rows = re.findall(r"^\| ([^|]*) \|", TROUBLES, re.MULTILINE)
    explained = {message for row in rows for message in re.findall(r"`([^`]+)`", row)}
    assert told - explained == set()


def test_every_message_that_is_explained_exists() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "pgpool_proxy").rglob("*.py"))
    known = {value.message for value in vars(errors).values() if isinstance(value, errors.Report)}
    theirs = {"cached error: ...", "cached plan must not change result type", 'prepared statement "..." does not exist'}
    theirs |= {"SET", "LISTEN", "currval", "search_path"}
    for row in re.findall(r"^\| ([^|]*) \| ", TROUBLES, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            assert message in known | theirs, message
    for message in re.findall(r"`([^`]+)`", TROUBLES.split("## Words of the log alone")[1].split("| message")[0]):
        assert message.replace("\n", " ") in known, message
    for message in ("unix socket is in use, cannot continue", "should not run as root", "nothing to listen on"):
        assert message in TROUBLES
        assert message in sources


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_with_a_value_take_it(page: Path) -> None:
    for name, value in re.findall(r"`([a-z][a-z0-9_]+) = ([^`\n]+)`", page.read_text()):
        if name in KEYS:
            KEYS[name].parse(value)
        elif "=" not in value:  # else it is an entry
            assert (name, value) in {("ssl", "on"), ("key", "value")}, f"{name} is no setting"
