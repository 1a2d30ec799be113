"""Dashboards, rules and the metrics that they speak of agree; promtool accepts the rules and runs their tests."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import promql
import pytest
import yaml
from fleet_ledger import Fleet
from prometheus_client.core import Metric

from clue_coordinator import metrics

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is missing")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that either endpoint may have a sample of."""
    fleet = Fleet.make(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", 1)
    families: list[Metric] = [
        *metrics.LedgerCollector(fleet.ledger).collect(),
        *metrics.DeviceCollector(fleet.ledger, "yard", 10).collect(),
    ]
    fleet.ledger.close()
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, ("",))}


def test_every_metric_that_is_asked_for_is_exported_or_recorded(exported: set[str]) -> None:
    known = exported | {rule["record"] for rule in promql.rules() if "record" in rule} | {"up", "ALERTS"}
    asked = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in promql.rules()]
    for dashboard in promql.DASHBOARDS:
        asked += promql.panels(dashboard)
    for where, expression in asked:
        found = promql.selectors(expression)
        # Whatever looks like a metric of ours was found to be one.
        assert len(re.findall(r"clue_\w+", re.sub(r"clue_devices, ", "", expression))) == sum(
            "clue_" in s for s in found
        )
        assert found or expression.startswith("vector("), where
        assert {promql.metric(selector) for selector in found} <= known, where


def test_names_follow_the_conventions(exported: set[str]) -> None:
    families = {re.sub(r"_(bucket|sum|count|total)\Z", "", name) for name in exported}
    unit = re.compile(r"(_ratio|_seconds|_bytes|_joules)\Z")
    # What is counted in itself has no unit.
    counted = {
        *(
            "clue_coordinator_build_info",
            "clue_devices",
            "clue_devices_online",
            "clue_requests",
            "clue_requests_omitted",
        ),
        *("clue_executions", "clue_receipts", "clue_receipts_refused", "clue_policy_missed", "clue_log_leaves"),
        *("clue_log_uncheckpointed_leaves", "clue_root_version", "clue_fleet_devices_shown"),
        *("clue_fleet_devices_omitted", "clue_device_online", "clue_request_info", "clue_request_executions"),
        *("clue_request_open", "clue_request_paused", "clue_request_devices_pending", "clue_request_devices_due"),
        *("clue_request_policy_missed",),
    }
    assert {name for name in families if not unit.search(name)} == counted


def test_the_dashboards_are_what_their_code_says() -> None:
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        pytest.skip("grafana-foundation-sdk is not installed")
    script = promql.ROOT / "dashboards" / "generate.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True, timeout=60)
    assert [path.stem for path in promql.DASHBOARDS] == ["cost", "device", "fleets", "request", "trust"]


@needs_promtool
def test_promtool_accepts_the_rules_and_their_tests() -> None:
    for arguments in (
        ["check", "config", promql.MONITORING / "prometheus.yml"],
        ["check", "rules", *promql.RULES],
        ["test", "rules", *promql.RULE_TESTS],
    ):
        done = subprocess.run(
            ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_finds_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    shutil.copytree(promql.MONITORING / "rules", tmp_path / "rules")
    shutil.copytree(promql.MONITORING / "rule-tests", tmp_path / "rule-tests")
    alerts = tmp_path / "rules" / "clue.alerts.yml"
    alerts.write_text(
        alerts.read_text().replace("clue_clock_skew_max_seconds > 300", "clue_clock_skew_max_seconds > 30000")
    )
    test = tmp_path / "rule-tests" / "clue.alerts.test.yml"
    done = subprocess.run(["promtool", "test", "rules", str(test)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for path in promql.RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else silent).add(check["alertname"])

    alerts = {rule["alert"] for rule in promql.rules() if "alert" in rule}
    assert fires == alerts == silent


def test_every_alert_is_explained() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    for rule in promql.rules():
        if "alert" in rule:
            assert f"`{rule['alert']}`" in guide
            assert rule["annotations"].keys() == {"summary", "description"}
