"""Retain proxies: images that the model itself takes for the retained classes, made from forget images.

Nobody has retain data any more, but the model remembers what its classes look like. Starting from a
forget image x_0, a few steps of Adam in pixel space make the frozen original f_0 see class c in it::

    min_x  CE(f_0(roll(x)), c) + statistics_weight * B(x) + smoothness_weight * TV(x)

B compares the batch statistics before every batch-norm with its running ones (as DeepInversion does,
Yin et al., CVPR 2020); networks without batch-norm go without. TV is the total variation. Pixels stay
within the range of the forget images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue.methods._batch_norm import watched

_BATCH = 16
_STEP = 0.05
_DECAY = (0.5, 0.9)
_STATISTICS_WEIGHT = 10.0
_SMOOTHNESS_WEIGHT = 0.02
_ROLL = 2
# Rounds of steps at most, until this share of a batch is seen as the class asked for.
_ROUNDS = 6
_ENOUGH = 0.8
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Proxies:
    """``images`` (M, C, H, W), normalised like the forget images, and the class each stands for (M,)."""

    images: Tensor
    labels: Tensor


@dataclass
class Begun:
    """A synthesis that is under way: the class asked for in each proxy (M,), and those made so far, in pieces."""

    asked: Tensor
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Proxies made so far."""
        return sum(len(piece) for piece in self.images)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Begun":
        """The inverse of :meth:`tensors`."""
        return cls(tensors["asked"].cpu(), [tensors["images"]], [tensors["labels"]])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"asked": self.asked, "images": torch.cat(self.images), "labels": torch.cat(self.labels)}

    def proxies(self) -> Proxies:
        """Those made so far."""
        # Checkpoints lose the layout, in which convolutions round a little differently.
        pieces = [piece.contiguous(memory_format=torch.channels_last) for piece in self.images]
        return Proxies(torch.cat(pieces), torch.cat(self.labels))


def synthesise(
    model: nn.Module,
    seeds: Tensor,
    classes: list[int],
    per_class: int,
    steps: int,
    generator: torch.Generator,
    *,
    begun: Begun | None = None,
    watch: Callable[[Begun], None] = lambda _begun: None,
) -> Proxies:
    """Make ``per_class`` proxies of each of ``classes`` (fewer where they would not fit into 64 MiB).

    Args:
        model: the original, in eval mode; not changed.
        seeds: forget images (N, C, H, W), N >= 1.
        classes: indices of the retained classes.
        per_class: proxies of each class, >= 1.
        steps: Adam steps of a round, >= 1; most images need one round.
        generator: CPU generator.
        begun: goes on with this one, the generator being where it was then.
        watch: called after every batch of proxies.
    """
    if begun is None:
        per_class = max(1, min(per_class, _MOST_BYTES // (len(classes) * seeds[0].numel() * 4)))
        asked = torch.tensor(classes).repeat_interleave(per_class)
        begun = Begun(asked[torch.randperm(len(asked), generator=generator)])
    low, high = seeds.amin((0, 2, 3), keepdim=True), seeds.amax((0, 2, 3), keepdim=True)
    with _frozen(model):
        for start in range(begun.count, len(begun.asked), _BATCH):
            targets = begun.asked[start : start + _BATCH]
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
            begun.images.append(images)
            begun.labels.append(reached)
            watch(begun)
    # A proxy stands for what the model sees in it, which for a few is not what was asked for.
    return begun.proxies()


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
        with watched(model, _distance) as distances:
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


def _distance(inputs: Tensor, running_mean: Tensor, variance: Tensor) -> Tensor:
    """How far a batch is from the running statistics; a scalar."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    mean = inputs.mean(axes)
    # Tensor.var is several times slower on channels-last activations.
    spread = (inputs * inputs).mean(axes) - mean * mean
    mean_gap = ((mean - running_mean) ** 2 / variance).mean()
    spread_gap = ((spread.clamp_min(1e-12) / variance).sqrt() - 1).pow(2).mean()
    return mean_gap + spread_gap


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
