"""Commands on the coordinator's own machine: ``init``, ``serve``, ``backup``, ``restore``, ``demo``."""

import ipaddress
import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from clue_coordinator.cli_options import Home, JsonFile, check_writable, write_json
from clue_coordinator.cli_options import home_folder as _home
from clue_coordinator.cli_report import check_target
from clue_coordinator.config import CoordinatorConfig, LedgerConfig, load_config
from clue_coordinator.errors import CoordinatorError, UsageError

Port = Annotated[int, typer.Option(min=1, max=65535)]


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
    enrolment_port: Port = 9444,
    metrics_port: Port = 9464,
    console_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the web console; 0 for none.")] = 9465,
    console_listen: Annotated[
        str, typer.Option("--console-listen", help="IP address of the web console; TLS unless it is loopback.")
    ] = "127.0.0.1",
    ledger_url: Annotated[
        str,
        typer.Option("--ledger-url", help="postgresql+psycopg://... [default: an SQLite file in the folder]."),
    ] = "",
) -> None:
    """Make an installation: signing key, certificate authority, ledger, configuration."""
    from clue_coordinator.setup import initialise

    ports = [superlink_port, operator_port, enrolment_port, metrics_port, *([console_port] if console_port else [])]
    if len(set(ports)) < len(ports):
        raise UsageError("the ports must differ")
    for option, value in (("--operator-listen", operator_listen), ("--console-listen", console_listen)):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise UsageError(f"{option} takes an IP address, got '{value}'") from None
    config = CoordinatorConfig(
        hosts=tuple(host) if host else ("127.0.0.1",),
        listen=listen,
        operator_listen=operator_listen,
        superlink_port=superlink_port,
        operator_port=operator_port,
        enrolment_port=enrolment_port,
        metrics_port=metrics_port,
        console_port=console_port,
        console_listen=console_listen,
        ledger=LedgerConfig(url=ledger_url),
        home=_home(home).resolve(),
    )
    initialise(config)
    print(f"coordinator is set up in {config.home}")
    print("next: clue-coordinator serve")


def serve(home: Home = None) -> None:
    """Run the coordinator until it is stopped."""
    from clue_coordinator.daemon import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # What it has to say to us is for those who write migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    run(load_config(_home(home)))


def console(home: Home = None) -> None:
    """Print a link that signs the owner of this home into the web console, once.

    The coordinator must run. The link holds for two minutes; the session that it opens may look and change nothing.
    """
    from clue_coordinator.client import OperatorClient
    from clue_coordinator.connection import Connection
    from clue_coordinator.console.codes import make_code

    config = load_config(_home(home))
    if not config.console_port:
        raise CoordinatorError(f"the console is switched off: set console_port in {config.home}/coordinator.toml")
    connection = Connection.local(config)
    # Whoever listens on the console's port need not be our coordinator; the operator API proves that it is.
    with OperatorClient(connection) as client:
        client.server_info()
    print(f"{config.console_url}login?code={make_code(connection.token, time.time())}")


def backup(
    out: Annotated[Path, typer.Option("--out", help="New file to write the ledger to.")], home: Home = None
) -> None:
    """Write the ledger to a file; the coordinator may be running."""
    from clue_coordinator.backup import back_up

    summary = back_up(load_config(_home(home)), out)
    print(f"{out}: {sum(summary.rows.values())} rows, sha256 {summary.sha256}")


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
    if summary.rows.get("request"):
        print("devices may know later requests than it does: raise the epoch of its fleets (docs/ledger.md, Numbers)")
    if not knows_local_token(config):
        print("this home's token is not in it: 'clue-coordinator token recover' makes one that is")


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
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Report to write [default: clue-demo-report.html, in --keep]."),
    ] = None,
) -> None:
    """A whole fleet on this machine forgets a class of real images, beside the Retrain oracle."""
    from clue_coordinator.demo import run_demo

    if data not in ("auto", "digits", "cifar10"):
        raise UsageError(f"--data must be auto, digits or cifar10, got '{data}'")
    check_writable(json_file)
    if report is not None:
        check_target(report, "--report")
    result = run_demo(
        devices=devices,
        data=data,
        forget_class=forget_class,
        method=method,
        keep=keep,
        oracle=oracle,
        report=report,
    )
    if json_file is not None:
        write_json(json_file, result)
    if any(d["state"] != "SUCCEEDED" for d in result["devices"]):
        raise typer.Exit(1)
