"""The kinds of charts that reports share; each returns markup for a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clue.report._figure import Series, colour, drawing, svg

_ROW = 0.55  # inches
_HEAD = 0.75
BEFORE = Series("before", "before", "o")
AFTER = Series("after", "after", "D")
ORACLE = Series("Retrain", "oracle", "s")


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in the unit of the axis."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """One panel of a chart of distributions.

    Attributes:
        title: above it; empty for none.
        label: of the horizontal axis.
        groups: (name, role of its colour, values).
        line: (where, what it marks), or None.
        shares: draw each group as shares of itself, where their sizes differ much; else numbers.
    """

    title: str
    label: str
    groups: Sequence[tuple[str, str, Sequence[float]]]
    line: tuple[float, str] | None = None
    shares: bool = False


def dots(
    rows: Sequence[tuple[str, Sequence[Dot | None]]], series: Sequence[Series], label: str, alternative: str
) -> str:
    """Values with intervals, a line a row, one mark a series; an axis in percent."""
    with drawing(_HEAD + _ROW * len(rows)) as figure:
        axes = figure.add_subplot()
        offsets = [(index - (len(series) - 1) / 2) * 0.24 for index in range(len(series))]
        for place, one in enumerate(series):
            points = [(row, found[place]) for row, (_, found) in enumerate(rows)]
            known = [(row + offsets[place], dot) for row, dot in points if dot is not None]
            axes.errorbar(
                [dot.value for _, dot in known],
                [row for row, _ in known],
                xerr=[
                    [max(0.0, dot.value - dot.low) for _, dot in known],
                    [max(0.0, dot.high - dot.value) for _, dot in known],
                ],
                fmt=one.marker,
                markersize=6,
                color=colour(one.role),
                elinewidth=1.6,
                label=one.name,
                clip_on=False,
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=len(series))
        return svg(figure, alternative)


def histograms(panels: Sequence[Histogram], alternative: str, *, same_axis: bool = False, height: float = 2.7) -> str:
    """Distributions side by side, three in a line at most; ``same_axis`` where their axes mean the same."""
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    with drawing(height * lines) as figure:
        found = figure.subplots(lines, columns, squeeze=False, sharex=same_axis, sharey=same_axis)
        shared = _edges([v for panel in panels for _, _, values in panel.groups for v in values])
        for axes, panel in zip(found.flat, panels, strict=False):
            edges = shared if same_axis else _edges([v for _, _, values in panel.groups for v in values])
            _panel(axes, panel, edges)
        for axes in list(found.flat)[len(panels) :]:
            axes.set_axis_off()
        return svg(figure, alternative)


def _panel(axes: Any, panel: Histogram, edges: Sequence[float]) -> None:
    import numpy as np

    styles = ("-", (0, (4, 1.5)))  # told apart without colour too
    for number, (name, role, values) in enumerate(panel.groups):
        counts, _ = np.histogram(np.asarray(values, float), bins=np.asarray(edges))
        heights = 100 * counts / max(1, len(values)) if panel.shares else counts
        axes.stairs(heights, edges, fill=True, color=colour(role), alpha=0.25)
        axes.stairs(heights, edges, color=colour(role), linewidth=1.8, linestyle=styles[number % 2], label=name)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)
    axes.set_ylabel("% of the images" if panel.shares else "devices")
    if not panel.shares:
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    if panel.line is not None:
        where, what = panel.line
        axes.axvline(where, color=colour("ink"), linewidth=1.2, linestyle=(0, (2, 2)))
        low, high = axes.get_xlim()
        to_the_left = where > (low + high) / 2  # on the side that has room
        axes.annotate(
            what, (where, 1.0), xycoords=("data", "axes fraction"), xytext=(-4 if to_the_left else 4, -4),
            textcoords="offset points", ha="right" if to_the_left else "left", va="top", fontsize=8.5,
            color=colour("soft"),
        )  # fmt: skip
    if len(panel.groups) > 1:
        axes.legend(loc="best")


def _edges(values: Sequence[float]) -> list[float]:
    """Even bins over the values, fewer where there are few values; around them where they are all one."""
    finite = [value for value in values if math.isfinite(value)]
    bins = min(36, max(8, 2 * math.isqrt(len(finite))))
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.05 * max(1.0, abs(high))
        low, high = low - half, high + half
    return [low + (high - low) * step / bins for step in range(bins + 1)]


@dataclass(frozen=True)
class Bars:
    """One panel of horizontal bars.

    Attributes:
        title: above it.
        values: by row; None is unknown.
        texts: what is written at the bars' ends.
        logarithmic: where values differ by orders of magnitude.
    """

    title: str
    values: Sequence[float | None]
    texts: Sequence[str]
    logarithmic: bool = False


def bars(
    names: Sequence[str], panels: Sequence[Bars], alternative: str, roles: Sequence[str], *, same_axis: bool = False
) -> str:
    """Panels of horizontal bars beside each other, with the same rows; ``roles`` colours the rows."""
    longest = max((value for panel in panels for value in panel.values if value is not None), default=1.0)
    with drawing(0.6 + 0.3 * max(2, len(names))) as figure:
        found = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, panel in zip(found.flat, panels, strict=True):
            known = [value for value in panel.values if value is not None and value > 0]
            widths = [value or 0.0 for value in panel.values]
            if panel.logarithmic and known:
                axes.set_xscale("log")
                axes.set_xlim(min(known) / 2, max(known) * 12)
            else:
                axes.set_xlim(0, 1.35 * (longest if same_axis else max(known, default=1.0)))
            axes.barh(range(len(names)), widths, height=0.62, color=[colour(role) for role in roles])
            for row, (width, text) in enumerate(zip(widths, panel.texts, strict=True)):
                start = width if width > 0 else axes.get_xlim()[0]
                axes.annotate(
                    text, (start, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
                    annotation_clip=False,
                )  # fmt: skip
            axes.set_title(panel.title, fontsize=9.5)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8)
            if panel.logarithmic:  # the bars say their numbers; powers of ten would only crowd each other
                axes.tick_params(axis="x", which="both", length=0, labelbottom=False)
            axes.spines["bottom"].set_visible(False)
        return svg(figure, alternative)


def stacked(
    names: Sequence[str], parts: Sequence[tuple[str, str, Sequence[float]]], totals: Sequence[str], alternative: str,
    label: str,
) -> str:  # fmt: skip
    """Horizontal bars made of parts: (name, role of its colour, length in each row)."""
    hatches = ("", "////", "....", "xx")
    with drawing(0.95 + 0.32 * max(2, len(names))) as figure:
        axes = figure.add_subplot()
        left = [0.0] * len(names)
        for number, (name, role, lengths) in enumerate(parts):
            axes.barh(
                range(len(names)), lengths, left=left, height=0.62, label=name, color=colour(role),
                edgecolor=colour("card"), hatch=hatches[number % 4], linewidth=0.8,
            )  # fmt: skip
            left = [a + b for a, b in zip(left, lengths, strict=True)]
        for row, (end, text) in enumerate(zip(left, totals, strict=True)):
            axes.annotate(text, (end, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max([*left, 1e-9]))
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=len(parts))
        return svg(figure, alternative)
