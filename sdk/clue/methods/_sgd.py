"""The training loop that the gradient-based methods share: plain SGD over the forget set.

Every epoch draws the forget set once. Each step evaluates a method's loss on a batch,
checks that it is finite, masks the gradient where the method asks for it and takes
``w <- w - lr * v`` with ``v <- momentum * v + gradient``. Batch-norm stays in eval mode
because the student does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from clue.methods._job import EpochRecord, ForgetJob
from clue.methods._registry import Hyperparameters
from clue.methods._resumption import numbered
from clue.saliency import Masks, apply_masks, density


@dataclass(frozen=True)
class SgdHyperparameters(Hyperparameters):
    """Settings of the loop, inherited by every method that uses it.

    Attributes:
        epochs: passes over the forget set at most, >= 1.
        min_steps: at least this many updates however small the forget set is, >= 0; ``epochs``
            is raised to reach it.
        max_steps: at most this many updates, >= 0, whatever ``min_steps`` says; 0 sets no limit.
        stop_accuracy: stop after an epoch in which at most this share of the forget images
            was still classified as the forget class, in [0, 1]; -1 never stops early.
        lr: learning rate, > 0.
        momentum: in [0, 1).
        clip_norm: the gradient is scaled down to this Euclidean norm if it is longer, > 0;
            0 does not clip.
    """

    epochs: int = 2
    min_steps: int = 0
    max_steps: int = 0
    stop_accuracy: float = -1.0
    lr: float = 1e-2
    momentum: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        self.require("epochs", self.epochs >= 1, "at least 1")
        self.require("min_steps", self.min_steps >= 0, "at least 0")
        self.require("max_steps", self.max_steps >= 0, "at least 0")
        stop = self.stop_accuracy
        self.require("stop_accuracy", stop == -1 or 0 <= stop <= 1, "-1 or in [0, 1]")
        self.require("lr", self.lr > 0 and math.isfinite(self.lr), "positive")
        self.require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self.require("clip_norm", self.clip_norm >= 0, "at least 0")


@dataclass(frozen=True)
class BatchLoss:
    """What a method makes of one batch.

    Attributes:
        total: the scalar to minimise, a mean over the batch.
        logits: the student's logits on the clean forget images, shape (N, K); the loop counts
            from them how many are still classified as the forget class.
        parts: further scalars to report, by name.
    """

    total: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


LossFunction = Callable[[Tensor], BatchLoss]
MaskFunction = Callable[[], Masks | None]


@dataclass
class _Position:
    """Where the loop is: epochs and updates finished, and the sums of the running epoch."""

    planned: int
    epoch: int = 0
    taken: int = 0
    batches: int = 0
    steps: int = 0
    seen: int = 0
    hits: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def end_epoch(self) -> None:
        self.epoch, self.taken = self.epoch + 1, self.taken + self.steps
        self.batches = self.steps = self.seen = self.hits = 0
        self.sums = {}


def run_sgd(
    job: ForgetJob,
    hp: SgdHyperparameters,
    loss: LossFunction,
    *,
    masks: MaskFunction | None = None,
    extra: "list[nn.Parameter] | None" = None,
    resumable: bool = True,
) -> None:
    """Minimise ``loss`` over the forget set by changing ``job.student``.

    Args:
        job: the student, the forget set and where to report.
        hp: settings of the loop.
        loss: maps a batch of forget images (N, C, H, W) to its loss.
        masks: called at the start of every epoch for the weights that are free to change.
        extra: parameters outside the student that are trained along (never masked).
        resumable: write checkpoints and go on from one. Pass False where ``loss`` or ``masks`` depend on more than
            the student, the original, ``extra``, the batch and ``job.generator``.

    Raises:
        ForgetDivergedError: the loss or a weight became non-finite.
        ForgetInputError: the student is frozen or the forget set is empty.
    """
    own, extra = job.trainable(), extra or []
    parameters = own + extra
    velocity: list[Tensor | None] = [None] * len(parameters)
    at, free = _Position(hp.epochs), None
    saved = job.resumption.restore(job, "sgd") if resumable else None
    if saved is not None:
        at, velocity = _Position(**saved.numbers), saved.sequence("velocity", len(parameters))
        free = [mask for mask in saved.sequence("mask", len(own)) if mask is not None] or None
        with torch.no_grad():
            for index, parameter in enumerate(extra):
                parameter.copy_(saved.tensors[f"extra.{index}"])
    while at.epoch < at.planned and not 0 < hp.max_steps <= at.taken:
        if at.batches == 0:
            free = masks() if masks is not None else None
        for images in job.resumption.walk(job, job.batches(), at.batches):
            at.batches += 1
            if 0 < hp.max_steps <= at.taken + at.steps:
                continue  # read on: the job counts the images
            batch = loss(images)
            job.check_loss(batch.total)
            clear_gradients(parameters)
            torch.autograd.backward(batch.total)
            if free is not None:
                apply_masks(own, free)
            sgd_step(parameters, velocity, hp.lr, hp.momentum, hp.clip_norm)
            at.hits += int((batch.logits.argmax(1) == job.forget_class).sum())
            for name, value in (*batch.parts.items(), ("total", batch.total)):
                at.sums[name] = at.sums.get(name, 0.0) + float(value.detach()) * images.shape[0]
            at.steps += 1
            at.seen += images.shape[0]
            if resumable and job.resumption.due():
                tensors = numbered("velocity", velocity) | numbered("mask", free or []) | numbered("extra", extra)
                job.resumption.save(job, job.done(at.epoch, at.planned, at.batches), tensors, asdict(at))
        at.planned = max(hp.epochs, -(-hp.min_steps // at.steps))
        accuracy = at.hits / at.seen
        means = {name: value / at.seen for name, value in at.sums.items()}
        at.end_epoch()
        job.end_epoch(EpochRecord(means, 1.0 if free is None else density(free), accuracy), at.planned)
        if accuracy <= hp.stop_accuracy:
            break
    clear_gradients(parameters)


def clear_gradients(parameters: list[nn.Parameter]) -> None:
    """Drop every gradient buffer."""
    for parameter in parameters:
        parameter.grad = None


@torch.no_grad()
def sgd_step(
    parameters: list[nn.Parameter], velocity: list[Tensor | None], lr: float, momentum: float, clip_norm: float
) -> None:
    """One update in place; ``velocity`` holds one entry a parameter, None before the first.

    Ours, because ``torch.optim`` imports torch's compiler on first use: 70 MB and a second that a small device has not.
    """
    if clip_norm:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    for index, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            continue
        if momentum:
            previous = velocity[index]
            # The first gradient is copied: its buffer belongs to the parameter.
            moved = gradient.clone() if previous is None else previous.mul_(momentum).add_(gradient)
            velocity[index] = gradient = moved
        parameter.sub_(gradient, alpha=lr)
