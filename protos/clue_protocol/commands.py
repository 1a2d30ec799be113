"""``clue verify-certificate`` and ``clue verify-log``: check files offline, with public keys alone.

Entry points of the group ``clue.commands``: the SDK's command line finds them, and knows nothing of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

if TYPE_CHECKING:
    from clue_protocol.certificate import VerifiedCertificate
    from clue_protocol.tlog import NoteKey

certificate_app = typer.Typer(add_completion=False)
log_app = typer.Typer(add_completion=False)

Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", metavar="FILE", help="The installation's root, of a source that you trust; may be repeated."
    ),
]
LogKeys = Annotated[
    list[str] | None,
    typer.Option("--log-key", metavar="VKEY", help="The log's verifier key, or its file, where the root names none."),
]
Witnesses = Annotated[
    list[str] | None,
    typer.Option("--witness", metavar="VKEY", help="Verifier key of a witness that you trust, or its file."),
]
Threshold = Annotated[int, typer.Option("--witnesses", min=0, help="So many of them must have signed the checkpoint.")]


class _Failed(click.ClickException):
    """One line, exit status 1."""


@certificate_app.command()
def verify_certificate(
    file: Annotated[Path, typer.Argument(help="certificate.json.")],
    root: Roots = None,
    log_key: LogKeys = None,
    witness: Witnesses = None,
    witnesses: Threshold = 0,
) -> None:
    """Check an erasure certificate offline; names the first thing that is wrong."""
    with _checking():
        from clue_protocol.certificate import verify_certificate as verify

        if not root:
            raise click.UsageError("give the installation's root: --root FILE")
        keys, known = _keys(log_key, "--log-key"), _keys(witness, "--witness")
        if witnesses > len(known):
            raise click.UsageError(f"--witnesses {witnesses} needs as many --witness keys")
        data, roots = _read(file), [_read(path).strip() for path in root]
        found = verify(data, roots, log=keys, witnesses=known, threshold=witnesses)
        for line in _summary(found):
            click.echo(line)


@log_app.command()
def verify_log(
    file: Annotated[Path, typer.Argument(help="What 'clue-coordinator log prove' or 'log consistency' wrote.")],
    root: Roots = None,
    log_key: LogKeys = None,
    witness: Witnesses = None,
    witnesses: Threshold = 0,
    document: Annotated[Path | None, typer.Option("--document", help="It must be the leaf of this document.")] = None,
    old: Annotated[Path | None, typer.Option("--from", help="The proof must begin with this checkpoint.")] = None,
) -> None:
    """Check evidence or a consistency proof of a transparency log offline."""
    with _checking():
        from clue_protocol.tlog import Evidence, Growth, verify_checkpoint

        log, known = _log(root, log_key), _keys(witness, "--witness")
        if witnesses > len(known):
            raise click.UsageError(f"--witnesses {witnesses} needs as many --witness keys")
        data = _read(file)
        if b'"clue-log-consistency/1"' not in data[:100]:
            if old is not None:
                raise click.UsageError("--from goes with a consistency proof")
            evidence = Evidence.from_json(data)
            end = evidence.verify(log, known, witnesses, _read(document) if document is not None else None)
            leaf = evidence.leaf
            click.echo(f"verified: {leaf.kind} {leaf.reference} is leaf {evidence.proof.index} of {end.size}")
            click.echo(f"SHA-256 of its document: {leaf.digest}")
            return
        if document is not None:
            raise click.UsageError("--document goes with evidence")
        growth = Growth.from_json(data)
        begin, end = growth.verify(log, known, witnesses)
        if old is not None:
            kept = verify_checkpoint(_read(old), log)
            if (kept.size, kept.root) != (begin.size, begin.root):
                raise _Failed(f"the proof begins with another checkpoint than {old}")
        click.echo(
            f"verified: the log {end.origin} grew from {begin.size} to {end.size} leaves, and nothing was changed"
        )


def _summary(found: "VerifiedCertificate") -> Iterator[str]:
    said = found.statement
    count = f"{found.erased} of {len(found.devices)} device(s) of {said.fleet}"
    yield f"verified: {count} have forgotten '{found.request.forget_class}'"
    yield f"request {said.request_id}, {said.state}{' (partial certificate)' if said.is_open else ''}"
    yield (
        f"allowed by {len(found.approvers)} key(s) under root version {found.root.root.version} of installation "
        f"{found.root.root.installation}"
    )
    for device in found.devices:
        if device.said.state != "SUCCEEDED":
            receipt = "" if device.receipts else ", no receipt"
            yield f"NOT shown for {device.said.device}: {device.said.state} {device.said.reason}{receipt}"
    point = found.checkpoint
    seen = f"seen by your {len(point.witnessed)} witness(es)" if point.witnessed else "no witness of yours has seen it"
    yield f"log {point.origin}, {point.size} leaves, root hash {point.root.hex()[:16]}; {seen}"


def _log(root: list[Path] | None, log_key: list[str] | None) -> "NoteKey":
    from clue_protocol.certificate.trusted import log_keys, read_root

    keys = list(_keys(log_key, "--log-key"))
    if not keys and root:
        keys = list(log_keys([read_root(_read(path).strip()) for path in root]))
        if not keys:
            raise _Failed("the root names no key of the log: give it with --log-key")
    if len(keys) != 1:
        raise click.UsageError("give the installation's root (--root FILE) or the log's one key (--log-key VKEY)")
    return keys[0]


def _keys(texts: list[str] | None, option: str) -> "tuple[NoteKey, ...]":
    from clue_protocol.tlog import NoteKey, NoteKeyError

    found = []
    for text in texts or []:
        path = Path(text)
        for line in _read(path).decode(errors="replace").split() if path.is_file() else [text]:
            try:
                found.append(NoteKey.from_text(line))
            except NoteKeyError as error:
                raise click.UsageError(f"{option}: {error}") from None
    return tuple(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def _checking() -> Iterator[None]:
    """What is wrong with a file is one line and status 1; so is an installation without what this needs."""
    try:
        from clue_protocol.errors import ProtocolError
        from clue_protocol.tlog import NoteKey  # noqa: F401
    except ModuleNotFoundError as error:
        raise _Failed(f"{error.name} is missing: pip install 'clue-unlearning[verify]'") from None
    try:
        yield
    except ProtocolError as error:
        raise _Failed(str(error)) from None
