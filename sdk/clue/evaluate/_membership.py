"""MIA: does the model still treat the forget images as ones that it was trained on?

The attack of Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023. The
attacker sees the softmax probability of the true class. A support vector machine learns to
tell retained training images (members) from test images of the retained classes
(non-members); the score is the share of forget training images that it calls non-members.
After retraining without the class it is 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clue.errors import DataError
from clue.evaluate._accuracy import Accuracy
from clue.evaluate._view import Answers, ModelView

# Far above the rounding error of a sum of 18,000 terms of size 3.
_TIE = 1e-6


@dataclass(frozen=True)
class MembershipResult:
    """Outcome of the attack.

    Attributes:
        non_members: forget training images called non-members, out of all of them.
        attack_accuracy: accuracy of the attacker on the images it was fitted to; 0.5 is a
            guess, and then the score says little.
        attack_samples: members and non-members it was fitted to, together.
    """

    non_members: Accuracy
    attack_accuracy: float
    attack_samples: int

    @property
    def value(self) -> float:
        """The score in [0, 1]; 1 is the aim."""
        return self.non_members.value

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return self.non_members.as_dict() | {
            "attack_accuracy": self.attack_accuracy,
            "attack_samples": self.attack_samples,
        }


def membership_inference(
    members: Tensor, non_members: Tensor, forgotten: Tensor, *, limit: int = 9000, seed: int = 0
) -> MembershipResult:
    """Fit the attack and ask it about the forget images.

    Args:
        members: probability of the true class on retained training images, shape (M,).
        non_members: the same on test images of the retained classes, shape (T,).
        forgotten: the same on training images of the forget class, shape (F,).
        limit: members and non-members used at most, each; equal numbers of both are drawn.
        seed: of that draw.

    Raises:
        DataError: one of the three is empty, or holds a value that is not finite.

    >>> import torch
    >>> result = membership_inference(torch.full((50,), 0.99), torch.full((50,), 0.5), torch.full((9,), 0.0))
    >>> result.value
    1.0
    """
    from sklearn.svm import SVC

    if min(len(members), len(non_members), len(forgotten)) == 0:
        raise DataError("membership inference needs retained training, retained test and forget images")
    groups = [group.detach().double().numpy().reshape(-1, 1) for group in (members, non_members, forgotten)]
    if not all(np.isfinite(group).all() for group in groups):
        raise DataError("membership inference needs finite probabilities: the model's logits are not finite")
    count = min(len(members), len(non_members), limit)
    rng = np.random.default_rng(seed)
    inside, outside = (rng.permutation(group)[:count] for group in groups[:2])
    features = np.concatenate([inside, outside])
    truth = np.repeat([1, 0], count)
    attacker = SVC(C=3.0, gamma="auto", kernel="rbf", cache_size=100).fit(features, truth)
    called_member = attacker.predict(groups[2])
    return MembershipResult(
        non_members=Accuracy(int((called_member == 0).sum()), len(called_member)),
        attack_accuracy=float((_predict(attacker, features) == truth).mean()),
        attack_samples=2 * count,
    )


def _predict(attacker: Any, features: NDArray[np.float64]) -> NDArray[np.int64]:
    """``attacker.predict`` of a single feature, its exponentials in vectors: several times as fast.

    The sums run in another order than in libsvm. Where that could matter, libsvm is asked.
    """
    gamma, bias = 1.0, float(attacker.intercept_[0])  # "auto" is one over the number of features
    vectors, weights = attacker.support_vectors_[:, 0], attacker.dual_coef_[0]
    decisions = [
        np.exp(-gamma * (part - vectors) ** 2) @ weights + bias
        for part in np.array_split(features, len(features) // 64 + 1)
    ]
    decision = np.concatenate(decisions)
    found = (decision > 0).astype(np.int64)
    close = np.abs(decision) < _TIE
    if close.any():
        found[close] = attacker.predict(features[close])
    return found


def true_class_probability(found: Answers) -> Tensor:
    """Softmax probability of each image's true class, shape (N,)."""
    return found.probabilities.gather(1, found.labels[:, None]).flatten()


@dataclass(frozen=True)
class MembershipInference:
    """The class form of :func:`membership_inference`, with its settings."""

    limit: int = 9000
    seed: int = 0

    def measure(self, view: ModelView) -> MembershipResult:
        """The attack on the view's model."""
        k = view.forget_class
        return membership_inference(
            true_class_probability(view.train.without_class(k)),
            true_class_probability(view.test.without_class(k)),
            true_class_probability(view.train.of_class(k)),
            limit=self.limit,
            seed=self.seed,
        )


def average_gap(found: dict[str, float], oracle: dict[str, float]) -> float:
    """Mean of ``|found - oracle|`` over UA, RA, TA and MIA, in their own unit; 0 is the aim.

    NaN if one of them is missing on either side.

    >>> average_gap({"ua": 4, "ra": 90, "ta": 80, "mia": 96}, {"ua": 0, "ra": 94, "ta": 84, "mia": 100})
    4.0
    """
    names = ("ua", "ra", "ta", "mia")
    return sum(abs(found.get(name, math.nan) - oracle.get(name, math.nan)) for name in names) / len(names)
