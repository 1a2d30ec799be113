"""Whether the model to forget from answers better than chance, before hours are spent on one that does not."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset

from clue.data.decoded import mapped
from clue.data.folder import loader
from clue.evaluate import evaluate_classes
from clue.spec import ModelSpec

_IMAGES = 100
_BATCH = 20
# Of the way from chance to always right: what an honest model is far above.
_LEAST = 0.15


def doubt(model: nn.Module, spec: ModelSpec, images: Path, *, named: bool) -> str | None:
    """What is odd about a model that hardly beats chance on its own training images; None if nothing is.

    Args:
        model: with the weights to forget from.
        spec: its classes, in the order of the logits.
        images: the decoded data set.
        named: whether the weights came with the names of their classes, so that the order is known.
    """
    data = mapped(images, "train", spec)
    each = -(-_IMAGES // len(spec.classes))
    chosen = data.first([each] * len(spec.classes))
    # Spread over the classes even where there are more of them than images.
    rows = torch.linspace(0, len(chosen) - 1, min(_IMAGES, len(chosen))).long().unique()
    batches = loader(Subset(chosen, rows.tolist()), _BATCH)
    # No class is forgotten yet, so all of them are retained ones.
    _, right = evaluate_classes(model, batches, -1)
    chance = 1 / len(spec.classes)
    if right.value >= chance + _LEAST * (1 - chance):
        return None
    found = f"the model is right on {right.correct} of {right.samples} training images, hardly more than by guessing"
    if named:
        return f"{found}: was it trained on these images, prepared as its model.json says?"
    first = ", ".join(spec.classes[:3])
    return (
        f"{found}: are its logits in the order of the folder's names ({first}, ...)?"
        " 'clue import-weights --classes' makes a model that names them, for --weights"
    )
