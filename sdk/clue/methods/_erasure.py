"""Erase a class from the features, not only from the classifier.

A linear probe finds a class whose features have a mean of their own. So the features of forget images
are moved until the best linear probe finds nothing. For two Gaussian clouds with a common covariance
that probe is known in closed form (Fisher's discriminant), so no adversary has to be trained::

    R_b     = f(x_b) - sum_c W_bc mu_c          forget features less what retained classes explain
    W_bc    = softmax(s * decoupled logits)_c    the original's opinion of x_b without the class
    delta   = mean_b R_b - shift                 the offset common to all forget images
    delta_c = class-wise rest of it, shrunk where few images speak for c
    Sigma   = within-class covariance of forget and proxy features, shrunk to its diagonal
    L_L     = mean_b f(x_b) . Sigma^-1 (delta + W_b delta_c) / D

mu_c are the means of the *current* features of retain proxies (:mod:`clue.methods._synthesis`), shift is what these
are known to be off (:mod:`clue.methods._centre`), and the expectations run over banks of recent features. Two losses
hold what must stay, on the proxies::

    L_R = KL( softmax(decoupled original) || softmax(student) )
    L_F = mean squared change of the features, in units of their standard deviation
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Pseudo-count that shrinks a class-wise offset where few forget images speak for the class.
_CLASS_PRIOR = 20.0
# Share of the average variance that is mixed into the covariance, so that it can be inverted.
_SHRINKAGE = 0.1


@dataclass
class FeatureBank:
    """A ring of recent features (Q, D) with weights over the classes (Q, K); ``pushed`` rows have come in so far."""

    features: Tensor
    weights: Tensor
    pushed: int = 0

    def push(self, features: Tensor, weights: Tensor) -> None:
        """Replace the oldest rows."""
        rows = (self.pushed + torch.arange(len(features), device=self.features.device)) % len(self.features)
        self.features[rows], self.weights[rows] = features.detach(), weights
        self.pushed += len(features)


def discriminant(
    forget: FeatureBank, retained: Tensor, labels: Tensor, shift: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Directions in which a linear probe tells the forget class from the rest.

    Args:
        forget: bank of forget features with the decoupled probabilities of each.
        retained: current features of the proxies, shape (M, D).
        labels: one-hot classes of the proxies, shape (M, K).
        shift: from the mean feature of the proxies to that of the retained classes, shape (D,).

    Returns:
        ``Sigma^-1 delta`` of shape (D,), and ``delta_c Sigma^-1`` of shape (K, D).
    """
    means = (labels.T @ retained) / (labels.sum(0).unsqueeze(1) + 1e-6)
    rest = forget.features - forget.weights @ means - shift
    common = rest.mean(0)
    support = forget.weights.sum(0).unsqueeze(1)
    by_class = (forget.weights.T @ (rest - common)) / (support + _CLASS_PRIOR)
    within_forget = rest - common - forget.weights @ by_class
    within_retained = retained - labels @ means
    covariance = 0.5 * (
        within_forget.T @ within_forget / len(within_forget)
        + within_retained.T @ within_retained / len(within_retained)
    )
    scale = covariance.diagonal().mean().clamp_min(1e-8)
    identity = torch.eye(len(covariance), device=covariance.device)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * scale * identity
    inverse = torch.linalg.inv(covariance)
    return inverse @ common, by_class @ inverse


def erasure_loss(features: Tensor, weights: Tensor, common: Tensor, by_class: Tensor) -> Tensor:
    """L_L of a batch: features (N, D) with gradient, decoupled probabilities (N, K); a scalar."""
    return (features * (common + weights @ by_class)).sum(1).mean() / features.shape[1]
