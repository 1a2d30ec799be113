"""Run one command within its limits, pause it when the device needs it, and say how it ended.

The command runs in a process group of its own. To pause it is to stop that group (SIGSTOP): it keeps
its memory and goes on where it was (SIGCONT). A cap on its CPU time is the same in short: it runs for
a part of every second. All callbacks are made in the calling thread, which also is the one whose end
the kernel ends the command with.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clue_agent.limits.child import Child, last_line
from clue_agent.limits.config import LimitsConfig
from clue_agent.limits.footprint import available_bytes, kernel_oom_kills
from clue_agent.limits.watch import Hold, Watch

_CHECK_EVERY = 0.25
_FAMILY_EVERY = 1.0
_WATCH_EVERY = 2.0
_CPU_PERIOD = 1.0
_NEVER_TOUCHED = 192 << 20
_MOST_LOG_BYTES = 4 << 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Verdict(StrEnum):
    """Why a command is not running any more."""

    FINISHED = "finished"  # by itself, in whatever way: the return code says
    CANCELLED = "cancelled"
    OUT_OF_TIME = "out_of_time"
    OUT_OF_MEMORY = "out_of_memory"
    PAUSED_TOO_LONG = "paused_too_long"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        returncode: as in subprocess, negative for a signal; None if the command was never started.
        verdict: why it ended.
        detail: one line with numbers, for a log or a receipt.
        active_seconds: time in which it was not paused.
        paused_seconds: time on hold, the wait before the start included.
        peak_bytes: the most memory that it and its children were seen to hold.
    """

    returncode: int | None
    verdict: Verdict
    detail: str
    active_seconds: float
    paused_seconds: float
    peak_bytes: int


def run_limited(
    command: Sequence[str],
    *,
    limits: LimitsConfig,
    watch: Watch,
    cancelled: threading.Event,
    environment: Mapping[str, str],
    log_path: Path,
    on_line: Callable[[bytes], None],
    on_hold: Callable[[Hold | None], None],
    nice: int = 10,
    threads: int = 1,
) -> Ended:
    """Run ``command`` to its end, or to the first limit that it breaks; nothing of it is left afterwards.

    It is not started while ``watch`` holds it. All callbacks come from this thread and must return soon: the
    limits are not watched meanwhile. One that raises ends the command, and the exception goes on.

    Args:
        command: program and arguments.
        limits: memory, CPU, time.
        watch: asked every two seconds whether the command may run.
        cancelled: ends the command when set, also while it is paused.
        environment: its environment; the variables for the number of threads are added.
        log_path: file for its stderr, written anew, cut when it has 4 MiB.
        on_line: called with each line of its stdout, without the newline.
        on_hold: called with a hold when one begins or another takes over, with None when the command goes on.
        nice: added to this process's niceness.
        threads: how many OpenMP, MKL and OpenBLAS may use.

    Raises:
        OSError: it cannot be started, or the log cannot be written.
    """
    return _Run(limits, watch, cancelled, on_hold).run(command, environment, log_path, on_line, nice, threads)


class _Stop(Exception):
    """Not an error: carries the verdict out of the loop."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(detail)
        self.verdict = verdict
        self.detail = detail


class _Run:
    """One call of :func:`run_limited`."""

    def __init__(
        self,
        limits: LimitsConfig,
        watch: Watch,
        cancelled: threading.Event,
        on_hold: Callable[[Hold | None], None],
    ) -> None:
        self._limits = limits
        self._watch = watch
        self._cancelled = cancelled
        self._on_hold = on_hold
        self._hold: Hold | None = None
        self._active = self._paused = 0.0
        self._peak = 0
        self._counted_to = time.monotonic()
        self._next_watch = self._next_check = self._next_family = 0.0

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        on_line: Callable[[bytes], None],
        nice: int,
        threads: int,
    ) -> Ended:
        """See :func:`run_limited`."""
        try:
            self._wait_for_leave()
        except _Stop as stop:
            return self._ended(None, stop.verdict, stop.detail)
        memory = self._limits.memory_mib << 20 or available_bytes() * 3 // 4
        oom_kills = kernel_oom_kills()
        variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        with Child(
            command, {**environment, **variables}, log_path, on_line, nice=nice, data=_data_limit(memory)
        ) as child:
            try:
                self._supervise(child, memory)
                stopped = None
            except _Stop as stop:
                stopped = stop
            code = child.end()
        self._count()
        if stopped is not None:
            return self._ended(code, stopped.verdict, stopped.detail)
        if code == -9 and kernel_oom_kills() > oom_kills:
            detail = f"the kernel's out-of-memory killer ended it at {_mib(self._peak)} MiB: the device has no more"
            return self._ended(code, Verdict.OUT_OF_MEMORY, detail)
        return self._ended(code, Verdict.FINISHED, self._post_mortem(code, log_path))

    def _wait_for_leave(self) -> None:
        while True:
            self._check_time_and_hold()
            if self._hold is None:
                return
            self._cancelled.wait(_CHECK_EVERY)

    def _supervise(self, child: Child, memory: int) -> None:
        """Return when the child ended by itself; _Stop when it has to be ended."""
        started = time.monotonic()
        share = self._limits.cpu_percent / 100
        while not child.has_ended():
            now = time.monotonic()
            if now >= self._next_check or self._cancelled.is_set():
                self._next_check = now + _CHECK_EVERY
                self._check_time_and_hold()
                self._check_memory(child, memory)
                child.cut_log(_MOST_LOG_BYTES)
            at = (now - started) % _CPU_PERIOD / _CPU_PERIOD
            child.pause(self._hold is not None or at >= share)
            edge = (share - at if at < share else 1 - at) * _CPU_PERIOD if share < 1 else _CHECK_EVERY
            child.read(max(0.001, min(edge, self._next_check - now)))

    def _check_time_and_hold(self) -> None:
        if self._cancelled.is_set():
            raise _Stop(Verdict.CANCELLED, f"cancelled after {self._active:.1f} s of work")
        self._count()
        now = self._counted_to
        limits = self._limits
        if self._active > limits.budget_seconds:
            raise _Stop(Verdict.OUT_OF_TIME, f"still busy after {limits.budget_seconds:g} s, which is all it may take")
        if self._paused > limits.max_paused_seconds:
            why = f": {self._hold.detail}" if self._hold else ""
            raise _Stop(Verdict.PAUSED_TOO_LONG, f"paused for {limits.max_paused_seconds:g} s in all{why}")
        if now >= self._next_watch:
            self._next_watch = now + _WATCH_EVERY
            before, self._hold = self._hold, self._watch.check()
            if (before and before.kind) != (self._hold and self._hold.kind):
                self._on_hold(self._hold)

    def _count(self) -> None:
        now = time.monotonic()
        step, self._counted_to = now - self._counted_to, now
        if self._hold is None:
            self._active += step
        else:
            self._paused += step

    def _check_memory(self, child: Child, memory: int) -> None:
        now = time.monotonic()
        if now >= self._next_family:
            self._next_family = now + _FAMILY_EVERY
            child.family.refresh()
        held = child.family.bytes_held()
        self._peak = max(self._peak, held)
        if held > memory:
            raise _Stop(Verdict.OUT_OF_MEMORY, f"it held {_mib(held)} MiB of memory, {_mib(memory)} are allowed")

    def _ended(self, code: int | None, verdict: Verdict, detail: str) -> Ended:
        return Ended(code, verdict, detail, self._active, self._paused, self._peak)

    def _post_mortem(self, code: int | None, log_path: Path) -> str:
        spent = f"after {self._active:.1f} s, {_mib(self._peak)} MiB at most"
        if code is not None and code < 0:
            spent = f"ended by signal {-code} {spent}"
        else:
            spent = f"ended with code {code} {spent}"
        last = last_line(log_path) if code else ""
        return f"{spent}: {last}" if last else spent


def _data_limit(memory: int) -> int:
    """RLIMIT_DATA for a process that may hold ``memory`` bytes.

    It counts what is allocated rather than what is used; torch allocates a hundred MiB that it never touches,
    and where a limit makes that fail, its libraries crash or blame the images. So it is set where only a program
    gone wild gets: what it stops is one allocation that would take the device down between two looks.
    """
    return memory + memory // 4 + _NEVER_TOUCHED


def _mib(count: int) -> int:
    return -(-count >> 20)
