"""``device invite | invitations | uninvite | revoke``: who becomes a device, and who is none any more."""

import sys
from typing import Annotated

import typer

from clue_coordinator.cli_options import (
    Home,
    JsonFlag,
    complete_device,
    complete_fleet,
    operator_client,
    print_json,
    print_result,
)
from clue_coordinator.cli_values import parse_duration, parse_labels
from clue_coordinator.errors import UsageError
from clue_coordinator.plain import device_data, invitation_data
from clue_protocol.v1 import operator_pb2 as pb


def invite(
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet of the device.", autocompletion=complete_fleet)],
    home: Home = None,
    name: Annotated[
        str, typer.Option("--name", help="The name that the device must take. [default: it chooses with --device-id]")
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="key=value; may be repeated. Wins over what the device says.")
    ] = None,
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="TIME", help="The token ends after that: 15min, 1h, 2d.")
    ] = "1h",
    qr: Annotated[
        bool | None, typer.Option("--qr/--no-qr", help="A QR code of the token. [default: on a terminal]")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token with which one device can enrol itself, once. It is shown this once."""
    labels = parse_labels("--label", label or [])
    seconds = parse_duration("--expires-in", expires_in)
    with operator_client(home) as client:
        answer = client.create_invitation(fleet, seconds, name, labels)
    view, command = answer.invitation, _command(answer)
    if as_json:
        print_json({**invitation_data(view), "token": answer.token, "command": command})
        return
    if sys.stdout.isatty() if qr is None else qr:
        _print_qr(answer.token)
    who = f"device '{view.device_id}'" if view.device_id else "one device"
    until = view.expires_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
    print(f"invitation {view.id}: {who} can join fleet {view.fleet} until {until} UTC. On the device:", file=sys.stderr)
    print(command)


def invitations(
    home: Home = None,
    closed: Annotated[bool, typer.Option("--all", help="Used, expired and withdrawn ones too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Invitations that can still be used; their tokens are not kept."""
    with operator_client(home) as client:
        found = [invitation_data(view) for view in client.list_invitations(include_closed=closed)]
    if as_json:
        print_json(found)
        return
    from clue_coordinator.terminal import console, table

    if not found:
        print("no invitations" if closed else "no open invitations: --all shows the others")
        return
    rows = table("id", "fleet", "for", "labels", "state", "made by", "expires (UTC)", "used by")
    for row in found:
        labels = " ".join(f"{key}={value}" for key, value in sorted(row["labels"].items()))
        expires = (row["expires_at"] or "")[:19].replace("T", " ")
        name = row["device_id"] or "any"
        rows.add_row(
            str(row["id"]), row["fleet"], name, labels, row["state"], row["created_by"], expires, row["used_by"]
        )
    console().print(rows)


def uninvite(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, help="Of 'device invitations'.")],
    home: Home = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an invitation useless."""
    with operator_client(home) as client:
        view = client.withdraw_invitation(number)
    print_result(as_json, invitation_data(view), f"invitation {number} is withdrawn")


def revoke(
    device_id: Annotated[str, typer.Argument(metavar="DEVICE", autocompletion=complete_device)],
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the log for ever.")],
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut a device off now, as one that was stolen: nothing that it signs is accepted any more."""
    if not reason.strip():
        raise UsageError("--reason must say why the device is revoked")
    with operator_client(home) as client:
        client.get_device(device_id)
        if not yes and not typer.confirm(
            f"revoke {device_id}? Its receipts are refused from now on, and it cannot come back",
            default=False,
            err=True,
        ):
            raise typer.Exit(1)
        device = client.revoke_device(device_id, reason)
    line = f"device {device.device_id} is revoked and cut off; its history stays"
    if not device.HasField("cut_off_at"):
        line = (
            f"device {device.device_id} is revoked and gets nothing any more; Flower did not answer, "
            "and will let go of it as soon as it does"
        )
    print_result(as_json, device_data(device), line)


def _command(answer: pb.CreateInvitationResponse) -> str:
    name = "" if answer.invitation.device_id else " --device-id NAME"
    return f"clue-agent enroll {answer.token} --model MODEL{name}"


def _print_qr(token: str) -> None:
    import segno

    # Low correction: a screen has no dirt on it, and the code should fit a small terminal.
    segno.make(token, error="l", micro=False).terminal(compact=True, border=2)
