"""The reconciler: from "this fleet must forget this class" to one answer from every device.

The ledger holds the desired state. :func:`lease` hands out what is pending for the devices that
are online, :func:`report` takes what came back. Delivery is at least once: a lease that runs
out is given again, and the agent answers a repeated request with the receipt it has.
"""

import json
import secrets
import uuid
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from securesystemslib.signer import Signer
from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.enrol import fleet_classes, require_fleet
from clue_coordinator.errors import ConflictError, ReceiptError, UsageError
from clue_coordinator.ledger import Ledger, find_request
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.receipts import accept_receipt
from clue_coordinator.states import (
    FINAL,
    FINAL_REQUEST,
    ExecutionState,
    RequestState,
    check_change,
    may_follow,
)
from clue_protocol.envelope import REQUEST_TYPE, sign_message
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

WAIT_SECONDS = 25.0
TTL_SECONDS = 120.0
LEASE_SECONDS = 150.0
POLL_SECONDS = 0.5
# Answers that are no receipts (a crashed forwarder, say) before the device counts as failed.
MAX_ATTEMPTS = 8
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class ForgetOrder:
    """What an operator asks for, checked by :func:`create_request`."""

    fleet: str
    forget_class: str
    method: str = ""
    hyperparameters: dict[str, object] | None = None
    seed: int = 0
    max_ua: float = 0.10
    max_ra_drop: float = 0.05
    expires_in_seconds: float = 7 * 86400.0
    idempotency_key: str | None = None
    created_by: str = "operator"


def create_request(ledger: Ledger, order: ForgetOrder, signer: Signer) -> str:
    """Sign a request for every device of the fleet and queue it; returns its id.

    Raises:
        UsageError: unknown fleet or class, policy out of range.
        ConflictError: the fleet has no devices.
    """
    for name, value in (("max UA", order.max_ua), ("max RA drop", order.max_ra_drop)):
        if not 0 <= value <= 1:
            raise UsageError(f"the policy's {name} must be in [0, 1], got {value:g}")
    if not 60 <= order.expires_in_seconds <= 366 * 86400:
        raise UsageError(f"a request must expire after 1 minute to 1 year, got {order.expires_in_seconds:g} s")
    for name, text, longest in (("method", order.method, 63), ("idempotency key", order.idempotency_key or "", 64)):
        if len(text) > longest:
            raise UsageError(f"the {name} has {len(text)} characters; {longest} are the most")
    with ledger.write() as session:
        if order.idempotency_key:
            known = session.scalar(select(Request.id).where(Request.idempotency_key == order.idempotency_key))
            if known is not None:
                return known
        fleet = require_fleet(session, order.fleet)
        if not fleet.devices:
            raise ConflictError(f"fleet '{order.fleet}' has no devices: add one with 'clue-coordinator device add'")
        classes = fleet_classes(fleet)
        if order.forget_class not in classes:
            raise UsageError(f"fleet '{order.fleet}': {unknown_class(order.forget_class, classes)}")
        now = ledger.clock()
        fleet.sequence += 1
        message = pb.ForgetRequest(
            request_id=str(uuid.uuid4()),
            fleet=order.fleet,
            sequence=fleet.sequence,
            forget_class=order.forget_class,
            method=order.method,
            hyperparameters_json=json.dumps(order.hyperparameters, sort_keys=True) if order.hyperparameters else "",
            seed=order.seed,
            policy=pb.Policy(max_ua=order.max_ua, max_ra_drop=order.max_ra_drop),
            issued_at=Timestamp(seconds=int(now)),
            expires_at=Timestamp(seconds=int(now + order.expires_in_seconds)),
            nonce=secrets.token_bytes(16),
        )
        request = Request(
            id=message.request_id,
            fleet=fleet,
            forget_class=order.forget_class,
            method=order.method,
            max_ua=order.max_ua,
            max_ra_drop=order.max_ra_drop,
            state=RequestState.SCHEDULED,
            envelope=sign_message(message, REQUEST_TYPE, [signer]),
            idempotency_key=order.idempotency_key or None,
            created_by=order.created_by,
            created_at=now,
            expires_at=float(int(now + order.expires_in_seconds)),
        )
        session.add(request)
        for device in fleet.devices:
            session.add(
                Execution(
                    id=str(uuid.uuid4()),
                    request=request,
                    device=device,
                    state=ExecutionState.QUEUED,
                    updated_at=now,
                )
            )
        detail = f"forget '{order.forget_class}' on {len(fleet.devices)} device(s)"
        ledger.record(session, "request.created", fleet=order.fleet, request_id=message.request_id, detail=detail)
        return message.request_id


def unknown_class(name: str, classes: list[str]) -> str:
    """One line naming near misses and the classes there are."""
    from clue.spec import unknown_class_message

    return unknown_class_message(name, classes).replace("the model has", "its models have")


def lease(ledger: Ledger, online_nodes: list[int]) -> list[dispatch_pb2.Assignment]:
    """Note who is online, time out what expired, and hand out what is pending for those who are."""
    now = ledger.clock()
    online = {str(node) for node in online_nodes}
    with ledger.read() as session:
        idle = not _anything_to_do(session, online, now)
    if idle:
        return []
    with ledger.write() as session:
        _note_presence(session, ledger, online, now)
        _expire(session, ledger, now)
        pending = session.scalars(
            select(Execution)
            .join(Execution.device)
            .join(Execution.request)
            .where(_leasable(now), Device.node_id.in_(online))
            .order_by(Request.created_at, Device.device_id)
            # Row locks exist on PostgreSQL only. What someone else holds right now can wait for the next lease.
            .with_for_update(of=Execution, skip_locked=True)
            .options(selectinload(Execution.device), selectinload(Execution.request).selectinload(Request.fleet))
        ).all()
        assignments = []
        for execution in pending:
            request = execution.request
            _move(session, ledger, execution, ExecutionState.IN_PROGRESS)
            execution.lease_until = now + LEASE_SECONDS
            if request.state == RequestState.SCHEDULED:
                request.state = RequestState.IN_PROGRESS
            assignments.append(
                dispatch_pb2.Assignment(
                    execution_id=execution.id,
                    request_id=request.id,
                    node_id=int(execution.device.node_id),
                    request_envelope=request.envelope,
                    wait_seconds=WAIT_SECONDS,
                    ttl_seconds=TTL_SECONDS,
                )
            )
        return assignments


def report_receipt(ledger: Ledger, execution_id: str, node_id: int, envelope: bytes) -> None:
    """Take a device's receipt. ReceiptError if it is not one; the execution is then tried again."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id)
        try:
            receipt = accept_receipt(envelope, execution)
        except ReceiptError as error:
            _retry(session, ledger, execution, f"the answer was not a receipt: {error}")
            return
        new = {
            pb.OUTCOME_SUCCEEDED: ExecutionState.SUCCEEDED,
            pb.OUTCOME_FAILED: ExecutionState.FAILED,
            pb.OUTCOME_REJECTED: ExecutionState.REJECTED,
        }[receipt.outcome]
        if not may_follow(ExecutionState(execution.state), new):
            return  # a duplicate of an answer that was taken
        execution.receipt_envelope = envelope
        execution.reason = "" if new == ExecutionState.SUCCEEDED else _reason_name(receipt.reason)
        execution.detail = receipt.detail
        execution.stage, execution.fraction = "done", 1.0
        if new == ExecutionState.SUCCEEDED:
            # A device may say anything; PostgreSQL refuses what is longer than its column.
            execution.device.model_digest = receipt.model_digest_after[:64]
            execution.device.software_version = receipt.software_version[:64]
        _move(session, ledger, execution, new)
        _finish_if_done(session, ledger, execution.request_id)


def _reason_name(reason: int) -> str:
    """Name of a reason; its number if the device's agent is newer than this coordinator."""
    known = pb.Reason.DESCRIPTOR.values_by_number.get(reason)
    return known.name.removeprefix("REASON_") if known is not None else str(reason)


def report_progress(ledger: Ledger, execution_id: str, node_id: int, stage: str, fraction: float) -> None:
    """The device is still at it: show how far, and ask again at once."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id)
        if execution.state != ExecutionState.IN_PROGRESS:
            return
        execution.stage, execution.fraction = stage[:32], min(max(fraction, 0.0), 1.0)
        execution.lease_until = execution.updated_at = ledger.clock()


def report_error(ledger: Ledger, execution_id: str, node_id: int, error: str, *, unreachable: bool) -> None:
    """No answer. A device that could not be reached waits for its return; other errors are counted."""
    with ledger.write() as session:
        execution = _find(session, execution_id, node_id)
        if execution.state != ExecutionState.IN_PROGRESS:
            return
        if unreachable:
            execution.device.online = False
            _move(session, ledger, execution, ExecutionState.QUEUED, error)
        else:
            _retry(session, ledger, execution, error)


def release_all(ledger: Ledger) -> None:
    """A new dispatcher takes over: what the old one held is handed out again, nobody counts as online."""
    with ledger.write() as session:
        for execution in session.scalars(select(Execution).where(Execution.state == ExecutionState.IN_PROGRESS)):
            execution.lease_until = ledger.clock()
        for device in session.scalars(select(Device).where(Device.online)):
            device.online = False


def _leasable(now: float) -> ColumnElement[bool]:
    return or_(
        Execution.state.in_([ExecutionState.QUEUED])
        & or_(Execution.lease_until.is_(None), Execution.lease_until <= now),
        (Execution.state == ExecutionState.IN_PROGRESS) & (Execution.lease_until <= now),
    )


def _anything_to_do(session: Session, online: set[str], now: float) -> bool:
    """False while nothing changed: an idle coordinator must not write to its disk twice a second."""
    known_online = set(session.scalars(select(Device.node_id).where(Device.online)))
    known = set(session.scalars(select(Device.node_id).where(Device.node_id.in_(online)))) if online else set()
    if known != known_online:
        return True
    stale = select(func.min(Device.last_seen)).where(Device.online)
    oldest = session.scalar(stale)
    if oldest is not None and oldest < now - 30:
        return True
    open_states = [ExecutionState.QUEUED, ExecutionState.IN_PROGRESS]
    expired = (
        select(Execution.id).join(Execution.request).where(Execution.state.in_(open_states), Request.expires_at <= now)
    )
    leasable = select(Execution.id).join(Execution.device).where(_leasable(now), Device.node_id.in_(online))
    return bool(session.scalar(expired.limit(1)) or session.scalar(leasable.limit(1)))


def _note_presence(session: Session, ledger: Ledger, online: set[str], now: float) -> None:
    near = select(Device).where(or_(Device.online, Device.node_id.in_(online))).order_by(Device.device_id)
    for device in session.scalars(near):
        here = device.node_id in online
        if here and not device.online:
            # What it was asked before it left is asked again at once: the reply to the old message may never come.
            session.execute(
                update(Execution)
                .where(Execution.device_pk == device.id, Execution.state == ExecutionState.IN_PROGRESS)
                .values(lease_until=now)
            )
        if here != device.online:
            ledger.record(session, "device.online" if here else "device.offline", device_id=device.device_id)
        device.online = here
        if here:
            device.last_seen = now


def _expire(session: Session, ledger: Ledger, now: float) -> None:
    rows = session.scalars(
        select(Execution)
        .join(Execution.request)
        .where(
            Execution.state.in_([ExecutionState.QUEUED, ExecutionState.IN_PROGRESS]),
            Request.expires_at <= now,
        )
        .order_by(Request.created_at, Execution.device_pk)
        .options(selectinload(Execution.device))
    ).all()
    for execution in rows:
        execution.reason, execution.detail = "DEADLINE", "the request expired before the device answered"
        _move(session, ledger, execution, ExecutionState.TIMED_OUT)
    for request_id in dict.fromkeys(execution.request_id for execution in rows):
        _finish_if_done(session, ledger, request_id)


def _find(session: Session, execution_id: str, node_id: int) -> Execution:
    execution = session.scalar(
        select(Execution)
        .where(Execution.id == execution_id)
        .with_for_update(of=Execution)
        .options(selectinload(Execution.device), selectinload(Execution.request).selectinload(Request.fleet))
    )
    if execution is None or execution.device.node_id != str(node_id):
        raise UsageError(f"there is no execution {execution_id} on node {node_id}")
    return execution


def _retry(session: Session, ledger: Ledger, execution: Execution, problem: str) -> None:
    """Count a failed attempt: back to the queue after a pause, or FAILED when there were too many."""
    if execution.state != ExecutionState.IN_PROGRESS:
        return
    execution.attempts += 1
    if execution.attempts >= MAX_ATTEMPTS:
        execution.reason, execution.detail = "NO_RECEIPT", problem
        _move(session, ledger, execution, ExecutionState.FAILED, problem)
        _finish_if_done(session, ledger, execution.request_id)
    else:
        execution.detail = problem
        _move(session, ledger, execution, ExecutionState.QUEUED, problem)
        execution.lease_until = ledger.clock() + _RETRY_SECONDS * execution.attempts


def _move(session: Session, ledger: Ledger, execution: Execution, new: ExecutionState, detail: str = "") -> None:
    old = ExecutionState(execution.state)
    execution.updated_at = ledger.clock()
    if old == new:
        return
    check_change(old, new)
    execution.state = new
    if new in FINAL or new == ExecutionState.QUEUED:
        execution.lease_until = None
    ledger.record(
        session,
        f"execution.{new.lower()}",
        device_id=execution.device.device_id,
        request_id=execution.request_id,
        detail=detail or execution.detail,
    )


def _finish_if_done(session: Session, ledger: Ledger, request_id: str) -> None:
    session.flush()
    request = find_request(session, request_id)
    assert request is not None  # noqa: S101
    if request.state in FINAL_REQUEST or any(e.state not in FINAL for e in request.executions):
        return
    request.state = RequestState.COMPLETED
    request.finished_at = ledger.clock()
    succeeded = sum(e.state == ExecutionState.SUCCEEDED for e in request.executions)
    detail = f"{succeeded} of {len(request.executions)} device(s) succeeded"
    ledger.record(session, "request.completed", fleet=request.fleet.name, request_id=request_id, detail=detail)
