"""The Retrain oracles of a bench: the same net and recipe, from scratch, without the class.

A trained oracle stays in the cache, under a name that changes with the content of the images,
the architecture, the class, the recipe and the seed. It is trained in a process of its own like
every other run, see :mod:`clue.bench._training`, and keeps the cost that was measured then.
"""

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clue.bench._job import WorkerJob
from clue.bench._judged import describe
from clue.bench._options import BenchOptions
from clue.bench._runner import Runner
from clue.bench._training import finished_oracle
from clue.methods.retrain import NAME
from clue.spec import WEIGHTS_FILE, ModelSpec
from clue.train import RECIPES

_FORMAT = "clue-oracle/1"


class Oracles:
    """Finds or trains oracles.

    Args:
        options: of the bench.
        images: digest of the decoded images.
        spec: architecture, classes, normalisation.
        run: starts the training.
    """

    def __init__(self, options: BenchOptions, images: str, spec: ModelSpec, run: Runner) -> None:
        self._options = options
        self._images = images
        self._spec = replace(spec, forgotten=(), weights_sha256="")
        self._run = run
        self._trained_now: set[tuple[int, int]] = set()

    def weights(self, job: WorkerJob, seed: int) -> Path:
        """The weights of the oracle of ``job``'s class: the given ones, or those of :meth:`trained`."""
        given = self._options.oracle_path(self._spec.classes[job.forget_class], seed)
        return given or self.trained(job, seed)[0]

    def trained(self, job: WorkerJob, seed: int) -> tuple[Path, dict[str, Any]]:
        """Weights of the oracle trained with ``seed``, now or earlier, and what that took."""
        name = self._spec.classes[job.forget_class]
        folder = self._folder(job.forget_class, seed)
        known = finished_oracle(folder)
        if known:
            return folder / WEIGHTS_FILE, known
        cost = self._run.certainly(
            replace(
                job,
                task="train",
                spec=self._spec.to_json(),
                method=NAME,
                hyperparameters=self.settings(job),
                seed=seed,
                folder=str(folder),
            ),
            f"{name}: training Retrain, seed {seed}",
        )
        self._trained_now.add((job.forget_class, seed))
        return folder / WEIGHTS_FILE, cost

    def trained_now(self, forget_class: int) -> bool:
        """Whether an oracle of the class was trained by this bench, not found."""
        return any(label == forget_class for label, _ in self._trained_now)

    def settings(self, job: WorkerJob) -> dict[str, Any]:
        """Hyper-parameters of the method ``retrain`` on the decoded images."""
        spec = self._spec
        own = {
            "data": job.cache,
            "architecture": spec.architecture,
            "arguments": json.dumps(dict(spec.arguments)),
            "classes": "" if list(spec.classes) == sorted(spec.classes) else ",".join(spec.classes),
            "mean": ",".join(map(repr, spec.mean)),
            "std": ",".join(map(repr, spec.std)),
            "recipe": self._options.recipe,
            "epochs": self._options.oracle_epochs,
        }
        return own | {k: v for k, v in self._options.hyperparameters.get(NAME, {}).items() if k in ("recipe", "epochs")}

    def _folder(self, forget_class: int, seed: int) -> Path:
        settings = self.settings(WorkerJob("", "", forget_class))
        recipe = RECIPES[settings["recipe"]]
        recipe = replace(recipe, epochs=settings["epochs"] or recipe.epochs)
        identity = [_FORMAT, self._images, describe(self._spec), forget_class, asdict(recipe), seed]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w-]", "_", self._spec.classes[forget_class])
        # Absolute: the worker may not share this process's folder.
        return (self._options.cache / f"oracle-{name}-{digest}").absolute()
