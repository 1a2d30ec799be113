"""``clue-coordinator request``: look at requests and control them."""

import json
import uuid
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clue_coordinator import render
from clue_coordinator.cli_options import Home, JsonFlag, complete_fleet, complete_request, operator_client
from clue_coordinator.cli_values import execution_states, request_states
from clue_coordinator.cli_watch import all_succeeded, watch

request_app = typer.Typer(no_args_is_help=True, help="Look at forget requests and control them.")

RequestId = Annotated[
    str, typer.Argument(metavar="ID", help="A unique beginning is enough.", autocompletion=complete_request)
]
Comment = Annotated[str, typer.Option("--comment", help="Why; kept in the history.")]
_ROWS = 50


@request_app.command("list")
def request_list(
    home: Home = None,
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.", autocompletion=complete_fleet)] = "",
    state: Annotated[list[str] | None, typer.Option("--state", help="Only this state; may be repeated.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many at most.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Requests, newest first."""
    states = request_states(state or [])
    with operator_client(home) as client:
        views = list(client.list_requests(fleet, states=states, limit=limit))
    if as_json:
        print(json.dumps([render.request_data(view) for view in views], indent=2))
        return
    table = Table("request", "fleet", "class", "state", "succeeded", "created", header_style="bold")
    for view in views:
        created = view.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
        done = f"{view.counts.get('SUCCEEDED', 0)} of {sum(view.counts.values())}"
        table.add_row(view.request_id, view.fleet, view.forget_class, render.request_word(view), done, created)
    Console().print(table)


@request_app.command("show")
def request_show(
    request_id: RequestId,
    home: Home = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only devices in this state; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help=f"All devices, not the {_ROWS} most telling ones.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """One request and what its devices answered."""
    states = execution_states(state or [])
    with operator_client(home) as client:
        view = client.get_request(request_id, executions=_ROWS)
        if as_json or everything or states:
            executions = list(client.list_executions(view.request_id, states=states))
            if as_json:
                print(json.dumps(render.request_data(view, executions), indent=2))
                return
            del view.executions[:]
            view.executions.extend(executions)
    Console().print(render.request_table(view))


@request_app.command("watch")
def request_watch(request_id: RequestId, home: Home = None) -> None:
    """Show progress until every device has answered; exit code 0 only if all succeeded.

    Goes on by itself when the coordinator is restarted.
    """
    with operator_client(home) as client:
        if not all_succeeded(watch(client.follow_request(request_id))):
            raise typer.Exit(1)


@request_app.command("cancel")
def request_cancel(request_id: RequestId, home: Home = None, comment: Comment = "") -> None:
    """No device begins any more; what has begun finishes, and its receipt counts."""
    with operator_client(home) as client:
        view = client.cancel_request(request_id, comment)
    left = view.counts.get("IN_PROGRESS", 0) + view.counts.get("QUEUED", 0)
    tail = f"; {left} device(s) may have begun and are asked for their answer" if left else ""
    print(f"request {view.request_id} is cancelled: {view.counts.get('CANCELED', 0)} device(s) will not begin{tail}")


@request_app.command("pause")
def request_pause(request_id: RequestId, home: Home = None, comment: Comment = "") -> None:
    """No device begins until the request is resumed; the deadline stays."""
    with operator_client(home) as client:
        view = client.pause_request(request_id, comment)
    print(f"request {view.request_id} is paused: go on with 'clue-coordinator request resume {view.request_id}'")


@request_app.command("resume")
def request_resume(request_id: RequestId, home: Home = None, comment: Comment = "") -> None:
    """Go on with a paused request."""
    with operator_client(home) as client:
        view = client.resume_request(request_id, comment)
    print(f"request {view.request_id} goes on")


@request_app.command("retry")
def request_retry(
    request_id: RequestId,
    home: Home = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Only this device; may be repeated [default: all of them].")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until every device has answered.")] = False,
) -> None:
    """A new request for the devices on which this one did not succeed."""
    with operator_client(home) as client:
        view = client.retry_request(request_id, device or [], uuid.uuid4().hex)
        print(f"request {view.request_id}: {sum(view.counts.values())} device(s) are asked again")
        if wait and not all_succeeded(watch(client.follow_request(view.request_id))):
            raise typer.Exit(1)
