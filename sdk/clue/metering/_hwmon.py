"""INA power monitors (INA219, INA226, INA260, INA3221 and their relatives) under /sys/class/hwmon."""

import re
from pathlib import Path

from clue.metering._sysfs import SYSFS, read_number, read_text

_CHIP = re.compile(r"ina\d{3,4}")
# Names under which boards label the channel that feeds all others: VDD_IN, POM_5V_IN, INPUT, ...
_SUPPLY = re.compile(r"(?:^|[_ ])(?:in|input|supply)$", re.IGNORECASE)
_UNUSED = re.compile(r"disabled|^nc$", re.IGNORECASE)
# The chips are good to 0.5 % and better; their shunt resistor, and at small currents the resolution, are not.
_UNCERTAINTY = {"ina260": 0.01, "ina3221": 0.03}  # INA260: the shunt is inside, trimmed. INA3221: 40 uV steps.
_UNCERTAINTY_OF_OTHERS = 0.02


class HwmonSensor:
    """Watts of one chip: its power register, or current times voltage of its channels where it has none.

    Channels that are disabled or labelled as not connected are left out. Where a channel is labelled as
    the supply, it alone counts, because the others are parts of it; otherwise the channels are added up.
    OSError or ValueError if ``chip``, a hwmon folder, is no INA or cannot be read.
    """

    period = 0.25
    cumulative = False

    def __init__(self, chip: Path) -> None:
        self.source = read_text(chip / "name")
        if not _CHIP.fullmatch(self.source):
            raise ValueError(f"{chip.name} is no INA power monitor but {self.source or 'nameless'!r}")
        self.relative_uncertainty = _UNCERTAINTY.get(self.source, _UNCERTAINTY_OF_OTHERS)
        channels = [(n, read_text(chip / f"in{n}_label")) for n in _channels(chip)]
        supply = [(n, label) for n, label in channels if _SUPPLY.search(label)]
        self.is_supply = bool(supply)
        used = supply or channels
        self._registers = sorted(chip.glob("power*_input")) if not self.is_supply else []
        self._pairs = [(chip / f"curr{n}_input", chip / f"in{n}_input") for n, _ in used]
        if not self._registers and not self._pairs:
            raise OSError(f"{self.source} in {chip.name} has no channel in use")
        labels = [label or f"channel {n}" for n, label in used] if not self._registers else ["its power register"]
        self.scope = f"{self.source} ({chip.name}): {', '.join(labels)}"
        self.read()

    def read(self) -> float:
        """Watts. A shunt wired the other way round gives negative currents: the amount counts."""
        if self._registers:
            return sum(abs(read_number(register)) for register in self._registers) / 1e6  # microwatts
        products = (read_number(current) * read_number(volts) for current, volts in self._pairs)  # mA x mV
        return sum(abs(product) for product in products) / 1e6


def _channels(chip: Path) -> list[int]:
    """Numbers of the channels that have a current and a voltage and are in use."""
    numbers = sorted(int(path.name.removeprefix("curr").removesuffix("_input")) for path in chip.glob("curr*_input"))
    return [
        n
        for n in numbers
        if (chip / f"in{n}_input").exists()
        and read_text(chip / f"in{n}_enable") != "0"
        and not _UNUSED.search(read_text(chip / f"in{n}_label"))
    ]


def find_hwmon(sysfs: Path = SYSFS) -> HwmonSensor:
    """The INA that measures the supply, by its label; else the first that can be read.

    OSError if there is none. Two chips are never added up: nobody knows how they are wired.
    """
    found = []
    for chip in sorted(sysfs.glob("class/hwmon/hwmon*"), key=lambda path: (len(path.name), path.name)):
        try:
            found.append(HwmonSensor(chip))
        except (OSError, ValueError):
            continue
    if not found:
        raise OSError(f"no INA power monitor that can be read under {sysfs / 'class/hwmon'}")
    return next((sensor for sensor in found if sensor.is_supply), found[0])
