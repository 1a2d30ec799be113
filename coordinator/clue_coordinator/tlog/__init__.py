"""The transparency log in the ledger: append, sign, prove, check. How others verify it is in clue_protocol.tlog."""

from clue_coordinator.tlog.check import LogReport, verify_log
from clue_coordinator.tlog.checkpoints import (
    add_cosignature,
    checkpoint_covering,
    full_note,
    last_checkpoint,
    make_checkpoint,
    note_of_size,
    prove,
    verify_by_any,
)
from clue_coordinator.tlog.store import Tree, append, index_of, indices_of, leaf_at, size_of

__all__ = [
    "LogReport",
    "Tree",
    "add_cosignature",
    "append",
    "checkpoint_covering",
    "full_note",
    "index_of",
    "indices_of",
    "last_checkpoint",
    "leaf_at",
    "make_checkpoint",
    "note_of_size",
    "prove",
    "size_of",
    "verify_by_any",
    "verify_log",
]
