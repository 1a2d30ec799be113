"""What the bench hands to a worker process and gets back: two small JSON documents."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clue.errors import DataError
from clue.spec import ModelSpec


@dataclass(frozen=True)
class Sizes:
    """How many images each number rests on.

    Attributes:
        forget: forget-set images a class, the first ones; 0 takes all.
        retained: training images of every retained class for RA, MIA and the probe.
        test: test images of every class; 0 takes all.
        draws: attackers of the relearning metric.
        mia: members and non-members that the membership attack is fitted to, each, at most.
    """

    forget: int = 1500
    retained: int = 1000
    test: int = 0
    draws: int = 3
    mia: int = 9000


Task = Literal["forget", "judge", "train", "time"]
QUICK = Sizes(forget=300, retained=200, test=200, draws=1, mia=1000)


@dataclass(frozen=True)
class WorkerJob:
    """One measurement.

    Attributes:
        cache: folder of the decoded images.
        spec: the model's ``model.json`` text.
        forget_class: index of the class.
        task: ``forget`` with a method and judge the result, ``judge`` a model as it is, ``train`` a
            Retrain oracle, or ``time`` some steps of such a training.
        weights: safetensors file of the model to forget from, or to judge.
        oracles: safetensors files of Retrain oracles, for the KL divergence.
        method: name of the method.
        hyperparameters: overrides of the method's defaults; the recipe of an oracle.
        seed: seed of the run.
        folder: where a trained oracle goes.
        threads: threads of torch; 0 leaves the default.
        sizes: how many images.
    """

    cache: str
    spec: str
    forget_class: int
    task: Task = "judge"
    weights: str = ""
    oracles: tuple[str, ...] = ()
    method: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    folder: str = ""
    threads: int = 0
    sizes: Sizes = field(default_factory=Sizes)

    def to_json(self) -> str:
        """The job as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkerJob":
        """Parse :meth:`to_json`; DataError if it is not one."""
        try:
            raw = json.loads(text)
            return cls(**raw | {"sizes": Sizes(**raw["sizes"]), "oracles": tuple(raw["oracles"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"this is not a bench job: {error}") from None

    def model_spec(self) -> ModelSpec:
        """The parsed spec."""
        return ModelSpec.from_json(self.spec)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a JSON document so that a reader sees the old one or the whole new one; DataError if it cannot be."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}") from None
