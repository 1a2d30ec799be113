"""One erasure, or at depth 1 two: what resists relearning longer is kept.

How soon an attacker brings a class back depends on the class, on how many layers may change, and on chance; no one
setting is best for all (docs/results.md). So at depth 1 the device first erases a little less in fewer layers, attacks
the result itself (:mod:`clue.methods._attack`), and where that gives way erases at full depth and takes the better.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clue.methods._attack import attackers_batch, steps_resisted
from clue.methods._eraser import Eraser
from clue.methods._job import ForgetJob
from clue.methods._knowledge import recall

if TYPE_CHECKING:
    from clue.methods.clue_plus import CluePlusHyperparameters

# Weight of the erasure and number of layers of the first attempt, by those of the second.
_LESS_WEIGHT = 0.72
_FEWER_LAYERS = 0.9
# Half as many again as the attack that a result is judged by.
_ENOUGH_STEPS = 60


def erase(job: ForgetJob, hp: "CluePlusHyperparameters", head: nn.Linear) -> None:
    """Erase the class in the features of ``job.student``, whose head is ``head``."""
    if hp.depth < 1:
        # The knowledge is not kept here: its images would take memory while the eraser runs.
        Eraser(job, hp, head, recall(job, hp, head)).run()
        return
    known = recall(job, hp, head)
    batch = attackers_batch(known, job.forget_class)
    limit, longest, best = _ENOUGH_STEPS, -1, {}
    for number, settings in enumerate((_milder(hp), hp)):
        result = Eraser(job, settings, head, known, attempt=number, attempts=2).run()
        resisted = steps_resisted(job.student, *batch, limit)
        _set(job, {})
        if resisted > longest:
            longest, best = resisted, result
        if longest == _ENOUGH_STEPS:
            break
        # More than that need not be known to tell which is better.
        limit = longest + 1
    _set(job, best)


def _milder(hp: "CluePlusHyperparameters") -> "CluePlusHyperparameters":
    return replace(
        hp, depth=hp.depth * math.sqrt(_LESS_WEIGHT), free_share=min(1.0, hp.free_share * _FEWER_LAYERS / _LESS_WEIGHT)
    )


@torch.no_grad()
def _set(job: ForgetJob, changed: dict[str, Tensor]) -> None:
    """Give the student these parameters, and the original's for all others."""
    for (name, own), old in zip(job.student.named_parameters(), job.original.parameters(), strict=True):
        own.copy_(changed.get(name, old))
