"""What a worker process does about the Retrain oracle: train it once, or time some steps of its training."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clue._forget import ForgetReport, forget
from clue._lock import locked
from clue.architectures import build_model
from clue.bench._job import WorkerJob, write_result
from clue.bundle import save_bundle
from clue.data.decoded import mapped
from clue.errors import BundleError, DataError
from clue.metering import measure_energy
from clue.metering.memory import peak_memory
from clue.methods import get_method, make_hyperparameters
from clue.methods._job import Progress
from clue.methods.retrain import NAME
from clue.spec import SPEC_FILE, read_spec, verify_weights
from clue.train import RECIPES, ImageCache, TrainProgress, train

EPOCHS_OF_THE_PAPER = 30
WARM_UP, TIMED = 5, 20
_COST = "cost.json"
_SUMS = ("seconds", "cpu_seconds", "energy_joules")
Emit = Callable[[dict[str, Any]], None]


def cost_of(report: ForgetReport) -> dict[str, Any]:
    """What a run took, as plain data."""
    return {
        "seconds": report.seconds,
        "cpu_seconds": report.cpu_seconds,
        "peak_rss_bytes": report.peak_memory_bytes,
        "energy_joules": report.energy.joules,
        "energy_source": report.energy.source,
        "energy_detail": report.energy.detail,
        "epochs": report.epochs,
        "samples": report.samples,
        "weights_changed": report.weights_changed,
        "hyperparameters": report.hyperparameters,
    }


def finished_oracle(folder: Path) -> dict[str, Any] | None:
    """The cost of the oracle in ``folder``, as it was measured when it was trained; None if it is not whole."""
    if not (folder / SPEC_FILE).is_file():
        return None
    try:
        verify_weights(folder, read_spec(folder)[0])
        cost = json.loads((folder / _COST).read_text(encoding="utf-8"))
    except (BundleError, OSError, ValueError):
        return None
    return cost if isinstance(cost, dict) else None


def train_oracle(job: WorkerJob, emit: Emit) -> dict[str, Any]:
    """Train the oracle of ``job`` into ``job.folder`` unless it is there; returns its cost.

    One process trains an oracle at a time; others wait, and find it finished. A killed training
    goes on from its last whole epoch, and the cost of the epochs that it kept is added.
    """
    folder = Path(job.folder)
    try:
        with locked(folder.with_suffix(".lock"), lambda: emit({"line": "another process trains it: waiting"})):
            return finished_oracle(folder) or _train(job, folder, emit)
    except OSError as error:
        raise DataError(f"cannot write the cache {folder.parent}: {error.strerror}; choose another folder") from None


def _train(job: WorkerJob, folder: Path, emit: Emit) -> dict[str, Any]:
    spec = job.model_spec()
    checkpoint, notes = folder.with_suffix(".checkpoint"), folder.with_suffix(".so-far.json")
    earlier = json.loads(notes.read_text(encoding="utf-8")) if checkpoint.is_file() and notes.is_file() else {}
    started, cpu_started = time.perf_counter(), time.process_time()
    noted = earlier.get("epochs", 0)

    with peak_memory() as loaded:
        pass
    with measure_energy() as energy:

        def note(step: Progress) -> None:
            nonlocal noted
            emit({"fraction": step.fraction, "epoch": step.epoch, "epochs": step.epochs, "loss": step.loss})
            # The first step of the next epoch: the checkpoint of this one is on disk by now.
            if step.epoch > noted and step.fraction * step.epochs > step.epoch:
                noted = step.epoch
                spent = (time.perf_counter() - started, time.process_time() - cpu_started, energy.reading().joules)
                so_far = {name: value + earlier.get(name, 0.0) for name, value in zip(_SUMS, spent, strict=True)}
                write_result(notes, so_far | {"epochs": noted})

        images = mapped(Path(job.cache), "train", spec)
        outcome = forget(
            build_model(spec),
            images.only(job.forget_class, 1),
            job.forget_class,
            NAME,
            job.seed,
            note,
            hyperparameters=job.hyperparameters | {"checkpoint": str(checkpoint)},
        )
    cost = cost_of(outcome.report) | {"rss_before_bytes": loaded.peak_bytes}
    cost |= {name: cost[name] + earlier.get(name, 0.0) for name in _SUMS}
    cost["epochs"] = _recipe(job.hyperparameters).epochs
    del cost["weights_changed"]  # against random weights it says nothing
    save_bundle(folder, outcome.model, spec)
    write_result(folder / _COST, cost)
    for spare in (checkpoint, notes):
        spare.unlink(missing_ok=True)
    return cost


def time_training(job: WorkerJob) -> dict[str, Any]:
    """Seconds of one step of the oracle's training on the job's images, and of 30 epochs at that pace."""
    spec = job.model_spec()
    images = mapped(Path(job.cache), "train", spec)
    recipe = replace(_recipe(job.hyperparameters), epochs=EPOCHS_OF_THE_PAPER)
    stamps: list[tuple[float, float]] = []
    steps = 0

    def tick(step: TrainProgress) -> None:
        nonlocal steps
        steps = step.steps
        stamps.append((time.perf_counter(), time.process_time()))
        if len(stamps) > WARM_UP + TIMED:
            raise _EnoughError

    with peak_memory() as memory:
        cache = ImageCache(images.pixels, images.labels, spec)
        with suppress(_EnoughError):
            train(spec, cache, recipe=recipe, exclude=job.forget_class, seed=job.seed, progress=tick)
    timed = len(stamps) - 1 - WARM_UP
    step, cpu_step = ((last - first) / timed for first, last in zip(stamps[WARM_UP], stamps[-1], strict=True))
    return {
        "seconds_30_epochs": step * steps,
        "cpu_seconds_30_epochs": cpu_step * steps,
        "seconds_source": f"extrapolated from {timed} timed steps",
        "seconds_per_step": step,
        "steps_30_epochs": steps,
        "peak_rss_bytes": memory.peak_bytes,
    }


class _EnoughError(Exception):
    """Ends a training that was only to be timed."""


def _recipe(hyperparameters: dict[str, Any]) -> Any:
    chosen: Any = make_hyperparameters(get_method(NAME), hyperparameters)
    recipe = RECIPES[chosen.recipe]
    return replace(recipe, epochs=chosen.epochs or recipe.epochs)
