"""Daemons killed with -9: the request completes, on every device exactly once, and no process is left behind."""

import sqlite3

import psutil

from integration.conftest import DEVICES
from integration.harness import Installation, child, processes_of, wait_all_gone, wait_for


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


def test_agent_killed_at_work(fleet: Installation) -> None:
    agent = fleet._running["pi-1"].pid
    request_id = fleet.forget("eight")
    worker = child(agent, "clue_agent.worker")
    family = psutil.Process(agent).children(recursive=True)
    fleet.kill("pi-1")
    wait_for(lambda: not worker.is_running(), 10, "the worker to follow its agent")
    psutil.wait_procs(family, timeout=30)
    assert not processes_of(fleet.device("pi-1")), "something of the killed agent is left"
    fleet.start_agent("pi-1")
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight",))


def test_coordinator_killed_mid_rollout(fleet: Installation) -> None:
    # A second class costs this small net some accuracy; how much is not the question here.
    request_id = fleet.forget("three", "--max-ra-drop", "0.3")
    for name in DEVICES:
        child(fleet._running[name].pid, "clue_agent.worker")
    fleet.kill("coordinator")
    fleet.serve()
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight", "three"))


def test_dispatcher_killed_mid_rollout(fleet: Installation) -> None:
    dispatcher = child(fleet._running["coordinator"].pid, "flwr-serverapp")
    request_id = fleet.forget("seven", "--max-ra-drop", "0.5", "--max-ua", "0.3")
    for name in DEVICES:
        child(fleet._running[name].pid, "clue_agent.worker")
    dispatcher.kill()
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight", "three", "seven"))


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
    request_id = fleet.forget("eight")
    fleet.wait_completed(request_id)
    for name in DEVICES:
        _succeeded_once(fleet, request_id, name, ("eight", "three", "seven"))


def test_stopping_leaves_no_process(fleet: Installation) -> None:
    """Last in this module: it ends the fleet."""
    for name in (*DEVICES, "coordinator"):
        assert fleet.stop(name) == 0
    wait_all_gone(fleet.root)
