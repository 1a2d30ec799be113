"""A ledger with a clock that tests turn by hand, and devices that sign what they are told to."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from sqlalchemy.orm import selectinload

from clue_coordinator import enrol, reports, requests, rollout, roots
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Event, Execution, Request
from clue_coordinator.requests import ForgetOrder
from clue_coordinator.tick import tick
from clue_protocol.documents import Enrolment
from clue_protocol.envelope import RECEIPT_TYPE, envelope_digest, sign_message
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

SIGNER = CryptoSigner.generate_ed25519()
KEYS = HomeKeys(SIGNER, (CryptoSigner.generate_ed25519(),), CryptoSigner.generate_ed25519())
# The same in every process: what one writer's devices signed, those of the next one must answer for.
DEVICE_KEYS = [CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(12)]


@dataclass
class Fleet:
    """Fleet ``yard`` with devices ``cam-0`` ... on nodes 100, 101, ...; device 0 also knows ``owl``."""

    ledger: Ledger
    now: float = 1_000_000.0
    nodes: list[int] = field(default_factory=list)
    last: dict[int, dispatch_pb2.Assignment] = field(default_factory=dict)

    @classmethod
    def make(cls, where: Path | str, devices: int) -> "Fleet":
        fleet = cls(Ledger(where))
        fleet.ledger.clock = lambda: fleet.now
        roots.found(fleet.ledger, KEYS)
        enrol.create_fleet(fleet.ledger, "yard", KEYS)
        for index in range(devices):
            fleet.add_device(index)
        return fleet

    def add_device(self, index: int, **labels: str) -> None:
        key = f"ecdsa-sha2-nistp384 AAAA{index}"
        classes = ("bird", "cat", "owl") if index == 0 else ("bird", "cat")
        document = Enrolment(f"cam-{index}", DEVICE_KEYS[index].public_key, key, classes, "00" * 32, "0.1.0", labels)
        enrol.check_new_device(self.ledger, "yard", document)
        # Node ids use all 64 bits.
        node = 2**64 - 100 + index
        enrol.add_device(self.ledger, "yard", document, node)
        self.nodes.append(node)

    def order(self, forget_class: str = "bird", **options: Any) -> str:
        return requests.create_request(self.ledger, ForgetOrder("yard", forget_class, **options), SIGNER)

    def lease(self, *indices: int) -> dict[int, dispatch_pb2.Assignment]:
        """Assignments by device index, with these devices online."""
        found = rollout.lease(self.ledger, [self.nodes[index] for index in indices])
        by_device = {self.nodes.index(a.node_id): a for a in found}
        assert len(by_device) == len(found)  # one thing at a time
        self.last = by_device
        return by_device

    def tick(self) -> None:
        """What the daemon does every half second."""
        tick(self.ledger)

    def request(self, request_id: str) -> Request:
        with self.ledger.read() as session:
            everything = selectinload(Request.executions).selectinload(Execution.device).selectinload(Device.fleet)
            found = session.get_one(Request, request_id, options=[selectinload(Request.fleet), everything])
            for execution in found.executions:
                assert execution.request is found  # loaded while the session is open
            return found

    def execution(self, request_id: str, index: int = 0) -> Execution:
        [found] = [e for e in self.request(request_id).executions if e.device.device_id == f"cam-{index}"]
        return found

    def events(self) -> list[Event]:
        with self.ledger.read() as session:
            return list(session.query(Event).order_by(Event.id))

    def answer(
        self, assignment: dispatch_pb2.Assignment, update: bytes = b"", envelope: bytes | None = None, **fields: Any
    ) -> str:
        """The device that got this answers it; returns the state that its execution is in then."""
        index = self.nodes.index(assignment.node_id)
        if envelope is None:
            digest = envelope_digest(assignment.request_envelope)
            about = {"request_digest": digest, "attempt": assignment.attempt, "update_digest": b""}
            if update:
                about["update_digest"] = sha256(update).digest()
            envelope = self.receipt(assignment.request_id, index, **(about | fields))
        reports.report_receipt(self.ledger, assignment.execution_id, assignment.node_id, envelope, update)
        with self.ledger.read() as session:
            return str(session.get_one(Execution, assignment.execution_id).state)

    def states(self, request_id: str) -> list[str]:
        """States by device."""
        return [e.state for e in self.request(request_id).executions]

    def receipt(self, request_id: str, index: int = 0, key: CryptoSigner | None = None, **fields: Any) -> bytes:
        """A receipt as device ``index`` would sign it; ``fields`` replace what it says."""
        digest = fields.get("request_digest")
        if digest is None:
            digest = envelope_digest(self.request(request_id).envelope)
        body: dict[str, Any] = {
            "request_id": request_id,
            "device_id": f"cam-{index}",
            "fleet": "yard",
            "outcome": pb.OUTCOME_SUCCEEDED,
            "request_digest": digest,
            "model_digest_before": "00" * 32,
            "model_digest_after": "11" * 32,
            "software_version": "0.2.0",
            "ua_before": pb.Accuracy(correct=9, samples=10),
            "ua_after": pb.Accuracy(correct=1, samples=10),
            "ra_before": pb.Accuracy(correct=20, samples=20),
            "ra_after": pb.Accuracy(correct=19, samples=20),
            "latency_seconds": 12.5,
            "unlearning_seconds": 8.25,
            "energy": pb.Energy(joules=66.5, source="rapl"),
            "peak_memory_bytes": 300_000_000,
        }
        return sign_message(pb.Receipt(**(body | fields)), RECEIPT_TYPE, [key or DEVICE_KEYS[index]])

    def report(self, request_id: str, index: int = 0, envelope: bytes | None = None, **fields: Any) -> str:
        """Report a receipt of device ``index`` and return the state that its execution is in then."""
        data = envelope if envelope is not None else self.receipt(request_id, index, **fields)
        execution = self.execution(request_id, index)
        reports.report_receipt(self.ledger, execution.id, self.nodes[index], data)
        return self.execution(request_id, index).state
