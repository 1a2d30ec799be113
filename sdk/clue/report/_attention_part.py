"""Attention of a vision transformer before and after, for a report (Table 6 of the paper)."""

import io
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Subset

from clue._torchvision import torchvision
from clue.attention import AttentionChange, attention_change, attention_maps
from clue.report._attention_figure import FigureRow, draw
from clue.report._figure import image

if TYPE_CHECKING:
    from clue.data.decoded import MappedImages
    from clue.report._measure import MeasuredModel

_ROWS = 3
_MEASURED = 64


def attention_picture(
    before: "MeasuredModel", after: "MeasuredModel", images: "MappedImages", classes: tuple[str, ...], alternative: str
) -> tuple[str, AttentionChange] | None:
    """Markup, and how far the maps changed, on test images; None for a model that is no vision transformer."""
    models = (before.view.model, after.view.model)
    if not all(isinstance(model, torchvision().models.VisionTransformer) for model in models):
        return None
    forget = before.view.forget_class
    labels = images.labels
    own = torch.nonzero(labels == forget).flatten().tolist()[:_MEASURED]
    others = torch.nonzero(labels != forget).flatten().tolist()
    others = others[:: max(1, len(others) // _MEASURED)][:_MEASURED]
    change = attention_change(*models, Subset(images, own + others), forget)
    shown = _spread(own) + _spread(others)
    batch = torch.stack([images[index][0] for index in shown])
    maps = [attention_maps(model, batch).numpy() for model in models]
    answers = [[_answer(row, classes) for row in model.view.test.logits[shown]] for model in (before, after)]
    rows = [
        FigureRow(
            label=f"{_short(classes[int(labels[index])])}\n({'forget' if row < len(own[:_ROWS]) else 'retained'})",
            image=images.one(index).pixels[0].permute(1, 2, 0).numpy(),
            before=maps[0][row],
            after=maps[1][row],
            answer_before=answers[0][row],
            answer_after=answers[1][row],
        )
        for row, index in enumerate(shown)
    ]
    buffer = io.BytesIO()
    draw(rows, f"Forgetting '{classes[forget]}'", "attention rollout over all layers", buffer)
    return image(buffer.getvalue(), alternative), change


def _spread(indices: list[int]) -> list[int]:
    return [indices[step * len(indices) // _ROWS] for step in range(_ROWS)] if len(indices) > _ROWS else indices


def _answer(logits: torch.Tensor, classes: tuple[str, ...]) -> str:
    confidence, best = torch.softmax(logits, dim=0).max(0)
    return f"says {_short(classes[int(best)])}, {100 * float(confidence):.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
