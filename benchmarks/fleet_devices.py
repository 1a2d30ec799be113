"""The devices' side of ``fleet.py``: devices with real keys, their signed receipts, and a dispatcher without Flower."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from clue_coordinator import roots
from clue_coordinator.enrol import create_fleet
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger, find_fleet
from clue_coordinator.models import Device
from clue_protocol.envelope import RECEIPT_TYPE, envelope_digest, sign_message
from clue_protocol.keys import key_to_json
from clue_protocol.v1 import dispatch_pb2, dispatch_pb2_grpc
from clue_protocol.v1 import forget_pb2 as pb
from clue_protocol.v1.agent_pb2 import Progress

FLEET = "bench"
# Node ids use all 64 bits.
_FIRST_NODE = 2**63
_CHUNK = 1000
# A progress report before the receipt: of every third device. A receipt that says FAILED: of every fiftieth.
_PROGRESS_EVERY, _FAILED_EVERY = 3, 50


@dataclass(frozen=True)
class SimulatedDevice:
    """What the benchmark knows of a device."""

    index: int
    name: str
    node: int
    key: CryptoSigner


def bench_keys() -> HomeKeys:
    """Keys of the coordinator, the same in every process."""
    request, timestamp, root = (
        CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2, 3)
    )
    return HomeKeys(request, (timestamp,), root)


def make_devices(ledger: str, number: int) -> list[SimulatedDevice]:
    """Put ``number`` devices into the ledger, in fleet ``bench``."""
    book = Ledger(ledger)
    try:
        roots.found(book, bench_keys())
        create_fleet(book, FLEET, bench_keys())
        devices = [
            SimulatedDevice(index, f"cam-{index:05}", _FIRST_NODE + index, CryptoSigner.generate_ed25519())
            for index in range(number)
        ]
        for start in range(0, number, _CHUNK):
            with book.write() as session:
                fleet = find_fleet(session, FLEET)
                assert fleet is not None
                session.add_all(_row(device, fleet.id, book.clock()) for device in devices[start : start + _CHUNK])
        return devices
    finally:
        book.close()


def _row(device: SimulatedDevice, fleet: int, now: float) -> Device:
    return Device(
        device_id=device.name,
        fleet_id=fleet,
        node_id=str(device.node),
        receipt_key=key_to_json(device.key.public_key),
        # The length of a P-384 key in OpenSSH's format; Flower alone reads it.
        supernode_key=f"ecdsa-sha2-nistp384 {device.index:0180}",
        classes=["bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "automobile", "airplane"],
        model_digest="00" * 32,
        software_version="0.1.0",
        online=False,
        enrolled_at=now,
        root_version=2,
        labels={"site": f"site-{device.index % 50}", "hw": "pi5" if device.index % 3 else "pi4"},
    )


def sign_receipts(devices: list[SimulatedDevice], request_id: str, envelope: bytes) -> dict[int, bytes]:
    """The receipt of every device, by node."""
    digest = envelope_digest(envelope)
    return {
        device.node: sign_message(_receipt(device, request_id, digest), RECEIPT_TYPE, [device.key])
        for device in devices
    }


def _receipt(device: SimulatedDevice, request_id: str, digest: bytes) -> pb.Receipt:
    failed = device.index % _FAILED_EVERY == _FAILED_EVERY - 1
    return pb.Receipt(
        request_id=request_id,
        device_id=device.name,
        fleet=FLEET,
        outcome=pb.OUTCOME_FAILED if failed else pb.OUTCOME_SUCCEEDED,
        reason=pb.REASON_POLICY_NOT_MET if failed else pb.REASON_UNSPECIFIED,
        detail="RA fell by 9.0 points; 5.0 are allowed" if failed else "",
        request_digest=digest,
        model_digest_before="00" * 32,
        model_digest_after=("00" if failed else "11") * 32,
        software_version="0.1.0",
        ua_before=pb.Accuracy(correct=90, samples=100),
        ua_after=pb.Accuracy(correct=2, samples=100),
        ra_before=pb.Accuracy(correct=850, samples=900),
        ra_after=pb.Accuracy(correct=850 - device.index % 40, samples=900),
        latency_seconds=180.5,
        unlearning_seconds=120.25,
        energy=pb.Energy(joules=600.0, source="pi5-pmic"),
        peak_memory_bytes=300_000_000,
    )


@dataclass
class Timings:
    """Seconds of every call, as the dispatcher sees them."""

    lease: list[float] = field(default_factory=list)
    receipt: list[float] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    handed_out: int = 0


class SimulatedDispatcher:
    """Does what the dispatcher in Flower does, one call after the other; devices answer at once."""

    def __init__(self, socket: Path) -> None:
        # No answer is larger than a batch of requests, but gRPC's own limit of 4 MB is the dispatcher's too.
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._coordinator = dispatch_pb2_grpc.DispatchServiceStub(self._channel)
        self._told: set[str] = set()
        self.poll_seconds = 0.5
        self.timings = Timings()

    def close(self) -> None:
        self._channel.close()

    def lease(self, online: list[int]) -> list[dispatch_pb2.Assignment]:
        """One Lease call with these nodes online."""
        request = dispatch_pb2.LeaseRequest(epoch="bench", online_nodes=online)
        started = time.perf_counter()
        answer = self._coordinator.Lease(request, timeout=30)
        self.timings.lease.append(time.perf_counter() - started)
        self.poll_seconds = answer.poll_seconds or self.poll_seconds
        self.timings.handed_out += len(answer.assignments)
        return list(answer.assignments)

    def run(self, online: list[int], receipts: dict[int, bytes], seconds: float) -> Iterator[int]:
        """Poll until every node of ``receipts`` has answered; yields the number of receipts after every poll.

        Raises:
            TimeoutError: not within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        answered: set[int] = set()
        while len(answered) < len(receipts):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(answered)} of {len(receipts)} devices answered within {seconds:g} s")
            for assignment in self.lease(online):
                if self._answer(assignment, receipts[assignment.node_id]):
                    answered.add(assignment.node_id)
            yield len(answered)
            time.sleep(self.poll_seconds)

    def _answer(self, assignment: dispatch_pb2.Assignment, receipt: bytes) -> bool:
        """True if the answer was a receipt."""
        known: dict[str, Any] = {
            "epoch": "bench",
            "execution_id": assignment.execution_id,
            "node_id": assignment.node_id,
            "root_version": 2,
        }
        working = assignment.node_id % _PROGRESS_EVERY == 0 and assignment.execution_id not in self._told
        if working:
            self._told.add(assignment.execution_id)
            request = dispatch_pb2.ReportRequest(**known, progress=Progress(stage="unlearning", fraction=0.5))
        else:
            request = dispatch_pb2.ReportRequest(**known, receipt_envelope=receipt)
        started = time.perf_counter()
        self._coordinator.Report(request, timeout=30)
        (self.timings.progress if working else self.timings.receipt).append(time.perf_counter() - started)
        return not working
