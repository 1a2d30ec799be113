"""Who is online, where the coordinator remembers what it saw half a second ago."""

from pathlib import Path

from fleet_ledger import Fleet
from sqlalchemy import select

from clue_coordinator import devices, rollout
from clue_coordinator.models import Device
from clue_coordinator.presence import Seen


def online(fleet: Fleet) -> set[str]:
    with fleet.ledger.read() as session:
        return set(session.scalars(select(Device.device_id).where(Device.online)))


def test_what_was_seen_never_hides_a_change(tmp_path: Path):
    fleet, seen = Fleet.make(f"sqlite:///{tmp_path}/ledger.sqlite", 2), Seen()
    late = 2**64 - 100 + 2
    for _ in range(3):
        rollout.lease(fleet.ledger, [*fleet.nodes, late], seen)
    assert online(fleet) == {"cam-0", "cam-1"}

    fleet.add_device(2)  # its node was connected before the ledger knew it
    assert fleet.nodes[2] == late
    rollout.lease(fleet.ledger, fleet.nodes, seen)
    assert online(fleet) == {"cam-0", "cam-1", "cam-2"}

    rollout.lease(fleet.ledger, fleet.nodes[:2], seen)
    assert online(fleet) == {"cam-0", "cam-1"}

    devices.retire_device(fleet.ledger, "cam-1")
    rollout.lease(fleet.ledger, fleet.nodes[:2], seen)
    assert online(fleet) == {"cam-0"}

    rollout.release_all(fleet.ledger)
    assert online(fleet) == set()
    rollout.lease(fleet.ledger, fleet.nodes[:1], seen)
    assert online(fleet) == {"cam-0"}


def test_last_seen_goes_on_while_nothing_changes(tmp_path: Path):
    fleet, seen = Fleet.make(f"sqlite:///{tmp_path}/ledger.sqlite", 1), Seen()
    begun = fleet.now
    for _ in range(200):
        rollout.lease(fleet.ledger, fleet.nodes, seen)
        fleet.now += 0.5
    with fleet.ledger.read() as session:
        last = session.scalar(select(Device.last_seen))
    assert last is not None
    assert fleet.now - last <= 36 < fleet.now - begun


def test_an_idle_poll_that_saw_the_fleet_a_moment_ago_reads_no_device(tmp_path: Path):
    fleet, seen = Fleet.make(f"sqlite:///{tmp_path}/ledger.sqlite", 2), Seen()
    for _ in range(2):
        rollout.lease(fleet.ledger, fleet.nodes, seen)
    assert seen.holds(fleet.ledger.version, fleet.nodes, fleet.now)
    assert not seen.holds(fleet.ledger.version, fleet.nodes[:1], fleet.now)
    assert not seen.holds(fleet.ledger.version + 1, fleet.nodes, fleet.now)
    assert not seen.holds(fleet.ledger.version, fleet.nodes, fleet.now + 6)
    assert not seen.holds(fleet.ledger.version, fleet.nodes, fleet.now - 60)  # a clock that was set back
