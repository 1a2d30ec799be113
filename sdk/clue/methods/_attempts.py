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
from clue.methods._job import ForgetJob, Progress
from clue.methods._knowledge import recall

if TYPE_CHECKING:
    from clue.methods.clue_plus import CluePlusHyperparameters

# Weight of the erasure and number of layers of the first attempt, by those of the second (free_share permitting).
_LESS_WEIGHT = 0.72
_FEWER_LAYERS = 0.9
# Half as many again as the attack that a result is judged by.
_ENOUGH_STEPS = 60
_RESISTED = "steps resisted"


def erase(job: ForgetJob, hp: "CluePlusHyperparameters", head: nn.Linear) -> None:
    """Erase the class in the features of ``job.student``, whose head is ``head``."""
    if hp.depth < 1:
        # The knowledge is not kept here: its images would take memory while the eraser runs.
        Eraser(job, hp, head, recall(job, hp, head)).run()
        return
    known = recall(job, hp, head)
    batch = attackers_batch(known, job.forget_class)
    attempts = (_milder(hp), hp)
    limit, best, kept = _ENOUGH_STEPS, {}, 0
    for number, settings in enumerate(attempts):
        saved = job.resumption.ended(job, "erase")
        if saved is not None:
            result, resisted = saved.tensors, int(saved.tensors[_RESISTED])
        else:
            result = Eraser(job, settings, head, known, attempt=number, attempts=len(attempts)).run()
            resisted = steps_resisted(job.student, *batch, limit)
            _set(job, {})
            job.resumption.keep(job, result | {_RESISTED: torch.tensor(resisted)})
        if number == 0 or resisted == limit:
            best, kept = result, number
        if resisted == _ENOUGH_STEPS:
            break
        # One more decides it; where the attack told nothing the deeper one is kept.
        limit = resisted + 1 if resisted else 0
    _set(job, best)
    _report(job, kept, number + 1)


def _report(job: ForgetJob, kept: int, made: int) -> None:
    """Leave the records of the attempt that is kept, and say that all is done."""
    each = len(job.epochs) // made
    job.epochs[:] = job.epochs[kept * each : (kept + 1) * each]
    job.on_progress(Progress(1.0, each, each, job.epochs[-1].losses["total"]))


def _milder(hp: "CluePlusHyperparameters") -> "CluePlusHyperparameters":
    return replace(
        hp, depth=hp.depth * math.sqrt(_LESS_WEIGHT), free_share=min(1.0, hp.free_share * _FEWER_LAYERS / _LESS_WEIGHT)
    )


@torch.no_grad()
def _set(job: ForgetJob, changed: dict[str, Tensor]) -> None:
    """Give the student these parameters, and the original's for all others."""
    for (name, own), old in zip(job.student.named_parameters(), job.original.parameters(), strict=True):
        own.copy_(changed.get(name, old))
