"""The core of ``make bench-fleet`` with a handful of devices: real processes, a real socket, signed receipts."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import fleet
import fleet_run

DEVICES = 30


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_device_answers_once(kind: str):
    try:
        [row] = fleet.measure(kind, [DEVICES], durable=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert row["receipt"]["calls"] == DEVICES
    assert row["progress_report"]["calls"] == DEVICES // 3
    assert row["handed_out"] == DEVICES + DEVICES // 3  # asked again after each progress report
    assert row["executions_per_second"] > 0
    assert row["peak_rss_bytes"] > 20e6
    assert row["database_bytes"] > 50_000
    assert row["metrics"]["series"] > DEVICES
    assert all(value > 0 for name, value in fleet._totals(row).items() if name != "PostgreSQL's CPU")


@pytest.mark.parametrize(
    "change",
    [
        {"state": "IN_PROGRESS"},
        {"counts_agree": False},
        {"counts": {"SUCCEEDED": 19}},
        {"answers": 21},
        {"devices_with_answers": 19},
        {"wave": 2},
    ],
)
def test_a_ledger_that_does_not_add_up_is_no_result(change: dict[str, object]):
    state = {"state": "COMPLETED", "counts_agree": True, "counts": {"SUCCEEDED": 18, "FAILED": 2}}
    state |= {"answers": 20, "devices_with_answers": 20, "wave": 3, "waves": 3}
    fleet_run._check(state, 20)
    with pytest.raises(AssertionError):
        fleet_run._check(state | change, 20)


def test_growth_beyond_the_fleet_is_named():
    row = {"database": "sqlite"} | fleet_row(20)
    linear, worse = fleet_row(200, 10.0), fleet_row(200, 10.0) | {"order_seconds": 20.0}
    assert fleet._growth([row, {"database": "sqlite"} | linear], "sqlite", [20, 200])["faster_than_the_fleet"] == []
    found = fleet._growth([row, {"database": "sqlite"} | worse], "sqlite", [20, 200])
    assert found["faster_than_the_fleet"] == ["order"]
    assert found["ratios"]["order"] == 20


def fleet_row(devices: int, total: float = 1.0) -> dict[str, object]:
    names = ("all_come_online_seconds", "order_seconds", "rollout_seconds", "call_seconds", "cpu_seconds")
    names += ("postgresql_cpu_seconds", "peak_rss_bytes", "peak_rss_with_scrape_bytes", "database_bytes")
    calls = {"p50": 1.0, "p99": 1.0}
    looks = dict.fromkeys(("show", "watch", "executions_page", "devices_page"), 1.0)
    return {
        **dict.fromkeys((*names, "backup_seconds"), total),
        **dict.fromkeys(("idle_lease", "lease", "receipt"), calls),
        "devices": devices,
        "metrics": {"seconds": total},
        "looks_seconds": looks,
    }
