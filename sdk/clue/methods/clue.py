"""``clue``: Algorithm 1 of the paper.

Sayyed et al., "CLUE: Bringing Machine Unlearning to Mobile Devices", WACV 2026.

Each epoch::

    m  = 1[ |w * dL_CE(D_f)/dw| > tau ]                          (Eq. 6)
    for x in D_f:
        x~   = x + noise                                         (Eq. 3)
        L_KD = KL( softmax(f_0(x~)/T) || softmax(f_w(x)/T) )     (Eq. 4)
        L_E  = mean sum_y exp(f_w(x)_y / T_E)                    (Eq. 2; or its logarithm)
        w    = w - lr * m * d(kd_weight * L_KD + energy_weight * L_E)/dw   (Eq. 5, 7)

f_0 is the original model and stays as it was. Batch-norm runs in eval mode: in train mode
its statistics would become those of the forget set. The ablations of the paper's Table 8
are ``kd_weight=0``, ``energy_weight=0`` and ``mask="none"``.

The defaults are the best of about 150 settings on ResNet-20/CIFAR-10, class bird. What they say:

- The energy of Eq. 2 does the forgetting. With it the distillation can be left out without harm; without it, forget
  accuracy stops where the teacher, fed noise, still says "bird" (15 to 45 %).
- A few long steps along the first gradients lose less of the other classes than many short ones: hence ``max_steps``.
  Eq. 2 grows as exp(z), so its gradient is clipped; unclipped, the same settings diverge on some classes.
- White noise makes the teacher fall back on one class; noise on a coarse grid spreads its answers.
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
    """

    epochs: int = 10
    min_steps: int = 10
    max_steps: int = 10
    stop_accuracy: float = 0.02
    lr: float = 6e-2
    clip_norm: float = 1.0
    kd_weight: float = 0.1
    kd_temperature: float = 1.0
    noise: NoiseKind = "gaussian"
    noise_level: float = 1.0
    noise_cells: int = 16
    energy: EnergyForm = "partition"
    energy_weight: float = 0.05
    energy_temperature: float = 1.0
    mask: str = "top_fraction"
    mask_level: float = 0.1

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
    run_sgd(job, loop, loss, masks=lambda: _masks(job, hp))


def _masks(job: ForgetJob, hp: ClueHyperparameters) -> list[torch.Tensor] | None:
    if hp.mask == "none":
        return None
    scores = saliency(job.student, job.trainable(), job.batches(), job.forget_class)
    if hp.mask == "threshold":
        return threshold_masks(scores, hp.mask_level)
    return top_fraction_masks(scores, hp.mask_level)
