"""Is this request one that this device must carry out? Checked before anything is touched."""

import json
import math

from clue_agent.errors import RequestHeldError, RequestRejectedError
from clue_agent.trusting import DeviceTrust
from clue_protocol.errors import EnvelopeError, ProtocolError
from clue_protocol.trust import TrustError, VerifiedRequest
from clue_protocol.trust import errors as why
from clue_protocol.v1 import forget_pb2 as pb

# Exactly these classes: what none of them says is an envelope that cannot be read.
_REASONS: dict[type[ProtocolError], pb.Reason.ValueType] = {
    EnvelopeError: pb.REASON_BAD_ENVELOPE,
    why.UnknownFleetError: pb.REASON_UNKNOWN_FLEET,
    why.RevokedKeyError: pb.REASON_REVOKED_KEY,
    why.WrongRoleError: pb.REASON_WRONG_ROLE,
    why.RequestContentError: pb.REASON_INVALID_REQUEST,
    why.RootInstallationError: pb.REASON_WRONG_INSTALLATION,
    why.WrongFleetError: pb.REASON_WRONG_FLEET,
    why.RequestEpochError: pb.REASON_WRONG_EPOCH,
    why.RequestReplayError: pb.REASON_REPLAYED,
    why.RequestForkError: pb.REASON_FORKED,
    why.RequestExpiredError: pb.REASON_EXPIRED,
}
# At most 32 characters: an operator sees them in a column.
_STAGES: dict[type[ProtocolError], str] = {
    why.WaitingForTimeError: "waiting for the time",
    why.RootOutdatedError: "waiting for a newer root",
    why.RootExpiredError: "waiting: the root has expired",
}


def open_request(envelope: bytes, trust: DeviceTrust, *, again: bool = False) -> VerifiedRequest:
    """Verify and parse a request.

    Args:
        envelope: the DSSE envelope as delivered.
        trust: whom this device obeys.
        again: the journal knows that this very request was accepted before.

    Raises:
        RequestRejectedError: it is refused, for good.
        RequestHeldError: that cannot be said yet.
    """
    try:
        verified = trust.judge(envelope, again=again)
    except ProtocolError as error:
        if isinstance(error, TrustError) and error.hold:
            raise RequestHeldError(_STAGES.get(type(error), "waiting"), str(error)) from None
        raise RequestRejectedError(reason_of(error), str(error)) from None
    _check_policy(verified.request.policy)
    hyperparameters(verified.request)
    return verified


def reason_of(error: ProtocolError) -> pb.Reason.ValueType:
    """What a receipt says of an error of :mod:`clue_protocol.trust`."""
    if isinstance(error, why.ThresholdError):
        return pb.REASON_BELOW_THRESHOLD if error.signed else pb.REASON_BAD_SIGNATURE
    return _REASONS.get(type(error), pb.REASON_BAD_ENVELOPE)


def hyperparameters(request: pb.ForgetRequest) -> dict[str, object]:
    """The overrides a request carries; RequestRejectedError unless they are a JSON object."""
    if not request.hyperparameters_json:
        return {}
    try:
        value = json.loads(request.hyperparameters_json)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestRejectedError(pb.REASON_INVALID_REQUEST, "the hyper-parameters are not a JSON object")
    return value


def _check_policy(policy: pb.Policy) -> None:
    for name, value in (("max_ua", policy.max_ua), ("max_ra_drop", policy.max_ra_drop)):
        if not math.isfinite(value) or not 0 <= value <= 1:
            raise RequestRejectedError(pb.REASON_INVALID_REQUEST, f"the policy's {name} must be in [0, 1], got {value}")
