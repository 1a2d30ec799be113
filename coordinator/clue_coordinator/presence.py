"""Who is online, as Flower's SuperLink sees it."""

from collections.abc import Collection, Sequence, Set

from sqlalchemy import Row, or_, select, update
from sqlalchemy.orm import Session

from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Fleet

_SEEN_SECONDS = 30.0
_LOOK_SECONDS = 5.0


class Seen:
    """The nodes that were online when there last was nothing to note.

    As long as they are the same ones and nothing was written to the ledger, there still is nothing: an idle
    coordinator need not read its whole fleet twice a second.
    """

    def __init__(self) -> None:
        self._state: tuple[int, frozenset[int]] = (-1, frozenset())
        self._until = 0.0

    def holds(self, version: int, nodes: Collection[int], now: float) -> bool:
        """True if ``nodes`` at this version of the ledger were looked at a moment ago."""
        return now < self._until <= now + _LOOK_SECONDS and self._state == (version, frozenset(nodes))

    def remember(self, version: int, nodes: Collection[int], now: float) -> None:
        """There was nothing to note."""
        self._state, self._until = (version, frozenset(nodes)), now + _LOOK_SECONDS


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


def _parts(nodes: Set[str]) -> list[list[str]]:
    """Databases bound the number of values in one statement."""
    ordered = sorted(nodes)
    return [ordered[start : start + 1000] for start in range(0, len(ordered), 1000)]


def note_presence(session: Session, ledger: Ledger, online: set[str], now: float) -> None:
    """Note who came and who went; what a device that comes back was asked before is due again."""
    # Columns, not devices, and only of those that come and go: this is done with every batch that is handed out.
    known = set(session.scalars(select(Device.node_id).where(Device.online)))
    columns = select(Device.node_id, Device.id, Device.device_id, Fleet.name).join(Device.fleet)
    for part in _parts(known - online):
        gone = session.execute(columns.where(Device.node_id.in_(part)).order_by(Device.node_id)).all()
        session.execute(update(Device).where(Device.id.in_([row.id for row in gone])).values(online=False))
        _record(session, ledger, "device.offline", gone)
    for part in _parts(online - known):
        query = columns.where(Device.node_id.in_(part), Device.retired_at.is_(None))
        came = session.execute(query.order_by(Device.node_id)).all()
        ids = [row.id for row in came]
        session.execute(update(Device).where(Device.id.in_(ids)).values(online=True))
        # What it was asked before it left is asked again at once: the reply to the old message may never come.
        session.execute(
            update(Execution).where(Execution.device_pk.in_(ids), Execution.handed_out).values(lease_until=now)
        )
        _record(session, ledger, "device.online", came)
    session.execute(
        update(Device)
        .where(Device.online, or_(Device.last_seen.is_(None), Device.last_seen < now - _SEEN_SECONDS / 2))
        .values(last_seen=now)
    )


def _record(session: Session, ledger: Ledger, kind: str, devices: "Sequence[Row[str, int, str, str]]") -> None:
    for device in devices:
        ledger.record(session, kind, fleet=device.name, device_id=device.device_id)
