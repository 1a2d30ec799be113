"""Invitations in the ledger: made, listed, withdrawn, and used once, by one device.

An invitation belongs to the device that uses it first: its receipt key is noted in the same transaction that finds the
invitation free, before anything else is done. From then on that device may come back as often as it must, after a power
cut say, and no other can. When the device is in the ledger, the invitation names it.
"""

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import actor
from clue_coordinator.devices import merged_labels
from clue_coordinator.enrol import fleet_id
from clue_coordinator.errors import ConflictError, UsageError, WrongTokenError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Invitation
from clue_coordinator.tokens import LOCAL
from clue_protocol.documents import check_name
from clue_protocol.errors import DocumentError
from clue_protocol.invitation import new_secret, secret_digest

SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 31 * 86400.0


def create_invitation(
    ledger: Ledger,
    fleet: str,
    root_version: int,
    lifetime_seconds: float,
    device_id: str = "",
    labels: dict[str, str] | None = None,
) -> tuple[Invitation, bytes]:
    """Make an invitation; returns its row and its secret, which is kept nowhere.

    Args:
        ledger: where the secret's hash is kept.
        fleet: the fleet that the device will be in.
        root_version: of the root that the token names.
        lifetime_seconds: 60 s to 31 days, by the coordinator's clock.
        device_id: the name that the device must take; empty if it may choose.
        labels: it gets these.

    Raises:
        UsageError: unknown fleet, bad name, labels or lifetime.
        ConflictError: a device of that name is, or was, there.
    """
    if not SHORTEST_SECONDS <= lifetime_seconds <= LONGEST_SECONDS:
        raise UsageError(f"an invitation must expire after 1 minute to 31 days; got {lifetime_seconds:g} s")
    labels = merged_labels({}, labels or {})
    secret = new_secret()
    with ledger.write() as session:
        fleet_pk = fleet_id(session, fleet)
        if device_id:
            _check_free(session, device_id)
        now = ledger.clock()
        invitation = Invitation(
            digest=secret_digest(secret),
            fleet_id=fleet_pk,
            device_id=device_id,
            labels=labels,
            root_version=root_version,
            created_at=now,
            created_by=actor.current() or LOCAL,
            expires_at=now + lifetime_seconds,
        )
        session.add(invitation)
        session.flush()
        ledger.record(session, "device.invited", fleet=fleet, device_id=device_id, detail=f"invitation {invitation.id}")
        return _loaded(session, invitation.id), secret


def list_invitations(ledger: Ledger, *, include_closed: bool = False) -> list[Invitation]:
    """Those that can still be used, or all, in the order in which they were made."""
    query = select(Invitation).options(selectinload(Invitation.fleet), selectinload(Invitation.device))
    if not include_closed:
        open_ = (Invitation.withdrawn_at.is_(None), Invitation.used_at.is_(None))
        query = query.where(*open_, Invitation.expires_at > ledger.clock())
    with ledger.read() as session:
        return list(session.scalars(query.order_by(Invitation.id)))


def withdraw_invitation(ledger: Ledger, number: int) -> Invitation:
    """Make an invitation useless; one that is withdrawn already stays as it is.

    Raises:
        UsageError: there is no such invitation.
        ConflictError: a device has used it.
    """
    with ledger.write() as session:
        invitation = _loaded(session, number)
        if invitation.device is not None:
            name = invitation.device.device_id
            raise ConflictError(f"device '{name}' has used invitation {number}: revoke or retire the device")
        if invitation.withdrawn_at is None:
            invitation.withdrawn_at = ledger.clock()
            ledger.record(session, "device.uninvited", fleet=invitation.fleet.name, detail=f"invitation {number}")
        return invitation


def invitation_state(invitation: Invitation, now: float) -> str:
    """OPEN, USED, EXPIRED or WITHDRAWN."""
    if invitation.used_at is not None:
        return "USED"
    if invitation.withdrawn_at is not None:
        return "WITHDRAWN"
    return "OPEN" if now < invitation.expires_at else "EXPIRED"


def find_invitation(session: Session, secret: bytes, now: float) -> Invitation:
    """The invitation with this secret, with its fleet and its device.

    Raises:
        WrongTokenError: there is none.
        ConflictError: it has expired or was withdrawn. Whoever has the secret may know.
    """
    query = select(Invitation).where(Invitation.digest == secret_digest(secret))
    options = (selectinload(Invitation.fleet), selectinload(Invitation.device).selectinload(Device.fleet))
    found = session.scalar(query.options(*options))
    if found is None:
        raise WrongTokenError("the coordinator does not know this token: ask for a new one")
    if found.withdrawn_at is not None:
        raise ConflictError("the token was withdrawn: ask for a new one")
    if now >= found.expires_at:
        raise ConflictError("the token has expired: ask for a new one")
    return found


def bind_invitation(session: Session, invitation: Invitation, receipt_keyid: str) -> None:
    """From now on the invitation is for the device with this receipt key; ConflictError if it is another's."""
    # One statement: of two that come at once, in whatever processes, the database lets one through.
    free = or_(Invitation.receipt_keyid.is_(None), Invitation.receipt_keyid == receipt_keyid)
    bound = session.execute(
        update(Invitation)
        .where(Invitation.id == invitation.id, Invitation.withdrawn_at.is_(None), free)
        .values(receipt_keyid=receipt_keyid)
        .returning(Invitation.id)
    )
    if bound.first() is None:
        raise used_by_another()


def used_by_another() -> ConflictError:
    """A token is one device's."""
    return ConflictError("the token was used by another device: ask for a new one")


def _check_free(session: Session, device_id: str) -> None:
    try:
        check_name("device", device_id)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    if session.scalar(select(Device.id).where(Device.device_id == device_id)) is not None:
        raise ConflictError(f"there is or was a device '{device_id}': choose another name")


def _loaded(session: Session, number: int) -> Invitation:
    options = (selectinload(Invitation.fleet), selectinload(Invitation.device))
    found = session.get(Invitation, number, options=options, populate_existing=True)
    if found is None:
        raise UsageError(f"there is no invitation {number}: see 'clue-coordinator device invitations'")
    return found
