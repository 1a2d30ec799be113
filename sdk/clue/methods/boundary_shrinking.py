"""``boundary_shrinking`` (BS): give every forget image the nearest class that is not its own.

Chen et al., "Boundary Unlearning", CVPR 2023, section 3.3::

    x' = x + bound * sign( dCE(f_0(x), c)/dx )           one FGSM step across the boundary
    y  = argmax_{y != c} f_0(x')_y                       the nearest incorrect class
    min_w  mean_{x in D_f} CE(f_w(x), y)

f_0 is the original model. The method is published for forget samples only. The paper allows
y = c where the step does not cross the boundary; the forget class is excluded here, since
training towards it would undo the forgetting.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clue.methods._job import ForgetJob
from clue.methods._registry import register_method
from clue.methods._sgd import BatchLoss, SgdHyperparameters, run_sgd
from clue.methods._targets import without_class


@dataclass(frozen=True)
class BoundaryShrinkingHyperparameters(SgdHyperparameters):
    """Settings of the loop (:class:`SgdHyperparameters`) and of the step across the boundary.

    Attributes:
        bound: length of the step per pixel, in normalised pixel units (0.1 of the range [0, 1]
            is about 0.44 with the usual normalisation), >= 0.
    """

    epochs: int = 10
    lr: float = 1e-5
    momentum: float = 0.9
    bound: float = 0.44

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("bound", self.bound >= 0, "at least 0")


def nearest_other_class(job: ForgetJob, images: Tensor, bound: float) -> Tensor:
    """The class across the nearest boundary of the original model, shape (N,)."""
    images = images.detach().clone().requires_grad_()
    labels = torch.full((len(images),), job.forget_class, device=images.device)
    entropy = F.cross_entropy(job.original(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(entropy, images)
    with torch.no_grad():
        crossed = job.original(images + bound * gradient.sign())
        return without_class(crossed, job.forget_class).argmax(1)


@register_method("boundary_shrinking", BoundaryShrinkingHyperparameters)
def run(job: ForgetJob, hp: BoundaryShrinkingHyperparameters) -> None:
    """Boundary shrinking on ``job.student``."""

    def loss(images: Tensor) -> BatchLoss:
        labels = nearest_other_class(job, images, hp.bound)
        logits = job.student(images)
        return BatchLoss(F.cross_entropy(logits, labels), logits)

    run_sgd(job, hp, loss)
