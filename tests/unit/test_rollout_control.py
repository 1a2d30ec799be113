"""Canary, waves, caps, pauses, recalls, attempts and deadlines, told by a clock that the test turns."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fleet_ledger import SIGNER, Fleet
from sqlalchemy import event, select
from sqlalchemy.engine import Engine

from clue_coordinator import devices, reports, requests
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.executions import check_counts
from clue_coordinator.models import PastReceipt
from clue_coordinator.plan import AbortRule, RolloutPlan
from clue_coordinator.rollout import LEASE_SECONDS
from clue_coordinator.states import ExecutionState, RequestState
from clue_coordinator.targets import Target
from clue_protocol.envelope import REQUEST_TYPE, envelope_digest, peek_message
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

HOUR, DAY = 3600.0, 86400.0
FAILED: dict[str, Any] = {"outcome": pb.OUTCOME_FAILED, "reason": pb.REASON_WORKER_FAILED, "detail": "crash"}


@pytest.fixture
def make(new_url: Callable[[], str]) -> Iterator[Callable[[int], Fleet]]:
    made: list[Fleet] = []

    def build(count: int) -> Fleet:
        made.append(Fleet.make(new_url(), count))
        return made[-1]

    yield build
    for fleet in made:
        with fleet.ledger.read() as session:
            for request in session.scalars(select(requests.Request)):
                assert check_counts(session, request)
        fleet.ledger.close()


def canaries(fleet: Fleet, request_id: str) -> set[int]:
    return {i for i, e in enumerate(fleet.request(request_id).executions) if e.wave == 0}


def everybody(fleet: Fleet) -> range:
    return range(len(fleet.nodes))


# Canary


def test_nobody_begins_before_the_canary_has_answered(make: Callable[[int], Fleet]) -> None:
    fleet = make(6)
    fleet.lease(*everybody(fleet))
    request_id = fleet.order(plan=RolloutPlan(canary_count=2))
    first = canaries(fleet, request_id)
    assert len(first) == 2
    given = fleet.lease(*everybody(fleet))
    assert set(given) == first
    one, two = given.values()
    assert fleet.answer(one) == "SUCCEEDED"
    fleet.tick()
    assert fleet.lease(*everybody(fleet)) == {}
    assert fleet.answer(two) == "SUCCEEDED"
    assert fleet.lease(*everybody(fleet)) == {}
    fleet.tick()
    assert set(fleet.lease(*everybody(fleet))) == set(everybody(fleet)) - first
    assert [e.detail for e in fleet.events() if e.kind == "request.wave"] == ["wave 1 of 1: 4 device(s)"]


def test_a_canary_that_is_offline_is_not_waited_for_but_one_must_answer(make: Callable[[int], Fleet]) -> None:
    fleet = make(4)
    request_id = fleet.order(plan=RolloutPlan(canary_count=2))  # nobody is online: any two
    one, two = sorted(canaries(fleet, request_id))
    others = set(everybody(fleet)) - {one, two}
    assert fleet.lease(*others) == {}
    fleet.now += DAY
    fleet.tick()
    assert fleet.lease(*others) == {}  # no canary, no rollout
    given = fleet.lease(one, *others)
    assert set(given) == {one}
    fleet.lease(*others)  # it goes away with its request
    fleet.tick()
    assert fleet.request(request_id).wave == 0
    fleet.answer(given[one])
    fleet.tick()
    assert set(fleet.lease(*others)) == others
    assert set(fleet.lease(two, *others)) == {two}  # it comes in time after all


def test_devices_that_are_online_are_chosen_as_canaries(make: Callable[[int], Fleet]) -> None:
    fleet = make(8)
    fleet.lease(2, 5)
    assert canaries(fleet, fleet.order(plan=RolloutPlan(canary_count=2))) == {2, 5}


@pytest.mark.parametrize("outcome", ["FAILED", "REJECTED"])
def test_a_bad_canary_stops_the_rollout_and_says_why(make: Callable[[int], Fleet], outcome: str) -> None:
    fleet = make(4)
    rule: Any = {"abort_if": (AbortRule(state="REJECTED", share=0.0),)} if outcome == "REJECTED" else {}
    request_id = fleet.order(plan=RolloutPlan(canary_share=0.25, **rule))
    [(canary, given)] = fleet.lease(*everybody(fleet)).items()
    fleet.answer(given, outcome=pb.Outcome.Value(f"OUTCOME_{outcome}"), reason=pb.REASON_POLICY_NOT_MET)
    fleet.tick()
    request = fleet.request(request_id)
    assert request.state == RequestState.ABORTED
    assert outcome in request.reason
    assert "1 of 1 answers (100 %)" in request.reason
    assert request.finished_at == fleet.now
    expected = ["CANCELED"] * 4
    expected[canary] = outcome
    assert fleet.states(request_id) == expected
    assert fleet.execution(request_id, (canary + 1) % 4).reason == "ABORTED"
    assert fleet.lease(*everybody(fleet)) == {}
    with pytest.raises(ConflictError, match="is over: it cannot be resumed"):
        requests.resume_request(fleet.ledger, request_id)


def test_a_canary_that_was_retired_tells_nothing(make: Callable[[int], Fleet]) -> None:
    fleet = make(3)
    request_id = fleet.order(plan=RolloutPlan(canary_count=1))
    [canary] = fleet.lease(*everybody(fleet))
    devices.retire_device(fleet.ledger, f"cam-{canary}")
    fleet.tick()
    request = fleet.request(request_id)
    assert (request.state, request.reason) == ("ABORTED", "aborted: the canary was retired before it answered")
    assert sorted(fleet.states(request_id)) == ["CANCELED", "CANCELED", "REMOVED"]


# Waves and caps


def test_waves_grow_and_are_released_by_the_clock(make: Callable[[int], Fleet]) -> None:
    fleet = make(10)
    request_id = fleet.order(plan=RolloutPlan(rate=1, growth=2, rate_period_seconds=60))
    sizes = []
    while fleet.request(request_id).state != RequestState.COMPLETED:
        given = fleet.lease(*everybody(fleet))
        sizes.append(len(given))
        for assignment in given.values():
            fleet.answer(assignment)
        fleet.tick()
        assert fleet.lease(*everybody(fleet)) == {}
        fleet.now += 59
        fleet.tick()
        assert fleet.lease(*everybody(fleet)) == {}
        fleet.now += 1
        fleet.tick()
    assert sizes == [1, 2, 4, 3]


def test_the_cap_holds_when_many_come_online_at_once(make: Callable[[int], Fleet]) -> None:
    fleet = make(9)
    request_id = fleet.order(plan=RolloutPlan(rate=2, rate_period_seconds=60))
    for _ in range(20):  # all waves are released meanwhile
        fleet.now += 60
        fleet.tick()
    assert fleet.request(request_id).wave == 5
    begun: dict[int, float] = {}
    while "QUEUED" in fleet.states(request_id):
        begun = dict.fromkeys(fleet.lease(*everybody(fleet)), fleet.now) | begun
        assert sum(moment > fleet.now - 60 for moment in begun.values()) <= 2
        fleet.now += 7
    assert len(begun) == 9


def test_devices_that_fail_at_once_do_not_lift_the_cap(make: Callable[[int], Fleet]) -> None:
    fleet = make(8)
    fleet.order(plan=RolloutPlan(rate=2, rate_period_seconds=60, max_attempts=5, backoff_seconds=600))
    for _ in range(10):
        fleet.now += 60
        fleet.tick()
    asked = set()
    for _ in range(30):
        for index, assignment in fleet.lease(*everybody(fleet)).items():
            asked.add(index)
            assert fleet.answer(assignment, **FAILED) == "QUEUED"
        fleet.now += 1
    assert len(asked) == 2


def test_an_abort_rule_waits_for_enough_answers(make: Callable[[int], Fleet]) -> None:
    fleet = make(6)
    rule = AbortRule(state="ANY", share=0.4)
    request_id = fleet.order(plan=RolloutPlan(abort_if=(rule,), abort_after=4))
    given = fleet.lease(0, 1, 2, 3, 4)
    for index in (0, 1, 2):
        fleet.answer(given[index], **FAILED)
        fleet.tick()
        assert fleet.request(request_id).state == RequestState.IN_PROGRESS
    fleet.answer(given[3])
    fleet.tick()
    request = fleet.request(request_id)
    assert (request.state, request.reason) == (
        RequestState.ABORTED,
        "aborted: any>40%: 3 of 4 answers (75 %) did not succeed",
    )
    assert request.finished_at is None  # cam-4 is at work
    assert fleet.states(request_id) == ["FAILED", "FAILED", "FAILED", "SUCCEEDED", "IN_PROGRESS", "CANCELED"]
    fleet.now += LEASE_SECONDS
    assert fleet.lease(*everybody(fleet))[4].recall
    assert fleet.answer(given[4]) == "SUCCEEDED"
    assert fleet.request(request_id).finished_at == fleet.now


# Pause, resume, cancel


def test_a_pause_lets_what_has_begun_go_on(make: Callable[[int], Fleet]) -> None:
    fleet = make(4)
    request_id = fleet.order(plan=RolloutPlan(rate=1, rate_period_seconds=60))
    first = fleet.lease(*everybody(fleet))
    fleet.now += 50
    requests.pause_request(fleet.ledger, request_id, "lunch")
    with pytest.raises(ConflictError, match="is paused already"):
        requests.pause_request(fleet.ledger, request_id)
    fleet.now += LEASE_SECONDS
    fleet.tick()
    assert set(fleet.lease(*everybody(fleet))) == set(first)
    assert not any(a.recall for a in fleet.last.values())
    [assignment] = fleet.last.values()
    assert fleet.answer(assignment) == "SUCCEEDED"
    fleet.tick()
    assert fleet.lease(*everybody(fleet)) == {}
    requests.resume_request(fleet.ledger, request_id)
    with pytest.raises(ConflictError, match="is not paused"):
        requests.resume_request(fleet.ledger, request_id)
    fleet.tick()
    assert fleet.request(request_id).wave == 1  # the pause does not count as waiting
    fleet.now += 10
    fleet.tick()
    assert fleet.request(request_id).wave == 2
    assert len(fleet.lease(*everybody(fleet))) == 1


def test_a_pause_does_not_put_off_the_deadline_nor_abort_rules(make: Callable[[int], Fleet]) -> None:
    fleet = make(3)
    late = fleet.order(expires_in_seconds=HOUR)
    requests.pause_request(fleet.ledger, late)
    fleet.now += HOUR
    fleet.tick()
    request = fleet.request(late)
    assert (request.state, request.paused_at) == (RequestState.COMPLETED, None)
    assert fleet.states(late) == ["TIMED_OUT"] * 3

    bad = fleet.order(plan=RolloutPlan(abort_if=(AbortRule(state="FAILED", share=0.5),)))
    given = fleet.lease(0)
    requests.pause_request(fleet.ledger, bad)
    fleet.answer(given[0], **FAILED)
    fleet.tick()
    assert fleet.request(bad).state == RequestState.ABORTED


def test_cancelling_recalls_what_a_device_may_have(make: Callable[[int], Fleet]) -> None:
    fleet = make(4)
    request_id = fleet.order()
    given = fleet.lease(0, 1, 2)
    reports.report_error(fleet.ledger, given[1].execution_id, fleet.nodes[1], "gone", unreachable=True)
    assert fleet.states(request_id) == ["IN_PROGRESS", "QUEUED", "IN_PROGRESS", "QUEUED"]
    requests.cancel_request(fleet.ledger, request_id, "wrong class")
    request = fleet.request(request_id)
    assert (request.state, request.reason) == ("CANCELED", "cancelled by the operator: wrong class")
    assert request.finished_at is None
    assert fleet.states(request_id) == ["IN_PROGRESS", "QUEUED", "IN_PROGRESS", "CANCELED"]
    with pytest.raises(ConflictError, match="is CANCELED: it cannot be cancelled"):
        requests.cancel_request(fleet.ledger, request_id)

    fleet.now += LEASE_SECONDS
    recalls = fleet.lease(0, 1, 2, 3)
    assert set(recalls) == {0, 1, 2}
    assert all(a.recall for a in recalls.values())
    reports.report_not_begun(fleet.ledger, recalls[0].execution_id, fleet.nodes[0])
    reports.report_not_begun(fleet.ledger, recalls[1].execution_id, fleet.nodes[1])
    assert fleet.states(request_id) == ["CANCELED", "CANCELED", "IN_PROGRESS", "CANCELED"]
    assert fleet.execution(request_id, 0).reason == "CANCELED"
    assert fleet.answer(recalls[2]) == "SUCCEEDED"  # too late to stop it
    assert fleet.request(request_id).finished_at == fleet.now
    fleet.now += LEASE_SECONDS
    assert fleet.lease(0, 1, 2, 3) == {}
    with pytest.raises(ConflictError, match="is over: it cannot be cancelled"):
        requests.cancel_request(fleet.ledger, request_id)


def test_a_recall_of_an_unreachable_device_has_pauses(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order()
    fleet.lease(0)
    requests.cancel_request(fleet.ledger, request_id)
    fleet.now += LEASE_SECONDS
    asked = 0
    for _ in range(20):
        for assignment in fleet.lease(0).values():
            asked += 1
            reports.report_error(fleet.ledger, assignment.execution_id, fleet.nodes[0], "gone", unreachable=True)
        fleet.now += 0.5
    assert asked == 2
    fleet.now += 5
    reports.report_not_begun(fleet.ledger, fleet.lease(0)[0].execution_id, fleet.nodes[0])
    assert fleet.states(request_id) == ["CANCELED"]


def test_a_recall_that_never_comes_back_ends_at_the_deadline(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order(expires_in_seconds=HOUR)
    fleet.lease(0)
    requests.cancel_request(fleet.ledger, request_id)
    fleet.now += HOUR
    fleet.tick()
    request = fleet.request(request_id)
    assert (request.state, request.finished_at) == (RequestState.CANCELED, fleet.now)
    assert fleet.states(request_id) == ["TIMED_OUT"]


def test_after_the_deadline_nothing_begins_even_before_the_next_tick(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    fleet.order(expires_in_seconds=HOUR)
    fleet.lease(0)
    fleet.now += HOUR
    given = fleet.lease(0, 1)
    assert set(given) == {0}
    assert given[0].recall


# Repeating


def test_a_retry_is_for_the_devices_without_success(make: Callable[[int], Fleet]) -> None:
    fleet = make(5)
    first = fleet.order(plan=RolloutPlan(canary_count=1, max_attempts=2), expires_in_seconds=60)
    with pytest.raises(ConflictError, match="nothing to repeat"):
        requests.retry_request(fleet.ledger, first, SIGNER, [])
    [(canary, given)] = fleet.lease(*everybody(fleet)).items()
    fleet.answer(given)
    fleet.tick()
    rest = fleet.lease(*everybody(fleet))
    failed, rejected, retired = sorted(rest)[:3]
    fleet.answer(rest[failed], outcome=pb.OUTCOME_FAILED, reason=pb.REASON_DIVERGED)
    fleet.answer(rest[rejected], outcome=pb.OUTCOME_REJECTED, reason=pb.REASON_NO_HOLDOUT)
    fleet.answer(rest[retired], outcome=pb.OUTCOME_FAILED, reason=pb.REASON_DIVERGED)
    devices.retire_device(fleet.ledger, f"cam-{retired}")
    fleet.now += 60.5  # the last one times out; and the second one is ordered at no whole second
    fleet.tick()
    [late] = set(everybody(fleet)) - {canary, failed, rejected, retired}
    with pytest.raises(UsageError, match="no device on which request"):
        requests.retry_request(fleet.ledger, first, SIGNER, [f"cam-{canary}"])
    second = requests.retry_request(fleet.ledger, first, SIGNER, [], idempotency_key="again")
    again = fleet.request(second)
    assert again.retry_of == first
    assert {e.device.device_id for e in again.executions} == {f"cam-{i}" for i in (failed, rejected, late)}
    assert (again.forget_class, again.wave, again.waves) == ("bird", 1, 1)
    assert {**again.plan, "canary_count": 1} == fleet.request(first).plan
    old, new = (peek_message(fleet.request(r).envelope, REQUEST_TYPE, pb.ForgetRequest) for r in (first, second))
    assert (new.sequence, new.max_attempts) == (old.sequence + 1, 2)
    for index in (failed, rejected, late):
        fleet.report(first, index)  # a late receipt changes what there is to repeat
    assert requests.retry_request(fleet.ledger, first, SIGNER, [], idempotency_key="again") == second
    with pytest.raises(ConflictError, match="nothing to repeat"):
        requests.retry_request(fleet.ledger, second, SIGNER, [])


def test_a_retry_of_devices_that_were_never_asked_has_the_canary_again(make: Callable[[int], Fleet]) -> None:
    fleet = make(5)
    first = fleet.order(plan=RolloutPlan(canary_count=1))
    [(canary, given)] = fleet.lease(*everybody(fleet)).items()
    fleet.answer(given, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_DIVERGED)
    fleet.tick()
    assert fleet.request(first).state == RequestState.ABORTED
    everyone = fleet.request(requests.retry_request(fleet.ledger, first, SIGNER, []))
    assert (everyone.plan["canary_count"], everyone.wave, len(everyone.executions)) == (1, 0, 5)
    asked = fleet.request(requests.retry_request(fleet.ledger, first, SIGNER, [f"cam-{canary}"]))
    assert (asked.plan["canary_count"], asked.wave, len(asked.executions)) == (0, 1, 1)


def test_a_retry_can_itself_be_repeated(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    fleet.now += 0.7
    request_id = fleet.order(expires_in_seconds=60)
    for _ in range(3):
        requests.cancel_request(fleet.ledger, request_id)
        request_id = requests.retry_request(fleet.ledger, request_id, SIGNER, ["cam-0"])
        request = fleet.request(request_id)
        assert 59 < request.expires_at - request.created_at <= 60


# Devices that come, go and change


def test_a_retired_device_is_left_alone(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    request_id = fleet.order()
    given = fleet.lease(0, 1)
    fleet.answer(given[0])
    devices.retire_device(fleet.ledger, "cam-1")
    assert fleet.states(request_id) == ["SUCCEEDED", "REMOVED"]
    assert fleet.request(request_id).state == RequestState.COMPLETED
    fleet.now += LEASE_SECONDS
    assert fleet.lease(0, 1) == {}
    before = fleet.ledger.version
    fleet.lease(0, 1)
    assert fleet.ledger.version == before  # its node is no news
    assert fleet.answer(given[1]) == "REMOVED"
    with pytest.raises(ConflictError, match="is retired"):
        devices.retire_device(fleet.ledger, "cam-1")
    with pytest.raises(ConflictError, match="is retired"):
        devices.label_device(fleet.ledger, "cam-1", {"site": "x"}, [])
    with pytest.raises(UsageError, match="did you mean 'cam-0'"):
        devices.retire_device(fleet.ledger, "cam-00")
    assert [e.device.device_id for e in fleet.request(fleet.order()).executions] == ["cam-0"]


def test_a_continuous_request_takes_in_who_comes_to_match(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    devices.label_device(fleet.ledger, "cam-0", {"site": "paris"}, [])
    target = Target(where="site=paris", continuous=True)
    open_, snapshot = fleet.order(target=target, expires_in_seconds=DAY), fleet.order(target=Target(where="site=paris"))
    assert fleet.states(open_) == fleet.states(snapshot) == ["QUEUED"]
    fleet.answer(fleet.lease(0)[0])
    fleet.answer(fleet.lease(0)[0])
    assert fleet.request(snapshot).state == RequestState.COMPLETED
    assert fleet.request(open_).state == RequestState.IN_PROGRESS
    devices.label_device(fleet.ledger, "cam-1", {"site": "paris"}, [])
    fleet.add_device(2, site="paris")
    fleet.add_device(3, site="oslo")
    assert fleet.states(open_) == ["SUCCEEDED", "QUEUED", "QUEUED"]
    assert fleet.states(snapshot) == ["SUCCEEDED"]
    devices.label_device(fleet.ledger, "cam-1", {"site": "oslo"}, [])
    devices.label_device(fleet.ledger, "cam-1", {"site": "paris"}, [])
    assert len(fleet.states(open_)) == 3  # once
    assert set(fleet.lease(*everybody(fleet))) == {1, 2}
    for assignment in fleet.last.values():
        fleet.answer(assignment)
    fleet.tick()
    assert fleet.request(open_).state == RequestState.IN_PROGRESS
    fleet.now += DAY
    fleet.tick()
    request = fleet.request(open_)
    assert (request.state, request.finished_at) == (RequestState.COMPLETED, fleet.now)
    fleet.add_device(4, site="paris")
    assert len(fleet.states(open_)) == 3


def test_a_continuous_request_may_begin_without_devices(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order(target=Target(where="site=mars", continuous=True), plan=RolloutPlan(canary_count=2))
    with pytest.raises(ConflictError, match="no device of fleet 'yard' matches --where site=mars"):
        fleet.order(target=Target(where="site=mars"))
    fleet.tick()
    assert fleet.request(request_id).state == RequestState.SCHEDULED
    devices.label_device(fleet.ledger, "cam-0", {"site": "mars"}, [])
    assert fleet.answer(fleet.lease(0)[0]) == "SUCCEEDED"


def test_who_joins_does_not_go_before_the_canary(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    request_id = fleet.order(target=Target(continuous=True), plan=RolloutPlan(canary_count=1))
    fleet.add_device(2)
    [(canary, given)] = fleet.lease(0, 1, 2).items()
    assert canary != 2
    fleet.answer(given, **FAILED)
    fleet.tick()
    assert fleet.request(request_id).state == RequestState.ABORTED
    assert fleet.states(request_id)[2] == "CANCELED"
    fleet.add_device(3)
    assert len(fleet.states(request_id)) == 3


def test_a_device_gets_one_thing_at_a_time_oldest_first(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    first, second = fleet.order(), fleet.order("cat")
    given = fleet.lease(0)[0]
    assert given.request_id == first
    assert fleet.lease(0) == {}
    fleet.answer(given)
    assert fleet.lease(0)[0].request_id == second


def test_a_device_with_two_recalls_gets_one_at_a_time(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    both = [fleet.order(plan=RolloutPlan(timeout_seconds=10)) for _ in range(2)]
    for _ in both:
        fleet.lease(0)
        fleet.lease(0)  # after the recall of the first one
        fleet.now += 10
        fleet.tick()
    assert [fleet.states(request_id) for request_id in both] == [["TIMED_OUT"]] * 2
    fleet.now += LEASE_SECONDS
    recalled = [fleet.lease(0)[0].request_id, fleet.lease(0)[0].request_id]
    assert sorted(recalled) == sorted(both)


def test_a_device_that_was_off_all_along_is_asked_on_its_return(make: Callable[[int], Fleet]) -> None:
    fleet = make(4)
    request_id = fleet.order(plan=RolloutPlan(canary_count=1, rate=1, rate_period_seconds=60), expires_in_seconds=DAY)
    off = next(i for i in (3, 2, 1) if i not in canaries(fleet, request_id))
    here = [i for i in everybody(fleet) if i != off]
    for _ in range(10):
        for assignment in fleet.lease(*here).values():
            fleet.answer(assignment)
        fleet.now += 60
        fleet.tick()
    assert fleet.states(request_id).count("SUCCEEDED") == 3
    fleet.now += DAY - 700
    assert fleet.answer(fleet.lease(off)[off]) == "SUCCEEDED"
    assert fleet.request(request_id).state == RequestState.COMPLETED


def test_what_was_never_handed_out_is_not_recalled_after_the_deadline(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    request_id = fleet.order(expires_in_seconds=HOUR)
    given = fleet.lease(0)
    fleet.lease()  # off it goes
    fleet.now += HOUR
    fleet.tick()
    assert fleet.states(request_id) == ["TIMED_OUT", "TIMED_OUT"]
    fleet.now += 29 * DAY
    recalled = fleet.lease(0, 1)
    assert set(recalled) == {0}
    assert recalled[0].recall
    assert fleet.answer(given[0]) == "SUCCEEDED"
    assert fleet.lease(0, 1) == {}


def test_nobody_is_recalled_for_ever(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    fleet.order(expires_in_seconds=HOUR)
    fleet.lease(0)
    fleet.now += HOUR
    fleet.tick()
    fleet.now += 31 * DAY
    assert fleet.lease(0) == {}


# Attempts and time-outs


def past(fleet: Fleet) -> list[tuple[int, bytes]]:
    with fleet.ledger.read() as session:
        return [(p.attempt, bytes(p.envelope)) for p in session.scalars(select(PastReceipt).order_by(PastReceipt.id))]


def test_a_passing_failure_is_tried_again_after_a_pause(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order(plan=RolloutPlan(max_attempts=3, backoff_seconds=100))
    one = fleet.lease(0)[0]
    assert one.attempt == 1
    receipt = fleet.receipt(request_id, attempt=1, **FAILED)
    assert fleet.answer(one, envelope=receipt) == "QUEUED"
    execution = fleet.execution(request_id)
    assert (execution.attempt, execution.not_before) == (2, fleet.now + 100)
    assert "attempt 1: WORKER_FAILED: crash" in execution.detail
    assert fleet.answer(one, envelope=receipt) == "QUEUED"  # twice delivered
    assert past(fleet) == [(1, receipt)]
    fleet.now += 99
    assert fleet.lease(0) == {}
    fleet.now += 1
    two = fleet.lease(0)[0]
    assert (two.attempt, two.execution_id) == (2, one.execution_id)
    assert fleet.answer(one, envelope=receipt) == "IN_PROGRESS"
    assert fleet.execution(request_id).faults == 0
    assert fleet.answer(two, **FAILED) == "QUEUED"
    fleet.now += 200
    three = fleet.lease(0)[0]
    assert three.attempt == 3
    assert fleet.answer(three, **FAILED) == "FAILED"  # the last one
    assert [attempt for attempt, _ in past(fleet)] == [1, 2]
    assert fleet.request(request_id).state == RequestState.COMPLETED


@pytest.mark.parametrize("reason", [pb.REASON_POLICY_NOT_MET, pb.REASON_DIVERGED])
def test_a_failure_that_would_repeat_itself_is_not_tried_again(make: Callable[[int], Fleet], reason: int) -> None:
    fleet = make(1)
    fleet.order(plan=RolloutPlan(max_attempts=3))
    assert fleet.answer(fleet.lease(0)[0], outcome=pb.OUTCOME_FAILED, reason=reason) == "FAILED"


def test_no_attempt_follows_the_deadline_or_a_cancellation(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    cancelled = fleet.order(plan=RolloutPlan(max_attempts=3))
    given = fleet.lease(0)[0]
    requests.cancel_request(fleet.ledger, cancelled)
    assert fleet.answer(given, **FAILED) == "FAILED"
    late = fleet.order(plan=RolloutPlan(max_attempts=3), expires_in_seconds=HOUR)
    given = fleet.lease(0)[0]
    assert given.request_id == late
    fleet.now += HOUR
    assert fleet.answer(given, **FAILED) == "FAILED"


def test_who_takes_too_long_is_asked_once_more_and_then_times_out(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order(plan=RolloutPlan(timeout_seconds=300, max_attempts=2, backoff_seconds=10))
    one = fleet.lease(0)[0]
    fleet.now += 299
    reports.report_progress(fleet.ledger, one.execution_id, fleet.nodes[0], "unlearning", 0.5)
    fleet.tick()
    assert fleet.states(request_id) == ["IN_PROGRESS"]  # and progress is no answer
    fleet.now += 1
    fleet.tick()
    assert fleet.states(request_id) == ["QUEUED"]
    fleet.now += 10
    two = fleet.lease(0)[0]
    assert two.attempt == 2
    fleet.now += 300
    fleet.tick()
    execution = fleet.execution(request_id)
    assert (execution.state, execution.reason) == ("TIMED_OUT", "TIMEOUT")
    assert fleet.request(request_id).state == RequestState.COMPLETED
    assert fleet.lease(0)[0].recall
    assert fleet.answer(two) == "SUCCEEDED"
    assert fleet.request(request_id).counts["SUCCEEDED"] == 1


def test_the_failure_of_a_slow_attempt_is_not_that_of_the_next(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    request_id = fleet.order(plan=RolloutPlan(timeout_seconds=300, max_attempts=2, backoff_seconds=10))
    one = fleet.lease(0)[0]
    fleet.now += 300
    fleet.tick()
    fleet.now += 10
    two = fleet.lease(0)[0]
    # The device was still at its first attempt: it answers the second request with what came of that.
    assert fleet.answer(one, **FAILED) == "IN_PROGRESS"
    assert [attempt for attempt, _ in past(fleet)] == [1]
    fleet.now += 5
    assert fleet.lease(0)[0].attempt == 2  # asked again soon
    assert fleet.answer(two) == "SUCCEEDED"
    assert fleet.states(request_id) == ["SUCCEEDED"]


def test_the_success_of_a_slow_attempt_counts(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    fleet.order(plan=RolloutPlan(timeout_seconds=300, max_attempts=2, backoff_seconds=1000))
    one = fleet.lease(0)[0]
    fleet.now += 300
    fleet.tick()
    assert fleet.answer(one) == "SUCCEEDED"
    assert fleet.lease(0) == {}


def test_a_device_may_be_further_than_a_restored_ledger(make: Callable[[int], Fleet]) -> None:
    fleet = make(1)
    fleet.order(plan=RolloutPlan(max_attempts=3, backoff_seconds=1))
    fleet.answer(fleet.lease(0)[0], **FAILED, attempt=2)
    fleet.now += 2
    assert fleet.lease(0)[0].attempt == 3


# Quiet hours


def test_nobody_begins_in_the_quiet_hours_of_its_own_clock(make: Callable[[int], Fleet]) -> None:
    fleet = make(2)
    fleet.now = 1_767_268_800.0  # 2026-01-01 12:00 UTC
    devices.label_device(fleet.ledger, "cam-1", {"timezone": "Asia/Tokyo"}, [])
    plan = RolloutPlan(quiet_from=21 * 60, quiet_until=6 * 60)
    request_id = fleet.order(plan=plan)
    assert set(fleet.lease(0, 1)) == {0}  # in Tokyo it is 21:00
    assert fleet.execution(request_id, 1).not_before == fleet.now + 9 * HOUR
    before = fleet.ledger.version
    fleet.lease(0, 1)
    assert fleet.ledger.version == before
    fleet.now += 9 * HOUR
    assert 1 in fleet.lease(0, 1)


def test_every_count_is_right(make: Callable[[int], Fleet]) -> None:
    """What ``make`` checks at the end of every test can fail."""
    fleet = make(1)
    request_id = fleet.order()
    with fleet.ledger.write() as session:
        session.get_one(requests.Request, request_id).counts = {ExecutionState.SUCCEEDED: 1}
    with fleet.ledger.read() as session:
        assert not check_counts(session, session.get_one(requests.Request, request_id))
    with fleet.ledger.write() as session:
        session.get_one(requests.Request, request_id).counts = {ExecutionState.QUEUED: 1}


def test_a_receipt_costs_the_same_in_a_large_fleet(make: Callable[[int], Fleet]) -> None:
    costs = []
    for count in (2, 12):
        fleet = make(count)
        named = Target(devices=tuple(f"cam-{i}" for i in everybody(fleet)))
        fleet.order(target=named)
        given = fleet.lease(*everybody(fleet))
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any, to: list[str] = statements) -> None:
            to.append(statement)

        event.listen(Engine, "before_cursor_execute", note)
        try:
            reports.report_receipt(fleet.ledger, given[0].execution_id, given[0].node_id, receipt_for(fleet, given[0]))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        assert not any("request.target" in statement for statement in statements)
        costs.append(len(statements))
    assert costs[0] == costs[1] <= 12


def receipt_for(fleet: Fleet, assignment: dispatch_pb2.Assignment) -> bytes:
    digest = envelope_digest(assignment.request_envelope)
    return fleet.receipt(assignment.request_id, fleet.nodes.index(assignment.node_id), request_digest=digest)
