"""What operators do with requests: plan, make, pause, resume, cancel and repeat them."""

import json
import math
import secrets
import uuid
from dataclasses import dataclass, field, replace

from google.protobuf.timestamp_pb2 import Timestamp
from securesystemslib.signer import Signer
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import actor, approvals, roots
from clue_coordinator.enrol import fleet_classes, require_fleet
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.executions import active, add_executions, withdraw
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Fleet, Request
from clue_coordinator.plan import RolloutPlan, in_order, in_waves
from clue_coordinator.role_keys import holds
from clue_coordinator.states import ACTIVE, FINAL_REQUEST, UNSUCCESSFUL, ExecutionState, RequestState
from clue_coordinator.targets import MAX_DEVICES, Target
from clue_coordinator.tlog.record import log_request
from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.trust import Root, add_signature, unsigned
from clue_protocol.v1 import forget_pb2 as pb

_MIN_ID = 4


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
    max_tries: int = 0
    expires_in_seconds: float = 7 * 86400.0
    idempotency_key: str | None = None
    created_by: str = "operator"
    target: Target = field(default_factory=Target)
    plan: RolloutPlan = field(default_factory=RolloutPlan)
    retry_of: str | None = None


@dataclass(frozen=True)
class Planned:
    """A checked order: its devices in waves (the first entry is the canary), in the order in which they begin.

    ``sequence`` is the number that its request will have.
    """

    fleet: Fleet
    waves: list[list[Device]]
    expires_at: float
    sequence: int

    @property
    def devices(self) -> int:
        """How many there are."""
        return sum(map(len, self.waves))


def plan_request(session: Session, order: ForgetOrder, now: float) -> Planned:
    """Check an order and choose its devices; changes nothing.

    Raises:
        UsageError: unknown fleet, class or device, policy out of range.
        ConflictError: no device matches, and the request is no continuous one.
    """
    for name, value in (("max UA", order.max_ua), ("max RA drop", order.max_ra_drop)):
        if not 0 <= value <= 1:
            raise UsageError(f"the policy's {name} must be in [0, 1], got {value:g}")
    if not 60 <= order.expires_in_seconds <= 366 * 86400:
        raise UsageError(f"a request must expire after 1 minute to 1 year, got {order.expires_in_seconds:g} s")
    for name, text, longest in (("method", order.method, 63), ("idempotency key", order.idempotency_key or "", 64)):
        if len(text) > longest:
            raise UsageError(f"the {name} has {len(text)} characters; {longest} are the most")
    fleet = require_fleet(session, order.fleet)
    if not any(device.retired_at is None for device in fleet.devices):
        raise ConflictError(f"fleet '{order.fleet}' has no devices: add one with 'clue-coordinator device invite'")
    classes = fleet_classes(fleet)
    if order.forget_class not in classes:
        raise UsageError(f"fleet '{order.fleet}': {unknown_class(order.forget_class, classes)}")
    devices = order.target.choose(order.fleet, fleet.devices)
    if not devices and not order.target.continuous:
        raise ConflictError(f"no device of fleet '{order.fleet}' matches --where {order.target.where}")
    # The next sequence number: the plan that is shown is the one that is carried out, and the next one differs.
    sequence = roots.next_sequence(_root(session), fleet)
    waves = in_waves(order.plan, in_order(devices, f"{order.fleet}/{sequence}"))
    return Planned(fleet, waves, float(int(now + order.expires_in_seconds)), sequence)


def create_request(ledger: Ledger, order: ForgetOrder, signer: Signer) -> str:
    """Sign a request and queue it for every device that is meant; returns its id.

    Raises:
        UsageError, ConflictError: as :func:`plan_request`.
    """
    with ledger.write() as session:
        # Before anything else: the same call again must have the same answer, whatever happened since.
        if (known := _known(session, order.idempotency_key)) is not None:
            return known
        now = ledger.clock()
        planned = plan_request(session, order, now)
        fleet, root = planned.fleet, roots.latest(session).root
        role = approvals.request_role(root, order.fleet)
        own = holds(role, signer.public_key)
        if order.plan.without_samples == "aggregate" and not (own and role.threshold == 1):
            raise UsageError(
                f"requests on fleet '{order.fleet}' need approvals of people, but the coordinator alone signs patches: "
                "leave --without-samples aggregate away"
            )
        fleet.sequence = planned.sequence
        message = request_message(order, root.installation, fleet.sequence, now, planned.expires_at)
        message.model_digest = _common_digest(session, order, planned)
        envelope = unsigned(message, REQUEST_TYPE)
        if own:
            envelope = add_signature(envelope, REQUEST_TYPE, signer)
        counted = approvals.count(envelope, root, order.fleet)
        request = Request(
            id=message.request_id,
            fleet=fleet,
            forget_class=order.forget_class,
            method=order.method,
            max_ua=order.max_ua,
            max_ra_drop=order.max_ra_drop,
            state=RequestState.SCHEDULED if counted.enough else RequestState.AWAITING_APPROVAL,
            envelope=envelope,
            idempotency_key=order.idempotency_key or None,
            created_by=order.created_by,
            created_at=now,
            expires_at=planned.expires_at,
            target=order.target.model_dump(mode="json"),
            plan=order.plan.model_dump(mode="json"),
            counts={},
            wave=0 if planned.waves[0] else 1,
            wave_at=now,
            waves=max(1, len(planned.waves) - 1),
            retry_of=order.retry_of,
            sequence=fleet.sequence,
        )
        approvals.note_own(request, counted, now)
        session.add(request)
        add_executions(session, request, planned.waves, now)
        if counted.enough:
            log_request(session, request)
        detail = f"forget '{order.forget_class}' on {planned.devices} device(s)"
        if order.retry_of:
            detail += f", again after {order.retry_of}"
        if not counted.enough:
            detail += f"; {counted.text}"
        ledger.record(
            session,
            "request.created",
            fleet=order.fleet,
            request_id=request.id,
            detail=detail,
        )
        return request.id


def request_message(
    order: ForgetOrder, installation: str, sequence: int, now: float, expires_at: float
) -> pb.ForgetRequest:
    """The document that devices get."""
    return pb.ForgetRequest(
        request_id=str(uuid.uuid4()),
        fleet=order.fleet,
        sequence=sequence,
        forget_class=order.forget_class,
        method=order.method,
        hyperparameters_json=json.dumps(order.hyperparameters, sort_keys=True) if order.hyperparameters else "",
        seed=order.seed,
        policy=pb.Policy(max_ua=order.max_ua, max_ra_drop=order.max_ra_drop, max_tries=order.max_tries),
        issued_at=Timestamp(seconds=int(now)),
        expires_at=Timestamp(seconds=int(expires_at)),
        nonce=secrets.token_bytes(16),
        max_attempts=order.plan.max_attempts,
        share_update=order.plan.without_samples == "aggregate",
        installation=installation,
    )


def _common_digest(session: Session, order: ForgetOrder, planned: Planned) -> str:
    """The model that all of the request's devices have, as far as is known; empty if there is no such model.

    A device with an open request may have another one when it comes to this, and who joins later may too.
    """
    devices = [device for wave in planned.waves for device in wave]
    digests = {device.model_digest for device in devices}
    if order.target.continuous or len(digests) != 1:
        return ""
    busy = (
        select(Execution.id)
        .join(Execution.device)
        .where(Device.fleet_id == planned.fleet.id, Execution.state.in_(ACTIVE))
    )
    return "" if session.scalar(busy.limit(1)) is not None else digests.pop()


def _root(session: Session) -> Root | None:
    found = roots.latest_or_none(session)
    return found.root if found is not None else None


def unknown_class(name: str, classes: list[str]) -> str:
    """One line naming near misses and the classes there are."""
    from clue.spec import unknown_class_message

    return unknown_class_message(name, classes).replace("the model has", "its models have")


def require_request(session: Session, text: str) -> Request:
    """The request with this id, or the only one whose id begins so; UsageError otherwise."""
    found = session.get(Request, text, options=[selectinload(Request.fleet)])
    if found is not None:
        return found
    if len(text) >= _MIN_ID:
        query = select(Request).where(Request.id.startswith(text, autoescape=True)).options(selectinload(Request.fleet))
        matches = session.scalars(query.limit(2)).all()
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"more than one request begins with '{text}': give more of its id")
    raise UsageError(f"there is no request '{text}': see 'clue-coordinator request list'")


def cancel_request(ledger: Ledger, request_id: str, comment: str = "") -> str:
    """No device begins any more; ConflictError if the request is over. Returns its id."""
    with ledger.write() as session:
        request = _open_request(session, request_id, "cancelled")
        reason = f"cancelled by {actor.current() or 'the operator'}" + (f": {comment}" if comment else "")
        withdraw(session, ledger, request, RequestState.CANCELED, reason)
        return request.id


def pause_request(ledger: Ledger, request_id: str, comment: str = "") -> str:
    """No device begins until it is resumed; ConflictError if the request is over or paused."""
    with ledger.write() as session:
        request = _open_request(session, request_id, "paused")
        if request.paused_at is not None:
            raise ConflictError(f"request {request.id} is paused already: go on with 'clue-coordinator request resume'")
        request.paused_at = ledger.clock()
        _record(session, ledger, request, "request.paused", comment)
        return request.id


def resume_request(ledger: Ledger, request_id: str, comment: str = "") -> str:
    """Go on with a paused request; ConflictError if it is not paused."""
    with ledger.write() as session:
        request = _open_request(session, request_id, "resumed")
        if request.paused_at is None:
            raise ConflictError(f"request {request.id} is not paused")
        # The pause must not count as waiting between two waves.
        if request.wave_at is not None:
            request.wave_at += ledger.clock() - request.paused_at
        request.paused_at = None
        _record(session, ledger, request, "request.resumed", comment)
        return request.id


def retry_request(
    ledger: Ledger, request_id: str, signer: Signer, devices: list[str], idempotency_key: str | None = None
) -> str:
    """A new request like this one, at once, for devices on which it ended without success; returns the new id.

    Raises:
        UsageError: a named device is not among them.
        ConflictError: there are none.
    """
    with ledger.read() as session:
        if (known := _known(session, idempotency_key)) is not None:
            return known
        request = require_request(session, request_id)
        found = _unsuccessful(session, request)
        failed = list(found)
        for name in devices:
            if name not in failed:
                raise UsageError(f"'{name}' is no device on which request {request.id} ended without success")
        if not failed:
            raise ConflictError(f"request {request.id} did not end without success on any device: nothing to repeat")
        if len(devices or failed) > MAX_DEVICES:
            raise ConflictError(f"that is {len(devices or failed)} devices: name up to {MAX_DEVICES} at a time")
        order = order_of(request)
        plan = order.plan
        if ExecutionState.CANCELED not in {found[name] for name in devices or failed}:
            # All of these have shown what they do; devices that were never asked need the canary as much as before.
            plan = plan.model_copy(update={"canary_share": 0.0, "canary_count": 0})
        order = replace(
            order,
            target=Target(devices=tuple(devices or failed)),
            plan=plan,
            created_by=actor.current() or order.created_by,
            idempotency_key=idempotency_key,
            retry_of=request.id,
        )
    return create_request(ledger, order, signer)


def _known(session: Session, idempotency_key: str | None) -> str | None:
    """The request that this call made when it was made before."""
    if not idempotency_key:
        return None
    return session.scalar(select(Request.id).where(Request.idempotency_key == idempotency_key))


def _unsuccessful(session: Session, request: Request) -> dict[str, str]:
    """The devices on which a request ended without success, by name, with the state it ended in."""
    states = [*UNSUCCESSFUL, ExecutionState.CANCELED]
    query = (
        select(Device.device_id, Execution.state)
        .join(Execution, Execution.device_pk == Device.id)
        .where(Execution.request_id == request.id, Execution.state.in_(states), Device.retired_at.is_(None))
        .order_by(Device.device_id)
    )
    return {str(name): str(state) for name, state in session.execute(query)}


def order_of(request: Request) -> ForgetOrder:
    """The order that a request was made from."""
    message = peek_message(request.envelope, REQUEST_TYPE, pb.ForgetRequest)
    return ForgetOrder(
        fleet=request.fleet.name,
        forget_class=request.forget_class,
        method=request.method,
        hyperparameters=json.loads(message.hyperparameters_json) if message.hyperparameters_json else None,
        seed=message.seed,
        max_ua=request.max_ua,
        max_ra_drop=request.max_ra_drop,
        max_tries=message.policy.max_tries,
        # The deadline is a whole second; a request made anew must not have less time than it is allowed to have.
        expires_in_seconds=float(math.ceil(request.expires_at - request.created_at)),
        created_by=request.created_by,
        target=Target.model_validate(request.target),
        plan=RolloutPlan.model_validate(request.plan),
        retry_of=request.retry_of,
    )


def _open_request(session: Session, request_id: str, verb: str) -> Request:
    request = require_request(session, request_id)
    if request.state in FINAL_REQUEST:
        word = "is over" if not active(request) else f"is {request.state}"
        raise ConflictError(f"request {request.id} {word}: it cannot be {verb}")
    return request


def _record(session: Session, ledger: Ledger, request: Request, kind: str, comment: str) -> None:
    ledger.record(session, kind, fleet=request.fleet.name, request_id=request.id, detail=comment)
