"""Files that show what is in the log: a leaf with its proof and checkpoint, or how one checkpoint led to another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clue_protocol.tlog.checkpoint import VerifiedCheckpoint, verify_checkpoint
from clue_protocol.tlog.errors import InclusionError, ProofError
from clue_protocol.tlog.leaf import Leaf
from clue_protocol.tlog.note import NoteKey
from clue_protocol.tlog.proof import ConsistencyProof, InclusionProof, verify_consistency, verify_inclusion

EVIDENCE_FORMAT = "clue-log-proof/1"
GROWTH_FORMAT = "clue-log-consistency/1"
MAX_EVIDENCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Evidence:
    """A leaf, its proof, and the checkpoint as the signed note. Nothing of it is verified yet."""

    leaf: Leaf
    proof: InclusionProof
    checkpoint: str

    def to_json(self) -> str:
        """The file's text."""
        leaf = json.loads(self.leaf.to_bytes())
        fields = {"format": EVIDENCE_FORMAT, "leaf": leaf, "proof": self.proof.to_dict(), "checkpoint": self.checkpoint}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str) -> "Evidence":
        """Read :meth:`to_json`; ProofError or LeafError for anything else."""
        data = _read(text, EVIDENCE_FORMAT, ("leaf", "proof", "checkpoint"))
        if not isinstance(data["checkpoint"], str):
            raise ProofError(f"not of the form {EVIDENCE_FORMAT}")
        canonical = json.dumps(data["leaf"], sort_keys=True, separators=(",", ":")).encode()
        return cls(Leaf.from_bytes(canonical), InclusionProof.from_dict(data["proof"]), data["checkpoint"])

    def verify(
        self, log: NoteKey, witnesses: Sequence[NoteKey] = (), threshold: int = 0, document: bytes | None = None
    ) -> VerifiedCheckpoint:
        """Verify checkpoint and proof, and that the leaf is that of ``document`` if one is given.

        Raises:
            InclusionError: the leaf is not in the log, or is of another document.
            LogError: as ``verify_checkpoint`` and ``verify_inclusion`` say.
        """
        checkpoint = verify_checkpoint(self.checkpoint, log, witnesses, threshold)
        verify_inclusion(self.leaf, self.proof, checkpoint)
        if document is not None and Leaf.of(self.leaf.kind, document, self.leaf.reference) != self.leaf:
            raise InclusionError("the document is not the one in the log: its SHA-256 is another")
        return checkpoint


@dataclass(frozen=True)
class Growth:
    """Two checkpoints of a log and the proof that the newer one begins with the older one, in one file."""

    old: str
    new: str
    proof: ConsistencyProof

    def to_json(self) -> str:
        """The file's text."""
        fields = {"format": GROWTH_FORMAT, "old": self.old, "new": self.new, "proof": self.proof.to_dict()}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str) -> "Growth":
        """Read :meth:`to_json`; ProofError for anything else."""
        data = _read(text, GROWTH_FORMAT, ("old", "new", "proof"))
        if not isinstance(data["old"], str) or not isinstance(data["new"], str):
            raise ProofError(f"not of the form {GROWTH_FORMAT}")
        return cls(data["old"], data["new"], ConsistencyProof.from_dict(data["proof"]))

    def verify(
        self, log: NoteKey, witnesses: Sequence[NoteKey] = (), threshold: int = 0
    ) -> tuple[VerifiedCheckpoint, VerifiedCheckpoint]:
        """Verify both checkpoints and the proof; LogError says what is wrong. Witnesses sign the newer."""
        old, new = verify_checkpoint(self.old, log), verify_checkpoint(self.new, log, witnesses, threshold)
        verify_consistency(old, new, self.proof)
        return old, new


def _read(text: bytes | str, form: str, names: Sequence[str]) -> dict[str, Any]:
    if len(text) > MAX_EVIDENCE_BYTES:
        raise ProofError(f"the file is larger than {MAX_EVIDENCE_BYTES} bytes")
    try:
        data: Any = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        raise ProofError(f"not JSON of the form {form}") from None
    if not isinstance(data, dict) or set(data) != {"format", *names} or data["format"] != form:
        raise ProofError(f"not of the form {form}")
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Readers differ in which of the two they take.
        raise ValueError("a name stands twice")
    return fields
