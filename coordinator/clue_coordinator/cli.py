"""``clue-coordinator``: run the coordinator, and make fleets forget."""

import os
import re
import sys
from typing import Annotated

import click
import typer

import clue
from clue_coordinator import cli_approve, cli_fleets, cli_report, cli_server
from clue_coordinator.cli_certificate import certificate
from clue_coordinator.cli_devices import device_app
from clue_coordinator.cli_fleets import fleet_app
from clue_coordinator.cli_forget import forget
from clue_coordinator.cli_keys import key_app
from clue_coordinator.cli_log import log_app
from clue_coordinator.cli_options import CaFile, Server, TokenFile, print_error
from clue_coordinator.cli_requests import request_app
from clue_coordinator.cli_roots import root_app
from clue_coordinator.cli_tokens import token_app
from clue_coordinator.connection import Remote
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_protocol.errors import ProtocolError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.command()(cli_server.init)
app.command()(cli_server.serve)
app.command()(cli_server.console)
app.command()(cli_fleets.status)
app.command()(forget)
request_app.command("approve")(cli_approve.request_approve)
request_app.command("reject")(cli_approve.request_reject)
app.add_typer(request_app, name="request")
app.add_typer(device_app, name="device")
app.add_typer(fleet_app, name="fleet")
app.add_typer(token_app, name="token")
app.add_typer(key_app, name="key")
app.add_typer(root_app, name="root")
app.command()(cli_fleets.history)
app.add_typer(log_app, name="log")
app.command()(certificate)
app.command()(cli_report.report)
app.command()(cli_server.backup)
app.command()(cli_server.restore)
app.command()(cli_server.demo)


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
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        print_error(_usage(error))
        sys.exit(error.exit_code)
    except click.Abort:
        print_error("aborted")
        sys.exit(1)
    except (CoordinatorError, ProtocolError) as error:
        print_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except UnicodeEncodeError:
        print_error("an argument is not valid UTF-8")
        sys.exit(2)
    except OSError as error:
        # A full or failing disk can show up at any write.
        print_error(_os_error(error))
        sys.exit(1)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, and where to look."""
    text = " ".join(error.format_message().split()).rstrip(".")
    # Both click and typer add their suggestion.
    text = re.sub(r"( Did you mean [^?]*\?)\1+", r"\1", text)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return text
    return f"{text}{'' if text.endswith('?') else ':'} see 'clue-coordinator {_path(context)}--help'"


def _path(context: click.Context) -> str:
    names = []
    while context.parent is not None:
        names.append(f"{context.info_name} ")
        context = context.parent
    return "".join(reversed(names))


if __name__ == "__main__":
    main()
