"""What a meter says: energy with and without the idle board, where it comes from, how far it may be off."""

import math
from dataclasses import dataclass
from typing import Protocol

ESTIMATED = "estimated"


@dataclass(frozen=True)
class EnergyReading:
    """Energy of an interval.

    Attributes:
        joules: energy of the work: ``gross_joules`` less what the idle board would have taken. Without
            an idle baseline there is nothing to subtract, the two are equal, and ``detail`` says so.
        source: ``pmic``, ``ina219`` and other INA chips, ``rapl``, ``battery``, or ``estimated``. Where a
            meter fell silent and the rest had to be estimated, both, as in ``ina219+estimated``.
        detail: what was measured and how, in words.
        relative_uncertainty: half-width of the plausible range, as a share of ``joules``.
        gross_joules: all the energy that the source saw, idle included; 0 where a meter does not say.
        idle_watts: idle power that was subtracted; 0 for none.
        gap_seconds: time for which samples are missing, sleep of the machine included. Short of the end of
            the interval it is bridged by a straight line between the samples at its two sides.
        seconds: how long the interval was, sleep of the machine left out.
    """

    joules: float
    source: str
    detail: str
    relative_uncertainty: float
    gross_joules: float = 0.0
    idle_watts: float = 0.0
    gap_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class IdleBaseline:
    """What the machine takes while it does nothing, by one source; see :func:`clue.metering.measure_idle`.

    Attributes:
        watts: mean power.
        source: the source that saw it. A meter with another source does not subtract it, because the
            two see different parts of the machine.
        seconds: how long was measured; 0 for a figure from a table.
        relative_uncertainty: half-width of the plausible range, as a share of ``watts``.
    """

    watts: float
    source: str
    seconds: float = 0.0
    relative_uncertainty: float = 0.0


class EnergyMeter(Protocol):
    """Something that can say how many joules an interval took. One interval at a time."""

    @property
    def source(self) -> str:
        """The ``source`` of its readings while all goes well."""

    def start(self, baseline: IdleBaseline | None = None) -> None:
        """Begin an interval, whose readings will have ``baseline`` subtracted."""

    def read(self) -> EnergyReading:
        """The energy since :meth:`start`; the interval goes on."""

    def stop(self) -> EnergyReading:
        """End the interval and return its energy."""


@dataclass(frozen=True)
class Interval:
    """What a meter found out about an interval, before idle is taken off."""

    gross_joules: float
    seconds: float
    source: str
    detail: str
    relative_uncertainty: float
    gap_seconds: float = 0.0


def above_idle(interval: Interval, baseline: IdleBaseline | None) -> EnergyReading:
    """The reading of ``interval`` with ``baseline`` subtracted, if there is one of the same source.

    A machine that took less than its idle baseline did no work that this source can see: 0 J, never less.
    """
    gross, notes = interval.gross_joules, [interval.detail]
    joules, uncertainty, idle_watts = gross, interval.relative_uncertainty, 0.0
    if baseline is None:
        notes.append("idle included")
    elif baseline.source != interval.source.split("+")[0]:
        notes.append(f"idle included: the baseline is of {baseline.source}")
    else:
        idle_watts, idle = baseline.watts, baseline.watts * interval.seconds
        joules = max(0.0, gross - idle)
        notes.append(f"idle of {idle_watts:.2f} W subtracted")
        # As if the two errors were independent. They share the sensor's scale, so this errs on the wide side.
        error = math.hypot(interval.relative_uncertainty * gross, baseline.relative_uncertainty * idle)
        uncertainty = error / joules if joules > 0 else 1.0
        if joules == 0:
            notes.append("no more than idle")
    return EnergyReading(
        joules=joules,
        source=interval.source,
        detail="; ".join(notes),
        relative_uncertainty=uncertainty,
        gross_joules=gross,
        idle_watts=idle_watts,
        gap_seconds=interval.gap_seconds,
        seconds=interval.seconds,
    )
