"""One file that shows that a document is in the log: leaf, inclusion proof and signed checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clue_protocol.tlog.checkpoint import VerifiedCheckpoint, verify_checkpoint
from clue_protocol.tlog.errors import InclusionError, ProofError
from clue_protocol.tlog.leaf import Leaf
from clue_protocol.tlog.note import NoteKey
from clue_protocol.tlog.proof import InclusionProof, verify_inclusion

EVIDENCE_FORMAT = "clue-log-proof/1"
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
        if len(text) > MAX_EVIDENCE_BYTES:
            raise ProofError(f"the file is larger than {MAX_EVIDENCE_BYTES} bytes")
        try:
            data: Any = json.loads(text, object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError):
            raise ProofError(f"not JSON of the form {EVIDENCE_FORMAT}") from None
        if (
            not isinstance(data, dict)
            or set(data) != {"format", "leaf", "proof", "checkpoint"}
            or data["format"] != EVIDENCE_FORMAT
            or not isinstance(data["checkpoint"], str)
        ):
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


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Readers differ in which of the two they take.
        raise ValueError("a name stands twice")
    return fields
