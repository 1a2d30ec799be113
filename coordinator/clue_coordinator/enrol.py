"""Fleets and the devices in them."""

import re
from collections.abc import Mapping
from difflib import get_close_matches

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from clue_coordinator import roots
from clue_coordinator.devices import join_requests
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger, find_fleet
from clue_coordinator.models import Device, Fleet
from clue_coordinator.tlog.record import log_enrolment
from clue_protocol.documents import Enrolment, check_name
from clue_protocol.errors import DocumentError
from clue_protocol.keys import key_to_json
from clue_protocol.trust import Role


def create_fleet(
    ledger: Ledger,
    name: str,
    keys: HomeKeys | None = None,
    approvers: Role | None = None,
    names: Mapping[str, str] | None = None,
) -> Fleet:
    """Make an empty fleet, and put it into the next root where the home's root key alone may sign that.

    Args:
        ledger: where.
        name: of the fleet.
        keys: of the home; None leaves the root as it is.
        approvers: who decides over its requests; None for the coordinator by itself.
        names: what people call the keys of the approvers, by key id.

    Raises:
        UsageError: bad name.
        ConflictError: it exists, or it is to have approvers and the home may not sign roots.
    """
    try:
        check_name("fleet", name)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    try:
        with ledger.write() as session:
            fleet = Fleet(name=name, created_at=ledger.clock(), sequence=0, devices=[])
            session.add(fleet)
            session.flush()
            ledger.record(session, "fleet.created", fleet=name)
            root = roots.latest_or_none(session)
            known = root is not None and name in root.root.fleets
            if keys is None or (known and approvers is None):
                return fleet
            if not roots.add_fleet(session, ledger, keys, name, approvers, names or {}) and approvers is not None:
                raise ConflictError(
                    "the root belongs to people, and this coordinator cannot sign the next one: "
                    "name the approvers in 'clue-coordinator root draft'"
                )
            return fleet
    except IntegrityError:
        raise ConflictError(f"fleet '{name}' exists already") from None


def require_fleet(session: Session, name: str) -> Fleet:
    """The fleet called ``name``; UsageError names the nearest one there is."""
    fleet = find_fleet(session, name)
    if fleet is None:
        raise _no_fleet(session, name)
    return fleet


def fleet_id(session: Session, name: str) -> int:
    """As :func:`require_fleet`, without reading its devices."""
    found = session.scalar(select(Fleet.id).where(Fleet.name == name))
    if found is None:
        raise _no_fleet(session, name)
    return found


def _no_fleet(session: Session, name: str) -> UsageError:
    names = list(session.scalars(select(Fleet.name).order_by(Fleet.name)))
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"make it with 'clue-coordinator fleet create {name}'"
    return UsageError(f"there is no fleet '{name}': {hint}")


def fleet_classes(fleet: Fleet) -> list[str]:
    """Class names known to at least one device of the fleet, in the order of their first appearance."""
    return list(dict.fromkeys(name for device in fleet.devices if device.retired_at is None for name in device.classes))


def check_new_device(ledger: Ledger, fleet: str, enrolment: Enrolment) -> None:
    """Raise before anything is registered anywhere: unknown fleet, or the name or key is taken."""
    with ledger.read() as session:
        require_fleet(session, fleet)
        taken = session.scalar(select(Device).where(Device.device_id == enrolment.device_id))
        if taken is not None:
            word = "is enrolled already" if taken.retired_at is None else "was retired, and keeps its name"
            if taken.revoked_at is not None:
                word = "was revoked, and keeps its name"
            raise ConflictError(f"device '{enrolment.device_id}' {word}, in fleet '{taken.fleet.name}'")
        same_key = session.scalar(select(Device).where(Device.supernode_key == openssh_key(enrolment.supernode_key)))
        if same_key is not None:
            raise ConflictError(f"device '{same_key.device_id}' has the same key: every device makes its own")


def add_device(ledger: Ledger, fleet_name: str, enrolment: Enrolment, node_id: int) -> Device:
    """Put an enrolled device into a fleet; its node is registered with Flower already."""
    with ledger.write() as session:
        return insert_device(session, ledger, fleet_name, enrolment, node_id)


def insert_device(
    session: Session, ledger: Ledger, fleet_name: str, enrolment: Enrolment, node_id: int, envelope: bytes | None = None
) -> Device:
    """:func:`add_device` in the transaction of ``session``; ``envelope`` is what the device signed, if it did."""
    fleet = require_fleet(session, fleet_name)
    device = Device(
        device_id=enrolment.device_id,
        node_id=str(node_id),
        receipt_key=key_to_json(enrolment.receipt_key),
        supernode_key=openssh_key(enrolment.supernode_key),
        classes=list(enrolment.classes),
        # What a device says of itself; PostgreSQL refuses what is longer than its column.
        model_digest=enrolment.model_digest[:64],
        software_version=enrolment.software_version[:64],
        online=False,
        enrolled_at=ledger.clock(),
        labels=dict(enrolment.labels),
        enrolment_envelope=envelope,
        fleet=fleet,
        root_version=roots.newest_version(session),
    )
    session.add(device)
    ledger.record(session, "device.added", fleet=fleet_name, device_id=enrolment.device_id)
    session.flush()
    log_enrolment(session, device)
    join_requests(session, ledger, device)
    return device


def openssh_key(line: str) -> str:
    """An OpenSSH public key without its comment."""
    return " ".join(re.split(r"\s+", line.strip())[:2])
