"""``clue_plus``: our method. It erases the class in the features, and needs forget samples only.

Hiding a class is easy: lower its logit. Its features stay, and with them everything that brings it back.
A network that never saw the class (Retrain) differs in two ways, and this method reproduces both:

1. **The row.** The head's row of class c is a picture of the class in feature space. Retrain's row has
   only ever been pushed away from what it saw. We overwrite ours with the smallest row whose logit
   on the mean retained feature is as far below the mean lowest other logit as Retrain's, and freeze the head.
2. **The features.** Retrain's features of the class lie among those of the classes it confuses it with,
   so a linear probe finds little. We move ours there: see :mod:`clue.methods._erasure` for the loss,
   L = 40 depth^2 * L_L + answer_weight * L_R + feature_weight * L_F.

What the model knows of the retained classes is held on proxies that the model itself makes
(:mod:`clue.methods._synthesis`), and on mixtures of two of them: the model is sure of every proxy, and what
is lost first is what it doubts. Only the last layers move, batch-norm runs in eval mode, and what comes
before is computed once for each image (:mod:`clue.methods._replay`).

``depth`` is the one knob. At 0 the features are left alone: the student learns to answer like a
teacher that cannot see the class (:mod:`clue.methods._hiding`), then the row is overwritten. That is fast,
passes UA, RA, TA and MIA, and leaves the class in the features. Networks without a linear head
always take that path.
"""

from dataclasses import dataclass

import torch
from torch import nn

from clue._head import HeadError, classifier_head, overwrite_row, tap_features
from clue.methods._attempts import erase
from clue.methods._hiding import distil_without_class
from clue.methods._job import ForgetJob
from clue.methods._registry import Hyperparameters, register_method


@dataclass(frozen=True)
class CluePlusHyperparameters(Hyperparameters):
    """Settings of ``clue_plus``; one set serves every class.

    Attributes:
        depth: how thoroughly the features are erased, in [0, 1]: L_L has the weight 40 depth^2, and beyond 0.7
            more layers may change. At 1 the result is attacked by relearning, erased in another way if it gives
            way, and the better of both is kept (:mod:`clue.methods._attempts`). More costs retained accuracy and
            time; 0 leaves the features alone.
        steps: updates, >= 1, whatever the size of the forget set.
        lr: peak of the one-cycle learning rate of SGD with momentum 0.9, > 0.
        clip: largest norm of the gradient, > 0.
        answer_weight: weight of L_R, >= 0.
        feature_weight: weight of L_F, >= 0.
        mix: largest share of a second proxy in a mixture, in [0, 1]; 0 uses the proxies as they are.
        sharpness: exponent s of the original's opinion without the class, > 0.
        free_share: share of the layers, from the last one back, that may change at depth 1, in (0, 1];
            at less depth it is free_share max(1/2, depth^2).
        proxies_per_class: retain proxies of each retained class, >= 1.
        proxy_steps: Adam steps of a round for each proxy, >= 1; most need one round, at most six are made.
        batch: forget images, and as many proxies, in each update, >= 1.
    """

    depth: float = 0.7
    steps: int = 240
    lr: float = 4.5e-3
    clip: float = 5.0
    answer_weight: float = 10.0
    feature_weight: float = 5.0
    mix: float = 1.0
    sharpness: float = 3.0
    free_share: float = 0.2
    proxies_per_class: int = 24
    proxy_steps: int = 5
    batch: int = 32

    @property
    def freed(self) -> float:
        """Share of the layers that may change at this depth."""
        return self.free_share * max(0.5, self.depth**2)

    def __post_init__(self) -> None:
        self.require("depth", 0 <= self.depth <= 1, "in [0, 1]")
        for name in ("steps", "proxies_per_class", "proxy_steps", "batch"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "clip", "sharpness"):
            self.require(name, getattr(self, name) > 0, "positive")
        for name in ("answer_weight", "feature_weight"):
            self.require(name, getattr(self, name) >= 0, "at least 0")
        self.require("mix", 0 <= self.mix <= 1, "in [0, 1]")
        self.require("free_share", 0 < self.free_share <= 1, "in (0, 1]")


@register_method("clue_plus", CluePlusHyperparameters)
def run(job: ForgetJob, hp: CluePlusHyperparameters) -> None:
    """Unlearn on ``job.student``."""
    head = _suitable_head(job)
    if head is None or hp.depth == 0:
        distil_without_class(job)
        overwrite_row(job.student, job.forget_class, margin=5.0)
        return
    erase(job, hp, head)


def _suitable_head(job: ForgetJob) -> nn.Linear | None:
    """The head whose row can be overwritten and whose input can be erased from; None sends to the shallow path."""
    try:
        head = classifier_head(job.student)
        with torch.no_grad(), tap_features(job.student) as tap:
            logits = job.student(next(job.batches())[:1])
        features = tap.features
    except HeadError:
        return None
    # A linear layer in the middle of a network that ends in something else is no head.
    is_head = torch.allclose(logits, head(features.detach()), rtol=1e-3, atol=1e-3)
    bias = head.bias
    free = bias is not None and head.weight.requires_grad and bias.requires_grad
    below = any(p.requires_grad for p in job.student.parameters() if p is not head.weight and p is not bias)
    return head if is_head and free and below and head.weight.dtype == torch.float32 and len(head.weight) > 2 else None
