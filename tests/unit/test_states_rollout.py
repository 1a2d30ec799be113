"""The rollout: every device that is asked ends in one final state, and only its own receipt makes it a success."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_ledger import DEVICE_KEYS, SIGNER, Fleet

from clue_coordinator import enrol, reports, requests, rollout
from clue_coordinator.errors import ConflictError, CoordinatorError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.receipts import is_verified
from clue_coordinator.reports import MAX_FAULTS
from clue_coordinator.rollout import LEASE_SECONDS
from clue_coordinator.states import FINAL, ExecutionState, RequestState, check_change, may_follow
from clue_protocol.envelope import REQUEST_TYPE, open_message, sign_message
from clue_protocol.v1 import forget_pb2 as pb

HOUR = 3600.0


@pytest.fixture
def make(new_url: Callable[[], str]) -> Iterator[Callable[[int], Fleet]]:
    made: list[Fleet] = []

    def build(devices: int) -> Fleet:
        made.append(Fleet.make(new_url(), devices))
        return made[-1]

    yield build
    for fleet in made:
        fleet.ledger.close()


@pytest.fixture
def fleet(make: Callable[[int], Fleet]) -> Fleet:
    return make(2)


# States


def test_final_states_stay_but_for_a_late_receipt() -> None:
    unanswered = {ExecutionState.TIMED_OUT, ExecutionState.CANCELED}
    for old in FINAL - unanswered:
        assert not any(may_follow(old, new) for new in ExecutionState)
    for old in unanswered:
        late = {new for new in ExecutionState if may_follow(old, new)}
        assert late == {ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.REJECTED}
    for old in set(ExecutionState) - FINAL:
        assert all(may_follow(old, new) for new in FINAL)
        assert not may_follow(old, old)
    with pytest.raises(ValueError, match="cannot go from SUCCEEDED to QUEUED"):
        check_change(ExecutionState.SUCCEEDED, ExecutionState.QUEUED)


# Requests


def test_a_request_is_signed_and_queued_for_every_device(fleet: Fleet) -> None:
    request_id = fleet.order(
        method="clue", hyperparameters={"epochs": 2}, seed=2**64 - 1, max_ua=0.2, max_ra_drop=0.1, created_by="ann"
    )
    request = fleet.request(request_id)
    message = open_message(request.envelope, REQUEST_TYPE, pb.ForgetRequest, [SIGNER.public_key])
    assert (message.request_id, message.fleet, message.sequence) == (request_id, "yard", 1)
    assert (message.forget_class, message.method, message.seed) == ("bird", "clue", 2**64 - 1)
    assert json.loads(message.hyperparameters_json) == {"epochs": 2}
    assert (message.policy.max_ua, message.policy.max_ra_drop) == (0.2, 0.1)
    assert message.expires_at.seconds == int(request.expires_at) == int(fleet.now) + 7 * 86400
    assert len(message.nonce) == 16
    assert (request.state, request.created_by) == (RequestState.SCHEDULED, "ann")
    assert {(e.device.device_id, e.state) for e in request.executions} == {("cam-0", "QUEUED"), ("cam-1", "QUEUED")}

    second = open_message(fleet.request(fleet.order()).envelope, REQUEST_TYPE, pb.ForgetRequest, [SIGNER.public_key])
    assert second.sequence == 2
    assert second.nonce != message.nonce


def test_orders_that_make_no_sense(fleet: Fleet, make: Callable[[int], Fleet]) -> None:
    with pytest.raises(UsageError, match=r"birdd.*'bird'"):
        fleet.order("birdd")
    with pytest.raises(UsageError, match="did you mean 'yard'"):
        requests.create_request(fleet.ledger, requests.ForgetOrder("yrad", "bird"), SIGNER)
    for policy in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="max UA"):
            fleet.order(max_ua=policy)
        with pytest.raises(UsageError, match="max RA drop"):
            fleet.order(max_ra_drop=policy)
    for seconds in (0.0, 59.0, 1e9, float("nan")):
        with pytest.raises(UsageError, match="expire"):
            fleet.order(expires_in_seconds=seconds)
    with pytest.raises(ConflictError, match="has no devices"):
        make(0).order()
    made = ["root.published", "fleet.created", "root.published", "device.added", "device.added"]
    assert [e.kind for e in fleet.events()] == made


def test_a_class_that_only_one_device_knows_may_be_forgotten(fleet: Fleet) -> None:
    assert len(fleet.request(fleet.order("owl")).executions) == 2


def test_an_idempotency_key_makes_one_request(fleet: Fleet) -> None:
    first = fleet.order(idempotency_key="k")
    assert fleet.order(idempotency_key="k") == first
    assert fleet.order(idempotency_key="other") != first
    assert fleet.order() != fleet.order()
    assert [e.kind for e in fleet.events()].count("request.created") == 4


def test_fleets_and_devices_are_unique(fleet: Fleet) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        enrol.create_fleet(fleet.ledger, "yard")
    with pytest.raises(UsageError, match="fleet name"):
        enrol.create_fleet(fleet.ledger, "a b")
    with pytest.raises(ConflictError, match="enrolled already"):
        fleet.add_device(0)


# Leases


def test_only_online_devices_are_given_work(fleet: Fleet) -> None:
    request_id = fleet.order()
    assert fleet.lease() == {}
    given = fleet.lease(1)
    assert set(given) == {1}
    request = fleet.request(request_id)
    assert given[1].request_envelope == request.envelope
    assert given[1].request_id == request_id
    assert request.state == RequestState.IN_PROGRESS
    assert [fleet.execution(request_id, i).state for i in (0, 1)] == ["QUEUED", "IN_PROGRESS"]
    assert set(fleet.lease(0, 1)) == {0}  # cam-1 holds its lease


def test_a_lease_that_runs_out_is_given_again(fleet: Fleet) -> None:
    fleet.order()
    first = fleet.lease(0)[0]
    fleet.now += LEASE_SECONDS - 1
    assert fleet.lease(0) == {}
    fleet.now += 1
    assert fleet.lease(0)[0].execution_id == first.execution_id
    assert fleet.lease(0) == {}


def test_progress_asks_again_at_once(fleet: Fleet) -> None:
    request_id = fleet.order()
    first = fleet.lease(0)[0]
    reports.report_progress(fleet.ledger, first.execution_id, fleet.nodes[0], "unlearning" * 10, 7.0)
    execution = fleet.execution(request_id)
    assert (execution.state, execution.fraction, execution.stage) == ("IN_PROGRESS", 1.0, ("unlearning" * 10)[:32])
    assert fleet.lease(0)[0].execution_id == first.execution_id


def test_an_unreachable_device_waits_for_its_return(fleet: Fleet) -> None:
    request_id = fleet.order()
    for _ in range(2 * MAX_FAULTS):  # however often: that is not the device's failure
        given = fleet.lease(0)[0]
        reports.report_error(fleet.ledger, given.execution_id, fleet.nodes[0], "gone", unreachable=True)
        execution = fleet.execution(request_id)
        assert (execution.state, execution.faults) == ("QUEUED", 0)
        assert fleet.lease(0) == {}  # not twice a second
        fleet.now += 5


def test_a_new_dispatcher_takes_over(fleet: Fleet) -> None:
    fleet.order()
    first = fleet.lease(0, 1)
    rollout.release_all(fleet.ledger)
    again = fleet.lease(0)
    assert {a.execution_id for a in again.values()} == {first[0].execution_id}


def test_presence_is_noted_and_an_idle_lease_writes_nothing(fleet: Fleet) -> None:
    fleet.lease(0)
    before = fleet.ledger.version
    for _ in range(5):
        fleet.now += 1
        fleet.lease(0)
    assert fleet.ledger.version == before
    fleet.now += 60
    fleet.lease(0)  # last_seen must not grow stale
    assert fleet.ledger.version == before + 1
    fleet.lease()
    kinds = [(e.kind, e.device_id) for e in fleet.events() if e.kind.endswith("line")]
    assert kinds == [("device.online", "cam-0"), ("device.offline", "cam-0")]


# Reports


def test_a_receipt_ends_the_execution_and_the_last_one_the_request(fleet: Fleet) -> None:
    request_id = fleet.order()
    fleet.lease(0, 1)
    assert fleet.report(request_id, 0) == "SUCCEEDED"
    assert fleet.request(request_id).state == RequestState.IN_PROGRESS
    execution = fleet.execution(request_id)
    assert execution.device.model_digest == "11" * 32
    assert execution.device.software_version == "0.2.0"
    assert (execution.reason, execution.fraction, execution.lease_until) == ("", 1.0, None)
    assert is_verified(execution.receipt_envelope, execution)
    fleet.now += 5
    state = fleet.report(request_id, 1, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_DIVERGED, detail="NaN")
    assert state == "FAILED"
    failed = fleet.execution(request_id, 1)
    assert (failed.reason, failed.detail, failed.device.model_digest) == ("DIVERGED", "NaN", "00" * 32)
    request = fleet.request(request_id)
    assert (request.state, request.finished_at) == (RequestState.COMPLETED, fleet.now)
    assert fleet.lease(0, 1) == {}
    assert [(e.kind, e.device_id) for e in fleet.events()][5:] == [
        ("request.created", ""),
        ("device.online", "cam-0"),
        ("device.online", "cam-1"),
        ("execution.in_progress", "cam-0"),
        ("execution.in_progress", "cam-1"),
        ("execution.succeeded", "cam-0"),
        ("execution.failed", "cam-1"),
        ("request.completed", ""),
    ]
    assert fleet.events()[-1].detail == "1 of 2 device(s) succeeded"


def test_the_first_receipt_stands(fleet: Fleet) -> None:
    request_id = fleet.order()
    fleet.lease(0)
    first = fleet.receipt(request_id)
    assert fleet.report(request_id, envelope=first) == "SUCCEEDED"
    events = len(fleet.events())
    assert fleet.report(request_id, envelope=first) == "SUCCEEDED"
    assert fleet.report(request_id, outcome=pb.OUTCOME_FAILED) == "SUCCEEDED"
    execution = fleet.execution(request_id)
    assert execution.receipt_envelope == first
    reports.report_error(fleet.ledger, execution.id, fleet.nodes[0], "late error", unreachable=False)
    reports.report_error(fleet.ledger, execution.id, fleet.nodes[0], "late error", unreachable=True)
    reports.report_progress(fleet.ledger, execution.id, fleet.nodes[0], "late", 0.1)
    assert fleet.execution(request_id).fraction == 1.0
    assert len(fleet.events()) == events


def forgeries(fleet: Fleet, request_id: str, other_request: str) -> dict[str, bytes]:
    honest = json.loads(fleet.receipt(request_id))
    return {
        "key of another device": fleet.receipt(request_id, key=DEVICE_KEYS[1]),
        "of another device": fleet.receipt(request_id, 1),
        "names another device": fleet.receipt(request_id, device_id="cam-1"),
        "of another request": fleet.receipt(other_request),
        "for other bytes": fleet.receipt(request_id, request_digest=b"\x00" * 32),
        "failed for other bytes": fleet.receipt(request_id, request_digest=b"", outcome=pb.OUTCOME_FAILED),
        "no outcome": fleet.receipt(request_id, outcome=pb.OUTCOME_UNSPECIFIED),
        "an outcome nobody knows": fleet.receipt(request_id, outcome=9),
        "unsigned": json.dumps(honest | {"signatures": []}).encode(),
        "the request itself": fleet.request(request_id).envelope,
        "signed as a request": sign_message(pb.Receipt(request_id=request_id), REQUEST_TYPE, [DEVICE_KEYS[0]]),
        "garbage": b"\x00",
        "empty": b"",
    }


FORGERIES = [
    "key of another device",
    "of another device",
    "names another device",
    "of another request",
    "for other bytes",
    "failed for other bytes",
    "no outcome",
    "an outcome nobody knows",
    "unsigned",
    "the request itself",
    "signed as a request",
    "garbage",
    "empty",
]


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_no_receipt_of_this_device_for_this_request(fleet: Fleet, name: str) -> None:
    request_id, other = fleet.order(), fleet.order("cat")
    fleet.lease(0)
    forged = forgeries(fleet, request_id, other)
    assert set(forged) == set(FORGERIES)
    assert fleet.report(request_id, envelope=forged[name]) == "QUEUED"
    execution = fleet.execution(request_id)
    assert execution.receipt_envelope is None
    assert execution.faults == 1
    assert execution.detail.startswith("the answer was not a receipt: ")
    assert execution.device.model_digest == "00" * 32
    assert not is_verified(forged[name], execution)
    fleet.now += 60
    fleet.lease(0)
    assert fleet.report(request_id) == "SUCCEEDED"  # the honest answer still counts


def test_bad_answers_are_tried_again_with_pauses_and_then_failed(fleet: Fleet) -> None:
    request_id = fleet.order()
    for attempt in range(1, MAX_FAULTS):
        assert set(fleet.lease(0)) == {0}
        assert fleet.report(request_id, envelope=b"?") == "QUEUED"
        assert fleet.execution(request_id).faults == attempt
        assert fleet.lease(0) == {}  # not at once
        fleet.now += 60
    fleet.lease(0, 1)
    assert fleet.report(request_id, envelope=b"?") == "FAILED"
    execution = fleet.execution(request_id)
    assert (execution.reason, execution.receipt_envelope) == ("NO_RECEIPT", None)
    assert fleet.report(request_id, 1) == "SUCCEEDED"
    assert fleet.request(request_id).state == RequestState.COMPLETED


def test_errors_are_counted_like_bad_answers(fleet: Fleet) -> None:
    request_id = fleet.order()
    for _ in range(MAX_FAULTS):
        given = fleet.lease(0)[0]
        reports.report_error(fleet.ledger, given.execution_id, fleet.nodes[0], "forwarder crashed", unreachable=False)
        fleet.now += 60
    execution = fleet.execution(request_id)
    assert (execution.state, execution.detail) == ("FAILED", "forwarder crashed")


def test_a_refusal_of_other_bytes_is_believed(fleet: Fleet) -> None:
    request_id = fleet.order()
    fleet.lease(0)
    state = fleet.report(
        request_id, outcome=pb.OUTCOME_REJECTED, reason=pb.REASON_BAD_SIGNATURE, request_digest=b"\x01" * 32
    )
    assert state == "REJECTED"
    execution = fleet.execution(request_id)
    assert execution.reason == "BAD_SIGNATURE"
    assert is_verified(execution.receipt_envelope, execution)


def test_a_reason_from_a_newer_agent(fleet: Fleet) -> None:
    request_id = fleet.order()
    fleet.lease(0)
    assert fleet.report(request_id, outcome=pb.OUTCOME_FAILED, reason=99, detail="new") == "FAILED"
    assert fleet.execution(request_id).reason == "99"


def test_expiry_and_the_late_receipt(fleet: Fleet) -> None:
    request_id = fleet.order(expires_in_seconds=HOUR)
    fleet.lease(0)
    fleet.now += HOUR - 1
    fleet.tick()
    assert fleet.execution(request_id, 1).state == "QUEUED"
    fleet.now += 1
    assert set(fleet.lease(1)) == set()
    fleet.tick()
    assert set(fleet.lease(0, 1)) == {0}  # what it was given is asked for, but no more begun
    assert fleet.last[0].recall
    for index in (0, 1):
        execution = fleet.execution(request_id, index)
        assert (execution.state, execution.reason) == ("TIMED_OUT", "DEADLINE")
    request = fleet.request(request_id)
    assert (request.state, request.finished_at) == (RequestState.COMPLETED, fleet.now)
    # What is no receipt does not move it, what is one does.
    assert fleet.report(request_id, envelope=b"?") == "TIMED_OUT"
    assert fleet.report(request_id) == "SUCCEEDED"
    assert fleet.execution(request_id).reason == ""
    assert fleet.execution(request_id, 1).state == "TIMED_OUT"
    assert fleet.request(request_id).state == RequestState.COMPLETED
    assert [e.kind for e in fleet.events()].count("request.completed") == 1


def test_reports_for_executions_that_are_not_there(fleet: Fleet) -> None:
    request_id = fleet.order()
    execution = fleet.execution(request_id)
    receipt = fleet.receipt(request_id)
    for execution_id, node in (("nonsense", fleet.nodes[0]), (execution.id, fleet.nodes[1])):
        with pytest.raises(UsageError, match="there is no execution"):
            reports.report_receipt(fleet.ledger, execution_id, node, receipt)
        with pytest.raises(UsageError):
            reports.report_progress(fleet.ledger, execution_id, node, "x", 0.5)
        with pytest.raises(UsageError):
            reports.report_error(fleet.ledger, execution_id, node, "x", unreachable=True)
    assert fleet.execution(request_id).state == "QUEUED"


def test_the_ledger_survives_a_restart(new_url: Callable[[], str]) -> None:
    url = new_url()
    fleet = Fleet.make(url, 1)
    request_id = fleet.order()
    first = fleet.lease(0)[0]
    fleet.ledger.close()
    fleet.ledger = Ledger(url, lambda: fleet.now)
    rollout.release_all(fleet.ledger)
    assert fleet.lease(0)[0].execution_id == first.execution_id
    assert fleet.report(request_id) == "SUCCEEDED"
    fleet.ledger.close()


def test_a_failed_transaction_changes_nothing(fleet: Fleet) -> None:
    version = fleet.ledger.version

    def fail() -> None:
        with fleet.ledger.write() as session:
            fleet.ledger.record(session, "never")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "never" not in [e.kind for e in fleet.events()]
    assert fleet.ledger.version == version


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(CoordinatorError, match="cannot use the ledger"):
        Ledger(path)
