"""Lists in pages: every answer names the place where the next one begins."""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.enrol import fleet_id
from clue_coordinator.errors import UsageError
from clue_coordinator.models import Device, Event, Execution, Request
from clue_coordinator.requests import require_request
from clue_coordinator.states import ExecutionState, RequestState
from clue_coordinator.targets import Selector
from clue_protocol.v1 import operator_pb2 as pb

T = TypeVar("T")
_CHUNK = 1000


def requests_page(session: Session, call: pb.ListRequestsRequest) -> tuple[list[Request], str]:
    """Requests, newest first, and the token of the next page (empty on the last)."""
    size = _size(call.page_size, 100, 1000)
    query = select(Request).options(selectinload(Request.fleet)).order_by(Request.created_at.desc(), Request.id)
    if call.fleet:
        query = query.where(Request.fleet_id == fleet_id(session, call.fleet))
    if call.states:
        names = [pb.RequestState.Name(state).removeprefix("REQUEST_STATE_") for state in call.states]
        query = query.where(Request.state.in_([RequestState(name) for name in names if name in set(RequestState)]))
    if call.page_token:
        at, last = _key(call.page_token, float, str)
        query = query.where(or_(Request.created_at < at, and_(Request.created_at == at, Request.id > last)))
    return _page(session.scalars(query.limit(size + 1)), size, lambda r: (r.created_at, r.id))


def executions_page(session: Session, call: pb.ListExecutionsRequest) -> tuple[list[Execution], str]:
    """Executions of a request by device, and the token of the next page."""
    size = _size(call.page_size, 200, 500)
    request = require_request(session, call.request_id)
    query = (
        select(Execution)
        .join(Execution.device)
        .where(Execution.request_id == request.id)
        .options(selectinload(Execution.device), selectinload(Execution.request))
        .order_by(Device.device_id)
    )
    if call.states:
        names = [pb.ExecutionState.Name(state).removeprefix("EXECUTION_STATE_") for state in call.states]
        query = query.where(Execution.state.in_([ExecutionState(n) for n in names if n in set(ExecutionState)]))
    if call.page_token:
        (last,) = _key(call.page_token, str)
        query = query.where(Device.device_id > last)
    return _page(session.scalars(query.limit(size + 1)), size, lambda e: (e.device.device_id,))


def devices_page(session: Session, call: pb.ListDevicesRequest) -> tuple[list[Device], str]:
    """Devices by name, and the token of the next page."""
    size = _size(call.page_size, 1000, 1000)
    selector = Selector(call.where)
    last = _key(call.page_token, str)[0] if call.page_token else ""
    matching = (d for d in _devices(session, call, last) if selector.matches(d.labels))
    return _page(islice(matching, size + 1), size, lambda d: (d.device_id,))


def events_page(session: Session, call: pb.ListEventsRequest) -> tuple[list[Event], str]:
    """The history, newest first, and the token of the next page."""
    size = _size(call.page_size, 100, 1000)
    query = select(Event).order_by(Event.id.desc())
    if call.request_id:
        query = query.where(Event.request_id == require_request(session, call.request_id).id)
    for column, value in ((Event.device_id, call.device_id), (Event.fleet, call.fleet)):
        if value:
            query = query.where(column == value)
    if call.page_token:
        (last,) = _key(call.page_token, int)
        query = query.where(Event.id < last)
    return _page(session.scalars(query.limit(size + 1)), size, lambda e: (e.id,))


def _devices(session: Session, call: pb.ListDevicesRequest, last: str) -> Iterator[Device]:
    """Labels are matched here, not in the database, so devices are read in chunks until a page is full."""
    query = select(Device).options(selectinload(Device.fleet)).order_by(Device.device_id).limit(_CHUNK)
    if call.fleet:
        query = query.where(Device.fleet_id == fleet_id(session, call.fleet))
    if not call.include_retired:
        query = query.where(Device.retired_at.is_(None))
    if call.presence != pb.PRESENCE_ANY:
        query = query.where(Device.online.is_(call.presence == pb.PRESENCE_ONLINE))
    while True:
        chunk = session.scalars(query.where(Device.device_id > last)).all()
        yield from chunk
        if len(chunk) < _CHUNK:
            return
        last = chunk[-1].device_id


def _page(found: Iterable[T], size: int, key: Any) -> tuple[list[T], str]:
    rows = list(found)
    if len(rows) <= size:
        return rows, ""
    rows = rows[:size]
    return rows, base64.urlsafe_b64encode(json.dumps(key(rows[-1])).encode()).decode()


def _key(token: str, *kinds: type) -> tuple[Any, ...]:
    try:
        values = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if isinstance(values, list) and [type(value) for value in values] == list(kinds):
        return tuple(values)
    raise UsageError("the page token is none of this list: begin at the first page")


def _size(given: int, default: int, most: int) -> int:
    if given > most:
        raise UsageError(f"a page has at most {most} entries, not {given}")
    return given or default
