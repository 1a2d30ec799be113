"""Methods on every class where no Retrain oracle is at hand: what is lost, and what is left in the features.

``clue bench`` judges against Retrain, whose training takes an hour a class on two cores. This needs none. RA and TA
are taken against what could be had: the original with the logit of the class removed. So is the average gap, with the
UA of 0 and the MIA of 100 that a Retrain has: where there was a Retrain to compare with, the two differ by at most a
quarter of a point. A run that was stopped goes on where it was::

    python benchmarks/all_classes.py --data cifar10-imagefolder.zip --weights resnet20-cifar10.safetensors \\
        --methods clue_plus,clue_plus@1,delete --seeds 3 --json all-classes.json

``clue_plus@1`` is ``clue_plus`` at depth 1.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import clue
from clue.architectures import build_model
from clue.bench import Sizes, default_cache
from clue.bench._job import write_result
from clue.bundle import load_weights
from clue.data.decoded import decode, mapped, open_source
from clue.evaluate import ClassAccuracies, LinearProbe, MembershipInference, ModelView, Relearning, average_gap

Run = dict[str, Any]
SIZES = Sizes()


def main() -> None:
    """Measure what the report does not hold yet, and print it."""
    arguments = _arguments()
    torch.set_num_threads(1)
    source = open_source(arguments.data)
    spec = clue.ModelSpec(arguments.arch, source.classes)
    images = decode(source, spec.input_size, arguments.cache)
    original = build_model(spec)
    load_weights(original, arguments.weights)
    runs: list[Run] = json.loads(arguments.json.read_text())["runs"] if arguments.json.is_file() else []
    done = {(run["forget_class"], run["method"], run["seed"]) for run in runs}
    # Seed by seed, so that a run that is stopped has all classes of the first seeds.
    wanted = [("original", 0)] + [(m, s) for s in range(arguments.seeds) for m in arguments.methods.split(",")]
    names = spec.classes if arguments.classes == "all" else arguments.classes.split(",")
    for method, seed in wanted:
        for name in names:
            if (name, method, seed) in done:
                continue
            index = spec.class_index(name)
            named = {"forget_class": name, "method": method, "seed": seed}
            runs.append(named | _measure(original.eval(), images, spec, index, method, seed, arguments.draws))
            write_result(arguments.json, {"draws": arguments.draws, "runs": runs})
    _print(runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/, or CIFAR-10's zip")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of the trained model")
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--classes", default="all", help="names, separated by commas, or 'all'")
    parser.add_argument("--methods", default="clue_plus,delete,clue")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--draws", type=int, default=1, help="attackers of the relearning metric; 0 leaves it out")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the decoded images")
    parser.add_argument("--json", type=Path, required=True, help="the report; runs that it holds are kept")
    return parser.parse_args()


def _measure(
    original: nn.Module, images: Path, spec: clue.ModelSpec, index: int, method: str, seed: int, draws: int
) -> Run:
    """The images are those of ``clue bench``; rates in percent."""
    train, test = (mapped(images, split, spec) for split in ("train", "test"))
    counts = [SIZES.retained] * len(spec.classes)
    counts[index] = SIZES.forget
    model, cost = original, {}
    if method != "original":
        name, _, depth = method.partition("@")
        settings = {"depth": float(depth)} if depth else None
        forget_set = train.only(index, SIZES.forget)
        result = clue.forget(original, forget_set, index, name, seed, hyperparameters=settings)
        model = result.model.eval()
        cost = {"seconds": result.report.seconds, "cpu_seconds": result.report.cpu_seconds}
    view = ModelView(model, train.first(counts), test, index)
    found = ClassAccuracies().measure(view)
    back = Relearning(draws=draws).measure(view) if draws else None
    measured = {
        "ua": found.ua.value,
        "ra": found.ra.value,
        "ta": found.ta.value,
        "mia": MembershipInference().measure(view).value,
        "linear_probe": LinearProbe(per_class=SIZES.retained).measure(view).value,
        **({f"relearn_{steps}": back.value(steps) for steps in (5, 40)} if back else {}),
    }
    if method == "original":
        for split, answers in (("ra", view.train), ("ta", view.test)):
            kept = answers.without_class(index)
            others = kept.logits.index_fill(1, torch.tensor([index]), -torch.inf)
            measured[f"{split}_without_logit"] = float((others.argmax(1) == kept.labels).float().mean())
    return {key: 100 * value for key, value in measured.items()} | cost


def _print(runs: list[Run]) -> None:
    """Means over the seeds, and over the classes in the last row of each method."""
    before = {run["forget_class"]: run for run in runs if run["method"] == "original"}
    aims = {name: _aim(run) for name, run in before.items()}
    table = Table("method", "class", "UA", "RA lost", "TA lost", "MIA", "gap", "probe", "worst", "back 5 / 40", "CPU s")
    for method in dict.fromkeys(run["method"] for run in runs if run["method"] != "original"):
        mine = [run for run in runs if run["method"] == method]
        for name in (*before, "mean"):
            rows = [run for run in mine if name in (run["forget_class"], "mean")]
            if not rows:
                continue
            lost = [
                statistics.fmean(aims[run["forget_class"]][part] - run[part] for run in rows) for part in ("ra", "ta")
            ]
            gap = statistics.fmean(average_gap(run, aims[run["forget_class"]]) for run in rows)
            mean = {key: statistics.fmean(run[key] for run in rows) for key in rows[0] if key not in _NAMES}
            table.add_row(
                method,
                name,
                f"{mean['ua']:.1f}",
                *(f"{value:.1f}" for value in lost),
                f"{mean['mia']:.1f}",
                f"{gap:.2f}",
                f"{mean['linear_probe']:.1f}",
                f"{max(run['linear_probe'] for run in rows):.1f}",
                f"{mean['relearn_5']:.1f} / {mean['relearn_40']:.1f}" if "relearn_5" in mean else "",
                f"{mean['cpu_seconds']:.1f}",
            )
    Console(width=110).print(table)
    for name, run in before.items():
        kept = f"RA {aims[name]['ra']:.1f}, TA {aims[name]['ta']:.1f}"
        print(f"{name}: probe of the original {run['linear_probe']:.1f}; logit removed: {kept}")


def _aim(original: Run) -> dict[str, float]:
    """What stands for Retrain: the original with the logit of the class removed, which never says the class."""
    return {"ua": 0.0, "ra": original["ra_without_logit"], "ta": original["ta_without_logit"], "mia": 100.0}


_NAMES = ("forget_class", "method", "seed")


if __name__ == "__main__":
    main()
