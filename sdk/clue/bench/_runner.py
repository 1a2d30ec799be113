"""Starts worker processes, one at a time, and passes their progress on."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from clue.bench._job import WorkerJob
from clue.errors import ClueError


class Reporter(Protocol):
    """Hears what a bench does."""

    def line(self, text: str) -> None:
        """Something begins, or is worth knowing."""

    def progress(self, title: str, fraction: float, eta_seconds: float, detail: str) -> None:
        """A run called ``title`` has done ``fraction`` of its work; ``eta_seconds`` may be NaN."""

    def finished(self, title: str) -> None:
        """The run called ``title`` has ended."""


class Quiet:
    """A :class:`Reporter` that shows nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def progress(self, title: str, fraction: float, eta_seconds: float, detail: str) -> None:
        """Nothing."""

    def finished(self, title: str) -> None:
        """Nothing."""


class Runner:
    """Starts one worker process at a time.

    Args:
        folder: for the job and its result.
        timeout: seconds that one run may take; trainings may take as long as they need.
        reporter: hears of progress.
    """

    def __init__(self, folder: Path, timeout: float, reporter: Reporter) -> None:
        self._folder = folder
        self._timeout = timeout
        self._reporter = reporter

    def __call__(self, job: WorkerJob, title: str) -> dict[str, Any]:
        """The measures of a job, or ``{"error": ...}``."""
        self._reporter.line(title)
        asked, answered = self._folder / "job.json", self._folder / "result.json"
        asked.write_text(job.to_json(), encoding="utf-8")
        answered.unlink(missing_ok=True)
        command = [sys.executable, "-m", "clue.bench.worker", str(asked), str(answered)]
        with (self._folder / "errors.txt").open("w+", encoding="utf-8", errors="replace") as errors:
            status = self._run(command, _environment(job), errors, title, job.task != "train")
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
        if status is None:
            return {"error": f"the run took longer than {self._timeout:g} s and was stopped"}
        if status != 0 or not answered.is_file():
            return {"error": f"the worker ended with status {status}: {last}"}
        measured: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return measured

    def certainly(self, job: WorkerJob, title: str) -> dict[str, Any]:
        """The measures of a job that everything else rests on; ClueError if they cannot be had."""
        measured = self(job, title)
        if "error" in measured:
            raise ClueError(f"{title}: {measured['error']}")
        return measured

    def _run(
        self, command: list[str], environment: dict[str, str], errors: Any, title: str, limited: bool
    ) -> int | None:
        """The exit status, or None where the time was up."""
        pace = _Pace()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            expired = threading.Event()

            def stop() -> None:
                expired.set()
                process.kill()

            clock = threading.Timer(self._timeout, stop)
            if limited:
                clock.start()
            try:
                for text in process.stdout or ():
                    self._pass_on(text, title, pace)
                status = process.wait()
            finally:
                clock.cancel()
                process.kill()  # no effect on one that has ended; a bench that is stopped leaves none behind
                self._reporter.finished(title)
        return None if expired.is_set() else status

    def _pass_on(self, text: str, title: str, pace: "_Pace") -> None:
        try:
            said = json.loads(text)
            if "line" in said:
                self._reporter.line(f"{title}: {said['line']}")
                return
            fraction = float(said["fraction"])
            loss = f", loss {said['loss']:.3f}" if said.get("loss") is not None else ""
            self._reporter.progress(
                title, fraction, pace.eta(fraction), f"epoch {said['epoch']}/{said['epochs']}{loss}"
            )
        except (ValueError, KeyError, TypeError):
            return  # a library that prints is no reason to stop


class _Pace:
    """How long the rest will take, by what was done since the first report: a resumed run starts in the middle."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def eta(self, fraction: float) -> float:
        now = time.monotonic()
        self._first = self._first or (now, fraction)
        since, start = self._first
        return (now - since) * (1 - fraction) / (fraction - start) if fraction > start else float("nan")


def _environment(job: WorkerJob) -> dict[str, str]:
    environment = dict(os.environ)
    if job.threads:
        # Read when the numerical libraries load, which is before the worker can say so itself.
        environment |= {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    return environment
