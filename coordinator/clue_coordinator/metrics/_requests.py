"""Requests that are open, or were until a day ago: how far they are, what they miss, who is late."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session, defer

from clue_coordinator.executions import active
from clue_coordinator.metrics._tallied import Tallied, read_requests
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.states import ACTIVE, OPEN_REQUEST, ExecutionState

# The newest ones. Each costs about fifty series, and a look at its executions that are not over.
MOST = 20
_KEPT_SECONDS = 86_400.0
_LABELS = ("fleet", "request")


def collect(session: Session, fleets: dict[int, str], now: float) -> Iterator[Metric]:
    """Gauges of at most :data:`MOST` requests."""
    is_open = Request.state.in_(OPEN_REQUEST)
    shown = or_(is_open, Request.finished_at.is_(None), Request.finished_at > now - _KEPT_SECONDS)
    query = select(Request).where(shown).options(defer(Request.target), defer(Request.envelope))
    # What goes on comes first.
    requests = list(session.scalars(query.order_by(is_open.desc(), Request.created_at.desc()).limit(MOST)))
    number = session.scalar(select(func.count()).select_from(Request).where(shown)) or 0
    yield GaugeMetricFamily(
        "clue_requests_omitted", "Open or recent requests without series of their own.", value=number - len(requests)
    )
    names = {request.id: [fleets.get(request.fleet_id, ""), request.id] for request in requests}
    tallied = read_requests(session, list(names))
    yield from _progress(requests, names, tallied)
    yield from _pending(session, names, now)
    yield from _measured(names, tallied)


def _progress(requests: Sequence[Request], names: dict[str, list[str]], tallied: Tallied) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "clue_request_info", "What is to be forgotten.", labels=[*_LABELS, "forget_class", "method", "state"]
    )
    states = GaugeMetricFamily("clue_request_executions", "Its devices by state.", labels=[*_LABELS, "state"])
    progress = _gauge("progress_ratio", "Share of its devices that are done with it.")
    is_open = _gauge("open", "1 while devices may still be asked.")
    paused = _gauge("paused", "1 while an operator holds it.")
    created = _gauge("created_timestamp_seconds", "When it was made.")
    deadline = _gauge("deadline_timestamp_seconds", "When it expires.")
    change = _gauge("last_change_timestamp_seconds", "When it last began a wave or got a receipt.")
    max_ua = _gauge("max_ua_ratio", "Policy: highest accuracy on the forgotten class.")
    max_drop = _gauge("max_ra_drop_ratio", "Policy: largest loss of accuracy on the retained classes.")
    for request in requests:
        labels = names[request.id]
        info.add_metric([*labels, request.forget_class, request.method or "device's choice", request.state], 1)
        for state in ExecutionState:
            states.add_metric([*labels, state], request.counts.get(state, 0))
        total = sum(request.counts.values())
        progress.add_metric(labels, (total - active(request)) / total if total else 1.0)
        is_open.add_metric(labels, request.state in OPEN_REQUEST)
        paused.add_metric(labels, request.paused_at is not None)
        created.add_metric(labels, request.created_at)
        deadline.add_metric(labels, request.expires_at)
        news = (request.created_at, request.wave_at or 0.0, tallied.last_receipt(request.id) or 0.0)
        change.add_metric(labels, max(news))
        max_ua.add_metric(labels, request.max_ua)
        max_drop.add_metric(labels, request.max_ra_drop)
    yield from (info, states, progress, is_open, paused, created, deadline, change, max_ua, max_drop)


def _pending(session: Session, names: dict[str, list[str]], now: float) -> Iterator[Metric]:
    pending = GaugeMetricFamily(
        "clue_request_devices_pending", "Devices that have not answered.", labels=[*_LABELS, "online"]
    )
    due = _gauge("devices_due", "Of these, the ones that are online and whose turn it is, waves and pauses considered.")
    longest = _gauge("longest_running_seconds", "How long the slowest device has been at it; 0 if none is.")
    rows = session.execute(
        select(
            Execution.request_id,
            func.count(),
            func.sum(case((Device.online, 1), else_=0)),
            func.sum(case((and_(Device.online, *_its_turn(now)), 1), else_=0)),
            func.min(case((Execution.state == ExecutionState.IN_PROGRESS, Execution.started_at))),
        )
        .join(Execution.device)
        .join(Execution.request)
        .where(Execution.request_id.in_(list(names)), Execution.state.in_(ACTIVE))
        .group_by(Execution.request_id)
    )
    found = {request: numbers for request, *numbers in rows}
    for request, labels in names.items():
        count, online, ready, since = found.get(request, (0, 0, 0, None))
        pending.add_metric([*labels, "true"], online)
        pending.add_metric([*labels, "false"], count - online)
        due.add_metric(labels, ready)
        longest.add_metric(labels, now - since if since is not None else 0.0)
    yield from (pending, due, longest)


def _its_turn(now: float) -> tuple[ColumnElement[bool], ...]:
    return (
        Execution.wave <= Request.wave,
        Execution.waiting == "",
        or_(Execution.not_before.is_(None), Execution.not_before <= now),
    )


def _measured(names: dict[str, list[str]], tallied: Tallied) -> Iterator[Metric]:
    drop = HistogramMetricFamily(
        "clue_request_ra_drop_ratio", "Loss of accuracy on the retained classes; 0 where it rose.", labels=[*_LABELS]
    )
    missed = CounterMetricFamily(
        "clue_request_policy_missed", "Receipts with a value beyond its policy.", labels=[*_LABELS, "bound"]
    )
    for request, labels in names.items():
        tallied.add_histogram(drop, labels, request, "ra_drop_ratio", "")
        for bound in ("ua", "ra_drop"):
            tallied.add_counter(missed, [*labels, bound], request, "policy_missed", bound)
    yield from (drop, missed)


def _gauge(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"clue_request_{name}", help_text, labels=[*_LABELS])
