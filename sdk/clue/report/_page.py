"""A page of words, tables and pictures, as one HTML file that asks nobody for anything.

Whatever is put on a page is text and is escaped, :class:`Picture.markup` excepted, which
:mod:`clue.report._figure` makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from clue.errors import ClueError

Tone = Literal["good", "bad", "warn", "calm"]
_TEMPLATE = "page.html.jinja"
_INSTALL = "a report needs matplotlib and jinja2: pip install 'clue-unlearning[plots]'"


class ReportError(ClueError):
    """A report cannot be made: a library is missing, or what it is made of does not fit."""


@dataclass(frozen=True)
class Badge:
    """A word in a table that catches the eye; the word says everything, its colour only repeats it."""

    text: str
    tone: Tone = "calm"


@dataclass(frozen=True)
class Tile:
    """A number at the top of a page."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = "calm"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        columns: headings; the first column names its row.
        rows: cells, as many as there are headings.
        text_columns: positions of columns that hold words; the others hold numbers.
        note: below it, such as how many rows were left out.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Badge]]
    text_columns: frozenset[int] = frozenset({0})
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing, with what it shows in words below it."""

    kind: ClassVar[str] = "picture"
    markup: str
    caption: str


Block = Text | Facts | Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: heading.
        kicker: what kind of report, above the heading.
        badge: how it ended, in a word.
        summary: paragraphs in plain words.
        tiles: the numbers that matter most.
        sections: the rest.
        footer: how and of what it was made.
    """

    title: str
    kicker: str
    summary: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    footer: str
    badge: Badge | None = None


def require_libraries() -> None:
    """ReportError where matplotlib or jinja2 is not installed; called before any work is done."""
    try:
        import jinja2  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ReportError(_INSTALL) from None


def render(page: Page) -> str:
    """``page`` as HTML."""
    import jinja2

    from clue.report._figure import stylesheet

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(page=page, colours=stylesheet())


def write(path: Path, page: Page) -> None:
    """Write ``page`` to ``path`` in one move; OSError where that cannot be."""
    text = render(page)
    temporary = path.with_name(f".{path.name}.new")
    try:
        # A device may send half of a surrogate pair.
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
