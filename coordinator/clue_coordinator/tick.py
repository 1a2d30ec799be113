"""What time asks for: deadlines, devices that take too long, the next wave, abort rules."""

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session, defer, selectinload

from clue_coordinator import patches
from clue_coordinator.executions import active, finish_if_done, move, requeue, withdraw
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.states import ACTIVE, FINAL_REQUEST, OPEN_REQUEST, ExecutionState, RequestState

# After so long the next second's tick goes on: a rollout of many thousands must not hold the writer.
_BATCH = 1000


def tick(ledger: Ledger) -> None:
    """Do what is due now. Called about every second by the daemon; harmless to call more often."""
    now = ledger.clock()
    with ledger.read() as session:
        due = [r.id for r in session.scalars(_unfinished()) if _is_due(session, r, now)]
    for request_id in due:
        with ledger.write() as session:
            request = session.get(Request, request_id, options=[selectinload(Request.fleet)])
            if request is not None:
                _advance(session, ledger, request, now)


def _unfinished() -> Select[Request]:
    """Requests that are open, and those that ended early with devices still at work."""
    return (
        select(Request)
        .where(or_(Request.state.in_(OPEN_REQUEST), Request.finished_at.is_(None)))
        .options(selectinload(Request.fleet), defer(Request.target))
        .order_by(Request.created_at, Request.sequence)
    )


def _is_due(session: Session, request: Request, now: float) -> bool:
    """True if :func:`_advance` would change something."""
    plan = RolloutPlan.model_validate(request.plan)
    if request.expires_at <= now:
        return True
    if request.state == RequestState.AWAITING_APPROVAL:
        return False
    if plan.timeout_seconds and session.scalar(_overdue(request, plan, now).limit(1)) is not None:
        return True
    if request.state in FINAL_REQUEST:
        return False
    if plan.verdict(request.counts, enough=False):
        return True
    if request.paused_at is not None:
        return False
    if request.wave == 0:
        return _canary_is_over(session, request)
    return _wave_is_due(request, plan, now)


def _advance(session: Session, ledger: Ledger, request: Request, now: float) -> None:
    plan = RolloutPlan.model_validate(request.plan)
    if request.expires_at <= now:
        _expire(session, ledger, request)
        return
    if request.state == RequestState.AWAITING_APPROVAL:
        return
    if plan.timeout_seconds:
        _time_out(session, ledger, request, plan, now)
    if request.state in FINAL_REQUEST:
        return
    over = request.wave == 0 and request.paused_at is None and _canary_is_over(session, request)
    verdict = plan.verdict(request.counts, enough=over)
    if over and _canary_was_removed(session, request):
        verdict = "the canary was retired before it answered"
    if verdict and (active(request) or request.target.get("continuous")):
        withdraw(session, ledger, request, RequestState.ABORTED, f"aborted: {verdict}")
    elif over or (request.paused_at is None and _wave_is_due(request, plan, now)):
        _next_wave(session, ledger, request, now)


def _wave_is_due(request: Request, plan: RolloutPlan, now: float) -> bool:
    return 0 < request.wave < request.waves and now >= (request.wave_at or 0.0) + plan.rate_period_seconds


def _next_wave(session: Session, ledger: Ledger, request: Request, now: float) -> None:
    request.wave += 1
    request.wave_at = now
    members = select(func.count()).where(Execution.request_id == request.id, Execution.wave == request.wave)
    detail = f"wave {request.wave} of {request.waves}: {session.scalar(members)} device(s)"
    ledger.record(session, "request.wave", fleet=request.fleet.name, request_id=request.id, detail=detail)


def _canary_is_over(session: Session, request: Request) -> bool:
    """All canaries have answered, except those that are offline and have not begun; and at least one has."""
    pending = (
        select(Execution.id)
        .join(Execution.device)
        .where(
            Execution.request_id == request.id,
            Execution.wave == 0,
            Execution.waiting == "",
            or_(
                Execution.state == ExecutionState.IN_PROGRESS,
                and_(Execution.state == ExecutionState.QUEUED, or_(Device.online, Execution.handed_out)),
            ),
        )
    )
    if session.scalar(pending.limit(1)) is not None:
        return False
    answered = select(Execution.id).where(
        Execution.request_id == request.id,
        Execution.wave == 0,
        or_(Execution.state.in_([*set(ExecutionState) - ACTIVE]), Execution.waiting != ""),
    )
    return session.scalar(answered.limit(1)) is not None


def _canary_was_removed(session: Session, request: Request) -> bool:
    """True if no canary is left that could tell how the request goes: perhaps it was retired for what it told."""
    left = select(Execution.id).where(
        Execution.request_id == request.id, Execution.wave == 0, Execution.state != ExecutionState.REMOVED
    )
    return session.scalar(left.limit(1)) is None


def _overdue(request: Request, plan: RolloutPlan, now: float) -> Select[Execution]:
    return select(Execution).where(
        Execution.request_id == request.id,
        Execution.state == ExecutionState.IN_PROGRESS,
        Execution.started_at <= now - plan.timeout_seconds,
    )


def _time_out(session: Session, ledger: Ledger, request: Request, plan: RolloutPlan, now: float) -> None:
    query = _overdue(request, plan, now).options(selectinload(Execution.device)).limit(_BATCH)
    for execution in session.scalars(query).all():
        problem = f"no answer within {plan.timeout_seconds:g} s of its beginning"
        if execution.attempt < plan.max_attempts and request.state in OPEN_REQUEST:
            requeue(session, ledger, execution, problem, after=plan.backoff(execution.attempt), next_attempt=True)
        else:
            execution.reason, execution.detail = "TIMEOUT", problem
            move(session, ledger, execution, ExecutionState.TIMED_OUT)
    finish_if_done(session, ledger, request)


def _expire(session: Session, ledger: Ledger, request: Request) -> None:
    if request.state == RequestState.AWAITING_APPROVAL:
        found = f"{len(request.approvals)} of {request.approvals_needed}"
        withdraw(session, ledger, request, RequestState.CANCELED, f"expired before it was approved: {found} approvals")
        return
    query = select(Execution).where(Execution.request_id == request.id, Execution.state.in_(ACTIVE)).limit(_BATCH)
    for execution in session.scalars(query.options(selectinload(Execution.device))).all():
        if execution.waiting == "patch":
            patches.reject(session, ledger, execution, "no patch could be made before the deadline")
            continue
        execution.reason, execution.detail = "DEADLINE", "the request expired before the device answered"
        move(session, ledger, execution, ExecutionState.TIMED_OUT)
    finish_if_done(session, ledger, request)
