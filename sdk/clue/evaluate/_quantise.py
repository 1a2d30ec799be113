"""Does the class come back when the weights are rounded to 8 bits?

Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025, show that
small unlearning updates can vanish in the rounding. Here every convolution and linear weight
is fake-quantised: symmetric, one scale per output channel, ``scale = max|w| / (2^(bits-1) - 1)``.
Biases, norms and activations stay in floating point, so this is weight rounding alone.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from clue.errors import DataError
from clue.evaluate._accuracy import Accuracy, split_accuracy
from clue.evaluate._view import ModelView, answers


@dataclass(frozen=True)
class QuantisedResult:
    """Accuracy after rounding the weights.

    Attributes:
        ua: on training images of the forget class.
        ta: on test images of the retained classes.
        bits: per weight.
    """

    ua: Accuracy
    ta: Accuracy
    bits: int

    @property
    def value(self) -> float:
        """UA after quantisation, in [0, 1]."""
        return self.ua.value

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"ua": self.ua.as_dict(), "ta": self.ta.as_dict(), "bits": self.bits}


def fake_quantise(weight: Tensor, bits: int = 8) -> Tensor:
    """``weight`` rounded to ``2^bits - 1`` levels, one scale for each index of the first dimension.

    >>> fake_quantise(torch.tensor([[1.0, 0.49]]), bits=2).tolist()
    [[1.0, 0.0]]
    """
    if bits < 2:
        raise ValueError("at least 2 bits are needed for a sign and a magnitude")
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-levels, levels) * scale


@torch.no_grad()
def quantised_copy(model: nn.Module, bits: int = 8) -> nn.Module:
    """A copy of ``model`` whose convolution, linear and attention weights are rounded."""
    rounded = copy.deepcopy(model)
    for name, parameter in rounded.named_parameters():
        # Norms have one dimension; class tokens and position embeddings are not multiplied.
        if parameter.ndim >= 2 and name.rpartition(".")[2].endswith("weight"):
            parameter.copy_(fake_quantise(parameter, bits))
    return rounded


@dataclass(frozen=True)
class QuantisedAccuracy:
    """The class form of :func:`quantised_copy`: UA and TA of the rounded model."""

    bits: int = 8

    def measure(self, view: ModelView) -> QuantisedResult:
        """UA and TA of the view's model after rounding; DataError without a forget image."""
        k = view.forget_class
        rounded = quantised_copy(view.model, self.bits)
        indices = torch.nonzero(view.train.labels == k).flatten().tolist()
        if not indices:
            raise DataError("quantised accuracy needs training images of the forget class")
        retained = torch.nonzero(view.test.labels != k).flatten().tolist()
        if not retained:
            raise DataError("quantised accuracy needs test images of the retained classes")
        train = answers(rounded, Subset(view.train_data, indices))
        test = answers(rounded, Subset(view.test_data, retained))
        ua, _ = split_accuracy(train.logits, train.labels, k)
        _, ta = split_accuracy(test.logits, test.labels, k)
        return QuantisedResult(ua, ta, self.bits)
