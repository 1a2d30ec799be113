"""``clue-coordinator report``: one request as one HTML file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clue_coordinator.cli_options import Home, complete_request, operator_client
from clue_coordinator.errors import CoordinatorError, UsageError

if TYPE_CHECKING:
    from clue_coordinator.client import OperatorClient


def report(
    request_id: Annotated[
        str, typer.Argument(metavar="ID", help="A unique beginning is enough.", autocompletion=complete_request)
    ],
    home: Home = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write [default: report-ID.html].")
    ] = None,
) -> None:
    """Write a report on a request: one HTML file to read, print and pass on, without network or scripts."""
    if out is not None:
        check_target(out)
    with operator_client(home) as client:
        print(f"report: {write_report(client, request_id, out)}")


def check_target(out: Path, option: str = "--out") -> None:
    """UsageError if ``out`` can be no report, before anything is asked."""
    if out.suffix.lower() != ".html":
        raise UsageError(f"{option} takes a .html file, got {out}")
    if out.is_dir() or not Path(os.path.abspath(out)).parent.is_dir():  # noqa: PTH100
        raise UsageError(f"{option} {out} cannot be written: its folder does not exist, or it is a folder")


def write_report(client: "OperatorClient", request_id: str, out: Path | None) -> Path:
    """Ask, and write; ``out`` is ``report-ID.html`` by default. CoordinatorError if a library is missing."""
    from clue.report import ReportError, require_libraries, write

    try:
        require_libraries()
    except ReportError as error:
        raise CoordinatorError(str(error)) from None
    from clue_coordinator.request_report import gather, request_page

    found = gather(client, request_id)
    path = out or Path(f"report-{found.view.request_id[:8]}.html")
    try:
        write(path, request_page(found))
    except OSError as error:
        raise CoordinatorError(f"cannot write {path}: {error.strerror}") from None
    return path
