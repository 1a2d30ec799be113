"""What each page shows: read from the ledger with the operator API's queries, as the plain data of ``--json``."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import models, pages, plain
from clue_coordinator import views as messages
from clue_coordinator.console import _tables as tables
from clue_coordinator.devices import require_device
from clue_coordinator.errors import UsageError
from clue_coordinator.executions import active
from clue_coordinator.progress import progress_of
from clue_coordinator.requests import require_request
from clue_coordinator.states import OPEN_REQUEST, ExecutionState, RequestState
from clue_protocol.v1 import operator_pb2 as pb

# A template and what it needs, for a path and a query.
View = Callable[[Session, Mapping[str, str], Mapping[str, str]], tuple[str, dict[str, Any]]]

_SHORT_LIST = 10
_LONG_LIST = 50
_DEVICE_FILTERS = ("q", "where", "presence", "retired")
_EXECUTION_FILTERS = ("q", "state", "reason")


class NotFound(UsageError):
    """There is no such fleet, device or request."""


def fleets(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """All fleets, and the newest requests."""
    in_use = models.Device.retired_at.is_(None)
    counted = {
        fleet_id: (number, online)
        for fleet_id, number, online in session.execute(
            select(models.Device.fleet_id, func.count(), func.sum(case((models.Device.online, 1), else_=0)))
            .where(in_use)
            .group_by(models.Device.fleet_id)
        )
    }
    running = {
        fleet_id: int(number)
        for fleet_id, number in session.execute(
            select(models.Request.fleet_id, func.count())
            .where(models.Request.state.in_(OPEN_REQUEST))
            .group_by(models.Request.fleet_id)
        )
    }
    rows = [
        {
            "name": fleet.name,
            "devices": counted.get(fleet.id, (0, 0))[0],
            "online": counted.get(fleet.id, (0, 0))[1],
            "open": running.get(fleet.id, 0),
        }
        for fleet in session.scalars(select(models.Fleet).order_by(models.Fleet.name))
    ]
    newest, more = _requests(session, page_size=_SHORT_LIST)
    return "fleets.html", {"fleets": rows, "requests": newest, "more_requests": bool(more)}


def fleet(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """A fleet, its devices and its newest requests."""
    name = path["fleet"]
    fleet_id = session.scalar(select(models.Fleet.id).where(models.Fleet.name == name))
    if fleet_id is None:
        raise NotFound(f"there is no fleet '{name}'")
    listing = tables.Listing(query, list(tables.DEVICE_ORDERS), _DEVICE_FILTERS)
    problem = ""
    try:
        found = tables.devices(session, fleet_id, listing)
    except UsageError as error:
        problem = str(error).removeprefix("--where: ")
        found = tables.Page[models.Device]([], 0, 1)
    latest = tables.latest_executions(session, found.rows)
    rows = [
        plain.device_data(messages.device_view(device)) | {"latest": _latest(latest.get(device.id))}
        for device in found.rows
    ]
    requests, more = _requests(session, fleet=name, page_size=_SHORT_LIST)
    return "fleet.html", {
        "name": name,
        "listing": listing,
        "page": found,
        "devices": rows,
        "problem": problem,
        "requests": requests,
        "more_requests": bool(more),
    }


def device(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """A device, what it was asked, and its history."""
    try:
        found = require_device(session, path["device"])
    except UsageError:
        raise NotFound(f"there is no device '{path['device']}'") from None
    executions = session.scalars(
        select(models.Execution)
        .where(models.Execution.device_pk == found.id)
        .options(selectinload(models.Execution.request), selectinload(models.Execution.device))
        .order_by(models.Execution.updated_at.desc())
        .limit(_LONG_LIST)
    )
    rows = [_execution(e) | {"request_id": e.request_id, "forget_class": e.request.forget_class} for e in executions]
    events, more = _events(session, device_id=found.device_id, page_size=_SHORT_LIST)
    return "device.html", {
        "device": plain.device_data(messages.device_view(found)),
        "executions": rows,
        "events": events,
        "more_events": more,
    }


def requests(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """Requests, newest first."""
    states = list(RequestState)
    fleet, state = query.get("fleet", ""), query.get("state", "")
    wanted = [pb.RequestState.Value(f"REQUEST_STATE_{state}")] if state in states else []
    found, token = _requests(
        session, fleet=fleet, states=wanted, page_size=_LONG_LIST, page_token=query.get("from", "")
    )
    names = list(session.scalars(select(models.Fleet.name).order_by(models.Fleet.name)))
    filters = {"fleet": fleet, "state": state}
    return "requests.html", {
        "requests": found,
        "token": token,
        "later": bool(query.get("from")),
        "fleet_names": names,
        "states": states,
        **filters,
    }


def request(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """A request, how far it is, and every device's part of it."""
    found = require(session, path["request"])
    listing = tables.Listing(query, list(tables.EXECUTION_ORDERS), _EXECUTION_FILTERS)
    page = tables.executions(session, found, listing)
    view = messages.request_view(found, progress_of(session, found, 1, time.time()))
    data = plain.request_data(view)
    total = sum(data["counts"].values())
    events, more = _events(session, request_id=found.id, page_size=_SHORT_LIST)
    return "request.html", {
        "request": data,
        "total": total,
        "over": total - active(found),
        "live": found.finished_at is None,
        "rules": [plain.rule_text(rule) for rule in view.rollout.abort_if],
        "reasons": tables.reasons(session, found),
        "states": list(ExecutionState),
        "listing": listing,
        "page": page,
        "executions": [_execution(execution) for execution in page.rows],
        "events": events,
        "more_events": more,
    }


def history(session: Session, path: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """Who did what, newest first."""
    filters = {name: query.get(name, "").strip() for name in ("fleet", "device", "request")}
    events, token = _events(
        session,
        fleet=filters["fleet"],
        device_id=filters["device"],
        request_id=filters["request"],
        page_size=_LONG_LIST,
        page_token=query.get("from", ""),
    )
    return "history.html", {"events": events, "token": token, "later": bool(query.get("from")), **filters}


def require(session: Session, request_id: str) -> models.Request:
    """The request with this id; NotFound if there is none."""
    try:
        return require_request(session, request_id)
    except UsageError as error:
        raise NotFound(str(error).partition(": see 'clue")[0]) from None


def _requests(session: Session, **call: Any) -> tuple[list[dict[str, Any]], str]:
    found, token = pages.requests_page(session, pb.ListRequestsRequest(**call))
    rows: list[dict[str, Any]] = []
    for row in found:
        total = sum(row.counts.values())
        bad = total - active(row) - row.counts.get(ExecutionState.SUCCEEDED, 0)
        data = plain.request_data(messages.request_view(row))
        rows.append({**data, "total": total, "over": total - active(row), "unsuccessful": bad})
    return rows, token


def _events(session: Session, **call: Any) -> tuple[list[Any], str]:
    found, token = pages.events_page(session, pb.ListEventsRequest(**call))
    return [plain.event_data(messages.event_view(event)) for event in found], token


def _execution(execution: models.Execution) -> dict[str, Any]:
    return dict(plain.execution_data(messages.execution_view(execution)))


def _latest(execution: models.Execution | None) -> dict[str, str] | None:
    if execution is None:
        return None
    return {
        "state": str(execution.state),
        "request_id": execution.request_id,
        "forget_class": execution.request.forget_class,
        "reason": execution.reason,
    }
