"""What a method works on: the student, the original, the forget set, and where to report."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clue.errors import ForgetDivergedError, ForgetInputError
from clue.methods._batch import check_batch, read_batches
from clue.methods._resumption import Resumption


@dataclass(frozen=True)
class Progress:
    """One step of a running job, handed to the ``progress`` callback.

    Attributes:
        fraction: share of the planned work that is done, in [0, 1].
        epoch: epochs finished so far.
        epochs: epochs planned (a method may stop earlier).
        loss: mean loss of the last finished epoch, NaN before the first.
    """

    fraction: float
    epoch: int
    epochs: int
    loss: float


@dataclass
class EpochRecord:
    """What one epoch did: the mean of every part of the loss and the share of weights freed."""

    losses: dict[str, float]
    mask_density: float
    forget_accuracy: float | None = None


@dataclass
class ForgetJob:
    """The whole world of a method: nothing but forget samples and the two models.

    Attributes:
        student: the model to change, in eval mode (batch-norm statistics stay as they are).
        original: the model as it was given; read-only teacher.
        loader: yields batches of forget samples.
        forget_class: index of the logit to forget.
        generator: source of all randomness of the method.
        device: where both models live.
        on_progress: called after every epoch.
        epochs: records of the epochs that have ended.
        samples: forget samples, known once they have all been read; before that, those looked at so far.
        resumption: checkpoints of this job; without a place for them it does nothing.
    """

    student: nn.Module
    original: nn.Module
    loader: "DataLoader[object]"
    forget_class: int
    generator: torch.Generator
    device: torch.device
    on_progress: Callable[[Progress], None] = lambda _progress: None
    epochs: list[EpochRecord] = field(default_factory=list)
    samples: int = 0
    resumption: Resumption = field(default_factory=Resumption)

    def batches(self) -> Iterator[Tensor]:
        """Forget images of one epoch, batch by batch, on the model's device; ForgetInputError if one is unfit."""
        seen = 0
        for batch in read_batches(self.loader):
            images = check_batch(batch, self.forget_class)
            if images.shape[0] == 0:
                continue
            seen += images.shape[0]
            yield images.to(self.device)
        if seen == 0 and self.samples:
            raise ForgetInputError("the forget data can be read only once: give data that every epoch can read again")
        if seen == 0:
            raise ForgetInputError("the forget set is empty: give at least one image of the class")
        self.samples = seen

    def trainable(self) -> list[nn.Parameter]:
        """Parameters of the student that may change, in a fixed order."""
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if not parameters:
            raise ForgetInputError("every parameter of the model is frozen: nothing can be unlearned")
        return parameters

    def restore(self, epochs: list[dict[str, Any]], samples: int) -> None:
        """Take over the records and the count of samples of a checkpoint."""
        self.epochs[:] = [EpochRecord(**record) for record in epochs]
        self.samples = samples

    def check_loss(self, loss: Tensor) -> None:
        """Raise ForgetDivergedError if the loss is not finite."""
        if not bool(torch.isfinite(loss.detach()).all()):
            raise ForgetDivergedError(
                f"the loss became {float(loss.detach())} in epoch {len(self.epochs) + 1}: lower the learning rate"
            )

    def done(self, epochs: int, planned: int, batches: int) -> float:
        """Share of ``planned`` epochs that is over after ``epochs`` and ``batches`` of the next."""
        try:
            part = batches / max(len(self.loader), 1)
        except TypeError:
            part = 0.0  # the loader does not know its length
        return min(1.0, (epochs + min(part, 1.0)) / max(planned, 1))

    def end_epoch(self, record: EpochRecord, planned: int) -> None:
        """Keep the record of a finished epoch and report progress."""
        for parameter in chain(self.student.parameters(), self.student.buffers()):
            if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
                raise ForgetDivergedError(
                    f"a weight became non-finite in epoch {len(self.epochs) + 1}: lower the learning rate"
                )
        self.epochs.append(record)
        done = len(self.epochs)
        total = record.losses.get("total", math.nan)
        self.on_progress(Progress(min(1.0, done / max(planned, 1)), done, planned, total))
