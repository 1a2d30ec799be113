"""Carry one job from ``verified`` to ``receipted``, from wherever a crash left it.

The order is what makes it safe: the candidate is sealed in a slot that nobody uses, judged, named in the
journal, and only then switched to; the old model and the class's images are destroyed after the switch
and before the receipt, which says so. Every step can be repeated.
"""

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import Signer

from clue_agent import receipts
from clue_agent.boxes import PATCH, Box
from clue_agent.config import AgentConfig
from clue_agent.erasing import Eraser
from clue_agent.errors import AgentError, JobFailedError, RequestRejectedError, StoreError
from clue_agent.forgotten import ForgottenList
from clue_agent.guard import DEFAULT_METHOD, DEFAULT_TRIES, MAX_TRIES, Attempt, Verdict, judge, next_attempt
from clue_agent.inbox import Inbox
from clue_agent.intake import check_model
from clue_agent.job import JobSpec, run_worker
from clue_agent.journal import ERASED, EVALUATED, SWAPPED, Job, Journal
from clue_agent.limits import Hold, check_free
from clue_agent.store import CANDIDATE, ModelStore
from clue_agent.trusting import DeviceTrust
from clue_agent.verify import hyperparameters, reason_of
from clue_protocol.documents import Trust
from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb

log = logging.getLogger(__name__)

# A worker that is killed (out of memory, a reboot) is run again, but not for ever.
MAX_RUNS = 3
# Candidate, second copy and checkpoint, each about as large as the model.
_COPIES = 4
_INBOX_SECONDS = 30.0


@dataclass
class Machinery:
    """What an execution works with."""

    config: AgentConfig
    trust: Trust
    trusting: DeviceTrust
    signer: Signer
    journal: Journal
    store: ModelStore
    inbox: Inbox
    forgotten: ForgottenList
    eraser: Eraser
    updates: Box
    stop: threading.Event
    on_progress: Callable[[bytes, agent_pb2.Progress], None]
    on_hold: Callable[[Hold | None], None]


class Execution:
    """One forget request on this device."""

    def __init__(self, job: Job, machinery: Machinery) -> None:
        self._job = job
        self._m = machinery
        self._request = peek_message(job.envelope, REQUEST_TYPE, pb.ForgetRequest)

    def run(self) -> pb.Receipt | None:
        """Go on to the end; the receipt that was signed, or None if the job has to be taken up again."""
        if EVALUATED in self._job.steps:
            receipt = self._complete()
            if receipt is not None:
                return receipt
        receipt = self._begin_receipt()
        runs = self._m.journal.begin_run(self._job.digest, time.time())
        if runs == 0:
            return None  # recalled a moment ago
        try:
            self._check_still_trusted()
            if runs > MAX_RUNS:
                raise JobFailedError(pb.REASON_WORKER_FAILED, f"given up after {MAX_RUNS} runs that did not end")
            return self._work(receipt)
        except JobFailedError as error:
            if self._m.stop.is_set():
                # Stopped, not failed: the next start takes it up again, however often that happens.
                self._m.journal.cancel_run(self._job.digest)
                return None
            if runs < MAX_RUNS and error.reason == pb.REASON_WORKER_FAILED:
                log.warning("request %s: %s; trying again", self._request.request_id, error.detail)
                self._m.stop.wait(2.0 * runs)
                return None
            receipt.outcome = pb.OUTCOME_FAILED
            receipt.model_digest_after = receipt.model_digest_before
            receipt.ClearField("samples_commitment")
            receipt.ClearField("update_digest")
            receipt.reason = pb.Reason.ValueType(error.reason)
            receipt.detail = receipts.one_line(error.detail)
        self._m.eraser.clean_up(self._job.digest)
        return self._finish(receipt)

    # Before the model is touched

    def _check_still_trusted(self) -> None:
        """The signatures were good when the job was accepted; since then a newer root may have revoked a key."""
        try:
            self._m.trusting.approved(self._job.envelope)
        except ProtocolError as error:
            raise JobFailedError(
                reason_of(error), f"since this device accepted the request its root has changed: {error}"
            ) from None

    def _begin_receipt(self) -> pb.Receipt:
        request = self._request
        receipt = receipts.begin(
            request,
            self._m.config.device_id,
            self._m.trust.fleet,
            self._job.digest,
            self._model_digest(),
            self._job.attempt,
        )
        receipt.method = PATCH if request.HasField("patch") else request.method or DEFAULT_METHOD
        receipt.started_at.FromNanoseconds(int(self._job.received_at * 1e9))
        return receipt

    def _model_digest(self) -> str:
        try:
            return self._m.store.spec()[1]
        except StoreError:
            return ""

    # The work

    def _work(self, receipt: pb.Receipt) -> pb.Receipt:
        try:
            self._m.store.repair()
            spec, digest = self._m.store.verify()
        except StoreError as error:
            raise JobFailedError(pb.REASON_BAD_MODEL, str(error)) from None
        receipt.model_digest_before = receipt.model_digest_after = digest
        name = self._request.forget_class
        if name in spec.forgotten:
            return self._already_forgotten(receipt, name)
        try:
            # Another job may have changed the model since the request was accepted.
            check_model(self._request, digest)
        except RequestRejectedError as error:
            raise JobFailedError(error.reason, error.detail) from None
        self._take_in_images()
        self._check_disk()
        if self._request.HasField("patch"):
            verdict = self._apply_patch(receipt, digest)
        else:
            verdict = self._try_until_it_passes(receipt, digest)
        candidate = self._m.store.spec(CANDIDATE)[1]
        receipt.outcome = pb.OUTCOME_SUCCEEDED
        receipt.detail = verdict
        receipt.model_digest_after = candidate
        data = {
            "model_digest": candidate,
            "receipt": base64.b64encode(receipt.SerializeToString()).decode(),
            "samples": self._m.eraser.count(name),
        }
        self._m.journal.record(self._job.digest, EVALUATED, data, time.time())
        done = self._complete()
        if done is None:
            raise JobFailedError(pb.REASON_WORKER_FAILED, "the new model was damaged before it could be used")
        return done

    def _already_forgotten(self, receipt: pb.Receipt, name: str) -> pb.Receipt:
        """Its images are gone, so what was measured when it was forgotten is what there is to say."""
        eraser = self._m.eraser
        entry = self._m.forgotten.entries().get(name)
        if entry is not None:
            receipt.ua_after.CopyFrom(pb.Accuracy(correct=entry.ua_correct, samples=entry.ua_samples))
            receipt.method = entry.method
        else:
            # A journal that was lost after the switch took the rest of the job with it; or the device was set up
            # with a model that lacked the class already. Later base models may not.
            eraser.remember(receipt)
        eraser.erase_old_model()
        receipt.outcome = pb.OUTCOME_SUCCEEDED
        receipt.detail = f"{name!r} was forgotten earlier; nothing had to change"
        # Images that came since are of no use to anyone.
        receipt.erasure.CopyFrom(eraser.erase_images(name, eraser.count(name)))
        eraser.clean_up(self._job.digest)
        return self._finish(receipt)

    def _take_in_images(self) -> None:
        """Seal what lies in the samples folder; a file that is still being written is waited for, within reason."""
        deadline = time.monotonic() + _INBOX_SECONDS
        try:
            while self._m.inbox.scan(self._m.stop.is_set).waiting and time.monotonic() < deadline:
                self._m.stop.wait(0.5)
        except (AgentError, OSError) as error:
            raise JobFailedError(pb.REASON_STORAGE_FAILED, f"the samples cannot be sealed: {error}") from None

    def _check_disk(self) -> None:
        try:
            size = self._m.store.size()
            problem = check_free(self._m.config.home, _COPIES * size, self._m.config.limits.reserve_bytes)
        except OSError as error:
            raise JobFailedError(pb.REASON_STORAGE_FAILED, f"cannot look at the disk: {error.strerror}") from None
        if problem:
            raise JobFailedError(pb.REASON_NO_SPACE, problem)

    def _try_until_it_passes(self, receipt: pb.Receipt, digest: str) -> str:
        """Run attempts until one meets the policy; returns the guard's line. JobFailedError has every try's numbers."""
        tried: list[tuple[Attempt, bool]] = []
        failure: JobFailedError | None = None
        for _ in range(min(self._request.policy.max_tries or DEFAULT_TRIES, MAX_TRIES)):
            attempt = next_attempt(tried, self._request.method)
            try:
                result = self._run(attempt, digest)
            except JobFailedError as error:
                if error.reason != pb.REASON_DIVERGED:
                    raise
                receipt.tries.append(pb.Try(method=attempt.method, verdict=receipts.one_line(error.detail)))
                tried.append((attempt, False))
                failure = error
                continue
            verdict = self._judge(receipt, result)
            if verdict.passed:
                receipt.samples_commitment = receipts.commit_to_samples(
                    result["sample_digests"], self._m.config.home / "commitments" / f"{self._job.digest.hex()}.json"
                )
                return verdict.text + self._share(receipt, result)
            tried.append((attempt, verdict.too_weak))
            failure = JobFailedError(pb.REASON_POLICY_NOT_MET, verdict.text)
            log.warning("request %s, try %d: %s", self._request.request_id, len(tried), verdict.text)
        assert failure is not None  # noqa: S101
        if len(tried) > 1:
            failure = JobFailedError(failure.reason, f"after {len(tried)} tries: {failure.detail}")
        raise failure

    def _apply_patch(self, receipt: pb.Receipt, digest: str) -> str:
        """Let the worker apply the patch; returns the guard's line. There is one try: a patch has no settings."""
        base = self._request.patch.base_model_digest
        if base != digest:
            raise JobFailedError(
                pb.REASON_BAD_PATCH,
                f"the patch changes the model {base[:16]!r}, and {digest[:16]!r} came into use while it waited",
            )
        verdict = self._judge(receipt, self._run(Attempt(PATCH), digest), by_ra_alone=True)
        if not verdict.passed:
            raise JobFailedError(pb.REASON_POLICY_NOT_MET, verdict.text)
        return verdict.text

    def _judge(self, receipt: pb.Receipt, result: dict[str, Any], *, by_ra_alone: bool = False) -> Verdict:
        """Let the guard see what the worker measured; both go into the receipt."""
        receipts.add_result(receipt, result)
        verdict = judge(
            receipt.ua_after, receipt.ra_before, receipt.ra_after, self._request.policy, by_ra_alone=by_ra_alone
        )
        receipt.tries.append(
            pb.Try(
                method=receipt.method,
                hyperparameters_json=receipt.hyperparameters_json,
                ua_after=receipt.ua_after,
                ra_after=receipt.ra_after,
                verdict="" if verdict.passed else verdict.text,
            )
        )
        return verdict

    def _shares(self) -> bool:
        return self._request.share_update and self._m.config.share_updates and not self._request.HasField("patch")

    def _share(self, receipt: pb.Receipt, result: dict[str, Any]) -> str:
        """Name the update that the worker sealed; returns what the receipt's detail has to add if there is none."""
        if not self._shares():
            return ""
        problem = result.get("no_update")
        update = None if problem else self._m.updates.get(self._job.digest)
        if update is None:
            return f"; no update is handed out: {problem or 'it could not be read back'}"
        receipt.update_digest = hashlib.sha256(update).digest()
        return ""

    def _run(self, attempt: Attempt, digest: str) -> dict[str, Any]:
        request = self._request
        job = self._job.digest.hex()
        same_method = attempt.method == (request.method or DEFAULT_METHOD)
        spec = JobSpec(
            forget=(request.forget_class,),
            synthetic=False,
            method=attempt.method,
            # Settings of one method mean nothing to another.
            hyperparameters=hyperparameters(request) if same_method else {},
            step_scale=attempt.step_scale,
            seed=request.seed,
            max_ua=request.policy.max_ua,
            slot=self._m.store.current_slot(),
            model_digest=digest,
            checkpoint=job[:16],
            patch=job if request.HasField("patch") else "",
            update=job if self._shares() else "",
        )

        def progress(stage: str, fraction: float) -> None:
            self._m.on_progress(self._job.digest, agent_pb2.Progress(stage=stage, fraction=fraction))

        try:
            return run_worker(spec, self._m.config, self._m.stop, progress, self._m.on_hold)
        except OSError as error:
            raise JobFailedError(pb.REASON_STORAGE_FAILED, f"cannot write to the home: {error.strerror}") from None

    # After the model was judged

    def _complete(self) -> pb.Receipt | None:
        """From ``evaluated`` to ``receipted``; None if the new model rotted before the old one was destroyed."""
        job, m = self._job, self._m
        current = m.journal.get(job.digest)
        assert current is not None  # noqa: S101
        data = current.steps[EVALUATED]
        receipt = pb.Receipt.FromString(base64.b64decode(data["receipt"]))
        if ERASED not in current.steps:
            # Also when it was switched to before a crash: the repair at the start may have gone back to the old one.
            if not m.store.promote(data["model_digest"]):
                log.error("request %s: the new model is damaged; unlearning again", job.request_id)
                m.journal.withdraw(job.digest)
                return None
            m.journal.record(job.digest, SWAPPED, {"model_digest": data["model_digest"]}, time.time())
            m.eraser.remember(receipt)
            # The images last: without them the work could not be done again.
            shared = bool(receipt.update_digest)
            m.eraser.erase_old_model(shared_by=job.digest if shared else None)
            erasure = m.eraser.erase_images(receipt.forget_class, data["samples"])
            erasure.old_model = True
            if shared:
                erasure.detail += "; the update that is handed out leads back to the old model until it is destroyed"
            m.eraser.clean_up(job.digest, shared=shared)
            m.journal.record(
                job.digest, ERASED, {"erasure": base64.b64encode(erasure.SerializeToString()).decode()}, time.time()
            )
        else:
            erasure = pb.Erasure.FromString(base64.b64decode(current.steps[ERASED]["erasure"]))
        receipt.erasure.CopyFrom(erasure)
        return self._finish(receipt)

    def _finish(self, receipt: pb.Receipt) -> pb.Receipt:
        receipt.finished_at.GetCurrentTime()
        # A clock that was set in between must not make time run backwards.
        receipt.latency_seconds = max(0.0, receipt.finished_at.ToNanoseconds() / 1e9 - self._job.received_at)
        self._m.journal.finish(self._job.digest, receipts.sign_receipt(receipt, self._m.signer), time.time())
        log.info("request %s: %s %s", self._job.request_id, pb.Outcome.Name(receipt.outcome), receipt.detail)
        return receipt
