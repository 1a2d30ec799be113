"""A new base model goes live only after it has forgotten what this device has forgotten.

The images of those classes are gone, so the model is made to forget from images of the class that it
makes up itself (:func:`clue.synthesise_class`). The bundle is sealed into the store's candidate slot,
forgotten there, judged on the holdout of the retained classes, and switched to like any candidate. A
crash at any point goes on from the journal; the model in use stays whole all the while.
"""

import hashlib
import json
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clue.errors import BundleError
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec, verify_weights
from clue_agent.errors import AgentError, JobFailedError, StoreError
from clue_agent.guard import DEFAULT_METHOD
from clue_agent.job import JobSpec, run_worker
from clue_agent.journal import EVALUATED, MODEL_JOB, SWAPPED, Job
from clue_agent.store import CANDIDATE, INCOMING
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb

if TYPE_CHECKING:
    from clue_agent.execution import Machinery

log = logging.getLogger(__name__)

_MAX_RUNS = 3


class BaseModels:
    """Takes new base models in, and brings them live."""

    def __init__(self, machinery: "Machinery") -> None:
        self._m = machinery
        self._lock = threading.Lock()

    def take_in(self, bundle: Path) -> agent_pb2.UpdateModelResponse:
        """Seal a copy of ``bundle`` and promise to bring it live; AgentError if it is no model of this device."""
        try:
            # There is one slot for what comes in.
            with self._lock:
                return self._take_in(bundle)
        except OSError as error:
            raise AgentError(f"cannot take {bundle} in: {error.strerror or error}") from None

    def _take_in(self, bundle: Path) -> agent_pb2.UpdateModelResponse:
        try:
            spec, digest = read_spec(bundle)
            verify_weights(bundle, spec)
            raw, weights = (bundle / SPEC_FILE).read_bytes(), (bundle / WEIGHTS_FILE).read_bytes()
        except BundleError as error:
            raise AgentError(str(error)) from None
        self._check_names(spec)
        to_forget = [name for name in self._gone() if name in spec.classes and name not in spec.forgotten]
        key = self._digest(digest)
        waiting = [job for job in self._m.journal.unfinished() if job.kind == MODEL_JOB and job.digest != key]
        if waiting:
            raise AgentError(f"the model {waiting[0].request_id} is still on its way in: wait until it is live")
        known = self._m.journal.get(key)
        if known is None or known.receipt is not None:
            # The second time of the same bundle is a new wish, not the same one.
            key = self._digest(f"{digest}:{time.time_ns()}") if known is not None else key
            self._m.store.write(INCOMING, raw, weights)
            self._m.journal.receive(key, f"model-{digest[:12]}", json.dumps(to_forget).encode(), time.time(), MODEL_JOB)
        return agent_pb2.UpdateModelResponse(model_digest=digest, to_forget=to_forget)

    def carry_out_all(self) -> None:
        """Bring what came in live, for a start with no whole model."""
        for job in self._m.journal.unfinished():
            if job.kind == MODEL_JOB:
                self.carry_out(job)

    def carry_out(self, job: Job) -> None:
        """Forget what has to be forgotten in the incoming model, and switch to it."""
        m = self._m
        if EVALUATED not in job.steps:
            runs = m.journal.begin_run(job.digest, time.time())
            try:
                if runs > _MAX_RUNS:
                    raise JobFailedError(pb.REASON_WORKER_FAILED, f"given up after {_MAX_RUNS} runs")
                digest = self._prepare(job)
            except (JobFailedError, StoreError) as error:
                if m.stop.is_set():
                    m.journal.cancel_run(job.digest)
                    return
                log.error("%s stays out: %s", job.request_id, error)
                self._clean_up(job)
                m.journal.finish(job.digest, json.dumps({"live": False, "detail": str(error)}).encode(), time.time())
                return
            m.journal.record(job.digest, EVALUATED, {"model_digest": digest}, time.time())
        fresh = m.journal.get(job.digest)
        assert fresh is not None  # noqa: S101
        digest = fresh.steps[EVALUATED]["model_digest"]
        # Also when it was switched to before a crash: the repair at the start may have gone back to the old one.
        if not m.store.promote(digest):
            m.journal.withdraw(job.digest)
            return
        m.journal.record(job.digest, SWAPPED, {"model_digest": digest}, time.time())
        # Still there: it is erased below, and then this was done.
        with suppress(StoreError):
            m.store.note_base(m.store.spec(INCOMING)[1])
        m.eraser.erase_old_model()
        self._clean_up(job)
        log.info("%s is live as %s", job.request_id, digest[:12])
        m.journal.finish(job.digest, json.dumps({"live": True, "model_digest": digest}).encode(), time.time())

    def _prepare(self, job: Job) -> str:
        """Fill the candidate slot; returns its digest."""
        m = self._m
        incoming = m.store.read(INCOMING)
        # Looked up now: another class may have been forgotten since the model came.
        names = [n for n in self._gone() if n in incoming.spec.classes and n not in incoming.spec.forgotten]
        spec = JobSpec(
            forget=tuple(names),
            synthetic=True,
            method=DEFAULT_METHOD,
            hyperparameters={},
            step_scale=1.0,
            seed=0,
            max_ua=0.0,
            slot=INCOMING,
            model_digest=incoming.digest,
            checkpoint=job.digest.hex()[:16],
        )

        def progress(stage: str, fraction: float) -> None:
            m.on_progress(job.digest, agent_pb2.Progress(stage=stage, fraction=fraction))

        result = run_worker(spec, m.config, m.stop, progress, m.on_hold)
        if not names:
            return m.store.spec(CANDIDATE)[1]
        before, after = result["ra_before"], result["ra_after"]
        lost = (before["correct"] - after["correct"]) / max(1, after["samples"])
        if lost > m.config.max_update_ra_drop:
            raise JobFailedError(
                pb.REASON_POLICY_NOT_MET,
                f"forgetting {', '.join(names)} in it costs {100 * lost:.1f} points of RA, more than "
                f"max_update_ra_drop = {100 * m.config.max_update_ra_drop:.1f}",
            )
        return m.store.spec(CANDIDATE)[1]

    def _check_names(self, spec: ModelSpec) -> None:
        """A class is known by its name: a model that writes it differently would bring it back unseen."""
        gone = {name.casefold().strip(): name for name in self._gone()}
        for name in spec.classes:
            before = gone.get(name.casefold().strip(), name)
            if before != name:
                raise AgentError(
                    f"the model has a class {name!r}, and {before!r} was forgotten here: name it {before!r} too, "
                    "so that it is forgotten again"
                )

    def _gone(self) -> list[str]:
        """What this device has forgotten, and what the model in use never knew or forgot elsewhere."""
        names = list(self._m.forgotten.entries())
        with suppress(StoreError):
            names += self._m.store.spec()[0].forgotten
        return list(dict.fromkeys(names))

    def _clean_up(self, job: Job) -> None:
        self._m.store.erase(INCOMING)
        self._m.eraser.clean_up(job.digest)

    @staticmethod
    def _digest(text: str) -> bytes:
        return hashlib.sha256(b"base model " + text.encode()).digest()
