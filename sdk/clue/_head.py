"""The classifier head of a network: its last linear layer and the features that enter it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clue.errors import ClueError

# Rows of classes that the model knows stay far from this; rows of classes it never saw come close to -1.
_SILENT_COSINE = 0.9


class HeadError(ClueError):
    """The network does not end in a linear layer, so it has no penultimate features."""


def classifier_head(model: nn.Module) -> nn.Linear:
    """The last ``nn.Linear`` of ``model`` in the order of its modules; HeadError if there is none.

    This is the classifier of ResNets, vision transformers and every torchvision classifier
    but SqueezeNet, which ends in a convolution.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise HeadError("the model has no linear layer: features of the layer before it cannot be read")
    return linear[-1]


@torch.no_grad()
def overwrite_row(model: nn.Module, index: int, margin: float) -> bool:
    """Replace the head's row ``index`` by the mean of the others and lower its bias by ``margin``.

    The row is a picture of its class in feature space. Afterwards its logit is the mean of the other
    logits less ``margin``, for every input. Returns False (and does nothing) where the network has no
    linear head with a bias, or the head is frozen.
    """
    try:
        head = classifier_head(model)
    except HeadError:
        return False
    if head.bias is None or not (head.weight.requires_grad and head.bias.requires_grad):
        return False
    if head.out_features < 2 or not 0 <= index < head.out_features:
        return False
    others = torch.arange(head.out_features, device=head.weight.device) != index
    head.weight[index] = head.weight[others].mean(0)
    head.bias[index] = head.bias[others].mean() - margin
    return True


@torch.no_grad()
def silent_rows(head: nn.Linear, mean_feature: Tensor) -> list[int]:
    """Classes that the model does not know (any more): their row points against the mean retained feature (D,).

    That is where training without a class leaves its row, and where ``clue_plus`` puts it.
    """
    weight, mean = head.weight, mean_feature
    if head.bias is not None:
        weight = torch.cat([weight, head.bias[:, None]], dim=1)
        mean = torch.cat([mean, mean.new_ones(1)])
    cosine = torch.nn.functional.cosine_similarity(weight, mean[None], dim=1)
    return [int(row) for row in torch.nonzero(cosine < -_SILENT_COSINE).flatten()]


class FeatureTap:
    """Holds what entered the head in the last forward pass, shape (N, D)."""

    def __init__(self) -> None:
        self._features: Tensor | None = None

    def _record(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    @property
    def features(self) -> Tensor:
        """Features of the last batch, attached to its graph; HeadError if the head did not run."""
        if self._features is None or self._features.ndim != 2:
            raise HeadError("the last linear layer is no classifier head: its input is not of shape (N, D)")
        return self._features


@contextmanager
def tap_features(model: nn.Module) -> Iterator[FeatureTap]:
    """Record the input of the head on every forward pass inside the block.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with tap_features(net) as tap:
    ...     logits = net(torch.zeros(5, 1, 2, 2))
    ...     tap.features.shape
    torch.Size([5, 3])
    """
    tap = FeatureTap()
    handle = classifier_head(model).register_forward_pre_hook(tap._record)
    try:
        yield tap
    finally:
        handle.remove()
