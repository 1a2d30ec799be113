"""Everything that may happen to a rollout, in any order; what must hold then, holds at every step.

Longer than in the suite, and with ``-s`` a count of the steps::

    CLUE_ROLLOUT_EXAMPLES=400 CLUE_ROLLOUT_STEPS=50 pytest --timeout=0 -s tests/unit/test_rollout_machine.py
"""

import os
import sys
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import databases
import numpy as np
import pytest
from fleet_ledger import DEVICE_KEYS, SIGNER, Fleet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from clue.federated import Change, Update, update_to_bytes
from clue_coordinator import devices, models, reports, requests, rollout
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.executions import check_counts
from clue_coordinator.ledger import Ledger
from clue_coordinator.patches import Patcher
from clue_coordinator.plan import AbortRule, RolloutPlan
from clue_coordinator.receipts import is_verified
from clue_coordinator.reports import MAX_FAULTS
from clue_coordinator.states import ACTIVE, FINAL, FINAL_REQUEST, ExecutionState, check_change
from clue_coordinator.targets import Target
from clue_protocol.envelope import envelope_digest
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

MOST_DEVICES, MOST_REQUESTS = 6, 5
EXPIRES = 3600
PERIOD = 60.0
ANSWERED = {ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.REJECTED}
STEPS: Counter[str] = Counter()

WAITS = [61.0, 61.0, 10.0, 10.0, 10.0, 5.0, 5.0, 0.5, 0.5, 200.0, 200.0, 700.0, 4000.0]
OPERATIONS = (
    ["order"] * 4 + ["resume"] * 2 + ["pause", "cancel", "retry", "label", "add", "retire", "restart", "reopen"]
)
REPORTS = ["receipt"] * 5 + ["duplicate", "forgery", "progress", "unreachable", "error", "not begun", "not begun"]
indices = st.integers(0, MOST_DEVICES - 1)
sites = st.sampled_from(["paris", "oslo"])
shares = st.sampled_from([0.0, 0.3, 0.6])
plans = st.fixed_dictionaries(
    {},
    optional={
        "canary_count": st.integers(1, 2),
        "rate": st.integers(1, 2),
        "timeout_seconds": st.sampled_from([30.0, 200.0]),
        "max_attempts": st.integers(2, 3),
        "backoff_seconds": st.sampled_from([0.0, 5.0, 100.0]),
        "abort_if": st.builds(
            AbortRule, state=st.sampled_from(["FAILED", "REJECTED", "TIMED_OUT", "ANY"]), share=shares
        ).map(lambda rule: (rule,)),
        "abort_after": st.integers(0, 3),
        "quiet": st.just(True),
        "growth": st.just(2.0),
        "without_samples": st.just("aggregate"),
        "min_updates": st.integers(1, 2),
    },
)
answers = st.sampled_from(
    [
        (pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED),
        (pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED),
        (pb.OUTCOME_FAILED, pb.REASON_WORKER_FAILED),
        (pb.OUTCOME_FAILED, pb.REASON_POLICY_NOT_MET),
        (pb.OUTCOME_REJECTED, pb.REASON_NO_FORGET_SAMPLES),
        (pb.OUTCOME_REJECTED, pb.REASON_BAD_SIGNATURE),
    ]
)


def make_plan(options: dict[str, Any]) -> RolloutPlan:
    options = dict(options)
    if options.pop("quiet", False):
        # The machine's clock begins at 13:46:40 UTC.
        options |= {"quiet_from": 13 * 60 + 50, "quiet_until": 14 * 60}
    if "rate" not in options:
        options.pop("growth", None)
    return RolloutPlan(**options, rate_period_seconds=PERIOD)


def update_of(index: int) -> bytes:
    values = np.full(8, 1.0 + 0.1 * index, np.float32)
    return update_to_bytes(Update("00" * 32, "bird", 10, {"w": Change((8,), np.arange(8, dtype=np.int32), values)}))


class RolloutMachine(RuleBasedStateMachine):
    """Operators, devices, the dispatcher and time in any order; up to six devices and five requests."""

    kind = "sqlite"

    @initialize(data=st.data(), count=st.integers(1, 5))
    def begin(self, data: st.DataObject, count: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.url = databases.new_url(self.kind, Path(self.folder.name))
        self.fleet = Fleet.make(self.url, 0)
        self.patcher = Patcher(self.fleet.ledger, SIGNER)
        self.requests: list[str] = []
        self.delivered: list[dispatch_pb2.Assignment] = []
        self.sent: dict[str, list[bytes]] = {}
        self.seen: dict[str, ExecutionState] = {}
        self.verified: dict[str, bytes] = {}
        self.closed: dict[str, tuple[str, str]] = {}
        self.starts: dict[str, dict[str, float]] = {}
        self.told: dict[tuple[str, str], ExecutionState] = {}
        self.last_event = 0
        for index in range(count):
            self.fleet.add_device(index, site="paris" if index % 2 else "oslo")
        self._order(data)

    # Operators

    @rule(data=st.data(), what=st.sampled_from(OPERATIONS), site=sites, index=indices)
    def operate(self, data: st.DataObject, what: str, site: str, index: int) -> None:
        STEPS[what] += 1
        match what:
            case "order":
                self._order(data)
            case "label":
                self._label(index, site)
            case "add":
                self._add(site)
            case "retire":
                # Some stay: a fleet of retired devices has nothing to tell.
                self._retire(index // 2 * 2)
            case "restart" | "reopen":
                self._restart(reopen=what == "reopen")
            case _:
                self._control(data, what)

    def _order(self, data: st.DataObject) -> None:
        if len(self.requests) >= MOST_REQUESTS:
            return
        options, continuous = data.draw(plans), data.draw(st.booleans())
        where = data.draw(st.sampled_from(["", "", "", "site=paris"]))
        order = {"plan": make_plan(options), "target": Target(where=where, continuous=continuous)}
        try:
            self.requests.append(self.fleet.order(expires_in_seconds=EXPIRES, **order))
        except ConflictError:
            assert not continuous or not self._in_use()

    def _in_use(self) -> list[models.Device]:
        with self.fleet.ledger.read() as session:
            return list(session.scalars(select(models.Device).where(models.Device.retired_at.is_(None))))

    def _control(self, data: st.DataObject, what: str) -> None:
        if not self.requests:
            return
        request_id = data.draw(st.sampled_from(self.requests))
        before = self.fleet.request(request_id)
        ledger = self.fleet.ledger
        try:
            if what == "retry":
                if len(self.requests) < MOST_REQUESTS:
                    made = requests.retry_request(ledger, request_id, SIGNER, [])
                    self.requests.append(made)
                    assert self.fleet.request(made).retry_of == request_id
                return
            call = {
                "pause": requests.pause_request,
                "resume": requests.resume_request,
                "cancel": requests.cancel_request,
            }[what]
            call(ledger, request_id)
        except ConflictError:
            unsuccessful = {"FAILED", "REJECTED", "TIMED_OUT", "CANCELED"}
            refused = {
                "pause": before.state in FINAL_REQUEST or before.paused_at is not None,
                "resume": before.state in FINAL_REQUEST or before.paused_at is None,
                "cancel": before.state in FINAL_REQUEST,
                "retry": not any(e.state in unsuccessful and e.device.retired_at is None for e in before.executions),
            }
            assert refused[what]
        else:
            assert before.state not in FINAL_REQUEST

    def _label(self, index: int, site: str) -> None:
        try:
            devices.label_device(self.fleet.ledger, f"cam-{index}", {"site": site}, [])
        except (UsageError, ConflictError):
            assert f"cam-{index}" not in {device.device_id for device in self._in_use()}

    def _add(self, site: str) -> None:
        if len(self.fleet.nodes) < MOST_DEVICES:
            self.fleet.add_device(len(self.fleet.nodes), site=site)

    def _retire(self, index: int) -> None:
        try:
            devices.retire_device(self.fleet.ledger, f"cam-{index}")
        except (UsageError, ConflictError):
            assert f"cam-{index}" not in {device.device_id for device in self._in_use()}

    # Time, and the daemon

    @rule(seconds=st.sampled_from(WAITS), ticks=st.sampled_from([True, True, True, False]))
    def wait(self, seconds: float, ticks: bool) -> None:
        STEPS["wait"] += 1
        self.fleet.now += seconds
        if ticks:
            self._tick()

    def _tick(self) -> None:
        self.fleet.tick()
        self.patcher.advance()
        version = self.fleet.ledger.version
        self.fleet.tick()
        # At once again there may be more to do (a wave after a time-out), but not for ever.
        for _ in range(5):
            if self.fleet.ledger.version == version:
                return
            version = self.fleet.ledger.version
            self.fleet.tick()
        raise AssertionError("ticks find something to do for ever")

    def _restart(self, *, reopen: bool) -> None:
        if reopen:
            self.fleet.ledger.close()
            self.fleet.ledger = Ledger(self.url, lambda: self.fleet.now)
            self.patcher = Patcher(self.fleet.ledger, SIGNER)
        rollout.release_all(self.fleet.ledger)

    # Devices

    @rule(offline=st.sets(indices))
    def lease(self, offline: set[int]) -> None:
        STEPS["lease"] += 1
        here = set(range(len(self.fleet.nodes))) - offline
        given = self._lease(here)
        # What is leased is not leased again, but a device may be asked for another thing that it once had.
        again = self._lease(here)
        assert not {a.execution_id for a in again} & {a.execution_id for a in given}

    @rule(data=st.data(), outcomes=st.lists(answers, min_size=MOST_DEVICES, max_size=MOST_DEVICES))
    def work(self, data: st.DataObject, outcomes: list[tuple[Any, Any]]) -> None:
        """Everybody is online; some are asked, and some of those answer."""
        given = self._lease(set(range(len(self.fleet.nodes))))
        STEPS["work"] += 1
        for assignment, answer in zip(given, outcomes, strict=False):
            if data.draw(st.sampled_from([True, True, False])):
                self._answer(assignment, answer, shared=True)

    def _lease(self, here: set[int]) -> list[dispatch_pb2.Assignment]:
        before = {r: self.fleet.request(r) for r in self.requests}
        given = rollout.lease(self.fleet.ledger, [self.fleet.nodes[index] for index in here])
        assert len({a.node_id for a in given}) == len(given)  # one thing at a time
        assert {self.fleet.nodes.index(a.node_id) for a in given} <= here
        for assignment in given:
            self._check(assignment, before)
        self.delivered = (self.delivered + given)[-12:]
        return given

    def _check(self, assignment: dispatch_pb2.Assignment, before: dict[str, models.Request]) -> None:
        [(request, old)] = [(r, e) for r in before.values() for e in r.executions if e.id == assignment.execution_id]
        execution = self._execution(assignment.execution_id)
        over = request.state in FINAL_REQUEST or request.expires_at <= self.fleet.now
        assert execution.device.retired_at is None
        assert execution.lease_until == self.fleet.now + rollout.LEASE_SECONDS
        assert execution.handed_out
        assert assignment.recall == (over or old.state == ExecutionState.TIMED_OUT)
        assert assignment.attempt == execution.attempt <= RolloutPlan.model_validate(request.plan).max_attempts
        if old.state == ExecutionState.QUEUED and not assignment.recall:
            # A start: not in a closed or paused request, not before its wave or its time, and never above the cap.
            assert request.paused_at is None
            assert old.wave <= request.wave
            assert old.not_before is None or old.not_before <= self.fleet.now
            assert old.waiting == ""
            self._check_cap(request, execution)
        if assignment.recall:
            assert old.handed_out
            assert not assignment.patch

    def _check_cap(self, request: models.Request, execution: models.Execution) -> None:
        if execution.wave == 0:
            return
        starts = self.starts.setdefault(request.id, {})
        starts[execution.id] = self.fleet.now
        cap = RolloutPlan.model_validate(request.plan).wave_size(max(request.wave, 1))
        assert cap is None or sum(at > self.fleet.now - PERIOD for at in starts.values()) <= cap

    def _execution(self, execution_id: str) -> models.Execution:
        with self.fleet.ledger.read() as session:
            found = session.get_one(models.Execution, execution_id)
            assert found.device.fleet
            assert found.request.fleet
            return found

    @precondition(lambda self: self.delivered)
    @rule(data=st.data(), kind=st.sampled_from(REPORTS), answer=answers, shared=st.booleans())
    def report(self, data: st.DataObject, kind: str, answer: tuple[Any, Any], shared: bool) -> None:
        STEPS[kind] += 1
        assignment = data.draw(st.sampled_from(self.delivered))
        match kind:
            case "receipt":
                self._answer(assignment, answer, shared=shared, earlier=data.draw(st.integers(0, 1)))
            case "duplicate":
                for sent in self.sent.get(assignment.execution_id, [])[-2:]:
                    self._report(assignment, sent, b"")
            case "forgery":
                self._forgery(assignment, data.draw(st.sampled_from(["key", "bytes", "garbage"])))
            case _:
                self._other_answer(assignment, kind)

    def _answer(
        self, assignment: dispatch_pb2.Assignment, answer: tuple[Any, Any], *, shared: bool, earlier: int = 0
    ) -> None:
        index = self.fleet.nodes.index(assignment.node_id)
        body = update_of(index) if shared and answer[0] == pb.OUTCOME_SUCCEEDED else b""
        envelope = self.fleet.receipt(
            assignment.request_id,
            index,
            outcome=answer[0],
            reason=answer[1],
            attempt=max(1, assignment.attempt - earlier),
            request_digest=envelope_digest(assignment.request_envelope),
            update_digest=sha256(body).digest() if body else b"",
        )
        self.sent.setdefault(assignment.execution_id, []).append(envelope)
        self._report(assignment, envelope, body)

    def _report(self, assignment: dispatch_pb2.Assignment, envelope: bytes, body: bytes) -> None:
        before = self._execution(assignment.execution_id)
        reports.report_receipt(self.fleet.ledger, assignment.execution_id, assignment.node_id, envelope, body)
        after = self._execution(assignment.execution_id)
        if before.state in ANSWERED | {ExecutionState.REMOVED}:
            assert (after.state, after.receipt_envelope) == (before.state, before.receipt_envelope)

    def _forgery(self, assignment: dispatch_pb2.Assignment, kind: str) -> None:
        index = self.fleet.nodes.index(assignment.node_id)
        before = self._execution(assignment.execution_id)
        digest = envelope_digest(assignment.request_envelope)
        forged = {
            "key": lambda: self.fleet.receipt(
                assignment.request_id, index, key=DEVICE_KEYS[index + 1], request_digest=digest
            ),
            "bytes": lambda: self.fleet.receipt(assignment.request_id, index, request_digest=b"\x01" * 32),
            "garbage": lambda: b"?",
        }[kind]()
        reports.report_receipt(self.fleet.ledger, assignment.execution_id, assignment.node_id, forged, b"")
        after = self._execution(assignment.execution_id)
        assert after.receipt_envelope == before.receipt_envelope
        assert after.state in {before.state, ExecutionState.QUEUED, ExecutionState.FAILED}
        if before.state != ExecutionState.IN_PROGRESS:
            assert (after.state, after.faults) == (before.state, before.faults)

    def _other_answer(self, assignment: dispatch_pb2.Assignment, what: str) -> None:
        where: tuple[Any, ...] = (self.fleet.ledger, assignment.execution_id, assignment.node_id)
        before = self._execution(assignment.execution_id)
        match what:
            case "progress":
                reports.report_progress(*where, "unlearning", 0.5)
            case "not begun":
                reports.report_not_begun(*where)
            case _:
                reports.report_error(*where, what, unreachable=what == "unreachable")
        after = self._execution(assignment.execution_id)
        if before.state in FINAL:
            assert after.state == before.state

    # What holds at every step

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "last_event"):
            return
        with self.fleet.ledger.read() as session:
            for request in session.scalars(select(models.Request)):
                assert check_counts(session, request)
                self._check_request(request)
                for execution in request.executions:
                    self._check_execution(execution)
            self._check_history(session)
            kept = session.scalars(
                select(models.Execution.request_id).join(
                    models.Update, models.Update.execution_id == models.Execution.id
                )
            )
            assert not {r for r in kept if session.get_one(models.Request, r).state in FINAL_REQUEST}

    def _check_request(self, request: models.Request) -> None:
        idle = not any(e.state in ACTIVE for e in request.executions)
        final = request.state in FINAL_REQUEST
        assert (request.finished_at is not None) == (final and idle)
        if request.state == "COMPLETED":
            assert idle
        elif not final and not request.target["continuous"]:
            assert not idle
        if request.target["continuous"] and request.state == "COMPLETED":
            assert request.finished_at is not None
            assert request.finished_at >= request.expires_at
        if final:
            assert request.paused_at is None
            assert self.closed.setdefault(request.id, (request.state, request.reason)) == (
                request.state,
                request.reason,
            )
        if request.state == "ABORTED":
            assert request.reason.startswith("aborted: ")

    def _check_execution(self, execution: models.Execution) -> None:
        new = ExecutionState(execution.state)
        old = self.seen.get(execution.id, ExecutionState.QUEUED)
        if old in FINAL and old != new:
            check_change(old, new)
        if execution.request_id in self.closed and old != new:
            # A closed request begins nothing; on its way out an execution may be queued, for a recall.
            assert new != ExecutionState.IN_PROGRESS
        if old != new:
            STEPS[f"  {old} to {new}"] += 1
        self.seen[execution.id] = new
        assert execution.faults <= MAX_FAULTS
        assert (execution.finished_at is not None) == (new in FINAL)
        assert new != ExecutionState.IN_PROGRESS or (execution.handed_out and execution.lease_until is not None)
        assert execution.waiting == "" or new == ExecutionState.QUEUED
        if new in ANSWERED and execution.reason != "NO_RECEIPT":
            if self.verified.get(execution.id) != execution.receipt_envelope:
                assert is_verified(execution.receipt_envelope, execution)
                self.verified[execution.id] = execution.receipt_envelope or b""
        else:
            assert execution.receipt_envelope is None

    def _check_history(self, session: Any) -> None:
        query = select(models.Event).where(models.Event.id > self.last_event).order_by(models.Event.id)
        for happened in session.scalars(query):
            self.last_event = happened.id
            kind, _, state = happened.kind.partition(".")
            if kind == "request" and state in ("completed", "canceled", "aborted"):
                self.told[happened.request_id, ""] = ExecutionState.REMOVED
            if kind != "execution" or state == "patched":
                continue
            key = (happened.request_id, happened.device_id)
            new = ExecutionState(state.upper())
            if key not in self.told and new == ExecutionState.QUEUED:
                continue  # joined
            check_change(self.told.get(key, ExecutionState.QUEUED), new)
            if new == ExecutionState.IN_PROGRESS:
                assert (happened.request_id, "") not in self.told  # nothing begins in a closed request
            self.told[key] = new
        rows = session.execute(
            select(models.Execution.request_id, models.Device.device_id, models.Execution.state).join(models.Device)
        )
        for request_id, device_id, state in rows:
            assert self.told.get((request_id, device_id), ExecutionState.QUEUED) == state

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.ledger.close()
            self.folder.cleanup()


class PostgresRolloutMachine(RolloutMachine):
    """The same on PostgreSQL."""

    kind = "postgresql"


@pytest.fixture(scope="module", autouse=True)
def _count_steps() -> Any:
    yield
    steps = sum(number for what, number in STEPS.items() if not what.startswith(" "))
    told = "".join(f"\n{number:8d} {what}" for what, number in STEPS.most_common())
    print(f"\n{steps} steps{told}", file=sys.stderr)


TestRolloutMachine = RolloutMachine.TestCase
TestPostgresRolloutMachine = PostgresRolloutMachine.TestCase
TestRolloutMachine.settings = TestPostgresRolloutMachine.settings = settings(
    max_examples=int(os.environ.get("CLUE_ROLLOUT_EXAMPLES", "12")),
    stateful_step_count=int(os.environ.get("CLUE_ROLLOUT_STEPS", "30")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
