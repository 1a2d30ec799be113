"""The process that unlearns: ``python -m clue_agent.worker JOB.json``. The only part that loads torch.

Reads one job, seals the new model into the store's candidate slot, prints one JSON object a line:
``{"progress": {"stage": ..., "fraction": ...}}`` while it works and ``{"result": ...}`` or
``{"failure": {"reason": ..., "detail": ...}}`` at the end. It touches nothing else but its own
checkpoint, so it can be killed at any moment.
"""

import errno
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import ConcatDataset, Dataset

import clue
from clue.bundle import ModelBundle, bundle_from_bytes, bundle_to_bytes
from clue.data import image_folder, loader
from clue.errors import (
    BundleError,
    DataError,
    ForgetDivergedError,
    ForgetInputError,
    HyperparameterError,
    UnknownMethodError,
    UpdateError,
)
from clue.evaluate import Accuracy, evaluate_classes
from clue.federated import apply_update, make_update, update_from_bytes, update_to_bytes
from clue.metering import measure_energy, measure_idle
from clue.metering.memory import peak_memory
from clue.methods import get_method, make_hyperparameters
from clue.spec import SPEC_FILE, ModelSpec
from clue_agent.boxes import MOST_PATCH_BYTES, PATCH, UPDATE, Box
from clue_agent.calibration import FREE_ENERGY_THRESHOLD, free_energy, free_energy_threshold
from clue_agent.checkpoint import SealedCheckpoint
from clue_agent.errors import AgentError
from clue_agent.sealed import KeyRing
from clue_agent.sealed_images import SealedImages
from clue_agent.store import CANDIDATE, ModelStore, StoredModel
from clue_agent.vault import Vault
from clue_protocol.envelope import MAX_UPDATE_BYTES

_CALIBRATION_QUANTILE = 0.95
# Of doing nothing, where a meter can see it: what the board takes without the work. An estimate needs none.
_IDLE_SECONDS = 5.0


def main() -> None:
    """Run the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    try:
        worker = Worker(job)
        # Nothing is evicted for newer images while the job reads.
        with worker.vault.hold():
            _send(result=worker.run())
    except (HyperparameterError, UnknownMethodError) as error:
        _fail("REASON_INVALID_REQUEST", error)
    except ForgetDivergedError as error:
        _fail("REASON_DIVERGED", error)
    except UpdateError as error:
        _fail("REASON_BAD_PATCH", error)
    except (BundleError, AgentError) as error:
        _fail("REASON_BAD_MODEL", error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail("REASON_NO_SPACE" if full else "REASON_STORAGE_FAILED", error)
    except (DataError, ForgetInputError) as error:
        _fail("REASON_BAD_SAMPLES", error)
    except MemoryError:
        _fail("REASON_OUT_OF_MEMORY", MemoryError("not enough memory"))
    except RuntimeError as error:
        # torch reports failed allocations this way.
        memory = "can't allocate memory" in str(error) or "not enough memory" in str(error)
        _fail("REASON_OUT_OF_MEMORY" if memory else "REASON_WORKER_FAILED", error)


class Worker:
    """One job: evaluate, forget, evaluate, save."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        home = Path(job["home"])
        self._ring = KeyRing(home / "keys")
        self._store = ModelStore(home / "model", self._ring)
        self.vault = Vault(home / "vault", self._ring)
        self._home = home

    def run(self) -> dict[str, Any]:
        """Returns what the receipt needs."""
        job = self._job
        _progress("loading", 0.0)
        stored = self._store.read(job["slot"])
        if stored.digest != job["model_digest"]:
            raise BundleError("the model in use changed while the request waited")
        bundle = bundle_from_bytes(
            stored.spec, stored.digest, stored.weights, allowed_factories=job["allowed_factories"]
        )
        names = job["forget"]
        if not names:
            return self._check(bundle.model, stored)
        indices = [stored.spec.class_index(name) for name in names]
        holdout = self._holdout(stored.spec, names)
        _progress("evaluating", 0.02)
        ua_before, ra_before = _evaluate(bundle.model, holdout, indices)
        result: dict[str, Any] = {"ua_before": _counts(ua_before), "ra_before": _counts(ra_before)}
        if set(names) <= set(stored.spec.forgotten) and ua_before.value <= job["max_ua"]:
            return result | {
                "already_forgotten": True,
                "ua_after": _counts(ua_before),
                "ra_after": _counts(ra_before),
            }
        if job["patch"]:
            return result | self._patch(bundle, names[0], holdout, indices)
        return result | self._forget(bundle, names, holdout, indices)

    def _check(self, model: torch.nn.Module, stored: StoredModel) -> dict[str, Any]:
        """A base model in which nothing has to be forgotten: make it the candidate if an app could use it."""
        with torch.no_grad():
            weights = all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
            logits = model(torch.zeros(1, 3, *stored.spec.input_size))
        if not weights or logits.shape != (1, len(stored.spec.classes)) or not bool(logits.isfinite().all()):
            raise BundleError(f"the model {stored.digest[:16]} does not give {len(stored.spec.classes)} finite logits")
        try:
            calibration = self._calibrate(model, self._holdout(stored.spec, ()), stored.spec)
        except DataError:
            calibration = {}  # no image of its classes: apps do without a threshold
        _progress("saving", 0.95)
        text = (self._store.slot(stored.slot) / SPEC_FILE).read_bytes()
        self._store.write(CANDIDATE, text, stored.weights, calibration)
        return {}

    def _patch(self, bundle: ModelBundle, name: str, holdout: "Dataset[Any]", indices: list[int]) -> dict[str, Any]:
        """Apply the change that other devices' forgetting amounts to."""
        data = Box(self._home, self._ring, PATCH).get(bytes.fromhex(self._job["patch"]))
        if data is None:
            raise UpdateError("the sealed patch is missing or damaged")
        _progress("patching", 0.1)
        idle = measure_idle(_IDLE_SECONDS)
        started = time.perf_counter()
        with peak_memory() as memory, measure_energy(baseline=idle) as energy:
            update = update_from_bytes(data, max_bytes=MOST_PATCH_BYTES)
            if update.forget_class != name:
                raise UpdateError(f"the patch forgets {update.forget_class!r}, the request {name!r}")
            patched = apply_update(bundle, update)
        seconds = time.perf_counter() - started
        _progress("evaluating", 0.5)
        ua_after, ra_after = _evaluate(patched.model, holdout, indices)
        calibration = self._calibrate(patched.model, holdout, patched.spec)
        _progress("saving", 0.95)
        self._store.write(CANDIDATE, *bundle_to_bytes(patched.model, patched.spec), calibration)
        return {
            "already_forgotten": False,
            "ua_after": _counts(ua_after),
            "ra_after": _counts(ra_after),
            "samples": 0,
            "method": PATCH,
            "hyperparameters": {"contributors": update.contributors},
            "seconds": seconds,
            "energy": asdict(energy.reading()),
            "peak_memory_bytes": memory.peak_bytes,
        }

    def _forget(
        self,
        bundle: ModelBundle,
        names: Sequence[str],
        holdout: "Dataset[Any]",
        indices: list[int],
    ) -> dict[str, Any]:
        job = self._job
        model, spec = bundle.model, bundle.spec
        method = get_method(job["method"])
        if method.oracle:
            raise UnknownMethodError(
                f"{job['method']} needs retained data, which no device has: it is a yardstick only"
            )
        settings = _scaled(method, job["hyperparameters"], job["step_scale"])
        digests: list[str] = []
        reports = []
        idle = measure_idle(_IDLE_SECONDS)
        for number, (name, index) in enumerate(zip(names, indices, strict=True)):
            samples: Dataset[Any]
            if job["synthetic"] and self.vault.count(name, "forget") == 0:
                _progress("remembering", 0.1 + 0.7 * number / len(names))
                samples = clue.synthesise_class(model, spec, index, seed=job["seed"])
            else:
                sealed = SealedImages(self.vault, spec, [name], "forget")
                samples = sealed
                digests += [hashlib.sha256(self.vault.read(item)).hexdigest() for item in sealed.items]
            outcome = clue.forget(
                model,
                samples,
                index,
                method=job["method"],
                seed=job["seed"],
                hyperparameters=settings,
                batch_size=job["batch_size"],
                progress=partial(_unlearning, number, len(names)),
                idle=idle,
                checkpoint=SealedCheckpoint(self._home / "work", self._ring, f"{job['checkpoint']}-{index}"),
            )
            model, spec = outcome.model, spec.with_forgotten(name)
            reports.append(outcome.report)
        _progress("evaluating", 0.85)
        ua_after, ra_after = _evaluate(model, holdout, indices)
        calibration = self._calibrate(model, holdout, spec)
        _progress("saving", 0.95)
        self._store.write(CANDIDATE, *bundle_to_bytes(model, spec), calibration)
        last = reports[-1]
        shared = self._share(bundle, model, names[0], last.samples) if job["update"] else {}
        return shared | {
            "already_forgotten": False,
            "ua_after": _counts(ua_after),
            "ra_after": _counts(ra_after),
            "sample_digests": digests,
            "samples": sum(report.samples for report in reports),
            "method": last.method,
            "hyperparameters": last.hyperparameters,
            "seconds": sum(report.seconds for report in reports),
            "energy": asdict(last.energy)
            | {
                name: sum(getattr(report.energy, name) for report in reports)
                for name in ("joules", "gross_joules", "gap_seconds")
            },
            "peak_memory_bytes": max(report.peak_memory_bytes for report in reports),
            "warnings": [line for report in reports for line in report.warnings],
        }

    def _share(self, before: ModelBundle, after: torch.nn.Module, name: str, samples: int) -> dict[str, Any]:
        """Seal the change for handing out; if that cannot be, the job goes on without, and the result says why."""
        try:
            data = update_to_bytes(make_update(before, after, name, samples=samples))
            if len(data) > MAX_UPDATE_BYTES:
                raise UpdateError(f"it has {len(data)} bytes, more than {MAX_UPDATE_BYTES >> 20} MiB")
            Box(self._home, self._ring, UPDATE).put(bytes.fromhex(self._job["update"]), data)
        except UpdateError as error:
            return {"no_update": str(error)}
        except OSError as error:
            return {"no_update": f"it cannot be kept: {error.strerror}"}
        return {}

    def _holdout(self, spec: ModelSpec, names: Sequence[str]) -> "Dataset[Any]":
        """Images only ever used to measure, less the classes that earlier requests made the model forget."""
        gone = {spec.class_index(old) for old in spec.forgotten if old not in names}
        parts: list[Dataset[Any]] = []
        sealed = SealedImages(self.vault, spec, self.vault.classes(), "holdout").without(gone)
        if len(sealed):
            parts.append(sealed)
        if self._job["holdout"]:
            folder = image_folder(self._job["holdout"], spec).without(gone)
            if len(folder):
                parts.append(folder)
        if not parts:
            raise DataError("there is no holdout image to measure with")
        return ConcatDataset(parts)

    def _calibrate(self, model: torch.nn.Module, holdout: "Dataset[Any]", spec: ModelSpec) -> dict[str, Any]:
        """Above which free energy an image is like none of the retained classes (see clue_agent.live)."""
        absent = {spec.class_index(name) for name in spec.forgotten}
        energies: list[float] = []
        with torch.no_grad():
            for images, labels in loader(holdout):
                retained = [row for row, label in enumerate(labels.tolist()) if label not in absent]
                if retained:
                    energies += free_energy(model(images[retained]), absent).tolist()
        if not energies:
            return {}
        return {
            FREE_ENERGY_THRESHOLD: free_energy_threshold(energies, _CALIBRATION_QUANTILE),
            "quantile": _CALIBRATION_QUANTILE,
            "samples": len(energies),
        }


def _scaled(method: Any, overrides: dict[str, object], scale: float) -> dict[str, object]:
    """The overrides with the learning rate times ``scale``; a method without one is tried as it is."""
    settings = make_hyperparameters(method, overrides)
    rate = getattr(settings, "lr", None)
    return overrides if scale == 1.0 or rate is None else overrides | {"lr": rate * scale}


def _evaluate(model: torch.nn.Module, holdout: "Dataset[Any]", indices: list[int]) -> tuple[Accuracy, Accuracy]:
    """UA over all classes of ``indices`` and RA over the others."""
    ua_correct = ua_samples = 0
    ra = Accuracy(0, 0)
    for index in indices:
        rest = set(indices) - {index}
        ua, ra = evaluate_classes(model, loader(_Without(holdout, rest) if rest else holdout), index)
        ua_correct, ua_samples = ua_correct + ua.correct, ua_samples + ua.samples
    return Accuracy(ua_correct, ua_samples), ra


class _Without(Dataset[Any]):
    def __init__(self, data: "Dataset[Any]", labels: set[int]) -> None:
        self._data = data
        self._rows = [i for i in range(len(data)) if data[i][1] not in labels]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        return self._data[self._rows[row]]


def _counts(accuracy: Accuracy) -> dict[str, int]:
    return {"correct": accuracy.correct, "samples": accuracy.samples}


def _progress(stage: str, fraction: float) -> None:
    _send(progress={"stage": stage, "fraction": fraction})


def _unlearning(number: int, classes: int, progress: clue.Progress) -> None:
    _progress("unlearning", 0.1 + 0.7 * (number + progress.fraction) / classes)


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
