"""``clue-coordinator``: run the coordinator, and make fleets forget."""

import ipaddress
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import clue
from clue_coordinator import render
from clue_coordinator.cli_devices import device_app
from clue_coordinator.cli_forget import forget
from clue_coordinator.cli_options import (
    CaFile,
    Home,
    JsonFile,
    JsonFlag,
    Server,
    TokenFile,
    check_writable,
    complete_device,
    complete_fleet,
    complete_request,
    write_json,
)
from clue_coordinator.cli_options import home_folder as _home
from clue_coordinator.cli_options import operator_client as _client
from clue_coordinator.cli_requests import request_app
from clue_coordinator.cli_tokens import token_app
from clue_coordinator.config import CoordinatorConfig, LedgerConfig, load_config
from clue_coordinator.connection import Remote
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_protocol.errors import ProtocolError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
fleet_app = typer.Typer(no_args_is_help=True, help="Make and list fleets.")
app.add_typer(fleet_app, name="fleet")
app.add_typer(device_app, name="device")
app.add_typer(request_app, name="request")
app.add_typer(token_app, name="token")

Port = Annotated[int, typer.Option(min=1, max=65535)]


@app.command()
def init(
    home: Home = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address under which devices reach this machine."),
    ] = None,
    listen: Annotated[str, typer.Option("--listen", help="Address on which devices are accepted.")] = "127.0.0.1",
    operator_listen: Annotated[
        str, typer.Option("--operator-listen", help="IP address on which operators are answered.")
    ] = "127.0.0.1",
    superlink_port: Port = 9092,
    operator_port: Port = 9443,
    metrics_port: Port = 9464,
    ledger_url: Annotated[
        str,
        typer.Option("--ledger-url", help="postgresql+psycopg://... [default: an SQLite file in the folder]."),
    ] = "",
) -> None:
    """Make an installation: signing key, certificate authority, ledger, configuration."""
    from clue_coordinator.setup import initialise

    if len({superlink_port, operator_port, metrics_port}) < 3:
        raise UsageError("the three ports must differ")
    try:
        ipaddress.ip_address(operator_listen)
    except ValueError:
        raise UsageError(f"--operator-listen takes an IP address, got '{operator_listen}'") from None
    config = CoordinatorConfig(
        hosts=tuple(host) if host else ("127.0.0.1",),
        listen=listen,
        operator_listen=operator_listen,
        superlink_port=superlink_port,
        operator_port=operator_port,
        metrics_port=metrics_port,
        ledger=LedgerConfig(url=ledger_url),
        home=_home(home).resolve(),
    )
    initialise(config)
    print(f"coordinator is set up in {config.home}")
    print("next: clue-coordinator serve")


@app.command()
def serve(home: Home = None) -> None:
    """Run the coordinator until it is stopped."""
    from clue_coordinator.daemon import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    run(load_config(_home(home)))


@app.command()
def backup(
    out: Annotated[Path, typer.Option("--out", help="New file to write the ledger to.")], home: Home = None
) -> None:
    """Write the ledger to a file; the coordinator may be running."""
    from clue_coordinator.backup import back_up

    summary = back_up(load_config(_home(home)), out)
    print(f"{out}: {sum(summary.rows.values())} rows, sha256 {summary.sha256}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Backup made by 'clue-coordinator backup'.")],
    home: Home = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a ledger that is not empty.")] = False,
) -> None:
    """Replace the ledger by a backup; the coordinator must be stopped."""
    from clue_coordinator.backup import restore as restore_ledger
    from clue_coordinator.setup import knows_local_token

    config = load_config(_home(home))
    summary = restore_ledger(config, source, force=force)
    print(f"restored {sum(summary.rows.values())} rows, sha256 {summary.sha256}")
    if not knows_local_token(config):
        print("this home's token is not in it: 'clue-coordinator token recover' makes one that is")


app.command()(forget)


@fleet_app.command("create")
def fleet_create(name: Annotated[str, typer.Argument(help="Name of the new fleet.")], home: Home = None) -> None:
    """Make an empty fleet."""
    with _client(home) as client:
        client.create_fleet(name)
    print(f"fleet {name} is ready: add devices with 'clue-coordinator device add'")


@fleet_app.command("list")
def fleet_list(home: Home = None, as_json: JsonFlag = False) -> None:
    """All fleets."""
    with _client(home) as client:
        fleets = client.list_fleets()
    if as_json:
        print(
            json.dumps([{"name": f.name, "devices": f.devices, "classes": list(f.classes)} for f in fleets], indent=2)
        )
        return
    table = Table("fleet", "devices", "classes", header_style="bold")
    for fleet in fleets:
        table.add_row(fleet.name, str(fleet.devices), ", ".join(fleet.classes))
    Console().print(table)


@app.command()
def history(
    home: Home = None,
    request: Annotated[
        str, typer.Option("--request", metavar="ID", help="Only this request.", autocompletion=complete_request)
    ] = "",
    device: Annotated[str, typer.Option("--device", help="Only this device.", autocompletion=complete_device)] = "",
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.", autocompletion=complete_fleet)] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many at most.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """What happened, newest first: the ledger's append-only history."""
    with _client(home) as client:
        events = list(client.list_events(request_id=request, device_id=device, fleet=fleet, limit=limit))
    if as_json:
        print(json.dumps([render.event_data(event) for event in events], indent=2))
    else:
        Console().print(render.events_table(events))


@app.command()
def demo(
    devices: Annotated[int, typer.Option("--devices", min=1, max=16, help="Number of device agents to start.")] = 3,
    data: Annotated[
        str, typer.Option("--data", help="digits, cifar10, or auto: cifar10 if CLUE_DATA_DIR holds it.")
    ] = "auto",
    forget_class: Annotated[str, typer.Option("--class", help="Class to forget [default: bird, or eight].")] = "",
    method: Annotated[str, typer.Option("--method", help="Unlearning method [default: the device's choice].")] = "",
    json_file: JsonFile = None,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep everything in this new folder.")] = None,
    oracle: Annotated[bool, typer.Option("--oracle/--no-oracle", help="Also train the Retrain oracle.")] = True,
) -> None:
    """A whole fleet on this machine forgets a class of real images, beside the Retrain oracle."""
    from clue_coordinator.demo import run_demo

    if data not in ("auto", "digits", "cifar10"):
        raise UsageError(f"--data must be auto, digits or cifar10, got '{data}'")
    check_writable(json_file)
    result = run_demo(devices=devices, data=data, forget_class=forget_class, method=method, keep=keep, oracle=oracle)
    if json_file is not None:
        write_json(json_file, result)
    if any(d["state"] != "SUCCEEDED" for d in result["devices"]):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    server: Server = "",
    ca_file: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    context.obj = Remote(server, ca_file, token_file)
    if version:
        print(clue.__version__)
        raise typer.Exit


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or type(error).__name__}"


def main() -> None:
    """Entry point: known errors become one line, exit code 2 for usage and 1 for failure."""
    # gRPC's own log lines would stand beside our one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except (CoordinatorError, ProtocolError) as error:
        print(f"clue-coordinator: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        # A full or failing disk can show up at any write.
        print(f"clue-coordinator: {_os_error(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
