"""``clue``: Algorithm 1 of the paper.

Sayyed et al., "CLUE: Bringing Machine Unlearning to Mobile Devices", WACV 2026.

::

    m  = 1[ |w * dL_CE(D_f)/dw| > tau ]                          (Eq. 6)
    for x in D_f, until it is forgotten:
        x~   = x + noise                                         (Eq. 3)
        L_KD = KL( softmax(f_0(x~)/T) || softmax(f_w(x)/T) )     (Eq. 4)
        L_E  = mean sum_y exp(f_w(x)_y / T_E)                    (Eq. 2; or its logarithm)
        w    = w - lr * m * d(kd_weight * L_KD + energy_weight * L_E)/dw   (Eq. 5, 7)

f_0 is the original model and stays as it was. Batch-norm runs in eval mode: in train mode
its statistics would become those of the forget set. The ablations of the paper's Table 8
are ``kd_weight=0``, ``energy_weight=0`` and ``mask="none"``.

The defaults are the best of about 200 settings on ResNet-20/CIFAR-10, class bird. What they say:

- The mask decides. With the 0.1 % most salient weights free, forget accuracy falls to 11 % for 3 points of the retained
  classes; with 10 % free, the same costs 7. Computed once, from the original model, it does better than anew
  in each epoch (``refresh_mask``): by then the salient weights are no longer those of the class alone.
- The energy does the forgetting. Distillation from noisy images adds nothing but the teacher's guesses: without
  energy, forget accuracy stops where the teacher, fed noise, still says "bird" (15 to 45 %).
- Eq. 2 as printed grows as exp(z): it overflows, and its gradient is dominated by a few images. Its logarithm
  (Eq. 1) points the same way for each image; the gradient is clipped, so that ``lr`` is the length of a step.
"""

from dataclasses import dataclass

import torch

from clue.losses import EnergyForm, distillation_loss, energy_loss
from clue.methods._job import ForgetJob
from clue.methods._registry import Hyperparameters, register_method
from clue.methods._sgd import BatchLoss, SgdHyperparameters, run_sgd
from clue.noise import NoiseKind, corrupt
from clue.saliency import saliency, threshold_masks, top_fraction_masks


@dataclass(frozen=True)
class ClueHyperparameters(Hyperparameters):
    """Settings of Algorithm 1.

    Attributes:
        epochs: passes over the forget set at most, >= 1.
        min_steps: at least this many updates however small the forget set is, >= 0; ``epochs``
            is raised to reach it, so that a device with few images forgets as well.
        max_steps: at most this many updates, >= 0, whatever ``min_steps`` says; 0 sets no limit.
        stop_accuracy: stop after an epoch in which at most this share of the forget images
            was still classified as the forget class, in [0, 1]; -1 never stops early.
        lr: learning rate of plain SGD, > 0.
        clip_norm: longest gradient, > 0; 0 does not clip. Eq. 2 as printed starts out with a very long one.
        kd_weight: weight of the distillation loss, >= 0.
        kd_temperature: temperature of the distillation, > 0.
        noise: corruption of the teacher's input, ``gaussian`` or ``salt_and_pepper``.
        noise_level: sigma in normalised pixel units, or fraction of pixels; >= 0.
        noise_cells: cells of Gaussian noise along the shorter side of an image, >= 0; 0 draws every pixel on its own.
        energy: form of the energy loss, ``logsumexp`` or ``partition`` (Eq. 2 as printed).
        energy_weight: weight lambda of the energy loss, >= 0.
        energy_temperature: T of the energy, > 0.
        mask: ``top_fraction``, ``threshold`` (absolute tau) or ``none``.
        mask_level: fraction in (0, 1], or tau >= 0.
        refresh_mask: compute the mask anew in each epoch; False keeps that of the original model.
    """

    epochs: int = 4
    min_steps: int = 96
    max_steps: int = 96
    stop_accuracy: float = 0.16
    lr: float = 4e-2
    clip_norm: float = 1.0
    kd_weight: float = 0.02
    kd_temperature: float = 1.0
    noise: NoiseKind = "gaussian"
    noise_level: float = 1.0
    noise_cells: int = 16
    energy: EnergyForm = "logsumexp"
    energy_weight: float = 1.0
    energy_temperature: float = 1.0
    mask: str = "top_fraction"
    mask_level: float = 0.001
    refresh_mask: bool = False

    def __post_init__(self) -> None:
        self.require("epochs", self.epochs >= 1, "at least 1")
        self.require("min_steps", self.min_steps >= 0, "at least 0")
        self.require("max_steps", self.max_steps >= 0, "at least 0")
        self.require("stop_accuracy", self.stop_accuracy == -1 or 0 <= self.stop_accuracy <= 1, "-1 or in [0, 1]")
        self.require("lr", self.lr > 0, "positive")
        for name in ("clip_norm", "kd_weight", "noise_level", "noise_cells", "energy_weight"):
            self.require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("kd_temperature", "energy_temperature"):
            self.require(name, getattr(self, name) > 0, "positive")
        self.require("noise", self.noise in ("gaussian", "salt_and_pepper"), "'gaussian' or 'salt_and_pepper'")
        self.require("energy", self.energy in ("logsumexp", "partition"), "'logsumexp' or 'partition'")
        self.require("mask", self.mask in ("top_fraction", "threshold", "none"), "top_fraction, threshold or none")
        if self.mask == "top_fraction":
            self.require("mask_level", 0 < self.mask_level <= 1, "in (0, 1]")
        self.require("mask_level", self.mask_level >= 0, "at least 0")
        self.require("kd_weight", self.kd_weight + self.energy_weight > 0, "positive where energy_weight is 0")


@register_method("clue", ClueHyperparameters)
def run(job: ForgetJob, hp: ClueHyperparameters) -> None:
    """Algorithm 1 on ``job.student``."""

    def loss(images: torch.Tensor) -> BatchLoss:
        with torch.no_grad():
            teacher = job.original(corrupt(images, hp.noise, hp.noise_level, job.generator, hp.noise_cells))
        logits = job.student(images)
        kd = distillation_loss(logits, teacher, hp.kd_temperature)
        energy = energy_loss(logits, hp.energy_temperature, hp.energy)
        return BatchLoss(hp.kd_weight * kd + hp.energy_weight * energy, logits, {"kd": kd, "energy": energy})

    loop = SgdHyperparameters(
        epochs=hp.epochs,
        min_steps=hp.min_steps,
        max_steps=hp.max_steps,
        stop_accuracy=hp.stop_accuracy,
        lr=hp.lr,
        clip_norm=hp.clip_norm,
    )
    first = _masks(job, hp)
    run_sgd(job, loop, loss, masks=(lambda: _masks(job, hp)) if hp.refresh_mask else (lambda: first))


def _masks(job: ForgetJob, hp: ClueHyperparameters) -> list[torch.Tensor] | None:
    if hp.mask == "none":
        return None
    scores = saliency(job.student, job.trainable(), job.batches(), job.forget_class)
    if hp.mask == "threshold":
        return threshold_masks(scores, hp.mask_level)
    return top_fraction_masks(scores, hp.mask_level)
