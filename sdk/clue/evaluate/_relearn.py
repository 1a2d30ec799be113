"""Relearning: how fast an attacker with a few images brings the class back.

Every step is plain SGD with momentum on the same small batch, ten images of each class,
with batch-norm frozen; the score is the accuracy on test images of the forgotten class after
5 and 40 steps. A model that never saw the class needs many steps, one that only hides it
few. The stronger attacker first sets the class's row of the head to the mean of the other
rows, so that a suppressed logit does not hide what the features still hold.
"""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from clue._head import classifier_head
from clue.errors import DataError
from clue.evaluate._accuracy import Accuracy
from clue.evaluate._view import BATCH_SIZE, ModelView, evaluating


@dataclass(frozen=True)
class RelearnResult:
    """Accuracy on test images of the forgotten class after relearning.

    Attributes:
        after: for each number of steps, one accuracy a draw of the attacker's images.
        train_samples: images in the attacker's batch.
        head_reset: whether the head's row was set to the mean of the others first.
    """

    after: dict[int, list[Accuracy]]
    train_samples: int
    head_reset: bool

    def value(self, steps: int) -> float:
        """Mean over the draws, in [0, 1]; the Retrain oracle's is the aim."""
        return statistics.fmean(accuracy.value for accuracy in self.after[steps])

    def spread(self, steps: int) -> float:
        """Standard deviation over the draws; NaN for a single one."""
        values = [accuracy.value for accuracy in self.after[steps]]
        return statistics.stdev(values) if len(values) > 1 else float("nan")

    def interval(self, steps: int) -> tuple[float, float]:
        """95 % Wilson interval of :meth:`value`; the draws share their test images, so these count once."""
        draws = self.after[steps]
        return Accuracy(round(statistics.fmean(one.correct for one in draws)), draws[0].samples).interval()

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "after": {str(k): [one.as_dict() for one in draws] for k, draws in self.after.items()},
            "mean": {str(k): self.value(k) for k in self.after},
            "interval95": {str(k): self.interval(k) for k in self.after},
            "draws": len(next(iter(self.after.values()))),
            "train_samples": self.train_samples,
            "head_reset": self.head_reset,
        }


def relearn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: Sequence[int] = (5, 40),
    lr: float = 1e-2,
    momentum: float = 0.9,
    reset_row: int | None = None,
) -> dict[int, nn.Module]:
    """Fine-tune a copy of ``model`` on one batch; the copies after each number of ``steps``.

    Args:
        model: never changed.
        images: the attacker's images, shape (N, C, H, W), on any device.
        labels: their classes, shape (N,).
        steps: numbers of updates after which a copy is kept.
        lr: learning rate.
        momentum: of SGD.
        reset_row: class whose row (and bias) of the head is set to the mean of the others first.
    """
    # In this layout a convolution's backward pass takes a sixth less time on the CPU; it rounds differently.
    student = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = {}
    with evaluating(student) as device:
        for parameter in student.parameters():
            parameter.requires_grad_()
        if reset_row is not None:
            _reset_row(student, reset_row)
        batch, truth = images.to(device), labels.to(device)
        optimiser = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
        for step in range(1, max(steps) + 1):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(student(batch), truth))
            optimiser.step()
            if step in steps:
                kept[step] = copy.deepcopy(student)
    return kept


@dataclass(frozen=True)
class Relearning:
    """The class form of :func:`relearn`, over several draws of the attacker's images.

    Attributes:
        steps: numbers of updates after which the accuracy is taken.
        per_class: images of each class in the attacker's batch.
        draws: attackers, each with images of its own.
        lr: learning rate.
        momentum: of SGD.
        reset_head: the stronger attacker.
        seed: of the draws.
    """

    steps: tuple[int, ...] = (5, 40)
    per_class: int = 10
    draws: int = 3
    lr: float = 1e-2
    momentum: float = 0.9
    reset_head: bool = False
    seed: int = 0

    def measure(self, view: ModelView) -> RelearnResult:
        """Relearn from training images, test on test images of the forgotten class.

        DataError if a class of the training images has none.
        """
        k = view.forget_class
        labels = view.train.labels
        targets = torch.nonzero(view.test.labels == k).flatten()
        if len(targets) == 0 or not (labels == k).any():
            raise DataError("relearning needs training and test images of the forget class")
        asked = [_stack(view.test_data, part) for part in torch.split(targets, BATCH_SIZE)]
        after: dict[int, list[Accuracy]] = {step: [] for step in self.steps}
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.zeros(0)
        for _ in range(self.draws):
            chosen = _draw(labels, self.per_class, generator)
            students = relearn(
                view.model,
                _stack(view.train_data, chosen),
                labels[chosen],
                steps=self.steps,
                lr=self.lr,
                momentum=self.momentum,
                reset_row=k if self.reset_head else None,
            )
            for step, student in students.items():
                after[step].append(_recall(student, asked, k))
        return RelearnResult(after, len(chosen), self.reset_head)


@torch.no_grad()
def _reset_row(model: nn.Module, row: int) -> None:
    head = classifier_head(model)
    others = torch.arange(head.out_features, device=head.weight.device) != row
    head.weight[row] = head.weight[others].mean(dim=0)
    if head.bias is not None:
        head.bias[row] = head.bias[others].mean()


@torch.inference_mode()
def _recall(model: nn.Module, batches: Sequence[Tensor], label: int) -> Accuracy:
    correct = samples = 0
    with evaluating(model) as device:
        for images in batches:
            correct += int((model(images.to(device)).argmax(1) == label).sum())
            samples += len(images)
    return Accuracy(correct, samples)


def _draw(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    chosen = []
    for label in torch.unique(labels):
        found = torch.nonzero(labels == label).flatten()
        chosen.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    return torch.cat(chosen)


def _stack(data: "Dataset[Any]", indices: Tensor) -> Tensor:
    return torch.stack([data[int(index)][0] for index in indices])
