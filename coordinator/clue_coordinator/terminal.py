"""The terminal: how wide it is, and the words for times and names on it."""

import os
import re
import sys
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table

# A pipe has no width: nothing that goes into one may be cut to 80 columns.
_PIPE_COLUMNS = 240


def console(*, quiet: bool = False) -> Console:
    """Standard output."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(quiet=quiet, width=_PIPE_COLUMNS if piped else None, highlight=False, soft_wrap=False)


def table(*columns: str, right: Sequence[str] = (), wide: Sequence[str] = ()) -> Table:
    """A table without a frame; columns in ``right`` hold numbers, those in ``wide`` fold where there is no room."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        folds = name in wide
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    return made


def time_text(stamp: Timestamp) -> str:
    """``2026-03-29 02:00:00``, UTC."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def minute_text(stamp: Timestamp) -> str:
    """``2026-03-29 02:00``, UTC."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M")


def duration_text(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``7 d``."""
    seconds = max(0, round(seconds))
    for unit, word, lower, lower_word in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit:
            rest = seconds % unit // lower
            # Seconds beside many minutes tell nobody anything.
            return f"{seconds // unit} {word}" + (f" {rest} {lower_word}" if rest and seconds < 10 * unit else "")
    return f"{seconds} s"


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``cam-9`` stands before ``cam-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def names_text(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    shown = " ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
