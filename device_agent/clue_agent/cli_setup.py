"""``clue-agent init`` and ``clue-agent enroll``: make a device, with or without a coordinator that can be reached."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clue_agent.config import AgentConfig, WorkConfig, load_config
from clue_agent.retention import VaultLimits
from clue_protocol.documents import check_labels, check_name
from clue_protocol.errors import DocumentError

Model = Annotated[Path, typer.Option("--model", help="Model bundle to start with.")]
Holdout = Annotated[
    Path | None,
    typer.Option("--holdout", help="The same shape: images only used to measure. [default: a share of the samples]"),
]
KeepOriginals = Annotated[
    bool, typer.Option("--keep-originals", help="Leave images in the samples folder after they were sealed.")
]
ShareUpdates = Annotated[
    bool,
    typer.Option("--share-updates", help="Hand out the change of the model where a request asks for it, for others."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="KEY=VALUE",
        help="What to tell the coordinator of this device; repeatable. [default: timezone and hw, where known]",
    ),
]
Home = Annotated[Path, typer.Option("--home", help="Folder to make.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=64, help="CPU threads for unlearning.")]
_DEFAULT_HOME = Path("~/.clue/agent")


def init(
    device: Annotated[str, typer.Option("--device", help="Name of this device.")],
    model: Model,
    samples: Annotated[Path, typer.Option("--samples", help="Folder <class>/*.png|jpg: what may be used to forget.")],
    holdout: Holdout = None,
    keep_originals: KeepOriginals = False,
    share_updates: ShareUpdates = False,
    label: Labels = None,
    home: Home = _DEFAULT_HOME,
    threads: Threads = 1,
) -> None:
    """Make this device's keys and home without a coordinator; prints where the enrolment document is."""
    from clue_agent.setup import initialise

    _check_device("--device", device)
    if not samples.is_dir():
        raise typer.BadParameter(f"{samples} is not a folder", param_hint="--samples")
    config = _config(device, samples, holdout, keep_originals, share_updates, _labels(label or []), home, threads)
    initialise(config, model)
    _tell(config)
    print(f"next: give {config.enrolment} to 'clue-coordinator device add'")


def enroll(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From 'clue-coordinator device invite'; - reads it.")],
    model: Annotated[Path | None, typer.Option("--model", help="Model bundle to start with.")] = None,
    device: Annotated[
        str,
        typer.Option("--device-id", "--device", help="Name of this device. [default: the one that the token names]"),
    ] = "",
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Folder <class>/*.png|jpg: what may be used to forget. [default: HOME/samples]"),
    ] = None,
    holdout: Holdout = None,
    keep_originals: KeepOriginals = False,
    share_updates: ShareUpdates = False,
    label: Labels = None,
    home: Home = _DEFAULT_HOME,
    threads: Threads = 1,
) -> None:
    """Make this device's keys and home, and join the fleet that the token is for. May be repeated."""
    from clue_agent.enroll import bundle_or_error, enroll
    from clue_agent.setup import initialise
    from clue_protocol.invitation import Invitation

    # gRPC's own log lines would stand beside our one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    invitation = Invitation.from_token(sys.stdin.read(4096) if token == "-" else token)  # noqa: S105
    folder = home.expanduser().resolve()
    existing = load_config(folder / "agent.toml") if (folder / "agent.toml").exists() else None
    if device:
        _check_device("--device-id", device)
    if samples is not None and not samples.is_dir():
        raise typer.BadParameter(f"{samples} is not a folder", param_hint="--samples")
    labels = _labels(label or [])
    bundle = None if existing is not None else bundle_or_error(model, folder)

    def make(name: str) -> AgentConfig:
        assert bundle is not None  # noqa: S101
        images = samples if samples is not None else folder / "samples"
        config = _config(name, images, holdout, keep_originals, share_updates, labels, home, threads)
        initialise(config, bundle, resumable=True)
        if samples is None:
            images.mkdir(exist_ok=True)
        return config

    config, trust = enroll(invitation, folder, existing, device, make)
    if existing is None:
        _tell(config)
    print(f"device {config.device_id} is in fleet {trust.fleet} at {trust.superlink}")
    where = "" if folder == _DEFAULT_HOME.expanduser().resolve() else f" --config {folder / 'agent.toml'}"
    print(f"next: clue-agent run{where}")


def _config(
    device: str,
    samples: Path,
    holdout: Path | None,
    keep_originals: bool,
    share_updates: bool,
    labels: dict[str, str],
    home: Path,
    threads: int,
) -> AgentConfig:
    if holdout is not None and not holdout.is_dir():
        raise typer.BadParameter(f"{holdout} is not a folder", param_hint="--holdout")
    return AgentConfig(
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


def _tell(config: AgentConfig) -> None:
    print(f"device {config.device_id} is set up in {config.home}")
    if config.labels:
        print("labels: " + ", ".join(f"{key}={value}" for key, value in sorted(config.labels.items())))
    if not config.keep_originals:
        print(f"images put into {config.samples} are sealed and then removed there; --keep-originals leaves them")


def _check_device(option: str, name: str) -> None:
    try:
        check_name("device", name)
    except DocumentError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _labels(given: list[str]) -> dict[str, str]:
    from clue_agent.system_labels import system_labels

    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--label")
        if labels.setdefault(key, value) != value:
            raise typer.BadParameter(f"{key} is given as {labels[key]!r} and as {value!r}", param_hint="--label")
    labels = system_labels() | labels
    try:
        check_labels(labels)
    except DocumentError as error:
        raise typer.BadParameter(str(error), param_hint="--label") from None
    return labels
