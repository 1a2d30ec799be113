"""May this request be carried out on this device? Judged by the root, by what the device remembers, and by the time."""

from collections.abc import Iterable
from dataclasses import dataclass

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Key

from clue_protocol.envelope import REQUEST_TYPE, parse_payload
from clue_protocol.trust.chain import TrustedRoot
from clue_protocol.trust.clock import ClockReading, Verdict, judge_expiry
from clue_protocol.trust.envelopes import payload_digest, read_envelope, require_threshold, signers
from clue_protocol.trust.errors import (
    RequestContentError,
    RequestEpochError,
    RequestExpiredError,
    RequestForkError,
    RequestReplayError,
    RevokedKeyError,
    RootExpiredError,
    RootInstallationError,
    RootOutdatedError,
    ThresholdError,
    UnknownFleetError,
    WaitingForTimeError,
    WrongFleetError,
    WrongRoleError,
)
from clue_protocol.trust.root import Root
from clue_protocol.trust.state import TrustState
from clue_protocol.trust.times import from_timestamp
from clue_protocol.v1 import forget_pb2

NONCE_BYTES = 16
EPOCH_SHIFT = 32


@dataclass(frozen=True)
class VerifiedRequest:
    """A request that the right people signed.

    Attributes:
        request: its content.
        digest: SHA-256 of its payload (32 bytes), the same whoever else signs it later.
        approvers: the keys that signed it and may.
        is_known: it is the very request that was accepted last, delivered once more.
    """

    request: forget_pb2.ForgetRequest
    digest: bytes
    approvers: tuple[Key, ...]
    is_known: bool

    def accepted(self, state: TrustState) -> TrustState:
        """The state to be stored before the request is carried out."""
        return state.after_request(self.request.fleet, self.request.sequence, self.digest)


def check_approvals(data: bytes, root: Root, fleet: str) -> tuple[Key, ...]:
    """The keys that approved a request, at least the threshold of the fleet. A coordinator counts approvals with this.

    Raises:
        UnknownFleetError: the root has no such fleet.
        ThresholdError: too few of the fleet's request keys signed.
        RevokedKeyError, WrongRoleError: the same, and this is what signed instead.
        EnvelopeError: not a request.
    """
    return _approvals(read_envelope(data, REQUEST_TYPE), root, fleet)


def verify_request(
    data: bytes, *, root: TrustedRoot, fleet: str, state: TrustState, reading: ClockReading
) -> VerifiedRequest:
    """Everything that can be said of a request without a look at the model. Nothing is changed.

    Args:
        data: the envelope as delivered.
        root: the device's newest root.
        fleet: the device's fleet.
        state: what the device remembers.
        reading: what it knows of the time.

    Raises:
        TrustError, EnvelopeError: in this order: the root is outdated or expired; signatures; content; installation and
            fleet; epoch and sequence; the request is expired; the time is not known well enough to say whether root and
            request are in date. ``hold`` of the error says whether to keep the request.
    """
    root_verdict = _check_root_fresh(root.root, state, reading)
    envelope = read_envelope(data, REQUEST_TYPE)
    approvers = _approvals(envelope, root.root, fleet)
    request = parse_payload(envelope, forget_pb2.ForgetRequest)
    expires_ns = _check_content(request)
    if request.installation != root.root.installation:
        raise RootInstallationError("the request is of another installation")
    if request.fleet != fleet:
        raise WrongFleetError(f"the request is for fleet {request.fleet!r}, this device is in {fleet!r}")
    digest = payload_digest(envelope)
    is_known = _check_sequence(request, digest, root.root, state)
    verdict = judge_expiry(expires_ns, reading)
    if verdict is Verdict.EXPIRED:
        raise RequestExpiredError(f"the request expired on {request.expires_at.ToJsonString()}")
    if Verdict.WAITING_FOR_TIME in (verdict, root_verdict):
        what = "its root" if verdict is Verdict.VALID else "the request"
        raise WaitingForTimeError(f"this device does not know the time well enough to say whether {what} has expired")
    return VerifiedRequest(request, digest, approvers, is_known)


def _check_root_fresh(root: Root, state: TrustState, reading: ClockReading) -> Verdict:
    if state.announced_root > root.version:
        raise RootOutdatedError(
            f"this device has root version {root.version}, version {state.announced_root} was announced to it"
        )
    verdict = judge_expiry(root.expires_ns, reading)
    if verdict is Verdict.EXPIRED:
        raise RootExpiredError(f"root version {root.version} is past its date: the installation needs a new one")
    return verdict


def _approvals(envelope: Envelope, root: Root, fleet: str) -> tuple[Key, ...]:
    if fleet not in root.fleets:
        raise UnknownFleetError(f"the root says nothing of fleet {fleet!r}")
    role = root.fleets[fleet].request
    try:
        return require_threshold(envelope, role.keys, role.threshold, "the request")
    except ThresholdError:
        # Why, as exactly as it can be said: the signatures are real, so this is no guess.
        if found := signers(envelope, (entry.key for entry in root.revoked)):
            raise RevokedKeyError(f"the request is signed with {_names(found)}, which is revoked") from None
        if found := signers(envelope, (key for key in root.all_keys() if key not in role.keys)):
            raise WrongRoleError(
                f"the request is signed with {_names(found)}, which does not decide over {fleet}"
            ) from None
        raise


def _check_content(request: forget_pb2.ForgetRequest) -> int:
    if not request.request_id or not request.forget_class:
        raise RequestContentError("the request names no id or no class")
    if len(request.nonce) != NONCE_BYTES:
        raise RequestContentError(f"the request's nonce must have {NONCE_BYTES} bytes")
    if not request.sequence:
        raise RequestContentError("the request has no sequence number")
    if not request.HasField("policy"):
        raise RequestContentError("the request has no policy")
    if not request.HasField("expires_at") or not request.HasField("issued_at"):
        raise RequestContentError("the request must say when it was made and when it expires")
    try:
        issued_ns, expires_ns = from_timestamp(request.issued_at), from_timestamp(request.expires_at)
    except ValueError as error:
        raise RequestContentError(f"the request cannot be read: {error}") from None
    if expires_ns <= issued_ns:
        raise RequestContentError("the request expires before it is made")
    return expires_ns


def _check_sequence(request: forget_pb2.ForgetRequest, digest: bytes, root: Root, state: TrustState) -> bool:
    epoch = root.fleets[request.fleet].epoch
    if request.sequence >> EPOCH_SHIFT != epoch:
        raise RequestEpochError(
            f"the request's number is of epoch {request.sequence >> EPOCH_SHIFT}, the fleet is in epoch {epoch}"
        )
    mark = state.fleets.get(request.fleet)
    if mark is None or request.sequence > mark.sequence:
        return False
    if request.sequence < mark.sequence:
        raise RequestReplayError(
            f"the request has number {request.sequence}, number {mark.sequence} was accepted before"
        )
    if digest != mark.digest:
        raise RequestForkError(f"another request with number {request.sequence} was accepted before")
    return True


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(f"key {key.keyid[:16]}" for key in keys)
