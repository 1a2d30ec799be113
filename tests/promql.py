"""What the dashboards and rules ask Prometheus for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1] / "coordinator"
MONITORING = ROOT / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
RULE_TESTS = sorted((MONITORING / "rule-tests").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "dashboards").glob("*.json"))
# A metric of ours, recorded or scraped, or Prometheus's own, with its label matchers.
_SELECTOR = re.compile(r"(?<![\w:$])((?:[\w]+:)?clue_\w+(?::\w+)*|up|ALERTS)(?![\w(:])\s*(\{[^{}]*\})?")
_LABELS = re.compile(r"\b(?:by|on|without|ignoring)\s*\([^)]*\)")
_VALUES = re.compile(r"label_values\((.+), (\w+)\)\Z")


def rules() -> list[dict[str, Any]]:
    """Every rule of every file."""
    groups = (yaml.safe_load(path.read_text())["groups"] for path in RULES)
    return [rule for file in groups for group in file for rule in group["rules"]]


def panels(dashboard: Path) -> Iterator[tuple[str, str]]:
    """``(panel, expression)`` of a dashboard, variables not filled in; its variables' selectors are among them."""
    content = json.loads(dashboard.read_text())
    for variable in content["templating"]["list"]:
        if variable["type"] == "query":
            found = _VALUES.match(variable["query"]["query"])
            assert found, variable["query"]
            yield f"variable {variable['name']}", f"count by ({found[2]}) ({found[1]})"
    for panel in content["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def selectors(expression: str) -> list[str]:
    """The selectors in an expression, without ranges: each must find something, or a name is wrong."""
    return [name + (matchers or "") for name, matchers in _SELECTOR.findall(_LABELS.sub("", expression))]


def metric(selector: str) -> str:
    """Name of the metric."""
    return selector.partition("{")[0]
