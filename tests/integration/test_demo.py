"""``clue-coordinator demo``: what it promises in JSON, and that nothing is left of it, however it ends."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.harness import Installation, child, processes_of, succeed, wait_all_gone, wait_for

DEVICE_KEYS = {
    *("device_id", "state", "ua_before", "ua_after", "ra_before", "ra_after", "latency_seconds"),
    *("energy_joules", "energy_source", "receipt_verified"),
}


@pytest.fixture
def house(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Only its environment: the demo's temporary folder is put under ``root``."""
    # Its own name would make the path of a socket in it too long.
    installation = Installation(tmp_path_factory.mktemp("demo") / "tmp")
    installation.root.mkdir()
    installation.env["TMPDIR"] = str(installation.root)
    del installation.env["CLUE_COORDINATOR_HOME"]
    return installation


def _check(result: dict[str, Any], devices: int) -> None:
    assert result["state"] == "COMPLETED"
    assert result["request_id"]
    assert result["metrics_url"].startswith("http://127.0.0.1:")
    assert len(result["devices"]) == devices
    for device in result["devices"]:
        assert device.keys() >= DEVICE_KEYS
        assert device["state"] == "SUCCEEDED"
        assert device["receipt_verified"] is True
        assert device["ua_after"] <= 0.05 < device["ua_before"]
        assert device["ra_before"] - device["ra_after"] <= 0.03


def _left(house: Installation) -> list[Path]:
    """What of ours is left in the temporary folder; torch keeps an empty cache folder there."""
    return list(house.root.glob("clue-*"))


@pytest.mark.parametrize(("option", "devices"), [("--no-oracle", 2), ("--oracle", 1)])
def test_demo(house: Installation, tmp_path: Path, option: str, devices: int) -> None:
    target = tmp_path / "demo.json"
    report = tmp_path / "demo.html"
    command = ["demo", "--devices", str(devices), "--data", "digits", "--json", str(target), option]
    command += ["--report", str(report)]
    out = succeed(house.coordinator(*command, timeout=280))
    result = json.loads(target.read_text())
    _check(result, devices)
    assert all(device["device_id"] in out for device in result["devices"])
    assert re.search(r"^http://127\.0\.0\.1:\d+/login\?code=\S+$", out, re.MULTILINE)
    assert str(report) in out
    assert all(device["device_id"] in report.read_text() for device in result["devices"])
    if option == "--oracle":
        assert result["oracle"]["ua"] == 0.0
        assert result["oracle"]["ra"] > 0.9
        assert result["oracle"]["seconds"] > 0
    else:
        assert result["oracle"] is None
    wait_all_gone(house.root, 2.0)
    assert not _left(house)


@pytest.mark.parametrize(
    ("moment", "number", "status"), [("training", signal.SIGTERM, 143), ("unlearning", signal.SIGINT, 130)]
)
def test_demo_interrupted(house: Installation, moment: str, number: signal.Signals, status: int) -> None:
    command = ["demo", "--devices", "1", "--data", "digits", "--no-oracle"]
    log = house.root.parent / "demo.log"
    with log.open("wb") as stream:
        demo = psutil.Popen(
            [str(Path(sys.executable).parent / "clue-coordinator"), *command],
            env=house.env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        if moment == "training":
            wait_for(lambda: list(house.root.glob("clue-demo-*/images/train")), 60, "the demo's images")
        else:
            child(demo.pid, "clue_agent.worker", 180)
        demo.send_signal(number)
        assert demo.wait(60) == status
        wait_all_gone(house.root, 2.0)
        assert not _left(house)
        assert "Traceback" not in log.read_text()
    finally:
        for process in processes_of(house.root):
            process.kill()
