"""Is the log in the ledger what was appended and signed? Every hash is computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tlog_scales import tiles

from clue_coordinator.errors import LogDamagedError
from clue_coordinator.models import LogCheckpoint, LogLeaf, LogNode
from clue_coordinator.tlog.checkpoints import full_note, verify_by_any
from clue_coordinator.tlog.store import TILE, Tree, read_hashes
from clue_protocol.tlog import Leaf, LeafError, LogError, NoteKey

_BATCH = 4096


@dataclass(frozen=True)
class LogReport:
    """What was checked: number of leaves and of checkpoints, and the root hash of all leaves (32 bytes)."""

    leaves: int
    checkpoints: int
    root: bytes


def verify_log(session: Session, logs: Sequence[NoteKey]) -> LogReport:
    """Recompute the whole tree and every checkpoint's root, and verify every checkpoint's signature.

    Time is proportional to the number of leaves; memory is a small part of it.

    Args:
        session: for reading.
        logs: the log's keys, the one in use and those it had before.

    Raises:
        LogDamagedError: names the first thing that is wrong.
    """
    leaves = _check_leaves(session)
    tree = Tree(session)
    _check_nodes(session, tree)
    checkpoints = 0
    for row in session.scalars(select(LogCheckpoint).order_by(LogCheckpoint.id)):
        try:
            checkpoint = verify_by_any(full_note(session, row), logs)
        except LogError as error:
            raise LogDamagedError(f"checkpoint {row.id} of {row.size} leaves: {error}") from None
        if checkpoint.size > leaves:
            raise LogDamagedError(
                f"the log has {leaves} leaves, but {checkpoint.size} were signed in checkpoint {row.id}"
            )
        if tree.mth(0, checkpoint.size) != checkpoint.root or row.size != checkpoint.size:
            raise LogDamagedError(
                f"the first {checkpoint.size} leaves are not those that checkpoint {row.id} was signed for"
            )
        checkpoints += 1
    return LogReport(leaves, checkpoints, tree.root)


def _check_leaves(session: Session) -> int:
    query = select(LogLeaf.id, LogLeaf.kind, LogLeaf.digest, LogLeaf.reference, LogLeaf.hash).order_by(LogLeaf.id)
    count = 0
    for index, kind, digest, reference, found in session.execute(query.execution_options(yield_per=_BATCH)):
        if index != count:
            raise LogDamagedError(f"leaf {count} is missing")
        try:
            expected = tiles.leaf_hash(Leaf(kind, digest, reference).to_bytes())
        except LeafError as error:
            raise LogDamagedError(f"leaf {index}: {error}") from None
        if found != expected:
            raise LogDamagedError(f"leaf {index} ({kind} {reference}) was changed: its hash is another one")
        count += 1
    return count


def _check_nodes(session: Session, tree: Tree) -> None:
    level, expected_rows = 1, 0
    connection = session.connection()
    while count := tree.leaves // TILE**level:
        for start in range(0, count, TILE):
            number = min(TILE, count - start)
            found = read_hashes(connection, level, start, number)
            # The level below has been checked: what is computed from it is right.
            if found != [tree.node(level, start + offset) for offset in range(number)]:
                raise LogDamagedError(f"the tree is damaged: a hash of level {level} after {start} is missing or wrong")
        expected_rows += count
        level += 1
    if session.scalar(select(func.count()).select_from(LogNode)) != expected_rows:
        raise LogDamagedError("the tree is damaged: it holds hashes that belong to no leaves")
