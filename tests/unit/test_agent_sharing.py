"""Updates that a device hands out, and patches that one without images of the class applies."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_home import Device, FakeWorker, ask, deliver, envelope, make_request, make_store, pin, receipt_of

import clue
from clue.bundle import bundle_from_bytes
from clue.federated import Change, Update, apply_update, update_from_bytes, update_to_bytes
from clue_agent import sharing
from clue_agent import worker as worker_module
from clue_agent.boxes import MOST_PATCH_BYTES, PATCH, UPDATE, Box
from clue_agent.job import JobSpec
from clue_agent.journal import ERASED
from clue_agent.sealed import KeyRing
from clue_protocol.envelope import envelope_digest
from clue_protocol.v1 import forget_pb2 as pb

LOOSE = pb.Policy(max_ua=1, max_ra_drop=1)


def box(device: Device, kind: str) -> Box:
    return Box(device.config.home, KeyRing(device.config.keys), kind)


def sharing_device(device: Device) -> Device:
    device.config = device.config.model_copy(update={"share_updates": True})
    return device


def put_update(device: Device, worker: FakeWorker, data: bytes = b"the change") -> None:
    """The stand-in worker seals an update where it is told to, as the real one does."""

    def action(job: JobSpec) -> None:
        if job.update:
            box(device, UPDATE).put(bytes.fromhex(job.update), data)

    worker.action = action


def leftovers(device: Device) -> list[str]:
    """Every file and key of updates and patches."""
    home = device.config.home
    files = [path.name for kind in ("updates", "patches") for path in (home / kind).glob("*")]
    keys = KeyRing(device.config.keys).names()
    return files + [name for name in keys if name.startswith((f"{UPDATE}-", f"{PATCH}-"))]


# Handing out


def test_the_real_worker_hands_out_the_change_that_it_made(device: Device, bundle: clue.ModelBundle) -> None:
    sharing_device(device)
    agent = device.boot()
    data = envelope(method="clue", hyperparameters_json='{"epochs": 1}', share_update=True)
    answer = ask(agent, data, seconds=60)
    receipt = receipt_of(answer)
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED, receipt.detail
    assert receipt.update_digest == hashlib.sha256(answer.update).digest()
    assert "leads back to the old model" in receipt.erasure.detail
    update = update_from_bytes(answer.update)
    assert (update.base, update.forget_class, update.samples) == (bundle.digest, "red", 20)
    # The same change, to within float16, as in the model that is in use now.
    stored = agent.store.read()
    new = bundle_from_bytes(stored.spec, stored.digest, stored.weights).model.state_dict()
    patched = apply_update(bundle, update).model.state_dict()
    assert max(float((new[name] - patched[name]).abs().max()) for name in new if new[name].is_floating_point()) < 1e-3
    assert any(not new[name].equal(tensor) for name, tensor in bundle.model.state_dict().items())


@pytest.mark.parametrize(("asked", "allowed"), [(False, True), (True, False), (False, False)])
def test_an_update_takes_both_words(device: Device, worker: FakeWorker, asked: bool, allowed: bool) -> None:
    device.config = device.config.model_copy(update={"share_updates": allowed})
    put_update(device, worker)
    answer = ask(device.boot(), envelope(share_update=asked), seconds=60)
    assert receipt_of(answer).outcome == pb.OUTCOME_SUCCEEDED
    assert (answer.update, receipt_of(answer).update_digest) == (b"", b"")
    assert [job.update for job in worker.jobs] == [""]
    assert leftovers(device) == []


def test_an_update_is_answered_as_often_as_it_is_asked_for(device: Device, worker: FakeWorker) -> None:
    put_update(sharing_device(device), worker)
    data = envelope(share_update=True)
    first = ask(device.boot(), data, seconds=60)
    assert (first.update, receipt_of(first).update_digest) == (b"the change", hashlib.sha256(b"the change").digest())
    assert ask(device.boot(), data) == first
    # Nothing of it lies on the card in the clear.
    for path in (device.config.home / "updates").iterdir():
        assert b"the change" not in path.read_bytes()


def test_an_update_that_cannot_be_made_costs_nothing_else(device: Device, worker: FakeWorker) -> None:
    answer = ask(sharing_device(device).boot(), envelope(share_update=True), seconds=60)
    receipt = receipt_of(answer)
    assert (receipt.outcome, receipt.update_digest, answer.update) == (pb.OUTCOME_SUCCEEDED, b"", b"")
    assert "no update is handed out: it could not be read back" in receipt.detail
    assert "leads back" not in receipt.erasure.detail


def test_an_update_that_is_too_large_is_not_handed_out(
    device: Device, bundle: clue.ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_UPDATE_BYTES", 100)
    other = bundle_from_bytes(*stored_of(device))
    next(other.model.parameters()).data.add_(1.0)
    job = {"home": str(device.config.home), "update": "ab" * 32}
    result = worker_module.Worker(job)._share(bundle, other.model, "red", 20)
    assert "more than 0 MiB" in result["no_update"]
    assert leftovers(device) == []


def test_a_change_of_statistics_is_not_handed_out(device: Device, bundle: clue.ModelBundle) -> None:
    other = bundle_from_bytes(*stored_of(device))
    next(tensor for name, tensor in other.model.named_buffers() if "running_mean" in name).add_(1.0)
    job = {"home": str(device.config.home), "update": "ab" * 32}
    assert "no weight" in worker_module.Worker(job)._share(bundle, other.model, "red", 20)["no_update"]
    assert leftovers(device) == []


def stored_of(device: Device) -> tuple[clue.ModelSpec, str, bytes]:
    stored = make_store(device.config).read()
    return stored.spec, stored.digest, stored.weights


def test_a_job_that_fails_leaves_no_update(device: Device, worker: FakeWorker) -> None:
    put_update(sharing_device(device), worker)
    worker.ua_after = 5
    policy = pb.Policy(max_ua=0.0, max_ra_drop=1, max_tries=2)
    answer = ask(device.boot(), envelope(share_update=True, policy=policy), seconds=60)
    assert receipt_of(answer).outcome == pb.OUTCOME_FAILED
    assert (receipt_of(answer).update_digest, answer.update) == (b"", b"")
    assert leftovers(device) == []


# How long an update lives


@pytest.fixture
def shared(device: Device, worker: FakeWorker) -> tuple[Device, bytes]:
    """A device whose update has not been asked for yet."""
    put_update(sharing_device(device), worker)
    agent, data = device.boot(), envelope(share_update=True, expires_in=10 * 86400)
    ask(agent, data)
    deadline = time.monotonic() + 30
    while not agent.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return device, data


def grow_old(device: Device, seconds: float) -> None:
    for path in (device.config.home / "updates").iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_what_was_handed_out_is_destroyed_an_hour_later(shared: tuple[Device, bytes]) -> None:
    device, data = shared
    agent = device.boot()
    grow_old(device, 3500)
    assert ask(agent, data).update  # asked for again: the hour begins anew
    agent._updates.expire()
    grow_old(device, 3500)
    agent._updates.expire()
    assert leftovers(device)
    grow_old(device, 3700)
    agent._updates.expire()
    assert leftovers(device) == []
    again = ask(agent, data)
    assert (again.update, receipt_of(again).outcome) == (b"", pb.OUTCOME_SUCCEEDED)


def test_what_was_never_asked_for_is_destroyed_after_a_week(shared: tuple[Device, bytes]) -> None:
    device, _ = shared
    grow_old(device, sharing.KEEP_UNDELIVERED - 3600)
    device.boot()
    assert leftovers(device)
    grow_old(device, sharing.KEEP_UNDELIVERED + 60)
    device.boot()
    assert leftovers(device) == []


def test_what_was_never_asked_for_is_destroyed_with_the_deadline(
    shared: tuple[Device, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _ = shared
    agent = device.boot(start=False)
    real = time.time
    monkeypatch.setattr(sharing.time, "time", lambda: real() + 11 * 86400)
    agent._updates.expire()
    assert leftovers(device) == []


def test_a_clock_that_is_set_back_does_not_let_it_live_for_ever(shared: tuple[Device, bytes]) -> None:
    device, data = shared
    agent = device.boot()
    ask(agent, data)
    grow_old(device, -86400)
    agent._updates.expire()
    grow_old_by = box(device, UPDATE).age(envelope_digest(data))
    assert 0 <= grow_old_by < 60


def test_the_next_erasure_takes_it_along(shared: tuple[Device, bytes], worker: FakeWorker) -> None:
    device, data = shared
    agent = device.boot()
    assert deliver(agent, envelope(request_id="r-2", forget_class="blue"), "r-2").outcome == pb.OUTCOME_SUCCEEDED
    assert leftovers(device) == []
    assert ask(agent, data).update == b""


def test_a_new_base_model_takes_it_along(shared: tuple[Device, bytes], bundle_dir: Path) -> None:
    device, _ = shared
    agent = device.boot()
    agent.update_model(bundle_dir)
    deadline = time.monotonic() + 60
    while not agent.idle:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert leftovers(device) == []


def test_an_update_whose_journal_was_lost_is_destroyed(shared: tuple[Device, bytes]) -> None:
    device, _ = shared
    device.shut_down()
    device.config.journal.write_bytes(b"rot" * 1000)
    (device.config.home / "updates" / ".half-written").write_bytes(b"x")
    KeyRing(device.config.keys).create("update-" + "ef" * 32)
    device.boot()
    assert leftovers(device) == []


def test_a_crash_between_the_switch_and_the_receipt_keeps_the_update(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(BaseException):
        pass

    def die(*_: object) -> None:
        raise PowerCutError

    put_update(sharing_device(device), worker)
    agent, data = device.boot(start=False), envelope(share_update=True)
    ask(agent, data)
    real = device.journal.record
    monkeypatch.setattr(device.journal, "record", lambda d, step, *a: die() if step == ERASED else real(d, step, *a))
    with pytest.raises(PowerCutError):
        agent._carry_out(device.journal.unfinished()[0])
    answer = ask(device.boot(), data, seconds=60)
    assert (answer.update, len(worker.jobs)) == (b"the change", 1)


# Patches


def patch_request(device: Device, patch: bytes, **changes: Any) -> bytes:
    request = make_request(**({"request_id": "r-patch", "sequence": 100, "policy": LOOSE} | changes))
    request.patch.CopyFrom(
        pb.PatchReference(
            source_request_id="r-1",
            digest=hashlib.sha256(patch).digest(),
            base_model_digest=device.digest,
            updates=2,
        )
    )
    return envelope(request=request)


def real_patch(bundle: clue.ModelBundle, scale: float = 1.0) -> bytes:
    """Takes the class's row of the classifier down, which is what every update does at least."""
    name, weight = list(bundle.model.named_parameters())[-2]
    bias_name, bias = list(bundle.model.named_parameters())[-1]
    rows = np.arange(weight.shape[1], dtype=np.int32)
    changes = {
        name: Change(tuple(weight.shape), rows, -scale * weight[0].detach().numpy()),
        bias_name: Change(tuple(bias.shape), np.zeros(1, np.int32), np.array([-100.0 * scale], np.float32)),
    }
    return update_to_bytes(Update(bundle.digest, "red", 40, changes, contributors=2))


@pytest.fixture
def bare(device: Device, tmp_path: Path, images_root: Path) -> Device:
    """A device without any image of the class."""
    for which, split in (("samples", "train"), ("holdout", "test")):
        for source in (images_root / split).iterdir():
            if source.name != "red":
                shutil.copytree(source, tmp_path / which / source.name)
    changes = {"samples": tmp_path / "samples", "holdout": tmp_path / "holdout", "keep_originals": False}
    device.config = device.config.model_copy(update=changes)
    return device


def test_the_real_worker_applies_a_patch_on_a_device_without_images(bare: Device, bundle: clue.ModelBundle) -> None:
    before, patch = bare.digest, real_patch(bundle)
    agent = bare.boot()
    refused = deliver(agent, envelope())
    assert refused.reason == pb.REASON_NO_FORGET_SAMPLES
    data = patch_request(bare, patch)
    receipt = deliver(agent, data, "r-patch", patch=patch)
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED, receipt.detail
    assert (receipt.method, receipt.forget_samples, receipt.samples_commitment) == ("patch", 0, b"")
    assert json.loads(receipt.hyperparameters_json) == {"contributors": 2}
    assert (receipt.ua_after.samples, receipt.ra_after.samples) == (0, 30)
    assert "UA not measured" in receipt.detail
    assert (receipt.model_digest_before, receipt.model_digest_after) == (before, bare.digest)
    assert before != bare.digest
    assert receipt.erasure.old_model
    assert receipt.energy.joules >= 0
    assert receipt.peak_memory_bytes > 0
    assert agent.status().forgotten == ["red"]
    assert agent.forgotten.entries()["red"].method == "patch"
    assert agent.store.read().digest == apply_update(bundle, update_from_bytes(patch)).digest
    assert {agent.store.read(slot).digest for slot in "ab"} == {bare.digest}
    assert leftovers(bare) == []
    # The same answer again, with or without the patch, and also after a restart.
    assert receipt_of(ask(bare.boot(), data, "r-patch")) == receipt


def test_a_patch_is_judged_by_images_of_the_class_where_there_are_some(
    device: Device, bundle: clue.ModelBundle
) -> None:
    patch = real_patch(bundle)
    data = patch_request(device, patch, policy=pb.Policy(max_ua=0.0, max_ra_drop=0.1))
    agent = device.boot()
    receipt = deliver(agent, data, "r-patch", patch=patch)
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED, receipt.detail
    assert (receipt.ua_after.correct, receipt.ua_after.samples) == (0, 10)
    # Its own images of the class go with the class.
    assert receipt.erasure.samples == 20
    assert agent.vault.count("red", "forget") == 0


def test_a_patch_that_does_not_hide_the_class_stays_out(device: Device, bundle: clue.ModelBundle) -> None:
    before, patch = device.model(), real_patch(bundle, scale=1e-3)
    data = patch_request(device, patch, policy=pb.Policy(max_ua=0.0, max_ra_drop=1), max_attempts=2)
    agent = device.boot()
    receipt = deliver(agent, data, "r-patch", patch=patch)
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_POLICY_NOT_MET)
    assert "UA" in receipt.detail
    assert len(receipt.tries) == 1
    assert device.model() == before
    assert leftovers(device) == []
    # A second attempt needs the patch again.
    assert ask(agent, data, "r-patch", attempt=2).progress.stage == "waiting for the patch"
    assert deliver(agent, data, "r-patch", attempt=2, patch=patch).attempt == 2


def test_a_patch_that_costs_too_much_stays_out(bare: Device, bundle: clue.ModelBundle) -> None:
    """Without images of the class RA alone decides, and does."""
    name, weight = next(iter(bundle.model.named_parameters()))
    noise = np.random.default_rng(0).normal(0, 5, weight.numel()).astype(np.float32)
    change = Change(tuple(weight.shape), np.arange(weight.numel(), dtype=np.int32), noise)
    patch = update_to_bytes(Update(bundle.digest, "red", 40, {name: change}))
    before = bare.model()
    data = patch_request(bare, patch, policy=pb.Policy(max_ua=1, max_ra_drop=0.02))
    receipt = deliver(bare.boot(), data, "r-patch", patch=patch)
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_POLICY_NOT_MET)
    assert "RA fell" in receipt.detail
    assert bare.model() == before


WRONG: dict[str, Callable[[clue.ModelBundle], bytes]] = {
    "is no update": lambda bundle: b"x" * 1000,
    "forgets another class": lambda bundle: update_to_bytes(
        Update(bundle.digest, "blue", 1, update_from_bytes(real_patch(bundle)).changes)
    ),
    "is for another model": lambda bundle: update_to_bytes(
        Update("ab" * 32, "red", 1, update_from_bytes(real_patch(bundle)).changes)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_signed_patch_that_cannot_be_applied_is_one_line(bare: Device, bundle: clue.ModelBundle, name: str) -> None:
    patch, before = WRONG[name](bundle), bare.model()
    receipt = deliver(bare.boot(), patch_request(bare, patch), "r-patch", patch=patch)
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_BAD_PATCH)
    assert receipt.detail
    assert "\n" not in receipt.detail
    assert bare.model() == before
    assert leftovers(bare) == []


@pytest.mark.parametrize(
    ("change", "sent", "problem"),
    [
        ({}, b"another", "not the one"),
        ({"base_model_digest": "ab" * 32}, b"patch", "changes the model 'abababab"),
        ({"base_model_digest": ""}, b"patch", "changes the model ''"),
        ({"digest": b"short"}, b"patch", "SHA-256"),
    ],
)
def test_a_patch_that_was_not_signed_or_is_for_another_model_is_refused(
    bare: Device, worker: FakeWorker, change: dict[str, Any], sent: bytes, problem: str
) -> None:
    request = make_request(request_id="r-patch")
    request.patch.CopyFrom(
        pb.PatchReference(**({"digest": hashlib.sha256(b"patch").digest(), "base_model_digest": bare.digest} | change))
    )
    agent, data = bare.boot(), envelope(request=request)
    receipt = deliver(agent, data, "r-patch", patch=sent)
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_REJECTED, pb.REASON_BAD_PATCH)
    assert problem in receipt.detail
    assert worker.jobs == []
    assert leftovers(bare) == []


def test_a_patch_that_is_too_large_is_refused(bare: Device, worker: FakeWorker) -> None:
    patch = bytes(MOST_PATCH_BYTES + 1)
    receipt = deliver(bare.boot(), patch_request(bare, patch), "r-patch", patch=patch)
    assert (receipt.reason, leftovers(bare)) == (pb.REASON_BAD_PATCH, [])
    assert "64 MiB" in receipt.detail


def test_a_patch_that_was_lost_is_waited_for(bare: Device, worker: FakeWorker) -> None:
    agent, data = bare.boot(), patch_request(bare, b"patch")
    for _ in range(2):
        answer = ask(agent, data, "r-patch")
        assert (answer.progress.stage, answer.receipt_envelope) == ("waiting for the patch", b"")
        assert bare.journal.get(envelope_digest(data)) is None
    assert deliver(agent, data, "r-patch", patch=b"patch").outcome == pb.OUTCOME_SUCCEEDED
    assert [job.patch for job in worker.jobs] == [envelope_digest(data).hex()]


def test_a_request_that_is_refused_anyway_does_not_wait_for_its_patch(bare: Device) -> None:
    receipt = deliver(bare.boot(), patch_request(bare, b"patch", fleet="farm"), "r-patch")
    assert receipt.reason == pb.REASON_WRONG_FLEET


def test_a_device_that_forgot_the_class_needs_no_patch(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(), patch_request(device, b"patch")
    assert deliver(agent, envelope()).outcome == pb.OUTCOME_SUCCEEDED
    receipt = deliver(agent, data, "r-patch")
    assert (receipt.outcome, receipt.method) == (pb.OUTCOME_SUCCEEDED, "clue_plus")
    assert "forgotten earlier" in receipt.detail


def test_a_patch_for_a_device_without_holdout_is_refused(bare: Device, tmp_path: Path, worker: FakeWorker) -> None:
    (tmp_path / "empty").mkdir()
    bare.config = bare.config.model_copy(update={"holdout": tmp_path / "empty"})
    receipt = deliver(bare.boot(), patch_request(bare, b"patch"), "r-patch", patch=b"patch")
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_REJECTED, pb.REASON_NO_HOLDOUT)
    assert leftovers(bare) == []


def test_a_patch_whose_model_was_replaced_while_it_waited_fails(bare: Device, worker: FakeWorker) -> None:
    agent, data = bare.boot(start=False), patch_request(bare, b"patch")
    ask(agent, data, "r-patch", patch=b"patch")
    store = make_store(bare.config)
    spec, _, weights = stored_of(bare)
    store.write("new", spec.with_forgotten("green").to_json().encode(), weights)
    store.promote(store.spec("new")[1])
    receipt = deliver(bare.boot(), data, "r-patch")
    assert (receipt.outcome, receipt.reason) == (pb.OUTCOME_FAILED, pb.REASON_BAD_PATCH)
    assert "came into use while it waited" in receipt.detail


def test_a_patch_outlives_a_power_cut(bare: Device, worker: FakeWorker) -> None:
    agent, data = bare.boot(start=False), patch_request(bare, b"patch")
    assert ask(agent, data, "r-patch", patch=b"patch").progress.stage == "waiting"
    assert box(bare, PATCH).get(envelope_digest(data)) == b"patch"
    for path in (bare.config.home / "patches").glob("*"):
        assert path.read_bytes() != b"patch"
    # It need not come again.
    assert deliver(bare.boot(), data, "r-patch").outcome == pb.OUTCOME_SUCCEEDED
    assert leftovers(bare) == []


def test_a_patch_whose_job_was_never_written_down_is_swept(bare: Device) -> None:
    box(bare, PATCH).put(b"\7" * 32, b"orphan")
    bare.boot()
    assert leftovers(bare) == []


def test_a_recalled_patch_is_let_go_and_needed_again(bare: Device, worker: FakeWorker) -> None:
    agent, data = bare.boot(start=False), patch_request(bare, b"patch")
    ask(agent, data, "r-patch", patch=b"patch")
    assert ask(agent, data, "r-patch", recall=True).not_begun
    assert leftovers(bare) == []
    agent.start()
    assert ask(agent, data, "r-patch").progress.stage == "waiting for the patch"
    assert deliver(agent, data, "r-patch", patch=b"patch").outcome == pb.OUTCOME_SUCCEEDED


def test_the_same_patch_request_in_other_bytes_leaves_nothing(bare: Device, worker: FakeWorker) -> None:
    agent, data = bare.boot(start=False), patch_request(bare, b"patch")
    copy = json.dumps(json.loads(data), indent=2).encode()
    ask(agent, data, "r-patch", patch=b"patch")
    ask(agent, copy, "r-patch", patch=b"patch")
    assert box(bare, PATCH).jobs() == [envelope_digest(data)]
    agent.start()
    assert deliver(agent, copy, "r-patch").outcome == pb.OUTCOME_SUCCEEDED
    assert leftovers(bare) == []


def test_a_full_disk_refuses_the_patch_for_now(
    bare: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    agent, data = bare.boot(), patch_request(bare, b"patch")
    with monkeypatch.context() as context:
        context.setattr(Box, "put", full)
        refusal = deliver(agent, data, "r-patch", patch=b"patch")
    assert (refusal.outcome, refusal.reason) == (pb.OUTCOME_REJECTED, pb.REASON_STORAGE_FAILED)
    assert deliver(agent, data, "r-patch", patch=b"patch").outcome == pb.OUTCOME_SUCCEEDED


def test_an_update_of_one_device_is_a_patch_for_another(
    device: Device, tmp_path: Path, bundle: clue.ModelBundle, bundle_dir: Path
) -> None:
    """End to end on real models: unlearn here, patch there."""
    agent = sharing_device(device).boot()
    policy = pb.Policy(max_ua=0.1, max_ra_drop=0.1)
    answer = ask(agent, envelope(share_update=True, policy=policy), seconds=60)
    assert receipt_of(answer).outcome == pb.OUTCOME_SUCCEEDED
    other = Device(device.config.model_copy(update={"home": tmp_path / "other"}))
    other.config.home.mkdir()
    make_store(other.config).install(bundle_dir)
    pin(other.config)
    try:
        receipt = deliver(
            other.boot(), patch_request(other, answer.update, policy=policy), "r-patch", patch=answer.update
        )
    finally:
        other.shut_down()
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED, receipt.detail
    assert receipt.ua_after.correct <= 1
