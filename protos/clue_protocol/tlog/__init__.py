"""The transparency log as anybody can check it: with public keys alone, without coordinator or network."""

from clue_protocol.tlog.checkpoint import (
    Checkpoint,
    VerifiedCheckpoint,
    check_fresh,
    cosign_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
)
from clue_protocol.tlog.errors import (
    CheckpointError,
    ConsistencyError,
    CosignatureError,
    ForkError,
    FrozenError,
    InclusionError,
    LeafError,
    LogError,
    LogSignatureError,
    NoteError,
    NoteKeyError,
    OriginError,
    ProofError,
    RollbackError,
    WitnessThresholdError,
)
from clue_protocol.tlog.evidence import Evidence
from clue_protocol.tlog.leaf import KINDS, Leaf
from clue_protocol.tlog.note import LOG_KEY, WITNESS_KEY, NoteKey
from clue_protocol.tlog.proof import (
    ConsistencyProof,
    InclusionProof,
    check_order,
    verify_consistency,
    verify_inclusion,
)

__all__ = [
    "KINDS",
    "LOG_KEY",
    "WITNESS_KEY",
    "Checkpoint",
    "CheckpointError",
    "ConsistencyError",
    "ConsistencyProof",
    "CosignatureError",
    "Evidence",
    "ForkError",
    "FrozenError",
    "InclusionError",
    "InclusionProof",
    "Leaf",
    "LeafError",
    "LogError",
    "LogSignatureError",
    "NoteError",
    "NoteKey",
    "NoteKeyError",
    "OriginError",
    "ProofError",
    "RollbackError",
    "VerifiedCheckpoint",
    "WitnessThresholdError",
    "check_fresh",
    "check_order",
    "cosign_checkpoint",
    "parse_checkpoint",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_inclusion",
]
