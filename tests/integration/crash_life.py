"""One life of an agent that may end at any file operation: run in a process of its own, which is then gone.

A layer of faults lies under the agent: every call that changes the file system (and every commit of
SQLite) is counted, and at the chosen one the process kills itself with SIGKILL, before it, after it, or
in the middle of a write, which then leaves half of its bytes.
"""

import io
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from trust_house import HOUSE

from clue_agent import execution, inbox
from clue_agent.agent import Agent
from clue_agent.boxes import UPDATE, Box
from clue_agent.config import AgentConfig
from clue_agent.job import JobSpec
from clue_agent.journal import Journal
from clue_agent.sealed import KeyRing
from clue_agent.setup import load_trust
from clue_agent.store import CANDIDATE, ModelStore
from clue_protocol.keys import load_signing_key
from clue_protocol.v1 import agent_pb2

_CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "symlink", "chmod", "fchmod")


@dataclass(frozen=True)
class Asked:
    """What is delivered in one life, and how well the stand-in's model forgets (images of ten still recognised)."""

    envelope: bytes
    attempt: int = 1
    patch: bytes = b""
    still_known: int = 0


class Faults:
    """Counts changes and ends the process at one of them.

    Args:
        at: which change, counted from 1; 0 for none.
        mode: "before" it, "after" it, or "half": in the middle of a write.
        counts: file to write the number of changes and of writes to at the end of a life.
    """

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode = at, mode
        self.changes = self.writes = 0

    def install(self) -> None:
        """Put the layer under os, and under SQLite's commits."""
        for name in _CALLS:
            setattr(os, name, self._wrapped(getattr(os, name)))
        real_fdopen = os.fdopen

        def fdopen(*arguments: Any, **options: Any) -> Any:
            stream = real_fdopen(*arguments, **options)
            return _Torn(stream, self) if "w" in (arguments[1] if len(arguments) > 1 else "r") else stream

        os.fdopen = fdopen  # type: ignore[assignment]
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if sql.startswith("COMMIT"):
                    return faults.change(lambda: super(Connection, self).execute(sql))
                return super().execute(sql, *arguments)

        real_connect = sqlite3.connect
        sqlite3.connect = lambda *a, **k: real_connect(*a, factory=Connection, **k)  # type: ignore[assignment]

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: self.change(lambda: real(*arguments, **options))

    def change(self, action: Callable[[], Any]) -> Any:
        """One change of the file system."""
        self.changes += 1
        if self.changes == self.at and self.mode == "before":
            die()
        result = action()
        if self.changes == self.at and self.mode == "after":
            die()
        return result


class _Torn:
    """A file whose chosen write leaves half of its bytes."""

    def __init__(self, stream: io.BufferedWriter, faults: Faults) -> None:
        self._stream, self._faults = stream, faults

    def write(self, data: bytes) -> int:
        self._faults.writes += 1
        if self._faults.mode == "half" and self._faults.writes == self._faults.at:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            die()
        return self._stream.write(data)

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def die() -> None:
    """As a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def stand_in_worker(still_known: int, job: JobSpec, config: AgentConfig, *_: Any) -> dict[str, Any]:
    """Writes a new model as the real worker does, without torch: for crashes of the agent itself."""
    store = ModelStore(config.store, KeyRing(config.keys))
    stored = store.read(job.slot)
    spec = stored.spec
    for name in job.forget:
        spec = spec.with_forgotten(name)
    store.write(CANDIDATE, spec.to_json().encode(), stored.weights)
    if job.update:
        Box(config.home, KeyRing(config.keys), UPDATE).put(bytes.fromhex(job.update), b"the change")
    return {
        "already_forgotten": False,
        "ua_before": {"correct": 10, "samples": 10},
        "ra_before": {"correct": 30, "samples": 30},
        "ua_after": {"correct": still_known, "samples": 10},
        "ra_after": {"correct": 30, "samples": 30},
        "sample_digests": ["ab" * 32],
        "samples": 3,
        "method": job.method,
        "hyperparameters": {},
        "seconds": 0.1,
        "energy": {"joules": 1.0, "source": "estimated", "detail": "", "relative_uncertainty": 1.0},
        "peak_memory_bytes": 1,
    }


def live(config: AgentConfig, asked: Asked, out: Path, at: int, mode: str, real: bool) -> None:
    """Boot, deliver one request, keep what comes back in ``out``, stop; unless a fault comes first."""
    true_time_ns = time.time_ns
    # The images were copied a moment ago and are whole: nothing to wait for.
    inbox._SETTLE_SECONDS = 0.0
    if not real:
        execution.run_worker = partial(stand_in_worker, asked.still_known)  # type: ignore[assignment]
    if mode == "1970":
        beginning, beginning_ns = time.time(), time.time_ns()
        time.time = lambda real=time.time: real() - beginning  # type: ignore[assignment]
        time.time_ns = lambda real=time.time_ns: real() - beginning_ns  # type: ignore[assignment]
    faults = Faults(at, mode)
    faults.install()
    journal = Journal(config.journal)
    signer: CryptoSigner = load_signing_key(config.receipt_key)  # type: ignore[assignment]
    agent = Agent(config, load_trust(config), signer, journal)
    agent.start()
    request = agent_pb2.DeliverRequest(
        request_envelope=asked.envelope,
        request_id="r-1",
        wait_seconds=120.0,
        attempt=asked.attempt,
        patch=asked.patch,
    )
    answer = agent.deliver(request)
    if answer.time_nonce and not answer.receipt_envelope:
        request.time_attestation = HOUSE.time(answer.time_nonce, at=true_time_ns())
        answer = agent.deliver(request)
    with out.open("ab") as stream:  # not through the layer: this is the other side of the wire
        stream.write(len(answer.receipt_envelope).to_bytes(4, "big") + answer.receipt_envelope)
    agent.close()
    journal.close()
    out.with_suffix(".counts").write_text(f"{faults.changes} {faults.writes}")
