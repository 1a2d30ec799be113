"""Numbers and states as a reader says them."""

from clue_coordinator.plain import request_state
from clue_coordinator.request_report._gather import Gathered
from clue_coordinator.terminal import duration_text


def state_word(state: str) -> str:
    """``TIMED_OUT`` as ``timed out``."""
    return state.lower().replace("_", " ")


def count(number: int, thing: str) -> str:
    """``1 device``, ``1,200 devices``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def number(value: float, unit: str) -> str:
    """``1.5 points``; minus zero is zero."""
    return f"{round(value, 1) + 0.0:.1f} {unit}"


def percent(share: float) -> str:
    """``0.05`` as ``5 %``."""
    return f"{100 * share:g} %"


def change(points: float) -> str:
    """What a device did with its retained accuracy."""
    if abs(points) < 0.05:
        return "lost nothing"
    return f"lost {points:.1f} points" if points > 0 else f"gained {-points:.1f} points"


def days_and_hours(seconds: float) -> str:
    """A duration in words."""
    return duration_text(seconds)


def clipped(text: str, most: int) -> str:
    """What a device says may be long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def progress_in_words(found: Gathered) -> str:
    """How it ended, or how far it is."""
    view, total, done = found.view, len(found.devices), len(found.having("SUCCEEDED"))
    state = request_state(view)
    took = ""
    if view.HasField("finished_at"):
        seconds = (view.finished_at.ToNanoseconds() - view.created_at.ToNanoseconds()) / 1e9
        took = f" The last device was done {duration_text(seconds)} later."
    if not total:
        return "No device is part of it."
    share = f"{done:,} of {total:,} have forgotten it" if done < total or total > 1 else "It has forgotten it"
    if done == total and total > 1:
        share = f"All {total:,} have forgotten it"
    if state in ("ABORTED", "CANCELED"):
        return f"The request was {state_word(state)} ({clipped(view.reason, 200) or 'no reason given'}); {share}.{took}"
    if state == "COMPLETED":
        return f"{share}.{took}"
    still = len(found.having("QUEUED", "IN_PROGRESS"))
    return f"So far {share[0].lower()}{share[1:]}; {count(still, 'device')} {'is' if still == 1 else 'are'} still open."
