"""``clue.forget``: run an unlearning method on a copy of a model, measured and checked."""

import copy
import operator
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from clue import _doubt as doubt
from clue.bundle import parameters_are_finite
from clue.errors import ForgetDivergedError, ForgetInputError
from clue.metering import EnergyReading, IdleBaseline, measure_energy
from clue.metering.memory import peak_memory
from clue.methods import get_method, make_hyperparameters
from clue.methods._batch import last_line
from clue.methods._checkpoint import Checkpoint, TensorDigest
from clue.methods._job import ForgetJob, Progress
from clue.methods._registry import Hyperparameters, Method
from clue.methods._resumption import Resumption, identity

__all__ = ["ForgetReport", "ForgetResult", "Progress", "forget"]

DEFAULT_BATCH_SIZE = 64
_LOOK_BATCH = 16


@dataclass(frozen=True)
class ForgetReport:
    """What a run cost and did.

    Attributes:
        method: name of the method.
        hyperparameters: every setting that was used.
        seed: seed of all randomness.
        forget_class: index of the forgotten logit.
        samples: number of forget samples; of retained ones for the oracle ``retrain``.
        epochs: epochs run.
        losses: per epoch, the mean of each part of the loss.
        mask_density: per epoch, the share of weights that were free to change.
        forget_accuracy: per epoch, the share of forget samples still classified as the class
            while the epoch ran; None for methods that do not track it.
        seconds: wall-clock seconds of the run.
        cpu_seconds: CPU seconds of this process in that time.
        energy: joules, their source and uncertainty.
        peak_memory_bytes: highest resident memory of this process during the run.
        weights_changed: share of trainable weights that differ from the original.
        warnings: what looks wrong though nothing failed, one line each: that the original takes many of the forget
            images for another class (see :mod:`clue._doubt` for the rule), or why a checkpoint was of no use.
        resumed_at: share of the planned work that a checkpoint brought, in [0, 1]; 0.0 if the run started at its
            beginning. ``seconds``, ``cpu_seconds`` and ``energy`` are those spent since then.
    """

    method: str
    hyperparameters: dict[str, Any]
    seed: int
    forget_class: int
    samples: int
    epochs: int
    losses: list[dict[str, float]]
    mask_density: list[float]
    forget_accuracy: list[float | None]
    seconds: float
    cpu_seconds: float
    energy: EnergyReading
    peak_memory_bytes: int
    weights_changed: float = field(default=0.0)
    warnings: tuple[str, ...] = ()
    resumed_at: float = 0.0

    @property
    def joules(self) -> float:
        """Energy of the run above idle, in joules; see ``energy.source`` for how it was got."""
        return self.energy.joules

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.method}: {self.samples} samples, {self.epochs} epochs, {self.seconds:.1f} s, "
            f"{self.joules:.1f} J ({self.energy.source}), peak {self.peak_memory_bytes / 2**20:.0f} MiB, "
            f"{100 * self.weights_changed:.1f} % of weights changed"
        )


@dataclass(frozen=True)
class ForgetResult:
    """The unlearned model (a new object, in eval mode) and the report of the run."""

    model: nn.Module
    report: ForgetReport


def forget(
    model: nn.Module,
    forget_data: "DataLoader[Any] | Dataset[Any]",
    forget_class: int,
    method: str = "clue",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    *,
    hyperparameters: Hyperparameters | Mapping[str, Any] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    checkpoint: Checkpoint | None = None,
    idle: IdleBaseline | None = None,
) -> ForgetResult:
    """Make a copy of ``model`` forget one class, given samples of that class only.

    Args:
        model: a classifier, images (N, C, H, W) to logits (N, K). It is not changed.
        forget_data: a DataLoader or a Dataset of forget samples: images, or (image, label)
            pairs whose labels must all be ``forget_class``. A Dataset is shuffled every epoch
            in batches of ``batch_size``; a DataLoader is used as it is.
        forget_class: index of the logit to forget.
        method: name of a registered method, see :func:`clue.available_methods`.
        seed: seed of all randomness; the same seed on the same machine gives the same model.
        progress: called with a :class:`Progress` after every epoch.
        hyperparameters: settings of the method, as its dataclass or a mapping of overrides.
        batch_size: batch size where ``forget_data`` is a Dataset.
        checkpoint: where to keep the state of the run, such as :class:`clue.FileCheckpoint`. If one of this very call
            is there, the run goes on from it and gives, bit for bit, the model of a run that was never interrupted.
            It holds activations of forget images: see docs/checkpoints.md.
        idle: what the machine takes without this work (:func:`clue.metering.measure_idle`); subtracted from the energy.

    Raises:
        ForgetInputError: empty forget set, wrong labels or shapes, no such logit, frozen model.
        ForgetDivergedError: a loss or weight became non-finite; no model is returned.
        UnknownMethodError, HyperparameterError: ``method`` or ``hyperparameters`` are wrong.
    """
    chosen = get_method(method)
    settings = make_hyperparameters(chosen, hyperparameters)
    if batch_size < 1:
        raise ForgetInputError(f"batch_size must be at least 1, got {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    forget_class = _class_index(forget_class)
    device = _device_of(model)
    with _seeded(seed), _as_teacher(model):
        started, cpu_started = time.perf_counter(), time.process_time()
        with peak_memory() as memory, measure_energy(baseline=idle) as energy:
            # Randomness of its own: what is drawn for the look must not change the run.
            with _seeded(seed):
                looked_at = TensorDigest()
                watch = looked_at.add if checkpoint is not None else None
                seen = _look(model, forget_data, forget_class, batch_size, device, watch)
            student = copy.deepcopy(model).eval()
            job = ForgetJob(
                student=student,
                original=model,
                loader=_loader(forget_data, batch_size, generator),
                forget_class=forget_class,
                generator=generator,
                device=device,
                on_progress=progress or (lambda _progress: None),
                samples=len(seen),
            )
            if checkpoint is not None:
                job.resumption = Resumption(checkpoint, identity(job, method, asdict(settings), seed, looked_at))
            _run(chosen, job, settings)
            job.resumption.finish(method)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        if not parameters_are_finite(student):
            raise ForgetDivergedError("a weight is not finite after unlearning: lower the learning rate")
        changed = _share_changed(model, student)
        warning = doubt.other_class_warning(seen, forget_class)
    return ForgetResult(
        model=student,
        report=ForgetReport(
            method=method,
            hyperparameters=asdict(settings),
            seed=seed,
            forget_class=forget_class,
            samples=job.samples,
            epochs=len(job.epochs),
            losses=[epoch.losses for epoch in job.epochs],
            mask_density=[epoch.mask_density for epoch in job.epochs],
            forget_accuracy=[epoch.forget_accuracy for epoch in job.epochs],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            energy=energy.reading(),
            peak_memory_bytes=memory.peak_bytes,
            weights_changed=changed,
            warnings=(*((warning,) if warning else ()), *job.resumption.warnings),
            resumed_at=job.resumption.resumed_at,
        ),
    )


def _class_index(forget_class: object) -> int:
    """The index as an int, whatever integer type it comes in; a name or a float is refused."""
    try:
        return operator.index(forget_class)  # type: ignore[arg-type]
    except TypeError:
        raise ForgetInputError(
            f"forget_class must be the index of a logit, got {forget_class!r}: spec.class_index(NAME) gives it"
        ) from None


def _run(method: Method, job: ForgetJob, settings: Hyperparameters) -> None:
    """Run the method; what torch cannot compute becomes one line."""
    try:
        method.run(job, settings)
    except RuntimeError as error:
        reason = last_line(error)
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason:
            reason = f"out of memory, use a smaller batch size ({reason})"
        raise ForgetInputError(f"{method.name} cannot run on this model and these images: {reason}") from error


def _device_of(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ForgetInputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ForgetInputError("the model has no parameters: nothing can be unlearned")
    return parameter.device


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that datasets and layers draw from, and give them back as they were."""
    python_state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)


@contextmanager
def _as_teacher(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode while it teaches, and every module's mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _loader(data: Any, batch_size: int, generator: torch.Generator) -> "DataLoader[Any]":
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, str | bytes) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ForgetInputError("forget_data must be a DataLoader or a Dataset with a length")
    if len(data) == 0:
        raise ForgetInputError("the forget set is empty: give at least one image of the class")
    return DataLoader(data, batch_size=batch_size, shuffle=True, generator=generator)


@torch.no_grad()
def _look(
    model: nn.Module,
    data: Any,
    forget_class: int,
    batch_size: int,
    device: torch.device,
    watch: Callable[[Tensor], None] | None,
) -> Tensor:
    """Logits of the first forget images, shape (n, K); they must suit the model, which must have the logit.

    ``watch`` is given the images, batch by batch.
    """
    probe = ForgetJob(
        student=model,
        original=model,
        loader=_loader(data, min(batch_size, _LOOK_BATCH), torch.Generator()),
        forget_class=forget_class,
        generator=torch.Generator(),
        device=device,
    )
    logits: list[Tensor] = []
    left = doubt.IMAGES
    for images in probe.batches():
        if not logits:
            _check_logits(model, images[:1], forget_class)
        logits.append(model(images[:left]).float())
        if watch is not None:
            watch(images[:left])
        left -= len(logits[-1])
        if left <= 0:
            break
    return torch.cat(logits)


def _check_logits(model: nn.Module, image: Tensor, forget_class: int) -> None:
    """Refuse an image (1, C, H, W) that the model cannot take, and answers that are no logits."""
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    try:
        with torch.enable_grad():
            logits = model(image)
    except Exception as error:
        raise ForgetInputError(
            f"the model cannot take images of shape {tuple(image.shape)} and type {image.dtype}: "
            f"{_wrong_channels(model, image) or last_line(error)}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ForgetInputError(
            f"the model must map images to logits of shape (N, K), it returns a {type(logits).__name__}: wrap it"
        )
    if logits.ndim != 2 or len(logits) != len(image) or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ForgetInputError(
            f"the model must map images to logits of shape (N, K) with K >= 2, "
            f"it maps {tuple(image.shape)} to {tuple(logits.shape)} of type {logits.dtype}"
        )
    if trainable and not logits.requires_grad:
        raise ForgetInputError("the model's logits carry no gradient: its forward must not detach or switch it off")
    if not 0 <= forget_class < logits.shape[1]:
        raise ForgetInputError(f"the model has {logits.shape[1]} classes, there is no class {forget_class}")


def _wrong_channels(model: nn.Module, image: Tensor) -> str:
    """What is wrong with the number of channels, judged by the first convolution; empty if nothing is."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == image.shape[1]:
        return ""
    return f"they have {image.shape[1]} channel(s), its first layer takes {first.in_channels}"


@torch.no_grad()
def _share_changed(before: nn.Module, after: nn.Module) -> float:
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    total = sum(old.numel() for old, _ in pairs)
    return sum(int((old != new).sum()) for old, new in pairs) / max(total, 1)
