"""Who is online, as Flower's SuperLink sees it."""

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution

_SEEN_SECONDS = 30.0


def presence_changed(session: Session, online: set[str], now: float) -> bool:
    """True if :func:`note_presence` would change something: an idle coordinator must not write all the time."""
    rows = session.execute(select(Device.node_id, Device.last_seen).where(Device.online)).all()
    if any(seen is None or seen < now - _SEEN_SECONDS for _, seen in rows):
        return True
    known = {node for node, _ in rows}
    # A node that is no device of ours (retired a moment ago) is no change.
    return bool(known - online) or _any_known(session, online - known)


def _any_known(session: Session, nodes: set[str]) -> bool:
    return any(
        session.scalar(select(Device.id).where(Device.node_id.in_(part), Device.retired_at.is_(None)).limit(1))
        for part in _parts(nodes)
    )


def _parts(nodes: set[str]) -> list[list[str]]:
    """Databases bound the number of values in one statement."""
    ordered = sorted(nodes)
    return [ordered[start : start + 1000] for start in range(0, len(ordered), 1000)]


def note_presence(session: Session, ledger: Ledger, online: set[str], now: float) -> None:
    """Note who came and who went; what a device that comes back was asked before is due again."""
    # Only who comes and goes is loaded: of ten thousand devices that are a few.
    known = set(session.scalars(select(Device.node_id).where(Device.online)))
    for part in _parts(known - online):
        gone = select(Device).where(Device.node_id.in_(part)).options(selectinload(Device.fleet))
        for device in session.scalars(gone):
            device.online = False
            ledger.record(session, "device.offline", fleet=device.fleet.name, device_id=device.device_id)
    for part in _parts(online - known):
        query = select(Device).where(Device.node_id.in_(part), Device.retired_at.is_(None))
        back = session.scalars(query.options(selectinload(Device.fleet))).all()
        # What they were asked before they left is asked again at once: the reply to the old message may never come.
        session.execute(
            update(Execution)
            .where(Execution.device_pk.in_([device.id for device in back]), Execution.handed_out)
            .values(lease_until=now)
        )
        for device in back:
            device.online = True
            ledger.record(session, "device.online", fleet=device.fleet.name, device_id=device.device_id)
    session.flush()
    session.execute(
        update(Device)
        .where(Device.online, or_(Device.last_seen.is_(None), Device.last_seen < now - _SEEN_SECONDS / 2))
        .values(last_seen=now)
    )
