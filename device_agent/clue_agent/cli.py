"""``clue-agent``: set up and run the agent of one device."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

import clue
from clue_agent import cli_operation, cli_setup
from clue_agent.config import load_config
from clue_agent.errors import AgentError
from clue_protocol.errors import ProtocolError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.command()(cli_setup.init)
app.command()(cli_setup.enroll)
app.add_typer(cli_operation.app)

Config = Annotated[Path, typer.Option("--config", help="The agent's configuration file.")]
_DEFAULT_CONFIG = Path("~/.clue/agent/agent.toml")


@app.command()
def trust(
    document: Annotated[Path, typer.Argument(help="Answer of 'clue-coordinator device add'.")],
    config: Config = _DEFAULT_CONFIG,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Give up what was pinned before: for another installation, or where it is damaged. "
            "Old requests of the same installation count again then.",
        ),
    ] = False,
) -> None:
    """Pin the root of an installation, and the coordinator's address."""
    from clue_agent.setup import save_trust
    from clue_agent.trust_files import pinned_root

    loaded = load_config(config.expanduser())
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from None
    trusted = save_trust(loaded, text, replace=replace)
    root = pinned_root(trusted)
    print(f"device {loaded.device_id} trusts fleet {trusted.fleet} at {trusted.superlink}")
    print(f"root version {root.root.version}, SHA-256 {root.digest.hex()}: compare it with the coordinator's")


@app.command()
def run(config: Config = _DEFAULT_CONFIG) -> None:
    """Run the agent until it is stopped."""
    from clue_agent.daemon import run as run_daemon

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    run_daemon(load_config(config.expanduser()))


@app.command("update-model")
def update_model(
    bundle: Annotated[Path, typer.Argument(help="Bundle of the new base model.")],
    config: Config = _DEFAULT_CONFIG,
) -> None:
    """Bring a new base model live, once it has forgotten what this device has forgotten."""
    from clue_agent.status import update_model as ask

    answer = ask(load_config(config.expanduser()), bundle)
    names = ", ".join(answer.to_forget)
    print(
        f"model {answer.model_digest[:12]} is taken in" + (f"; before it goes live it forgets {names}" if names else "")
    )


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(clue.__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: known errors become one line and exit code 1."""
    try:
        app()
    except (AgentError, ProtocolError) as error:
        print(f"clue-agent: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        # A full or failing card can show up at any write.
        where = f"{error.filename}: " if error.filename else ""
        print(f"clue-agent: {where}{error.strerror or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
