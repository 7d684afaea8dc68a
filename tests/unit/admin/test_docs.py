"""docs/console.md says what the code does: every command, every table, every column, every error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pgpool_proxy.admin import answers, console, control, grammar, messages, show, statements
from pgpool_proxy.admin.commands import COMMANDS
from pgpool_proxy.admin.show import FAKE_PARAMETERS, TABLES
from pgpool_proxy.errors import Report

DOCS = (Path(__file__).parents[3] / "docs" / "console.md").read_text()
CHAPTERS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))


def sections(chapter: str) -> dict[str, str]:
    """Heading -> text."""
    return dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", CHAPTERS[chapter], re.MULTILINE | re.DOTALL))


def test_every_command_has_a_section_that_shows_its_arguments() -> None:
    wanted = {
        f"{command.name} {command.argument}".strip() + (" [TIMEOUT seconds]" if command.may_wait else "")
        for command in COMMANDS.values()
    }
    assert set(sections("Commands")) == wanted


def test_every_table_has_a_section() -> None:
    assert set(sections("Tables")) == {f"SHOW {name}" for name in (*TABLES, "HELP")}


@pytest.mark.parametrize("heading", [*sections("Commands"), *sections("Tables")])
def test_every_section_has_an_example(heading: str) -> None:
    text = {**sections("Commands"), **sections("Tables")}[heading]
    first = " ".join(heading.split()[: 2 if heading.startswith("SHOW") else 1])
    assert f"    pgbouncer=# {first}" in text


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_column_stands_in_its_table_with_its_type(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", sections("Tables")[f"SHOW {name}"], re.MULTILINE)
    assert rows == [(column.name, column.type.name) for column in TABLES[name].columns]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_an_example_shows_no_column_that_does_not_exist(name: str) -> None:
    example = re.search(r"^    pgbouncer=# .*\n(.*)\n +-", sections("Tables")[f"SHOW {name}"], re.MULTILINE)
    assert example is not None
    shown = [column.strip() for column in example[1].split("|") if column.strip() != "..."]
    known = [column.name for column in TABLES[name].columns]
    assert [column for column in known if column in shown] == shown


def test_every_line_of_show_lists_is_explained(house: Any) -> None:
    explained = re.findall(r"^\| `(\w+)` \| \w[^|]+ [^|]+ \|$", sections("Tables")["SHOW LISTS"], re.MULTILINE)
    assert explained == [row["list"] for row in house.console().rows("SHOW LISTS")]


def test_every_pretended_parameter_is_named() -> None:
    assert all(f"`{name}`" in CHAPTERS["Statements"] for name in FAKE_PARAMETERS)


def test_every_error_is_listed() -> None:
    reports = {
        (report.sqlstate, report.message)
        for module in (answers, control, console, grammar, messages, show, statements)
        for report in vars(module).values()
        if isinstance(report, Report) and report.severity == "ERROR"
    }
    listed = set(re.findall(r"^\| `(\w{5})` \| (.+) \|$", CHAPTERS["Errors"], re.MULTILINE))
    assert reports <= listed
    made_at_once = {text for _, text in listed - reports}
    assert made_at_once == {
        "invalid command '...', use SHOW HELP;",
        "no such database: ...",
        "database ... is not paused",
        "worker ... did not answer within ... s",
        "worker ... ended before it answered",
        "cannot ... admin db: ...",
        "the timeout has to be a number of seconds greater than 0",
        "canceling statement due to user request",
    }
