"""``clue-agent``: set up and run the agent of one device."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

import clue
from clue_agent import cli_operation
from clue_agent.config import AgentConfig, WorkConfig, load_config
from clue_agent.errors import AgentError
from clue_agent.retention import VaultLimits
from clue_protocol.documents import check_labels, check_name
from clue_protocol.errors import DocumentError, ProtocolError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(cli_operation.app)

Config = Annotated[Path, typer.Option("--config", help="The agent's configuration file.")]
_DEFAULT_CONFIG = Path("~/.clue/agent/agent.toml")


@app.command()
def init(
    device: Annotated[str, typer.Option("--device", help="Name of this device.")],
    model: Annotated[Path, typer.Option("--model", help="Model bundle to start with.")],
    samples: Annotated[Path, typer.Option("--samples", help="Folder <class>/*.png|jpg: what may be used to forget.")],
    holdout: Annotated[
        Path | None,
        typer.Option(
            "--holdout", help="The same shape: images only used to measure. [default: a share of the samples]"
        ),
    ] = None,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Leave images in the samples folder after they were sealed.")
    ] = False,
    share_updates: Annotated[
        bool,
        typer.Option(
            "--share-updates", help="Hand out the change of the model where a request asks for it, for other devices."
        ),
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="KEY=VALUE",
            help="What to tell the coordinator of this device; repeatable. [default: timezone and hw, where known]",
        ),
    ] = None,
    home: Annotated[Path, typer.Option("--home", help="Folder to make.")] = Path("~/.clue/agent"),
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, help="CPU threads for unlearning.")] = 1,
) -> None:
    """Make this device's keys and home; prints where the enrolment document is."""
    from clue_agent.setup import initialise
    from clue_agent.system_labels import system_labels

    try:
        check_name("device", device)
    except DocumentError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    for name, folder in (("--samples", samples), ("--holdout", holdout)):
        if folder is not None and not folder.is_dir():
            raise typer.BadParameter(f"{folder} is not a folder", param_hint=name)
    labels = system_labels() | _labels(label or [])
    try:
        check_labels(labels)
    except DocumentError as error:
        raise typer.BadParameter(str(error), param_hint="--label") from None
    config = AgentConfig(
        device_id=device,
        samples=samples.resolve(),
        holdout=holdout.resolve() if holdout is not None else None,
        keep_originals=keep_originals,
        share_updates=share_updates,
        labels=labels,
        vault=VaultLimits(holdout_share=0.0 if holdout is not None else VaultLimits().holdout_share),
        work=WorkConfig(threads=threads),
        home=home.expanduser().resolve(),
    )
    initialise(config, model)
    print(f"device {device} is set up in {config.home}")
    if labels:
        print("labels: " + ", ".join(f"{key}={value}" for key, value in sorted(labels.items())))
    if not keep_originals:
        print(f"images put into {config.samples} are sealed and then removed there; --keep-originals leaves them")
    print(f"next: give {config.enrolment} to 'clue-coordinator device add'")


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


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--label")
        if labels.setdefault(key, value) != value:
            raise typer.BadParameter(f"{key} is given as {labels[key]!r} and as {value!r}", param_hint="--label")
    return labels


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
