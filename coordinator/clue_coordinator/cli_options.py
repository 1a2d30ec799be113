"""Options that all commands share, and the client that they make from them."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from click.core import ParameterSource

from clue_coordinator.cli_values import state_words
from clue_coordinator.config import default_home
from clue_coordinator.connection import CA_VARIABLE, SERVER_VARIABLE, TOKEN_VARIABLE, Remote, connection_for
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_protocol.errors import ProtocolError

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

    from clue_coordinator.client import OperatorClient

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The coordinator's folder [default: $CLUE_COORDINATOR_HOME or ~/.clue/coordinator]."),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file ('-': standard output).")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="So many at most.")]
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


def command_line(home: Path | None, *words: str) -> str:
    """A command for the same coordinator, to be typed again; what the environment says is left to it."""
    root = click.get_current_context().find_root()
    given = []
    for name, option in (("server", "--server"), ("ca_file", "--ca"), ("token_file", "--token-file")):
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given += [option, str(root.params[name])]
    return shlex.join(["clue-coordinator", *given, *words, *(["--home", str(home)] if home else [])])


def print_error(error: object) -> None:
    """The one line for an error."""
    print(f"clue-coordinator: {error}", file=sys.stderr)


def print_json(data: object) -> None:
    """``data`` on standard output."""
    print(json.dumps(data, indent=2))


def print_result(as_json: bool, data: object, line: str) -> None:
    """What a command did: ``data`` for a program, or ``line`` for a person."""
    if as_json:
        print_json(data)
    else:
        print(line)


def write_json(path: Path, data: object) -> None:
    """Write ``data`` to ``path``, or to standard output for ``-``."""
    if str(path) == "-":
        print_json(data)
    else:
        write_file(path, json.dumps(data, indent=2) + "\n")


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

# The shell waits for it, and so does whoever pressed the key.
_COMPLETION_SECONDS = 2.0
_COMPLETIONS = 200


def complete_fleet(context: typer.Context, incomplete: str) -> list[str]:
    """Names of fleets."""
    return _completions(context, incomplete, lambda client: (fleet.name for fleet in client.list_fleets()))


def complete_device(context: typer.Context, incomplete: str) -> list[str]:
    """Names of devices."""
    return _completions(context, incomplete, lambda client: (device.device_id for device in client.list_devices()))


def complete_request(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of the newest requests."""
    return _completions(context, incomplete, lambda client: (r.request_id for r in client.list_requests(limit=100)))


def complete_states(states: "EnumTypeWrapper") -> Callable[[str], list[str]]:
    """Names of states."""
    known = [word.lower() for word in state_words(states.keys())]
    return lambda incomplete: [word for word in known if word.startswith(incomplete.lower())]


def _completions(
    context: click.Context, incomplete: str, ask: Callable[["OperatorClient"], Iterable[str]]
) -> list[str]:
    # The callbacks did not run, and what stands before on the line is text.
    params, home = context.find_root().params, context.params.get("home")
    ca_file, token_file = (Path(params[name]) if params.get(name) else None for name in ("ca_file", "token_file"))
    remote = Remote() if home else Remote(params.get("server") or "", ca_file, token_file)
    until = time.monotonic() + _COMPLETION_SECONDS
    try:
        from clue_coordinator.client import OperatorClient

        where = connection_for(home_folder(Path(home) if home else None), remote)
        with OperatorClient(where, seconds=_COMPLETION_SECONDS) as client:
            names = takewhile(lambda _: time.monotonic() < until, ask(client))
            return list(islice((name for name in names if name.startswith(incomplete)), _COMPLETIONS))
    except (CoordinatorError, ProtocolError, OSError, UnicodeError, RuntimeError):
        return []
