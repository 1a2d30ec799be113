"""Reports: one HTML file with words, tables and pictures that needs no network, no script and no other file.

``clue report`` writes one about a model that has forgotten a class, ``clue-coordinator report`` one about a request.
Both are made of the same parts: a :class:`Page` of sections, charts that take the page's colours, and :func:`write`.
The libraries that it takes are the extra ``plots``; :func:`require_libraries` says so where they are missing.
"""

from clue.report._charts import AFTER, BEFORE, ORACLE, Bars, Dot, Histogram, bars, dots, histograms, stacked
from clue.report._figure import Series, colour, drawing, image, png, svg
from clue.report._page import (
    Badge,
    Block,
    Facts,
    Page,
    Picture,
    ReportError,
    Section,
    Table,
    Text,
    Tile,
    Tone,
    render,
    require_libraries,
    write,
)

__all__ = [
    "AFTER",
    "BEFORE",
    "ORACLE",
    "Badge",
    "Bars",
    "Block",
    "Dot",
    "Facts",
    "Histogram",
    "Page",
    "Picture",
    "ReportError",
    "Section",
    "Series",
    "Table",
    "Text",
    "Tile",
    "Tone",
    "bars",
    "colour",
    "dots",
    "drawing",
    "histograms",
    "image",
    "png",
    "render",
    "require_libraries",
    "stacked",
    "svg",
    "write",
]
