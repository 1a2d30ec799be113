"""What an erasure certificate of a large fleet costs: making it, its size, and its verification offline.

Devices have Ed25519 keys of their own and a signed receipt each, in the ledger and the log, as a rollout leaves them; a
tenth has a second receipt of an attempt that failed. What is timed is what the product does: ``certificates.make`` on
the coordinator, ``verify_certificate`` on the reader's machine, and the HTML and PDF.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from sqlalchemy import insert, update

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))
from certified_fleet import Certified
from fleet_ledger import DEVICE_KEYS

from clue_coordinator.certificates.page import page_of
from clue_coordinator.certificates.paper import to_pdf
from clue_coordinator.certificates.web import to_html
from clue_coordinator.models import Device, Execution, PastReceipt, Request
from clue_coordinator.states import ExecutionState, RequestState
from clue_coordinator.tlog import record
from clue_protocol.certificate import verify_certificate
from clue_protocol.envelope import envelope_digest
from clue_protocol.keys import key_to_json
from clue_protocol.v1 import forget_pb2 as pb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--receipts", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.receipts)
    for name, value in found.items():
        print(f"{name:45} {value:12.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def measure(folder: Path, receipts: int) -> dict[str, float]:
    found: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        found[f"{name}, s"] = time.perf_counter() - begin
        found[f"{name}, s of CPU"] = time.process_time() - cpu

    world = Certified.make(folder / "ledger.sqlite", 1)
    devices = round(receipts / 1.1)
    request_id = fill(world, devices, receipts)
    with timed("make"):
        data = world.certificate(request_id)
    with timed("make again"):
        assert world.certificate(request_id) == data
    found["size, MB"] = len(data) / 1e6
    with timed("verify"):
        verified = verify_certificate(data, world.roots)
    found["devices"] = len(verified.devices)
    found["receipts"] = sum(len(device.receipts) for device in verified.devices)
    assert found["receipts"] == receipts
    assert verified.erased == devices
    page = page_of(verified, data)
    with timed("HTML"):
        found["HTML, MB"] = len(to_html(page)) / 1e6
    with timed("PDF"):
        found["PDF, MB"] = len(to_pdf(page)) / 1e6
    found["peak RSS, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    world.fleet.ledger.close()
    return found


def fill(world: Certified, devices: int, receipts: int) -> str:
    """A rollout that is over, written into the ledger as it would be; ``receipts`` of it in all."""
    fleet = world.fleet
    request_id = fleet.order()
    signers = [DEVICE_KEYS[0], *(CryptoSigner.generate_ed25519() for _ in range(1, devices))]
    digest = envelope_digest(fleet.request(request_id).envelope)
    with fleet.ledger.write() as session:
        first = session.get_one(Device, 1)
        base = {
            "fleet_id": first.fleet_id,
            "classes": first.classes,
            "model_digest": first.model_digest,
            "software_version": "0.2.0",
            "online": False,
            "enrolled_at": 1.0,
            "labels": {},
        }
        session.execute(
            insert(Device),
            [
                base
                | {
                    "id": number + 1,
                    "device_id": f"cam-{number}",
                    "node_id": str(number + 1),
                    "supernode_key": f"key {number}",
                    "receipt_key": key_to_json(signers[number].public_key),
                }
                for number in range(1, devices)
            ],
        )
        executions = [
            {
                "id": f"e-{number}",
                "request_id": request_id,
                "device_pk": number + 1,
                "state": ExecutionState.SUCCEEDED,
                "updated_at": 1.0,
                "started_at": 1.0,
                "finished_at": 2.0,
            }
            for number in range(1, devices)
        ]
        session.execute(insert(Execution), executions)
        last = {}
        for number, signer in enumerate(signers):
            receipt = fleet.receipt(request_id, number, signer, request_digest=digest)
            last[number] = receipt
            device = session.get_one(Device, number + 1)
            if number:
                record.log_enrolment(session, device)
            if number < receipts - devices:
                identifier = f"e-{number}" if number else session.query(Execution.id).filter_by(device_pk=1).scalar()
                failed = fleet.receipt(
                    request_id, number, signer, request_digest=digest, outcome=pb.OUTCOME_FAILED, attempt=1
                )
                past = {"execution_id": identifier, "attempt": 1, "envelope": failed, "received_at": 1.0}
                session.execute(insert(PastReceipt), [past])
                record.log_receipt(session, request_id, device.device_id, failed)
            record.log_receipt(session, request_id, device.device_id, receipt)
        for number, receipt in last.items():
            session.execute(
                update(Execution)
                .where(Execution.device_pk == number + 1)
                .values(receipt_envelope=receipt, state=ExecutionState.SUCCEEDED, finished_at=2.0)
            )
        session.execute(
            update(Request).where(Request.id == request_id).values(state=RequestState.COMPLETED, finished_at=3.0)
        )
    return request_id


if __name__ == "__main__":
    main()
