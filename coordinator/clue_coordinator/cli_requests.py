"""``clue-coordinator request``: look at requests and control them."""

import uuid
from typing import Annotated

import typer

from clue_coordinator.cli_options import (
    Home,
    JsonFlag,
    Limit,
    complete_device,
    complete_fleet,
    complete_request,
    complete_states,
    operator_client,
    print_json,
    print_result,
)
from clue_coordinator.cli_values import execution_states, request_states
from clue_coordinator.plain import full_request_data, request_data
from clue_protocol.v1 import operator_pb2 as pb

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
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", help="Only this state; may be repeated.", autocompletion=complete_states(pb.RequestState)
        ),
    ] = None,
    limit: Limit = 100,
    as_json: JsonFlag = False,
) -> None:
    """Requests, newest first."""
    states = request_states(state or [])
    with operator_client(home) as client:
        views = list(client.list_requests(fleet, states=states, limit=limit))
    if as_json:
        print_json([request_data(view) for view in views])
        return
    from clue_coordinator.render import requests_table
    from clue_coordinator.terminal import console

    out = console()
    out.print(requests_table(views, out.width) if views else "no requests")


@request_app.command("show")
def request_show(
    request_id: RequestId,
    home: Home = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help="Only devices in this state; may be repeated.",
            autocompletion=complete_states(pb.ExecutionState),
        ),
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
                print_json(full_request_data(view, executions))
                return
            del view.executions[:]
            view.executions.extend(executions)
    from clue_coordinator.render_request import request_page
    from clue_coordinator.terminal import console

    console().print(request_page(view))


@request_app.command("watch")
def request_watch(request_id: RequestId, home: Home = None, as_json: JsonFlag = False) -> None:
    """Show progress until every device has answered; exit code 0 only if all succeeded.

    Goes on by itself when the coordinator is restarted. With --json it prints a line for every change.
    """
    from clue_coordinator.cli_watch import all_succeeded, watch

    with operator_client(home) as client:
        # Its whole id, so that a request made later cannot make the given one ambiguous.
        whole = client.get_request(request_id, executions=1).request_id
        if not all_succeeded(watch(client, whole, home, as_json=as_json)):
            raise typer.Exit(1)


@request_app.command("cancel")
def request_cancel(request_id: RequestId, home: Home = None, comment: Comment = "", as_json: JsonFlag = False) -> None:
    """No device begins any more; what has begun finishes, and its receipt counts."""
    with operator_client(home) as client:
        view = client.cancel_request(request_id, comment)
    left = view.counts.get("IN_PROGRESS", 0) + view.counts.get("QUEUED", 0)
    tail = f"; {left} device(s) may have begun and are asked for their answer" if left else ""
    canceled = view.counts.get("CANCELED", 0)
    line = f"request {view.request_id} is cancelled: {canceled} device(s) will not begin{tail}"
    print_result(as_json, request_data(view), line)


@request_app.command("pause")
def request_pause(request_id: RequestId, home: Home = None, comment: Comment = "", as_json: JsonFlag = False) -> None:
    """No device begins until the request is resumed; the deadline stays."""
    with operator_client(home) as client:
        view = client.pause_request(request_id, comment)
    busy = view.counts.get("IN_PROGRESS", 0)
    tail = f"; {busy} device(s) that have begun finish" if busy else ""
    resume = f"go on with 'clue-coordinator request resume {view.request_id}'"
    print_result(as_json, request_data(view), f"request {view.request_id} is paused{tail}: {resume}")


@request_app.command("resume")
def request_resume(request_id: RequestId, home: Home = None, comment: Comment = "", as_json: JsonFlag = False) -> None:
    """Go on with a paused request."""
    with operator_client(home) as client:
        view = client.resume_request(request_id, comment)
    waiting = view.counts.get("QUEUED", 0)
    print_result(as_json, request_data(view), f"request {view.request_id} goes on: {waiting} device(s) have not begun")


@request_app.command("retry")
def request_retry(
    request_id: RequestId,
    home: Home = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="Only this device; may be repeated [default: all of them].",
            autocompletion=complete_device,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until every device has answered.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """A new request for the devices on which this one did not succeed.

    With --json the new request is printed; with --wait too, a line for every change.
    """
    with operator_client(home) as client:
        view = client.retry_request(request_id, device or [], uuid.uuid4().hex)
        if not (as_json and wait):
            line = f"request {view.request_id}: {sum(view.counts.values())} device(s) are asked again"
            print_result(as_json, request_data(view), line)
        if wait:
            from clue_coordinator.cli_watch import all_succeeded, watch

            if not all_succeeded(watch(client, view.request_id, home, as_json=as_json)):
                raise typer.Exit(1)
