"""``clue-coordinator device``: admit, look at, label and retire devices."""

from pathlib import Path
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
    write_file,
)
from clue_coordinator.cli_values import parse_labels
from clue_coordinator.errors import UsageError
from clue_coordinator.plain import device_data, full_device_data

device_app = typer.Typer(no_args_is_help=True, help="Admit, list, label and retire devices.")

DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", autocompletion=complete_device)]


@device_app.command("add")
def device_add(
    document: Annotated[Path, typer.Argument(help="Enrolment document made by 'clue-agent init'.")],
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet to add the device to.", autocompletion=complete_fleet)],
    out: Annotated[Path, typer.Option("--out", help="Where to write what the device must trust.")],
    home: Home = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="key=value; may be repeated. Wins over what the device says.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Admit a device; writes the document for 'clue-agent trust'."""
    labels = parse_labels("--label", label or [])
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from None
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it")
    with operator_client(home) as client:
        answer = client.add_device(fleet, text, labels)
    write_file(out, answer.trust_json)
    line = f"device {answer.device.device_id} is in fleet {fleet}; give {out} to 'clue-agent trust'"
    print_result(as_json, device_data(answer.device), line)


@device_app.command("trust")
def device_trust(
    device_id: DeviceId,
    out: Annotated[Path, typer.Option("--out", help="Where to write what the device must trust.")],
    home: Home = None,
    as_json: JsonFlag = False,
) -> None:
    """The document for 'clue-agent trust' once more, with the newest root."""
    with operator_client(home) as client:
        answer = client.trust_document(device_id)
    write_file(out, answer.trust_json)
    print_result(as_json, device_data(answer.device), f"give {out} to 'clue-agent trust' on {answer.device.device_id}")


@device_app.command("list")
def device_list(
    home: Home = None,
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.", autocompletion=complete_fleet)] = "",
    where: Annotated[str, typer.Option("--where", help="Only devices with these labels: site=paris,hw!=pi4.")] = "",
    online: Annotated[bool | None, typer.Option("--online/--offline", help="Only these.")] = None,
    retired: Annotated[bool, typer.Option("--retired", help="Retired ones too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Devices, by name."""
    with operator_client(home) as client:
        devices = list(client.list_devices(fleet, where=where, online=online, retired=retired))
    if as_json:
        print_json([device_data(d) for d in devices])
        return
    from clue_coordinator.render import devices_table
    from clue_coordinator.terminal import console

    console().print(devices_table(devices) if devices else "no devices")


@device_app.command("show")
def device_show(device_id: DeviceId, home: Home = None, as_json: JsonFlag = False) -> None:
    """One device and the newest of its history."""
    with operator_client(home) as client:
        device = client.get_device(device_id)
        events = list(client.list_events(device_id=device_id, limit=20))
    if as_json:
        print_json(full_device_data(device, events))
        return
    from clue_coordinator.render import device_page
    from clue_coordinator.terminal import console

    console().print(device_page(device, events))


@device_app.command("label")
def device_label(
    device_id: DeviceId,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="Set KEY=VALUE; remove with KEY-.")],
    home: Home = None,
    as_json: JsonFlag = False,
) -> None:
    """Set and remove labels: 'site=paris timezone=Europe/Paris old-'."""
    removals = [text for text in labels if text.endswith("-") and "=" not in text]
    given = parse_labels("a label", [text for text in labels if text not in removals])
    with operator_client(home) as client:
        device = client.label_device(device_id, given, [text[:-1] for text in removals])
    shown = " ".join(f"{k}={v}" for k, v in sorted(device.labels.items())) or "no labels"
    print_result(as_json, device_data(device), f"{device.device_id}: {shown}")


@device_app.command("retire")
def device_retire(
    device_id: DeviceId,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take a device out for good: it gets nothing any more and can no longer connect."""
    with operator_client(home) as client:
        # Looked up first: nobody should confirm a name that does not exist.
        client.get_device(device_id)
        if not yes and not typer.confirm(
            f"retire {device_id}? It cannot come back under this name", default=False, err=True
        ):
            raise typer.Exit(1)
        device = client.retire_device(device_id)
    line = f"device {device.device_id} is retired; its receipts and history stay"
    print_result(as_json, device_data(device), line)
