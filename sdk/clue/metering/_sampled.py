"""A meter that samples a sensor in a thread of its own."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from clue.metering._estimate import ESTIMATE_UNCERTAINTY, BoardProfile, board_profile, cpu_seconds, estimated
from clue.metering._integrate import GAP_PERIODS, Integral
from clue.metering._reading import ESTIMATED, EnergyReading, IdleBaseline, Interval, above_idle


class Sensor(Protocol):
    """Something that can be asked for power or energy now.

    Attributes:
        source: the name for ``EnergyReading.source``.
        scope: what it sees, in words.
        relative_uncertainty: how far its watts may be off, as a share.
        period: seconds between samples that suit it.
        cumulative: :meth:`read` gives the joules of a counter that only grows; otherwise watts.
    """

    source: str
    scope: str
    relative_uncertainty: float
    period: float
    cumulative: bool

    def read(self) -> float:
        """Watts, or joules of a counter. OSError or ValueError, in one line, if it cannot be read now."""


def elapsed_seconds() -> float:
    """A clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True)
class Clocks:
    """The clocks a meter reads: time awake, time passed, CPU time of this process; all in seconds."""

    awake: Callable[[], float] = time.monotonic
    elapsed: Callable[[], float] = elapsed_seconds
    cpu: Callable[[], float] = cpu_seconds


@dataclass
class _Run:
    """One interval of a meter."""

    integral: Integral
    baseline: IdleBaseline | None
    began: float
    cpu_at_last: float  # CPU clock at the last good sample; at the start before there is one
    cpu_before: float = 0.0  # CPU seconds between the start and the first good sample
    error: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    final: EnergyReading | None = None


class SampledMeter:
    """Integrates what ``sensor`` says, sampled every ``period`` seconds (the sensor's own by default).

    The thread is a daemon, and one sample is taken at the start and one at the end, so that short jobs
    have two. A sample that fails is left out: that makes a gap. If the sensor has fallen silent for more
    than three periods at the end, the rest is estimated from CPU time by ``profile`` and labelled so.
    """

    def __init__(
        self,
        sensor: Sensor,
        period: float | None = None,
        *,
        profile: BoardProfile | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self._sensor = sensor
        self._period = sensor.period if period is None else period
        if not self._period > 0:
            raise ValueError(f"the sampling period must be positive, got {self._period:g} s")
        self._profile = profile or board_profile()
        self._clocks = clocks or Clocks()
        self._lock = threading.Lock()
        self._run: _Run | None = None

    @property
    def source(self) -> str:
        """The name of the sensor."""
        return self._sensor.source

    def start(self, baseline: IdleBaseline | None = None) -> None:
        """Take a sample and go on taking them. An interval that still runs is ended first."""
        if self._run is not None:
            self.stop()
        integral = Integral(self._period, self._sensor.cumulative)
        run = self._run = _Run(integral, baseline, self._clocks.awake(), self._clocks.cpu())
        self._sample(run)
        run.thread = threading.Thread(target=self._keep_sampling, args=(run,), name="clue-energy", daemon=True)
        run.thread.start()

    def read(self) -> EnergyReading:
        """The energy since :meth:`start`, a fresh sample included. RuntimeError before the first start."""
        run = self._current()
        if run.final is not None:
            return run.final
        self._sample(run)
        return self._reading(run)

    def stop(self) -> EnergyReading:
        """Take a last sample, end the thread and return the energy; again the same if called again."""
        run = self._current()
        if run.final is None:
            run.over.set()
            if run.thread is not None:
                run.thread.join()
            self._sample(run)
            run.final = self._reading(run)
        return run.final

    def _current(self) -> _Run:
        if self._run is None:
            raise RuntimeError("the meter was not started: call start() first")
        return self._run

    def _keep_sampling(self, run: _Run) -> None:
        due = self._clocks.awake()
        while True:
            now = self._clocks.awake()
            # After a late sample the schedule starts anew from there: no burst to catch up.
            due = max(due + self._period, now + self._period / 2)
            if run.over.wait(due - now):
                return
            self._sample(run)

    def _sample(self, run: _Run) -> None:
        with self._lock:
            before = self._clocks.awake()
            try:
                value = self._sensor.read()
            except (OSError, ValueError) as error:
                run.error = str(error) or type(error).__name__
                return
            # A reading that takes long belongs to the middle of that time.
            at = (before + self._clocks.awake()) / 2
            cpu = self._clocks.cpu()
            if not run.integral.samples:
                run.cpu_before = cpu - run.cpu_at_last
            run.integral.add(at, self._clocks.elapsed(), value)
            run.cpu_at_last = cpu

    def _reading(self, run: _Run) -> EnergyReading:
        with self._lock:
            integral, clocks = run.integral, self._clocks
            seconds = clocks.awake() - run.began
            uncovered = max(0.0, seconds - integral.seconds)
            cpu = run.cpu_before + clocks.cpu() - run.cpu_at_last
        silent = f"{self.source} fell silent" + (f" ({run.error})" if run.error else "")
        mean = integral.mean_watts
        if mean is not None and uncovered <= GAP_PERIODS * self._period:
            # The ends, shorter than a gap, go on as the rest went.
            return above_idle(self._interval(integral, seconds, mean * uncovered), run.baseline)
        if not integral.seconds:
            return estimated(self._profile, cpu, seconds, run.baseline, note=silent, gap_seconds=uncovered)
        measured = self._interval(integral, seconds, 0.0)
        return above_idle(self._completed(measured, run.baseline, cpu, uncovered, silent), run.baseline)

    def _interval(self, integral: Integral, seconds: float, ends: float) -> Interval:
        """What was measured, and ``ends``: the joules of the moments before the first sample and after the last."""
        detail = f"{self._sensor.scope}; {integral.samples} samples in {seconds:.1f} s"
        if integral.gap_seconds:
            detail += f"; {integral.gap_seconds:.1f} s without a sample"
        return Interval(
            gross_joules=integral.joules + ends,
            seconds=seconds,
            source=self.source,
            detail=detail,
            relative_uncertainty=math.hypot(self._sensor.relative_uncertainty, integral.relative_uncertainty),
            gap_seconds=integral.gap_seconds,
        )

    def _completed(
        self, measured: Interval, baseline: IdleBaseline | None, cpu: float, seconds: float, silent: str
    ) -> Interval:
        """``measured`` and an estimate of the ``seconds`` that no sample covers, idle included as in the samples."""
        same = baseline is not None and baseline.source == self.source
        idle = baseline.watts if baseline is not None and same else self._profile.idle_watts
        rest = cpu * self._profile.watts_per_core + idle * seconds
        gross = measured.gross_joules + rest
        error = measured.gross_joules * measured.relative_uncertainty + rest * ESTIMATE_UNCERTAINTY
        how = f"{seconds:.1f} s of it estimated from {cpu:.1f} CPU s ({self._profile.board})"
        return replace(
            measured,
            gross_joules=gross,
            source=f"{self.source}+{ESTIMATED}",
            detail=f"{measured.detail}; {how}: {silent}",
            relative_uncertainty=error / gross if gross > 0 else ESTIMATE_UNCERTAINTY,
            gap_seconds=measured.gap_seconds + seconds,
        )
