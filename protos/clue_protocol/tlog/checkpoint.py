"""Checkpoints (c2sp.org/tlog-checkpoint) and their cosignatures (c2sp.org/tlog-cosignature, cosignature/v1).

A checkpoint is three lines: origin, number of leaves, root hash in base64. Extension lines are refused.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from securesystemslib.signer import Signer
from tlog_scales import tlog
from tlog_scales.signing import Ed25519CosignatureVerifier, NoteSignature

from clue_protocol.tlog.errors import (
    CheckpointError,
    CosignatureError,
    FrozenError,
    LogSignatureError,
    NoteKeyError,
    OriginError,
    WitnessThresholdError,
)
from clue_protocol.tlog.note import LOG_KEY, WITNESS_KEY, NoteKey, check_key_name, decode_base64, parse_note, sign_text

# A witness's clock may be ahead by so many seconds.
MAX_SKEW = 300
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_COSIGNATURE_BYTES = 8 + 64


@dataclass(frozen=True)
class Checkpoint:
    """What a log says of itself: ``origin`` (its name), ``size`` (number of leaves), ``root`` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """The text that is signed."""
        return str(_library(self).serialize_body())


@dataclass(frozen=True)
class VerifiedCheckpoint(Checkpoint):
    """A checkpoint that the log has signed, and enough witnesses.

    Attributes:
        witnessed: when each known witness has signed it, by name, as UTC seconds of that witness's clock.
    """

    witnessed: Mapping[str, int]


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """The checkpoint as a note signed by the log, whose key has the name of the origin."""
    check_key_name(checkpoint.origin)
    key = NoteKey.of(checkpoint.origin, LOG_KEY, signer.public_key)
    signature = sign_text(key, checkpoint.body().encode(), signer)
    return str(_library(checkpoint, [signature]).serialize())


def cosign_checkpoint(note: bytes | str, name: str, signer: Signer, at: int | None = None) -> str:
    """The note with the line of the witness ``name`` added; a line of that key that was there is replaced.

    The caller must have verified the note, and that it is consistent with the last one that this witness has signed.

    Args:
        note: a signed checkpoint.
        name: of the witness.
        signer: of the witness; its key must serve nothing else.
        at: UTC seconds, now by default.
    """
    checkpoint, signatures = parse_checkpoint(note)
    key = NoteKey.of(name, WITNESS_KEY, signer.public_key)
    moment = int(time.time()) if at is None else at
    if not 0 <= moment < 1 << 63:
        raise CheckpointError(f"{moment} is not the time of a cosignature")
    message = f"cosignature/v1\ntime {moment}\n{checkpoint.body()}".encode()
    added = sign_text(key, message, signer, prefix=moment.to_bytes(8, "big"))
    return join_signatures(checkpoint, [*(one for one in signatures if not key.vkey.match(one)), added])


def join_signatures(checkpoint: Checkpoint, signatures: Sequence[NoteSignature]) -> str:
    """The note with these signature lines."""
    return str(_library(checkpoint, list(signatures)).serialize())


def parse_checkpoint(note: bytes | str) -> tuple[Checkpoint, list[NoteSignature]]:
    """Read a checkpoint WITHOUT verifying it; NoteError or CheckpointError if it is none."""
    body, signatures = parse_note(note)
    lines = body.split("\n")
    if len(lines) != 4 or not lines[0]:
        raise CheckpointError("a checkpoint has three lines: origin, size and root hash")
    try:
        check_key_name(lines[0])
    except NoteKeyError:
        raise CheckpointError(f"the origin of a checkpoint cannot be {lines[0][:80]!r}") from None
    if not _SIZE.match(lines[1]):
        raise CheckpointError(f"the size of a checkpoint cannot be {lines[1][:80]!r}")
    try:
        root = decode_base64(lines[2])
    except ValueError:
        root = b""
    if len(root) != 32:
        raise CheckpointError("the root hash of a checkpoint is 32 bytes in base64")
    return Checkpoint(lines[0], int(lines[1]), root), signatures


def verify_checkpoint(
    note: bytes | str, log: NoteKey, witnesses: Sequence[NoteKey] = (), threshold: int = 0
) -> VerifiedCheckpoint:
    """Read a checkpoint and verify who has signed it.

    Args:
        note: the signed note.
        log: the log's key; its name is the origin that is expected.
        witnesses: keys of the known witnesses.
        threshold: how many different witnesses must have signed.

    Raises:
        NoteError: not a signed note.
        CheckpointError: not a checkpoint.
        OriginError: of another log.
        LogSignatureError: not signed by ``log``.
        CosignatureError: a line of a known witness does not verify.
        WitnessThresholdError: fewer than ``threshold`` witnesses.
        NoteKeyError: the keys given cannot be used together.
    """
    _check_keys(log, witnesses, threshold)
    checkpoint, signatures = parse_checkpoint(note)
    if checkpoint.origin != log.name:
        raise OriginError(f"the checkpoint is of the log {checkpoint.origin}, expected {log.name}")
    own = [signature for signature in signatures if log.vkey.match(signature)]
    if not own:
        raise LogSignatureError(f"the checkpoint is not signed by the key {log.name}+{log.vkey.key_id:08x}")
    if not all(_verifies(log, signature, checkpoint) for signature in own):
        raise LogSignatureError(f"the signature of the log {log.name} is wrong: the checkpoint was changed or forged")
    witnessed: dict[str, int] = {}
    for witness in witnesses:
        for signature in signatures:
            if not witness.vkey.match(signature):
                continue
            moment = int.from_bytes(signature.payload[:8], "big")
            if len(signature.payload) != _COSIGNATURE_BYTES or not _verifies(witness, signature, checkpoint):
                raise CosignatureError(f"the cosignature of the witness {witness.name} is wrong")
            witnessed[witness.name] = max(moment, witnessed.get(witness.name, 0))
    if len(witnessed) < threshold:
        raise WitnessThresholdError(
            f"{len(witnessed)} of the {len(witnesses)} known witnesses have signed the checkpoint, {threshold} must"
        )
    return VerifiedCheckpoint(checkpoint.origin, checkpoint.size, checkpoint.root, witnessed)


def check_fresh(checkpoint: VerifiedCheckpoint, now: float, max_age: float, threshold: int = 1) -> None:
    """FrozenError unless ``threshold`` witnesses have signed the checkpoint in the ``max_age`` seconds before ``now``.

    A checkpoint itself carries no time: without witnesses nobody can tell an old one from a log that stands still.
    """
    if threshold < 1:
        raise NoteKeyError("a checkpoint is fresh by the word of at least one witness")
    # A time in the future would stay fresh for ever.
    ages = sorted(now - at for at in checkpoint.witnessed.values() if at <= now + MAX_SKEW)
    if len(ages) < threshold:
        raise FrozenError(f"{len(ages)} known witnesses say when they saw the checkpoint, {threshold} must")
    age = ages[threshold - 1]
    if age > max_age:
        raise FrozenError(
            f"{threshold} witness(es) last saw the checkpoint {age:.0f} s ago, {max_age:.0f} s are allowed: "
            "the log may be frozen"
        )


def _check_keys(log: NoteKey, witnesses: Sequence[NoteKey], threshold: int) -> None:
    if log.kind != LOG_KEY:
        raise NoteKeyError(f"{log.name} is the key of a witness, not of a log")
    for witness in witnesses:
        if witness.kind != WITNESS_KEY:
            raise NoteKeyError(f"{witness.name} is not the key of a witness")
    if len({witness.name for witness in witnesses}) != len(witnesses):
        raise NoteKeyError("two witnesses have one name")
    # A cosignature does not cover the name: one key under two names could pass for two witnesses.
    if len({key.public for key in (log, *witnesses)}) != len(witnesses) + 1:
        raise NoteKeyError("two of the log and its witnesses have one key")
    if not 0 <= threshold <= len(witnesses):
        raise NoteKeyError(f"{threshold} of {len(witnesses)} witnesses cannot be required")


def _verifies(key: NoteKey, signature: NoteSignature, checkpoint: Checkpoint) -> bool:
    verifier = key.vkey.get_verifier()
    if isinstance(verifier, Ed25519CosignatureVerifier) and verifier.get_timestamp(signature.payload) >= 1 << 63:
        return False
    try:
        verifier.verify(signature.payload, _library(checkpoint))
    except InvalidSignature:
        return False
    return True


def _library(checkpoint: Checkpoint, signatures: list[NoteSignature] | None = None) -> tlog.Checkpoint:
    return tlog.Checkpoint(checkpoint.origin, checkpoint.size, checkpoint.root, signatures or [])
