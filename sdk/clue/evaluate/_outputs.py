"""Metrics of the output distribution: energy separation, divergence from the oracle, calibration."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clue.errors import DataError
from clue.evaluate._view import Answers, ModelView
from clue.losses import free_energy


@dataclass(frozen=True)
class SeparationResult:
    """AUROC of the free energy, forget images against retained ones.

    Attributes:
        value: probability that a forget image has the higher free energy; 0.5 is no separation.
        forget_samples: number of forget images.
        retained_samples: number of retained images.
        mean_forget: mean free energy of the forget images, in units of logits.
        mean_retained: mean free energy of the retained images.
    """

    value: float
    forget_samples: int
    retained_samples: int
    mean_forget: float
    mean_retained: float

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Interval of the AUROC (95 % by default; Hanley and McNeil, 1982)."""
        a, m, n = self.value, self.forget_samples, self.retained_samples
        spread = a * (1 - a) + (m - 1) * (a / (2 - a) - a * a) + (n - 1) * (2 * a * a / (1 + a) - a * a)
        half = z * math.sqrt(max(0.0, spread) / (m * n))
        return max(0.0, a - half), min(1.0, a + half)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        low, high = self.interval()
        return vars(self) | {"low": low, "high": high}


def energy_separation(forgotten: Tensor, retained: Tensor, temperature: float = 1.0) -> SeparationResult:
    """AUROC of the free energy ``-T log sum exp(z/T)``; high energy means out of distribution.

    Args:
        forgotten: logits of forget images, shape (F, K).
        retained: logits of retained images, shape (R, K).
        temperature: T.

    >>> energy_separation(torch.zeros(3, 2), torch.full((4, 2), 9.0)).value
    1.0
    """
    from sklearn.metrics import roc_auc_score

    if len(forgotten) == 0 or len(retained) == 0:
        raise DataError("energy separation needs forget images and retained images")
    high, low = free_energy(forgotten, temperature), free_energy(retained, temperature)
    truth = torch.cat([torch.ones(len(high)), torch.zeros(len(low))])
    scores = torch.cat([high, low])
    if not bool(torch.isfinite(scores).all()):
        raise DataError("energy separation needs finite logits")
    value = float(roc_auc_score(truth.numpy(), scores.double().numpy()))
    return SeparationResult(value, len(high), len(low), float(high.mean()), float(low.mean()))


@dataclass(frozen=True)
class EnergySeparation:
    """The class form of :func:`energy_separation`, on test images."""

    temperature: float = 1.0

    def measure(self, view: ModelView) -> SeparationResult:
        """The separation of the view's test images."""
        k = view.forget_class
        return energy_separation(view.test.of_class(k).logits, view.test.without_class(k).logits, self.temperature)


@dataclass(frozen=True)
class DivergenceResult:
    """Mean divergence of the model's output from the oracle's, in nats, and its samples.

    Attributes:
        value: mean of ``KL(oracle || model)``; 0 is the aim.
        standard_error: of that mean.
        samples: number of images.
    """

    value: float
    standard_error: float
    samples: int

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Interval of the mean (95 % by default); NaN for a single sample."""
        return max(0.0, self.value - z * self.standard_error), self.value + z * self.standard_error

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        low, high = self.interval()
        return vars(self) | {"low": low, "high": high}


def oracle_divergence(logits: Tensor, oracle_logits: Tensor) -> DivergenceResult:
    """``KL(softmax(oracle) || softmax(model))``, mean over images; both of shape (N, K).

    >>> oracle_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).value
    0.0
    """
    if logits.shape != oracle_logits.shape or len(logits) == 0:
        raise DataError(
            "model and oracle must answer the same images, "
            f"got logits of shape {tuple(logits.shape)} and {tuple(oracle_logits.shape)}"
        )
    each = F.kl_div(
        F.log_softmax(logits.double(), dim=1),
        F.log_softmax(oracle_logits.double(), dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return DivergenceResult(float(each.mean()), error, len(each))


@dataclass(frozen=True)
class OracleDivergence:
    """The class form of :func:`oracle_divergence`, on test images of the forget class.

    Attributes:
        oracle: the oracle's answers on the same test images in the same order; those of the
            forget class are enough.
    """

    oracle: Answers

    def measure(self, view: ModelView) -> DivergenceResult:
        """How far the view's model is from the oracle on forget images."""
        k = view.forget_class
        return oracle_divergence(view.test.of_class(k).logits, self.oracle.of_class(k).logits)


@dataclass(frozen=True)
class CalibrationResult:
    """Expected calibration error: the mean of ``|confidence - accuracy|`` over confidence bins.

    Attributes:
        value: in [0, 1]; 0 is perfect.
        bins: number of equal bins of the confidence.
        samples: number of images.
        standard_error: of the value, from 200 bootstrap samples of the images.
    """

    value: float
    bins: int
    samples: int
    standard_error: float = math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Interval of the value (95 % by default)."""
        return max(0.0, self.value - z * self.standard_error), min(1.0, self.value + z * self.standard_error)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        low, high = self.interval()
        return vars(self) | {"low": low, "high": high}


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> CalibrationResult:
    """Expected calibration error (Guo et al., ICML 2017) of logits (N, K) against labels (N,).

    >>> sure_and_right = torch.tensor([[99.0, 0.0]])
    >>> calibration_error(sure_and_right, torch.tensor([0])).value
    0.0
    """
    if len(logits) == 0:
        raise DataError("the calibration error needs at least one image")
    confidence, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    right = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    total = 0.0
    for chosen in (index == bin_ for bin_ in range(bins)):
        if chosen.any():
            total += float((confidence[chosen].mean() - right[chosen].mean()).abs() * chosen.sum())
    return CalibrationResult(total / len(logits), bins, len(logits), _bootstrap_error(confidence - right, index, bins))


def _bootstrap_error(excess: Tensor, index: Tensor, bins: int, resamples: int = 200) -> float:
    """Standard deviation of the calibration error over images drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    count = len(excess)
    found = []
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        found.append(torch.bincount(index[drawn], weights=excess[drawn], minlength=bins).abs().sum() / count)
    return float(torch.stack(found).std())


@dataclass(frozen=True)
class CalibrationError:
    """The class form of :func:`calibration_error`, on test images of the retained classes."""

    bins: int = 15

    def measure(self, view: ModelView) -> CalibrationResult:
        """The calibration error of the view's model."""
        found = view.test.without_class(view.forget_class)
        return calibration_error(found.logits, found.labels, self.bins)
