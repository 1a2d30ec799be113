"""``clue-coordinator log``: the transparency log, and what shows others what is in it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from clue_coordinator.cli_options import Home, JsonFlag, operator_client, print_json, print_result, write_file
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.plain import log_check_data, log_data

if TYPE_CHECKING:
    from clue_protocol.tlog import NoteKey

log_app = typer.Typer(no_args_is_help=True, help="The transparency log: checkpoints, proofs, witnesses.")

Out = Annotated[Path | None, typer.Option("--out", help="Write it to this file [default: standard output].")]
Vkey = Annotated[
    str, typer.Option("--log-key", metavar="VKEY", help="The log's verifier key, or a file that holds it.")
]
T = TypeVar("T")


@log_app.command("show")
def log_show(
    reference: Annotated[str, typer.Argument(help="Only leaves whose reference begins so, such as a request.")] = "",
    home: Home = None,
    limit: Annotated[int, typer.Option("--limit", min=0, max=1000, help="So many of the newest leaves.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """The log's key, its size, its newest checkpoint and its newest leaves."""
    with operator_client(home) as client:
        view = client.log(leaves=limit, reference=reference)
    data = log_data(view)
    if as_json:
        print_json(data)
        return
    from clue_coordinator.terminal import console, table

    print(f"verifier key: {view.keys[0]}")
    last = data["checkpoint"]
    signed = f"{last['size']} are signed for, {last['made_at']}" if last else "none is signed for yet"
    print(f"{view.size} leaves; {signed}; {len(view.witnesses)} witness(es)")
    found = table("leaf", "kind", "reference", "SHA-256 of the document")
    for leaf in view.leaves:
        found.add_row(str(leaf.index), leaf.kind, leaf.reference, leaf.digest[:16])
    if view.leaves:
        console().print(found)


@log_app.command("checkpoint")
def log_checkpoint(home: Home = None, out: Out = None) -> None:
    """Sign the log as it is, now. Keep the checkpoint: it is what later ones are held against."""
    with operator_client(home) as client:
        checkpoint = client.make_checkpoint()
    _write(out, checkpoint.note, f"a checkpoint of {checkpoint.size} leaves")


@log_app.command("prove")
def log_prove(
    reference: Annotated[str, typer.Argument(help="A request, or request/device for a receipt.")] = "",
    leaf: Annotated[int | None, typer.Option("--leaf", min=0, help="This leaf, by its number.")] = None,
    home: Home = None,
    out: Out = None,
) -> None:
    """Evidence that a document is in the log: its leaf, the proof, and the checkpoint."""
    if bool(reference) == (leaf is not None):
        raise UsageError("give a reference or --leaf, one of them")
    with operator_client(home) as client:
        found = client.prove_leaves(reference, leaf)
    if len(found) > 1:
        from clue_protocol.tlog import Evidence

        numbers = ", ".join(f"{e.proof.index} ({e.leaf.kind})" for e in map(Evidence.from_json, found))
        raise UsageError(f"'{reference}' has {len(found)} leaves: choose one with --leaf, of {numbers}")
    _write(out, found[0], "evidence")


@log_app.command("consistency")
def log_consistency(
    old: Annotated[Path, typer.Option("--from", metavar="CHECKPOINT", help="The checkpoint that was kept.")],
    home: Home = None,
    out: Out = None,
) -> None:
    """Show that the log has only grown since a checkpoint: both checkpoints and the proof between them."""
    with operator_client(home) as client:
        _write(out, client.prove_consistency(_read(old)), "a consistency proof")


@log_app.command("verify")
def log_verify(home: Home = None, as_json: JsonFlag = False) -> None:
    """Compute the whole log anew and compare it with the ledger's documents; names the first thing that is wrong."""
    with operator_client(home) as client:
        report = client.verify_log()
    line = (
        f"the log is whole: {report.leaves} leaves, {report.checkpoints} checkpoint(s), "
        f"and {report.documents} document(s) in the ledger that are the ones in it"
    )
    print_result(as_json, log_check_data(report), line)


@log_app.command("add-cosignature")
def log_add_cosignature(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint with the witness's line.")], home: Home = None
) -> None:
    """Hand in what a witness has signed; its verifier key must stand in [log] witnesses of coordinator.toml."""
    with operator_client(home) as client:
        added = client.add_cosignature(_read(checkpoint))
    print(f"the checkpoint of {added.size} leaves has {added.note.count(chr(0x2014)) - 1} cosignature(s)")


@log_app.command("witness-key")
def log_witness_key(
    name: Annotated[str, typer.Argument(help="Name of the witness, such as witness.example/w.")],
    key: Annotated[Path, typer.Option("--key", help="New file for the private key.")],
) -> None:
    """Make a witness's key; prints its verifier key. Needs no coordinator."""
    from clue_protocol.keys import create_signing_key
    from clue_protocol.tlog import WITNESS_KEY, NoteKey, NoteKeyError
    from clue_protocol.tlog.note import check_key_name

    try:
        check_key_name(name)
    except NoteKeyError as error:
        raise UsageError(str(error)) from None
    print(NoteKey.of(name, WITNESS_KEY, create_signing_key(key).public_key).to_text())


@log_app.command("witness")
def log_witness(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint, or a consistency proof that ends with it.")],
    key: Annotated[Path, typer.Option("--key", help="The witness's private key.")],
    name: Annotated[str, typer.Option("--name", help="The witness's name.")],
    log_key: Vkey,
    previous: Annotated[
        Path | None, typer.Option("--previous", metavar="CHECKPOINT", help="What this witness signed last.")
    ] = None,
    first: Annotated[bool, typer.Option("--first", help="This witness has signed nothing of this log yet.")] = False,
    out: Out = None,
) -> None:
    """Cosign a checkpoint, after the proof that it goes on from the last one. Needs no coordinator.

    With --previous, give the file of 'log consistency --from PREVIOUS'.
    """
    from clue_protocol.keys import load_signing_key
    from clue_protocol.tlog import Growth, LogError, cosign_checkpoint, verify_checkpoint

    if first == (previous is not None):
        raise UsageError("give --previous CHECKPOINT, or --first if this witness has signed nothing of this log yet")
    log, text = verifier_key(log_key), _read(checkpoint)
    if previous is None:
        verify_checkpoint(text, log)
    else:
        growth = _parsed(checkpoint, lambda: Growth.from_json(text), LogError)
        seen, (old, _) = verify_checkpoint(_read(previous), log), growth.verify(log)
        if (old.size, old.root) != (seen.size, seen.root):
            raise ConflictError(f"{checkpoint} does not begin with {previous}: nothing is signed")
        text = growth.new
    _write(out, cosign_checkpoint(text, name, load_signing_key(key)), "the cosigned checkpoint")


def verifier_key(text: str) -> "NoteKey":
    """The verifier key that is ``text``, or the first line of the file it names; UsageError if it is none."""
    from clue_protocol.tlog import NoteKey, NoteKeyError

    try:
        return NoteKey.from_text((_read(Path(text)).splitlines() or [""])[0] if Path(text).is_file() else text)
    except NoteKeyError as error:
        raise UsageError(str(error)) from None


def _parsed(path: Path, parse: Callable[[], T], error: type[Exception]) -> T:
    try:
        return parse()
    except error as problem:
        raise UsageError(f"{path}: {problem}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None


def _write(out: Path | None, text: str, what: str) -> None:
    if out is None:
        print(text, end="")
    else:
        write_file(out, text)
        print(f"{out}: {what}")
