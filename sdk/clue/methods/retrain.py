"""``retrain``: the oracle. Train the same architecture from scratch on everything but the class.

::

    w = argmin_w  mean_{(x, y) in D, y != c} CE(f_w(x), y)        D: all training images

This is the yardstick that every other method is measured against, and the only one that needs
retained data: ``data`` names a folder where the training images still are. No device has them,
so no fleet can ask for it, and ``available_methods()`` leaves it out. The forget samples that
:func:`clue.forget` is given only tell the size of an image; of the model that it is given
nothing but the architecture counts.

The recipe is SGD with Nesterov momentum under a one-cycle learning rate, see
:class:`clue.train.Recipe`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from clue.errors import BundleError, DataError, ForgetInputError, HyperparameterError
from clue.methods._job import EpochRecord, ForgetJob, Progress
from clue.methods._registry import Hyperparameters, register_method
from clue.spec import ModelSpec

if TYPE_CHECKING:
    from clue.train import ImageCache, TrainProgress

NAME = "retrain"


@dataclass(frozen=True)
class RetrainHyperparameters(Hyperparameters):
    """Where the retained images are, and how to train on them.

    Attributes:
        data: folder with ``train/<class>/`` or ``<class>/``, or a data set decoded by
            :func:`clue.data.decoded.decode`. Images of the forget class in it are left out.
        architecture: of the model, as in its spec.
        arguments: keyword arguments of the architecture, as a JSON object.
        recipe: name of a recipe of :mod:`clue.train`.
        epochs: passes over the data; 0 takes the recipe's number.
        classes: names in the order of the logits, with commas; empty takes the sub-folders, sorted.
        mean: of R, G, B in [0, 1], three numbers with commas.
        std: standard deviation of R, G, B, the same way.
        checkpoint: file written after every epoch and continued from where it exists; empty for none.
    """

    data: str = ""
    architecture: str = "resnet20"
    arguments: str = "{}"
    recipe: str = "cifar10"
    epochs: int = 0
    classes: str = ""
    mean: str = "0.485,0.456,0.406"
    std: str = "0.229,0.224,0.225"
    checkpoint: str = ""

    def __post_init__(self) -> None:
        self.require("architecture", bool(self.architecture), "the name of an architecture")
        self.require("arguments", _object(self.arguments) is not None, "a JSON object")
        self.require("epochs", self.epochs >= 0, "at least 0")
        for name in ("mean", "std"):
            try:
                ok = len(numbers(getattr(self, name))) == 3
            except ValueError:
                ok = False
            self.require(name, ok, "three numbers with commas between them")


def numbers(text: str) -> tuple[float, ...]:
    """``0.1,0.2`` as numbers; ValueError if they are none."""
    return tuple(float(part) for part in text.split(","))


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@register_method(NAME, RetrainHyperparameters, oracle=True)
def run(job: ForgetJob, hp: RetrainHyperparameters) -> None:
    """Train a fresh model without the class and put its weights into ``job.student``.

    Raises:
        ForgetInputError: ``data`` is not given, or does not fit the model.
        DataError: it cannot be read, or nothing is left without the class.
        HyperparameterError: there is no such recipe.
    """
    # A device imports every method; what only a server needs is imported where it is used.
    from clue.train import RECIPES, train

    if not hp.data:
        raise ForgetInputError(
            "retrain needs retained data: set 'data' to a folder with train/<class>/; "
            "it is the yardstick of the other methods, which need forget samples only"
        )
    if hp.recipe not in RECIPES:
        raise HyperparameterError(f"there is no training recipe {hp.recipe!r}; choose one of: {', '.join(RECIPES)}")
    recipe = RECIPES[hp.recipe]
    recipe = replace(recipe, epochs=hp.epochs or recipe.epochs)
    size = next(job.batches()).shape[-2:]
    spec, images = _images(Path(hp.data), hp, (int(size[0]), int(size[1])))
    _check_fit(job.student, spec)
    if job.forget_class >= len(spec.classes):
        raise ForgetInputError(f"{hp.data} holds {len(spec.classes)} classes, there is no class {job.forget_class}")

    def report(step: "TrainProgress") -> None:
        if step.epoch > len(job.epochs):
            job.epochs.append(EpochRecord({"total": step.loss}, 1.0))
        job.on_progress(Progress(step.step / step.steps, step.epoch, step.epochs, step.loss))

    result = train(
        spec,
        images,
        recipe=recipe,
        exclude=job.forget_class,
        seed=job.generator.initial_seed(),
        checkpoint=Path(hp.checkpoint) if hp.checkpoint else None,
        progress=report,
    )
    job.student.load_state_dict(result.model.state_dict())
    # What a run of this method saw are retained images; it looks at no forget sample.
    job.samples = int((images.labels != job.forget_class).sum())


def _images(path: Path, hp: RetrainHyperparameters, size: tuple[int, int]) -> "tuple[ModelSpec, ImageCache]":
    """The training images of ``path`` and the spec that they and the settings describe."""
    from clue.data import image_folder
    from clue.data.decoded import decoded_classes, mapped
    from clue.train import ImageCache

    known = decoded_classes(path)
    root = path / "train" if (path / "train").is_dir() else path
    if not root.is_dir():
        raise DataError(f"{path} does not exist: retrain needs a folder with train/<class>/")
    found = known or sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = tuple(hp.classes.split(",")) if hp.classes else tuple(found)
    try:
        spec = ModelSpec(hp.architecture, classes, size, _triple(hp.mean), _triple(hp.std), _object(hp.arguments) or {})
    except BundleError as error:
        raise ForgetInputError(f"retrain cannot use {path}: {error}") from None
    if known:
        images: Any = mapped(path, "train", spec)
        return spec, ImageCache(images.pixels, images.labels, spec)
    return spec, ImageCache.of(image_folder(root, spec), spec)


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = numbers(text)
    return red, green, blue


def _check_fit(student: nn.Module, spec: ModelSpec) -> None:
    """The fresh model must have the very tensors of the one that was given."""
    from clue.architectures import build_model

    fresh = {name: tensor.shape for name, tensor in build_model(spec).state_dict().items()}
    if fresh != {name: tensor.shape for name, tensor in student.state_dict().items()}:
        raise ForgetInputError(
            f"the model is no {spec.architecture} of {len(spec.classes)} classes: "
            "set 'architecture' and 'data' of retrain to those it was trained with"
        )
