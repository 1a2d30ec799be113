"""Fleet operations at 1,000 and 10,000 simulated devices, on SQLite and on PostgreSQL: ``make bench-fleet``.

The ledger, the rollout engine, the dispatch service on its Unix socket and the tick loop are the product's, in a
process of their own. The dispatcher is simulated in this process and speaks the same gRPC protocol; Flower is
bypassed. Devices have Ed25519 keys and answer at once with signed receipts; a third of them report progress first,
one in fifty says FAILED, a tenth is offline until all others have answered. A canary of 5 %, waves and abort rules
are in the path. Exit status 1 if anything that is counted in total grows faster than the fleet.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fleet_run import Scenario, run_scenario
from throwaway_postgresql import PostgresServer

PLAN = {
    "canary_share": 0.05,
    # More than the coordinator can do, so that waves and their limit are in the path and yet not what is measured.
    "rate": 500,
    "rate_period_seconds": 1.0,
    "abort_if": [{"state": "ANY", "share": 0.2}],
    "abort_after": 20,
    "timeout_seconds": 600.0,
    "max_attempts": 2,
}
# What must not grow faster than the fleet, and by how much a noisy machine may make it look so.
_TOTALS = ("order", "rollout", "CPU", "peak RSS", "database", "backup", "all come online", "metrics")
_TOLERANCE = 1.3


def main() -> None:
    options = _options()
    sizes = options.devices or ([100, 1_000] if options.quick else [1_000, 10_000])
    rows = []
    for kind in options.databases:
        try:
            rows += measure(kind, sizes, options.profile)
        except FileNotFoundError as error:
            sys.exit(f"{error}, or give --databases sqlite")
    growth = [_growth(rows, kind, sizes) for kind in options.databases] if len(sizes) > 1 else []
    report = {"machine": _machine(), "plan": PLAN, "rows": rows, "growth": growth}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(rows, growth)
    sys.exit(any(entry["faster_than_the_fleet"] for entry in growth))


def measure(kind: str, sizes: list[int], profile: Path | None = None, *, durable: bool = True) -> list[dict[str, Any]]:
    """One scenario per size on ``kind``; FileNotFoundError if PostgreSQL is asked for and not installed."""
    rows = []
    with _server(kind, durable) as server:
        for size in sizes:
            # Unix sockets must have short paths.
            with tempfile.TemporaryDirectory(prefix="clue-fleet-") as folder:
                place = Path(folder)
                url = server.new_schema(f"n{size}") if server else f"sqlite:///{place.resolve()}/ledger.sqlite"
                scenario = Scenario(
                    size,
                    url,
                    PLAN,
                    postgres_pid=server.pid if server else None,
                    profile=profile / f"{kind}-{size}" if profile else None,
                )
                rows.append({"database": kind, **run_scenario(scenario, place)})
    return rows


@contextmanager
def _server(kind: str, durable: bool) -> Iterator[PostgresServer | None]:
    server = PostgresServer(durable=durable, shared_buffers="128MB") if kind == "postgresql" else None
    try:
        yield server
    finally:
        if server is not None:
            server.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 devices")
    parser.add_argument("--devices", type=int, nargs="+", metavar="N", help="fleets of these sizes instead")
    kinds = ("sqlite", "postgresql")
    parser.add_argument("--databases", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="cProfile files of the coordinator; slows it")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.devices and min(options.devices) < 20:
        parser.error("--devices: 20 is the least, or nobody is offline")
    return options


def _totals(row: dict[str, Any]) -> dict[str, float]:
    return {
        "all come online": row["all_come_online_seconds"],
        "order": row["order_seconds"],
        "rollout": row["rollout_seconds"],
        "in calls": row["call_seconds"],
        "CPU": row["cpu_seconds"],
        "PostgreSQL's CPU": row["postgresql_cpu_seconds"],
        "peak RSS": row["peak_rss_bytes"],
        "peak RSS with a scrape": row["peak_rss_with_scrape_bytes"],
        "database": row["database_bytes"],
        "backup": row["backup_seconds"],
        "metrics": row["metrics"]["seconds"],
        "idle poll, median": row["idle_lease"]["p50"],
        "lease, p50": row["lease"]["p50"],
        "lease, p99": row["lease"]["p99"],
        "receipt, p50": row["receipt"]["p50"],
        "receipt, p99": row["receipt"]["p99"],
        "show": row["looks_seconds"]["show"],
        "watch": row["looks_seconds"]["watch"],
        "executions page": row["looks_seconds"]["executions_page"],
        "devices page": row["looks_seconds"]["devices_page"],
    }


def _growth(rows: list[dict[str, Any]], kind: str, sizes: list[int]) -> dict[str, Any]:
    """Ratios of the largest fleet to the smallest."""
    few, many = (next(_totals(r) for r in rows if r["database"] == kind and r["devices"] == n) for n in _ends(sizes))
    ratios = {name: many[name] / few[name] for name in few if few[name]}
    limit = _TOLERANCE * max(sizes) / min(sizes)
    return {
        "database": kind,
        "devices": _ends(sizes),
        "ratios": ratios,
        "faster_than_the_fleet": [name for name in _TOTALS if ratios.get(name, 0.0) > limit],
    }


def _ends(sizes: list[int]) -> tuple[int, int]:
    return min(sizes), max(sizes)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _print(rows: list[dict[str, Any]], growth: list[dict[str, Any]]) -> None:
    names = [f"{row['database']}\n{row['devices']:,}" for row in rows]
    table = Table(
        Column("", no_wrap=True),
        *names,
        *(f"{g['database']}\nratio" for g in growth),
        box=None,
        title="fleet operations",
    )
    rates = (f"{row['executions_per_second']:.0f}" for row in rows)
    table.add_row("executions a second", *rates, *("" for _ in growth))
    totals = [_totals(row) for row in rows]
    for name in totals[0]:
        cells = [_cell(name, found[name]) for found in totals]
        table.add_row(name, *cells, *(f"{g['ratios'].get(name, float('nan')):.1f}" for g in growth))
    table.add_row("metrics, MB", *(f"{row['metrics']['bytes'] / 1e6:.2f}" for row in rows), *("" for _ in growth))
    Console(width=120).print(table)
    for entry in growth:
        if entry["faster_than_the_fleet"]:
            few, many = entry["devices"]
            grown = ", ".join(entry["faster_than_the_fleet"])
            print(f"{entry['database']}: more than linear from {few:,} to {many:,} devices: {grown}")


def _cell(name: str, value: float) -> str:
    if name.startswith("peak RSS") or name == "database":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


if __name__ == "__main__":
    main()
