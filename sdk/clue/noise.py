"""Corruptions for the teacher's input (Eq. 3). Images are normalised, shape (N, C, H, W)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NoiseKind = Literal["gaussian", "salt_and_pepper"]


def corrupt(images: Tensor, kind: NoiseKind, level: float, generator: torch.Generator, cells: int = 0) -> Tensor:
    """A corrupted copy of ``images``; fresh noise on every call.

    Args:
        images: normalised images.
        kind: ``gaussian`` adds N(0, level^2), level in units of the normalised pixel's
            standard deviation. ``salt_and_pepper`` sets a fraction ``level`` of all pixels, half
            to the brightest and half to the darkest value of the batch's channel.
        level: sigma, or the fraction of pixels.
        generator: CPU generator, so that a run does not depend on the device.
        cells: of Gaussian noise only: draw it on a grid with this many cells along the shorter side and
            enlarge it smoothly, back to deviation ``level``. 0 draws every pixel on its own. A network that sees white
            noise falls back on one class; coarser noise, whose spectrum is more like a photograph's, on many.
    """
    if kind == "gaussian":
        noise = _gaussian(images.shape, cells, generator)
        return images + level * noise.to(images)
    draw = torch.rand((images.shape[0], 1, *images.shape[2:]), generator=generator).to(images.device)
    bright = images.amax(dim=(0, 2, 3), keepdim=True)
    dark = images.amin(dim=(0, 2, 3), keepdim=True)
    images = torch.where(draw < level / 2, dark, images)
    return torch.where(draw > 1 - level / 2, bright, images)


def _gaussian(shape: torch.Size, cells: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise (N, C, H, W) of unit deviation, white or on a coarse grid."""
    side = min(shape[2:])
    if not 0 < cells < side:
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    grid = [max(1, round(length * cells / side)) for length in shape[2:]]
    noise = F.interpolate(torch.randn((*shape[:2], *grid), generator=generator), size=shape[2:], mode="bilinear")
    # A single number for the whole batch: the enlarging averages neighbours, which lowers the deviation.
    return noise / noise.std().clamp_min(1e-6)
