"""The bench's report as tables like the paper's: means over seeds, gaps to Retrain in brackets."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from clue.bench._report import YARDSTICK

_RATES = (("ua", "UA"), ("ra", "RA"), ("ta", "TA"), ("mia", "MIA"))
_BEHIND = (
    ("linear_probe", "probe"),
    ("relearn_5", "back 5"),
    ("relearn_40", "back 40"),
    ("relearn_head_40", "head 40"),
)


def tables(report: dict[str, Any]) -> list[Table]:
    """Three tables for each forgotten class: the paper's figures, what they do not show, and the cost.

    Where more than one class or seed was run, a summary over all of them follows.
    """
    found = [make(report, name) for name in report["retrain"] for make in (_accuracies, _depth, _cost)]
    if len({(run["forget_class"], run.get("seed")) for run in report["runs"]}) > 1:
        found.append(_summary(report))
    return found


def _accuracies(report: dict[str, Any], name: str) -> Table:
    table = _empty(f"forget {name}: accuracy in percent, gap to Retrain in brackets", *dict(_RATES).values(), "avg gap")
    oracle = report["retrain"][name]
    spread = oracle.get("spread") or {}
    for title, runs in _groups(report, name):
        cells = []
        for key, _ in _RATES:
            value, aim = _mean(runs, key), oracle.get(key)
            if oracle in runs:
                cells.append(_number(value, 1) + _deviation(spread.get(key), 1))
            else:
                gap = "" if value is None or aim is None else f" ({abs(value - aim):.1f})"
                cells.append(_number(value, 1) + gap)
        table.add_row(title, *cells, _number(0.0 if oracle in runs else _mean(runs, "average_gap"), 2))
    return table


def _depth(report: dict[str, Any], name: str) -> Table:
    title = f"forget {name}: what is left behind (percent), and the energy"
    table = _empty(title, *dict(_BEHIND).values(), "KL", "J")
    spread = report["retrain"][name].get("spread") or {}
    for title, runs in _groups(report, name):
        own = spread if report["retrain"][name] in runs else {}
        table.add_row(
            title,
            *(_number(_mean(runs, key), 1) + _deviation(own.get(key), 1) for key, _ in _BEHIND),
            _number(_mean(runs, "kl_to_oracle"), 2),
            # An estimate must not pass for a measurement.
            _mark(any(run.get("energy_source") == "estimated" for run in runs))
            + _number(_mean(runs, "energy_joules"), 0),
        )
    return table


def _cost(report: dict[str, Any], name: str) -> Table:
    """Seconds and memory, and their ratios; ``~`` marks what is extrapolated."""
    columns = ("s", "Retrain is", "boundary_s. is", "MiB", "of boundary_s.")
    table = _empty(f"forget {name}: cost, with Retrain as 30 epochs", *columns)
    oracle = report["retrain"][name]
    about = _mark(oracle.get("seconds_source") != "measured")
    long = oracle.get("seconds_30_epochs")
    if long is not None:
        table.add_row(
            "Retrain, 30 epochs", about + _number(long, 0), "", "", _mebibytes(oracle.get("peak_rss_bytes")), ""
        )
    for method, one in report.get("cost", {}).get(name, {}).items():
        ratio = one["times_faster_than_retrain_30_epochs"]
        share = one[f"peak_rss_share_of_{YARDSTICK}"]
        table.add_row(
            method,
            _number(one["seconds"], 1),
            "-" if ratio is None else f"{about}{ratio:.1f} x",
            _times(one[f"times_faster_than_{YARDSTICK}"]),
            _mebibytes(one["peak_rss_bytes"]),
            "-" if share is None else f"{100 * share:.0f} %",
        )
    return table


def _summary(report: dict[str, Any]) -> Table:
    classes = len({run["forget_class"] for run in report["runs"]})
    seeds = len({run.get("seed") for run in report["runs"]})
    title = f"{classes} class(es), {seeds} seed(s): means, deviations over the runs, and the worst run"
    table = _empty(title, "avg gap", "worst", "probe-Retrain", "worst", "back 5", "back 40", "s")
    for method, found in report["summary"].items():
        gap, probe = found["average_gap"], found["linear_probe_above_retrain"]
        table.add_row(
            method + (f" ({found['failed']} failed)" if found["failed"] else ""),
            _number(gap["mean"], 2) + _deviation(gap["std"], 2),
            _number(gap["worst"], 2),
            _number(probe["mean"], 1) + _deviation(probe["std"], 1),
            _number(probe["worst"], 1),
            *(_number(found[key]["mean"], 1) for key in ("relearn_5", "relearn_40", "seconds")),
        )
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # Where the terminal is narrow a long name goes on in the next line; no number is ever cut.
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def _groups(report: dict[str, Any], name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Retrain, the original and each method, with the runs that did not fail."""
    groups = [("Retrain", [report["retrain"][name]])]
    if name in report["original"]:
        groups.append(("original", [report["original"][name]]))
    runs = [run for run in report["runs"] if run["forget_class"] == name]
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        good = [run for run in mine if "error" not in run]
        failed = f" ({len(mine) - len(good)} failed)" if len(good) < len(mine) else ""
        groups.append((method + failed, good))
    return groups


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.fmean(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _deviation(value: float | None, digits: int) -> str:
    return "" if value is None else f"+-{value:.{digits}f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} x"


def _mebibytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def _mark(estimated: bool) -> str:
    return "~" if estimated else ""
