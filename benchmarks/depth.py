"""What ``clue_plus`` buys at each depth: average gap, linear probe and relearning beside Retrain, as JSON and a plot.

Runs ``clue bench`` once for each depth::

    python benchmarks/depth.py --data cifar10-imagefolder.zip --weights resnet20-cifar10.safetensors \\
        --oracle-weights resnet20-cifar10-retrain-bird.safetensors --json depth.json --plot depth.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clue.bench import BenchOptions, Sizes, bench

FIGURES = ("average_gap", "ra", "ta", "mia", "linear_probe", "relearn_5", "relearn_40")
KEPT = (*FIGURES, "ua", "seed", "seconds", "cpu_seconds")


def main() -> None:
    """Run what the report does not hold yet, print and plot."""
    arguments = _arguments()
    report: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"depths": {}}
    for depth in arguments.depths.split(","):
        if depth in report["depths"]:
            continue
        options = BenchOptions(
            data=arguments.data,
            weights=arguments.weights,
            oracle_weights=arguments.oracle_weights,
            forget_classes=(arguments.forget_class,),
            methods=("clue_plus",),
            hyperparameters={"clue_plus": {"depth": float(depth)}},
            seeds=arguments.seeds,
            sizes=Sizes(draws=arguments.draws),
            threads=1,
        )
        found = bench(options)
        report["retrain"] = found["retrain"][arguments.forget_class]
        report["original"] = found["original"][arguments.forget_class]
        report["depths"][depth] = [{key: run[key] for key in KEPT} for run in found["runs"]]
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print(report)
    if arguments.plot:
        _plot(report, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/, or CIFAR-10's zip")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of a ResNet-20, or a bundle")
    parser.add_argument("--oracle-weights", type=Path, help="Retrain; else it is trained")
    parser.add_argument("--forget-class", default="bird")
    parser.add_argument("--depths", default="0,0.25,0.5,0.7,1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--draws", type=int, default=3, help="attackers of the relearning metric")
    parser.add_argument("--json", type=Path, required=True, help="the report; depths that it holds are kept")
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def _mean(runs: list[dict[str, Any]], figure: str) -> float:
    return statistics.fmean(run[figure] for run in runs)


def _rows(report: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return sorted(report["depths"].items(), key=lambda item: float(item[0]))


def _print(report: dict[str, Any]) -> None:
    table = Table("depth", "avg gap", "RA", "TA", "MIA", "probe", "back after 5", "after 40")
    table.add_row("Retrain", *(f"{report['retrain'].get(figure, 0.0):.2f}" for figure in FIGURES))
    for depth, runs in _rows(report):
        table.add_row(depth, *(f"{_mean(runs, figure):.2f}" for figure in FIGURES))
    Console(width=100).print(table)


def _plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    rows = _rows(report)
    gaps = [_mean(runs, "average_gap") for _, runs in rows]
    probes = [_mean(runs, "linear_probe") for _, runs in rows]
    left.plot(gaps, probes, "o-", color="#0072B2", label="clue_plus, by depth")
    for (depth, _), x, y in zip(rows, gaps, probes, strict=True):
        left.annotate(depth, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    left.axhline(report["original"]["linear_probe"], color="#555555", ls=":", label="original")
    left.axhline(report["retrain"]["linear_probe"], color="#009E73", ls="--", label="Retrain")
    left.set(xlabel="average gap to Retrain (points)", ylabel="linear probe (%)")
    depths = [float(depth) for depth, _ in rows]
    for steps, colour, marker in ((5, "#E69F00", "s"), (40, "#D55E00", "^")):
        back = [_mean(runs, f"relearn_{steps}") for _, runs in rows]
        right.plot(depths, back, marker=marker, color=colour, label=f"after {steps} steps")
    right.set(xlabel="depth", ylabel="class back by relearning (%)", ylim=(-2, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
