"""A real Prometheus scrapes a real coordinator while a fleet forgets: every expression that we ship finds something.

The rules and the configuration are the shipped ones, with other ports and intervals. A typo in a metric's name or in
a label's value fails the test: every selector of every expression is asked for by itself, and must find series.
"""

import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql
import pytest

from clue_protocol.net import free_port
from clue_protocol.process import spawn, stop
from integration.conftest import DEVICES, Digits
from integration.harness import BRIEF, FLEET, Installation, wait_for

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (package prometheus) is missing")

DEVICE = DEVICES[0]
# Only an installation that has a log and a root has these; then they must be found, too.
WHERE_THERE_IS_ONE = {
    "clue_log_last_checkpoint_timestamp_seconds",
    "clue_root_expiry_timestamp_seconds",
    "clue_root_version",
}


class Prometheus:
    """A server on loopback, with the shipped rules."""

    def __init__(self, folder: Path, metrics_port: int) -> None:
        folder.mkdir()
        shutil.copytree(promql.MONITORING / "rules", folder / "rules")
        config = (promql.MONITORING / "prometheus.yml").read_text()
        for shipped, here in (
            ("127.0.0.1:9464", f"127.0.0.1:{metrics_port}"),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
            ("scrape_interval: 1m", "scrape_interval: 1s"),
            ("scrape_timeout: 30s", "scrape_timeout: 1s"),
            ("refresh_interval: 1m", "refresh_interval: 1s"),
        ):
            assert shipped in config
            config = config.replace(shipped, here)
        for rules in (folder / "rules").iterdir():
            assert "interval:" not in rules.read_text()
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = spawn(
                [
                    *(
                        "prometheus",
                        f"--config.file={folder / 'prometheus.yml'}",
                        f"--storage.tsdb.path={folder / 'data'}",
                    ),
                    *(f"--web.listen-address={self.url.removeprefix('http://')}", "--enable-feature=exemplar-storage"),
                ],
                None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        stop(self._process, 10.0)

    def ask(self, path: str, **parameters: str) -> Any:
        """``data`` of an answer of the HTTP API; AssertionError with Prometheus's own words if it is an error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=15) as answer:  # noqa: S310
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert found["status"] == "success", found
        assert not found.get("warnings"), found
        return found["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression gives now."""
        found = self.ask("query", query=expression)
        if found["resultType"] == "scalar":
            return [float(found["result"][1])]
        return [float(series["value"][1]) for series in found["result"]]

    def ready(self) -> bool:
        """It answers, and both kinds of targets have been scraped."""
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=15).close()  # noqa: S310
        except OSError:
            return False
        return {"clue-coordinator", "clue-fleets"} == {
            target["labels"]["job"] for target in self.ask("targets")["activeTargets"] if target["health"] == "up"
        }


@pytest.fixture(scope="module")
def fleet(coordinator: Installation, digits: Digits) -> Installation:
    """One device is online: a second one would only take its time."""
    coordinator.add_device(DEVICE, digits.bundle, *digits.shares[DEVICE])
    coordinator.start_agent(DEVICE)
    coordinator.wait_online(1)
    return coordinator


@pytest.fixture(scope="module")
def prometheus(fleet: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has watched from before the request to after its end."""
    server = Prometheus(tmp_path_factory.mktemp("prometheus") / "home", fleet.config.metrics_port)
    try:
        wait_for(server.ready, 30, "Prometheus to scrape")
        wait_for(lambda: server.values("clue_devices_online"), 30, "the first samples")
        request_id = fleet.forget("eight", *BRIEF)
        wait_for(lambda: server.values(f'clue_request_open{{request="{request_id}"}}'), 30, "the request in Prometheus")
        devices = fleet.wait_completed(request_id)
        assert {d["state"] for d in devices.values()} == {"SUCCEEDED"}
        wait_for(lambda: server.values('clue_receipts_total{outcome="SUCCEEDED"}') == [1], 30, "the receipts")
        # Of rules and of increases there is something after two rounds more.
        ended = time.time()
        wait_for(
            lambda: min(server.values("min(timestamp(fleet:clue_ra_drop_ratio:p95_1d))") or [0]) > ended + 2,
            30,
            "the rules' next round",
        )
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def variables(fleet: Installation, prometheus: Prometheus) -> dict[str, str]:
    [request] = {s["metric"]["request"] for s in prometheus.ask("query", query="clue_request_info")["result"]}
    return {
        "fleet": FLEET,
        "request": request,
        "device": DEVICE,
        "retrain_seconds": "2353",
        "shrinking_seconds": "57.3",
        "shrinking_mib": "503",
    }


def fill_in(expression: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def check_selectors(prometheus: Prometheus, expression: str) -> None:
    """Every name and every label's value in it exists."""
    for selector in promql.selectors(expression):
        name = promql.metric(selector)
        if name == "ALERTS" or prometheus.values(f"count({selector})"):
            continue
        # The coordinator at least says what it would be.
        assert name in WHERE_THERE_IS_ONE, f"nothing is found by {selector}"
        assert name in prometheus.ask("metadata", metric=name), name
        assert not prometheus.values(f"count({name})"), selector


@pytest.mark.parametrize("dashboard", promql.DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_of_every_dashboard_has_data(
    prometheus: Prometheus, variables: dict[str, str], dashboard: Path
) -> None:
    asked = list(promql.panels(dashboard))
    assert len(asked) >= 10
    for panel, template in asked:
        expression = fill_in(template, variables)
        found = prometheus.values(expression)
        assert found, f"{panel}: no data for {expression}"
        assert not any(map(math.isnan, found)), f"{panel}: {expression} gives {found}"
        check_selectors(prometheus, expression)


def test_every_rule_is_evaluated_and_knows_its_metrics(prometheus: Prometheus) -> None:
    loaded = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert sorted(rule["name"] for rule in loaded) == sorted(
        rule.get("alert") or rule["record"] for rule in promql.rules()
    )
    for rule in loaded:
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
    for rule in promql.rules():
        check_selectors(prometheus, rule["expr"])
        if "record" in rule:
            found = prometheus.values(rule["record"])
            assert found, f"{rule['record']} is empty"
            assert not any(map(math.isnan, found)), f"{rule['record']} is {found}"
        else:
            prometheus.ask("query", query=rule["expr"])


def test_a_typo_would_be_found(prometheus: Prometheus) -> None:
    for wrong in ("clue_receipt_total > 0", 'sum(clue_receipts_total{outcome="SUCEEDED"}) or vector(0)'):
        with pytest.raises(AssertionError, match="nothing is found by"):
            check_selectors(prometheus, wrong)


def test_what_prometheus_has_is_what_the_receipts_say(fleet: Installation, prometheus: Prometheus) -> None:
    [request_id] = {s["metric"]["request"] for s in prometheus.ask("query", query="clue_request_info")["result"]}
    devices = {d["device_id"]: d for d in fleet.show(request_id)["devices"]}
    for series in prometheus.ask("query", query='clue_device_ua_ratio{when="after"}')["result"]:
        expected = devices[series["metric"]["device"]]["ua_after"]
        assert float(series["value"][1]) == pytest.approx(expected)
    [joules] = prometheus.values("sum(clue_energy_joules_sum)")
    assert joules == pytest.approx(sum(d["energy_joules"] for d in devices.values()), rel=1e-6)
    assert prometheus.values('sum(increase(clue_receipts_total{outcome="SUCCEEDED"}[5m])) > 0.9')
    assert not prometheus.values('ALERTS{severity="critical"}')


def test_exemplars_name_the_request(prometheus: Prometheus) -> None:
    now = time.time()
    found = prometheus.ask(
        "query_exemplars", query="clue_ra_drop_ratio_bucket", start=str(now - 600), end=str(now + 10)
    )
    [request_id] = {s["metric"]["request"] for s in prometheus.ask("query", query="clue_request_info")["result"]}
    assert {e["labels"]["request_id"] for series in found for e in series["exemplars"]} == {request_id}


def test_a_restart_of_the_coordinator_loses_nothing(fleet: Installation, prometheus: Prometheus) -> None:
    """Last in this module: it stops the coordinator for a while."""
    query = 'sum by (__name__, le, when) ({__name__=~"clue_(ua|ra)_ratio_bucket|clue_energy_joules_sum"})'
    before = sorted(prometheus.values(query))
    assert fleet.stop("coordinator") == 0
    wait_for(lambda: prometheus.values('up{job="clue-coordinator"} == 0'), 30, "Prometheus to notice")
    fleet.serve()
    wait_for(lambda: prometheus.values('up{job="clue-coordinator"} == 1'), 30, "the coordinator to be back")
    wait_for(lambda: sorted(prometheus.values(query)) == before, 10, "the same counts as before")
    assert not prometheus.values("resets(clue_receipts_total[5m]) > 0")
