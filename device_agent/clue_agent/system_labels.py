"""Labels that a device can tell by itself: its time zone, and which Raspberry Pi it is."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from clue_protocol.documents import is_timezone

_BOARDS = {"3": "pi3", "4": "pi4", "5": "pi5", "Zero 2": "zero2"}
_BOARD = re.compile(r"Raspberry Pi (3|4|5|Zero 2)\b")


def system_labels(root: Path = Path("/")) -> dict[str, str]:
    """``timezone`` (an IANA name) and ``hw`` (pi3, pi4, pi5, zero2), where they can be told.

    Args:
        root: of the file system.
    """
    found = {"timezone": _timezone(root), "hw": _board(root)}
    return {key: value for key, value in found.items() if value}


def _timezone(root: Path) -> str:
    """The first zone by an IANA name of: the variable TZ, /etc/timezone, what /etc/localtime links to."""
    return next((name for name in _claimed_zones(root) if is_timezone(name)), "")


def _claimed_zones(root: Path) -> Iterator[str]:
    # As in "TZ=:/usr/share/zoneinfo/Europe/Paris".
    yield os.environ.get("TZ", "").removeprefix(":").rpartition("zoneinfo/")[2]
    with suppress(OSError, UnicodeDecodeError):
        yield (root / "etc/timezone").read_text(encoding="utf-8").strip()
    with suppress(OSError):
        yield str((root / "etc/localtime").readlink()).rpartition("zoneinfo/")[2]


def _board(root: Path) -> str:
    try:
        model = (root / "proc/device-tree/model").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    match = _BOARD.match(model)
    return _BOARDS[match[1]] if match else ""
