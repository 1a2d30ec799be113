"""``clue-coordinator`` in this process, as its entry point runs it."""

import sys
from typing import NamedTuple

import pytest

from clue_coordinator import cli


class Result(NamedTuple):
    code: int
    out: str
    err: str


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run a command to its end; it never shows a traceback."""
    monkeypatch.setattr(sys, "argv", ["clue-coordinator", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return Result(code, out, err)
