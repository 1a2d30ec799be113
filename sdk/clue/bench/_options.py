"""What to measure, and the checks of it that need no image to be decoded."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clue.bench._job import QUICK, Sizes
from clue.errors import DataError, HyperparameterError
from clue.methods import available_methods, get_method, make_hyperparameters
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec, unknown_class_message


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/clue-bench``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clue-bench"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        data: folder with ``train/<class>/`` and ``test/<class>/``, or CIFAR-10's archive.
        weights: safetensors file of the trained model, or a bundle folder.
        forget_classes: names; empty for all classes, one after the other.
        methods: names; empty for all that need forget samples only.
        architecture: as in a model's spec; ignored where ``weights`` is a bundle.
        input_size: (height, width); ignored where ``weights`` is a bundle.
        oracle_weights: safetensors file or bundle of the Retrain oracle; ``{class}`` and ``{seed}``
            in the path stand for the class and the oracle's seed. None trains the oracles with ``recipe``.
        oracle_seeds: Retrain oracles of each class, with seeds 0, 1, ...
        recipe: name of the oracle's training recipe.
        oracle_epochs: epochs of the oracle's training; 0 takes the recipe's number.
        hyperparameters: overrides by method name.
        seeds: runs of each method, with seeds 0, 1, ...
        sizes: how many images each number rests on.
        cache: folder for decoded images, trained oracles and judgements of models as they are.
        use_judged: take judgements of the original and of Retrain from the cache.
        threads: threads of each run; 0 leaves torch's default.
        timeout: seconds that one run may take.
    """

    data: Path
    weights: Path
    forget_classes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    architecture: str = "resnet20"
    input_size: tuple[int, int] = (32, 32)
    oracle_weights: Path | None = None
    oracle_seeds: int = 1
    recipe: str = "cifar10"
    oracle_epochs: int = 0
    hyperparameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 1
    sizes: Sizes = field(default_factory=Sizes)
    cache: Path = field(default_factory=default_cache)
    use_judged: bool = True
    threads: int = 0
    timeout: float = 3600.0

    def quick(self) -> "BenchOptions":
        """The same bench on few images and a single relearning draw."""
        return replace(self, sizes=QUICK)

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods to run, in order."""
        return self.methods or available_methods()

    def oracle_path(self, name: str, seed: int) -> Path | None:
        """The given weights of an oracle; None where it is to be trained."""
        if self.oracle_weights is None:
            return None
        path = Path(str(self.oracle_weights).replace("{class}", name).replace("{seed}", str(seed)))
        return path / WEIGHTS_FILE if (path / SPEC_FILE).is_file() else path

    def check(self) -> None:
        """Raise a ClueError for numbers, methods and settings that make no sense."""
        from clue.train import RECIPES

        for name in ("seeds", "oracle_seeds"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        for method in (*self.all_methods, *self.hyperparameters):
            make_hyperparameters(get_method(method), self.hyperparameters.get(method))
        for recipe in (self.recipe, self.hyperparameters.get("retrain", {}).get("recipe", self.recipe)):
            if recipe not in RECIPES:
                raise HyperparameterError(
                    f"there is no training recipe {recipe!r}; choose one of: {', '.join(RECIPES)}"
                )
        if self.oracle_epochs < 0:
            raise HyperparameterError(f"oracle_epochs must be at least 0, got {self.oracle_epochs}")

    def model(self, classes: Sequence[str]) -> tuple[ModelSpec, Path]:
        """The spec and the weights file of the model to forget from, whose images have these classes."""
        if (self.weights / SPEC_FILE).is_file():
            spec, _ = read_spec(self.weights)
            if tuple(sorted(spec.classes)) != tuple(classes):
                raise DataError(f"{self.data} does not hold the classes of the model {self.weights}")
            return spec, self.weights / WEIGHTS_FILE
        if self.weights.is_dir():
            raise DataError(f"{self.weights} is no model bundle: it holds no {SPEC_FILE}")
        if not self.weights.is_file():
            raise DataError(f"{self.weights} does not exist: give a safetensors file or a model bundle")
        return ModelSpec(self.architecture, tuple(classes), input_size=self.input_size), self.weights

    def classes(self, spec: ModelSpec) -> tuple[str, ...]:
        """The classes to forget; DataError if one is unknown or has no oracle."""
        names = self.forget_classes or spec.classes
        for name in names:
            if name not in spec.classes:
                raise DataError(unknown_class_message(name, spec.classes))
        if self.oracle_weights is not None:
            for word, count, what in (("{class}", len(names), "class"), ("{seed}", self.oracle_seeds, "seed")):
                if count > 1 and word not in str(self.oracle_weights):
                    raise DataError(f"one oracle serves one {what}: put {word} into the path of the oracle weights")
        for name in names:
            for seed in range(self.oracle_seeds):
                path = self.oracle_path(name, seed)
                if path is not None and not path.is_file():
                    raise DataError(f"{path} does not exist: no oracle weights")
        return tuple(names)

    def identity(self) -> dict[str, Any]:
        """The options that decide which numbers come out, as plain data."""
        return {
            "forget_classes": list(self.forget_classes),
            "methods": list(self.all_methods),
            "oracle_seeds": self.oracle_seeds,
            "oracle": [self.recipe, self.oracle_epochs],
            "settings": self.hyperparameters,
            "seeds": self.seeds,
            "threads": self.threads,
            "sizes": asdict(self.sizes),
        }
