"""A rollout over eight devices on a bad night: two are off, one is killed at work, and so is the coordinator."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.conftest import Digits
from integration.harness import BRIEF, FLEET, Installation, child, processes_of, succeed, wait_for

EIGHT = tuple(f"cam-{number}" for number in range(1, 9))
LATE, KILLED = EIGHT[6:], EIGHT[1]


@pytest.fixture(scope="module")
def night(coordinator: Installation, digits: Digits) -> Installation:
    for number, name in enumerate(EIGHT):
        samples, holdout = list(digits.shares.values())[number % len(digits.shares)]
        label = f"site={'paris' if number < 4 else 'lyon'}"
        coordinator.add_device(name, digits.bundle, samples, holdout, "--label", label)
    return coordinator


@pytest.mark.timeout(900)
def test_all_eight_succeed_exactly_once(night: Installation) -> None:
    present = [name for name in EIGHT if name not in LATE]
    for name in present:
        night.start_agent(name)
    night.wait_online(len(present))
    plan = ("--canary", "1", "--rate", "30/min", "--abort-if", "failed>30%", "--after", "4")
    request_id = night.forget("eight", *plan, *BRIEF)

    # The killed one need not be the canary: wait until it is at work.
    worker = child(night._running[KILLED].pid, "clue_agent.worker", 300)
    family = psutil.Process(night._running[KILLED].pid).children(recursive=True)
    night.kill(KILLED)
    wait_for(lambda: not worker.is_running(), 10, "the worker to follow its agent")
    psutil.wait_procs(family, timeout=30)
    assert not processes_of(night.device(KILLED)), "something of the killed agent is left"
    night.start_agent(KILLED)

    wait_for(lambda: night.show(request_id)["counts"].get("SUCCEEDED", 0) >= 2, 300, "two devices to succeed")
    night.kill("coordinator")
    night.serve()
    for name in LATE:
        night.start_agent(name)
    devices = night.wait_completed(request_id, 600)

    assert set(devices) == set(EIGHT)
    for name in EIGHT:
        device = devices[name]
        assert device["state"] == "SUCCEEDED", device
        assert device["receipt_verified"] is True
        assert device["ua_after"] <= 0.1
        assert receipts_in_journal(night.device(name), request_id) == 1
        stored = night.model(name)
        assert stored.digest == device["model_digest_after"]
        assert stored.spec.forgotten == ("eight",)
    history = events(night, request_id)
    assert [e["kind"] for e in history if not e["device_id"]].count("request.created") == 1
    assert [e["kind"] for e in history if not e["device_id"]].count("request.wave") == 1
    assert history[-1]["kind"] == "request.completed"
    assert history[-1]["detail"] == "8 of 8 device(s) succeeded"
    for name in EIGHT:
        kinds = [e["kind"] for e in history if e["device_id"] == name]
        assert kinds[0] == "execution.in_progress"
        assert kinds[-1] == "execution.succeeded"
        assert kinds.count("execution.succeeded") == 1
    canary = next(e["device_id"] for e in history if e["kind"] == "execution.in_progress")
    wave = next(e["at"] for e in history if e["kind"] == "request.wave")
    assert canary in present
    others = [e for e in history if e["kind"] == "execution.in_progress" and e["device_id"] != canary]
    assert min(e["at"] for e in others) >= wave


def test_labels_name_the_devices(night: Installation) -> None:
    plan_file = night.root / "plan.json"
    options = ("--where", "site=paris", "--canary", "50%", "--rate", "1/min", "--dry-run")
    shown = succeed(
        night.coordinator("forget", "--class", "three", "--fleet", FLEET, *options, "--json", str(plan_file))
    )
    assert "nothing was changed" in shown
    waves = json.loads(plan_file.read_text())["waves"]
    assert [len(wave["devices"]) for wave in waves] == [2, 1, 1]
    assert {d["device_id"] for wave in waves for d in wave["devices"]} == set(EIGHT[:4])
    assert len(json.loads(succeed(night.coordinator("request", "list", "--json")))) == 1


def events(installation: Installation, request_id: str) -> list[dict[str, Any]]:
    """The request's history, oldest first."""
    found = json.loads(
        succeed(installation.coordinator("history", "--request", request_id, "--limit", "1000", "--json"))
    )
    return list(reversed(found))


def receipts_in_journal(home: Path, request_id: str) -> int:
    with sqlite3.connect(home / "journal.sqlite", timeout=20) as journal:
        query = "SELECT count(*) FROM job WHERE request_id = ? AND receipt IS NOT NULL"
        return int(journal.execute(query, (request_id,)).fetchone()[0])
