"""Signed checkpoints of the ledger's log, and what witnesses add to them."""

from collections.abc import Sequence

from securesystemslib.signer import Signer
from sqlalchemy import select
from sqlalchemy.orm import Session
from tlog_scales.signing import NoteSignature

from clue_coordinator.errors import ConflictError, LogDamagedError, UsageError
from clue_coordinator.models import LogCheckpoint, LogCosignature
from clue_coordinator.tlog.store import Tree, leaf_at, size_of
from clue_protocol.tlog import (
    Checkpoint,
    CosignatureError,
    Evidence,
    NoteKey,
    parse_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
)
from clue_protocol.tlog.checkpoint import join_signatures
from clue_protocol.tlog.note import parse_note


def make_checkpoint(session: Session, origin: str, signer: Signer, at: float) -> str:
    """Sign the log as it is and keep the checkpoint; returns the note. A log that stands still keeps its last one.

    Raises:
        LogDamagedError: the log is not what its last checkpoint says; to sign it would be to fork it.
        ConflictError: the log has another origin.
    """
    last = last_checkpoint(session)
    tree = Tree(session)
    if last is not None:
        known, _ = parse_checkpoint(last.note)
        if known.origin != origin:
            raise ConflictError(f"this log is called {known.origin}, and signs no checkpoint as {origin}")
        if known.size > tree.leaves:
            raise LogDamagedError(
                f"the log has {tree.leaves} leaves and has signed {known.size}: leaves are lost, nothing is signed"
            )
        if Tree(session, known.size).root != known.root:
            raise LogDamagedError(
                f"the first {known.size} leaves are not those of the last checkpoint: the log was changed, "
                "nothing is signed"
            )
    note = sign_checkpoint(Checkpoint(origin, tree.leaves, tree.root), signer)
    if last is None or last.note != note:
        session.add(LogCheckpoint(at=at, size=tree.leaves, note=note))
        session.flush()
    return note


def last_checkpoint(session: Session) -> LogCheckpoint | None:
    """The newest checkpoint that was signed, None if there is none yet."""
    return session.scalar(select(LogCheckpoint).order_by(LogCheckpoint.id.desc()).limit(1))


def note_of_size(session: Session, size: int | None = None) -> str:
    """The note of the newest checkpoint, or of the newest with ``size`` leaves, with all cosignatures.

    UsageError if there is none.
    """
    query = select(LogCheckpoint).order_by(LogCheckpoint.id.desc()).limit(1)
    row = session.scalar(query if size is None else query.where(LogCheckpoint.size == size))
    if row is None:
        what = "yet" if size is None else f"of {size} leaves"
        raise UsageError(f"there is no checkpoint {what} among those that the log has signed")
    return full_note(session, row)


def full_note(session: Session, row: LogCheckpoint) -> str:
    """The note of a checkpoint with its cosignatures, the newest of each witness key."""
    checkpoint, signatures = parse_checkpoint(row.note)
    lines = session.scalars(
        select(LogCosignature.line).where(LogCosignature.checkpoint_id == row.id).order_by(LogCosignature.id)
    )
    newest: dict[tuple[str, int], NoteSignature] = {}
    for line in lines:
        [signature] = parse_note(f"-\n\n{line}\n")[1]
        newest[signature.name, signature.key_id] = signature
    return join_signatures(checkpoint, [*signatures, *newest.values()])


def add_cosignature(session: Session, note: bytes | str, log: NoteKey, witness: NoteKey, at: float) -> None:
    """Keep what a witness has added to a checkpoint of this log.

    Raises:
        LogError: the note is not a checkpoint signed by ``log``, or the witness's signature is missing or wrong.
        UsageError: this ledger has not signed such a checkpoint.
    """
    verified = verify_checkpoint(note, log, [witness])
    if witness.name not in verified.witnessed:
        raise CosignatureError(f"the witness {witness.name} has not signed this checkpoint")
    rows = session.scalars(
        select(LogCheckpoint).where(LogCheckpoint.size == verified.size).order_by(LogCheckpoint.id.desc())
    )
    row = next((row for row in rows if parse_checkpoint(row.note)[0].body() == verified.body()), None)
    if row is None:
        raise UsageError(f"this ledger has signed no checkpoint of {verified.size} leaves with that root")
    _, signatures = parse_checkpoint(note)
    for signature in signatures:
        line = str(signature.serialize())
        kept = select(LogCosignature.id).where(LogCosignature.checkpoint_id == row.id, LogCosignature.line == line)
        if witness.vkey.match(signature) and session.scalar(kept) is None:
            session.add(LogCosignature(checkpoint_id=row.id, at=at, line=line))
    session.flush()


def checkpoint_covering(session: Session, index: int, logs: Sequence[NoteKey]) -> tuple[Checkpoint, str]:
    """The newest checkpoint, verified, that has the leaf ``index``, and its note; UsageError if none has it yet.

    LogError if none of the keys ``logs`` has signed it.
    """
    note = note_of_size(session)
    checkpoint = verify_by_any(note, logs)
    if index >= checkpoint.size:
        raise UsageError(
            f"leaf {index} of {size_of(session)} came after the last checkpoint ({checkpoint.size} leaves): "
            "make a new one"
        )
    return checkpoint, note


def prove(session: Session, index: int, logs: Sequence[NoteKey]) -> Evidence:
    """What shows anybody that the leaf ``index`` is in the log, up to the newest checkpoint; fails as above."""
    checkpoint, note = checkpoint_covering(session, index, logs)
    return Evidence(leaf_at(session, index), Tree(session, checkpoint.size).prove_inclusion(index), note)


def verify_by_any(note: str, logs: Sequence[NoteKey]) -> Checkpoint:
    """Verify a checkpoint by the one of the log's keys, old or new, that has signed it; LogError if none has."""
    _, signatures = parse_checkpoint(note)
    signed = [key for key in logs if any(key.vkey.match(signature) for signature in signatures)]
    return verify_checkpoint(note, (signed or list(logs))[0])
