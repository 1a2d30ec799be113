"""Joules from samples: the trapezoid rule over watts, or differences of an energy counter."""

import math
from dataclasses import dataclass

# An interval between samples longer than this many periods is a gap.
GAP_PERIODS = 3.0


@dataclass
class Integral:
    """A running integral over samples, in constant memory.

    Attributes:
        period: seconds between samples when all goes well.
        cumulative: samples are joules of a counter; otherwise they are watts.
        joules: the integral so far.
        seconds: time between the first sample and the last, without sleep of the machine.
        gap_seconds: the sum of the intervals longer than three periods, sleep included.
        bridged_seconds: the same without sleep: what was integrated on trust.
        samples: how many there were.
    """

    period: float
    cumulative: bool = False
    joules: float = 0.0
    seconds: float = 0.0
    gap_seconds: float = 0.0
    bridged_seconds: float = 0.0
    samples: int = 0
    _last: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _mean: float = 0.0
    _squares: float = 0.0

    def add(self, awake: float, elapsed: float, value: float) -> None:
        """A sample: seconds of a clock that stops while the machine sleeps, of one that does not, and the value."""
        if self.samples:
            last_awake, last_elapsed, last_value = self._last
            step = max(0.0, awake - last_awake)
            gained = value - last_value if self.cumulative else step * (value + last_value) / 2
            self.joules += gained
            self.seconds += step
            passed = max(step, elapsed - last_elapsed)
            if passed > GAP_PERIODS * self.period:
                self.gap_seconds += passed
                self.bridged_seconds += step
        self._last = (awake, elapsed, value)
        self.samples += 1
        off = value - self._mean  # Welford's running mean and variance
        self._mean += off / self.samples
        self._squares += off * (value - self._mean)

    @property
    def mean_watts(self) -> float | None:
        """Mean power so far; None before there is any."""
        if self.seconds > 0:
            return self.joules / self.seconds
        return self._mean if self.samples and not self.cumulative else None

    @property
    def relative_uncertainty(self) -> float:
        """What sampling adds: the standard error of the mean of the samples, and the share that gaps have.

        A counter misses nothing between two samples, so for one it is 0.
        """
        if self.cumulative or self.samples < 2 or not self._mean:
            return 0.0
        deviation = math.sqrt(self._squares / (self.samples - 1))
        gaps = self.bridged_seconds / self.seconds if self.seconds > 0 else 0.0
        return math.hypot(deviation / math.sqrt(self.samples) / abs(self._mean), gaps)
