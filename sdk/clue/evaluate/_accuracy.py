"""UA, RA and TA: accuracy on the forgotten and the retained classes, with its sampling error.

UA is the accuracy on training images of the forgotten class (0 is the aim: no image of it is
recognised any more), RA the accuracy on training images of the retained classes, TA the
accuracy on test images of the retained classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clue.errors import DataError
from clue.evaluate._view import ModelView, evaluating


@dataclass(frozen=True)
class Accuracy:
    """A share of correct answers and the number of samples it rests on.

    >>> Accuracy(1, 4).value
    0.25
    >>> Accuracy(0, 100).interval()[1] < 0.04
    True
    """

    correct: int
    samples: int

    @property
    def value(self) -> float:
        """Share of correct answers in [0, 1]; NaN without samples."""
        return self.correct / self.samples if self.samples else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson score interval (95 % by default), which stays sensible at 0 and 1."""
        if not self.samples:
            return 0.0, 1.0
        n, p = self.samples, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Rounding must not leave the share itself outside.
        return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))

    def as_dict(self) -> dict[str, Any]:
        """Value, counts and 95 % interval as plain data.

        >>> Accuracy(1, 4).as_dict()["correct"]
        1
        """
        low, high = self.interval()
        value = self.value if self.samples else None
        return {"value": value, "correct": self.correct, "samples": self.samples, "low": low, "high": high}


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of a model on the forgotten and the retained classes.

    Attributes:
        ua: on training images of the forgotten class.
        ra: on training images of the retained classes.
        ta: on test images of the retained classes.
        ua_test: on test images of the forgotten class, which no unlearning run has seen.
    """

    ua: Accuracy
    ra: Accuracy
    ta: Accuracy
    ua_test: Accuracy

    def as_dict(self) -> dict[str, Any]:
        """Every accuracy as plain data."""
        return {name: getattr(self, name).as_dict() for name in ("ua", "ra", "ta", "ua_test")}


def split_accuracy(logits: Tensor, labels: Tensor, forget_class: int) -> tuple[Accuracy, Accuracy]:
    """Accuracy on images of the forget class and on all others.

    Args:
        logits: shape (N, K).
        labels: shape (N,).
        forget_class: index of the forgotten logit.

    >>> logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    >>> [a.value for a in split_accuracy(logits, torch.tensor([0, 1, 1]), 0)]
    [1.0, 0.5]
    """
    correct = logits.argmax(1) == labels
    forgotten = labels == forget_class
    return tuple(  # type: ignore[return-value]
        Accuracy(int((correct & chosen).sum()), int(chosen.sum())) for chosen in (forgotten, ~forgotten)
    )


@dataclass(frozen=True)
class ClassAccuracies:
    """UA, RA and TA of a model; the class form of :func:`split_accuracy`."""

    def measure(self, view: ModelView) -> ClassAccuracy:
        """The accuracies on the view's training and test images."""
        ua, ra = split_accuracy(view.train.logits, view.train.labels, view.forget_class)
        ua_test, ta = split_accuracy(view.test.logits, view.test.labels, view.forget_class)
        return ClassAccuracy(ua, ra, ta, ua_test)


@torch.inference_mode()
def evaluate_classes(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], forget_class: int
) -> tuple[Accuracy, Accuracy]:
    """(UA, RA) of ``model`` over labelled batches; the model's mode is left as it was.

    Nothing but counts is kept, so any number of images fits in memory.
    """
    hits, totals = [0, 0], [0, 0]
    with evaluating(model) as device:
        for images, labels in batches:
            pair = split_accuracy(model(images.to(device)).cpu(), labels, forget_class)
            for index, accuracy in enumerate(pair):
                hits[index] += accuracy.correct
                totals[index] += accuracy.samples
    if sum(totals) == 0:
        raise DataError("there is no image to evaluate on")
    return Accuracy(hits[0], totals[0]), Accuracy(hits[1], totals[1])
