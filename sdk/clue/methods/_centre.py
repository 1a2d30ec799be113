"""Where the retained classes really lie: the proxies' mean feature, set right by batch-norm's running statistics.

Proxies are made from forget images and keep a trace of them: their mean feature is off, and the class is then
moved to where the proxies are, not to where the retained classes are. The model remembers more of its training
images: the running statistics of every batch-norm are means over them. With s(x) the statistics of one image,
channel by channel and standardised by the running ones, the mean of s over all training images is 0, and over those
of the other K - 1 classes -E_forget[s] / (K - 1), if the classes are equally frequent. How far the proxies are from
that, and how features depend on s (a ridge regression on proxies and forget images), gives their error::

    shift = 1/2 B^T ( -E_forget[s] / (K - 1) - E_proxies[s] ),    f ~ B^T s

Survey sampling calls the like a regression estimator. Half of it, because each class has an error of its own, too,
which means over all classes do not know. A network without batch-norm has no such memory and gets no shift.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clue.methods._batch_norm import watched

_SHARE = 0.5
# Ridge, as a share of the mean squared length of the statistics.
_RIDGE = 0.2
# A shift beyond this share of the distance between the classes is cut: then the running statistics are of other images.
_LONGEST = 0.2


@dataclass(frozen=True)
class Sample:
    """Images by what the model makes of them: ``statistics`` (N, S) and ``features`` (N, D)."""

    statistics: Tensor
    features: Tensor


@torch.no_grad()
def sample(
    model: nn.Module, forward: Callable[[Tensor], tuple[Tensor, Tensor]], pieces: Iterator[Tensor]
) -> Sample | None:
    """Run pieces of inputs (or of activations, where ``forward`` replays the last part); None without batch-norm.

    Args:
        model: whose batch-norms are watched, in eval mode.
        forward: gives logits and features of a piece by ``model``.
        pieces: at least one.
    """
    statistics: list[Tensor] = []
    features: list[Tensor] = []
    for piece in pieces:
        with watched(model, _by_image) as found:
            features.append(forward(piece)[1])
        if not found:
            return None
        statistics.append(torch.cat(found, 1))
    return Sample(torch.cat(statistics), torch.cat(features))


@torch.no_grad()
def centre_shift(proxies: Sample, one_hot: Tensor, forget: Sample) -> Tensor:
    """What to add to the proxies' mean feature; shape (D,).

    Args:
        proxies: M of them.
        one_hot: their classes, shape (M, K).
        forget: some forget images.
    """
    present = one_hot.sum(0) > 0
    averages = (one_hot / one_hot.sum(0).clamp_min(1.0)).T[present]
    centres = averages @ proxies.features
    # Classes count alike, however many proxies each has.
    middle = averages.mean(0)
    statistics, features = middle @ proxies.statistics, middle @ proxies.features
    others = max(1, one_hot.shape[1] - 1)
    missing = -forget.statistics.mean(0) / others - statistics
    x = torch.cat([proxies.statistics - statistics, forget.statistics - forget.statistics.mean(0)])
    y = torch.cat([proxies.features - features, forget.features - forget.features.mean(0)])
    # There are more statistics than images, so the smaller of the two equal systems is solved.
    gram = x @ x.T
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    answer = torch.linalg.solve(gram + ridge * torch.eye(len(gram), device=gram.device), x @ missing)
    shift: Tensor = _SHARE * (y.T @ answer)
    longest = _LONGEST * (centres - centres.mean(0)).norm(dim=1).mean()
    cut: Tensor = (longest / shift.norm().clamp_min(1e-12)).clamp(max=1.0)
    return shift * cut


def _by_image(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean and mean square of each image's channels, standardised; (N, 2C)."""
    values = inputs.float().flatten(2) if inputs.ndim > 2 else inputs.float().unsqueeze(2)
    values = (values - mean.unsqueeze(1)) / variance.sqrt().unsqueeze(1)
    return torch.cat([values.mean(2), values.square().mean(2) - 1], 1)
