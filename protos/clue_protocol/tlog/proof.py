"""Inclusion and consistency proofs of an RFC 9162 Merkle tree, as JSON, and their verification without the log.

The tree is RFC 9162's (2.1) with SHA-256: a leaf is hashed as H(0x00 || leaf), a node as H(0x01 || left || right).
The verification is tlog-scales', which follows RFC 9162 2.1.3.2 and 2.1.4.2 step by step.
"""

import re
from dataclasses import dataclass
from typing import Any

from tlog_scales import tiles, tlog

from clue_protocol.tlog.checkpoint import Checkpoint
from clue_protocol.tlog.errors import (
    ConsistencyError,
    ForkError,
    InclusionError,
    OriginError,
    ProofError,
    RollbackError,
)
from clue_protocol.tlog.leaf import Leaf

INCLUSION_FORMAT = "clue-inclusion-proof/1"
CONSISTENCY_FORMAT = "clue-consistency-proof/1"
MAX_SIZE = 1 << 63
# Of one proof: a tree of 2^63 leaves has paths of 63 hashes, a consistency proof one more.
MAX_HASHES = 64
_HASH = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class InclusionProof:
    """That a leaf is in the log: ``index`` of the leaf from 0, ``size`` of the tree, ``hashes`` from the leaf up."""

    index: int
    size: int
    hashes: tuple[bytes, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; hashes are 64 hexadecimal digits."""
        hashes = [one.hex() for one in self.hashes]
        return {"format": INCLUSION_FORMAT, "index": self.index, "size": self.size, "hashes": hashes}

    @classmethod
    def from_dict(cls, data: object) -> "InclusionProof":
        """Read :meth:`to_dict`; ProofError for anything else."""
        fields = _fields(data, INCLUSION_FORMAT, ("index", "size"))
        if fields["index"] >= fields["size"]:
            raise ProofError(f"an inclusion proof speaks of leaf {fields['index']} of {fields['size']}")
        return cls(fields["index"], fields["size"], fields["hashes"])


@dataclass(frozen=True)
class ConsistencyProof:
    """That a log of ``new_size`` leaves begins with the one of ``old_size``; ``hashes`` as in RFC 9162 2.1.4.1."""

    old_size: int
    new_size: int
    hashes: tuple[bytes, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; hashes are 64 hexadecimal digits."""
        hashes = [one.hex() for one in self.hashes]
        return {"format": CONSISTENCY_FORMAT, "old_size": self.old_size, "new_size": self.new_size, "hashes": hashes}

    @classmethod
    def from_dict(cls, data: object) -> "ConsistencyProof":
        """Read :meth:`to_dict`; ProofError for anything else."""
        fields = _fields(data, CONSISTENCY_FORMAT, ("old_size", "new_size"))
        if fields["old_size"] > fields["new_size"]:
            raise ProofError(
                f"a consistency proof cannot lead from {fields['old_size']} to {fields['new_size']} leaves"
            )
        return cls(fields["old_size"], fields["new_size"], fields["hashes"])


def verify_inclusion(leaf: Leaf | bytes, proof: InclusionProof, checkpoint: Checkpoint) -> None:
    """Verify that ``leaf`` is in the log of ``checkpoint``, which must have been verified itself.

    Raises:
        ProofError: the proof is for another size of the log.
        InclusionError: the leaf is not there, or something was changed.
    """
    if proof.size != checkpoint.size:
        raise ProofError(f"the proof is for a log of {proof.size} leaves, the checkpoint says {checkpoint.size}")
    data = leaf.to_bytes() if isinstance(leaf, Leaf) else leaf
    try:
        tlog.InclusionProof(proof.index, proof.size, list(proof.hashes)).check(tiles.leaf_hash(data), checkpoint.root)
    except tlog.InclusionProofInvalid:
        raise InclusionError(
            f"the leaf is not number {proof.index} of the log {checkpoint.origin} with {checkpoint.size} leaves"
        ) from None


def verify_consistency(old: Checkpoint, new: Checkpoint, proof: ConsistencyProof) -> None:
    """Verify that nothing of the log of ``old`` was changed or removed in ``new``; both must have been verified.

    Raises:
        OriginError: the checkpoints are of different logs.
        RollbackError: ``new`` has fewer leaves.
        ForkError: they have the same size and different roots.
        ProofError: the proof is for other sizes.
        ConsistencyError: the one log does not begin with the other.
    """
    check_order(old, new)
    if (proof.old_size, proof.new_size) != (old.size, new.size):
        raise ProofError(
            f"the proof leads from {proof.old_size} to {proof.new_size} leaves, "
            f"the checkpoints from {old.size} to {new.size}"
        )
    try:
        tlog.ConsistencyProof(proof.old_size, proof.new_size, list(proof.hashes)).check(old.root, new.root)
    except tlog.ConsistencyProofInvalid:
        raise ConsistencyError(
            f"the log {new.origin} with {new.size} leaves does not begin with the {old.size} of the older checkpoint"
        ) from None


def check_order(old: Checkpoint, new: Checkpoint) -> None:
    """What two checkpoints show without a proof: OriginError, RollbackError or ForkError as above."""
    if old.origin != new.origin:
        raise OriginError(f"the checkpoints are of the logs {old.origin} and {new.origin}")
    if new.size < old.size:
        raise RollbackError(f"the newer checkpoint has {new.size} leaves, the older one has {old.size}")
    if new.size == old.size and new.root != old.root:
        raise ForkError(f"there are two logs {new.origin} of {new.size} leaves: their roots differ")


def _fields(data: object, form: str, numbers: tuple[str, str]) -> dict[str, Any]:
    if not isinstance(data, dict) or data.get("format") != form or set(data) != {"format", "hashes", *numbers}:
        raise ProofError(f"not a proof of the form {form}")
    for name in numbers:
        # bool is an int in Python, but not in JSON.
        if type(data[name]) is not int or not 0 <= data[name] < MAX_SIZE:
            raise ProofError(f"{form}: {name} is not a number of leaves")
    hashes = data["hashes"]
    if not isinstance(hashes, list) or len(hashes) > MAX_HASHES:
        raise ProofError(f"{form}: hashes is not a list of at most {MAX_HASHES} hashes")
    if not all(isinstance(one, str) and _HASH.match(one) for one in hashes):
        raise ProofError(f"{form}: a hash is not 64 hexadecimal digits in small letters")
    return {**data, "hashes": tuple(bytes.fromhex(one) for one in hashes)}
