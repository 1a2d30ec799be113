"""How far a request is, and which of its executions are worth showing first."""

from dataclasses import dataclass

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.executions import active
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.states import ACTIVE, UNSUCCESSFUL, ExecutionState

_FIRST = {
    ExecutionState.IN_PROGRESS: 1,
    ExecutionState.SUCCEEDED: 2,
    ExecutionState.QUEUED: 3,
}


@dataclass(frozen=True)
class Progress:
    """What an operator wants to know of a request beside its counts.

    Attributes:
        executions: the most telling ones: failures, what is going on, then by loss of retained accuracy.
        waiting_offline: devices that have not answered and are offline.
        waiting_patch: devices that wait for a patch.
        eta_seconds: until those that are online have answered, at the pace so far; None while there is none.
    """

    executions: list[Execution]
    waiting_offline: int
    waiting_patch: int
    eta_seconds: float | None


def progress_of(session: Session, request: Request, limit: int, now: float) -> Progress:
    """Look at a request; at most ``limit`` executions are loaded."""
    of_request = Execution.request_id == request.id
    query = (
        select(Execution)
        .join(Execution.device)
        .where(of_request)
        .options(selectinload(Execution.device), selectinload(Execution.request))
        .limit(limit)
    )
    if sum(request.counts.values()) <= limit:
        executions = list(session.scalars(query.order_by(Device.device_id)))
    else:
        executions = _telling(session, query, limit)
    if not active(request):
        return Progress(executions, 0, 0, None)
    pending = (
        select(func.count())
        .select_from(Execution)
        .join(Execution.device)
        .where(of_request, Execution.state.in_(ACTIVE))
    )
    offline = session.scalar(pending.where(~Device.online)) or 0
    patch = session.scalar(pending.where(Execution.waiting == "patch")) or 0
    return Progress(executions, offline, patch, _eta(session, request, active(request) - offline, now))


def _telling(session: Session, query: Select[Execution], limit: int) -> list[Execution]:
    """At least half of the room for what goes on and what succeeded, however many failures there are."""
    # Databases do not agree where NULL is sorted.
    loss = func.coalesce(Execution.ra_drop, -2).desc()
    rank = case(_FIRST, value=Execution.state, else_=4)
    bad = Execution.state.in_(UNSUCCESSFUL)
    failures = list(session.scalars(query.where(bad).order_by(loss, Device.device_id)))
    others = list(session.scalars(query.where(~bad).order_by(rank, loss, Device.device_id)))
    shown = failures[: max(limit // 2, limit - len(others))]
    return shown + others[: limit - len(shown)]


def _eta(session: Session, request: Request, left: int, now: float) -> float | None:
    begun, done = session.execute(
        select(func.min(Execution.started_at), func.count(Execution.finished_at)).where(
            Execution.request_id == request.id, Execution.started_at.is_not(None)
        )
    ).one()
    if begun is None or not done or left <= 0 or request.paused_at is not None or now <= begun:
        return None
    at_this_pace = left * (now - begun) / done
    plan = RolloutPlan.model_validate(request.plan)
    waves = (request.waves - request.wave) * plan.rate_period_seconds if plan.rate else 0.0
    return float(max(at_this_pace, waves))
