"""The templates, and how they write states, shares and times. Everything that they print is escaped."""

import time
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clue_coordinator.terminal import duration_text

# Every state has words of its own beside its colour.
_TONES = {
    **dict.fromkeys(("SUCCEEDED", "COMPLETED"), "good"),
    **dict.fromkeys(("FAILED", "REJECTED", "TIMED_OUT", "ABORTED"), "bad"),
    **dict.fromkeys(("CANCELED", "REMOVED", "PAUSED", "AWAITING_APPROVAL"), "warn"),
    "IN_PROGRESS": "busy",
}


def templates() -> Environment:
    """The environment that renders every page."""
    found = Environment(
        loader=PackageLoader("clue_coordinator.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": _percent,
        "word": _word,
        "tone": _tone,
        "when": _when,
        "ago": _ago,
        "took": _took,
        "duration": duration_text,
    }
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _word(state: str) -> str:
    return state.replace("_", " ").lower()


def _tone(state: str) -> str:
    return _TONES.get(state, "plain")


def _when(stamp: str | None, seconds: bool = False) -> Markup | str:
    """An RFC 3339 time as a ``time`` element, to the minute or the second, UTC."""
    if not stamp:
        return "–"
    at = datetime.fromisoformat(stamp).astimezone(UTC)
    text = at.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
    return Markup('<time datetime="{}">{}</time>').format(stamp, text)


def _ago(stamp: str | None) -> Markup | str:
    """The same, as how long ago it was."""
    if not stamp:
        return "never"
    seconds = time.time() - datetime.fromisoformat(stamp).timestamp()
    words = "just now" if seconds < 5 else f"{duration_text(seconds)} ago"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(stamp, stamp, words)


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else duration_text(seconds)
