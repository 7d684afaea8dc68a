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

from pgpool_proxy.metrics.collector import families
from pgpool_proxy.metrics.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "pgpool_proxy.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "pgpool_proxy.json"
LAG = ((0,) * 21, 0)


def known() -> set[str]:
    """Every series that /metrics can have."""
    names: set[str] = set()
    for family in families(Snapshot("1", "compiled", 0.0, [], [], 0, 100, 0, frozenset(), loop_lag=LAG)):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in rules())])
def test_what_is_asked_for_exists(query: str) -> None:
    asked = set(re.findall(r"pgpool_proxy_\w+", re.sub(r'"[^"]*"', "", query)))
    assert asked <= known()


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


@pytest.mark.parametrize("what", [("rules", RULES), ("config", RULES.parent / "prometheus.yml")], ids=lambda what: what[0])
def test_promtool_takes_them(what: tuple[str, Path], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    kind, path = what
    done = subprocess.run([promtool, "check", kind, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
