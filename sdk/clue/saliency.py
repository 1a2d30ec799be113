"""Which weights carry the class: the gradient mask of Eq. 6 and its use in Eq. 7."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Masks = list[Tensor]


def saliency(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Iterable[Tensor], forget_class: int
) -> list[Tensor]:
    """``|w * dL_CE/dw|`` with L_CE the mean cross-entropy over the forget set (Eq. 6, left side).

    One pass over ``batches``. Returns one tensor per parameter, of its shape. The scores are
    built in the gradient buffers, so the peak is one extra copy of the parameters.
    """
    for parameter in parameters:
        parameter.grad = None
    samples = 0
    for images in batches:
        labels = torch.full((images.shape[0],), forget_class, device=images.device)
        F.cross_entropy(model(images), labels, reduction="sum").backward()
        samples += images.shape[0]
    scores = []
    for parameter in parameters:
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        scores.append(gradient.div_(max(samples, 1)).mul_(parameter.detach()).abs_())
        parameter.grad = None
    return scores


def threshold_masks(scores: Sequence[Tensor], tau: float) -> Masks:
    """Eq. 6: a weight is free where its saliency exceeds the absolute threshold ``tau``."""
    return [score > tau for score in scores]


def top_fraction_masks(scores: Sequence[Tensor], fraction: float) -> Masks:
    """Free the ``fraction`` of all weights with the highest saliency (>= 0), ranked over the whole model."""
    if fraction >= 1.0:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    total = sum(score.numel() for score in scores)
    return threshold_masks(scores, _ranked(scores, max(1, round(fraction * total))))


def _ranked(scores: Sequence[Tensor], rank: int) -> float:
    """The score that ``rank`` others of all scores reach; 0 where there are not that many.

    Floats that are not negative sort like their bits, so two counts, of the upper and of the lower 16 bits,
    find it: four passes, and no sorted copy of every weight of a large model.
    """
    upper = _count((_bits(score) >> 16).flatten() for score in scores)
    if rank >= int(upper.sum()):
        return 0.0
    high, left = _bin_of(upper, rank)
    lower = _count(bits[bits >> 16 == high] & 0xFFFF for bits in map(_bits, scores))
    low, _ = _bin_of(lower, left)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


def _bits(score: Tensor) -> Tensor:
    return score.detach().float().contiguous().view(torch.int32)


def _count(parts: Iterable[Tensor]) -> Tensor:
    counts = [torch.bincount(part, minlength=1 << 16) for part in parts]
    return torch.stack(counts).sum(0)


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin of the element at ``rank`` (0 is the largest), and its rank inside that bin."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, rank, right=True))
    return len(counts) - 1 - index, rank - (int(above[index - 1]) if index else 0)


def density(masks: Sequence[Tensor]) -> float:
    """Share of weights that a mask frees, in [0, 1]."""
    total = sum(mask.numel() for mask in masks)
    return sum(int(mask.sum()) for mask in masks) / max(total, 1)


def apply_masks(parameters: Sequence[nn.Parameter], masks: Sequence[Tensor]) -> None:
    """Eq. 7: zero the gradient of every weight that its mask does not free."""
    for parameter, mask in zip(parameters, masks, strict=True):
        if parameter.grad is not None:
            parameter.grad.mul_(mask)
