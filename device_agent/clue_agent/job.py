"""Run the worker for one attempt and read what it says."""

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from clue_agent.config import AgentConfig
from clue_agent.errors import JobFailedError
from clue_agent.limits import Hold, Verdict, Watch, run_limited
from clue_protocol.v1 import forget_pb2 as pb

OnProgress = Callable[[str, float], None]
OnHold = Callable[[Hold | None], None]


@dataclass(frozen=True)
class JobSpec:
    """What the worker is asked to do.

    Attributes:
        forget: names of the classes to forget, one after another.
        synthetic: no image of them is left: make some from the model itself.
        method: registered name.
        hyperparameters: overrides of its defaults.
        step_scale: factor for its learning rate.
        seed: of all randomness.
        max_ua: a class that is already forgotten and no better known than this is left as it is.
        slot: which model to start from.
        model_digest: digest that it must have.
        checkpoint: name of the sealed checkpoint.
        patch: digest (hex) of the job whose sealed patch is to be applied instead of unlearning; empty for none.
        update: digest (hex) of the job under which to seal the change for handing out; empty for no update.
    """

    forget: tuple[str, ...]
    synthetic: bool
    method: str
    hyperparameters: dict[str, object]
    step_scale: float
    seed: int
    max_ua: float
    slot: str
    model_digest: str
    checkpoint: str
    patch: str = ""
    update: str = ""


def run_worker(
    job: JobSpec, config: AgentConfig, cancelled: threading.Event, on_progress: OnProgress, on_hold: OnHold
) -> dict[str, Any]:
    """Run the worker to its end and return its result.

    Call it from a thread that outlives the worker: the worker is ended with that thread.

    Raises:
        JobFailedError: the worker failed, crashed, was killed, passed a limit, or ``cancelled`` was set.
    """
    work = config.work
    job_file = config.home / "job.json"
    body = asdict(job) | {
        "home": str(config.home),
        "holdout": str(config.holdout) if config.holdout is not None else "",
        "threads": work.threads,
        "batch_size": work.batch_size,
        "allowed_factories": list(work.allowed_factories),
    }
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    config.logs.mkdir(exist_ok=True)
    errors = config.logs / "worker.log"
    said: dict[str, Any] = {}
    try:
        job_file.write_text(json.dumps(body), encoding="utf-8")
        ended = run_limited(
            [sys.executable, "-m", "clue_agent.worker", str(job_file)],
            limits=config.limits,
            watch=Watch(config.limits),
            cancelled=cancelled,
            environment=environment,
            log_path=errors,
            on_line=lambda line: _hear(line, said, on_progress),
            on_hold=on_hold,
            nice=work.nice,
            threads=work.threads,
        )
    except OSError as error:
        reason = pb.REASON_NO_SPACE if error.errno in _FULL else pb.REASON_WORKER_FAILED
        raise JobFailedError(reason, f"cannot start the worker: {error}") from None
    finally:
        with suppress(OSError):
            job_file.unlink()
    if ended.verdict is Verdict.CANCELLED:
        raise JobFailedError(pb.REASON_WORKER_FAILED, "the agent was stopped")
    if ended.verdict is Verdict.OUT_OF_MEMORY:
        raise JobFailedError(pb.REASON_OUT_OF_MEMORY, ended.detail)
    if ended.verdict is not Verdict.FINISHED:
        raise JobFailedError(pb.REASON_OUT_OF_TIME, ended.detail)
    if "result" in said:
        return dict(said["result"])
    if "failure" in said:
        failure = said["failure"]
        known = failure["reason"] in pb.Reason.DESCRIPTOR.values_by_name
        reason = pb.Reason.Value(failure["reason"]) if known else pb.REASON_WORKER_FAILED
        raise JobFailedError(reason, failure["detail"])
    # Where even its imports do not fit, Python says so on stderr.
    memory = any(sign in ended.detail for sign in ("MemoryError", "annot allocate memory"))
    raise JobFailedError(pb.REASON_OUT_OF_MEMORY if memory else pb.REASON_WORKER_FAILED, ended.detail)


_FULL = (28, 122)  # ENOSPC, EDQUOT


def _hear(line: bytes, said: dict[str, Any], on_progress: OnProgress) -> None:
    try:
        message = json.loads(line)
    except ValueError:
        return
    # A model's own code may print too: only whole messages count.
    match message:
        case {"progress": {"stage": str(stage), "fraction": float() | int() as fraction}}:
            on_progress(stage, float(fraction))
        case {"result": dict()} | {"failure": {"reason": str(), "detail": str()}}:
            said.clear()
            said.update(message)
