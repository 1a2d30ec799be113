"""The agent's core: accept a request, work on it once, answer with one receipt an attempt.

Torch-free. :meth:`Agent.deliver` is called by Flower's forwarder, from any thread and as often as
it likes (see :mod:`clue_agent.delivery`); one thread works through the journal.
"""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

from securesystemslib.signer import Signer

import clue
from clue_agent.base_model import BaseModels
from clue_agent.boottime import Clock
from clue_agent.boxes import PATCH, UPDATE, Box
from clue_agent.config import AgentConfig
from clue_agent.delivery import WAITING, Deliveries
from clue_agent.erasing import Eraser
from clue_agent.errors import RequestHeldError, StoreError
from clue_agent.execution import Execution, Machinery
from clue_agent.forgotten import ForgottenList
from clue_agent.inbox import Inbox
from clue_agent.intake import Intake
from clue_agent.journal import MODEL_JOB, VERIFIED, Job, Journal
from clue_agent.limits import Hold
from clue_agent.patches import Patches
from clue_agent.sealed import KeyRing
from clue_agent.sharing import Updates
from clue_agent.store import ModelStore
from clue_agent.trust_status import trust_message
from clue_agent.trusting import DeviceTrust
from clue_agent.vault import Vault
from clue_protocol.documents import Trust
from clue_protocol.v1 import agent_pb2

log = logging.getLogger(__name__)

_SCAN_SECONDS = 5.0


class Agent:
    """One device. Start with :meth:`start`, stop with :meth:`close`.

    Raises:
        TrustStateError: what it trusts is missing or damaged.
    """

    def __init__(
        self, config: AgentConfig, trust: Trust, signer: Signer, journal: Journal, clock: Clock | None = None
    ) -> None:
        self.config = config
        self.trust = trust
        self.trusting = DeviceTrust(config.trust_folder, trust, clock)
        self.ring = KeyRing(config.keys)
        self.store = ModelStore(config.store, self.ring)
        self.vault = Vault(config.vault_folder, self.ring, config.vault)
        self.forgotten = ForgottenList(config.home / "forgotten.json")
        self.repaired = ""
        self._journal = journal
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._active: Job | None = None
        self._hold: Hold | None = None
        self._progress: dict[bytes, agent_pb2.Progress] = {}
        self.inbox = Inbox(config.samples, self.vault, keep_originals=config.keep_originals, allowed=self._wanted)
        patches, updates = Box(config.home, self.ring, PATCH), Box(config.home, self.ring, UPDATE)
        intake = Intake(config, self.trusting, self.store, self.vault, patches)
        self._updates = Updates(updates, journal)
        self._deliveries = Deliveries(
            config,
            trust,
            self.trusting,
            signer,
            journal,
            self.store,
            intake,
            Patches(patches, intake),
            self._updates,
            self._changed,
            self._stop,
            lambda digest: self._progress.get(digest, WAITING),
        )
        self._eraser = Eraser(config, self.store, self.vault, self.ring, self.forgotten, patches, self._updates)
        self._machinery = Machinery(
            config=config,
            trust=trust,
            trusting=self.trusting,
            signer=signer,
            journal=journal,
            store=self.store,
            inbox=self.inbox,
            forgotten=self.forgotten,
            eraser=self._eraser,
            updates=updates,
            stop=self._stop,
            on_progress=self._set_progress,
            on_hold=self._set_hold,
        )
        self._models = BaseModels(self._machinery)
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Check the model in use and begin to work; what a crash interrupted is finished first."""
        self.forgotten.entries()
        try:
            self.repaired = self.store.repair()
        except StoreError:
            # No slot is whole: a base model that came in meanwhile is the way out.
            self._models.carry_out_all()
            self.repaired = self.store.repair()
        self._machinery.eraser.sweep(self._journal.unfinished())
        self.vault.sweep()
        self._thread.start()

    def close(self) -> None:
        """Stop working; an interrupted job is taken up again at the next start."""
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(15)
        self.trusting.keep_time(at_once=True)

    @property
    def alive(self) -> bool:
        """True while the thread that works is there."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """True if nothing is being worked on and nothing waits."""
        return self._active is None and not self._journal.unfinished()

    def deliver(self, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        """The receipt for an envelope, or how far the work on it is after ``wait_seconds``; see agent.proto."""
        return self._deliveries.deliver(request)

    def update_model(self, bundle: Path) -> agent_pb2.UpdateModelResponse:
        """Take in a new base model (see :mod:`clue_agent.base_model`)."""
        answer = self._models.take_in(bundle)
        self._wake()
        return answer

    def status(self) -> agent_pb2.GetStatusResponse:
        """What this device is and does."""
        spec, digest = self.store.spec()
        active, hold = self._active, self._hold
        answer = agent_pb2.GetStatusResponse(
            device_id=self.config.device_id,
            fleet=self.trust.fleet,
            software_version=clue.__version__,
            model_digest=digest,
            classes=spec.classes,
            forgotten=spec.forgotten,
            repaired=self.repaired,
            held=f"{hold.kind}: {hold.detail}" if hold is not None else "",
            unfinished_jobs=len(self._journal.unfinished()),
            trust=trust_message(self.trusting.report()),
        )
        if active is not None:
            answer.active_request_id = active.request_id
            answer.progress.CopyFrom(self._progress.get(active.digest, WAITING))
        return answer

    # Working

    def _work(self) -> None:
        scanned = 0.0
        while not self._stop.is_set():
            if time.monotonic() - scanned > _SCAN_SECONDS:
                self._scan()
                self._expire_updates()
                self.trusting.keep_time()
                scanned = time.monotonic()
            jobs = self._journal.unfinished()
            if not jobs:
                with self._changed:
                    self._changed.wait(1.0)
                continue
            self._active = jobs[0]
            try:
                self._carry_out(jobs[0])
            except Exception:
                # The journal still holds the job: better late than a dead thread nobody notices.
                log.exception("request %s: unexpected error; trying again", jobs[0].request_id)
                self._stop.wait(5.0)
            finally:
                self._active = None
                self._hold = None
            self._wake()

    def _scan(self) -> None:
        try:
            for path, reason in self.inbox.scan().refused:
                log.warning("not taken in: %s: %s", path, reason)
        except Exception:
            # Images are worth less than the thread that forgets.
            log.exception("the samples folder cannot be read")

    def _expire_updates(self) -> None:
        try:
            self._updates.expire()
        except Exception:
            log.exception("updates that were handed out cannot be destroyed")

    def _carry_out(self, job: Job) -> None:
        if job.kind == MODEL_JOB:
            self._models.carry_out(job)
            return
        if VERIFIED not in job.steps:
            # The power went between the envelope's arrival and the look at it. What became of it, a refusal or
            # another job's copy included, is in the journal now.
            with suppress(RequestHeldError):
                self._deliveries.look_at(job.digest, job.envelope, job.request_id)
            return
        if Execution(job, self._machinery).run() is not None:
            self._progress.pop(job.digest, None)

    def _wanted(self) -> set[str]:
        """Classes whose images are worth keeping: those that the model knows and has not forgotten."""
        spec, _ = self.store.spec()
        return set(spec.classes) - set(spec.forgotten) - set(self.forgotten.entries())

    def _set_progress(self, digest: bytes, progress: agent_pb2.Progress) -> None:
        self._progress[digest] = progress

    def _set_hold(self, hold: Hold | None) -> None:
        self._hold = hold
        if hold is not None:
            log.warning("paused: %s: %s", hold.kind, hold.detail)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
