"""Signed time: "it is this late", on a schedule for everyone or in answer to a device's nonce."""

import hmac
import secrets
from dataclasses import dataclass

from securesystemslib.signer import Signer

from clue_protocol.envelope import parse_payload
from clue_protocol.trust.chain import TrustedRoot
from clue_protocol.trust.envelopes import TIME_TYPE, add_signature, read_envelope, require_threshold, unsigned
from clue_protocol.trust.errors import (
    AttestationContentError,
    AttestationExpiredError,
    AttestationReplayError,
    NonceError,
    RootInstallationError,
)
from clue_protocol.trust.times import SECOND, from_timestamp, to_timestamp
from clue_protocol.v1 import trust_pb2 as pb

NONCE_BYTES = 16
DEFAULT_LIFETIME = 3600 * SECOND


@dataclass(frozen=True)
class Challenge:
    """A question for the time; good for one answer.

    Attributes:
        nonce: 16 random bytes.
        asked_boot_ns: boot clock when it was made, before it was sent.
    """

    nonce: bytes
    asked_boot_ns: int

    @classmethod
    def new(cls, boot_ns: int) -> "Challenge":
        """Ask now."""
        return cls(secrets.token_bytes(NONCE_BYTES), boot_ns)


@dataclass(frozen=True)
class AttestedTime:
    """What a verified attestation says.

    Attributes:
        time_ns: when it was made.
        sequence: its number.
        root_version: the newest root.
        answers: the question that it answers; None if it was sent to everyone.
    """

    time_ns: int
    sequence: int
    root_version: int
    answers: Challenge | None


def attest_time(root: TrustedRoot, signer: Signer, time_ns: int, sequence: int, nonce: bytes = b"") -> bytes:
    """An attestation signed with one key of the timestamp role; returns the envelope.

    Args:
        root: the newest root.
        signer: where the role's threshold is higher, others add their signatures.
        time_ns: now, from a clock that can be relied upon.
        sequence: higher than ever before. Milliseconds since 1970, or one more than the last if that is higher, keeps
            rising after an old backup was restored.
        nonce: of the device that asked; empty if nobody did.
    """
    message = pb.TimeAttestation(
        installation=root.root.installation,
        time=to_timestamp(time_ns),
        sequence=sequence,
        expires_at=to_timestamp(time_ns + DEFAULT_LIFETIME),
        nonce=nonce,
        root_version=root.root.version,
    )
    return add_signature(unsigned(message, TIME_TYPE), TIME_TYPE, signer)


def open_attestation(
    data: bytes, root: TrustedRoot, *, lower_ns: int, last_sequence: int, challenge: Challenge | None = None
) -> AttestedTime:
    """Verify an attestation.

    Args:
        data: the envelope.
        root: the device's root.
        lower_ns: it is at least this late, by earlier attestations.
        last_sequence: of the last attestation that was accepted.
        challenge: the open question; None accepts only what was sent to everyone.

    Raises:
        ThresholdError: too few keys of the timestamp role signed.
        RootInstallationError: of another installation.
        NonceError: it does not answer ``challenge``.
        AttestationReplayError: not newer than the last one, by its number or, where nobody asked, its time.
        AttestationExpiredError: it is later than its date.
        EnvelopeError, AttestationContentError: not an attestation.
    """
    envelope = read_envelope(data, TIME_TYPE)
    role = root.root.timestamp
    require_threshold(envelope, role.keys, role.threshold, "the time attestation")
    message = parse_payload(envelope, pb.TimeAttestation)
    if message.installation != root.root.installation:
        raise RootInstallationError("the time attestation is of another installation")
    try:
        time_ns, expires_ns = from_timestamp(message.time), from_timestamp(message.expires_at)
    except ValueError as error:
        raise AttestationContentError(f"the time attestation cannot be read: {error}") from None
    if not message.sequence or not message.root_version or expires_ns <= time_ns:
        raise AttestationContentError("the time attestation lacks its number, its root version or a sensible date")
    if not hmac.compare_digest(message.nonce, challenge.nonce if challenge else b""):
        raise NonceError("the time attestation does not answer the question that this device asked")
    if message.sequence <= last_sequence:
        raise AttestationReplayError(
            f"the time attestation has number {message.sequence}, number {last_sequence} was accepted before"
        )
    if expires_ns <= lower_ns:
        raise AttestationExpiredError("the time attestation is past its date")
    if challenge is None and time_ns < lower_ns:
        raise AttestationReplayError("the time attestation is older than what this device knows already")
    return AttestedTime(time_ns, message.sequence, message.root_version, challenge)
