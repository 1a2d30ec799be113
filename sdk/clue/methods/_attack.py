"""Relearning, tried by the device itself: the attack of :mod:`clue.evaluate._relearn` without retain data.

The attacker fine-tunes the whole network by SGD on one batch with ten images of each class, batch-norm frozen. The
device has images of the forgotten class, and proxies of the others; with them the class is back within a few steps
of where real images bring it back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue.methods._knowledge import Knowledge
from clue.methods._sgd import clear_gradients, sgd_step

_PER_CLASS = 10
# Of the retained classes together; with more than these each has one image.
_MOST_RETAINED = 200
_LEARNING_RATE = 1e-2
_MOMENTUM = 0.9
# Cross-entropy of the attacker's images of the class: from here on most of the test images are back.
_BACK = 1.0
# In pieces a step needs a quarter of the memory for activations; with batch-norm frozen they change nothing.
_PIECE = 25


def attackers_batch(known: Knowledge, forget_class: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and classes (N,): ten of the forgotten class, which come first, and up to ten of each other.

    An attacker may have more images of the class than the device: missing ones are mirrored, then repeated.
    """
    labels = known.proxies.labels
    seeds = known.seeds[:_PER_CLASS]
    seeds = torch.cat([seeds, seeds.flip(3)])
    images = [seeds[torch.arange(_PER_CLASS) % len(seeds)]]
    classes = [torch.full((_PER_CLASS,), forget_class, device=labels.device)]
    present = labels.unique()
    per_class = max(1, min(_PER_CLASS, _MOST_RETAINED // len(present)))
    for label in present:
        rows = torch.nonzero(labels == label).flatten()[:per_class]
        images.append(known.proxies.images[rows])
        classes.append(labels[rows])
    return torch.cat(images), torch.cat(classes)


def steps_resisted(model: nn.Module, images: Tensor, classes: Tensor, limit: int) -> int:
    """Updates that the attacker needs until the class is back, at most ``limit``; 0 if the attack diverges.

    Args:
        model: in eval mode; the attack changes all of its parameters.
        images: the attacker's, shape (N, C, H, W); those of the forgotten class come first.
        classes: their classes, shape (N,).
        limit: updates after which the attacker gives up.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    required = [parameter.requires_grad for parameter in parameters]
    velocity: list[Tensor | None] = [None] * len(parameters)
    asked = int((classes == classes[0]).sum())
    pieces = list(zip(images.split(_PIECE), classes.split(_PIECE), strict=True))
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for step in range(limit):
            clear_gradients(parameters)
            losses = torch.cat([_backward(model, *piece, len(images)) for piece in pieces])
            # That says nothing of what the model resists.
            if not bool(torch.isfinite(losses).all()):
                return 0
            if float(losses[:asked].mean()) < _BACK:
                return step
            sgd_step(parameters, velocity, _LEARNING_RATE, _MOMENTUM, 0.0)
        return limit
    finally:
        for parameter, was in zip(parameters, required, strict=True):
            parameter.grad = None
            parameter.requires_grad_(was)


def _backward(model: nn.Module, images: Tensor, classes: Tensor, count: int) -> Tensor:
    """Add this piece's share of the gradient of the mean loss; the loss of each image, shape (N,)."""
    losses = F.cross_entropy(model(images).float(), classes, reduction="none")
    torch.autograd.backward(losses.sum() / count)
    return losses.detach()
