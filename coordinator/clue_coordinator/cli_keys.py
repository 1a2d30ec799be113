"""``clue-coordinator key``: keys of people, in files under a passphrase. No coordinator is needed."""

import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer

from clue_coordinator.cli_options import JsonFlag, print_result
from clue_coordinator.errors import UsageError
from clue_coordinator.public_keys import PublicKey, public_path, read_public_key
from clue_coordinator.root_text import key_data
from clue_protocol.documents import check_name
from clue_protocol.errors import DocumentError

PASSPHRASE_VARIABLE = "CLUE_KEY_PASSPHRASE"  # noqa: S105
key_app = typer.Typer(no_args_is_help=True, help="Make and show the keys of people.")

KeySource = Annotated[
    str, typer.Option("--key", metavar="FILE|URI", help="Key file, or hsm:, awskms:, gcpkms:, azurekms:, hv:, ...")
]
PublicKeyFile = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="FILE", help="Its public part [default: beside the key file]."),
]


@key_app.command("create")
def key_create(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="New file for the private key, such as alice.pem.")],
    name: Annotated[str, typer.Option("--name", help="What people call it [default: as the file].")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make an Ed25519 key: FILE under a passphrase, which never leaves this machine, and FILE.pub for others.

    The passphrase is asked for, or taken from CLUE_KEY_PASSPHRASE.
    """
    from clue_protocol.trust import create_encrypted_key

    public = public_path(path)
    try:
        called = check_name("key", name or path.stem)
    except DocumentError as error:
        raise UsageError(f"{error}; give it one with --name") from None
    for there in (path, public):
        if there.exists():
            raise UsageError(f"{there} exists already: a key is never overwritten")
    signer = create_encrypted_key(path, _passphrase(f"passphrase for {path}", twice=True))
    found = PublicKey(signer.public_key, called)
    try:
        public.write_text(found.to_json(), encoding="utf-8")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    line = f"key {found.key.keyid[:16]} of {called}: keep {path}, give {public} to whoever drafts the root"
    print_result(as_json, key_data(found.key, called), line)


@key_app.command("show")
def key_show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Public key, or the private key beside it.")],
    as_json: JsonFlag = False,
) -> None:
    """Whose key it is, and its key id."""
    try:
        private = b"PRIVATE KEY-----" in path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    found = read_public_key(public_path(path) if private else path)
    line = f"{found.name or 'no name'}: {found.key.scheme} key {found.key.keyid}"
    print_result(as_json, key_data(found.key, found.name), line)


def open_key(source: str, public_key: Path | None) -> Signer:
    """The signer that ``--key`` and ``--public-key`` name; asks for its passphrase or PIN."""
    from clue_protocol.trust import open_signer

    is_uri = urlsplit(source).scheme in SIGNER_FOR_URI_SCHEME
    if public_key is None and not is_uri and public_path(Path(source)).exists():
        public_key = public_path(Path(source))
    if public_key is None and is_uri:
        raise UsageError(f"--key {urlsplit(source).scheme}:... needs --public-key FILE, a public key in JSON or PEM")
    expected = read_public_key(public_key).key if public_key is not None else None
    return open_signer(source, expected, lambda what: _passphrase(f"{what} of {source.split('?')[0]}"))


def _passphrase(prompt: str, *, twice: bool = False) -> str:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError(f"there is no terminal to ask for the {prompt}: set {PASSPHRASE_VARIABLE}")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))
