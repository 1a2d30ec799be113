"""Long tables, cut to a page in the database: filters, order, and the links to all of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.states import ExecutionState
from clue_coordinator.targets import Selector

T = TypeVar("T")
PAGE_SIZE = 50
_MOST_TEXT = 200
# Databases do not agree where NULL is sorted.
_NONE = -2.0
_RANK = {state: rank for rank, state in enumerate(ExecutionState)}

DEVICE_ORDERS: dict[str, Any] = {
    "device": Device.device_id,
    "online": Device.online,
    "seen": func.coalesce(Device.last_seen, 0.0),
    "software": Device.software_version,
    "enrolled": Device.enrolled_at,
}
EXECUTION_ORDERS: dict[str, Any] = {
    "device": Device.device_id,
    "state": case(_RANK, value=Execution.state, else_=len(_RANK)),
    "wave": Execution.wave,
    "ua": func.coalesce(Execution.ua_after, _NONE),
    "loss": func.coalesce(Execution.ra_drop, _NONE),
    "time": func.coalesce(Execution.finished_at - Execution.started_at, _NONE),
    "updated": Execution.updated_at,
}


class Listing:
    """What the address says about a table: ``order`` (a minus for descending), ``page`` from 1, and the filters."""

    def __init__(self, query: Mapping[str, str], orders: Sequence[str], filters: Sequence[str]) -> None:
        given = query.get("order", "")
        self.sort = given.removeprefix("-") if given.removeprefix("-") in orders else orders[0]
        self.descending = given == f"-{self.sort}"
        page = query.get("page", "")
        self.page = int(page) if page.isascii() and page.isdigit() and 0 < len(page) < 7 and int(page) else 1
        self.filters = {name: query.get(name, "").strip()[:_MOST_TEXT] for name in filters}

    @property
    def order(self) -> str:
        """As in the address."""
        return f"-{self.sort}" if self.descending else self.sort

    @property
    def filtered(self) -> bool:
        """True if rows may be hidden by a filter."""
        return any(self.filters.values())

    def link(self, **changes: object) -> str:
        """Query string of this table with ``changes``; it goes back to the first page unless they name one."""
        values = {**self.filters, "order": self.order, **changes}
        return "?" + urlencode({name: value for name, value in values.items() if value not in ("", None)})

    def order_link(self, column: str) -> str:
        """The table ordered by ``column``; the other way round if it is already."""
        return self.link(order=f"-{column}" if self.order == column else column)

    def aria_sort(self, column: str) -> str:
        """Value of ``aria-sort`` for the head of a column."""
        if column != self.sort:
            return "none"
        return "descending" if self.descending else "ascending"


@dataclass(frozen=True)
class Page(Generic[T]):
    """Rows ``first`` to ``first + len(rows) - 1`` of ``total``, counted from 1."""

    rows: Sequence[T]
    total: int
    number: int

    @property
    def first(self) -> int:
        """Number of the first row."""
        return (self.number - 1) * PAGE_SIZE + 1

    @property
    def pages(self) -> int:
        """Number of pages, at least 1."""
        return max(1, -(-self.total // PAGE_SIZE))


def devices(session: Session, fleet_id: int, listing: Listing) -> Page[Device]:
    """Devices of a fleet. Filters: ``q`` (part of the name), ``where`` (labels), ``presence``, ``retired``.

    UsageError if ``where`` cannot be read.
    """
    wanted = listing.filters
    query = select(Device).where(Device.fleet_id == fleet_id)
    if not wanted["retired"]:
        query = query.where(Device.retired_at.is_(None))
    if wanted["presence"] in ("online", "offline"):
        query = query.where(Device.online.is_(wanted["presence"] == "online"))
    if wanted["q"]:
        query = query.where(Device.device_id.icontains(wanted["q"], autoescape=True))
    ordered = _ordered(query, DEVICE_ORDERS[listing.sort], listing)
    everything = selectinload(Device.fleet)
    selector = Selector(wanted["where"])
    if not selector.text:
        return _cut(session, query, ordered.options(everything), listing)
    # Labels are matched here, as in the operator API; only ids and labels are read of what is not shown.
    rows = session.execute(ordered.with_only_columns(Device.id, Device.labels))
    ids = [row.id for row in rows if selector.matches(row.labels)]
    number = min(listing.page, max(1, -(-len(ids) // PAGE_SIZE)))
    shown = ids[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    found = {d.id: d for d in session.scalars(select(Device).where(Device.id.in_(shown)).options(everything))}
    return Page([found[key] for key in shown], len(ids), number)


def executions(session: Session, request: Request, listing: Listing) -> Page[Execution]:
    """Executions of a request. Filters: ``q`` (part of the device's name), ``state``, ``reason``."""
    wanted = listing.filters
    query = select(Execution).join(Execution.device).where(Execution.request_id == request.id)
    if wanted["q"]:
        query = query.where(Device.device_id.icontains(wanted["q"], autoescape=True))
    if wanted["state"] in set(ExecutionState):
        query = query.where(Execution.state == wanted["state"])
    if wanted["reason"]:
        query = query.where(Execution.reason == wanted["reason"])
    ordered = _ordered(query, EXECUTION_ORDERS[listing.sort], listing)
    options = (selectinload(Execution.device), selectinload(Execution.request))
    return _cut(session, query, ordered.options(*options), listing)


@dataclass(frozen=True)
class Reason:
    """Why so many ``devices`` of a request did not succeed, and what one of them says."""

    state: str
    reason: str
    devices: int
    example: str


def reasons(session: Session, request: Request) -> list[Reason]:
    """Why executions did not succeed, the most frequent first."""
    fine = (ExecutionState.QUEUED, ExecutionState.IN_PROGRESS, ExecutionState.SUCCEEDED)
    number = func.count()
    query = (
        select(Execution.state, Execution.reason, number, func.min(Execution.detail))
        .where(Execution.request_id == request.id, Execution.state.not_in(fine))
        .group_by(Execution.state, Execution.reason)
        .order_by(number.desc(), Execution.state, Execution.reason)
    )
    return [Reason(*row) for row in session.execute(query)]


def latest_executions(session: Session, devices: Sequence[Device]) -> dict[int, Execution]:
    """Of each of these devices the execution with the newest news, by the device's row."""
    rank = func.row_number().over(partition_by=Execution.device_pk, order_by=Execution.updated_at.desc())
    ranked = (
        select(Execution.id, rank.label("rank")).where(Execution.device_pk.in_([device.id for device in devices]))
    ).subquery()
    query = select(Execution).join(ranked, Execution.id == ranked.c.id).where(ranked.c.rank == 1)
    return {e.device_pk: e for e in session.scalars(query.options(selectinload(Execution.request)))}


def _ordered(query: Select[T], column: ColumnElement[Any], listing: Listing) -> Select[T]:
    return query.order_by(column.desc() if listing.descending else column.asc(), Device.device_id)


def _cut(session: Session, query: Select[T], ordered: Select[T], listing: Listing) -> Page[T]:
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    # A page that is not there any more, because the filter was narrowed or devices went: the last one there is.
    number = min(listing.page, max(1, -(-total // PAGE_SIZE)))
    rows = session.scalars(ordered.limit(PAGE_SIZE).offset((number - 1) * PAGE_SIZE)).all()
    return Page(rows, total, number)
