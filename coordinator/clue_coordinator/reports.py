"""Taking back what comes from devices: receipts, progress, errors."""

from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer, joinedload

from clue_coordinator import tallies
from clue_coordinator.errors import ReceiptError, UsageError
from clue_coordinator.executions import finish_if_done, move, requeue
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Execution, PastReceipt, Request, Update
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.receipts import accept_receipt, measured_shares
from clue_coordinator.revocation import MOST_REFUSAL_EVENTS
from clue_coordinator.states import ACTIVE, FINAL_REQUEST, OPEN_REQUEST, ExecutionState, may_follow
from clue_coordinator.tlog.record import log_receipt
from clue_protocol.envelope import MAX_UPDATE_BYTES
from clue_protocol.trust.attestation import NONCE_BYTES
from clue_protocol.v1 import forget_pb2 as pb

# Answers that are no receipts (a crashed forwarder, say) before the device counts as failed.
MAX_FAULTS = 8
# Kept of one request and model: a patch is made of at most a hundred, and some may be no good.
MAX_UPDATES = 150
_RETRY_SECONDS = 5.0
_OUTCOMES = {
    pb.OUTCOME_SUCCEEDED: ExecutionState.SUCCEEDED,
    pb.OUTCOME_FAILED: ExecutionState.FAILED,
    pb.OUTCOME_REJECTED: ExecutionState.REJECTED,
}
# Failures that the same request may not meet a second time; the others would only repeat themselves.
_PASSING = {
    pb.REASON_WORKER_FAILED,
    pb.REASON_NO_SPACE,
    pb.REASON_OUT_OF_MEMORY,
    pb.REASON_OUT_OF_TIME,
    pb.REASON_STORAGE_FAILED,
}


@dataclass(frozen=True)
class Told:
    """What a device says of itself beside every answer: the version of its root, and what it asks the time with."""

    root_version: int = 0
    time_nonce: bytes = b""


def report_receipt(
    ledger: Ledger,
    execution_id: str,
    node_id: int,
    envelope: bytes,
    update_body: bytes = b"",
    told: Told = Told(),
) -> None:
    """Take a device's receipt. One that is none counts as a fault, and the device is asked again."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id, told)
        if execution.device.revoked_at is not None:
            _refuse(session, ledger, execution)
            return
        if _is_open(ledger, execution) and _is_past(session, execution, envelope):
            return  # a duplicate of an answer after which the device is asked once more
        try:
            receipt = accept_receipt(envelope, execution)
        except ReceiptError as error:
            tallies.note_refused(session, execution, error.kind, ledger.clock())
            _fault(session, ledger, execution, f"the answer was not a receipt: {error}")
            return
        new = _OUTCOMES[receipt.outcome]
        if not may_follow(ExecutionState(execution.state), new):
            return  # a duplicate of the answer that was taken
        tallies.note_receipt(session, execution, receipt, ledger.clock())
        if _is_early(ledger, execution, receipt):
            _log(session, execution, envelope)
            _keep_past(session, ledger, execution, receipt, envelope)
            if execution.handed_out:
                execution.lease_until = ledger.clock() + _RETRY_SECONDS
            return
        _log(session, execution, envelope)
        execution.handed_out = False
        execution.base_digest = receipt.model_digest_before[:64]
        execution.reason = "" if new == ExecutionState.SUCCEEDED else _reason_name(receipt.reason)
        execution.detail = receipt.detail
        _measured(execution, receipt)
        if not _put_off(session, ledger, execution, receipt, envelope):
            _conclude(session, ledger, execution, new, receipt, envelope)
            _keep_update(session, ledger, execution, receipt, update_body)
        finish_if_done(session, ledger, execution.request)


def _log(session: Session, execution: Execution, envelope: bytes) -> None:
    log_receipt(session, execution.request_id, execution.device.device_id, envelope)


def _refuse(session: Session, ledger: Ledger, execution: Execution) -> None:
    """A revoked device's receipt: whoever has its key may have made it, whenever it says it was."""
    device = execution.device
    device.refused_receipts += 1
    if device.refused_receipts <= MOST_REFUSAL_EVENTS:
        ledger.record(
            session,
            "receipt.refused",
            fleet=execution.request.fleet.name,
            device_id=device.device_id,
            request_id=execution.request_id,
            detail="the device is revoked",
        )


def _conclude(
    session: Session, ledger: Ledger, execution: Execution, new: ExecutionState, receipt: pb.Receipt, envelope: bytes
) -> None:
    execution.receipt_envelope = envelope
    execution.stage, execution.fraction = "done", 1.0
    # Of a refusal too: the device may have got another model since it was enrolled.
    model = receipt.model_digest_after if new == ExecutionState.SUCCEEDED else receipt.model_digest_before
    execution.device.model_digest = model[:64] or execution.device.model_digest
    if new == ExecutionState.SUCCEEDED:
        execution.device.software_version = receipt.software_version[:64]
    move(session, ledger, execution, new)


def _put_off(session: Session, ledger: Ledger, execution: Execution, receipt: pb.Receipt, envelope: bytes) -> bool:
    """True if this receipt is not the last word: there is another attempt, or a patch will come."""
    if not _is_open(ledger, execution):
        return False
    plan = RolloutPlan.model_validate(execution.request.plan)
    # After a restored backup a device may be further than the ledger.
    execution.attempt = max(execution.attempt, min(receipt.attempt, plan.max_attempts))
    no_samples = receipt.outcome == pb.OUTCOME_REJECTED and receipt.reason == pb.REASON_NO_FORGET_SAMPLES
    again = _may_pass(receipt) and execution.attempt < plan.max_attempts
    patchable = no_samples and plan.without_samples == "aggregate" and execution.patch_id is None
    if not again and not patchable:
        return False
    _keep_past(session, ledger, execution, receipt, envelope)
    reason = f"{execution.reason}: {execution.detail}"
    if again:
        pause = plan.backoff(execution.attempt)
        requeue(session, ledger, execution, f"attempt {execution.attempt}: {reason}", after=pause, next_attempt=True)
    else:
        requeue(session, ledger, execution, reason)
        execution.waiting = "patch"
    return True


def _may_pass(receipt: pb.Receipt) -> bool:
    """True if the same request may not meet this problem a second time; the agent then lets it be tried again."""
    if receipt.outcome == pb.OUTCOME_REJECTED:
        return receipt.reason in (pb.REASON_NO_SPACE, pb.REASON_STORAGE_FAILED)
    return receipt.outcome == pb.OUTCOME_FAILED and receipt.reason in _PASSING


def _is_open(ledger: Ledger, execution: Execution) -> bool:
    """True if the device may be asked once more."""
    request = execution.request
    return execution.state in ACTIVE and request.state in OPEN_REQUEST and request.expires_at > ledger.clock()


def _is_early(ledger: Ledger, execution: Execution, receipt: pb.Receipt) -> bool:
    """True for the failure of an attempt that took so long that the next one was asked for meanwhile."""
    earlier = max(receipt.attempt, 1) < execution.attempt
    failed = receipt.outcome == pb.OUTCOME_FAILED or _may_pass(receipt)
    return earlier and failed and _is_open(ledger, execution)


def _keep_past(session: Session, ledger: Ledger, execution: Execution, receipt: pb.Receipt, envelope: bytes) -> None:
    attempt = min(max(receipt.attempt, 1), execution.attempt)
    session.add(PastReceipt(execution_id=execution.id, attempt=attempt, envelope=envelope, received_at=ledger.clock()))


def _keep_update(session: Session, ledger: Ledger, execution: Execution, receipt: pb.Receipt, body: bytes) -> None:
    """Keep what the device hands out for others, if its receipt names it byte for byte."""
    request, base = execution.request, receipt.model_digest_before[:64]
    if not body or execution.state != ExecutionState.SUCCEEDED or len(body) > MAX_UPDATE_BYTES:
        return
    if sha256(body).digest() != receipt.update_digest or execution.patch_id is not None:
        return
    if request.state not in OPEN_REQUEST or RolloutPlan.model_validate(request.plan).without_samples != "aggregate":
        return
    others = select(func.count()).select_from(Update).join(Execution, Execution.id == Update.execution_id)
    kept = session.scalar(others.where(Execution.request_id == request.id, Update.base_digest == base)) or 0
    if kept < MAX_UPDATES:
        session.add(Update(execution_id=execution.id, base_digest=base, body=body, received_at=ledger.clock()))


def _is_past(session: Session, execution: Execution, envelope: bytes) -> bool:
    query = select(PastReceipt.id).where(PastReceipt.execution_id == execution.id, PastReceipt.envelope == envelope)
    return session.scalar(query.limit(1)) is not None


def _measured(execution: Execution, receipt: pb.Receipt) -> None:
    shares = measured_shares(receipt)
    execution.ua_before, execution.ua_after = shares.get("ua_before"), shares.get("ua_after")
    execution.ra_before, execution.ra_after = shares.get("ra_before"), shares.get("ra_after")
    measured = execution.ra_before is not None and execution.ra_after is not None
    execution.ra_drop = execution.ra_before - execution.ra_after if measured else None  # type: ignore[operator]


def _reason_name(reason: int) -> str:
    """Name of a reason; its number if the device's agent is newer than this coordinator."""
    known = pb.Reason.DESCRIPTOR.values_by_number.get(reason)
    return known.name.removeprefix("REASON_") if known is not None else str(reason)


def report_progress(
    ledger: Ledger, execution_id: str, node_id: int, stage: str, fraction: float, told: Told = Told()
) -> None:
    """The device is still at it: show how far, and ask again at once."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id, told)
        if not execution.handed_out:
            return
        execution.lease_until = execution.updated_at = ledger.clock()
        if execution.state == ExecutionState.IN_PROGRESS:
            execution.stage, execution.fraction = stage[:32], min(max(fraction, 0.0), 1.0)


def report_error(
    ledger: Ledger, execution_id: str, node_id: int, error: str, *, unreachable: bool, told: Told = Told()
) -> None:
    """No answer. A device that could not be reached is asked again, however often; other errors are counted."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id, told)
        if told.time_nonce and execution.handed_out:
            # It waits for the time, and for nothing else.
            execution.lease_until = ledger.clock()
        elif unreachable and execution.state == ExecutionState.IN_PROGRESS:
            # A device that was cut off counts as online for a minute: it must not be asked twice a second meanwhile.
            requeue(session, ledger, execution, error, after=_RETRY_SECONDS)
        else:
            _fault(session, ledger, execution, error)


def report_not_begun(ledger: Ledger, execution_id: str, node_id: int, told: Told = Told()) -> None:
    """Answer to a recall: the device never began, and will not."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id, told)
        execution.handed_out = False
        if execution.state in ACTIVE:
            if execution.request.state not in FINAL_REQUEST:
                # It was recalled by mistake, or by another coordinator: it is asked again.
                requeue(session, ledger, execution, "recalled before it began")
                return
            execution.reason, execution.detail = execution.request.state, execution.request.reason
            move(session, ledger, execution, ExecutionState.CANCELED)
            finish_if_done(session, ledger, execution.request)


def _find(session: Session, execution_id: str, node_id: int, told: Told) -> Execution:
    execution = session.scalar(
        select(Execution)
        .where(Execution.id == execution_id)
        .with_for_update(of=Execution)
        # One statement, not four: this is the whole reading of most reports.
        .options(
            joinedload(Execution.device, innerjoin=True),
            # Its target may name thousands of devices: nothing to read again with every receipt.
            joinedload(Execution.request, innerjoin=True).options(
                joinedload(Request.fleet, innerjoin=True), defer(Request.target)
            ),
        )
    )
    if execution is None or execution.device.node_id != str(node_id):
        raise UsageError(f"there is no execution {execution_id} on node {node_id}")
    if told.root_version:
        # The forwarder's own errors, and agents of before there were roots, say nothing of it.
        device = execution.device
        device.root_version = min(told.root_version, 2**63 - 1)
        device.time_nonce = told.time_nonce if len(told.time_nonce) == NONCE_BYTES else b""
    return execution


def _fault(session: Session, ledger: Ledger, execution: Execution, problem: str) -> None:
    """Count an answer that was none: asked again after a pause, or FAILED when there were too many."""
    if execution.state != ExecutionState.IN_PROGRESS:
        execution.lease_until = ledger.clock() + _RETRY_SECONDS
        return
    execution.faults += 1
    if execution.faults >= MAX_FAULTS:
        execution.reason, execution.detail = "NO_RECEIPT", problem
        move(session, ledger, execution, ExecutionState.FAILED, problem)
        finish_if_done(session, ledger, execution.request)
    else:
        requeue(session, ledger, execution, problem, after=_RETRY_SECONDS * execution.faults)
