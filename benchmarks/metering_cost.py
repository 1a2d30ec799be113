"""What sampling costs: CPU time of each energy source on a recorded tree, in percent of one core.

Each meter runs at its own rate in this process while nothing else does; the CPU time of this process and
of the commands it ran is divided by the time that passed. The Pi 5's source forks a stand-in for
vcgencmd, a shell script that prints a recorded answer. Exit status 1 if a source takes 1 % or more.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clue.metering import SampledMeter, Sensor
from clue.metering._battery import BatterySensor
from clue.metering._estimate import cpu_seconds
from clue.metering._hwmon import find_hwmon
from clue.metering._pmic import PmicSensor
from clue.metering._rapl import RaplSensor

RECORDED = Path(__file__).parents[1] / "tests/data/energy"
LIMIT_PERCENT = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each source runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_cost(sensor, options.seconds) for sensor in _sensors(Path(folder))]
    table = Table("source", "samples/s", "ms CPU a sample", "% of one core", title="cost of sampling")
    for row in rows:
        table.add_row(
            str(row["source"]),
            f"{1 / row['period']:g}",
            f"{row['milliseconds_a_sample']:.3f}",
            f"{row['cpu_percent']:.3f}",
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["cpu_percent"] >= LIMIT_PERCENT for row in rows))


def _sensors(folder: Path) -> list[Sensor]:
    script = folder / "vcgencmd"
    script.write_text(f"#!/bin/sh\nexec cat {RECORDED / 'pmic-load.txt'}\n", encoding="utf-8")
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    chips = [find_hwmon(_sysfs(folder / dump, dump)) for dump in ("ina219", "ina226", "ina260", "ina3221")]
    rapl, battery = _sysfs(folder / "rapl", "rapl"), _sysfs(folder / "battery", "battery-current")
    return [PmicSensor(), *chips, RaplSensor(rapl), BatterySensor(battery)]


def _sysfs(root: Path, dump: str) -> Path:
    for line in (RECORDED / f"{dump}.sysfs").read_text(encoding="utf-8").splitlines():
        path, _, value = line.rpartition(":")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{value}\n", encoding="utf-8")
    return root


def _cost(sensor: Sensor, seconds: float) -> dict[str, float | str]:
    meter = SampledMeter(sensor)
    cpu, started = cpu_seconds(), time.monotonic()
    meter.start()
    time.sleep(seconds)
    reading = meter.stop()
    spent, passed = cpu_seconds() - cpu, time.monotonic() - started
    samples = int(reading.detail.split(" samples")[0].split()[-1])
    return {
        "source": sensor.source,
        "period": sensor.period,
        "samples": samples,
        "milliseconds_a_sample": 1000 * spent / samples,
        "cpu_percent": 100 * spent / passed,
    }


if __name__ == "__main__":
    main()
