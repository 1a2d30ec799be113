"""Retain proxies: images that the model itself takes for the retained classes, made from forget images.

Nobody has retain data any more, but the model remembers what its classes look like. Starting from a
forget image x_0, a few steps of Adam in pixel space make the frozen original f_0 see class c in it::

    min_x  CE(f_0(roll(x)), c) + statistics_weight * B(x) + smoothness_weight * TV(x)

B compares the batch statistics before every batch-norm with its running ones (as DeepInversion does,
Yin et al., CVPR 2020); networks without batch-norm go without. TV is the total variation. Pixels stay
within the range of the forget images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BATCH = 16
_STEP = 0.05
_DECAY = (0.5, 0.9)
_STATISTICS_WEIGHT = 10.0
_SMOOTHNESS_WEIGHT = 0.02
_ROLL = 2
# Rounds of steps at most, until this share of a batch is seen as the class asked for.
_ROUNDS = 4
_ENOUGH = 0.8
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Proxies:
    """``images`` (M, C, H, W), normalised like the forget images, and the class each stands for (M,)."""

    images: Tensor
    labels: Tensor


def synthesise(
    model: nn.Module, seeds: Tensor, classes: list[int], per_class: int, steps: int, generator: torch.Generator
) -> Proxies:
    """Make ``per_class`` proxies of each of ``classes`` (fewer where they would not fit into 64 MiB).

    Args:
        model: the original, in eval mode; not changed.
        seeds: forget images (N, C, H, W), N >= 1.
        classes: indices of the retained classes.
        per_class: proxies of each class, >= 1.
        steps: Adam steps of a round, >= 1; most images need one round.
        generator: CPU generator.
    """
    per_class = max(1, min(per_class, _MOST_BYTES // (len(classes) * seeds[0].numel() * 4)))
    labels = torch.tensor(classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    low, high = seeds.amin((0, 2, 3), keepdim=True), seeds.amax((0, 2, 3), keepdim=True)
    made: list[Tensor] = []
    found: list[Tensor] = []
    with _frozen(model):
        for start in range(0, len(labels), _BATCH):
            targets = labels[start : start + _BATCH]
            chosen = torch.randint(len(seeds), (len(targets),), generator=generator)
            # On the CPU convolutions are much faster in this layout.
            images = seeds[chosen.to(seeds.device)].float().contiguous(memory_format=torch.channels_last)
            mirrored = torch.rand(len(targets), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
            targets = targets.to(images.device)
            for _ in range(_ROUNDS):
                images = _optimise(model, images, targets, low, high, steps, generator)
                with torch.no_grad():
                    seen = model(images)[:, classes].argmax(1)
                reached = torch.tensor(classes, device=images.device)[seen]
                if float((reached == targets).float().mean()) >= _ENOUGH:
                    break
            made.append(images)
            found.append(reached)
    # A proxy stands for what the model sees in it, which for a few is not what was asked for.
    return Proxies(torch.cat(made), torch.cat(found))


def _optimise(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    images = images.requires_grad_(True)
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(1, steps + 1):
        shift = torch.randint(-_ROLL, _ROLL + 1, (2,), generator=generator).tolist()
        with _batch_statistics(model) as distances:
            logits = model(torch.roll(images, shift, (2, 3)))
        loss = F.cross_entropy(logits.float(), targets) + _SMOOTHNESS_WEIGHT * _total_variation(images)
        if distances:
            loss = loss + _STATISTICS_WEIGHT * torch.stack(distances).mean()
        (gradient,) = torch.autograd.grad(loss, images)
        with torch.no_grad():
            # Adam; torch.optim would import torch's compiler, see clue.methods._sgd.
            mean.lerp_(gradient, 1 - _DECAY[0])
            square.lerp_(gradient.square(), 1 - _DECAY[1])
            size = (square / (1 - _DECAY[1] ** step)).sqrt_().add_(1e-8)
            images.addcdiv_(mean, size, value=-_STEP / (1 - _DECAY[0] ** step))
            images.copy_(torch.maximum(torch.minimum(images, high), low))
    return images.detach()


def _total_variation(images: Tensor) -> Tensor:
    rows = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    columns = (images[..., 1:] - images[..., :-1]).abs().mean()
    return rows + columns


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, per batch-norm of one forward pass, how far the batch is from the running statistics."""
    distances: list[Tensor] = []

    def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
            return
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        variance = module.running_var + module.eps
        mean = inputs[0].mean(axes)
        # Tensor.var is several times slower on channels-last activations.
        spread = (inputs[0] * inputs[0]).mean(axes) - mean * mean
        mean_gap = ((mean - module.running_mean) ** 2 / variance).mean()
        spread_gap = ((spread.clamp_min(1e-12) / variance).sqrt() - 1).pow(2).mean()
        distances.append(mean_gap + spread_gap)

    hooks = [m.register_forward_pre_hook(compare) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield distances
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights: only the pixels are optimised."""
    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in states:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in states:
            parameter.requires_grad_(required)
