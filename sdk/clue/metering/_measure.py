"""The energy of a block of code, and of doing nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clue.metering._choose import choose_meter
from clue.metering._estimate import CpuTimeMeter
from clue.metering._reading import EnergyMeter, EnergyReading, IdleBaseline


class EnergyMeasurement:
    """Handle of :func:`measure_energy`; read it after the block."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._reading: EnergyReading | None = None
        self.started = time.perf_counter()

    def reading(self) -> EnergyReading:
        """The energy so far, or of the whole block once it has ended."""
        return self._reading if self._reading is not None else self._meter.read()

    def close(self) -> None:
        """End the interval."""
        self._reading = self._meter.stop()


@contextmanager
def measure_energy(
    meter: EnergyMeter | None = None,
    *,
    baseline_seconds: float = 0.0,
    baseline: IdleBaseline | None = None,
) -> Iterator[EnergyMeasurement]:
    """Measure the energy of a block.

    Args:
        meter: the meter; by default the best one there is.
        baseline_seconds: for how long to measure the idle machine before the block, in seconds.
            With 0 and no ``baseline``, ``joules`` of a measured reading includes idle.
        baseline: idle power that was measured earlier; then none is measured now.
    """
    if baseline_seconds < 0:
        raise ValueError(f"baseline_seconds must not be negative, got {baseline_seconds:g}")
    chosen = meter or choose_meter()
    if baseline is None and baseline_seconds:
        baseline = measure_idle(baseline_seconds, chosen)
    chosen.start(baseline)
    measurement = EnergyMeasurement(chosen)
    try:
        yield measurement
    finally:
        measurement.close()


def measure_idle(seconds: float = 10.0, meter: EnergyMeter | None = None) -> IdleBaseline:
    """Wait for ``seconds`` seconds and measure what the machine takes meanwhile; it should have nothing to do.

    Where energy is an estimate, the figure of the board's profile, without waiting. A meter that falls silent
    meanwhile gives a baseline with a source of its own (``ina219+estimated``), which no meter subtracts.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds:g}")
    chosen = meter or choose_meter()
    if isinstance(chosen, CpuTimeMeter):
        return chosen.idle()
    chosen.start()
    started = time.monotonic()
    time.sleep(seconds)
    reading = chosen.stop()
    seconds = reading.seconds or time.monotonic() - started
    return IdleBaseline(reading.gross_joules / seconds, reading.source, seconds, reading.relative_uncertainty)
