"""What a vision transformer looks at, and how unlearning changes it.

Two maps over the patches of an image, from torchvision's ``VisionTransformer``, whose token 0 is the
class token that enters the classifier head. With A_l the attention of layer l, averaged over its
heads, rows summing to 1 (T tokens, T x T)::

    last      row 0 of A_L
    rollout   row 0 of  B_L B_(L-1) ... B_1,   B_l = (A_l + I) / 2

Rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020) counts the residual
connections as attention of a token to itself, and follows it back to the input. Both are returned
without the class token's share for itself, so that a map sums to 1.

The model runs as it always does: its answers stay the same to the last bit. A hook hands what enters
each attention layer to that layer a second time, now asking for the weights, which the fast
kernels do not return.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from clue.errors import ClueError, DataError
from clue.evaluate._view import evaluating

MapKind = Literal["rollout", "last"]
KINDS: tuple[MapKind, ...] = get_args(MapKind)
_BATCH = 16


class AttentionError(ClueError):
    """The model has no attention to show, or two models cannot be compared."""


@dataclass(frozen=True)
class AttentionChange:
    """How alike the maps of two models are, on images of the forgotten class and of the others.

    Attributes:
        kind: of the maps, ``rollout`` or ``last``.
        forget_correlation: mean over images of :func:`map_correlation`, in [-1, 1]; NaN without images.
        forget_cosine: mean of :func:`map_cosine`, in [0, 1].
        forget_samples: images of the forgotten class.
        retained_correlation: the same on images of the other classes.
        retained_cosine: the same.
        retained_samples: images of the other classes.
    """

    kind: MapKind
    forget_correlation: float
    forget_cosine: float
    forget_samples: int
    retained_correlation: float
    retained_cosine: float
    retained_samples: int

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def attention_layers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Attention of every layer, averaged over its heads.

    Args:
        model: a torchvision ``VisionTransformer``, ``small_vit`` among them; not changed.
        images: shape (N, C, H, W), normalised.

    Returns:
        One tensor (N, T, T) a layer, first layer first, on the model's device; T is one more than the patches.

    Raises:
        AttentionError: the model is no vision transformer, or cannot take the images.
    """
    layers: list[Tensor] = []
    with torch.no_grad(), evaluating(model) as device, _recording(model, layers):
        try:
            model(images.to(device))
        except (RuntimeError, AssertionError) as error:
            raise AttentionError(f"the model cannot take images of shape {tuple(images.shape)}: {error}") from None
    return layers


def attention_maps(model: nn.Module, images: Tensor, kind: MapKind = "rollout") -> Tensor:
    """Where the class token looks: float32, shape (N, h, w) for h x w patches, each map summing to 1; on the CPU.

    Raises:
        AttentionError: as :func:`attention_layers`, or no such kind of map.
    """
    if kind not in KINDS:
        raise AttentionError(f"there is no attention map {kind!r}; choose one of: {', '.join(KINDS)}")
    rows, columns = _patches(model, images)
    maps = []
    for batch in images.split(_BATCH):
        layers = attention_layers(model, batch)
        tokens = layers[-1] if kind == "last" else rollout(layers)
        found = tokens[:, 0, 1:].float().cpu()
        maps.append((found / found.sum(1, keepdim=True)).view(-1, rows, columns))
    return torch.cat(maps)


def rollout(layers: list[Tensor]) -> Tensor:
    """``B_L ... B_1`` with ``B_l = (A_l + I) / 2``: L tensors (N, T, T) to one, whose rows sum to 1.

    >>> uniform = torch.full((1, 2, 2), 0.5)
    >>> rollout([uniform])[0].tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
    flow = identity.expand(layers[0].shape)
    for attention in layers:
        flow = (attention.float() + identity) / 2 @ flow
    return flow


def map_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of the angle between two maps: (N, h, w) twice to (N,), in [0, 1]; high already for two even maps."""
    return nn.functional.cosine_similarity(before.flatten(1), after.flatten(1))


def map_correlation(before: Tensor, after: Tensor) -> Tensor:
    """Pearson's correlation of two maps over patches: (N, h, w) twice to (N,), in [-1, 1].

    1 means the same places, 0 unrelated ones. Two maps that are even everywhere count as 1, and one beside
    a map that is not as 0.
    """
    first = before.flatten(1) - before.flatten(1).mean(1, keepdim=True)
    second = after.flatten(1) - after.flatten(1).mean(1, keepdim=True)
    even = 1e-6 * before.flatten(1).mean(1)  # rounding, for maps that sum to 1
    both = (first.abs().amax(1) <= even) & (second.abs().amax(1) <= even)
    scale = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(1) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    return torch.where(both, torch.ones_like(correlation), correlation)


def attention_change(
    before: nn.Module, after: nn.Module, data: "Dataset[Any]", forget_class: int, kind: MapKind = "rollout"
) -> AttentionChange:
    """Compare the maps of two models on (image, label) pairs.

    Raises:
        AttentionError: a model is no vision transformer, or their patches differ.
        DataError: there is no image.
    """
    correlations, cosines, labels = [], [], []
    for images, targets in DataLoader(data, batch_size=_BATCH):
        first, second = attention_maps(before, images, kind), attention_maps(after, images, kind)
        if first.shape != second.shape:
            raise AttentionError(f"the models' patches differ: {tuple(first.shape[1:])} and {tuple(second.shape[1:])}")
        correlations.append(map_correlation(first, second))
        cosines.append(map_cosine(first, second))
        labels.append(torch.as_tensor(targets))
    if not labels:
        raise DataError("there is no image to compare attention on")
    correlation, cosine, forgotten = torch.cat(correlations), torch.cat(cosines), torch.cat(labels) == forget_class
    return AttentionChange(
        kind=kind,
        forget_correlation=_mean(correlation[forgotten]),
        forget_cosine=_mean(cosine[forgotten]),
        forget_samples=int(forgotten.sum()),
        retained_correlation=_mean(correlation[~forgotten]),
        retained_cosine=_mean(cosine[~forgotten]),
        retained_samples=int((~forgotten).sum()),
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def _transformer(model: nn.Module) -> Any:
    """``model`` if it is torchvision's vision transformer, with attributes that mypy cannot know."""
    from clue._torchvision import torchvision

    if not isinstance(model, torchvision().models.VisionTransformer):
        raise AttentionError(
            f"a {type(model).__name__} has no attention to show: give a vision transformer "
            "(small_vit, torchvision:vit_b_16, torchvision:vit_l_16, ...)"
        )
    return model


def _patches(model: nn.Module, images: Tensor) -> tuple[int, int]:
    side = _transformer(model).patch_size
    if images.ndim != 4 or len(images) == 0:
        raise AttentionError(f"images must have shape (N, C, H, W) with N >= 1, got {tuple(images.shape)}")
    return images.shape[2] // side, images.shape[3] // side


@contextmanager
def _recording(model: nn.Module, layers: list[Tensor]) -> Iterator[None]:
    """Append the attention of every layer to ``layers`` while the model runs inside the block."""

    def record(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        # forward() itself, since calling the module would run this hook again.
        layers.append(module.forward(*inputs[:3], need_weights=True)[1])

    blocks = _transformer(model).encoder.layers
    hooks = [block.self_attention.register_forward_hook(record) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
