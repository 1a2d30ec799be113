"""The decision space (Fig. 2 of the paper): penultimate features of test images in two dimensions, by t-SNE."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clue.evaluate import first_per_class
from clue.report._figure import colour, drawing, svg

if TYPE_CHECKING:
    from clue.report._measure import MeasuredModel

_POINTS = 1200
_LEAST, _MOST = 8, 120  # of a class
_DIMENSIONS = 50
# Pixels, so they must be right on light and dark pages: Tol's muted scheme, all of middling lightness.
_RETAINED = ("#4a7fb5", "#5fa8b8", "#3f9a7c", "#8a9a3c", "#b59a2f", "#a97a5a", "#8f6fb0", "#a5688f", "#7a8591")


def layout(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """t-SNE of (N, D) to (N, 2), by way of 50 principal components; the same every time."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if features.shape[1] > _DIMENSIONS and len(features) > _DIMENSIONS:
        features = PCA(_DIMENSIONS, random_state=0).fit_transform(features)
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    placed: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    return placed


def decision_space(models: "Sequence[MeasuredModel]", classes: Sequence[str], alternative: str) -> tuple[str, int]:
    """(markup, images in each panel); the forgotten class in colour, the others in small dots with their names.

    ``("", 0)`` for a model without a linear head, whose features cannot be read, and for too few images.
    """
    labels = models[0].view.test.labels
    per_class = min(_MOST, max(_LEAST, _POINTS // len(classes)))
    chosen = first_per_class(labels, per_class)
    if any(model.view.test.features is None for model in models) or len(chosen) < 10:
        return "", 0
    forget = models[0].view.forget_class
    with drawing(8.4 / len(models) + 0.2) as figure:
        panels = list(figure.subplots(1, len(models), squeeze=False).flat)
        for axes, model in zip(panels, models, strict=True):
            features = model.view.test.features
            assert features is not None  # noqa: S101
            _panel(axes, layout(features[chosen].numpy()), labels[chosen], forget, classes)
            axes.set_title(model.series.name)
        return svg(figure, alternative), len(chosen)


def _panel(axes: Any, places: NDArray[np.float32], labels: torch.Tensor, forget: int, classes: Sequence[str]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(colour("grid"))
    names = []
    for number, label in enumerate(label for label in torch.unique(labels).tolist() if label != forget):
        mine = places[(labels == label).numpy()]
        axes.scatter(*mine.T, s=9, color=_RETAINED[number % len(_RETAINED)], alpha=0.75, lw=0, rasterized=True)
        names.append((label, mine))
    mine = places[(labels == forget).numpy()]
    axes.scatter(*mine.T, s=17, marker="^", color=colour("after"), edgecolors=colour("card"), linewidths=0.3)
    # A thousand names would hide the points.
    for label, own in [*(names if len(names) <= 20 else []), (forget, mine)]:
        middle = own[np.argmin(np.linalg.norm(own - np.median(own, axis=0), axis=1))]
        axes.annotate(
            classes[label], middle, ha="center", va="center", fontsize=8.5, color=colour("ink"),
            weight="bold" if label == forget else "normal",
            bbox={"facecolor": colour("card"), "alpha": 0.72, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
