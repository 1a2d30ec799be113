"""Answer deliveries: take requests in, refuse them, hand out receipts, heed recalls.

What a delivery of attempt k gets, whatever came before it (docs/adr/0010-attempts-and-recall.md):

- a receipt of attempt k, if there is one: always the same bytes;
- else the newest receipt, if attempt k is not to be made (it is an old one that never came here, one beyond
  ``max_attempts``, or the last one succeeded);
- else the work on it, and how far that is.

Roots and times that come with a delivery are taken in first. A request that cannot be judged by them yet is held:
nothing is written down of it, the answer says what it waits for, and it is judged when it is delivered again.
"""

import logging
import threading
import time
from collections.abc import Callable

from securesystemslib.signer import Signer

from clue_agent import receipts
from clue_agent.attempts import claimed_request, may_follow, same_payload, within
from clue_agent.config import AgentConfig
from clue_agent.errors import JournalWriteError, RequestHeldError, RequestRejectedError, StoreError
from clue_agent.intake import Intake
from clue_agent.journal import VERIFIED, Job, Journal
from clue_agent.patches import Patches
from clue_agent.sharing import Updates
from clue_agent.store import ModelStore
from clue_agent.trusting import DeviceTrust
from clue_protocol.documents import Trust
from clue_protocol.envelope import envelope_digest
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.errors import TrustStateError
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb

log = logging.getLogger(__name__)

WAITING = agent_pb2.Progress(stage="waiting")
CANNOT_STORE = "waiting: the trust is not stored"
_WAITING_FOR_PATCH = agent_pb2.Progress(stage="waiting for the patch")


class Deliveries:
    """Everything that is answered to the sender. Any thread may call it.

    Args:
        config, trust, trusting, signer, journal, store, intake, patches, updates: of the device.
        changed: notified whenever a job has changed.
        stop: set when the agent stops.
        progress: how far the job with a digest is.
    """

    def __init__(
        self,
        config: AgentConfig,
        trust: Trust,
        trusting: DeviceTrust,
        signer: Signer,
        journal: Journal,
        store: ModelStore,
        intake: Intake,
        patches: Patches,
        updates: Updates,
        changed: threading.Condition,
        stop: threading.Event,
        progress: Callable[[bytes], agent_pb2.Progress],
    ) -> None:
        self._config = config
        self._trust = trust
        self._trusting = trusting
        self._signer = signer
        self._journal = journal
        self._store = store
        self._intake = intake
        self._patches = patches
        self._updates = updates
        # A patch belongs to the job that it came with: both are taken in, or let go, by one thread at a time.
        self._taking_in = threading.Lock()
        self._changed = changed
        self._learnt = 0
        self._said = ("", 0, b"")
        self._stop = stop
        self._progress = progress

    def deliver(self, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        """See agent.proto."""
        digest, attempt = envelope_digest(request.request_envelope), max(1, request.attempt)
        self._learn(request)
        try:
            if request.recall:
                digest, answer = self._recall(digest, attempt, request)
            else:
                digest, answer = self._ask(digest, attempt, request)
        except RequestHeldError as held:
            log.info("request %s is held: %s", request.request_id or "(unnamed)", held.detail)
            answer = agent_pb2.DeliverResponse(progress=agent_pb2.Progress(stage=held.stage))
            said = (held.stage, self._trusting.root_version, self._trusting.nonce)
            if said == self._said:
                # Heard before, and not answered: the sender is not to ask again at once.
                self._rest(request.wait_seconds)
            self._said = said
        except JournalWriteError as error:
            answer = self._unwritten(digest, attempt, request, error)
        answer = answer or self._wait(digest, attempt, request)
        answer.root_version = self._trusting.root_version
        answer.time_nonce = self._trusting.nonce
        return answer

    def _learn(self, request: agent_pb2.DeliverRequest) -> None:
        try:
            news = self._trusting.receive(request.root_envelopes, request.time_attestation)
        except TrustStateError as error:
            # What was not stored does not count: the request is judged by what was.
            log.error("%s", error)
            return
        if news:
            with self._changed:
                self._learnt += 1
                self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Wait so long, or until another delivery has brought a root or a time."""
        with self._changed:
            before = self._learnt
            self._changed.wait_for(lambda: self._stop.is_set() or self._learnt != before, seconds)

    def look_at(self, digest: bytes, envelope: bytes, request_id: str) -> tuple[bytes | None, bytes]:
        """Refuse or promise an envelope that is written down; (refusal, digest of the job that stands for it).

        Raises:
            RequestHeldError: it cannot be judged yet, and is written down no more.
        """
        try:
            verified = self._intake.accept(envelope, digest, again=self._journal.accepted(digest))
            self._trusting.accept(verified)
        except RequestHeldError:
            self._let_go(digest)
            raise
        except TrustStateError as error:
            self._let_go(digest)
            raise RequestHeldError(CANNOT_STORE, str(error)) from None
        except RequestRejectedError as error:
            log.warning("refused request %s: %s", request_id or "(unnamed)", error.detail)
            job = self._journal.get(digest)
            refusal = self._refusal(digest, request_id, error, job.attempt if job is not None else 1)
            stands = self._journal.refuse(digest, time.time(), refusal)
            if stands is not None:
                self._patches.destroy(digest)
            return stands, digest
        request = verified.request
        # The same request in other bytes (say, re-indented JSON) is still the same request.
        came_as, digest = digest, self._journal.verify(digest, request.request_id, time.time())
        if came_as != digest:
            self._patches.destroy(came_as)
        log.info("request %s: forget %r", request.request_id, request.forget_class)
        with self._changed:
            self._changed.notify_all()
        return None, digest

    def _let_go(self, digest: bytes) -> None:
        self._journal.let_go(digest)
        if self._journal.get(digest) is None:
            self._patches.destroy(digest)

    # Asked to do it

    def _ask(
        self, digest: bytes, attempt: int, request: agent_pb2.DeliverRequest
    ) -> tuple[bytes, agent_pb2.DeliverResponse | None]:
        """See to it that the job is begun, if it is to be; (its digest, the answer if there is one at once)."""
        envelope = request.request_envelope
        job = self._journal.get(digest)
        if job is not None and not self._is_to_begin(job, attempt, envelope):
            return digest, None
        if job is None and (standing := self._same_request(digest, envelope)) != digest:
            return self._ask(standing, attempt, request)
        again = self._journal.accepted(digest)
        if job is None or job.receipt is not None or VERIFIED not in job.steps:
            # Before a line is written of what may have to wait for days.
            self._intake.hold(envelope, again=again)
        with self._taking_in:
            complete = self._patches.take_in(digest, envelope, request.patch, again=again)
            if complete:
                self._write_down(digest, attempt, request)
        if not complete:
            claimed = claimed_request(envelope)
            standing = self._journal.stands_for(digest, claimed.request_id) if claimed is not None else digest
            if standing != digest:
                return self._ask(standing, attempt, request)
            return digest, agent_pb2.DeliverResponse(progress=_WAITING_FOR_PATCH)
        job = self._journal.get(digest)
        if job is not None and VERIFIED in job.steps:
            with self._changed:
                self._changed.notify_all()
            return digest, None
        refusal, standing = self.look_at(digest, envelope, request.request_id)
        if refusal is not None:
            return digest, agent_pb2.DeliverResponse(receipt_envelope=refusal)
        return (digest, None) if standing == digest else self._ask(standing, attempt, request)

    def _same_request(self, digest: bytes, envelope: bytes) -> bytes:
        """Digest of the job that was promised for the same content in another envelope, or ``digest``."""
        claimed = claimed_request(envelope)
        if claimed is None:
            return digest
        standing = self._journal.stands_for(digest, claimed.request_id)
        job = self._journal.get(standing) if standing != digest else None
        return standing if job is not None and same_payload(job.envelope, envelope) else digest

    def _is_to_begin(self, job: Job, attempt: int, envelope: bytes) -> bool:
        """Is there more to do for a known job than to wait for what it comes to?"""
        if self._earlier_receipt(job, attempt) is not None:
            return False
        unseen = job.receipt is None and VERIFIED not in job.steps
        return unseen or job.recalled or self._begins_anew(job, attempt, envelope)

    def _write_down(self, digest: bytes, attempt: int, request: agent_pb2.DeliverRequest) -> None:
        envelope, now = request.request_envelope, time.time()
        job = self._journal.get(digest)
        if job is None:
            self._journal.receive(digest, request.request_id, envelope, now, attempt=within(attempt, envelope))
        elif job.recalled:
            self._journal.resume(digest, within(attempt, envelope))
        elif self._begins_anew(job, attempt, envelope):
            log.info("request %s: attempt %d is asked for", job.request_id, attempt)
            self._journal.repeat(digest, attempt, envelope, now)

    def _begins_anew(self, job: Job, attempt: int, envelope: bytes) -> bool:
        return job.receipt is not None and may_follow(attempt, job.attempt, job.receipt, job.envelope or envelope)

    def _unwritten(
        self, digest: bytes, attempt: int, request: agent_pb2.DeliverRequest, error: JournalWriteError
    ) -> agent_pb2.DeliverResponse | None:
        job = self._journal.get(digest)
        if request.recall or (job is not None and job.receipt is not None):
            # Nothing has changed: the sender may ask again when the disk can be written.
            log.error("request %s: %s", request.request_id, error)
            return agent_pb2.DeliverResponse(progress=WAITING)
        if job is not None:
            # It is written down and will be looked at: a refusal now might not be the last word.
            log.warning("%s", error)
            return None
        log.error("refused request %s: %s", request.request_id or "(unnamed)", error)
        problem = RequestRejectedError(pb.REASON_STORAGE_FAILED, str(error))
        refusal = self._refusal(digest, request.request_id, problem, within(attempt, request.request_envelope))
        return agent_pb2.DeliverResponse(receipt_envelope=refusal)

    def _refusal(self, digest: bytes, request_id: str, error: RequestRejectedError, attempt: int) -> bytes:
        try:
            model = self._store.spec()[1]
        except StoreError:
            model = ""
        receipt = receipts.refusal(
            request_id, self._config.device_id, self._trust.fleet, digest, error.reason, error.detail, model, attempt
        )
        return receipts.sign_receipt(receipt, self._signer)

    # Asked not to do it

    def _recall(
        self, digest: bytes, attempt: int, request: agent_pb2.DeliverRequest
    ) -> tuple[bytes, agent_pb2.DeliverResponse | None]:
        """Leave the job alone if it was not begun; (its digest, the answer unless there is something of the job)."""
        envelope = request.request_envelope
        not_begun = agent_pb2.DeliverResponse(not_begun=True)
        try:
            claimed = self._trusting.approved(envelope)
        except ProtocolError:
            # It would never be begun, so there is nothing to write down.
            known = self._journal.get(digest)
            return digest, None if known is not None and known.receipt is not None else not_begun
        digest = self._journal.stands_for(digest, claimed.request_id)
        job = self._journal.get(digest)
        if job is not None and self._begins_anew(job, attempt, envelope):
            return digest, not_begun
        with self._taking_in:
            recalled = self._journal.recall(
                digest, claimed.request_id, envelope, within(attempt, envelope), time.time()
            )
            if recalled:
                self._patches.destroy(digest)
        if recalled:
            log.info("request %s was recalled before it was begun", claimed.request_id)
            with self._changed:
                self._changed.notify_all()
            return digest, not_begun
        return digest, None

    # Answering

    def _wait(self, digest: bytes, attempt: int, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        """The receipt, or how far the work is after the seconds that the sender waits."""
        deadline = time.monotonic() + request.wait_seconds
        with self._changed:
            while True:
                job = self._journal.get(digest)
                if job is None:
                    # Another delivery has found that it is the same request in other bytes.
                    digest = self._same_request(digest, request.request_envelope)
                    job = self._journal.get(digest)
                if job is not None and (receipt := self._receipt(job, attempt)) is not None:
                    break
                if job is not None and job.recalled:
                    return agent_pb2.DeliverResponse(not_begun=True)
                left = deadline - time.monotonic()
                if left <= 0 or self._stop.is_set():
                    return agent_pb2.DeliverResponse(progress=self._progress(digest))
                self._changed.wait(min(left, 5.0))
        if receipt != job.receipt:
            return agent_pb2.DeliverResponse(receipt_envelope=receipt)
        update = self._updates.hand_out(job)
        self._mark_delivered(digest)
        return agent_pb2.DeliverResponse(receipt_envelope=receipt, update=update)

    def _receipt(self, job: Job, attempt: int) -> bytes | None:
        earlier = self._earlier_receipt(job, attempt)
        return job.receipt if earlier is None else earlier

    def _earlier_receipt(self, job: Job, attempt: int) -> bytes | None:
        return self._journal.earlier_receipt(job.digest, attempt) if attempt < job.attempt else None

    def _mark_delivered(self, digest: bytes) -> None:
        try:
            self._journal.deliver(digest, time.time())
        except JournalWriteError as error:
            log.warning("%s", error)
