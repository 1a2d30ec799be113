"""Is this answer a receipt of that device for that request?"""

from clue_coordinator.errors import ReceiptError
from clue_coordinator.models import Execution
from clue_protocol.envelope import RECEIPT_TYPE, envelope_digest, open_message
from clue_protocol.errors import ProtocolError, SignatureError
from clue_protocol.keys import key_from_json
from clue_protocol.v1 import forget_pb2 as pb

_OUTCOMES = (pb.OUTCOME_SUCCEEDED, pb.OUTCOME_FAILED, pb.OUTCOME_REJECTED)


def accept_receipt(envelope: bytes, execution: Execution) -> pb.Receipt:
    """Verify a receipt against the device's enrolled key and the request it answers.

    A refusal may name other bytes than those that were sent: a device that got a tampered
    request refuses exactly what it got. Anything else must name our request byte for byte.

    Raises:
        ReceiptError: says what does not match.
    """
    try:
        key = key_from_json(execution.device.receipt_key)
        receipt = open_message(envelope, RECEIPT_TYPE, pb.Receipt, [key])
    except SignatureError as error:
        raise ReceiptError(str(error), "signature") from None
    except ProtocolError as error:
        raise ReceiptError(str(error), "unreadable") from None
    if receipt.device_id != execution.device.device_id:
        raise ReceiptError(f"it is of device {receipt.device_id!r}")
    patch = execution.patch
    document, sent = (execution.request_id, execution.request.envelope) if patch is None else (patch.id, patch.envelope)
    if receipt.request_id != document:
        raise ReceiptError(f"it is for request {receipt.request_id!r}")
    if receipt.outcome not in _OUTCOMES:
        raise ReceiptError(f"its outcome is {receipt.outcome}")
    same_bytes = receipt.request_digest == envelope_digest(sent)
    if not same_bytes and receipt.outcome != pb.OUTCOME_REJECTED:
        raise ReceiptError("it answers other bytes than the request that was sent")
    return receipt


def measured_shares(receipt: pb.Receipt) -> dict[str, float]:
    """``ua_before``, ``ua_after``, ``ra_before`` and ``ra_after`` in [0, 1], as far as they were measured."""
    found = {name: getattr(receipt, name) for name in ("ua_before", "ua_after", "ra_before", "ra_after")}
    return {name: accuracy.correct / accuracy.samples for name, accuracy in found.items() if accuracy.samples}


def is_verified(envelope: bytes | None, execution: Execution) -> bool:
    """True if :func:`accept_receipt` accepts it now."""
    if not envelope:
        return False
    try:
        accept_receipt(envelope, execution)
    except ReceiptError:
        return False
    return True
