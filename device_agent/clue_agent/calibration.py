"""When is an image unknown to a model? When its free energy is above what retained images have.

The agent measures the free energies of its holdout's retained images and keeps their quantile with
the model; :class:`clue_agent.LiveModel` answers "unknown" above it. No torch is imported here.
"""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FREE_ENERGY_THRESHOLD = "free_energy_threshold"


def free_energy(logits: "Tensor", absent: Collection[int] = ()) -> "Tensor":
    """``-log sum exp(z)`` over the classes that are not ``absent``: (N, K) -> (N,), in units of logits.

    A forgotten class is left out: its logit says nothing any more, and would count as knowledge.
    Infinity where every class is absent.
    """
    retained = [index for index in range(logits.shape[1]) if index not in absent]
    return -logits[:, retained].logsumexp(dim=1)


def free_energy_threshold(energies: Sequence[float], quantile: float = 0.95) -> float:
    """The free energy below which a share ``quantile`` of retained images is expected to lie.

    It is the ``ceil((n + 1) * quantile)``-th smallest of the n energies given (the largest, if there are
    fewer): the rank for which the share holds of new images on average (split conformal prediction).

    Args:
        energies: free energies of images of retained classes that the model was not trained on.
        quantile: in (0, 1].

    Raises:
        ValueError: no energy was given, one is not finite, or ``quantile`` is out of range.

    >>> free_energy_threshold([-3.0, -1.0, -2.0], quantile=0.5)
    -2.0
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
    if not energies:
        raise ValueError("a threshold needs the free energy of at least one image")
    if not all(math.isfinite(energy) for energy in energies):
        raise ValueError("free energies must be finite")
    rank = min(math.ceil((len(energies) + 1) * quantile), len(energies))
    return float(sorted(energies)[rank - 1])


def stored_threshold(calibration: dict[str, Any]) -> float | None:
    """The threshold in a model's calibration; None if there is none that can be used."""
    value = calibration.get(FREE_ENERGY_THRESHOLD)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
