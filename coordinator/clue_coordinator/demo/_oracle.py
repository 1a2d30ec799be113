"""The Retrain oracle beside the fleet: the same net and recipe, from scratch, without the class."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

import clue
from clue.architectures import build_model
from clue.bundle import load_weights
from clue.data import image_folder
from clue.evaluate import Accuracy, evaluate_classes
from clue.train import ImageCache, Recipe, TrainResult, train
from clue_coordinator.demo._data import CIFAR_WEIGHTS, DemoData
from clue_coordinator.demo._progress import bar

# The demo must end within three minutes; a full Retrain on CIFAR-10 takes about an hour on two cores.
# So its time is extrapolated from a timed part, and where no trained weights are at hand
# the part itself is the oracle, and said to be one.
_TIMED = (100, 1)  # images per class, epochs: only to time a step
_REDUCED = (500, 4)  # images per class, epochs: to have an oracle at all


@dataclass(frozen=True)
class OracleResult:
    """Accuracy of Retrain on the union of the devices' holdouts, and what training it takes.

    ``seconds_source`` is ``measured``, or ``estimated`` from a timed part of the training.
    ``complete`` is False if the oracle had to be trained on fewer images than the recipe asks for.
    """

    ua: Accuracy
    ra: Accuracy
    seconds: float
    seconds_source: str
    complete: bool
    source: str


def keep_holdouts(data: DemoData, root: Path) -> DemoData:
    """The same data with copies of the holdouts: a device erases its own once the class is forgotten."""
    kept = [
        (samples, Path(shutil.copytree(holdout, root / "oracle-holdouts" / str(number))))
        for number, (samples, holdout) in enumerate(data.devices)
    ]
    return replace(data, devices=kept)


def retrain(data: DemoData, root: Path, console: Console) -> OracleResult:
    """Train the oracle, or load the weights of one that was trained before, and evaluate it on ``data``'s holdouts."""
    bundle = clue.load_bundle(data.bundle)
    index = bundle.spec.class_index(data.forget_class)
    if data.archive is None:
        assert data.train is not None  # noqa: S101
        images = image_folder(data.train, bundle.spec)
        title = f"Retrain: training without '{data.forget_class}' on the server"
        result = _train(bundle.spec, ImageCache.of(images, bundle.spec), index, data.recipe, title, console)
        return _evaluated(result.model, bundle.spec, data, index, result.seconds, "measured", True, "trained now")
    name = CIFAR_WEIGHTS.replace(".safetensors", f"-retrain-{data.forget_class}.safetensors")
    weights = data.archive.archive.parent / name
    per_class, epochs = _TIMED if weights.is_file() else _REDUCED
    title = f"Retrain: {'timing' if weights.is_file() else 'training'} without '{data.forget_class}' on the server"
    retained = [name for name in bundle.spec.classes if name != data.forget_class]
    folder = root / "oracle-images"
    for name in retained:
        data.archive.write(folder, "train", name, 0, per_class)
    part = ImageCache.of(image_folder(folder, bundle.spec), bundle.spec)
    result = _train(bundle.spec, part, index, replace(data.recipe, epochs=epochs), title, console)
    whole = sum(data.archive.count("train", name) for name in retained) * data.recipe.epochs
    seconds = result.seconds * whole / (len(part.labels) * result.epochs_done)
    if not weights.is_file():
        source = f"trained now, on {len(part.labels):,} images and {epochs} epochs only"
        return _evaluated(result.model, bundle.spec, data, index, seconds, "estimated", False, source)
    model = build_model(bundle.spec).eval()
    load_weights(model, weights)
    return _evaluated(model, bundle.spec, data, index, seconds, "estimated", True, f"weights of {weights.name}")


def _train(
    spec: clue.ModelSpec, images: ImageCache, excluded: int, recipe: Recipe, title: str, console: Console
) -> TrainResult:
    with bar(console, title) as update:
        return train(spec, images, exclude=excluded, recipe=recipe, progress=lambda p: update(p.step, p.steps))


def _evaluated(
    model: nn.Module,
    spec: clue.ModelSpec,
    data: DemoData,
    index: int,
    seconds: float,
    seconds_source: str,
    complete: bool,
    source: str,
) -> OracleResult:
    holdouts: ConcatDataset[Any] = ConcatDataset([image_folder(holdout, spec) for _, holdout in data.devices])
    ua, ra = evaluate_classes(model, DataLoader(holdouts, batch_size=128), index)
    return OracleResult(ua, ra, seconds, seconds_source, complete, source)
