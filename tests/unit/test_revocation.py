"""A revoked device: nothing it signs is taken, nothing is handed to it, and the log says so."""

import json
from pathlib import Path

import pytest
from fleet_ledger import Fleet

from clue_coordinator import tlog
from clue_coordinator.devices import retire_device
from clue_coordinator.enrol import check_new_device
from clue_coordinator.errors import ConflictError, FlowerError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device
from clue_coordinator.revocation import CutOff, revoke_device
from clue_protocol.documents import Enrolment
from clue_protocol.keys import key_from_json


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.make(tmp_path / "ledger.sqlite", 2)


def device(fleet: Fleet, name: str) -> Device:
    with fleet.ledger.read() as session:
        return session.query(Device).filter(Device.device_id == name).one()


def test_what_it_was_doing_is_removed_and_its_receipt_refused(fleet: Fleet) -> None:
    request_id = fleet.order()
    work = fleet.lease(0, 1)
    revoke_device(fleet.ledger, "cam-0", "  stolen on\n Friday ")
    assert fleet.execution(request_id, 0).state == "REMOVED"
    assert fleet.execution(request_id, 0).reason == "REVOKED"
    for _ in range(3):
        assert fleet.answer(work[0]) == "REMOVED"
    assert fleet.answer(work[1]) == "SUCCEEDED"
    assert fleet.execution(request_id, 0).receipt_envelope is None
    assert device(fleet, "cam-0").refused_receipts == 3
    assert device(fleet, "cam-1").refused_receipts == 0
    told = [(e.kind, e.detail) for e in fleet.events() if e.device_id == "cam-0"]
    assert told.count(("receipt.refused", "the device is revoked")) == 3
    assert ("device.revoked", "stolen on Friday") in told
    # It asks for more, and is not there.
    fleet.order("cat")
    assert list(fleet.lease(0, 1)) == [1]


def test_a_receipt_that_would_have_come_late_is_refused_too(fleet: Fleet) -> None:
    request_id = fleet.order(expires_in_seconds=600)
    work = fleet.lease(0)
    fleet.now += 601
    fleet.tick()
    assert fleet.execution(request_id, 0).state == "TIMED_OUT"
    revoke_device(fleet.ledger, "cam-0", "stolen")
    assert fleet.answer(work[0]) == "TIMED_OUT"
    assert device(fleet, "cam-0").refused_receipts == 1


def test_the_log_holds_what_the_ledger_keeps(fleet: Fleet) -> None:
    found = revoke_device(fleet.ledger, "cam-1", "stolen")
    assert found.revocation is not None
    document = json.loads(found.revocation)
    assert (document["device_id"], document["fleet"], document["reason"]) == ("cam-1", "yard", "stolen")
    assert key_from_json(document["receipt_key"]).keyid == found.receipt_key["keyid"]
    with fleet.ledger.read() as session:
        index = tlog.index_of(session, found.revocation, "revocation")
        assert index is not None
        assert tlog.leaf_at(session, index).reference == "device/cam-1"


def test_name_and_key_stay_taken_and_it_happens_once(fleet: Fleet) -> None:
    retire_device(fleet.ledger, "cam-0")
    old = revoke_device(fleet.ledger, "cam-0", "found to be stolen after it was retired")
    with pytest.raises(ConflictError, match="revoked already: found to be stolen"):
        revoke_device(fleet.ledger, "cam-0", "again")
    for name, key, problem in (
        ("cam-0", "ecdsa-sha2-nistp384 NEW", "was revoked, and keeps its name"),
        ("cam-9", old.supernode_key, "has the same key"),
    ):
        document = Enrolment(name, key_from_json(old.receipt_key), key, ("bird",), "00" * 32, "1", {})
        with pytest.raises(ConflictError, match=problem):
            check_new_device(fleet.ledger, "yard", document)


def test_a_reason_is_needed(fleet: Fleet) -> None:
    for reason in ("", " \n ", "x" * 501):
        with pytest.raises(UsageError, match="say why"):
            revoke_device(fleet.ledger, "cam-0", reason)
    assert device(fleet, "cam-0").revoked_at is None


class Nodes:
    def __init__(self) -> None:
        self.gone: list[int] = []
        self.down = True

    def unregister(self, node_id: int) -> None:
        if self.down:
            raise FlowerError("the SuperLink is not running")
        self.gone.append(node_id)


def test_flower_lets_go_as_soon_as_it_can(fleet: Fleet, tmp_path: Path) -> None:
    nodes = Nodes()
    revoked = revoke_device(fleet.ledger, "cam-0", "stolen")
    assert CutOff(fleet.ledger, nodes).now(revoked) is None
    # The coordinator is restarted meanwhile.
    nodes.down = False
    keeper = CutOff(Ledger(tmp_path / "ledger.sqlite"), nodes)
    keeper.advance()
    keeper.advance()
    assert nodes.gone == [fleet.nodes[0]]
    assert device(fleet, "cam-0").cut_off_at is not None
    assert device(fleet, "cam-1").cut_off_at is None
