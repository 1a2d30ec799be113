"""One rollout over simulated devices, measured from outside the coordinator's process."""

import base64
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from fleet_devices import SimulatedDispatcher, make_devices, sign_receipts
from sqlalchemy import make_url

from clue_coordinator.backup import back_up
from clue_coordinator.config import CoordinatorConfig, LedgerConfig

OFFLINE_SHARE = 0.1
_IDLE_POLLS = 20


@dataclass(frozen=True)
class Scenario:
    """``postgres_pid`` is the server's, where the ledger is on PostgreSQL: its CPU time is counted too."""

    devices: int
    ledger: str
    plan: dict[str, Any]
    postgres_pid: int | None = None
    profile: Path | None = None
    limit_seconds: float = 900.0


class CoordinatorProcess:
    """``fleet_coordinator.py`` as a child process."""

    def __init__(self, scenario: Scenario, socket: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("fleet_coordinator.py")), "--ledger", scenario.ledger]
        command += ["--socket", str(socket)]
        if scenario.profile is not None:
            command += ["--profile", str(scenario.profile)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, name: str, **arguments: Any) -> Any:
        """Run a command of ``fleet_coordinator.Side``."""
        assert self._process.stdin is not None
        print(json.dumps({"call": name} | arguments), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the coordinator's process ended; what it said is above")
        return json.loads(line)


def run_scenario(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Order, roll out to all devices, look at it, back it up; AssertionError if the ledger does not add up."""
    devices = make_devices(scenario.ledger, scenario.devices)
    socket = folder / "dispatch.sock"
    side = CoordinatorProcess(scenario, socket)
    dispatcher = SimulatedDispatcher(socket)
    try:
        # Every tenth, spread over the fleet.
        absent = round(1 / OFFLINE_SHARE)
        here = [device.node for device in devices if device.index % absent]
        everyone = [device.node for device in devices]
        result: dict[str, Any] = {"devices": scenario.devices}
        dispatcher.lease(here)
        result["all_come_online_seconds"] = dispatcher.timings.lease.pop()
        for _ in range(_IDLE_POLLS):
            assert dispatcher.lease(here) == []
        result["idle_lease"] = quantiles(dispatcher.timings.lease)
        dispatcher.timings.lease.clear()
        result |= _roll_out(scenario, side, dispatcher, devices, here, everyone)
        result |= _afterwards(scenario, side, result["request_id"], folder)
        return result
    finally:
        dispatcher.close()
        side.close()


def _roll_out(
    scenario: Scenario,
    side: CoordinatorProcess,
    dispatcher: SimulatedDispatcher,
    devices: list[Any],
    here: list[int],
    everyone: list[int],
) -> dict[str, Any]:
    side.call("ticks")
    cpu, server_cpu = _cpu(side.pid), _server_cpu(scenario.postgres_pid)
    ordered = side.call("order", plan=scenario.plan)
    request_id = ordered["request_id"]
    signing = time.perf_counter()
    receipts = sign_receipts(devices, request_id, base64.b64decode(ordered["envelope"]))
    signing = time.perf_counter() - signing
    started = time.perf_counter()
    for _ in dispatcher.run(here, {node: receipts[node] for node in here}, scenario.limit_seconds):
        pass
    seconds = time.perf_counter() - started
    # The tenth that was off is off still: the request is open, and operators look at it.
    paused_cpu = _cpu(side.pid)
    looks = side.call("look", request_id=request_id)
    paused_cpu = _cpu(side.pid) - paused_cpu
    late = {node: receipts[node] for node in set(everyone) - set(here)}
    returning = time.perf_counter()
    for _ in dispatcher.run(everyone, late, scenario.limit_seconds):
        pass
    seconds += time.perf_counter() - returning
    timings = dispatcher.timings
    _check(side.call("state", request_id=request_id), scenario.devices)
    return {
        "request_id": request_id,
        "order_seconds": ordered["seconds"],
        "signing_seconds_not_counted": signing,
        "rollout_seconds": seconds,
        "executions_per_second": scenario.devices / (ordered["seconds"] + seconds),
        "lease": quantiles(timings.lease),
        "receipt": quantiles(timings.receipt),
        "progress_report": quantiles(timings.progress),
        # What the coordinator was busy with as the dispatcher saw it; the rest is the pause between two polls.
        "call_seconds": float(sum(timings.lease) + sum(timings.receipt) + sum(timings.progress)),
        "handed_out": timings.handed_out,
        "tick": quantiles(side.call("ticks")),
        "cpu_seconds": _cpu(side.pid) - cpu - paused_cpu,
        "postgresql_cpu_seconds": _server_cpu(scenario.postgres_pid) - server_cpu,
        "peak_rss_bytes": _peak_rss(side.pid),
        "looks_seconds": looks,
    }


def _afterwards(scenario: Scenario, side: CoordinatorProcess, request_id: str, folder: Path) -> dict[str, Any]:
    metrics = side.call("metrics")
    config = CoordinatorConfig(home=folder, ledger=LedgerConfig(url=scenario.ledger))
    out = folder / f"backup-{request_id}"
    started = time.perf_counter()
    back_up(config, out)
    return {
        "metrics": metrics,
        "backup_seconds": time.perf_counter() - started,
        "backup_bytes": out.stat().st_size,
        "database_bytes": _size(scenario.ledger),
        "peak_rss_with_scrape_bytes": _peak_rss(side.pid),
    }


def _check(state: dict[str, Any], devices: int) -> None:
    assert state["state"] == "COMPLETED", state
    assert state["counts_agree"], state
    assert sum(state["counts"].values()) == devices, state
    assert state["answers"] == state["devices_with_answers"] == devices, state
    assert state["wave"] == state["waves"], state


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Number, median, 99th percentile and maximum, in seconds."""
    found = np.quantile(seconds, [0.5, 0.99, 1.0]) if seconds else [float("nan")] * 3
    return {"calls": len(seconds), "p50": float(found[0]), "p99": float(found[1]), "max": float(found[2])}


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _server_cpu(pid: int | None) -> float:
    if pid is None:
        return 0.0
    total = 0.0
    for process in psutil.Process(pid).children():
        times = process.cpu_times()
        total += times.user + times.system
    return total


def _peak_rss(pid: int) -> int:
    """Bytes; the kernel's own high-water mark, which no sampling can miss."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _size(ledger: str) -> int:
    url = make_url(ledger)
    if url.drivername == "sqlite":
        with closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as connection:
            pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            return int(connection.execute(pages).fetchone()[0])
    schema = str(url.query["options"]).partition("search_path=")[2]
    query = (
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relkind = 'r'"
    )
    with psycopg.connect(host=str(url.query["host"]), user=url.username, dbname=url.database) as connection:
        row = connection.execute(query, (schema,)).fetchone()
        assert row is not None
        return int(row[0])
