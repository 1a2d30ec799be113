"""Options that all commands share, and the client that they make from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from click.core import ParameterSource

from clue_coordinator.config import default_home
from clue_coordinator.connection import CA_VARIABLE, SERVER_VARIABLE, TOKEN_VARIABLE, Remote, connection_for
from clue_coordinator.errors import UsageError

if TYPE_CHECKING:
    from clue_coordinator.client import OperatorClient

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The coordinator's folder [default: $CLUE_COORDINATOR_HOME or ~/.clue/coordinator]."),
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
