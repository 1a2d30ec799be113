"""Options that all commands share, and the client that they make from them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from click.core import ParameterSource

from clue_coordinator.config import default_home
from clue_coordinator.connection import CA_VARIABLE, SERVER_VARIABLE, TOKEN_VARIABLE, Remote, connection_for
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_protocol.errors import ProtocolError

if TYPE_CHECKING:
    from clue_coordinator.client import OperatorClient

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The coordinator's folder [default: $CLUE_COORDINATOR_HOME or ~/.clue/coordinator]."),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file ('-': standard output).")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Server = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", envvar=SERVER_VARIABLE, help="A coordinator elsewhere.")
]
CaFile = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", envvar=CA_VARIABLE, help="Its certificate authority, pki/ca.pem.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", envvar=TOKEN_VARIABLE, help="Token [default: the home's own]."),
]


def home_folder(home: Path | None) -> Path:
    """The folder that ``--home`` or the environment names."""
    return home.expanduser() if home is not None else default_home()


def operator_client(home: Path | None) -> "OperatorClient":
    """A client of the coordinator that the command line or the environment names.

    ``--server`` stands before the command (``clue-coordinator --server ... request list``); ``--home`` after it is
    nearer and wins over a server that only the environment names.
    """
    from clue_coordinator.client import OperatorClient

    root = click.get_current_context().find_root()
    remote: Remote = root.obj if isinstance(root.obj, Remote) else Remote()
    if home is not None and remote.server:
        if root.get_parameter_source("server") is ParameterSource.COMMANDLINE:
            raise UsageError("--server and --home name two coordinators: give one of them")
        remote = Remote()
    return OperatorClient(connection_for(home_folder(home), remote))


def write_json(path: Path, data: object) -> None:
    """Write ``data`` to ``path``, or to standard output for ``-``."""
    text = json.dumps(data, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_file(path, text)


def write_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; CoordinatorError if that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CoordinatorError(f"cannot write {path}: {error.strerror}") from None


def check_writable(json_file: Path | None) -> None:
    """Before anything is done: a result that cannot be kept afterwards would be lost."""
    if json_file is None or str(json_file) == "-":
        return
    if json_file.is_dir():
        raise UsageError(f"--json {json_file} is a folder: name a file in it")
    if not json_file.parent.is_dir():
        raise UsageError(f"--json {json_file}: {json_file.parent} is not a folder")


# Shell completion: what the coordinator knows, and nothing at all if it cannot be asked.


def complete_fleet(incomplete: str) -> list[str]:
    """Names of fleets."""
    return _completions(incomplete, lambda client: [fleet.name for fleet in client.list_fleets()])


def complete_device(incomplete: str) -> list[str]:
    """Names of devices."""
    return _completions(incomplete, lambda client: [device.device_id for device in client.list_devices()])


def complete_request(incomplete: str) -> list[str]:
    """Ids of the newest requests."""
    return _completions(incomplete, lambda client: [view.request_id for view in client.list_requests(limit=100)])


def _completions(incomplete: str, ask: Callable[["OperatorClient"], list[str]]) -> list[str]:
    try:
        with operator_client(None) as client:
            return [name for name in ask(client) if name.startswith(incomplete)]
    except (CoordinatorError, ProtocolError):
        return []
