"""The demo from start to end."""

import json
import shlex
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from clue.stopping import stoppable
from clue_coordinator.cli_report import write_report
from clue_coordinator.client import OperatorClient
from clue_coordinator.config import load_config
from clue_coordinator.demo._data import DemoData, choose, prepare
from clue_coordinator.demo._oracle import OracleResult, keep_holdouts, retrain
from clue_coordinator.demo._processes import Fleet
from clue_coordinator.errors import ConflictError, CoordinatorError
from clue_coordinator.render_request import energy_text

FLEET = "homecams"
REPORT = "clue-demo-report.html"


def run_demo(
    *,
    devices: int,
    data: str,
    forget_class: str,
    method: str,
    keep: Path | None,
    oracle: bool,
    report: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the demo and return its result as plain data. Leaves no process behind, whatever happens.

    ``report`` is where the report on the request goes; by default into ``keep``, or else the current folder.
    """
    console = Console(quiet=quiet)
    # The devices need the cores too, and on small images threads that wait for each other cost more than they bring.
    torch.set_num_threads(1)
    began = time.monotonic()
    # A plain kill must clean up as Ctrl-C does.
    with stoppable(), ExitStack() as stack:
        root = _root(keep, stack)
        chosen = prepare(choose(data), forget_class, devices, root, console)
        console.print(
            f"[bold]{devices} device(s)[/] with {_source(chosen)} will forget [bold magenta]{chosen.forget_class}[/]"
        )
        yardstick = keep_holdouts(chosen, root) if oracle else chosen
        fleet = stack.enter_context(Fleet(root, FLEET))
        with console.status("starting the coordinator, the SuperLink and the agents"):
            fleet.start_coordinator()
            for number, (samples, holdout) in enumerate(chosen.devices, start=1):
                fleet.add_agent(f"pi-{number}", chosen.bundle, samples, holdout)
            fleet.wait_online(devices)
        result_file = root / "request.json"
        arguments = ["forget", "--class", chosen.forget_class, "--fleet", FLEET, "--wait", "--json", str(result_file)]
        arguments += ["--method", method] if method else []
        link = fleet.command("console").strip()
        # Printed as it is: markup and line breaks would spoil it.
        console.print("watch it in a browser, as long as the demo runs (the link is good once, for two minutes):")
        console.print(link, markup=False, highlight=False, soft_wrap=True)
        console.print(f"[dim]$ clue-coordinator {' '.join(arguments[:5])} --wait[/]")
        fleet.command_shown(*arguments) if not quiet else fleet.command(*arguments)
        if not result_file.is_file():
            raise CoordinatorError("the request was not made: see the line above")
        request = json.loads(result_file.read_text(encoding="utf-8"))
        measured = retrain(yardstick, root, console) if oracle else None
        result = {
            "request_id": request["request_id"],
            "state": request["state"],
            "data": chosen.name,
            "forget_class": chosen.forget_class,
            "devices": request["devices"],
            "oracle": _oracle_data(measured),
            "metrics_url": load_config(fleet.home).metrics_url,
            "seconds": time.monotonic() - began,
        }
        console.print(_table(request["devices"], measured))
        console.print(_gaps(request["devices"], measured))
        if keep is not None:
            console.print(f"everything is kept in {root}; to look at it in a browser:")
            home = shlex.quote(str(fleet.home))
            for command in (f"serve --home {home} &", f"console --home {home}"):
                console.print(f"$ clue-coordinator {command}", markup=False, highlight=False, soft_wrap=True)
        target = report or (root if keep is not None else Path.cwd()) / REPORT
        console.print(_report(fleet, request["request_id"], target), highlight=False, markup=False, soft_wrap=True)
    console.print(f"[dim]done in {time.monotonic() - began:.0f} s; all processes stopped[/]")
    return result


def _report(fleet: Fleet, request_id: str, path: Path) -> str:
    """Write the report and say where it is; a demo does not fail for want of it."""
    try:
        with OperatorClient(load_config(fleet.home)) as client:
            return f"report to read in a browser: {write_report(client, request_id, path)}"
    except CoordinatorError as error:
        return f"no report: {error}"


def _root(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        root = Path(tempfile.mkdtemp(prefix="clue-demo-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        return root
    root = keep.expanduser().resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConflictError(f"{root} exists and is not an empty folder: choose another --keep")
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CoordinatorError(f"cannot make {root}: {error.strerror}") from None
    return root


def _source(data: DemoData) -> str:
    return "handwritten digits" if data.name == "digits" else "CIFAR-10 images"


def _oracle_data(oracle: OracleResult | None) -> dict[str, Any] | None:
    if oracle is None:
        return None
    return {
        "ua": oracle.ua.value,
        "ra": oracle.ra.value,
        "seconds": oracle.seconds,
        "seconds_source": oracle.seconds_source,
        "complete": oracle.complete,
        "source": oracle.source,
    }


def _table(devices: list[dict[str, Any]], oracle: OracleResult | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", no_wrap=True)
    for name in ("UA %", "RA %", "seconds", "joules"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("receipt", no_wrap=True)
    for d in devices:
        table.add_row(
            d["device_id"],
            _change(d["ua_before"], d["ua_after"]),
            _change(d["ra_before"], d["ra_after"]),
            "-" if d["latency_seconds"] is None else f"{d['latency_seconds']:.1f}",
            "-" if d["energy_joules"] is None else energy_text(d["energy_joules"], d["energy_source"]),
            "verified" if d["receipt_verified"] else "NOT VERIFIED",
        )
    if oracle is not None:
        table.add_section()
        about = "~" if oracle.seconds_source == "estimated" else ""
        table.add_row(
            "Retrain",
            f"{100 * oracle.ua.value:.1f}",
            f"{100 * oracle.ra.value:.1f}",
            f"{about}{oracle.seconds:.0f}",
            "",
            "",
        )
    return table


def _gaps(devices: list[dict[str, Any]], oracle: OracleResult | None) -> str:
    done = [d for d in devices if d["ua_after"] is not None]
    if oracle is None or not done:
        return ""
    ua = sum(abs(d["ua_after"] - oracle.ua.value) for d in done) / len(done)
    ra = sum(abs(d["ra_after"] - oracle.ra.value) for d in done) / len(done)
    slowest = max(d["latency_seconds"] for d in done)
    note = "" if oracle.complete else "; a full Retrain would be more accurate"
    line = f"mean gap to Retrain: UA {100 * ua:.1f}, RA {100 * ra:.1f} points ({oracle.source}{note})"
    if oracle.seconds > 2 * slowest:
        line += f"; Retrain takes {oracle.seconds / slowest:.0f}x as long as the slowest device"
    return line


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{100 * before:.1f} -> {100 * after:.1f}"
