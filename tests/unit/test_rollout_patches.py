"""Devices without images: they wait for a patch of the others' updates, or their refusal is the last word."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from fleet_ledger import SIGNER, Fleet
from sqlalchemy import func, select

from clue.federated import Change, Update, update_from_bytes, update_to_bytes
from clue_coordinator import models, requests
from clue_coordinator.executions import check_counts
from clue_coordinator.patches import Patcher
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.receipts import is_verified
from clue_coordinator.rollout import LEASE_SECONDS
from clue_coordinator.states import RequestState
from clue_coordinator.targets import Target
from clue_protocol.envelope import MAX_UPDATE_BYTES, REQUEST_TYPE, open_message
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

HOUR = 3600.0
BASE = "00" * 32
NO_SAMPLES: dict[str, Any] = {
    "outcome": pb.OUTCOME_REJECTED,
    "reason": pb.REASON_NO_FORGET_SAMPLES,
    "detail": "no images of 'bird'",
}
TRUTH = np.random.default_rng(0).standard_normal(64)


def update(device: int, base: str = BASE) -> bytes:
    values = (TRUTH + 0.3 * np.random.default_rng(device + 1).standard_normal(64)).astype(np.float32)
    return update_to_bytes(Update(base, "bird", 50, {"w": Change((64,), np.arange(64, dtype=np.int32), values)}))


class Yard(Fleet):
    """A fleet with a patcher."""

    patcher: Patcher

    def tick(self) -> None:
        super().tick()
        self.patcher.advance()

    def aggregate(self, **options: Any) -> str:
        plan = RolloutPlan(without_samples="aggregate", **options.pop("plan", {}))
        return self.order(plan=plan, **options)

    def has_samples(self, given: dict[int, dispatch_pb2.Assignment], *indices: int) -> None:
        for index in indices:
            assert self.answer(given[index], update(index)) == "SUCCEEDED"

    def updates(self) -> int:
        with self.ledger.read() as session:
            return session.scalar(select(func.count()).select_from(models.Update)) or 0

    def patch_bytes(self) -> int:
        with self.ledger.read() as session:
            return sum(len(body) for body in session.scalars(select(models.Patch.body)))


@pytest.fixture
def make(new_url: Callable[[], str]) -> Iterator[Callable[[int], Yard]]:
    made: list[Yard] = []

    def build(count: int) -> Yard:
        fleet = Yard.make(new_url(), count)
        assert isinstance(fleet, Yard)
        fleet.patcher = Patcher(fleet.ledger, SIGNER)
        made.append(fleet)
        return fleet

    yield build
    for fleet in made:
        with fleet.ledger.read() as session:
            assert all(check_counts(session, request) for request in session.scalars(select(models.Request)))
        fleet.ledger.close()


def test_a_device_without_images_gets_a_patch(make: Callable[[int], Yard]) -> None:
    fleet = make(5)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2, 3, 4)
    message = open_message(given[4].request_envelope, REQUEST_TYPE, pb.ForgetRequest, [SIGNER.public_key])
    assert message.share_update
    refusal = fleet.receipt(request_id, 4, attempt=1, **NO_SAMPLES)
    assert fleet.answer(given[4], envelope=refusal) == "QUEUED"
    assert fleet.execution(request_id, 4).waiting == "patch"
    fleet.has_samples(given, 0, 1)
    fleet.tick()
    assert fleet.lease(0, 1, 2, 3, 4) == {}  # 2 and 3 may still hand in theirs
    fleet.has_samples(given, 2, 3)
    assert fleet.updates() == 4
    fleet.tick()
    patched = fleet.lease(0, 1, 2, 3, 4)[4]
    assert (patched.execution_id, patched.attempt, patched.recall) == (given[4].execution_id, 1, False)
    assert patched.request_id != request_id

    order = open_message(patched.request_envelope, REQUEST_TYPE, pb.ForgetRequest, [SIGNER.public_key])
    assert (order.request_id, order.forget_class, order.fleet) == (patched.request_id, "bird", "yard")
    assert order.sequence > message.sequence
    assert order.expires_at == message.expires_at
    assert not order.share_update
    assert (order.patch.source_request_id, order.patch.base_model_digest, order.patch.updates) == (request_id, BASE, 4)
    assert order.patch.digest == sha256(patched.patch).digest()
    change = update_from_bytes(patched.patch)
    assert change.contributors == 4
    assert np.corrcoef(change.changes["w"].dense(), TRUTH)[0, 1] > 0.95

    # The refusal again is no fault; a receipt for the first request does not answer the second.
    assert fleet.answer(given[4], envelope=refusal) == "IN_PROGRESS"
    assert fleet.execution(request_id, 4).faults == 0
    assert fleet.answer(given[4]) == "QUEUED"
    assert "it is for request" in fleet.execution(request_id, 4).detail
    fleet.now += 60
    patched = fleet.lease(4)[4]
    assert fleet.answer(patched) == "SUCCEEDED"
    execution = fleet.execution(request_id, 4)
    assert is_verified(execution.receipt_envelope, execution)
    assert fleet.request(request_id).state == RequestState.COMPLETED
    assert fleet.updates() == fleet.patch_bytes() == 0


def test_who_comes_later_gets_the_same_patch(make: Callable[[int], Yard]) -> None:
    fleet = make(5)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2, 3)
    fleet.has_samples(given, 0, 1, 2)
    fleet.answer(given[3], **NO_SAMPLES)
    fleet.tick()  # 4 is offline and not waited for
    first = fleet.lease(0, 1, 2, 3)[3]
    fleet.answer(first)
    fleet.now += HOUR
    fleet.answer(fleet.lease(4)[4], **NO_SAMPLES)
    fleet.tick()
    second = fleet.lease(4)[4]
    assert (second.request_id, second.patch) == (first.request_id, first.patch)
    assert fleet.answer(second) == "SUCCEEDED"
    assert fleet.request(request_id).state == RequestState.COMPLETED


def test_without_contributors_the_refusal_is_the_last_word(make: Callable[[int], Yard]) -> None:
    fleet = make(3)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2)
    fleet.has_samples(given, 0)
    refusals = [fleet.receipt(request_id, index, attempt=1, **NO_SAMPLES) for index in (1, 2)]
    for index, refusal in enumerate(refusals, 1):
        assert fleet.answer(given[index], envelope=refusal) == "QUEUED"
    fleet.tick()
    for index, refusal in enumerate(refusals, 1):
        execution = fleet.execution(request_id, index)
        assert (execution.state, execution.reason) == ("REJECTED", "NO_FORGET_SAMPLES")
        assert execution.receipt_envelope == refusal
        assert is_verified(execution.receipt_envelope, execution)
        assert execution.detail == (
            "no images of 'bird'; 1 update(s) of other devices on the same model were not enough for a patch"
        )
    assert fleet.request(request_id).state == RequestState.COMPLETED


def test_it_waits_for_devices_that_are_offline_until_the_deadline(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    request_id = fleet.aggregate(expires_in_seconds=HOUR)
    given = fleet.lease(0, 1, 2)
    fleet.has_samples(given, 0, 1)
    refusal = fleet.receipt(request_id, 2, attempt=1, **NO_SAMPLES)
    fleet.answer(given[2], envelope=refusal)
    version = fleet.ledger.version
    for _ in range(5):
        fleet.tick()
    assert fleet.ledger.version == version
    fleet.now += HOUR
    fleet.tick()
    execution = fleet.execution(request_id, 2)
    assert (execution.state, execution.receipt_envelope) == ("REJECTED", refusal)
    assert "no patch could be made before the deadline" in execution.detail
    assert fleet.execution(request_id, 3).state == "TIMED_OUT"
    assert (fleet.request(request_id).state, fleet.updates()) == (RequestState.COMPLETED, 0)


def test_a_late_contributor_makes_the_patch_possible(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    fleet.aggregate()
    given = fleet.lease(0, 1, 2)
    fleet.has_samples(given, 0, 1)
    fleet.answer(given[2], **NO_SAMPLES)
    fleet.tick()
    fleet.now += HOUR
    fleet.has_samples(fleet.lease(2, 3), 3)
    fleet.tick()
    assert fleet.answer(fleet.lease(2, 3)[2]) == "SUCCEEDED"


def test_cancelling_ends_the_waiting(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2)
    fleet.answer(given[0], **NO_SAMPLES)
    fleet.has_samples(given, 1, 2)
    requests.cancel_request(fleet.ledger, request_id)
    assert fleet.states(request_id) == ["CANCELED", "SUCCEEDED", "SUCCEEDED", "CANCELED"]
    assert fleet.updates() == 0
    fleet.tick()
    fleet.now += LEASE_SECONDS
    assert fleet.lease(0, 1, 2, 3) == {}


def test_cancelling_recalls_a_patch(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2, 3)
    fleet.answer(given[0], **NO_SAMPLES)
    fleet.has_samples(given, 1, 2, 3)
    fleet.tick()
    patched = fleet.lease(0)[0]
    assert fleet.patch_bytes() == len(patched.patch) > 0
    requests.cancel_request(fleet.ledger, request_id)
    assert fleet.patch_bytes() == 0
    fleet.now += LEASE_SECONDS
    recall = fleet.lease(0)[0]
    assert (recall.request_id, recall.recall, recall.patch) == (patched.request_id, True, b"")
    assert fleet.answer(patched) == "SUCCEEDED"


def test_a_patch_that_fails_in_passing_is_handed_out_again(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    fleet.aggregate(plan={"max_attempts": 2, "backoff_seconds": 5})
    given = fleet.lease(0, 1, 2, 3)
    fleet.answer(given[0], **NO_SAMPLES)
    fleet.has_samples(given, 1, 2, 3)
    fleet.tick()
    failed = {"outcome": pb.OUTCOME_FAILED, "reason": pb.REASON_OUT_OF_MEMORY}
    assert fleet.answer(fleet.lease(0)[0], **failed) == "QUEUED"
    fleet.now += 5
    again = fleet.lease(0)[0]
    assert (again.attempt, bool(again.patch)) == (2, True)
    assert fleet.answer(again, **NO_SAMPLES) == "REJECTED"  # no second wait


@pytest.mark.parametrize("wrong", ["digest", "size", "policy"])
def test_updates_that_are_not_kept(make: Callable[[int], Yard], wrong: str) -> None:
    fleet = make(1)
    if wrong == "policy":
        fleet.order()
    else:
        fleet.aggregate(target=Target(continuous=True))
    body = bytes(MAX_UPDATE_BYTES + 1) if wrong == "size" else update(0)
    claimed = b"\x01" * 32 if wrong == "digest" else sha256(body).digest()
    assert fleet.answer(fleet.lease(0)[0], body, update_digest=claimed) == "SUCCEEDED"
    assert fleet.updates() == 0


def test_a_continuous_request_goes_on_waiting_for_updates(make: Callable[[int], Yard]) -> None:
    fleet = make(1)
    request_id = fleet.aggregate(target=Target(continuous=True), plan={"min_updates": 1})
    fleet.answer(fleet.lease(0)[0], **NO_SAMPLES)
    fleet.tick()
    assert fleet.states(request_id) == ["QUEUED"]
    fleet.add_device(1)
    fleet.has_samples(fleet.lease(0, 1), 1)
    fleet.tick()
    assert fleet.answer(fleet.lease(0, 1)[0]) == "SUCCEEDED"


def test_updates_that_do_not_agree_make_no_patch(make: Callable[[int], Yard]) -> None:
    fleet = make(4)
    request_id = fleet.aggregate()
    given = fleet.lease(0, 1, 2, 3)
    fleet.answer(given[0], **NO_SAMPLES)
    for index in (1, 2, 3):
        noise = np.random.default_rng(100 + index).standard_normal(64).astype(np.float32)
        change = Change((64,), np.arange(64, dtype=np.int32), noise)
        fleet.answer(given[index], update_to_bytes(Update(BASE, "bird", 50, {"w": change})))
    fleet.tick()
    assert fleet.execution(request_id, 0).state == "REJECTED"
    assert fleet.request(request_id).state == RequestState.COMPLETED
