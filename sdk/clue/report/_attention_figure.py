"""The picture of ``clue attention`` and of reports: images, where two models look in them, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clue.errors import ClueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEAT = "viridis"  # even steps in lightness: the same for every kind of colour vision, and in grey
_DIFFERENCE = "PuOr_r"  # purple and orange differ for every kind of colour vision
_CELL = 1.75  # inches
# The scale of the difference reaches at least this far, so that no change looks like none.
_LEAST_SPAN = 0.25


class PlotError(ClueError):
    """Drawing is not possible: matplotlib is missing."""


@dataclass(frozen=True)
class FigureRow:
    """One image of the picture.

    Attributes:
        label: what it is, two short lines at most.
        image: RGB in [0, 255], shape (H, W, 3).
        before: attention of the original, shape (h, w), sums to 1.
        after: attention of the other model, likewise.
        answer_before: what the original says.
        answer_after: what the other model says.
    """

    label: str
    image: "NDArray[np.uint8]"
    before: "NDArray[np.float32]"
    after: "NDArray[np.float32]"
    answer_before: str
    answer_after: str


def require_matplotlib() -> None:
    """PlotError where matplotlib is not installed; called before any work is done."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PlotError("drawing needs matplotlib: pip install 'clue-unlearning[plots]'") from None


def draw(rows: Sequence[FigureRow], title: str, subtitle: str, path: "Path | IO[bytes]") -> None:
    """Write the picture as PNG: one line a row; image, attention before, after, and the difference."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height = _CELL * len(rows) * 1.17 + 1.75
    figure = Figure(figsize=(4 * _CELL + 1.3, height), dpi=150, facecolor="white")
    grid = figure.add_gridspec(
        len(rows), 4, left=0.16, right=0.98, top=1 - 1.05 / height, bottom=0.75 / height, wspace=0.06, hspace=0.2
    )
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(0.02, 1 - 0.56 / height, subtitle, fontsize=9, color="0.3", va="center")
    # Shares of one attention sum to 1, so they are given as multiples of an even spread.
    spans = max(float(abs(_relative(row.after) - _relative(row.before)).max()) for row in rows)
    change = Normalize(-max(spans, _LEAST_SPAN), max(spans, _LEAST_SPAN))
    top = max(float(max(_relative(row.before).max(), _relative(row.after).max())) for row in rows)
    heat = Normalize(0.0, top)
    headings = ("image", "attention before", "attention after", "after - before")
    for index, row in enumerate(rows):
        cells = [figure.add_subplot(grid[index, column]) for column in range(4)]
        for cell, heading in zip(cells, headings, strict=True):
            cell.set_xticks([])
            cell.set_yticks([])
            if index == 0:
                cell.set_title(heading, fontsize=10)
        cells[0].imshow(row.image)
        cells[0].set_ylabel(row.label, fontsize=10, rotation=0, ha="right", va="center", labelpad=6)
        _overlay(cells[1], row.image, _relative(row.before), _HEAT, heat)
        _overlay(cells[2], row.image, _relative(row.after), _HEAT, heat)
        _overlay(cells[3], row.image, _relative(row.after) - _relative(row.before), _DIFFERENCE, change)
        cells[1].set_xlabel(row.answer_before, fontsize=9)
        cells[2].set_xlabel(row.answer_after, fontsize=9)
    scales: tuple[tuple[Any, str, str, float], ...] = (
        (heat, _HEAT, "attention, in multiples of an even spread", 0.375),
        (change, _DIFFERENCE, "change of the same", 0.79),
    )
    for norm, colours, label, left in scales:
        width = 0.405 if colours == _HEAT else 0.17
        bar = figure.add_axes((left, 0.42 / height, width, 0.11 / height))
        figure.colorbar(ScalarMappable(norm, colours), cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=8)
        bar.set_xlabel(label, fontsize=8)
    figure.savefig(path, format="png")


def _relative(attention: "NDArray[np.float32]") -> "NDArray[np.float32]":
    return attention * float(attention.size)


def _overlay(cell: Any, image: "NDArray[np.uint8]", values: "NDArray[np.float32]", colours: str, norm: Any) -> None:
    """The image in pale grey under the map, which is smoothed from patches to pixels."""
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    cell.imshow(image.mean(2), cmap="gray", vmin=-60, vmax=300)
    cell.imshow(values, cmap=colours, norm=norm, alpha=0.62, extent=extent, interpolation="bilinear")
