"""Reading sysfs attributes."""

from pathlib import Path

SYSFS = Path("/sys")


def read_number(path: Path) -> int:
    """The integer in an attribute. OSError if it cannot be read, ValueError if it is something else."""
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path.parent.name}/{path.name} is no whole number: {text[:40]!r}") from None


def read_text(path: Path) -> str:
    """The text of an attribute, stripped; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
