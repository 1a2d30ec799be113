"""Following a request: live on a terminal, line by line into a pipe."""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clue_coordinator.cli_options import command_line, print_error
from clue_coordinator.client import OperatorClient
from clue_coordinator.errors import UnavailableError
from clue_coordinator.plain import approvals_text, request_data
from clue_coordinator.render_request import LiveRequest, request_page, request_word
from clue_coordinator.terminal import console as new_console
from clue_protocol.v1 import operator_pb2 as pb

_AWAY = "the coordinator does not answer; waiting for it (the devices go on meanwhile)"
# A log gets a line this often at most, and always the last.
_LOG_SECONDS = 5.0
_MOST_ROWS = 500


def watch(
    client: OperatorClient, request_id: str, home: Path | None, *, quiet: bool = False, as_json: bool = False
) -> pb.RequestView:
    """Follow a request to its end, through restarts of the coordinator, and return its last view.

    Ctrl-C ends this program only: it says so, and how to watch again; exit code 130.
    """
    rows = min(max(shutil.get_terminal_size().lines, 50), _MOST_ROWS)
    views = client.follow_request(request_id, executions=rows)
    try:
        if as_json:
            return _json_lines(views)
        console = new_console(quiet=quiet)
        view = _live(console, views) if console.is_terminal and not quiet else _log(console, views)
    except (KeyboardInterrupt, UnavailableError) as error:
        again = command_line(home, "request", "watch", request_id)
        if isinstance(error, UnavailableError):
            print_error(error)
        print(f"the request goes on without this window: watch it again with '{again}'", file=sys.stderr)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    console.print(request_page(view))
    return view


def _live(console: Console, views: Iterable[pb.RequestView | None]) -> pb.RequestView:
    view = pb.RequestView()
    # Four times a second, whatever happens: bars and times move, and nothing flickers.
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for new in views:
            if new is not None:
                view = new
            away = _AWAY if new is None else ""
            live.update(LiveRequest(view, away) if view.request_id else Text(away))
    return view


def _log(console: Console, views: Iterable[pb.RequestView | None]) -> pb.RequestView:
    view, last, at = pb.RequestView(), "", 0.0
    for new in views:
        line = _AWAY if new is None else _line(new)
        view = view if new is None else new
        over = view.HasField("finished_at")
        if line != last and (over or new is None or time.monotonic() >= at + _LOG_SECONDS):
            console.print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", soft_wrap=True)
            last, at = line, time.monotonic()
    return view


def _line(view: pb.RequestView) -> str:
    counts = ", ".join(f"{number} {state}" for state, number in sorted(view.counts.items()))
    wave = f", wave {view.wave} of {view.waves}" if view.waves > 1 or view.wave == 0 else ""
    if view.state == pb.REQUEST_STATE_AWAITING_APPROVAL:
        return f"{request_word(view)}: {approvals_text(view)}"
    return f"{request_word(view)}: {counts or 'no devices yet'}{wave}"


def _json_lines(views: Iterable[pb.RequestView | None]) -> pb.RequestView:
    view = pb.RequestView()
    for new in views:
        if new is not None:
            view = new
            print(json.dumps(request_data(view)), flush=True)
    return view


def all_succeeded(view: pb.RequestView) -> bool:
    """True if every device of the request succeeded."""
    return view.counts.get("SUCCEEDED", 0) == sum(view.counts.values())
