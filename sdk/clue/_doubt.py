"""Are these images of the class at all? Asked of the model itself, where no label says so.

Nothing can know for sure. But where the original is confident that many of the forget images show
another class, someone should look at them before a class is lost that was to stay. An image counts
where the model gives another class a probability of at least ``CONFIDENT``. A model with 85 % accuracy
on the class is wrong on 15 % of its images and sure of at most two thirds of these; so we warn only where
the share lies above 10 % by three standard errors (Wilson's interval): 14 of 64, 7 of 20, 2 of 2.

Measured on ResNet-20 and CIFAR-10's test images, whose classes have accuracies of 75 to 94 %: 0.4 to 4.2 %
of the images count, and none of 5,000 draws of 64 warns. With half of the images replaced by another
class's, 78 % (bird) to 100 % of the draws do; with 30 %, 14 to 97 %.
"""

import math

import torch
from torch import Tensor

IMAGES = 64  # looked at, at most: the first of the forget set, one forward pass each
CONFIDENT = 0.9
ORDINARY_ERROR = 0.10
_STANDARD_ERRORS = 3.0


def other_class_warning(logits: Tensor, forget_class: int) -> str:
    """One line if the model takes too many forget images for other classes; empty if not.

    Args:
        logits: the original's answers to forget images, shape (N, K), N >= 1.
        forget_class: index of the class that they should show.
    """
    confidence, seen = logits.float().softmax(1).max(1)
    strange = seen[(confidence >= CONFIDENT) & (seen != forget_class)]
    if lower_bound(len(strange), len(logits)) <= ORDINARY_ERROR:
        return ""
    common = int(torch.mode(strange).values)
    return (
        f"the model is sure that {len(strange)} of the {len(logits)} forget images looked at are not of class "
        f"{forget_class} (most often it says class {common}): check that no other class is mixed in"
    )


def lower_bound(hits: int, count: int) -> float:
    """Lower end of Wilson's interval of a share, three standard errors wide.

    >>> round(lower_bound(14, 64), 3)
    0.104
    """
    z = _STANDARD_ERRORS
    half = z * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return (hits + z * z / 2 - half) / (count + z * z)
