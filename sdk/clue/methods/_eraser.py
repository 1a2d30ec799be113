"""The deep path of ``clue_plus``: overwrite the row, then move the features, step by step.

The student's last part alone changes, so the original needs no second network: it is the student
with the old values of that part (:func:`torch.func.functional_call`).
"""

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clue._head import tap_features
from clue.errors import ForgetInputError
from clue.methods._centre import centre_shift, sample
from clue.methods._erasure import FeatureBank, discriminant, erasure_loss
from clue.methods._hiding import without_logit
from clue.methods._job import EpochRecord, ForgetJob
from clue.methods._knowledge import PROXY_WORK, Knowledge
from clue.methods._replay import Cut
from clue.methods._resumption import numbered
from clue.methods._sgd import clear_gradients, sgd_step
from clue.methods._sources import ForgetActivations, Held
from clue.methods._synthesis import Proxies

if TYPE_CHECKING:
    from clue.methods.clue_plus import CluePlusHyperparameters

_BANK = 512
_REPORTS = 12
_BATCH = 32
_FULL_GAIN = 40.0
_MOMENTUM = 0.9
_WARM_UP = 0.1
# Retrain's logit of a class that it never saw is about this much below its lowest other one: 0.2 and 0.5 on retained
# images, 0.6 and 0.8 on those of the class (bird, ship).
_BELOW = 0.5


@dataclass
class _Position:
    """Where the loop is: updates, pieces of the running pass, rows pushed; and the sums since the last report."""

    step: int = 0
    pieces: int = 0
    pushed: int = 0
    since: int = 0
    seen: int = 0
    hits: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def reported(self) -> None:
        self.since = self.seen = self.hits = 0
        self.sums = {}


class Eraser:
    """One run; holds the cut, the proxies and the activations of the forget images.

    The student must be as the original, apart from which of its parameters require gradients. Of ``attempts``
    planned erasures this is number ``attempt``, from 0.
    """

    def __init__(
        self,
        job: ForgetJob,
        hp: "CluePlusHyperparameters",
        head: nn.Linear,
        known: Knowledge,
        *,
        attempt: int = 0,
        attempts: int = 1,
    ) -> None:
        self._job, self._hp, self._head, self._absent = job, hp, head, known.absent
        self._attempt, self._attempts = attempt, attempts
        self._gain = _FULL_GAIN * hp.depth**2
        self._required = [parameter.requires_grad for parameter in job.student.parameters()]
        self._free = free_last_layers(job, head, hp.freed)
        self._old = {
            name: parameter.detach().clone()
            for name, parameter in job.student.named_parameters()
            if parameter.requires_grad
        }
        self._cut = Cut(job.student, self._free, known.seeds)
        self._held = self._hold(known.proxies)
        self._one_hot = F.one_hot(known.proxies.labels, head.out_features).float()
        deviation = self._held.features.std(0, unbiased=False)
        self._deviation = deviation + 1e-3 + 1e-2 * deviation.mean()
        self._shift = self._centre(known.seeds)
        self._forget = ForgetActivations(job, self._cut, self._opinion)

    def run(self) -> dict[str, Tensor]:
        """Overwrite the row, then erase step by step; the parameters that this changed, by name. For one call."""
        hp, job = self._hp, self._job
        velocity: list[Tensor | None] = [None] * len(self._free)
        directions: tuple[Tensor, Tensor] | None = None
        at = _Position()
        saved = job.resumption.restore(job, "erase")
        if saved is None:
            self._overwrite_row()
            bank, retained = self._fill_bank(), self._held.features.clone()
        else:
            at, velocity = _Position(**saved.numbers), saved.sequence("velocity", len(self._free))
            bank = FeatureBank(saved.tensors["bank.features"], saved.tensors["bank.weights"], at.pushed)
            retained = saved.tensors["retained"]
            directions = saved.tensors["common"], saved.tensors["by_class"]
        changed = sum(p.numel() for p in self._free) / sum(p.numel() for p in job.student.parameters())
        # Wide features make the inverse of their covariance dear, and it changes slowly.
        refresh = max(1, self._head.in_features // 256)
        every = -(-hp.steps // _REPORTS)
        while at.step < hp.steps:
            for activations, opinion in self._forget.pieces(
                hp.batch, partial(job.resumption.walk, job, done=at.pieces)
            ):
                rows, plain, mixed = self._held.draw(hp.batch, hp.mix, job.generator)
                logits, features = self._forward(torch.cat([activations, mixed]))
                forget, held = features[: len(opinion)], features[len(opinion) :]
                with torch.no_grad():
                    bank.push(forget, opinion)
                    if at.step % 2 == 0:
                        retained[rows] = self._forward(plain)[1]
                    if directions is None or at.step % refresh == 0:
                        directions = discriminant(bank, retained, self._one_hot, self._shift)
                losses = self._losses(forget, opinion, directions, logits[len(opinion) :], held, mixed)
                job.check_loss(losses["total"])
                clear_gradients(self._free)
                losses["total"].backward()
                sgd_step(self._free, velocity, one_cycle(at.step, hp.steps, hp.lr), _MOMENTUM, hp.clip)
                at.step, at.pieces, at.since, at.seen = at.step + 1, at.pieces + 1, at.since + 1, at.seen + len(opinion)
                at.hits += int((logits[: len(opinion)].argmax(1) == job.forget_class).sum())
                for name, value in losses.items():
                    at.sums[name] = at.sums.get(name, 0.0) + float(value.detach())
                if at.since == every or at.step == hp.steps:
                    means = {name: value / at.since for name, value in at.sums.items()}
                    planned = self._attempts * -(-hp.steps // every)
                    job.end_epoch(EpochRecord(means, changed, at.hits / at.seen), planned)
                    at.reported()
                if at.step == hp.steps:
                    break
                if job.resumption.due():
                    self._save(at, velocity, bank, retained, directions)
            at.pieces = 0
        for parameter, required in zip(self._job.student.parameters(), self._required, strict=True):
            parameter.grad = None
            parameter.requires_grad_(required)
        # It refers back to this object, whose memory the next attempt needs.
        del self._forget
        own = {id(parameter) for parameter in (*self._free, *self._head.parameters())}
        return {name: p.detach().clone() for name, p in self._job.student.named_parameters() if id(p) in own}

    def _save(
        self,
        at: _Position,
        velocity: list[Tensor | None],
        bank: FeatureBank,
        retained: Tensor,
        directions: tuple[Tensor, Tensor],
    ) -> None:
        at.pushed = bank.pushed
        tensors = {
            **numbered("velocity", velocity),
            **{"bank.features": bank.features, "bank.weights": bank.weights, "retained": retained},
            **{"common": directions[0], "by_class": directions[1]},
        }
        erased = (self._attempt + at.step / self._hp.steps) / self._attempts
        done = PROXY_WORK + (1 - PROXY_WORK) * erased
        self._job.resumption.save(self._job, done, tensors, asdict(at))

    def _losses(
        self,
        forget: Tensor,
        opinion: Tensor,
        directions: tuple[Tensor, Tensor],
        answers: Tensor,
        held: Tensor,
        mixed: Tensor,
    ) -> dict[str, Tensor]:
        """L_L on forget features (N, D); L_R and L_F on logits (M, K) and features (M, D) of mixed proxies."""
        hp = self._hp
        with torch.no_grad():
            old_answers, old_features = self._forward(mixed, old=True)
        erase = erasure_loss(forget, opinion, *directions)
        target = F.softmax(without_logit(old_answers, self._absent), 1)
        answer = F.kl_div(F.log_softmax(answers, 1), target, reduction="batchmean")
        keep = (((held - old_features) / self._deviation) ** 2).mean()
        total = self._gain * erase + hp.answer_weight * answer + hp.feature_weight * keep
        return {"erasure": erase, "answers": answer, "features": keep, "total": total}

    def _forward(self, activations: Tensor, *, old: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and features (N, D) of the student, or of the original where ``old``.

        The head's overwritten row is never restored: the logit of an absent class is removed wherever it is used.
        """
        student = self._job.student
        with self._cut.replaying() as enter, tap_features(student) as tap:
            logits = functional_call(student, self._old, (enter(activations),)) if old else student(enter(activations))
        return logits, tap.features

    @torch.no_grad()
    def _opinion(self, activations: Tensor) -> Tensor:
        """W: what the original would say if it could not see the class, sharpened; (N, K)."""
        logits, _ = self._forward(activations, old=True)
        # Sharpened before the forget logit is removed: the removed one is too large to be multiplied.
        return F.softmax(without_logit(logits * self._hp.sharpness, self._absent), 1)

    @torch.no_grad()
    def _hold(self, proxies: Proxies) -> Held:
        first, second = (
            torch.cat([self._cut.activations(piece) for piece in images.split(_BATCH)])
            for images in (proxies.images, proxies.images.flip(3))
        )
        answers = [self._forward(piece, old=True) for piece in first.split(_BATCH)]
        logits, features = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return Held((first, second), proxies.labels, without_logit(logits, self._absent), features)

    @torch.no_grad()
    def _centre(self, seeds: Tensor) -> Tensor | float:
        """From the mean feature of the proxies to that of the retained classes, as the original has them; (D,)."""
        old = partial(self._forward, old=True)
        proxies = sample(self._job.student, old, iter(self._held.views[0].split(_BATCH)))
        if proxies is None:
            return 0.0
        forget = sample(self._job.student, old, map(self._cut.activations, seeds.split(_BATCH)))
        return 0.0 if forget is None else centre_shift(proxies, self._one_hot, forget)

    @torch.no_grad()
    def _fill_bank(self) -> FeatureBank:
        features: list[Tensor] = []
        weights: list[Tensor] = []
        for activations, opinion in self._forget.pieces(_BATCH):
            features.append(self._forward(activations)[1])
            weights.append(opinion)
            if sum(len(piece) for piece in weights) >= _BANK:
                break
        return FeatureBank(torch.cat(features)[:_BANK].clone(), torch.cat(weights)[:_BANK].clone())

    @torch.no_grad()
    def _overwrite_row(self) -> None:
        """The smallest (w, b) with w . mu + b = level, mu the mean retained feature."""
        present = sorted(set(self._held.labels.tolist()))
        level = self._held.logits[:, present].min(1).values.mean() - _BELOW
        mean = self._held.features.mean(0)
        scale = level / (mean @ mean + 1)
        self._head.weight[self._job.forget_class] = scale * mean
        self._head.bias[self._job.forget_class] = scale


def free_last_layers(job: ForgetJob, head: nn.Linear, share: float) -> list[nn.Parameter]:
    """The trainable parameters of the last ``share`` of the layers before the head; the others are frozen.

    Frozen layers cost no backward pass and no activations.
    """
    trainable = {id(parameter) for parameter in job.trainable()}
    layers = [
        [p for p in module.parameters(recurse=False) if id(p) in trainable]
        for module in job.student.modules()
        if module is not head
    ]
    layers = [layer for layer in layers if layer]
    if not layers:
        raise ForgetInputError("every layer before the classifier head is frozen: the features cannot be changed")
    count = max(1, round(share * len(layers)))
    free = [parameter for layer in layers[-count:] for parameter in layer]
    for parameter in job.student.parameters():
        parameter.requires_grad_(False)
    for parameter in free:
        parameter.requires_grad_(True)
    return free


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step (0-based): half a cosine up to ``peak`` over the first tenth, half a cosine down to 0.

    >>> [round(one_cycle(step, 100, 1.0), 2) for step in (0, 10, 55, 99)]
    [0.04, 1.0, 0.5, 0.0]
    """
    done = step / steps
    if done < _WARM_UP:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * done / _WARM_UP)) / 2)
    return peak * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2
