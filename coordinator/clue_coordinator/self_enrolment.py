"""A device with an invitation becomes one of a fleet, by itself. Every step may be interrupted and is then repeated.

1. The invitation is found, the statement verified with the key that it names, and name and key are seen to be free.
2. The invitation is bound to that key (:func:`.invitations.bind_invitation`).
3. Flower admits the SuperNode; the same key gets the same node again.
4. Device, statement and the use of the invitation go into the ledger, in one transaction.
"""

import logging
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from clue_coordinator.devices import merged_labels
from clue_coordinator.enrol import check_new_device, insert_device, openssh_key
from clue_coordinator.errors import ConflictError, FlowerError, UsageError
from clue_coordinator.invitations import bind_invitation, find_invitation, used_by_another
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Invitation
from clue_protocol.documents import Enrolment
from clue_protocol.enrolment import open_statement
from clue_protocol.errors import EnvelopeError, SignatureError
from clue_protocol.invitation import secret_digest
from clue_protocol.keys import key_to_json

log = logging.getLogger(__name__)


class Registrar(Protocol):
    """What admits SuperNodes: :class:`.flower.Flower`."""

    def register(self, supernode_key: str, name: str) -> int:
        """Returns the node id, the same for the same key."""

    def unregister(self, node_id: int) -> None:
        """Take it out again."""


class SelfEnrolment:
    """Safe from all threads."""

    def __init__(self, ledger: Ledger, registrar: Registrar) -> None:
        self._ledger = ledger
        self._registrar = registrar
        self._finishing = threading.Lock()

    def enrol(self, secret: bytes, envelope: bytes, installation: str) -> Device:
        """The device, with its fleet; the same one however often its own device asks.

        Raises:
            WrongTokenError: no invitation has this secret.
            ConflictError: the invitation is another device's, expired or withdrawn, or name or key is taken.
            UsageError: the statement is none, or of another name than the invitation allows.
            DocumentError: the document in it is none.
            FlowerError: the SuperNode could not be registered; ask again.
        """
        with self._ledger.read() as session:
            invitation = find_invitation(session, secret, self._ledger.clock())
        enrolment = _checked(envelope, installation, secret, invitation)
        keyid = str(enrolment.receipt_key.keyid)
        if invitation.receipt_keyid not in (None, keyid):
            raise used_by_another()
        if invitation.device is not None:
            return _same(invitation.device, enrolment)
        # Before the invitation is bound: a name that is taken must not cost a token.
        check_new_device(self._ledger, invitation.fleet.name, enrolment)
        with self._ledger.write() as session:
            bind_invitation(session, invitation, keyid)
        with self._finishing:
            return self._finish(secret, enrolment, envelope)

    def _finish(self, secret: bytes, enrolment: Enrolment, envelope: bytes) -> Device:
        with self._ledger.read() as session:
            invitation = find_invitation(session, secret, self._ledger.clock())
        if invitation.device is not None:
            return _same(invitation.device, enrolment)
        fleet = invitation.fleet.name
        check_new_device(self._ledger, fleet, enrolment)
        node_id = self._registrar.register(enrolment.supernode_key, enrolment.device_id)
        try:
            with self._ledger.write() as session:
                device = insert_device(session, self._ledger, fleet, enrolment, node_id, envelope)
                row = session.get_one(Invitation, invitation.id)
                if row.withdrawn_at is not None:
                    raise ConflictError("the token was withdrawn: ask for a new one")
                row.device_pk, row.used_at = device.id, self._ledger.clock()
        except IntegrityError:
            raise ConflictError(f"device '{enrolment.device_id}' was enrolled otherwise meanwhile") from None
        except ConflictError:
            # Nobody's node any more.
            with suppress(FlowerError):
                self._registrar.unregister(node_id)
            raise
        log.info("device %s enrolled itself into fleet %s with invitation %d", device.device_id, fleet, invitation.id)
        return device


def _checked(envelope: bytes, installation: str, secret: bytes, invitation: Invitation) -> Enrolment:
    try:
        statement, enrolment = open_statement(envelope)
    except (EnvelopeError, SignatureError) as error:
        raise UsageError(f"the device's statement is refused: {error}") from None
    if statement.installation != installation or statement.invitation.hex() != secret_digest(secret):
        raise UsageError("the device's statement is refused: it is for another installation or another token")
    if invitation.device_id and enrolment.device_id != invitation.device_id:
        raise UsageError(f"this token is for the device '{invitation.device_id}', not '{enrolment.device_id}'")
    return replace(enrolment, labels=merged_labels(enrolment.labels, invitation.labels))


def _same(device: Device, enrolment: Enrolment) -> Device:
    """The device that an invitation made, if it is this one."""
    keys = (device.receipt_key, device.supernode_key)
    if keys != (key_to_json(enrolment.receipt_key), openssh_key(enrolment.supernode_key)):
        raise used_by_another()
    if device.retired_at is not None:
        raise ConflictError(f"device '{device.device_id}' was {'revoked' if device.revoked_at else 'retired'}")
    if device.device_id != enrolment.device_id:
        raise ConflictError(f"this device is enrolled already, as '{device.device_id}'")
    return device
