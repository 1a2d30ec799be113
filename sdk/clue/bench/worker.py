"""One measurement in a process of its own: ``python -m clue.bench.worker JOB.json RESULT.json``.

A fresh process makes the peak memory of a method its own. The peak is taken while the method
runs, before anything is evaluated. Progress goes to standard output, one JSON object a line. A
failure of the method is a result too: the process then writes ``{"error": ...}`` and exits with
0; it exits with 1 where the job itself is wrong.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clue import evaluate
from clue._forget import forget
from clue.architectures import build_model
from clue.bench._job import WorkerJob, write_result
from clue.bench._training import Emit, cost_of, time_training, train_oracle
from clue.bundle import load_weights
from clue.data.decoded import mapped
from clue.errors import ClueError
from clue.metering.memory import peak_memory
from clue.spec import ModelSpec


def measure(job: WorkerJob, emit: Emit = lambda _message: None) -> dict[str, Any]:
    """Run the job; rates are in percent, ``detail`` holds counts and intervals as shares.

    Raises:
        ClueError: the images, weights or the method are wrong, or the method diverged.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.task == "train":
        return train_oracle(job, emit)
    if job.task == "time":
        return time_training(job)
    spec = job.model_spec()
    model = _model(spec, job.weights)
    if job.task == "judge":
        return _judge(model, job, spec)
    forget_set = mapped(Path(job.cache), "train", spec).only(job.forget_class, job.sizes.forget or None)
    # An empty block: the peak is reset to what is resident now, with torch and the model loaded.
    with peak_memory() as loaded:
        pass
    outcome = forget(
        model,
        forget_set,
        job.forget_class,
        job.method,
        job.seed,
        lambda step: emit({"fraction": step.fraction, "epoch": step.epoch, "epochs": step.epochs, "loss": step.loss}),
        hyperparameters=job.hyperparameters,
    )
    cost = cost_of(outcome.report) | {"rss_before_bytes": loaded.peak_bytes}
    emit({"line": "judging"})
    return cost | _judge(outcome.model, job, spec)


def _model(spec: ModelSpec, weights: str) -> nn.Module:
    model = build_model(spec)
    load_weights(model, Path(weights))
    return model.eval()


def _judge(model: nn.Module, job: WorkerJob, spec: ModelSpec) -> dict[str, Any]:
    """Every metric of the paper's table and the ones that look behind it."""
    sizes = job.sizes
    train, test = (mapped(Path(job.cache), split, spec) for split in ("train", "test"))
    counts = [sizes.retained] * len(spec.classes)
    counts[job.forget_class] = sizes.forget or len(train)
    shown = test.first([sizes.test or len(test)] * len(spec.classes))
    asked = shown.only(job.forget_class)
    oracles = [evaluate.answers(_model(spec, weights), asked) for weights in job.oracles]
    view = evaluate.ModelView(model, train.first(counts), shown, job.forget_class)
    found = evaluate.judge(view, oracles, per_class=sizes.retained, draws=sizes.draws, mia=sizes.mia)
    return found.figures() | {"detail": found.as_dict(), "sizes": asdict(sizes)}


def main(arguments: list[str]) -> int:
    """Entry point; the exit status."""
    if len(arguments) != 2:
        print("usage: python -m clue.bench.worker JOB.json RESULT.json", file=sys.stderr)
        return 2
    try:
        job = WorkerJob.from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    except (ClueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    try:
        result = measure(job, _emit)
    except ClueError as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    write_result(Path(arguments[1]), _finite(result))
    return 0


def _emit(message: dict[str, Any]) -> None:
    # A bench that was killed has closed the pipe: the worker then ends here, with its checkpoint on disk.
    print(json.dumps(_finite(message)), flush=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a number becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
