"""``clue-coordinator root``: who may do what in this installation, and the ceremony that changes it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from securesystemslib.signer import Signer

from clue_coordinator.cli_keys import PublicKeyFile, open_key
from clue_coordinator.cli_options import Home, JsonFlag, complete_fleet, home_folder, operator_client, print_result
from clue_coordinator.cli_values import parse_duration
from clue_coordinator.config import CoordinatorConfig, load_config
from clue_coordinator.errors import ConfigError, CoordinatorError, UsageError
from clue_coordinator.public_keys import read_public_key
from clue_coordinator.role_keys import holds
from clue_coordinator.root_drafts import Changes, draft
from clue_coordinator.root_files import RootFile, read_root_file, trusted_root
from clue_coordinator.root_text import change_lines, root_data, root_lines
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.trust import ROOT_TYPE, Role, add_signature
from clue_protocol.trust.errors import RootContentError

if TYPE_CHECKING:
    # It brings gRPC, which a command that only reads files need not wait for.
    from clue_coordinator.client import OperatorClient

root_app = typer.Typer(no_args_is_help=True, help="Who may do what: look at it and change it.")

Expires = Annotated[str, typer.Option("--expires-in", help="Devices stop then unless there is a newer root.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", metavar="FILE", help="A root of your own: what comes must follow it.")
]
Draft = Annotated[Path, typer.Argument(metavar="FILE", help="Draft made by 'root draft'.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Approver = Annotated[
    list[str] | None,
    typer.Option("--approver", metavar="FILE", help="Public key of one who decides; may be repeated."),
]
Require = Annotated[int, typer.Option("--require", min=0, help="So many of them must sign a request [default: 1].")]


@root_app.command("show")
def root_show(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A root or a draft [default: the newest].")
    ] = None,
    home: Home = None,
    as_json: JsonFlag = False,
) -> None:
    """A root: its holders, who decides over each fleet, until when, and what was revoked."""
    if path is not None:
        found = read_root_file(path)
    else:
        with operator_client(home) as client:
            found = _newest(client)
    print_result(as_json, root_data(found, found.names), "\n".join(root_lines(found, found.names)))


@root_app.command("export")
def root_export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="New file, such as root.dsse.")],
    home: Home = None,
    version: Annotated[int, typer.Option("--version", min=0, help="[default: the newest]")] = 0,
) -> None:
    """Write a root to a file: to compare with later, and to verify certificates with."""
    if path.exists():
        raise UsageError(f"{path} exists already")
    with operator_client(home) as client:
        found = RootFile(client.get_root(version).envelope)
    found.write(path)
    print(f"{path}: root version {found.root.version}, sha256 {found.digest.hex()}")


@root_app.command("draft")
def root_draft(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="New file for the draft.")],
    home: Home = None,
    holder: Annotated[
        list[str] | None,
        typer.Option("--holder", metavar="FILE", help="Public key of a root holder; all of them; may be repeated."),
    ] = None,
    threshold: Annotated[int, typer.Option("--threshold", min=0, help="So many holders must sign a root.")] = 0,
    fleet: Annotated[
        str, typer.Option("--fleet", help="Fleet whose approvers are named.", autocompletion=complete_fleet)
    ] = "",
    approver: Approver = None,
    require: Require = 0,
    revoke: Annotated[
        list[str] | None, typer.Option("--revoke", metavar="KEYID", help="Key that may never sign again; repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why it is revoked.")] = "",
    raise_epoch: Annotated[
        list[str] | None,
        typer.Option("--raise-epoch", metavar="FLEET", help="Begin the numbers of its requests anew."),
    ] = None,
    rotate_timestamp: Annotated[
        bool, typer.Option("--rotate-timestamp", help="A new key signs the time; made in the home folder.")
    ] = False,
    expires_in: Expires = "365d",
    as_json: JsonFlag = False,
) -> None:
    """Write the next root for its holders to sign; what is not named stays. Nothing is changed by this."""
    if path.exists():
        raise UsageError(f"{path} exists already")
    if reason and not revoke:
        raise UsageError("--reason says why a key is revoked: name it with --revoke")
    if (threshold and not holder) or ((approver or require) and not fleet):
        raise UsageError("--threshold goes with --holder, and --approver and --require go with --fleet")
    named: dict[str, str] = {}
    holders = _role(holder, threshold, named) if holder else None
    role = _role(approver, require, named) if approver else _own_role(home) if fleet else None
    changes = Changes(
        holders=holders,
        timestamp=Role((_next_timestamp(home).public_key,)) if rotate_timestamp else None,
        fleets={fleet: role} if role is not None else {},
        revoke=dict.fromkeys(revoke or [], reason),
        raise_epoch=raise_epoch or [],
    )
    with operator_client(home) as client:
        made = _drafted(client, changes, expires_in, named)
    made.write(path)
    print_result(as_json, root_data(made, made.names), f"{path}: {_todo(made)}\n{_changes(made)}")


@root_app.command("sign")
def root_sign(
    path: Draft,
    home: Home = None,
    key: Annotated[
        str, typer.Option("--key", metavar="FILE|URI", help="Key of a holder [default: the home folder's root key].")
    ] = "",
    public_key: PublicKeyFile = None,
    root: RootOption = None,
    yes: Yes = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a draft changes, and sign it with a holder's key, on this machine and without a coordinator."""
    file = read_root_file(path)
    base = file.verified_base()
    if root is not None and trusted_root(root).digest != base.digest:
        raise CoordinatorError(f"the draft does not follow {root}: it follows {base.digest.hex()[:16]}")
    if not as_json:
        print(_changes(file))
    if not yes and not typer.confirm("sign this?", default=False, err=True):
        raise typer.Exit(1)
    signer = open_key(key, public_key) if key else _home_root_key(home)
    if not (holds(base.root.root, signer.public_key) or holds(file.root.root, signer.public_key)):
        raise CoordinatorError(f"key {signer.public_key.keyid[:16]} holds neither this root nor the one before")
    signed = file.with_signatures(add_signature(file.envelope, ROOT_TYPE, signer))
    signed.write(path)
    print_result(as_json, root_data(signed, signed.names), f"{path}: {_todo(signed)}")


@root_app.command("publish")
def root_publish(
    path: Draft,
    home: Home = None,
    delete_home_key: Annotated[
        bool,
        typer.Option("--delete-home-key", help="Delete the home folder's root key if it holds the root no more."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a signed draft the newest root; devices take it with their next request."""
    file = read_root_file(path)
    with operator_client(home) as client:
        client.publish_root(file.envelope, file.names)
    print_result(as_json, root_data(file, file.names), f"root version {file.root.version} is published")
    if (config := _config(home)) is not None and config.root_key.exists():
        left = load_signing_key(config.root_key)
        if not holds(file.root.root, left.public_key):
            if delete_home_key:
                config.root_key.unlink()
            what = "was deleted" if delete_home_key else "holds the root no more: delete it with --delete-home-key"
            print(f"the root key {config.root_key} {what}", end="\n" if not as_json else "", flush=True)


@root_app.command("renew")
def root_renew(home: Home = None, expires_in: Expires = "365d", as_json: JsonFlag = False) -> None:
    """The same root with a new date, signed with the home folder's root key: draft, sign and publish in one."""
    made = publish_at_once(home, Changes(), expires_in)
    line = f"root version {made.root.version} is published; it expires in {expires_in}"
    print_result(as_json, root_data(made, made.names), line)


def publish_at_once(
    home: Path | None, changes: Changes, expires_in: str = "365d", names: Mapping[str, str] | None = None
) -> RootFile:
    """Draft, sign with the home's root key, and publish; CoordinatorError if that key alone may not."""
    with operator_client(home) as client:
        made = _drafted(client, changes, expires_in, names or {})
        base, config = made.verified_base().root.root, _config(home)
        signer = load_signing_key(config.root_key) if config is not None and config.root_key.exists() else None
        if signer is None or base.threshold > 1 or not holds(base, signer.public_key):
            raise CoordinatorError(
                "no root key in a home folder here may sign roots by itself: "
                "use 'root draft', 'root sign' and 'root publish'"
            )
        signed = made.with_signatures(add_signature(made.envelope, ROOT_TYPE, signer))
        client.publish_root(signed.envelope, signed.names)
        return signed


def fleet_approvers(
    name: Annotated[str, typer.Argument(help="Name of the fleet.", autocompletion=complete_fleet)],
    home: Home = None,
    approver: Approver = None,
    require: Require = 0,
    as_json: JsonFlag = False,
) -> None:
    """Name who decides over a fleet's requests, in the next root; without --approver the coordinator by itself.

    For installations whose root key is in the home folder; others use 'root draft'.
    """
    if require and not approver:
        raise UsageError("--require goes with --approver")
    named: dict[str, str] = {}
    role = _role(approver, require, named) if approver else _own_role(home)
    made = publish_at_once(home, Changes(fleets={name: role}), names=named)
    line = f"root version {made.root.version} is published: {role.threshold} of {len(role.keys)} decide over {name}"
    print_result(as_json, root_data(made, made.names), line)


def read_approvers(files: Sequence[str]) -> list[str]:
    """Public keys as the operator API takes them."""
    return [read_public_key(Path(file)).to_json() for file in files]


def _drafted(client: "OperatorClient", changes: Changes, expires_in: str, named: Mapping[str, str]) -> RootFile:
    newest = _newest(client)
    trusted = newest.trusted()
    now = int(time.time()) * 10**9
    expires = now + int(parse_duration("--expires-in", expires_in)) * 10**9
    made = draft(trusted, changes, now, expires)
    return RootFile(made.to_envelope(), trusted.envelope, {**newest.names, **named})


def _newest(client: "OperatorClient") -> RootFile:
    answer = client.get_root()
    return RootFile(answer.envelope, names=dict(answer.names))


def _role(files: Sequence[str] | None, threshold: int, named: dict[str, str]) -> Role:
    found = [read_public_key(Path(file)) for file in files or []]
    named.update({str(item.key.keyid): item.name for item in found if item.name})
    try:
        return Role(tuple(item.key for item in found), threshold or 1)
    except RootContentError as error:
        raise UsageError(str(error)) from None


def _own_role(home: Path | None) -> Role:
    config = _config(home)
    if config is None:
        raise UsageError("name who decides over the fleet with --approver: the coordinator's own key is not here")
    return Role((load_signing_key(config.request_key).public_key,))


def _home_root_key(home: Path | None) -> Signer:
    config = _config(home)
    if config is None or not config.root_key.exists():
        raise UsageError("there is no root key in a home folder here: name a holder's key with --key")
    return load_signing_key(config.root_key)


def _next_timestamp(home: Path | None) -> Signer:
    config = load_config(home_folder(home))
    path = config.next_timestamp_key
    return load_signing_key(path) if path.exists() else create_signing_key(path)


def _config(home: Path | None) -> CoordinatorConfig | None:
    try:
        return load_config(home_folder(home))
    except ConfigError:
        return None


def _changes(file: RootFile) -> str:
    old, new = file.verified_base().root, file.root
    head = f"root version {new.version}, sha256 {file.digest.hex()}, changes:"
    return "\n".join([head, *(f"  {line}" for line in change_lines(old, new, file.names))])


def _todo(file: RootFile) -> str:
    """How many signatures there are, and how many there must be."""
    base, root, signed = file.verified_base().root.root, file.root.root, set(file.signed_by())
    parts = []
    for what, role in {"the last root": base, "the new one": root}.items():
        have = len(signed & {str(key.keyid) for key in role.keys})
        parts.append(f"{have} of {role.threshold} signature(s) of holders of {what}")
    ready = all(len(signed & {str(key.keyid) for key in role.keys}) >= role.threshold for role in (base, root))
    return " and ".join(parts) + ("; ready for 'root publish'" if ready else "; to be signed with 'root sign'")
