"""What operators do with devices: label and retire them; and what a device that newly matches is asked."""

from collections.abc import Mapping
from difflib import get_close_matches

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.executions import add_execution, finish_if_done, move
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Request
from clue_coordinator.quiet import TIMEZONE_LABEL
from clue_coordinator.states import ACTIVE, OPEN_REQUEST, ExecutionState
from clue_coordinator.targets import Target
from clue_protocol.documents import check_labels, is_timezone
from clue_protocol.errors import DocumentError


def require_device(session: Session, device_id: str) -> Device:
    """The device, with its fleet; UsageError names the nearest one there is."""
    found = session.scalar(select(Device).where(Device.device_id == device_id).options(selectinload(Device.fleet)))
    if found is not None:
        return found
    near = get_close_matches(device_id, session.scalars(select(Device.device_id)).all(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "see 'clue-coordinator device list'"
    raise UsageError(f"there is no device '{device_id}': {hint}")


def label_device(ledger: Ledger, device_id: str, set_: dict[str, str], remove: list[str]) -> Device:
    """Set and remove labels; continuous requests that now match the device are queued for it.

    Raises:
        UsageError: unknown device, or a key, value or time zone that is none.
        ConflictError: the device is retired.
    """
    with ledger.write() as session:
        device = require_device(session, device_id)
        check_in_use(device)
        labels = merged_labels({key: value for key, value in device.labels.items() if key not in remove}, set_)
        if labels == device.labels:
            return device
        device.labels = labels
        changes = [f"{key}={value}" for key, value in sorted(set_.items())] + [f"-{key}" for key in remove]
        ledger.record(
            session,
            "device.labelled",
            fleet=device.fleet.name,
            device_id=device_id,
            detail=" ".join(changes),
        )
        join_requests(session, ledger, device)
        return device


def merged_labels(labels: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """``labels`` with ``more`` set; UsageError for a key, value or time zone that is none, or too many of them."""
    merged = {**labels, **more}
    try:
        check_labels(merged)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    zone = more.get(TIMEZONE_LABEL)
    if zone is not None and not is_timezone(zone):
        raise UsageError(f"label {TIMEZONE_LABEL}={zone} is no time zone: give a name such as Europe/Paris")
    return merged


def retire_device(ledger: Ledger, device_id: str) -> Device:
    """Take a device out for good: what is open for it is REMOVED.

    Raises:
        UsageError: unknown device.
        ConflictError: it is retired already.
    """
    with ledger.write() as session:
        device = require_device(session, device_id)
        check_in_use(device)
        device.retired_at, device.online = ledger.clock(), False
        ledger.record(session, "device.retired", fleet=device.fleet.name, device_id=device_id)
        query = select(Execution).where(Execution.device_pk == device.id, Execution.state.in_(ACTIVE))
        options = (selectinload(Execution.device), selectinload(Execution.request).selectinload(Request.fleet))
        for execution in session.scalars(query.options(*options)).all():
            execution.reason, execution.detail = "RETIRED", "the device was retired"
            execution.handed_out = False
            move(session, ledger, execution, ExecutionState.REMOVED)
            finish_if_done(session, ledger, execution.request)
        return device


def join_requests(session: Session, ledger: Ledger, device: Device) -> None:
    """Queue the open continuous requests that mean this device and are not queued for it yet."""
    now = ledger.clock()
    known = select(Execution.request_id).where(Execution.device_pk == device.id)
    requests = session.scalars(
        select(Request)
        .where(
            Request.fleet_id == device.fleet_id,
            Request.state.in_(OPEN_REQUEST),
            Request.expires_at > now,
            Request.id.not_in(known),
        )
        .options(selectinload(Request.fleet))
        .order_by(Request.created_at)
    )
    for request in requests:
        target = Target.model_validate(request.target)
        if not target.continuous or not target.matches(device):
            continue
        # With the last wave: who comes later must not go before the canary.
        add_execution(session, request, device, request.waves, now)
        ledger.record(
            session,
            "execution.queued",
            fleet=device.fleet.name,
            device_id=device.device_id,
            request_id=request.id,
            detail="joined a continuous request",
        )


def check_in_use(device: Device) -> None:
    """ConflictError if the device is retired."""
    if device.retired_at is not None:
        raise ConflictError(f"device '{device.device_id}' is retired: enrol it anew under another name")
