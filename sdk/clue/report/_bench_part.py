"""Time, energy, memory and gaps beside Retrain, from the JSON of ``clue bench`` (Fig. 3 and 5 of the paper)."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clue.report._charts import Bars, bars, stacked
from clue.report._page import Block, Picture, ReportError, Section, Table, Text

_FORMAT = "clue-bench/"
_RATES = (("ua", "UA", "before"), ("ra", "RA", "after"), ("ta", "TA", "oracle"), ("mia", "MIA", "extra"))
_NOTHING = "-"

Runs = list[dict[str, Any]]


def read_bench(path: Path, forget_class: str) -> dict[str, Any]:
    """A bench's report; ReportError if it is none, or is about other classes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read the bench {path}: {error}") from None
    if not isinstance(found, dict) or not str(found.get("format", "")).startswith(_FORMAT):
        raise ReportError(f"{path} is no report of 'clue bench --json'")
    if forget_class not in found.get("retrain", {}):
        known = ", ".join(found.get("retrain", {})) or "none yet"
        raise ReportError(f"the bench {path} is not about the class {forget_class!r} (it holds: {known})")
    return found


def bench_sections(bench: dict[str, Any], forget_class: str) -> list[Section]:
    """The sections on cost and on gaps."""
    oracle: dict[str, Any] = bench["retrain"][forget_class]
    runs: dict[str, Runs] = {}
    for run in bench["runs"]:
        if run["forget_class"] == forget_class and "error" not in run:
            runs.setdefault(run["method"], []).append(run)
    failed = [run for run in bench["runs"] if run["forget_class"] == forget_class and "error" in run]
    sections = [_cost(runs, oracle), _gaps(runs, oracle)]
    notes = [Text(f"{run['method']}, seed {run['seed']}, failed: {run['error']}") for run in failed]
    return [Section(one.title, [*one.blocks, *(notes if number == 0 else [])]) for number, one in enumerate(sections)]


def _cost(runs: dict[str, Runs], oracle: dict[str, Any]) -> Section:
    extrapolated = oracle.get("seconds_source") != "measured"
    seconds = oracle.get("seconds_30_epochs")
    names = [*runs, "Retrain, 30 epochs"]
    times = [*(_mean(found, "seconds") for found in runs.values()), seconds]
    joules = [*(_mean(found, "energy_joules") for found in runs.values()), oracle.get("energy_joules")]
    memory = [*(_mean(found, "peak_rss_bytes") for found in runs.values()), oracle.get("peak_rss_bytes")]
    sources = [*(_source(found) for found in runs.values()), _source([oracle])]
    marks = ["~" if source == "estimated" else "" for source in sources]
    texts = (
        [_number(value, 1, "s") for value in times[:-1]] + [("~" if extrapolated else "") + _number(seconds, 0, "s")],
        [mark + _number(value, 0, "J") if value is not None else "" for mark, value in zip(marks, joules, strict=True)],
        [_number(None if value is None else value / 2**20, 0, "MiB") for value in memory],
    )
    panels = [
        Bars("time, logarithmic", times, [_gone(text) for text in texts[0]], logarithmic=True),
        Bars("energy, logarithmic", joules, texts[1], logarithmic=True),
        Bars("peak memory", [None if v is None else v / 2**20 for v in memory], [_gone(t) for t in texts[2]]),
    ]
    roles = ["before"] * len(runs) + ["oracle"]
    said = "; ".join(f"{name} {text}" for name, text in zip(names, texts[0], strict=True))
    picture = Picture(
        bars(names, panels, f"Bars of time, energy and peak memory of each method. Time: {said}.", roles),
        "What forgetting costs beside training again. Every run was a process of its own, on one machine."
        + (" ~ marks what was extrapolated or estimated and not measured." if extrapolated or any(marks) else ""),
    )
    rows = [
        (
            name,
            texts[0][row],
            _NOTHING if not times[row] or not seconds or row == len(runs) else f"{seconds / times[row]:.1f} x",
            texts[1][row] or _NOTHING,
            sources[row] or _NOTHING,
            texts[2][row],
        )
        for row, name in enumerate(names)
    ]
    columns = ("method", "time", "faster than Retrain", "energy", "energy from", "peak memory")
    table = Table("The same in numbers, means over the seeds", columns, rows, frozenset({0, 4}))
    return Section("Time, energy and memory", [picture, table])


def _gaps(runs: dict[str, Runs], oracle: dict[str, Any]) -> Section:
    known = {name: found for name, found in runs.items() if _mean(found, "average_gap") is not None}
    ordered = sorted(known, key=lambda name: _mean(known[name], "average_gap") or 0.0)
    gaps = {
        key: [statistics.fmean(abs(run[key] - oracle[key]) for run in known[name]) for name in ordered]
        for key, _, _ in _RATES
    }
    averages = [f"{_mean(known[name], 'average_gap'):.2f}" for name in ordered]
    blocks: list[Block] = [
        Text(
            "The average gap is the mean distance from Retrain in UA, RA, TA and MIA, in points: 0 is a model that "
            "cannot be told from one that never saw the class. The runs are those of the bench."
        )
    ]
    if ordered:
        parts = [(label, role, [gap / 4 for gap in gaps[key]]) for key, label, role in _RATES]
        said = ", ".join(f"{name} {gap}" for name, gap in zip(ordered, averages, strict=True))
        blocks.append(
            Picture(
                stacked(ordered, parts, averages, f"Average gap to Retrain by method: {said}.", "average gap, points"),
                "How the four rates make up the average gap; the shortest bar is nearest to Retrain.",
            )
        )
    rows = [
        (name, *(_with_gap(known[name], key, oracle) for key, _, _ in _RATES), average)
        for name, average in zip(ordered, averages, strict=True)
    ]
    rows.append(("Retrain", *(_number(oracle.get(key), 1) for key, _, _ in _RATES), "0"))
    columns = ("method", *(f"{label} %" for _, label, _ in _RATES), "average gap")
    blocks.append(Table("Rates, gaps to Retrain in brackets", columns, rows))
    return Section("Gaps to Retrain", blocks)


def _with_gap(runs: Runs, key: str, oracle: dict[str, Any]) -> str:
    value = _mean(runs, key)
    return _NOTHING if value is None else f"{value:.1f} ({abs(value - oracle[key]):.1f})"


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.fmean(values) if values else None


def _source(runs: Sequence[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(run["energy_source"] for run in runs if run.get("energy_source")))


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:,.{digits}f}" + (f" {unit}" if unit else "")


def _gone(text: str) -> str:
    return "" if text == _NOTHING else text
