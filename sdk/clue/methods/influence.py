"""``influence`` (IU): one Newton-like step that undoes what the forget set contributed.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017; Izzo
et al., "Approximate Data Deletion from Machine Learning Models", AISTATS 2021. Removing the
forget set moves the optimum to first order by::

    w = w + scale * (F + damping I)^-1 g,    g = mean_{x in D_f} dCE(f_w(x), c)/dw

With the forget set's gradients in R groups g_1..g_R (the rows of G) the empirical Fisher
matrix is F = G^T G / R, and g = G^T 1 / R. The Woodbury identity turns the inverse of a
matrix as large as the model into one of size R::

    (F + damping I)^-1 g = 1/R * G^T (damping I + G G^T / R)^-1 1

Forget-only form: the papers take F over the retained images, so that the step avoids what they
need; from forget gradients alone it can only bound the step along the directions that the
forget set itself uses. ``scale = 1`` is the papers' step. Where that leaves too many forget
images recognised, it is lengthened by a quarter at a time until few enough are.
"""

from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue.errors import ForgetInputError
from clue.methods._job import EpochRecord, ForgetJob
from clue.methods._registry import Hyperparameters, register_method
from clue.methods._sgd import clear_gradients

GROWTH = 1.25


@dataclass(frozen=True)
class InfluenceHyperparameters(Hyperparameters):
    """Settings of the step.

    Attributes:
        scale: length of the first step tried, > 0; 1 is the Newton step.
        damping: added to every eigenvalue of F, > 0, in units of squared gradients.
        rank: number R of gradient groups, >= 1; each takes as much memory as the model.
        target_accuracy: the step is lengthened until at most this share of the forget images
            is still classified as the forget class, in [0, 1].
        lengthenings: at most this many times, >= 0; 0 takes the step as it is.
    """

    scale: float = 1.0
    damping: float = 1.0
    rank: int = 16
    target_accuracy: float = 0.05
    lengthenings: int = 12

    def __post_init__(self) -> None:
        for name in ("scale", "damping"):
            self.require(name, getattr(self, name) > 0, "positive")
        self.require("rank", self.rank >= 1, "at least 1")
        self.require("target_accuracy", 0 <= self.target_accuracy <= 1, "in [0, 1]")
        self.require("lengthenings", self.lengthenings >= 0, "at least 0")


@register_method("influence", InfluenceHyperparameters)
def run(job: ForgetJob, hp: InfluenceHyperparameters) -> None:
    """One influence step on ``job.student``, lengthened until it forgets."""
    parameters = job.trainable()
    _check_memory(job, parameters, hp.rank)
    groups, entropy = _gradient_groups(job, parameters, hp.rank)
    step = _newton_step(groups, hp.damping)
    scale, taken, planned = hp.scale, 0.0, hp.lengthenings + 1
    for _ in range(planned):
        with torch.no_grad():
            for parameter, direction in zip(parameters, step, strict=True):
                parameter.add_(direction, alpha=scale - taken)
        accuracy = _forget_accuracy(job)
        taken, scale = scale, scale * GROWTH
        job.end_epoch(EpochRecord({"cross_entropy": entropy, "scale": taken}, 1.0, accuracy), planned)
        if accuracy <= hp.target_accuracy:
            break


def _check_memory(job: ForgetJob, parameters: list[nn.Parameter], rank: int) -> None:
    """Refuse a run whose groups would not fit into memory, before the system kills it half-way."""
    try:
        groups = min(rank, len(job.loader))
    except TypeError:  # a stream has no length
        groups = rank
    wanted = groups * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    free = _free_bytes(job.device)
    if wanted > free:
        raise ForgetInputError(
            f"influence needs {wanted / 2**30:.1f} GiB for {groups} gradients of this model, "
            f"{free / 2**30:.1f} GiB are free: lower 'rank'"
        )


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _gradient_groups(job: ForgetJob, parameters: list[nn.Parameter], rank: int) -> tuple[list[list[Tensor]], float]:
    """Mean gradient of each group of batches, and the mean cross-entropy of the forget set."""
    groups: list[list[Tensor]] = []
    sizes: list[int] = []
    total = 0.0
    for index, images in enumerate(job.batches()):
        labels = torch.full((len(images),), job.forget_class, device=images.device)
        clear_gradients(parameters)
        loss = F.cross_entropy(job.student(images), labels, reduction="sum")
        job.check_loss(loss)
        torch.autograd.backward(loss)
        if index < rank:
            groups.append([torch.zeros_like(parameter) for parameter in parameters])
            sizes.append(0)
        for gradient, parameter in zip(groups[index % rank], parameters, strict=True):
            if parameter.grad is not None:
                gradient.add_(parameter.grad)
        sizes[index % rank] += len(images)
        total += float(loss.detach())
    clear_gradients(parameters)
    for group, size in zip(groups, sizes, strict=True):
        for gradient in group:
            gradient.div_(size)
    return groups, total / job.samples


def _newton_step(groups: list[list[Tensor]], damping: float) -> list[Tensor]:
    """``1/R * G^T (damping I + G G^T / R)^-1 1``, one tensor a parameter."""
    rank = len(groups)
    # Accumulated in double precision on the CPU: the matrix is tiny, the sums are long.
    gram = torch.zeros(rank, rank, dtype=torch.float64)
    for i in range(rank):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = sum(
                float(torch.dot(a.flatten().float(), b.flatten().float()))
                for a, b in zip(groups[i], groups[j], strict=True)
            )
    system = damping * torch.eye(rank, dtype=torch.float64) + gram / rank
    weights = torch.linalg.solve(system, torch.ones(rank, dtype=torch.float64)) / rank
    step = [torch.zeros_like(gradient) for gradient in groups[0]]
    for weight, group in zip(weights.tolist(), groups, strict=True):
        for total, gradient in zip(step, group, strict=True):
            total.add_(gradient, alpha=weight)
    return step


@torch.no_grad()
def _forget_accuracy(job: ForgetJob) -> float:
    hits = sum(int((job.student(images).argmax(1) == job.forget_class).sum()) for images in job.batches())
    return hits / job.samples
