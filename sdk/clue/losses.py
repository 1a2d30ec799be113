"""The two losses of CLUE and the free energy they rest on.

Logits ``z`` have shape (N, K). With temperature T, the Helmholtz free energy of a sample is
(Eq. 1)::

    F(x) = -T * log( sum_y exp(z_y / T) )

Low free energy means "in distribution". Forgetting raises it on the forget set.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EnergyForm = Literal["logsumexp", "partition"]


def free_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 1, per sample: shape (N, K) -> (N,), in units of logits.

    >>> free_energy(torch.zeros(1, 2)).item() == -torch.log(torch.tensor(2.0)).item()
    True
    """
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


def energy_loss(logits: Tensor, temperature: float = 1.0, form: EnergyForm = "logsumexp") -> Tensor:
    """Mean energy loss of a batch, a scalar; minimising it pushes samples out of distribution.

    ``partition`` is Eq. 2 as printed, ``mean_x sum_y exp(z_y / T)``. It overflows float32 for
    logits above 88 T and its gradient is proportional to the loss itself, so its weight must be tiny.
    ``logsumexp`` is ``mean_x -F(x)``: the logarithm of the same quantity times T, with a
    gradient that stays bounded by one per logit.
    """
    if form == "partition":
        # Half precision would overflow at logits of 11 already.
        return torch.exp(logits.float() / temperature).sum(dim=1).mean()
    return -free_energy(logits, temperature).mean()


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 4: ``T^2 * KL( softmax(z_teacher / T) || softmax(z_student / T) )``, batch mean, a scalar.

    The teacher is the original model fed a noise-corrupted copy of the image that the
    student sees clean (Eq. 3).
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
