"""What a bench makes of its runs: gaps to Retrain, the spread over oracles, a summary, and the cost ratios."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from clue.evaluate import average_gap

Measures = dict[str, Any]
YARDSTICK = "boundary_shrinking"
_GAP = ("ua", "ra", "ta", "mia")


def with_gap(measured: Measures, oracle: Measures) -> Measures:
    """``measured`` with its average gap to the oracle; None where a rate is unknown."""
    if "error" in measured:
        return measured
    known = all(found.get(name) is not None for name in _GAP for found in (measured, oracle))
    return measured | {"average_gap": average_gap(measured, oracle) if known else None}


def over_seeds(oracles: Sequence[Measures]) -> Measures:
    """Means over the oracles of a class, their standard deviations in ``spread``, each one in ``per_seed``.

    A single oracle has no spread: its deviations are None.
    """
    names = [name for name, value in oracles[0].items() if _is_number(value) and name != "seed"]
    means: Measures = {name: _mean(oracles, name) for name in names}
    # What is the same for all of them, and for a single one everything.
    rest = {
        k: v for k, v in oracles[0].items() if k not in (*names, "seed") and all(one.get(k) == v for one in oracles)
    }
    spread = {name: _deviation([one[name] for one in oracles if one.get(name) is not None]) for name in names}
    per_seed = [with_gap(one, means) for one in oracles]
    return means | rest | {"spread": spread, "seeds": len(oracles), "per_seed": per_seed}


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Over all classes and seeds, for each method: mean, standard deviation and worst (largest) value."""
    figures: dict[str, Callable[[Measures], Any]] = {
        "average_gap": lambda run: run.get("average_gap"),
        "linear_probe_above_retrain": lambda run: _above(run, report["retrain"].get(run["forget_class"], {})),
        "relearn_5": lambda run: run.get("relearn_5"),
        "relearn_40": lambda run: run.get("relearn_40"),
        "relearn_head_40": lambda run: run.get("relearn_head_40"),
        "seconds": lambda run: run.get("seconds"),
    }
    found: dict[str, Any] = {}
    for method in dict.fromkeys(run["method"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["method"] == method]
        good = [run for run in runs if "error" not in run]
        found[method] = {"runs": len(good), "failed": len(runs) - len(good)}
        for name, figure in figures.items():
            values = [value for value in map(figure, good) if value is not None]
            found[method][name] = {
                "mean": statistics.fmean(values) if values else None,
                "std": _deviation(values),
                "worst": max(values, default=None),
            }
    return found


def cost(report: dict[str, Any], name: str) -> dict[str, Any]:
    """For each method on class ``name``: seconds and peak memory, and how they compare."""
    runs = [run for run in report["runs"] if run["forget_class"] == name and "error" not in run]
    methods = dict.fromkeys(run["method"] for run in runs)
    mean = {method: [run for run in runs if run["method"] == method] for method in methods}
    other = mean.get(YARDSTICK, [])
    retrain, cpu_retrain = (report["retrain"][name].get(f"{kind}seconds_30_epochs") for kind in ("", "cpu_"))
    found: dict[str, Any] = {}
    for method, mine in mean.items():
        seconds, memory = _mean(mine, "seconds"), _mean(mine, "peak_rss_bytes")
        found[method] = {
            "seconds": seconds,
            "times_faster_than_retrain_30_epochs": _ratio(retrain, seconds),
            f"times_faster_than_{YARDSTICK}": _ratio(_mean(other, "seconds"), seconds),
            # The same in CPU seconds: what else the machine does at the time changes these less.
            "cpu_seconds": _mean(mine, "cpu_seconds"),
            "times_less_cpu_than_retrain_30_epochs": _ratio(cpu_retrain, _mean(mine, "cpu_seconds")),
            f"times_less_cpu_than_{YARDSTICK}": _ratio(_mean(other, "cpu_seconds"), _mean(mine, "cpu_seconds")),
            "peak_rss_bytes": memory,
            f"peak_rss_share_of_{YARDSTICK}": _ratio(memory, _mean(other, "peak_rss_bytes")),
        }
    return found


def _above(run: Measures, oracle: Measures) -> float | None:
    mine, aim = run.get("linear_probe"), oracle.get("linear_probe")
    return None if mine is None or aim is None else float(mine - aim)


def _mean(runs: Sequence[Measures], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
