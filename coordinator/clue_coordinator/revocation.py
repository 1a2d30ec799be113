"""Revoking a device: in one transaction nothing that it signs is taken any more, then Flower lets go of it.

Flower looks a SuperNode's key up with every call, so a connection that is open is of no use either. If Flower cannot be
asked, the keeper goes on until it could: the ledger already gives such a device nothing.
"""

import json
import logging
import threading
from typing import Protocol

from sqlalchemy import delete, select

from clue_coordinator import tlog
from clue_coordinator.devices import remove_from_requests, require_device
from clue_coordinator.errors import ConflictError, CoordinatorError, FlowerError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Update

log = logging.getLogger(__name__)

FORMAT = "clue-revocation/1"
_LONGEST_REASON = 500
_RETRY_SECONDS = 5.0
# Of one device; the counter goes on.
MOST_REFUSAL_EVENTS = 100


def revoke_device(ledger: Ledger, device_id: str, reason: str) -> Device:
    """Cut a device off for good. One that was retired may be revoked, too: what it sends from now on is refused.

    Raises:
        UsageError: unknown device, or no reason.
        ConflictError: it is revoked already.
    """
    reason = " ".join(reason.split())
    if not 1 <= len(reason) <= _LONGEST_REASON:
        raise UsageError(f"say why in 1 to {_LONGEST_REASON} characters: it stands in the log for ever")
    with ledger.write() as session:
        device = require_device(session, device_id)
        if device.revoked_at is not None:
            raise ConflictError(f"device '{device_id}' is revoked already: {device.revocation_reason}")
        now = ledger.clock()
        device.revoked_at, device.revocation_reason, device.online = now, reason, False
        device.retired_at = device.retired_at or now
        device.revocation = revocation_document(device)
        tlog.append(session, "revocation", device.revocation, f"device/{device_id}")
        ledger.record(session, "device.revoked", fleet=device.fleet.name, device_id=device_id, detail=reason)
        remove_from_requests(session, ledger, device, "REVOKED", f"the device was revoked: {reason}")
        # Whoever has its key may have made them; a patch for others must not be made of them.
        theirs = select(Execution.id).where(Execution.device_pk == device.id)
        session.execute(
            delete(Update).where(Update.execution_id.in_(theirs)).execution_options(synchronize_session=False)
        )
        return device


def revocation_document(device: Device) -> bytes:
    """What the log remembers: JSON with sorted keys and no spaces, in UTF-8."""
    fields = {
        "format": FORMAT,
        "device_id": device.device_id,
        "fleet": device.fleet.name,
        "receipt_key": device.receipt_key,
        "supernode_key": device.supernode_key,
        "reason": device.revocation_reason,
        "revoked_at": int(device.revoked_at or 0),
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Unregistrar(Protocol):
    """What lets go of SuperNodes: :class:`.flower.Flower`."""

    def unregister(self, node_id: int) -> None:
        """No error if it is not there any more."""


class CutOff(threading.Thread):
    """Makes Flower let go of every retired or revoked device, as soon as it can be asked."""

    def __init__(self, ledger: Ledger, flower: Unregistrar) -> None:
        super().__init__(daemon=True, name="cut-off")
        self._ledger = ledger
        self._flower = flower
        self._wake = threading.Event()
        self._closing = False
        # One at a time: the same node must not be taken out twice at once.
        self._working = threading.Lock()

    def run(self) -> None:
        """Look every few seconds until :meth:`close`."""
        while not self._closing:
            try:
                self.advance()
            except CoordinatorError as error:
                log.warning("devices that are out wait to be cut off: %s", error)
            self._wake.wait(_RETRY_SECONDS)

    def advance(self) -> None:
        """Cut off all that are due; CoordinatorError at the first that cannot be."""
        query = select(Device.id).where(Device.retired_at.is_not(None), Device.cut_off_at.is_(None))
        with self._ledger.read() as session:
            due = list(session.scalars(query.order_by(Device.id)))
        for number in due:
            self._one(number)

    def now(self, device: Device) -> float | None:
        """Cut this one off without waiting; returns when that was, or None if Flower could not be asked yet."""
        try:
            return self._one(device.id)
        except FlowerError as error:
            log.warning("device %s is out, but Flower still admits it: %s", device.device_id, error)
            return None

    def close(self) -> None:
        """Stop looking."""
        self._closing = True
        self._wake.set()
        self.join(10)

    def _one(self, number: int) -> float:
        with self._working:
            with self._ledger.read() as session:
                device = session.get_one(Device, number)
            if device.cut_off_at is not None:
                return device.cut_off_at
            self._flower.unregister(int(device.node_id))
            with self._ledger.write() as session:
                row = session.get_one(Device, number)
                row.cut_off_at = at = self._ledger.clock()
                self._ledger.record(session, "device.cut_off", device_id=row.device_id)
            log.info("device %s is cut off", device.device_id)
            return at
