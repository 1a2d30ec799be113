"""Pictures for a page: matplotlib draws, and the page's own colours fill them in.

A figure is drawn in stand-in colours, one for each role (``before``, ``after``, ``ink``, ...). In the SVG they
become CSS variables, so that the same picture is right on a light page, on a dark one and on paper. Text stays text.
"""

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_WIDTH = 8.6  # inches; 72 units of the SVG each

# Role: colour on a light page and on a dark one. Okabe and Ito's palette, which all kinds of colour vision tell
# apart; made lighter where the page is dark. Marks and words repeat what a colour says.
ROLES: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#57606a", "#a8b0ba"),
    "grid": ("#d8dde3", "#3a4149"),
    "card": ("#ffffff", "#1c2128"),
    "before": ("#0072b2", "#6cb8ee"),
    "after": ("#c14f00", "#ff9a4d"),
    "oracle": ("#007a5a", "#45cfa4"),
    "extra": ("#a8447f", "#e493c0"),
    "plain": ("#8c959f", "#7d8590"),
    "succeeded": ("#00805c", "#3fcf9f"),
    "failed": ("#c14f00", "#ff9a4d"),
    "rejected": ("#d99400", "#f2c14e"),
    "timed_out": ("#a8447f", "#e493c0"),
    "canceled": ("#57606a", "#a8b0ba"),
    "removed": ("#9aa3ad", "#6e7681"),
    "in_progress": ("#3f9ddb", "#6cb8ee"),
    "queued": ("#c9d0d8", "#4a525b"),
}
_STAND_IN = {role: f"#{number:02x}fe{number:02x}" for number, role in enumerate(ROLES, start=1)}
_ROLE_OF = {stand_in: role for role, stand_in in _STAND_IN.items()}


def colour(role: str) -> str:
    """What matplotlib is given for ``role``."""
    return _STAND_IN[role]


@dataclass(frozen=True)
class Series:
    """How one model is drawn everywhere: its name, the role of its colour, and its mark."""

    name: str
    role: str
    marker: str


def stylesheet() -> dict[str, list[tuple[str, str]]]:
    """The CSS variables of both kinds of pages: ``{"light": [(name, colour)], "dark": ...}``."""
    return {
        "light": [(f"--{role.replace('_', '-')}", pair[0]) for role, pair in ROLES.items()],
        "dark": [(f"--{role.replace('_', '-')}", pair[1]) for role, pair in ROLES.items()],
    }


@contextmanager
def drawing(height: float, width: float = _WIDTH) -> "Iterator[Figure]":
    """A figure of that size in inches, with the page's style in force inside the block."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, soft = colour("ink"), colour("soft")
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "clue",
        "text.parse_math": False,  # a device may be called $x$
        "text.color": ink,
        "font.size": 9.5,
        "axes.edgecolor": soft,
        "axes.labelcolor": ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.8,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "figure.facecolor": "none",
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Names may hold letters that matplotlib's own font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: "Figure", alternative: str) -> str:
    """``figure`` as an SVG element for a page; call it inside :func:`drawing`.

    ``alternative`` is what somebody hears who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(_CONTROL.sub("\ufffd", buffer.getvalue()))  # noqa: S314  (made in the line above)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    _shorten(root)
    width, height = (root.get("viewBox") or "0 0 1 1").split()[2:]
    root.attrib.clear()
    root.attrib |= {
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-label": _CONTROL.sub("\ufffd", alternative),
    }
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def png(figure: "Figure", alternative: str, dpi: int = 110) -> str:
    """``figure`` as a PNG on white, for pictures that are pixels anyway."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return image(buffer.getvalue(), alternative)


def image(data: bytes, alternative: str) -> str:
    """A PNG file as an element for a page."""
    element = ElementTree.Element("img", alt=alternative)
    element.set("src", "data:image/png;base64," + base64.b64encode(data).decode("ascii"))
    return ElementTree.tostring(element, encoding="unicode")


# What XML does not allow, and a device may say.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_NUMBER = re.compile(r"\d+\.\d{3,}")
_FAMILY = re.compile(r"(?:'[^']*'|[A-Za-z -]+)(?:, *(?:'[^']*'|[A-Za-z -]+))*$")


def _shorten(root: ElementTree.Element) -> None:
    """Drop name spaces and ids that nobody refers to, make the others unique on the page, and set the colours."""
    text = ElementTree.tostring(root, encoding="unicode")
    prefix = "p" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            if name == "id":
                if value in used:
                    element.attrib["id"] = f"{prefix}-{value}"
                continue
            value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
            if name.removeprefix(_XLINK) == "href" and value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            if value.startswith("data:"):
                value = "".join(value.split())
            if name in ("fill", "stroke") and value in _ROLE_OF:
                # Only a style may name a variable. (Elements that have such an attribute have no style.)
                name, value = "style", f"{name}: {value}"
            if name == "style":
                value = _styled(value)
            elif name in ("d", "transform", "x", "y", "points"):
                value = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
            element.attrib[name.removeprefix(_XLINK)] = value
        if element.tag != "text" and element.text and not element.text.strip():
            element.text = None
        element.tail = None if not (element.tail or "").strip() else element.tail


def _styled(style: str) -> str:
    """Stand-ins as variables, and the reader's own font."""
    style = re.sub(
        "#[0-9a-f]{6}",
        lambda found: f"var(--{_ROLE_OF[found[0]].replace('_', '-')})" if found[0] in _ROLE_OF else found[0],
        style,
    )
    parts = []
    for part in style.split(";"):
        name, _, value = part.strip().partition(": ")
        if name in ("font", "font-family"):
            value = _FAMILY.sub(_FONT, value)
        if name:
            parts.append(f"{name}:{value}")
    return ";".join(parts)
