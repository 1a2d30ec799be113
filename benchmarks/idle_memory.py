"""Memory and CPU of an idle agent, process by process: ``python benchmarks/idle_memory.py``.

Starts a real coordinator and one real agent on loopback, waits until the device is online and then until the
agent has had time to settle, and reads /proc. RSS counts every resident page, shared or not; PSS divides shared
pages among those who share them, so PSS may be added up; USS is what would be free if the process ended.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import psutil
import tomli_w
from rich.console import Console
from rich.table import Table

import clue
from clue.architectures import build_model
from clue.data import DIGIT_CLASSES, write_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from integration.harness import FLEET, Installation, child, succeed

DEVICE = "pi-1"


def main() -> None:
    options = _options()
    os.environ.update(dict(setting.split("=", 1) for setting in options.env))
    with tempfile.TemporaryDirectory(prefix="clue-idle-") as folder, Installation(Path(folder)) as house:
        daemon = _start(house, options.linger)
        supernode = child(daemon, "flower-supernode")
        house.wait_online(1)
        time.sleep(options.settle)
        processes = {"clue-agent run": psutil.Process(daemon), "flower-supernode": supernode}
        processes |= _executor(daemon)
        rows = _measure(processes, options.seconds)
    if options.json:
        options.json.write_text(json.dumps({"env": options.env, "linger": str(options.linger), "rows": rows}, indent=2))
    _print(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settle", type=float, default=75.0, help="Seconds between 'online' and the reading.")
    parser.add_argument("--seconds", type=float, default=30.0, help="Seconds over which CPU time is counted.")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="For every process started.")
    parser.add_argument("--linger", type=float, help="superexec_linger_seconds of agent.toml; inf keeps it running.")
    parser.add_argument("--json", type=Path, help="Write the rows there too.")
    return parser.parse_args()


def _start(house: Installation, linger: float | None) -> int:
    spec = clue.ModelSpec("resnet20", DIGIT_CLASSES, input_size=(16, 16))
    clue.save_bundle(house.root / "bundle", build_model(spec), spec)
    write_digits(house.root / "images")
    house.init()
    house.serve()
    succeed(house.coordinator("fleet", "create", FLEET))
    images = house.root / "images"
    house.add_device(DEVICE, house.root / "bundle", images / "train", images / "test")
    if linger is not None:
        settings = house.device(DEVICE) / "agent.toml"
        values = tomllib.loads(settings.read_text()) | {"superexec_linger_seconds": linger}
        settings.write_text(tomli_w.dumps(values))
    return house.start_agent(DEVICE)


def _executor(daemon: int) -> dict[str, psutil.Process]:
    for process in psutil.Process(daemon).children(recursive=True):
        with suppress(psutil.Error):
            if any("flower-superexec" in part for part in process.cmdline()):
                return {"flower-superexec": process}
    return {}


def _measure(processes: dict[str, psutil.Process], seconds: float) -> list[dict[str, object]]:
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    time.sleep(seconds)
    rows: list[dict[str, object]] = []
    for name, process in processes.items():
        memory = process.memory_full_info()
        cpu = (sum(process.cpu_times()[:2]) - before[name]) / seconds
        row = {"rss": memory.rss, "pss": memory.pss, "uss": memory.uss, "threads": process.num_threads()}
        rows.append({"process": name, **row, "cpu_percent": round(100 * cpu, 2)})
    return rows


def _print(rows: list[dict[str, object]]) -> None:
    table = Table("process", "RSS MB", "PSS MB", "USS MB", "threads", "CPU %", box=None)
    columns = ("rss", "pss", "uss")
    for row in rows:
        sizes = [f"{float(str(row[key])) / 1e6:.0f}" for key in columns]
        table.add_row(str(row["process"]), *sizes, str(row["threads"]), f"{row['cpu_percent']}")
    totals = [f"{math.fsum(float(str(row[key])) for row in rows) / 1e6:.0f}" for key in columns]
    table.add_row("together", "", *totals[1:], "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
