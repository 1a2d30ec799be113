"""The agent: what it refuses, what it does, and what is left of a model when something goes wrong."""

import dataclasses
import errno
import hashlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from agent_home import (
    DEVICE,
    EVE,
    OPERATOR,
    TRUST,
    Device,
    FakeWorker,
    ask,
    deliver,
    envelope,
    make_request,
    make_store,
    pin,
    receipt_of,
    tell_time,
)
from trust_house import House, role

import clue
from clue_agent import erasing as erasing_module
from clue_agent import intake as intake_module
from clue_agent import job as job_module
from clue_agent import receipts
from clue_agent import store as store_module
from clue_agent import worker as worker_module
from clue_agent.agent import Agent
from clue_agent.checkpoint import SealedCheckpoint
from clue_agent.config import AgentConfig
from clue_agent.errors import AgentError, JobFailedError, JournalWriteError, StoreError
from clue_agent.guard import Attempt, judge, next_attempt, upper_bound
from clue_agent.job import JobSpec, run_worker
from clue_agent.journal import EVALUATED, STEPS, Journal
from clue_agent.sealed import KeyRing
from clue_agent.status import update_model
from clue_agent.store import CANDIDATE, INCOMING
from clue_agent.vault import Vault
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, envelope_digest, sign_message
from clue_protocol.keys import create_signing_key
from clue_protocol.trust import FleetTrust
from clue_protocol.v1 import forget_pb2 as pb

# With the real worker


def test_a_class_is_forgotten_by_the_real_worker(device: Device, bundle_dir: Path) -> None:
    agent = device.boot()
    before = device.digest
    data = envelope(method="clue", hyperparameters_json='{"epochs": 1}', seed=7)
    first = deliver(agent, data)
    assert (first.outcome, first.reason) == (pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED)
    assert (first.request_id, first.device_id, first.fleet, first.seed) == ("r-1", "cam-1", "yard", 7)
    assert first.request_digest == envelope_digest(data)
    assert (first.method, json.loads(first.hyperparameters_json)["epochs"]) == ("clue", 1)
    assert (first.model_digest_before, first.model_digest_after) == (before, device.digest)
    assert before != device.digest
    assert (first.ua_after.samples, first.ra_after.samples) == (10, 30)
    assert first.forget_samples == 20
    assert len(first.samples_commitment) == 32
    assert first.latency_seconds >= first.unlearning_seconds > 0
    assert first.energy.joules > 0
    assert first.peak_memory_bytes > 0
    model = agent.store.read()
    assert model.spec.forgotten == ("red",)
    assert model.digest == first.model_digest_after
    assert model.calibration["samples"] == 30
    # Between jobs both slots hold the new model, and nothing is left of the old one.
    assert agent.store.read(agent.store.other_slot()).digest == model.digest
    assert first.erasure.old_model
    assert first.erasure.samples == 20
    assert agent.vault.count("red", "forget") == 0
    assert [step for step in STEPS if step in device.journal.get(envelope_digest(data)).steps] == list(STEPS)  # type: ignore[union-attr]
    assert agent.status().forgotten == ["red"]

    again = deliver(agent, envelope(request_id="r-2"), "r-2")
    assert again.outcome == pb.OUTCOME_SUCCEEDED
    assert "forgotten earlier" in again.detail
    assert again.model_digest_before == again.model_digest_after == first.model_digest_after
    assert again.ua_after == first.ua_after
    assert not (device.config.home / "job.json").exists()


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"hyperparameters": {"no_such": 1}}, "REASON_INVALID_REQUEST", "no_such"),
        ({"method": "no_such"}, "REASON_INVALID_REQUEST", "no_such"),
        ({"method": "retrain"}, "REASON_INVALID_REQUEST", "retained data"),
        ({"model_digest": "00" * 32}, "REASON_BAD_MODEL", "changed"),
        ({"forget": ["green"]}, "REASON_BAD_SAMPLES", "empty"),
        ({"holdout": "/nowhere"}, "REASON_BAD_SAMPLES", "nowhere"),
    ],
)
def test_what_the_worker_cannot_do_is_one_line(
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    images_root: Path,
    change: dict[str, Any],
    reason: str,
    detail: str,
) -> None:
    Vault(device.config.vault_folder, KeyRing(device.config.keys), device.config.vault).add(
        "red", (images_root / "train" / "red" / "0.png").read_bytes()
    )
    job = JobSpec(("red",), False, "clue", {}, 1.0, 0, 0.0, "a", device.digest, "c")
    body = asdict(job) | {
        "home": str(device.config.home),
        "holdout": str(device.config.holdout),
        "threads": 1,
        "batch_size": 8,
        "allowed_factories": [],
    }
    job_file = device.config.home / "job.json"
    job_file.write_text(json.dumps(body | change))
    monkeypatch.setattr(sys, "argv", ["worker", str(job_file)])
    with pytest.raises(SystemExit) as ended:
        worker_module.main()
    assert ended.value.code == 1
    failure = json.loads(capfd.readouterr().out.splitlines()[-1])["failure"]
    assert failure["reason"] == reason
    assert detail in failure["detail"]
    assert "\n" not in failure["detail"]
    assert not make_store(device.config).slot(CANDIDATE).exists()


# Refusals: nothing is touched


def tampered() -> bytes:
    import base64

    body = json.loads(envelope())
    body["payload"] = base64.b64encode(make_request(forget_class="blue").SerializeToString()).decode()
    return json.dumps(body).encode()


def unsigned() -> bytes:
    return json.dumps(json.loads(envelope()) | {"signatures": []}).encode()


def without_expiry() -> bytes:
    request = make_request()
    request.ClearField("expires_at")
    return sign_message(request, REQUEST_TYPE, [OPERATOR])


REFUSALS = {
    "tampered": (tampered, "BAD_SIGNATURE"),
    "unsigned": (unsigned, "BAD_SIGNATURE"),
    "foreign key": (lambda: envelope(EVE), "BAD_SIGNATURE"),
    "garbage": (lambda: b"\x00 garbage", "BAD_ENVELOPE"),
    "empty": (lambda: b"", "BAD_ENVELOPE"),
    "a receipt": (lambda: sign_message(pb.Receipt(request_id="r-1"), RECEIPT_TYPE, [OPERATOR]), "BAD_ENVELOPE"),
    "other fleet": (lambda: envelope(fleet="farm"), "WRONG_FLEET"),
    "expired": (lambda: envelope(expires_in=-1), "EXPIRED"),
    "never expires": (without_expiry, "INVALID_REQUEST"),
    "expires in the year 300000": (lambda: envelope(expires_in=10**13), "INVALID_REQUEST"),
    "no id": (lambda: envelope(request_id=""), "INVALID_REQUEST"),
    "no class": (lambda: envelope(forget_class=""), "INVALID_REQUEST"),
    "policy out of range": (lambda: envelope(policy=pb.Policy(max_ua=1.5)), "INVALID_REQUEST"),
    "policy not a number": (lambda: envelope(policy=pb.Policy(max_ra_drop=float("nan"))), "INVALID_REQUEST"),
    "hyper-parameters no object": (lambda: envelope(hyperparameters_json="[1]"), "INVALID_REQUEST"),
    "hyper-parameters no JSON": (lambda: envelope(hyperparameters_json="{"), "INVALID_REQUEST"),
    "unknown class": (lambda: envelope(forget_class="../red"), "UNKNOWN_CLASS"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_touch_nothing(device: Device, worker: FakeWorker, name: str) -> None:
    make, reason = REFUSALS[name]
    data = make()
    before = device.model()
    agent = device.boot()
    answer = ask(agent, data, "r-1", 0)
    receipt = receipt_of(answer)
    assert (receipt.outcome, pb.Reason.Name(receipt.reason)) == (pb.OUTCOME_REJECTED, f"REASON_{reason}")
    assert receipt.detail
    assert "\n" not in receipt.detail
    assert (receipt.request_id, receipt.request_digest) == ("r-1", envelope_digest(data))
    assert receipt.model_digest_before == receipt.model_digest_after == device.digest
    assert device.model() == before
    assert worker.jobs == []
    # Asked again, also after a restart, the device says the same in the same bytes.
    assert ask(agent, data, "r-1", 0) == answer
    assert ask(device.boot(), data, "r-1", 0) == answer


def empty_class(device: Device, tmp_path: Path, which: str, *names: str) -> None:
    """Point ``samples`` or ``holdout`` to a copy without the images of ``names``."""
    root = tmp_path / which
    for source in getattr(device.config, which).iterdir():
        (root / source.name).mkdir(parents=True)
        if source.name not in names:
            (root / source.name / "0.png").write_bytes((source / "0.png").read_bytes())
    device.config = device.config.model_copy(update={which: root})


def test_receipts_name_the_model_that_the_device_was_given(device: Device, worker: FakeWorker) -> None:
    given = device.digest
    # A home of before this was written down.
    (device.config.store / "base-digest").unlink()
    agent = device.boot()
    first = deliver(agent, envelope())
    assert (first.outcome, first.base_model_digest) == (pb.OUTCOME_SUCCEEDED, given)
    second = deliver(agent, envelope(request_id="r-2", sequence=2, forget_class="green"), "r-2")
    assert second.base_model_digest == given
    assert second.model_digest_before == first.model_digest_after != given


def test_no_forget_samples(device: Device, worker: FakeWorker, tmp_path: Path) -> None:
    empty_class(device, tmp_path, "samples", "red")
    receipt = deliver(device.boot(), envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_REJECTED, pb.REASON_NO_FORGET_SAMPLES)


@pytest.mark.parametrize("missing", [("red",), ("green", "blue", "stripes")])
def test_no_holdout(device: Device, worker: FakeWorker, tmp_path: Path, missing: tuple[str, ...]) -> None:
    empty_class(device, tmp_path, "holdout", *missing)
    receipt = deliver(device.boot(), envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_REJECTED, pb.REASON_NO_HOLDOUT)
    assert worker.jobs == []


def test_a_refused_copy_does_not_spoil_the_real_request(device: Device, worker: FakeWorker) -> None:
    agent = device.boot()
    assert deliver(agent, tampered()).outcome == pb.OUTCOME_REJECTED
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    assert deliver(agent, tampered()).outcome == pb.OUTCOME_REJECTED


# The work


@pytest.mark.parametrize(
    ("ua_after", "ra_after", "policy", "problem"),
    [(2, 30, pb.Policy(max_ua=0.1, max_ra_drop=0.05), "UA 20.0 %"), (0, 27, pb.Policy(max_ua=0.1), "RA fell from")],
)
def test_a_policy_that_is_not_met_keeps_the_old_model(
    device: Device, worker: FakeWorker, ua_after: int, ra_after: int, policy: pb.Policy, problem: str
) -> None:
    worker.ua_after, worker.ra_after = ua_after, ra_after
    before = device.model()
    receipt = deliver(device.boot(), envelope(policy=policy))
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_POLICY_NOT_MET)
    assert problem in receipt.detail
    assert receipt.model_digest_before == receipt.model_digest_after == device.digest
    assert (receipt.ua_after.correct, receipt.ra_after.correct) == (ua_after, ra_after)
    assert device.model() == before


def counts(correct: int, samples: int) -> pb.Accuracy:
    return pb.Accuracy(correct=correct, samples=samples)


@pytest.mark.parametrize(
    ("ua", "before", "after", "policy", "passes"),
    [
        (counts(1, 10), counts(100, 100), counts(75, 100), pb.Policy(max_ua=0.1, max_ra_drop=0.25), True),
        (counts(1, 10), counts(100, 100), counts(75, 100), pb.Policy(max_ua=0.09, max_ra_drop=0.25), False),
        (counts(1, 10), counts(100, 100), counts(74, 100), pb.Policy(max_ua=0.1, max_ra_drop=0.25), False),
        # With ten images nothing smaller than one can be measured; where no drop is allowed, none is.
        (counts(0, 10), counts(10, 10), counts(9, 10), pb.Policy(max_ra_drop=0.01), True),
        (counts(0, 10), counts(10, 10), counts(8, 10), pb.Policy(max_ra_drop=0.01), False),
        (counts(0, 10), counts(10, 10), counts(9, 10), pb.Policy(max_ra_drop=0.0), False),
        # An accuracy that was not measured is never a reason to switch.
        (counts(0, 0), counts(10, 10), counts(10, 10), pb.Policy(max_ua=0.99), False),
        (counts(0, 10), counts(10, 10), counts(0, 0), pb.Policy(max_ua=0.99, max_ra_drop=1), False),
    ],
)
def test_the_policy_in_whole_images(
    ua: pb.Accuracy, before: pb.Accuracy, after: pb.Accuracy, policy: pb.Policy, passes: bool
) -> None:
    assert judge(ua, before, after, policy).passed is passes


def test_what_is_tried_after_a_failure() -> None:
    assert next_attempt([], "") == Attempt("clue_plus")
    first, second = Attempt("clue_plus"), Attempt("clue_plus", 0.5)
    assert next_attempt([(first, False)], "") == second
    assert next_attempt([(first, True)], "") == Attempt("clue_plus", 2.0)
    assert next_attempt([(first, False), (second, False)], "") == Attempt("delete")
    # A request that names a method gets no other.
    assert next_attempt([(first, False), (second, False)], "clue_plus") == Attempt("clue_plus", 0.25)


def test_confidence_of_a_small_holdout() -> None:
    assert upper_bound(0, 20) == pytest.approx(0.119, abs=0.001)  # Wilson, one-sided 95 %
    assert upper_bound(0, 0) == 1.0
    assert upper_bound(10, 10) == 1.0


def fails(reason: int) -> Callable[[JobSpec], None]:
    def action(job: JobSpec) -> None:
        raise JobFailedError(reason, "first line\nsecond line")

    return action


def test_a_failed_worker_keeps_the_old_model(device: Device, worker: FakeWorker) -> None:
    worker.action = fails(pb.REASON_OUT_OF_MEMORY)
    before = device.model()
    receipt = deliver(device.boot(), envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_OUT_OF_MEMORY)
    assert receipt.detail == "first line second line"
    assert device.model() == before
    assert len(worker.jobs) == 1


def test_what_diverges_is_tried_with_shorter_steps_and_another_method(device: Device, worker: FakeWorker) -> None:
    worker.action = fails(pb.REASON_DIVERGED)
    before = device.model()
    receipt = deliver(device.boot(), envelope(hyperparameters_json='{"depth": 0.1}'))
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_DIVERGED)
    assert receipt.detail == "after 3 tries: first line second line"
    assert device.model() == before
    assert [(job.method, job.step_scale, job.hyperparameters) for job in worker.jobs] == [
        ("clue_plus", 1.0, {"depth": 0.1}),
        ("clue_plus", 0.5, {"depth": 0.1}),
        ("delete", 1.0, {}),
    ]
    assert [entry.verdict for entry in receipt.tries] == ["first line second line"] * 3


def test_the_second_try_may_pass(device: Device, worker: FakeWorker) -> None:
    def better(job: JobSpec) -> None:
        worker.ra_after = 20 if job.step_scale == 1.0 else 30

    worker.action = better
    receipt = deliver(device.boot(), envelope(policy=pb.Policy(max_ua=0.0, max_ra_drop=0.05)))
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert [bool(entry.verdict) for entry in receipt.tries] == [True, False]
    assert receipt.ra_after.correct == 30


def test_a_killed_worker_is_tried_again_but_not_for_ever(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.action = fails(pb.REASON_WORKER_FAILED)
    before = device.model()
    agent = device.boot(start=False)
    monkeypatch.setattr(agent._stop, "wait", lambda _seconds: False)
    ask(agent, envelope(), "r-1", 0)
    agent.start()
    receipt = deliver(agent, envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_WORKER_FAILED)
    assert len(worker.jobs) == 3
    assert device.model() == before


def test_a_new_model_that_is_not_whole_is_never_used(device: Device, worker: FakeWorker) -> None:
    def damage(job: JobSpec) -> None:
        weights = make_store(device.config).slot(CANDIDATE) / "weights.sealed"
        weights.write_bytes(weights.read_bytes()[:-1])

    worker.action = damage
    before = device.model()
    agent = device.boot(start=False)
    agent._stop.wait = lambda _seconds=None: False  # type: ignore[method-assign,assignment]
    ask(agent, envelope(), "r-1", 0)
    agent.start()
    receipt = deliver(agent, envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_WORKER_FAILED)
    assert "damaged" in receipt.detail
    assert len(worker.jobs) == 3
    assert receipt.model_digest_after == device.digest
    assert not receipt.samples_commitment
    assert device.model() == before


def rot(device: Device, slot: str) -> None:
    weights = make_store(device.config).slot(slot) / "weights.sealed"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")


def test_a_damaged_model_falls_back_to_its_copy(device: Device, worker: FakeWorker) -> None:
    rot(device, "a")
    agent = device.boot()
    assert "went back to slot b" in agent.status().repaired
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED


def test_no_whole_model_is_left(device: Device, worker: FakeWorker) -> None:
    agent = device.boot()
    rot(device, "a")
    rot(device, "b")
    receipt = deliver(agent, envelope())
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_BAD_MODEL)
    assert worker.jobs == []
    with pytest.raises(StoreError):
        device.boot()


def test_parallel_duplicates_are_one_job(device: Device, worker: FakeWorker) -> None:
    worker.action = lambda job: time.sleep(0.2)
    agent = device.boot()
    compact = envelope()
    indented = json.dumps(json.loads(compact), indent=2).encode()
    # Deliveries before that are answered with a question, each.
    tell_time(agent, compact)
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda d=data: answers.append(ask(agent, d, "r-1", 60).receipt_envelope))
        for data in [compact, indented] * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert answers[0]
    assert len(worker.jobs) == 1


def test_progress_while_the_work_goes_on(device: Device, worker: FakeWorker) -> None:
    go_on = threading.Event()
    worker.action = lambda job: go_on.wait(60) and None
    agent = device.boot()
    deadline = time.monotonic() + 30
    while (answer := ask(agent, envelope(), "r-1", 0)).progress.stage != "unlearning":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert answer.progress.fraction == 0.5
    assert not answer.receipt_envelope
    assert agent.status().active_request_id == "r-1"
    go_on.set()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED


# Crashes


class PowerCutError(BaseException):
    """Nothing may catch this: the process is gone."""


def die(*_: object) -> None:
    raise PowerCutError


def crash(device: Device, monkeypatch: pytest.MonkeyPatch, owner: str, name: str) -> Agent:
    """Accept one request and lose power in the middle of the work."""
    agent = device.boot(start=False)
    ask(agent, envelope(), "r-1", 0)
    target = {"store": agent.store, "journal": device.journal}[owner]
    monkeypatch.setattr(target, name, die)
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    return agent


@pytest.mark.parametrize(
    ("owner", "name", "swapped"),
    [("store", "promote", False), ("journal", "finish", True)],
    ids=["before the switch", "between switch and receipt"],
)
def test_a_crash_after_the_preparation_is_completed(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, swapped: bool
) -> None:
    before = device.digest
    crash(device, monkeypatch, owner, name)
    assert EVALUATED in device.journal.unfinished()[0].steps
    assert (device.digest != before) is swapped

    again = device.boot()
    receipt = deliver(again, envelope_again(device))
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert (receipt.model_digest_before, receipt.model_digest_after) == (before, device.digest)
    assert before != device.digest
    assert again.status().forgotten == ["red"]
    assert len(worker.jobs) == 1  # the work is not done twice
    first = ask(again, envelope_again(device), "r-1", 0)
    assert ask(device.boot(), envelope_again(device), "r-1", 0) == first


def envelope_again(device: Device) -> bytes:
    """The bytes that were accepted (a new envelope would have another expiry)."""
    with device.journal._lock:
        row = device.journal._db.execute("SELECT envelope FROM job").fetchone()
    return bytes(row[0])


def test_a_crash_during_the_work_starts_it_again(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = device.model()
    crash(device, monkeypatch, "journal", "record")
    assert device.model() == before
    again = device.boot()
    assert deliver(again, envelope_again(device)).outcome == pb.OUTCOME_SUCCEEDED
    assert len(worker.jobs) == 2


def test_a_prepared_model_that_rotted_is_made_again(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(device, monkeypatch, "store", "promote")
    rot(device, CANDIDATE)
    again = device.boot()
    receipt = deliver(again, envelope_again(device))
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert receipt.model_digest_after == device.digest
    assert len(worker.jobs) == 2


def test_orderly_stops_are_no_failed_attempts(device: Device, worker: FakeWorker) -> None:
    def interrupted(job: JobSpec) -> None:
        running.set()
        agent._stop.wait(30)
        raise JobFailedError(pb.REASON_WORKER_FAILED, "the agent was stopped")

    running = threading.Event()
    worker.action = interrupted
    data = envelope()
    for _ in range(5):
        agent = device.boot()
        ask(agent, data, "r-1", 0)
        assert running.wait(30)
        running.clear()
    worker.action = None
    assert deliver(device.boot(), data).outcome == pb.OUTCOME_SUCCEEDED


def test_a_job_whose_key_is_no_longer_trusted_fails_and_blocks_nobody(device: Device, worker: FakeWorker) -> None:
    house = House()
    old = envelope(request_id="r-1")
    ask(device.boot(start=False), old)
    before = device.model()
    fleet = {"yard": FleetTrust(role(EVE)), "farm": FleetTrust(role(EVE))}
    root = house.publish(fleets=fleet, revoke=[(OPERATOR.public_key, "stolen")])
    agent = device.boot(start=False)
    ask(agent, b"", root_envelopes=[root])
    agent.start()
    receipt = deliver(agent, old, "r-1", 10)
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_REVOKED_KEY)
    assert device.model() == before
    assert worker.jobs == []
    assert deliver(agent, envelope(EVE, request_id="r-2"), "r-2").outcome == pb.OUTCOME_SUCCEEDED


# The process around the worker


def run_script(
    device: Device, monkeypatch: pytest.MonkeyPatch, script: str, cancelled: threading.Event | None = None
) -> dict[str, Any]:
    real = job_module.run_limited
    monkeypatch.setattr(job_module, "run_limited", lambda _command, **kw: real(["bash", "-c", script], **kw))
    spec = JobSpec(("red",), False, "clue", {}, 1.0, 0, 1.0, "a", "ab", "c")
    cancel = cancelled or threading.Event()
    return run_worker(spec, device.config, cancel, lambda stage, fraction: None, lambda hold: None)


def test_what_the_worker_says_is_read(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """echo noise; echo 7; echo '{"progress": {"stage": "x", "fraction": 0.1}}'; echo '{"result": {"a": 1}}'"""
    assert run_script(device, monkeypatch, script) == {"a": 1}


@pytest.mark.parametrize(
    ("script", "reason", "detail"),
    [
        ("kill -9 $$", pb.REASON_WORKER_FAILED, "ended by signal 9"),
        ("kill -11 $$", pb.REASON_WORKER_FAILED, f"signal {int(signal.SIGSEGV)}"),
        ("echo one >&2; echo why >&2; exit 3", pb.REASON_WORKER_FAILED, "code 3 .*: why"),
        ("true", pb.REASON_WORKER_FAILED, "code 0"),
        (
            """echo '{"failure": {"reason": "REASON_DIVERGED", "detail": "NaN"}}'; exit 1""",
            pb.REASON_DIVERGED,
            "NaN",
        ),
        ("echo '{\"failure\": 3}'; exit 1", pb.REASON_WORKER_FAILED, "code 1"),
        ("echo '{\"progress\": 3}'; exit 1", pb.REASON_WORKER_FAILED, "code 1"),
    ],
)
def test_how_a_worker_can_fail(
    device: Device, monkeypatch: pytest.MonkeyPatch, script: str, reason: int, detail: str
) -> None:
    with pytest.raises(JobFailedError, match=detail) as caught:
        run_script(device, monkeypatch, script)
    assert caught.value.reason == reason


def test_a_worker_out_of_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = device.config.limits.model_copy(update={"budget_seconds": 0.3})
    device.config = device.config.model_copy(update={"limits": limits})
    with pytest.raises(JobFailedError, match=r"still busy after 0\.3 s"):
        run_script(device, monkeypatch, "exec sleep 60")


def test_a_worker_whose_agent_stops(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobFailedError, match="stopped"):
        run_script(device, monkeypatch, "exec sleep 60", cancelled)


def test_a_home_without_a_model(tmp_path: Path, images_root: Path) -> None:
    config = AgentConfig(device_id="cam-1", samples=images_root, holdout=images_root, home=tmp_path)
    pin(config)
    journal = Journal(config.journal)
    with pytest.raises(AgentError, match="clue-agent init"):
        Agent(config, TRUST, DEVICE, journal).start()
    journal.close()


def test_the_samples_commitment_can_be_opened_on_the_device(tmp_path: Path) -> None:
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in "cab"]
    opening = tmp_path / "commitments" / "x.json"
    commitment = receipts.commit_to_samples(digests, opening)
    body = json.loads(opening.read_text())
    assert body["samples_sha256"] == sorted(digests)
    joined = bytes.fromhex(body["salt"]) + b"".join(bytes.fromhex(d) for d in body["samples_sha256"])
    assert hashlib.sha256(joined).digest() == commitment
    assert opening.stat().st_mode & 0o777 == 0o600
    assert receipts.commit_to_samples(digests, opening) != commitment


# What the device has forgotten stays forgotten


def test_a_new_base_model_forgets_before_it_goes_live(device: Device, bundle_dir: Path) -> None:
    agent = device.boot()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    forgot = device.digest
    answer = agent.update_model(bundle_dir)  # the original, which knows the class again
    assert list(answer.to_forget) == ["red"]
    deadline = time.monotonic() + 60
    while device.digest == forgot or not agent.idle:
        assert device.digest in (forgot, device.digest)
        assert agent.store.read().spec.forgotten == ("red",)  # at no moment is it back
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stored = agent.store.read()
    assert stored.spec.forgotten == ("red",)
    model = clue.bundle.bundle_from_bytes(stored.spec, stored.digest, stored.weights).model
    held = clue.data.image_folder(device.config.holdout or Path(), stored.spec)
    ua, ra = clue.evaluate_classes(model, clue.data.loader(held), 0)
    assert (ua.correct, ra.correct) == (0, 30)
    assert agent.store.base_digest() == answer.model_digest != device.digest
    assert {p.name for p in agent.store.root.iterdir()} == {"a", "b", "base-digest", "current"}


def test_a_base_model_with_nothing_to_forget_goes_live_as_it_is(
    device: Device, bundle: clue.ModelBundle, tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    clue.save_bundle(fresh, bundle.model, dataclasses.replace(bundle.spec, std=(0.3, 0.3, 0.3)))
    agent = device.boot()
    answer = agent.update_model(fresh)
    wait_until(lambda: device.digest == answer.model_digest and agent.idle)
    assert agent.store.base_digest() == answer.model_digest
    (fresh / "model.safetensors").write_bytes(b"rot")
    with pytest.raises(AgentError, match="digest"):
        agent.update_model(fresh)


def test_a_base_model_that_no_app_could_use_stays_out(device: Device, bundle: clue.ModelBundle, tmp_path: Path) -> None:
    before = device.digest
    for parameter in bundle.model.parameters():
        parameter.data.fill_(float("nan"))
    clue.save_bundle(tmp_path / "fresh", bundle.model, bundle.spec)
    agent = device.boot()
    agent.update_model(tmp_path / "fresh")
    wait_until(lambda: agent.idle)
    assert device.digest == before
    assert {p.name for p in agent.store.root.iterdir()} == {"a", "b", "base-digest", "current"}


def test_what_the_first_model_lacked_already_stays_forgotten(
    device: Device, bundle: clue.ModelBundle, bundle_dir: Path, tmp_path: Path, worker: FakeWorker
) -> None:
    clue.save_bundle(tmp_path / "without", bundle.model, bundle.spec.with_forgotten("green").with_forgotten("red"))
    shutil.rmtree(device.config.store)
    make_store(device.config).install(tmp_path / "without")
    agent = device.boot()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    assert list(agent.forgotten.entries()) == ["red"]
    assert list(agent.update_model(bundle_dir).to_forget) == ["red", "green"]
    wait_until(lambda: agent.idle)
    assert set(agent.store.read().spec.forgotten) == {"red", "green"}


def test_a_new_base_model_is_the_way_out_of_two_damaged_slots(
    device: Device, bundle_dir: Path, worker: FakeWorker
) -> None:
    config = device.config
    agent = device.boot()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    device.shut_down()
    for slot in "ab":
        (config.store / slot / "weights.sealed").write_bytes(b"rot")
    with pytest.raises(StoreError, match="update-model"):
        device.boot()
    device.shut_down()
    create_signing_key(config.receipt_key)
    (config.home / "trust.json").write_text(TRUST.to_json())
    assert list(update_model(config, bundle_dir).to_forget) == ["red"]
    device.boot()
    assert make_store(config).read().spec.forgotten == ("red",)


@pytest.mark.parametrize("unremovable", ["link", "error"])
def test_originals_that_cannot_be_removed_hold_nobody_up(
    device: Device, images_root: Path, tmp_path: Path, worker: FakeWorker, unremovable: str, monkeypatch: Any
) -> None:
    shutil.copytree(images_root / "train", tmp_path / "samples")
    (tmp_path / "holdout").mkdir()
    shutil.copytree(images_root / "test" / "green", tmp_path / "holdout" / "green")
    (tmp_path / "holdout" / "red").symlink_to(images_root / "test" / "red")
    update = {"samples": tmp_path / "samples", "holdout": tmp_path / "holdout", "keep_originals": False}
    device.config = device.config.model_copy(update=update)
    if unremovable == "error":

        def read_only(folder: Path, name: str) -> int:
            raise OSError(errno.EROFS, "Read-only file system", str(folder))

        monkeypatch.setattr(erasing_module, "erase_originals", read_only)
    receipt = deliver(device.boot(), envelope())
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert (receipt.erasure.samples, receipt.erasure.originals) == (20, 0)
    assert "originals are left" in receipt.erasure.detail
    assert len(list((images_root / "test" / "red").iterdir())) == 10


def test_the_start_destroys_what_no_job_needs(device: Device, bundle_dir: Path) -> None:
    store, ring = make_store(device.config), KeyRing(device.config.keys)
    text, weights = (bundle_dir / "model.json").read_bytes(), (bundle_dir / "model.safetensors").read_bytes()
    for slot in (CANDIDATE, INCOMING):
        store.write(slot, text, weights)
    for name in ("model-b-0123", "checkpoint-0123-0"):
        ring.create(name)
    work = device.config.home / "work"
    work.mkdir()
    (work / "0123-0").write_bytes(b"a model that knows the class")
    agent = device.boot()
    assert {p.name for p in agent.store.root.iterdir()} == {"a", "b", "base-digest", "current"}
    assert [name[:8] for name in ring.names()] == ["model-a-", "model-b-"]
    assert not any(work.iterdir())


def test_the_key_of_a_slot_that_lost_its_name_goes_with_the_old_model(device: Device, worker: FakeWorker) -> None:
    old = set(KeyRing(device.config.keys).names())
    (device.config.store / "b" / "key-id").write_bytes(b"")
    agent = device.boot(start=False)
    agent._thread.start()
    assert deliver(agent, envelope()).erasure.old_model
    assert not old & set(KeyRing(device.config.keys).names())


def test_a_forgotten_class_cannot_come_back_under_another_spelling(
    device: Device, worker: FakeWorker, bundle: clue.ModelBundle, tmp_path: Path
) -> None:
    agent = device.boot()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    names = tuple("Red " if name == "red" else name for name in bundle.spec.classes)
    clue.save_bundle(tmp_path / "renamed", bundle.model, dataclasses.replace(bundle.spec, classes=names))
    before = device.digest
    with pytest.raises(AgentError, match="name it 'red' too"):
        agent.update_model(tmp_path / "renamed")
    assert device.digest == before


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_damaged_list_of_forgotten_classes_is_never_taken_for_empty(device: Device) -> None:
    (device.config.home / "forgotten.json").write_text("[{]")
    with pytest.raises(AgentError, match="forgotten classes"):
        device.boot()


# What a crash leaves between the switch and the receipt


def test_a_new_model_that_rots_right_after_the_switch_is_made_again(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.boot(start=False)
    ask(agent, envelope(), "r-1", 0)
    monkeypatch.setattr(agent._machinery.eraser, "remember", die)
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    rot(device, agent.store.current_slot())  # the repair goes back to the model that knows the class
    again = device.boot()
    receipt = deliver(again, envelope_again(device))
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert receipt.model_digest_after == device.digest
    assert again.status().forgotten == ["red"]
    assert len(worker.jobs) == 2


def test_no_image_is_erased_while_the_old_model_is_there(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.boot(start=False)
    ask(agent, envelope(), "r-1", 0)
    before = device.digest
    monkeypatch.setattr(agent._machinery.eraser, "erase_images", die)
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    rot(device, agent.store.current_slot())
    again = device.boot()
    assert again.status().forgotten == ["red"]
    assert before != device.digest
    assert deliver(again, envelope_again(device)).outcome == pb.OUTCOME_SUCCEEDED


def test_a_journal_that_is_lost_after_the_switch_loses_nothing_else(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    agent = device.boot(start=False)
    ask(agent, envelope(), "r-1", 0)
    before = device.digest
    monkeypatch.setattr(agent._machinery.eraser, "remember", die)
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    data = envelope_again(device)
    device.shut_down()
    device.config.journal.write_bytes(b"rot" * 1000)
    again = device.boot()
    assert list(again.update_model(bundle_dir).to_forget) == ["red"]
    wait_until(lambda: again.idle)
    assert again.status().forgotten == ["red"]

    assert deliver(again, data).outcome == pb.OUTCOME_SUCCEEDED
    assert list(again.forgotten.entries()) == ["red"]
    assert {again.store.read(slot).digest for slot in "ab"} == {device.digest} != {before}


def test_a_class_that_is_found_forgotten_leaves_no_old_model(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.boot(start=False)
    ask(agent, envelope(), "r-1", 0)
    monkeypatch.setattr(agent._machinery.eraser, "remember", die)
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    data = envelope_again(device)
    device.shut_down()
    device.config.journal.write_bytes(b"rot" * 1000)
    again = device.boot()
    assert "forgotten earlier" in deliver(again, data).detail
    assert list(again.forgotten.entries()) == ["red"]
    assert {again.store.read(slot).digest for slot in "ab"} == {device.digest}
    assert len([name for name in again.ring.names() if name.startswith("model-")]) == 2


def test_one_base_model_at_a_time(
    device: Device, bundle: clue.ModelBundle, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    clue.save_bundle(other, bundle.model, dataclasses.replace(bundle.spec, std=(0.3, 0.3, 0.3)))
    agent = device.boot(start=False)
    write, ends = agent.store.write, []

    def slowly(*args: Any) -> None:
        time.sleep(0.2)
        write(*args)

    def update(path: Path) -> None:
        try:
            ends.append(agent.update_model(path).model_digest)
        except AgentError as error:
            ends.append(str(error))

    monkeypatch.setattr(agent.store, "write", slowly)
    threads = [threading.Thread(target=update, args=(path,)) for path in (bundle_dir, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    [job] = device.journal.unfinished()
    assert sum("wait until it is live" in end for end in ends) == 1
    assert job.request_id.removeprefix("model-") == agent.store.read("incoming").digest[:12]


def test_a_base_model_that_cannot_be_sealed_is_one_line(
    device: Device, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    agent = device.boot(start=False)
    monkeypatch.setattr(agent.store, "write", full)
    with pytest.raises(AgentError, match="No space left"):
        agent.update_model(bundle_dir)


def test_originals_that_cannot_be_removed_are_named_and_block_nobody(
    device: Device, worker: FakeWorker, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    assert device.config.holdout is not None
    for source in device.config.samples.iterdir():
        (samples / source.name).symlink_to(source)
    held = Vault(device.config.vault_folder, KeyRing(device.config.keys), device.config.vault)
    for name in ("red", "blue"):
        held.add(name, (device.config.samples / name / "0.png").read_bytes())
    holdout = tmp_path / "holdout"
    shutil.copytree(device.config.holdout, holdout)
    changes = {"samples": samples, "holdout": holdout, "keep_originals": False}
    device.config = device.config.model_copy(update=changes)
    agent = device.boot()
    receipt = deliver(agent, envelope())
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert "20 original files could NOT be removed" in receipt.erasure.detail
    assert "symbolic link" in receipt.erasure.detail
    assert receipt.erasure.originals == 10
    other = envelope(request_id="r-2", forget_class="blue")
    assert deliver(agent, other, "r-2").outcome == pb.OUTCOME_SUCCEEDED


def test_a_request_that_is_written_down_is_not_refused_for_a_full_disk(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalWriteError("full")

    agent, data = device.boot(start=False), envelope()
    with monkeypatch.context() as patch:
        patch.setattr(device.journal, "verify", full)
        assert not ask(agent, data, "r-1", 0).receipt_envelope
    agent.start()
    assert deliver(agent, data).outcome == pb.OUTCOME_SUCCEEDED


def test_a_copy_that_was_written_down_only_is_dropped(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(start=False), envelope()
    ask(agent, data, "r-1", 0)
    copy = json.dumps(json.loads(data), indent=2).encode()
    device.journal.receive(envelope_digest(copy), "r-1", copy, 1.0)
    agent._carry_out(device.journal.unfinished()[1])
    [job] = device.journal.unfinished()
    assert job.envelope == data
    assert worker.jobs == []


def test_no_policy_makes_it_try_for_ever(device: Device, worker: FakeWorker) -> None:
    worker.ra_after = 0
    receipt = deliver(device.boot(), envelope(policy=pb.Policy(max_tries=2**32 - 1)))
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_POLICY_NOT_MET)
    assert len(worker.jobs) == len(receipt.tries) == 10


def test_nothing_is_left_of_checkpoints(device: Device, worker: FakeWorker) -> None:
    def half_written(job: JobSpec) -> None:
        store = SealedCheckpoint(work, KeyRing(device.config.keys), f"{job.checkpoint}-0")
        (device.config.keys / f"checkpoint-{job.checkpoint}-0").write_bytes(b"short")
        store.save(b"activations")
        assert store.load() == b"activations"
        (work / f".{job.checkpoint}-0.sealed.x1y2").write_bytes(b"killed")

    work = device.config.home / "work"
    worker.action = half_written
    agent = device.boot()
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    assert list(work.iterdir()) == []
    assert not [name for name in agent.ring.names() if name.startswith("checkpoint")]


def test_a_request_meets_the_last_image_on_its_way_into_the_vault(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.boot(start=False)
    image = (device.config.samples / "red" / "0.png").read_bytes()
    real = intake_module.count_images

    def taken_in_just_now(root: Path, name: str) -> int:
        if root != device.config.samples:
            return real(root, name)
        agent.vault.add(name, image)
        return 0

    monkeypatch.setattr(intake_module, "count_images", taken_in_just_now)
    assert not ask(agent, envelope(), "r-1", 0).receipt_envelope


def test_the_spec_is_read_while_another_model_is_switched_to(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = make_store(device.config), store_module.read_spec

    def switched(folder: Path) -> tuple[clue.ModelSpec, str]:
        if folder.name == "a":
            store._point_to("b")
            store.erase("a")
        return real(folder)

    monkeypatch.setattr(store_module, "read_spec", switched)
    assert store.spec()[1] == store.read("b").digest


def test_nothing_is_left_of_jobs_whose_journal_was_lost(device: Device, bundle_dir: Path) -> None:
    agent = device.boot(start=False)
    agent.update_model(bundle_dir)
    SealedCheckpoint(device.config.home / "work", agent.ring, "0123456789abcdef-0").save(b"activations")
    device.shut_down()
    device.config.journal.write_bytes(b"rot" * 1000)
    again = device.boot()
    assert {path.name for path in again.store.root.iterdir()} == {"a", "b", "base-digest", "current"}
    assert [name.split("-")[0] for name in again.ring.names()] == ["model", "model"]
    assert list((device.config.home / "work").iterdir()) == []
