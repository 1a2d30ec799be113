"""Does LiveModel answer "unknown" to a forgotten class, and to little else?

Digits, one class forgotten at a time. The threshold comes from half of the retained test images, as the
agent takes it from its holdout; the other half and the forgotten class's test images are counted. Writes JSON.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import clue
from clue.bundle import bundle_to_bytes
from clue.data import DIGIT_CLASSES, image_folder, write_digits
from clue.train import DIGITS, ImageCache, train
from clue_agent import LiveModel, Prediction
from clue_agent.calibration import free_energy_threshold
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore


@dataclass(frozen=True)
class Run:
    """Shares in [0, 1] of images that are answered with "unknown"."""

    forget_class: str
    method: str
    threshold: float
    calibration_images: int
    retained_images: int
    retained_unknown: float
    retained_right: float
    forgotten_images: int
    forgotten_unknown: float
    forgotten_unknown_without_threshold: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--classes", default=",".join(DIGIT_CLASSES))
    parser.add_argument("--methods", default="clue_plus,delete")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_digits(root)
        spec = clue.ModelSpec("resnet20", DIGIT_CLASSES, input_size=(16, 16))
        original = train(spec, ImageCache.of(image_folder(root / "train", spec), spec), recipe=DIGITS).model
        runs = [
            measure(root, original, spec, name, method, options.seed)
            for name in options.classes.split(",")
            for method in options.methods.split(",")
        ]
    if options.json:
        options.json.write_text(json.dumps({"runs": [asdict(run) for run in runs]}, indent=2) + "\n", encoding="utf-8")
    Console().print(table(runs))


def measure(root: Path, model: torch.nn.Module, spec: clue.ModelSpec, name: str, method: str, seed: int) -> Run:
    index = spec.class_index(name)
    result = clue.forget(model, image_folder(root / "train", spec, only=name), index, method=method, seed=seed)
    bundle, weights = bundle_to_bytes(result.model, spec.with_forgotten(name))
    test = image_folder(root / "test", spec)
    retained = [(path, label) for path, label in zip(test.paths, test.labels, strict=True) if label != index]
    forgotten = [path for path, label in zip(test.paths, test.labels, strict=True) if label == index]
    order = torch.randperm(len(retained), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(order) // 2
    calibrating, counted = ([retained[i] for i in part] for part in (order[:half], order[half:]))

    home = root / f"{method}-{name}"
    plain = answers(home / "plain", bundle, weights, None, [*(path for path, _ in calibrating), *forgotten])
    threshold = free_energy_threshold([answer.free_energy for answer in plain[:half]])
    calibration: dict[str, object] = {"free_energy_threshold": threshold, "quantile": 0.95, "samples": half}
    found = answers(home / "calibrated", bundle, weights, calibration, [*(path for path, _ in counted), *forgotten])
    kept = found[: len(counted)]
    return Run(
        forget_class=name,
        method=method,
        threshold=threshold,
        calibration_images=half,
        retained_images=len(counted),
        retained_unknown=unknown(kept),
        retained_right=sum(a.index == label for a, (_, label) in zip(kept, counted, strict=True)) / len(kept),
        forgotten_images=len(forgotten),
        forgotten_unknown=unknown(found[len(counted) :]),
        forgotten_unknown_without_threshold=unknown(plain[half:]),
    )


def answers(
    home: Path, spec: bytes, weights: bytes, calibration: dict[str, object] | None, frames: list[Path]
) -> list[Prediction]:
    """What an app at ``home`` is told of the frames once the agent has this model in use."""
    store = ModelStore(home / "model", KeyRing(home / "keys"))
    store.write("a", spec, weights, calibration)
    store.current.symlink_to("a")
    with LiveModel(home) as live:
        return live.predict_batch(frames)


def unknown(found: list[Prediction]) -> float:
    return sum(answer.label is None for answer in found) / len(found)


def table(runs: list[Run]) -> Table:
    out = Table(
        "class",
        "method",
        "unknown: forgotten %",
        "without threshold %",
        "retained %",
        "retained right %",
        header_style="bold",
    )
    for run in runs:
        shares = (
            run.forgotten_unknown,
            run.forgotten_unknown_without_threshold,
            run.retained_unknown,
            run.retained_right,
        )
        out.add_row(run.forget_class, run.method, *(f"{100 * share:.1f}" for share in shares))
    return out


if __name__ == "__main__":
    main()
