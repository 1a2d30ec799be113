"""The gauge of a battery under /sys/class/power_supply: the whole machine, while it runs on battery."""

from pathlib import Path

from clue.metering._sysfs import SYSFS, read_number, read_text


class BatterySensor:
    """Watts that the batteries of this machine give. OSError if there is none, or it is not discharging.

    Batteries of mice, headsets and the like (scope ``Device``) do not count.
    """

    source = "battery"
    # Gauges average over seconds to a minute and are trimmed for charge, not for power.
    relative_uncertainty = 0.15
    period = 1.0
    cumulative = False

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._batteries = [
            supply
            for supply in sorted(sysfs.glob("class/power_supply/*"))
            if read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device"
        ]
        if not self._batteries:
            raise OSError(f"no battery under {sysfs / 'class/power_supply'}")
        self.scope = f"whole machine by the gauge of {', '.join(battery.name for battery in self._batteries)}"
        self.read()

    def read(self) -> float:
        """Watts. OSError on mains, or if the gauge does not tell (some say 0 while discharging)."""
        discharging = [each for each in self._batteries if read_text(each / "status") == "Discharging"]
        if not discharging:
            raise OSError("the machine does not run on battery")
        watts = sum(_watts(battery) for battery in discharging)
        if watts == 0:
            raise OSError("the battery gauge says 0 W while discharging")
        return watts


def _watts(battery: Path) -> float:
    """Watts of one battery. Drivers disagree on the sign of what flows out: the amount counts."""
    power = battery / "power_now"
    if power.exists():
        return abs(read_number(power)) / 1e6  # microwatts
    return abs(read_number(battery / "voltage_now") * read_number(battery / "current_now")) / 1e12  # uV x uA
