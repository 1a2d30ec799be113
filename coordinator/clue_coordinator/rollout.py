"""Handing out what is due.

The ledger holds the desired state. :func:`lease` hands out what is due for the devices that
are online, :mod:`clue_coordinator.reports` takes what came back, :mod:`clue_coordinator.tick`
does what time asks for. Delivery is at least once: a lease that runs out is given again, and the
agent answers a repeated request with the receipt it has.
"""

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased, defer, selectinload

from clue_coordinator import roots
from clue_coordinator.executions import finish_if_done, move
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.presence import Seen, note_presence, presence_changed
from clue_coordinator.quiet import quiet_until
from clue_coordinator.states import APPROVED_REQUEST, FINAL_REQUEST, ExecutionState, RequestState
from clue_coordinator.timekeeper import Timekeeper
from clue_protocol.v1 import dispatch_pb2

WAIT_SECONDS = 25.0
TTL_SECONDS = 120.0
LEASE_SECONDS = 150.0
POLL_SECONDS = 0.5
# Executions handed out in one transaction: others want to write too.
_BATCH = 256
# And with them so much of patches, about: an answer must fit into a message.
_BATCH_BYTES = 16 * 2**20
# Of roots in one assignment, about.
_ROOT_BYTES = 2**20
# What a device that came late is still asked for after the deadline.
_RECALL_SECONDS = 30 * 86400.0


def lease(
    ledger: Ledger, online_nodes: list[int], seen: Seen | None = None, timekeeper: Timekeeper | None = None
) -> list[dispatch_pb2.Assignment]:
    """Note who is online, and hand out what is due for those who are; ``seen`` is kept from call to call.

    ``timekeeper`` puts the time beside each assignment.
    """
    now = ledger.clock()
    # Before anything is read, so that what is read is at least as new.
    version = ledger.version
    online = {str(node) for node in online_nodes}
    with ledger.read() as session:
        # An idle coordinator must not write to its disk twice a second.
        known = seen is not None and seen.holds(version, online_nodes, now)
        if known or not presence_changed(session, online, now):
            if seen is not None and not known:
                seen.remember(version, online_nodes, now)
            if not _due(session, now):
                return []
    with ledger.write() as session:
        note_presence(session, ledger, online, now)
        session.flush()
        assignments: list[dispatch_pb2.Assignment] = []
        size = 0
        trust = _Trust(session, timekeeper)
        for execution in _due(session, now, lock=True):
            assignment = _hand_out(session, ledger, execution, now)
            if assignment is not None:
                size += len(assignment.patch) + trust.add(assignment, execution.device)
                assignments.append(assignment)
            if size > _BATCH_BYTES:
                break
        return assignments


class _Trust:
    """What goes out beside the requests of one lease: the roots that a device misses, and the time."""

    def __init__(self, session: Session, timekeeper: Timekeeper | None) -> None:
        self._session = session
        self._timekeeper = timekeeper
        self._root = roots.latest_or_none(session)
        self._missed: dict[int, list[bytes]] = {}

    def add(self, assignment: dispatch_pb2.Assignment, device: Device) -> int:
        """Put it into ``assignment``; returns the bytes of the roots."""
        if self._root is None:
            return 0
        if self._timekeeper is not None:
            assignment.time_attestation = self._timekeeper.attest(self._session, self._root, device.time_nonce)
        # A device of before there were roots says nothing, and is told nothing.
        if not 0 < device.root_version < self._root.root.version:
            return 0
        missed = self._missed.get(device.root_version)
        if missed is None:
            missed = self._missed[device.root_version] = _first(roots.since(self._session, device.root_version))
        assignment.root_envelopes.extend(missed)
        return sum(map(len, missed))


def _first(envelopes: list[bytes]) -> list[bytes]:
    """As many as fit beside a request; the device asks for more when it has these."""
    size = 0
    found: list[bytes] = []
    for envelope in envelopes:
        size += len(envelope)
        if found and size > _ROOT_BYTES:
            break
        found.append(envelope)
    return found


def _due(session: Session, now: float, *, lock: bool = False) -> list[Execution]:
    """What may be handed out, oldest request first; a device gets one thing at a time."""
    # Row locks exist on PostgreSQL only. What someone else holds right now can wait for the next lease.
    query = _query().with_for_update(of=Execution, skip_locked=True) if lock else _query()
    found, taken = [], set[int]()
    again = query.where(_again(now)).order_by(Execution.lease_until, Execution.device_pk, Execution.id).limit(_BATCH)
    for execution in session.scalars(again):
        if execution.device_pk not in taken:
            taken.add(execution.device_pk)
            found.append(execution)
    requests = session.scalars(
        select(Request)
        .where(Request.state.in_(APPROVED_REQUEST), Request.paused_at.is_(None), Request.expires_at > now)
        .options(defer(Request.target))
        .order_by(Request.created_at, Request.sequence)
    )
    for request in requests:
        if len(found) >= _BATCH:
            break
        if not request.counts.get(ExecutionState.QUEUED):
            continue
        room = min(_BATCH - len(found), _room(session, request, now))
        if room <= 0:
            continue
        ready = query.where(_startable(request, now)).order_by(Execution.wave, Execution.device_pk).limit(room)
        fresh = [execution for execution in session.scalars(ready) if execution.device_pk not in taken]
        taken |= {execution.device_pk for execution in fresh}
        found += fresh
    return found


def _query() -> Select[Execution]:
    return (
        select(Execution)
        .join(Execution.device)
        .join(Execution.request)
        .where(Device.online, Device.retired_at.is_(None))
        .options(
            selectinload(Execution.device),
            # Its target may name thousands of devices.
            selectinload(Execution.request).options(selectinload(Request.fleet), defer(Request.target)),
        )
    )


def _again(now: float) -> ColumnElement[bool]:
    """Handed out before, no answer, and the lease ran out: asked again, or recalled if the request is over."""
    return and_(
        Execution.handed_out,
        or_(Execution.lease_until.is_(None), Execution.lease_until <= now),
        or_(
            Execution.state == ExecutionState.IN_PROGRESS,
            and_(Execution.state == ExecutionState.QUEUED, Request.state.in_(FINAL_REQUEST)),
            and_(Execution.state == ExecutionState.TIMED_OUT, Request.expires_at > now - _RECALL_SECONDS),
        ),
    )


def _startable(request: Request, now: float) -> ColumnElement[bool]:
    busy = aliased(Execution)
    return and_(
        Execution.request_id == request.id,
        Execution.state == ExecutionState.QUEUED,
        Execution.wave <= request.wave,
        Execution.waiting == "",
        or_(Execution.not_before.is_(None), Execution.not_before <= now),
        # One thing at a time, and in the order of their numbers: a device refuses a lower one for ever.
        ~exists().where(
            busy.device_pk == Execution.device_pk,
            or_(
                busy.state == ExecutionState.IN_PROGRESS,
                and_(busy.state == ExecutionState.QUEUED, busy.waiting == "", busy.sequence < Execution.sequence),
            ),
        ),
    )


def _room(session: Session, request: Request, now: float) -> int:
    """How many more devices may begin now: also of those that were offline when their wave came."""
    plan = RolloutPlan.model_validate(request.plan)
    size = plan.wave_size(max(request.wave, 1))
    if size is None or request.wave == 0:
        return _BATCH
    begun = select(func.count()).where(
        Execution.request_id == request.id,
        Execution.wave > 0,
        Execution.started_at > now - plan.rate_period_seconds,
    )
    return size - (session.scalar(begun) or 0)


def _hand_out(session: Session, ledger: Ledger, execution: Execution, now: float) -> dispatch_pb2.Assignment | None:
    request, patch = execution.request, execution.patch
    over = request.state in FINAL_REQUEST or request.expires_at <= now
    recall = over or execution.state == ExecutionState.TIMED_OUT
    if execution.state == ExecutionState.QUEUED and not recall:
        quiet = quiet_until(RolloutPlan.model_validate(request.plan), execution.device.labels, now)
        if quiet is not None:
            execution.not_before = quiet
            return None
        if execution.sequence < execution.device.begun_sequence:
            _overtaken(session, ledger, execution)
            return None
        execution.device.begun_sequence = execution.sequence
        move(session, ledger, execution, ExecutionState.IN_PROGRESS)
        execution.started_at = now
        execution.handed_out = True
        if request.state == RequestState.SCHEDULED:
            request.state = RequestState.IN_PROGRESS
    execution.lease_until = now + LEASE_SECONDS
    return dispatch_pb2.Assignment(
        execution_id=execution.id,
        request_id=patch.id if patch is not None else request.id,
        node_id=int(execution.device.node_id),
        request_envelope=patch.envelope if patch is not None else request.envelope,
        wait_seconds=WAIT_SECONDS,
        ttl_seconds=TTL_SECONDS,
        attempt=execution.attempt,
        recall=recall,
        patch=patch.body if patch is not None and not recall else b"",
    )


def _overtaken(session: Session, ledger: Ledger, execution: Execution) -> None:
    """The device was given a higher number and would refuse this one: whoever asked must ask anew."""
    execution.reason = "OVERTAKEN"
    execution.detail = "the device was given a later request first and refuses an earlier one: use 'request retry'"
    move(session, ledger, execution, ExecutionState.CANCELED)
    finish_if_done(session, ledger, execution.request)


def release_all(ledger: Ledger) -> None:
    """A new dispatcher takes over: what the old one held is handed out again, nobody counts as online."""
    with ledger.write() as session:
        now = ledger.clock()
        session.execute(
            update(Execution).where(Execution.handed_out, Execution.lease_until > now).values(lease_until=now)
        )
        session.execute(update(Device).where(Device.online).values(online=False))
