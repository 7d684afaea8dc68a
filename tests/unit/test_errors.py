"""errors.py: what operators and drivers read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgpool_proxy import errors

ROOT = Path(__file__).parents[2]
REPORTS = {name: value for name, value in vars(errors).items() if isinstance(value, errors.Report)}
TOLD = {name: report for name, report in REPORTS.items() if report.severity != "LOG"}


@pytest.mark.parametrize("name", sorted(TOLD))
def test_every_report_stands_in_the_table_of_the_docs(name: str) -> None:
    report = TOLD[name]
    row = f"| `{report.sqlstate}` | {report.severity} | {report.message} |"
    assert row in (ROOT / "docs" / "compatibility.md").read_text()


def test_the_table_of_the_docs_has_no_row_without_a_report() -> None:
    known = {f"| `{r.sqlstate}` | {r.severity} | {r.message} |" for r in TOLD.values()}
    page = (ROOT / "docs" / "compatibility.md").read_text()
    rows = {line for line in page.splitlines() if line.startswith("| `") and (" | FATAL | " in line or " | ERROR | " in line)}
    assert rows == known


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_every_report_has_a_sqlstate_of_five_characters_and_a_text(name: str) -> None:
    assert len(REPORTS[name].sqlstate) == 5
    assert REPORTS[name].message


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_every_report_is_used_somewhere(name: str) -> None:
    sources = [path.read_text() for path in (ROOT / "pgpool_proxy").rglob("*.py") if path.name != "errors.py"]
    own = (ROOT / "pgpool_proxy" / "errors.py").read_text().count(name) > 1
    assert own or any(name in source for source in sources)


def test_a_config_error_says_what_where_and_why() -> None:
    error = errors.ConfigError("expected a number", file="a.ini", line=3, key="listen_port")
    assert str(error) == "a.ini:3: listen_port: expected a number"
