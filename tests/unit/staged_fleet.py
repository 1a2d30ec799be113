"""A fleet of any size on a ledger, whose devices answer as a test tells them to."""

from collections.abc import Sequence
from typing import Any

from fleet_ledger import DEVICE_KEYS, Fleet

from clue_coordinator import rollout
from clue_coordinator.models import Device
from clue_protocol.keys import key_to_json
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

CITIES = ("paris", "lyon", "nice")


def add_devices(fleet: Fleet, number: int, *, offline: int = 0, fleet_name: str = "yard") -> None:
    """Enrol ``cam-0``, ... in one transaction; the last ``offline`` of them are offline, and every third is a Pi 4."""
    from clue_coordinator.enrol import require_fleet

    now, first = fleet.ledger.clock(), len(fleet.nodes)
    with fleet.ledger.write() as session:
        yard = require_fleet(session, fleet_name)
        for index in range(first, first + number):
            node = 2**64 - 100_000 + index
            fleet.nodes.append(node)
            session.add(
                Device(
                    device_id=f"cam-{index}",
                    node_id=str(node),
                    receipt_key=key_to_json(DEVICE_KEYS[index % 3].public_key),
                    supernode_key=f"ecdsa-sha2-nistp384 AAAA{index}",
                    classes=["bird", "cat"],
                    model_digest="00" * 32,
                    software_version="0.2.0",
                    online=False,
                    enrolled_at=now,
                    labels={"site": CITIES[index % 3], "hw": "pi4" if index % 3 == 0 else "pi5"},
                    fleet=yard,
                )
            )
    lease(fleet, len(fleet.nodes) - offline)


def lease(fleet: Fleet, online: int) -> list[dispatch_pb2.Assignment]:
    """What is due for the first ``online`` devices, all of it."""
    found: list[dispatch_pb2.Assignment] = []
    while more := rollout.lease(fleet.ledger, fleet.nodes[:online]):
        found += more
    return found


def answer(fleet: Fleet, assignment: dispatch_pb2.Assignment, **fields: Any) -> None:
    """A receipt of the device that was asked; ``fields`` replace what it says."""
    measured = {"ra_before": pb.Accuracy(correct=200, samples=200), "ra_after": pb.Accuracy(correct=199, samples=200)}
    key = DEVICE_KEYS[fleet.nodes.index(assignment.node_id) % 3]
    fleet.answer(assignment, key=key, **(measured | fields))


def answer_all(fleet: Fleet, assignments: Sequence[dispatch_pb2.Assignment]) -> None:
    """Most succeed, the 7th is rejected, the 13th fails, the 5th loses retained accuracy."""
    for assignment in assignments:
        index = fleet.nodes.index(assignment.node_id)
        if index % 13 == 12:
            detail = "UA after is 31.0 %, the request allows 10.0 %"
            answer(fleet, assignment, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_POLICY_NOT_MET, detail=detail)
        elif index % 13 == 6:
            detail = "this device has no image of 'bird'"
            answer(fleet, assignment, outcome=pb.OUTCOME_REJECTED, reason=pb.REASON_NO_FORGET_SAMPLES, detail=detail)
        else:
            lost = index % 5
            answer(fleet, assignment, ra_after=pb.Accuracy(correct=200 - lost, samples=200))
