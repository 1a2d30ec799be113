"""How much energy a job took, by the best meter this machine has.

One interface, :class:`EnergyMeter`, and :func:`choose_meter`, which takes the first that works of: the
power-management chip of a Raspberry Pi 5, an INA power monitor, the CPU's RAPL counters, a battery gauge,
and last an estimate from CPU time. Every :class:`EnergyReading` names its source and how far it may be off;
docs/energy.md says what each source sees. The usual way in is :func:`measure_energy`.
"""

from clue.metering._choose import choose_meter
from clue.metering._estimate import CpuTimeMeter
from clue.metering._measure import EnergyMeasurement, measure_energy, measure_idle
from clue.metering._reading import EnergyMeter, EnergyReading, IdleBaseline
from clue.metering._sampled import SampledMeter, Sensor

__all__ = [
    "CpuTimeMeter",
    "EnergyMeasurement",
    "EnergyMeter",
    "EnergyReading",
    "IdleBaseline",
    "SampledMeter",
    "Sensor",
    "choose_meter",
    "measure_energy",
    "measure_idle",
]
