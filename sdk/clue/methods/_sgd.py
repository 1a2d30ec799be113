"""The training loop that the gradient-based methods share: plain SGD over the forget set.

Every epoch draws the forget set once. Each step evaluates a method's loss on a batch,
checks that it is finite, masks the gradient where the method asks for it and takes
``w <- w - lr * v`` with ``v <- momentum * v + gradient``. Batch-norm stays in eval mode
because the student does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clue.methods._job import EpochRecord, ForgetJob
from clue.methods._registry import Hyperparameters
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


def run_sgd(
    job: ForgetJob,
    hp: SgdHyperparameters,
    loss: LossFunction,
    *,
    masks: MaskFunction | None = None,
    extra: "list[nn.Parameter] | None" = None,
) -> None:
    """Minimise ``loss`` over the forget set by changing ``job.student``.

    Args:
        job: the student, the forget set and where to report.
        hp: settings of the loop.
        loss: maps a batch of forget images (N, C, H, W) to its loss.
        masks: called at the start of every epoch for the weights that are free to change.
        extra: parameters outside the student that are trained along (never masked).

    Raises:
        ForgetDivergedError: the loss or a weight became non-finite.
        ForgetInputError: the student is frozen or the forget set is empty.
    """
    own = job.trainable()
    parameters = own + (extra or [])
    velocity: list[Tensor | None] = [None] * len(parameters)
    planned, epoch, taken = hp.epochs, 0, 0
    while epoch < planned and not 0 < hp.max_steps <= taken:
        free = masks() if masks is not None else None
        sums: dict[str, float] = {}
        hits = steps = seen = 0
        for images in job.batches():
            if 0 < hp.max_steps <= taken + steps:
                continue  # read on: the job counts the images
            batch = loss(images)
            job.check_loss(batch.total)
            clear_gradients(parameters)
            torch.autograd.backward(batch.total)
            if free is not None:
                apply_masks(own, free)
            sgd_step(parameters, velocity, hp.lr, hp.momentum, hp.clip_norm)
            hits += int((batch.logits.argmax(1) == job.forget_class).sum())
            for name, value in (*batch.parts.items(), ("total", batch.total)):
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * images.shape[0]
            steps += 1
            seen += images.shape[0]
        epoch, taken = epoch + 1, taken + steps
        planned = max(hp.epochs, -(-hp.min_steps // steps))
        accuracy = hits / seen
        means = {name: value / seen for name, value in sums.items()}
        job.end_epoch(EpochRecord(means, 1.0 if free is None else density(free), accuracy), planned)
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
