"""The process that unlearns: ``python -m clue_agent.worker JOB.json``. The only part that loads torch.

Reads one job, writes the new bundle into the job's output folder, prints one JSON object a line:
``{"progress": {"stage": ..., "fraction": ...}}`` while it works and ``{"result": ...}`` or
``{"failure": {"reason": ..., "detail": ...}}`` at the end. It touches nothing else, so it can be
killed at any moment.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

import clue
from clue.data import ImageFolder, image_folder, loader
from clue.errors import (
    BundleError,
    DataError,
    ForgetDivergedError,
    ForgetInputError,
    HyperparameterError,
    UnknownMethodError,
)
from clue.evaluate import Accuracy, evaluate_classes
from clue.methods import get_method


def main() -> None:
    """Run the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    try:
        _send(result=run(job))
    except (HyperparameterError, UnknownMethodError) as error:
        _fail("REASON_INVALID_REQUEST", error)
    except ForgetDivergedError as error:
        _fail("REASON_DIVERGED", error)
    except BundleError as error:
        _fail("REASON_BAD_MODEL", error)
    except OSError as error:
        _fail("REASON_NO_SPACE", error)
    except (DataError, ForgetInputError) as error:
        _fail("REASON_BAD_SAMPLES", error)
    except MemoryError:
        _fail("REASON_WORKER_FAILED", MemoryError("not enough memory"))
    except RuntimeError as error:
        # torch reports failed allocations this way.
        _fail("REASON_WORKER_FAILED", error)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate, forget, evaluate, save. Returns what the receipt needs."""
    _progress("loading", 0.0)
    bundle = clue.load_bundle(job["model"], allowed_factories=job["allowed_factories"])
    if bundle.digest != job["model_digest"]:
        raise BundleError("the model in use changed while the request waited")
    name = job["forget_class"]
    index = bundle.spec.class_index(name)
    holdout = image_folder(job["holdout"], bundle.spec)
    retained = tuple(spec_name for spec_name in bundle.spec.classes if spec_name not in (*bundle.spec.forgotten, name))
    holdout = _without(holdout, {bundle.spec.class_index(old) for old in bundle.spec.forgotten if old != name})

    _progress("evaluating", 0.02)
    ua_before, ra_before = evaluate_classes(bundle.model, loader(holdout), index)
    result: dict[str, Any] = {
        "ua_before": _counts(ua_before),
        "ra_before": _counts(ra_before),
        "retained_classes": len(retained),
    }
    if name in bundle.spec.forgotten and ua_before.value <= job["max_ua"]:
        return result | {
            "already_forgotten": True,
            "ua_after": _counts(ua_before),
            "ra_after": _counts(ra_before),
        }

    if get_method(job["method"]).oracle:
        raise UnknownMethodError(f"{job['method']} needs retained data, which no device has: it is a yardstick only")
    samples = image_folder(job["samples"], bundle.spec, only=name)
    outcome = clue.forget(
        bundle.model,
        samples,
        index,
        method=job["method"],
        seed=job["seed"],
        hyperparameters=job["hyperparameters"],
        batch_size=job["batch_size"],
        progress=lambda p: _progress("unlearning", 0.1 + 0.7 * p.fraction),
    )
    _progress("evaluating", 0.85)
    ua_after, ra_after = evaluate_classes(outcome.model, loader(holdout), index)
    _progress("saving", 0.95)
    output = Path(job["output"])
    try:
        clue.save_bundle(output, outcome.model, bundle.spec.with_forgotten(name))
    except BundleError as error:
        raise OSError(str(error)) from None
    report = outcome.report
    return result | {
        "already_forgotten": False,
        "ua_after": _counts(ua_after),
        "ra_after": _counts(ra_after),
        "samples": [str(path) for path in samples.paths],
        "method": report.method,
        "hyperparameters": report.hyperparameters,
        "seconds": report.seconds,
        "energy": asdict(report.energy),
        "peak_memory_bytes": report.peak_memory_bytes,
    }


def _without(data: ImageFolder, labels: set[int]) -> ImageFolder:
    """The holdout less the classes that earlier requests made the model forget: nothing retains those."""
    return data.without(labels) if labels else data


def _counts(accuracy: Accuracy) -> dict[str, int]:
    return {"correct": accuracy.correct, "samples": accuracy.samples}


def _progress(stage: str, fraction: float) -> None:
    _send(progress={"stage": stage, "fraction": fraction})


def _fail(reason: str, error: Exception) -> NoReturn:
    _send(
        failure={
            "reason": reason,
            "detail": str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
        }
    )
    sys.exit(1)


def _send(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
