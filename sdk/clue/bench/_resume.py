"""Going on where a bench was stopped: its report says what it was asked and which runs are done."""

import json
from pathlib import Path
from typing import Any

from clue.errors import DataError


def earlier_runs(path: Path, options: dict[str, Any], form: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Finished runs of the report at ``path`` by (class, method, seed); none where there is no report yet.

    Runs that failed are not among them: they are tried again.

    Raises:
        DataError: the report is unreadable, or was made with other options.
    """
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != form:
            raise ValueError(f"it is of format {report['format']!r}")
        asked, runs = dict(report["options"]), list(report["runs"])
        done = {(r["forget_class"], r["method"], r["seed"]): r for r in runs if "error" not in r}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot continue {path}: {error}; give another file") from None
    for name in sorted(options.keys() | asked.keys()):
        if options.get(name) != asked.get(name):
            raise DataError(
                f"{path} was made with other options: {name} was {asked.get(name)!r}, is {options.get(name)!r}; "
                "use the same ones, or another file"
            )
    return done
