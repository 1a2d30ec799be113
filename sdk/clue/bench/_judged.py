"""Judgements of models as they are, kept by what they depend on: they never change."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

import clue
from clue.bench._job import WorkerJob, write_result
from clue.errors import DataError
from clue.spec import ModelSpec, file_sha256

# What a judgement is computed by, relative to the package.
_CODE = ("evaluate", "architectures", "bench/worker.py", "data/decoded.py", "_head.py", "losses.py")


@cache
def code_digest() -> str:
    """Changes with the code that judges, and with torch."""
    root = Path(clue.__file__).parent
    files = [file for name in _CODE for file in (sorted((root / name).glob("*.py")) or [root / name])]
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def describe(spec: ModelSpec) -> list[Any]:
    """What of a spec decides how a model of it is built and fed; neither its history nor its weights."""
    return [spec.architecture, dict(spec.arguments), spec.classes, spec.input_size, spec.mean, spec.std]


def judged(
    job: WorkerJob, images: str, folder: Path, use: bool, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The judgement of ``job``, from ``folder`` or by ``measure``, which is then kept there.

    Args:
        job: of task ``judge``.
        images: digest of the decoded images.
        folder: of the cache.
        use: False measures in any case.
        measure: runs the job.
    """
    weights = [file_sha256(Path(path)) for path in (job.weights, *job.oracles)]
    identity = [code_digest(), images, describe(job.model_spec()), job.forget_class, asdict(job.sizes), weights]
    path = folder / f"judged-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]}.json"
    if use and path.is_file():
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        except (OSError, ValueError):
            pass  # damaged: measured again
    measured = measure()
    with suppress(DataError):  # a cache that cannot be written costs time, not the result
        write_result(path, measured)
    return measured
