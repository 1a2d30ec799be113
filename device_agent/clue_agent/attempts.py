"""Which attempt at a request may be made: what the request signs for, and how the last one ended.

What did not succeed may be asked for again as often as the request's ``max_attempts`` says: after FAILED, and
after a refusal for something that the owner of the device may have put right since, with nothing touched.
"""

from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.envelopes import read_envelope
from clue_protocol.v1 import forget_pb2 as pb

# Whatever a request says.
MOST_ATTEMPTS = 20
_MENDABLE = (
    pb.REASON_NO_FORGET_SAMPLES,
    pb.REASON_NO_HOLDOUT,
    pb.REASON_NO_SPACE,
    pb.REASON_STORAGE_FAILED,
)


def claimed_request(envelope: bytes) -> pb.ForgetRequest | None:
    """What an envelope that is not verified yet says; None if it says nothing."""
    try:
        return peek_message(envelope, REQUEST_TYPE, pb.ForgetRequest)
    except ProtocolError:
        return None


def same_payload(one: bytes, other: bytes) -> bool:
    """Do two envelopes hold the same document, whoever signed it?"""
    try:
        return read_envelope(one, REQUEST_TYPE).payload == read_envelope(other, REQUEST_TYPE).payload
    except ProtocolError:
        return False


def within(attempt: int, envelope: bytes) -> int:
    """``attempt``, or the nearest that the request allows."""
    request = claimed_request(envelope)
    most = min(request.max_attempts, MOST_ATTEMPTS) if request is not None else 1
    return max(1, min(attempt, most))


def may_follow(attempt: int, last: int, receipt: bytes, envelope: bytes) -> bool:
    """May ``attempt`` be made after the one numbered ``last`` that ended in ``receipt``?"""
    if attempt <= last or attempt != within(attempt, envelope):
        return False
    ended = peek_message(receipt, RECEIPT_TYPE, pb.Receipt)
    refused = ended.outcome == pb.OUTCOME_REJECTED
    return ended.outcome == pb.OUTCOME_FAILED or (refused and ended.reason in _MENDABLE)
