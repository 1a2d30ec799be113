"""Images of a class that nobody has any more, made from what a model knows of it.

For a model that has to forget a class whose images were erased long ago: a new base model that knows
the class again. From smooth noise, a few rounds of Adam in pixel space make the model see the class,
with batch statistics like those it was trained with (see :mod:`clue.methods._synthesis`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from clue.methods._synthesis import synthesise
from clue.spec import ModelSpec

_NOISE_CELLS = 8
_SEEDS = 64


def synthesise_class(
    model: nn.Module, spec: ModelSpec, class_index: int, *, count: int = 64, steps: int = 20, seed: int = 0
) -> TensorDataset:
    """Make images that ``model`` takes for one class.

    Args:
        model: in eval mode, on the CPU; not changed.
        spec: gives the input size.
        class_index: index of the logit to see.
        count: images to make, >= 1 (fewer where they would not fit into 64 MiB).
        steps: Adam steps of a round, >= 1.
        seed: of all randomness.

    Returns:
        A dataset of (image (3, H, W), normalised like the model's inputs; label = ``class_index``).
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = spec.input_size
    noise = torch.randn(_SEEDS, 3, _NOISE_CELLS, _NOISE_CELLS, generator=generator)
    seeds: Tensor = F.interpolate(noise, (height, width), mode="bilinear", align_corners=False)
    # The range of real pixels, so that the images stay within it.
    black, white = (
        (torch.tensor(v) - torch.tensor(spec.mean)) / torch.tensor(spec.std) for v in ([0.0] * 3, [1.0] * 3)
    )
    seeds = seeds.clamp(black.view(1, 3, 1, 1), white.view(1, 3, 1, 1))
    proxies = synthesise(model, seeds, [class_index], count, steps, generator)
    return TensorDataset(proxies.images, torch.full((len(proxies.images),), class_index))
