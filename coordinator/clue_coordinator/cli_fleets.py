"""``clue-coordinator fleet``, ``status`` and ``history``."""

import time
from typing import Annotated

import typer

from clue_coordinator.cli_options import (
    Home,
    JsonFlag,
    Limit,
    complete_device,
    complete_fleet,
    complete_request,
    operator_client,
    print_json,
    print_result,
)
from clue_coordinator.cli_roots import Approver, Require, fleet_approvers, read_approvers
from clue_coordinator.cli_values import request_states
from clue_coordinator.errors import UsageError
from clue_coordinator.plain import event_data, fleet_data, status_data
from clue_protocol.v1 import operator_pb2 as pb

fleet_app = typer.Typer(no_args_is_help=True, help="Make and list fleets.")
fleet_app.command("approvers")(fleet_approvers)


@fleet_app.command("create")
def fleet_create(
    name: Annotated[str, typer.Argument(help="Name of the new fleet.")],
    home: Home = None,
    approver: Approver = None,
    require: Require = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make an empty fleet; with --approver its requests wait until --require of these people have signed them."""
    if require and not approver:
        raise UsageError("--require goes with --approver")
    with operator_client(home) as client:
        fleet = client.create_fleet(name, read_approvers(approver or []), require)
    line = f"fleet {name} is ready: add devices with 'clue-coordinator device invite'"
    if not fleet.require:
        line = (
            f"fleet {name} is made, but the root does not name it yet, and its holders must sign that: "
            f"'clue-coordinator root draft OUT --fleet {name}'"
        )
    elif not fleet.self_approved:
        line += f"; {fleet.require} of {len(fleet.approvers)} approvers must sign its requests"
    print_result(as_json, fleet_data(fleet), line)


@fleet_app.command("list")
def fleet_list(home: Home = None, as_json: JsonFlag = False) -> None:
    """All fleets."""
    with operator_client(home) as client:
        fleets = client.list_fleets()
    if as_json:
        print_json([fleet_data(fleet) for fleet in fleets])
        return
    from clue_coordinator.render import fleets_table
    from clue_coordinator.terminal import console

    console().print(fleets_table(fleets) if fleets else "no fleets: make one with 'clue-coordinator fleet create'")


def status(home: Home = None, as_json: JsonFlag = False) -> None:
    """How the coordinator is; exit code 0 only if devices can connect and are asked."""
    with operator_client(home) as client:
        info = client.server_info()
        online = [device.online for device in client.list_devices()]
        views = list(client.list_requests(states=request_states(["awaiting_approval", "scheduled", "in_progress"])))
    data = status_data(info, len(online), sum(online), len(views))
    if as_json:
        print_json(data)
    else:
        from clue_coordinator.render import requests_table
        from clue_coordinator.roots import WARN_SECONDS
        from clue_coordinator.terminal import console

        print(
            f"coordinator {info.version}: devices {_works(info.superlink_running)} connect to {info.superlink_address}",
            end="",
        )
        print(f" and {_works(info.dispatcher_running)} be asked")
        print(f"{data['online']} of {data['devices']} device(s) online, {len(views)} open request(s)")
        print(f"certificates expire: {', '.join(map(_certificate, info.certificates))}")
        if info.root_expires_at.seconds < time.time() + WARN_SECONDS:
            date = info.root_expires_at.ToDatetime().date()
            print(f"the root expires on {date}, and devices stop then: its holders must sign a newer one")
        if views:
            out = console()
            out.print(requests_table(views, out.width))
    if not (info.superlink_running and info.dispatcher_running):
        raise typer.Exit(1)


def _certificate(found: pb.Certificate) -> str:
    text = f"{found.name} {found.expires_at.ToDatetime():%Y-%m-%d}"
    # The server's is renewed by itself: if it is due for longer than a moment, the log says why.
    return f"{text} (DUE: see docs/enrolment.md)" if found.due else text


def _works(it: bool) -> str:
    return "can" if it else "CANNOT"


def history(
    home: Home = None,
    request: Annotated[
        str, typer.Option("--request", metavar="ID", help="Only this request.", autocompletion=complete_request)
    ] = "",
    device: Annotated[str, typer.Option("--device", help="Only this device.", autocompletion=complete_device)] = "",
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.", autocompletion=complete_fleet)] = "",
    limit: Limit = 100,
    as_json: JsonFlag = False,
) -> None:
    """What happened, newest first: the ledger's append-only history."""
    with operator_client(home) as client:
        events = list(client.list_events(request_id=request, device_id=device, fleet=fleet, limit=limit))
    if as_json:
        print_json([event_data(event) for event in events])
        return
    from clue_coordinator.render import events_table
    from clue_coordinator.terminal import console

    console().print(events_table(events, hide=[*(["device"] if device else []), *(["request"] if request else [])]))
