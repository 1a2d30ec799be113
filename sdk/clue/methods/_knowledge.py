"""What the model itself knows of the retained classes, asked for once before ``clue_plus`` changes anything."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue._head import silent_rows, tap_features
from clue.errors import ForgetInputError
from clue.methods._hiding import without_logit
from clue.methods._job import ForgetJob
from clue.methods._synthesis import Begun, Proxies, synthesise

if TYPE_CHECKING:
    from clue.methods.clue_plus import CluePlusHyperparameters

_BATCH = 32
_SEEDS = 256
# Proxies in all: of a thousand classes only those have some that the forget images resemble.
_MOST_PROXIES = 400
PROXY_WORK = 0.3
"""Share of the work that making the proxies is taken for where a checkpoint says how far it is."""


@dataclass(frozen=True)
class Knowledge:
    """Proxies, the forget images (N, C, H, W) that some of them were made from, and the classes without any.

    ``absent`` are the forgotten class, and those that earlier runs erased or that have no proxy: nothing there to
    hold on to.
    """

    seeds: Tensor
    proxies: Proxies
    absent: list[int]


def recall(job: ForgetJob, hp: "CluePlusHyperparameters", head: nn.Linear) -> Knowledge:
    """Make the proxies; ForgetInputError if the model knows no class but the one to forget."""
    classes = head.out_features
    seeds = _seed_images(job)
    candidates = [index for index in range(classes) if index != job.forget_class]
    per_class = hp.proxies_per_class
    if len(candidates) * per_class > _MOST_PROXIES:
        per_class = max(1, _MOST_PROXIES // len(candidates))
        candidates = _resembling(job, seeds, candidates, _MOST_PROXIES // per_class)
    made = _synthesise(job, seeds, candidates, per_class, hp.proxy_steps)
    # A row that was erased before points against the mean feature of everything else.
    mean_feature = torch.cat([_features(job.student, piece) for piece in made.images.split(_BATCH)]).mean(0)
    erased = set(silent_rows(head, mean_feature)) - {job.forget_class}
    known = torch.tensor([int(label) not in erased for label in made.labels], device=job.device)
    if not bool(known.any()):
        raise ForgetInputError("no class is left that the model still knows: there is nothing to retain")
    labels = made.labels[known]
    present = set(labels.tolist())
    absent = [index for index in range(classes) if index not in present]
    return Knowledge(seeds, Proxies(made.images[known], labels), absent)


def _seed_images(job: ForgetJob) -> Tensor:
    """Forget images to start proxies from."""
    seeds: list[Tensor] = []
    for images in job.batches():
        seeds.append(images)
        if sum(len(batch) for batch in seeds) >= _SEEDS:
            break
    return torch.cat(seeds)[:_SEEDS]


def _synthesise(job: ForgetJob, seeds: Tensor, candidates: list[int], per_class: int, steps: int) -> Proxies:
    """Proxies of the candidates, or those that a checkpoint holds: to make them takes half of the time."""
    saved = job.resumption.restore(job, "proxies")
    if saved is not None and saved.finished:
        return Begun.of(saved.tensors).proxies()
    begun = None if saved is None else Begun.of(saved.tensors)
    watch = partial(_save, job)
    made = synthesise(job.student, seeds, candidates, per_class, steps, job.generator, begun=begun, watch=watch)
    job.resumption.keep(job, {"asked": made.labels, "images": made.images, "labels": made.labels})
    return made


def _save(job: ForgetJob, begun: Begun) -> None:
    if job.resumption.due():
        job.resumption.save(job, PROXY_WORK * begun.count / len(begun.asked), begun.tensors(), {})


@torch.no_grad()
def _resembling(job: ForgetJob, seeds: Tensor, candidates: list[int], count: int) -> list[int]:
    """The ``count`` classes that the original sees most in the forget images."""
    logits = torch.cat([job.student(piece) for piece in seeds.split(_BATCH)]).float()
    seen = F.softmax(without_logit(logits, [job.forget_class]), 1).mean(0)
    chosen = seen[candidates].topk(min(count, len(candidates))).indices.tolist()
    return sorted(candidates[index] for index in chosen)


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor:
    with tap_features(model) as tap:
        model(images)
    return tap.features
