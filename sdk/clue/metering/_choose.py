"""Which meter this machine gets."""

from collections.abc import Callable
from pathlib import Path

from clue.metering._battery import BatterySensor
from clue.metering._estimate import DEVICE_TREE_MODEL, CpuTimeMeter, board_profile
from clue.metering._hwmon import find_hwmon
from clue.metering._pmic import PmicSensor, read_pmic_adc
from clue.metering._rapl import RaplSensor
from clue.metering._reading import EnergyMeter
from clue.metering._sampled import SampledMeter, Sensor
from clue.metering._sysfs import SYSFS


def choose_meter(
    sysfs: Path = SYSFS,
    *,
    pmic_adc: Callable[[], str] = read_pmic_adc,
    model_file: Path = DEVICE_TREE_MODEL,
) -> EnergyMeter:
    """The best meter that works here and now: PMIC, INA, RAPL, battery gauge, and last the estimate.

    Args:
        sysfs: where sysfs is mounted.
        pmic_adc: returns the output of ``vcgencmd pmic_read_adc``; OSError where there is none.
        model_file: the device tree's name of the board.
    """
    sensors: tuple[Callable[[], Sensor], ...] = (
        lambda: PmicSensor(pmic_adc),
        lambda: find_hwmon(sysfs),
        lambda: RaplSensor(sysfs),
        lambda: BatterySensor(sysfs),
    )
    for sensor in sensors:
        try:
            return SampledMeter(sensor(), profile=board_profile(model_file))
        except (OSError, ValueError):
            continue
    return CpuTimeMeter(model_file)
