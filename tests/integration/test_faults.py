"""Flower killed with -9: the request completes, on every device exactly once, and no process is left behind.

Agents and the coordinator are killed in test_rollout.py.
"""

import sqlite3

import psutil

from integration.conftest import DEVICES
from integration.harness import BRIEF, Installation, child, wait_all_gone, wait_for


def _succeeded_once(fleet: Installation, request_id: str, name: str, forgotten: tuple[str, ...]) -> None:
    device = {d["device_id"]: d for d in fleet.show(request_id)["devices"]}[name]
    assert device["state"] == "SUCCEEDED", device
    assert device["receipt_verified"] is True
    assert fleet.events(request_id, "execution.succeeded").count(name) == 1
    stored = fleet.model(name)
    assert stored.digest == device["model_digest_after"]
    assert stored.spec.forgotten == forgotten
    with sqlite3.connect(fleet.device(name) / "journal.sqlite", timeout=20) as journal:
        rows = journal.execute(
            "SELECT receipt IS NOT NULL, refused FROM job WHERE request_id = ?", (request_id,)
        ).fetchall()
    assert rows == [(1, 0)]


def test_dispatcher_killed_mid_rollout(fleet: Installation) -> None:
    dispatcher = child(fleet._running["coordinator"].pid, "flwr-serverapp")
    request_id = fleet.forget("eight", *BRIEF)
    for name in DEVICES:
        child(fleet._running[name].pid, "clue_agent.worker")
    dispatcher.kill()
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight",))


def test_superlink_killed(fleet: Installation) -> None:
    superlink = child(fleet._running["coordinator"].pid, "flower-superlink")
    superlink.kill()
    fresh = wait_for(
        lambda: next(
            (
                p
                for p in psutil.Process(fleet._running["coordinator"].pid).children()
                if p.pid != superlink.pid and any("flower-superlink" in part for part in p.cmdline())
            ),
            None,
        ),
        30,
        "the SuperLink to be started again",
    )
    assert fresh is not None
    # Forgotten already, so no work: the way there and back is the point.
    request_id = fleet.forget("eight", *BRIEF)
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight",))


def test_stopping_leaves_no_process(fleet: Installation) -> None:
    """Last in this module: it ends the fleet."""
    for name in (*DEVICES, "coordinator"):
        assert fleet.stop(name) == 0
    wait_all_gone(fleet.root)
