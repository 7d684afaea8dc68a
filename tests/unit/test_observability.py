"""The dashboard and the alert rules ask for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgpool_proxy.metrics.collector import Exposition
from pgpool_proxy.metrics.snapshot import CLIENT_STATES, SERVER_STATES, Snapshot
from pgpool_proxy.process.counters import KNOWN_REASONS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "pgpool_proxy.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "pgpool_proxy.json"
TESTS = RULES.parent / "pgpool_proxy_test.yml"
LAG = ((0,) * 21, 0)
SCRAPED = {"job", "instance"}


def known() -> dict[str, set[str]]:
    """Every series that /metrics can have, and its labels; those that a scrape gives come on top."""
    found: dict[str, set[str]] = {"up": SCRAPED, "process_cpu_seconds_total": SCRAPED}
    for family in Exposition().families(Snapshot("1", "compiled", 0.0, [], [], 0, 100, 0, frozenset(), loop_lag=LAG)):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            labels = {*getattr(family, "_labelnames", ()), *(("le",) if suffix == "_bucket" else ())}
            found[family.name + suffix] = SCRAPED | labels
    return found


def selectors(query: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics that a query asks for: (name, its (label, operator, value))."""
    names = r"\b(up|(?:pgpool_proxy|process)_\w+)(?:\{([^}]*)\})?"
    return [(name, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', inside)) for name, inside in re.findall(names, query)]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool") or pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False, timeout=60)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in rules())])
def test_what_is_asked_for_exists(query: str) -> None:
    series = known()
    labels: set[str] = set()
    assert selectors(query)
    for name, wanted in selectors(query):
        assert name in series
        assert {label for label, _, _ in wanted} <= series[name], name
        labels |= series[name]
    for named in re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", query):
        assert set(named.split(", ")) <= labels, named


def test_what_the_dashboard_lets_one_choose_from_exists() -> None:
    asked = [each["query"] for each in json.loads(DASHBOARD.read_text())["templating"]["list"] if each["type"] == "query"]
    found = [re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query["query"]) for query in asked]
    assert {match[2] for match in found if match} == {"instance", "database", "user"}
    assert all(match and match[2] in known()[match[1]] for match in found)


def test_the_reasons_and_states_that_are_asked_for_exist() -> None:
    states = {*CLIENT_STATES, *SERVER_STATES}
    for query in [*queries(), *(rule["expr"] for rule in rules())]:
        for _, wanted in selectors(query):
            for label, operator, value in wanted:
                values = value.split("|") if operator in ("=~", "!~") else [value]
                if label == "reason":  # the pooler's words, or an SQLSTATE where the words are a server's
                    assert [one for one in values if one not in KNOWN_REASONS and not re.fullmatch("[0-9A-Z]{5}", one)] == []
                elif label in ("state", "side"):
                    assert set(values) <= (states if label == "state" else {"client", "server"})


def test_what_an_alert_says_has_labels_that_its_answer_has() -> None:
    series = known()
    for rule in rules():
        grouped = re.findall(r"\bsum by \(([^)]*)\)", rule["expr"])
        of_series = set().union(*(series[name] for name, _ in selectors(rule["expr"])))
        left = set(grouped[0].split(", ")) if grouped else of_series
        said = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
        assert said <= left, rule["alert"]


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["for"]


def test_the_dashboard_answers_the_four_questions() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Is it up?", "Who waits?", "Why?", "What to change?"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_each_alert_is_seen_to_fire_and_not_to_fire_on_series_that_there_are() -> None:
    outcomes: dict[str, set[bool]] = {rule["alert"]: set() for rule in rules()}
    series = known()
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        for given in case["input_series"]:
            ((name, labels),) = selectors(given["series"])
            wanted = series[name] - {"job"} if name != "up" else SCRAPED
            assert {label for label, _, _ in labels} == wanted, given["series"]
        for asked in case["alert_rule_test"]:
            outcomes[asked["alertname"]].add(bool(asked["exp_alerts"]))
    assert {alert: seen for alert, seen in outcomes.items() if seen != {True, False}} == {}


@pytest.mark.parametrize(
    "command",
    [("check", "rules", RULES), ("check", "config", RULES.parent / "prometheus.yml"), ("test", "rules", TESTS)],
    ids=lambda command: "-".join(command[:2]),
)
def test_promtool_takes_them(command: tuple[str, str, Path]) -> None:
    done = promtool(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """As rules, for it checks no dashboards; Grafana puts a time in the place of $__rate_interval."""
    asked = (query.replace("$__rate_interval", "1m") for query in queries())
    recorded = [{"record": f"dashboard:{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", tmp_path / "dashboard.yml")
    assert done.returncode == 0, done.stdout + done.stderr
