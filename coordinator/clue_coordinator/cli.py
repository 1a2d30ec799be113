"""``clue-coordinator``: run the coordinator, and make fleets forget."""

import ipaddress
import json
import logging
import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

import clue
from clue_coordinator import render
from clue_coordinator.cli_options import CaFile, Home, JsonFlag, Server, TokenFile
from clue_coordinator.cli_options import home_folder as _home
from clue_coordinator.cli_options import operator_client as _client
from clue_coordinator.cli_tokens import token_app
from clue_coordinator.config import CoordinatorConfig, LedgerConfig, load_config
from clue_coordinator.connection import Remote
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_protocol.errors import ProtocolError
from clue_protocol.v1 import operator_pb2 as pb

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
fleet_app = typer.Typer(no_args_is_help=True, help="Make and list fleets.")
device_app = typer.Typer(no_args_is_help=True, help="Add and list devices.")
request_app = typer.Typer(no_args_is_help=True, help="Look at forget requests.")
app.add_typer(fleet_app, name="fleet")
app.add_typer(device_app, name="device")
app.add_typer(request_app, name="request")
app.add_typer(token_app, name="token")

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file ('-': standard output).")
]
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


@app.command()
def forget(
    forget_class: Annotated[str, typer.Option("--class", help="Name of the class to forget.")],
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet whose devices forget it.")],
    home: Home = None,
    method: Annotated[str, typer.Option("--method", help="Unlearning method [default: the device's choice].")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Hyper-parameter of the method, name=value; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    max_ua: Annotated[
        float,
        typer.Option("--max-ua", min=0, max=1, help="Highest accuracy on the forgotten class that a device accepts."),
    ] = 0.10,
    max_ra_drop: Annotated[
        float,
        typer.Option("--max-ra-drop", min=0, max=1, help="Largest loss of accuracy on the other classes."),
    ] = 0.05,
    deadline_days: Annotated[
        float,
        typer.Option("--deadline-days", min=0.001, max=366, help="The request expires after this time."),
    ] = 7.0,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until every device has answered.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Make a fleet forget a class.

    With --wait the exit code is 0 only if every device succeeded.
    """
    _check_writable(json_file)
    with _client(home) as client:
        view = client.forget(
            fleet,
            forget_class,
            method=method,
            hyperparameters_json=_hyperparameters(settings or []),
            seed=seed,
            max_ua=max_ua,
            max_ra_drop=max_ra_drop,
            expires_in_seconds=deadline_days * 86400,
            idempotency_key=uuid.uuid4().hex,
        )
        quiet = json_file is not None and str(json_file) == "-"
        if not quiet:
            print(
                f"request {view.request_id}: {len(view.executions)} device(s) of {fleet} will forget '{forget_class}'"
            )
        if wait:
            view = watch(client.watch_request(view.request_id), quiet=quiet)
        if json_file is not None:
            write_json(json_file, render.request_data(view))
        if wait and not all_succeeded(view):
            raise typer.Exit(1)


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


@device_app.command("add")
def device_add(
    document: Annotated[Path, typer.Argument(help="Enrolment document made by 'clue-agent init'.")],
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet to add the device to.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write what the device must trust.")],
    home: Home = None,
) -> None:
    """Admit a device; writes the document for 'clue-agent trust'."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from None
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder")
    with _client(home) as client:
        answer = client.add_device(fleet, text)
    _write(out, answer.trust_json)
    print(f"device {answer.device.device_id} is in fleet {fleet}; give {out} to 'clue-agent trust'")


@device_app.command("list")
def device_list(
    home: Home = None,
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """All devices."""
    with _client(home) as client:
        devices = client.list_devices(fleet)
    if as_json:
        print(json.dumps([_device_data(d) for d in devices], indent=2))
        return
    table = Table("device", "fleet", "online", "last seen", "model", "version", header_style="bold")
    for d in devices:
        seen = d.last_seen.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") if d.HasField("last_seen") else "never"
        table.add_row(d.device_id, d.fleet, "yes" if d.online else "no", seen, d.model_digest[:12], d.software_version)
    Console().print(table)


@request_app.command("show")
def request_show(
    request_id: Annotated[str, typer.Argument(metavar="ID")], home: Home = None, as_json: JsonFlag = False
) -> None:
    """One request and what every device answered."""
    with _client(home) as client:
        view = client.get_request(request_id)
    if as_json:
        print(json.dumps(render.request_data(view), indent=2))
    else:
        Console().print(render.request_table(view))


@request_app.command("list")
def request_list(
    home: Home = None,
    fleet: Annotated[str, typer.Option("--fleet", help="Only this fleet.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """All requests, newest first."""
    with _client(home) as client:
        views = client.list_requests(fleet)
    if as_json:
        rows = [render.request_data(view) for view in views]
        for row in rows:
            row.pop("devices")
        print(json.dumps(rows, indent=2))
        return
    table = Table("request", "fleet", "class", "state", "created", header_style="bold")
    for view in views:
        created = view.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(view.request_id, view.fleet, view.forget_class, render.request_state(view), created)
    Console().print(table)


@request_app.command("watch")
def request_watch(request_id: Annotated[str, typer.Argument(metavar="ID")], home: Home = None) -> None:
    """Show progress until every device has answered; exit code 0 only if all succeeded."""
    with _client(home) as client:
        if not all_succeeded(watch(client.watch_request(request_id))):
            raise typer.Exit(1)


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
    _check_writable(json_file)
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


def watch(views: Iterable[pb.RequestView], *, quiet: bool = False) -> pb.RequestView:
    """Show a stream of views live on a terminal, and the last one as a table."""
    console = Console(quiet=quiet)
    view = pb.RequestView()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for view in views:
            live.update(render.live_view(view))
    console.print(render.request_table(view))
    return view


def all_succeeded(view: pb.RequestView) -> bool:
    """True if every device of the request succeeded."""
    return all(render.execution_state(execution) == "SUCCEEDED" for execution in view.executions)


def write_json(path: Path, data: object) -> None:
    """Write ``data`` to ``path``, or to standard output for ``-``."""
    text = json.dumps(data, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        _write(path, text)


def _check_writable(json_file: Path | None) -> None:
    """Before anything is done: a result that cannot be kept afterwards would be lost."""
    if json_file is None or str(json_file) == "-":
        return
    if json_file.is_dir():
        raise UsageError(f"--json {json_file} is a folder: name a file in it")
    if not json_file.parent.is_dir():
        raise UsageError(f"--json {json_file}: {json_file.parent} is not a folder")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CoordinatorError(f"cannot write {path}: {error.strerror}") from None


def _device_data(device: pb.Device) -> dict[str, object]:
    return {
        "device_id": device.device_id,
        "fleet": device.fleet,
        "node_id": str(device.node_id),
        "online": device.online,
        "last_seen": device.last_seen.ToJsonString() if device.HasField("last_seen") else None,
        "classes": list(device.classes),
        "model_digest": device.model_digest,
        "software_version": device.software_version,
    }


def _hyperparameters(settings: list[str]) -> str:
    values: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, got '{setting}'")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return json.dumps(values, sort_keys=True) if values else ""


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
