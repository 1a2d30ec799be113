"""Every change of an execution's state goes through here, so that counts and history cannot fall behind."""

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Patch, Request, Update
from clue_coordinator.states import ACTIVE, FINAL, FINAL_REQUEST, ExecutionState, RequestState, check_change


def add_execution(session: Session, request: Request, device: Device, wave: int, now: float) -> Execution:
    """Queue a request for a device."""
    execution = Execution(
        id=str(uuid.uuid4()),
        request=request,
        device=device,
        state=ExecutionState.QUEUED,
        wave=wave,
        sequence=request.sequence,
        waiting=_waiting(request),
        updated_at=now,
    )
    session.add(execution)
    _count(request, ExecutionState.QUEUED, 1)
    return execution


def add_executions(session: Session, request: Request, waves: Sequence[Sequence[Device]], now: float) -> None:
    """Queue a new request for the devices of its waves, in one statement; ``waves[0]`` is the canary."""
    rows = [
        {
            "id": str(uuid.uuid4()),
            "request_id": request.id,
            "device_pk": device.id,
            "state": ExecutionState.QUEUED,
            "wave": wave,
            "sequence": request.sequence,
            "waiting": _waiting(request),
            "updated_at": now,
        }
        for wave, devices in enumerate(waves)
        for device in devices
    ]
    _count(request, ExecutionState.QUEUED, len(rows))
    session.flush()
    if rows:
        session.execute(insert(Execution), rows)


def move(session: Session, ledger: Ledger, execution: Execution, new: ExecutionState, detail: str = "") -> None:
    """Change the state, or only the time of the last news if it is the same; ValueError if it may not follow."""
    now = ledger.clock()
    old = ExecutionState(execution.state)
    execution.updated_at = now
    if old == new:
        return
    check_change(old, new)
    execution.state = new
    _count(execution.request, old, -1)
    _count(execution.request, new, 1)
    if new == ExecutionState.QUEUED:
        # The start counts for the period's cap on starts, whatever came of it.
        execution.lease_until = None
        execution.stage, execution.fraction = "", 0.0
    elif new in FINAL:
        execution.finished_at = now
        execution.lease_until = None
        execution.not_before, execution.waiting = None, ""
    ledger.record(
        session,
        f"execution.{new.lower()}",
        fleet=execution.request.fleet.name,
        device_id=execution.device.device_id,
        request_id=execution.request_id,
        detail=detail or execution.detail,
    )


def requeue(
    session: Session,
    ledger: Ledger,
    execution: Execution,
    detail: str,
    *,
    after: float = 0.0,
    next_attempt: bool = False,
) -> None:
    """Back to the queue, to be handed out again after so many seconds."""
    execution.reason, execution.detail = "", detail
    move(session, ledger, execution, ExecutionState.QUEUED, detail)
    execution.not_before = ledger.clock() + after if after else None
    # A recall knows no other pause than the lease.
    execution.lease_until = execution.not_before
    if next_attempt:
        execution.attempt += 1
        execution.faults = 0


def active(request: Request) -> int:
    """Executions that are not over."""
    return sum(request.counts.get(state, 0) for state in ACTIVE)


def finish_if_done(session: Session, ledger: Ledger, request: Request) -> None:
    """Complete a request whose last execution is over; a continuous one waits for its deadline."""
    if active(request):
        return
    now = ledger.clock()
    if request.state in FINAL_REQUEST:
        if request.finished_at is None:
            request.finished_at = now
        return
    if request.target.get("continuous") and now < request.expires_at:
        return
    _close(session, request, RequestState.COMPLETED)
    request.finished_at = now
    succeeded = request.counts.get(ExecutionState.SUCCEEDED, 0)
    detail = f"{succeeded} of {sum(request.counts.values())} device(s) succeeded"
    ledger.record(session, "request.completed", fleet=request.fleet.name, request_id=request.id, detail=detail)


def withdraw(session: Session, ledger: Ledger, request: Request, state: RequestState, reason: str) -> None:
    """End a request early: what no device has yet is CANCELED, what one may have is recalled."""
    _close(session, request, state)
    request.reason = reason
    kind = f"request.{state.lower()}"
    ledger.record(session, kind, fleet=request.fleet.name, request_id=request.id, detail=reason)
    waiting = (
        select(Execution)
        .where(_of(request), Execution.state == ExecutionState.QUEUED, Execution.handed_out.is_(False))
        .options(selectinload(Execution.device))
    )
    for execution in session.scalars(waiting).all():
        execution.reason, execution.detail = str(state), reason
        move(session, ledger, execution, ExecutionState.CANCELED, reason)
    finish_if_done(session, ledger, request)


def _waiting(request: Request) -> str:
    return "approval" if request.state == RequestState.AWAITING_APPROVAL else ""


def _close(session: Session, request: Request, state: RequestState) -> None:
    request.state, request.paused_at = state, None
    # No patch will be made any more: what devices handed out for others is not kept longer than it is needed.
    session.execute(
        delete(Update)
        .where(Update.execution_id.in_(select(Execution.id).where(_of(request))))
        .execution_options(synchronize_session=False)
    )
    # Nor is a patch handed out any more; with the patched model it would give the old one back.
    session.execute(
        update(Patch)
        .where(Patch.request_id == request.id)
        .values(body=b"")
        .execution_options(synchronize_session=False)
    )


def check_counts(session: Session, request: Request) -> bool:
    """True if the request's counts are those of its executions (what tests hold against it)."""
    rows = session.execute(select(Execution.state, func.count()).where(_of(request)).group_by(Execution.state))
    found = {str(state): int(number) for state, number in rows}
    return found == {s: n for s, n in request.counts.items() if n}


def _of(request: Request) -> ColumnElement[bool]:
    return Execution.request_id == request.id


def _count(request: Request, state: ExecutionState, change: int) -> None:
    # A new object: SQLAlchemy does not see changes inside a JSON value.
    request.counts = {**request.counts, state: request.counts.get(state, 0) + change}
