"""What the sensors say: temperature, supply voltage, battery. A sensor that is missing says nothing."""

import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

_SYS = Path("/sys/class")
# Zones that tell how hot the work makes the chip; a Wi-Fi module or a charger has limits of its own.
_CHIP_ZONES = ("cpu", "soc", "pkg", "core", "gpu")
_PLAUSIBLE_CELSIUS = range(-40, 151)


class Throttled(IntFlag):
    """What ``vcgencmd get_throttled`` reports; 16 bits further up: the same, some time since boot."""

    UNDER_VOLTAGE = 1 << 0
    FREQUENCY_CAPPED = 1 << 1
    THROTTLED = 1 << 2
    SOFT_TEMPERATURE_LIMIT = 1 << 3
    UNDER_VOLTAGE_OCCURRED = 1 << 16
    FREQUENCY_CAPPED_OCCURRED = 1 << 17
    THROTTLED_OCCURRED = 1 << 18
    SOFT_TEMPERATURE_LIMIT_OCCURRED = 1 << 19


def run_vcgencmd() -> str:
    """The output of ``vcgencmd get_throttled``; OSError or subprocess.SubprocessError where there is none."""
    done = subprocess.run(
        ["vcgencmd", "get_throttled"], stdin=subprocess.DEVNULL, capture_output=True, timeout=2, check=True
    )
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True)
class Temperature:
    """The hottest zone of the chip."""

    zone: str
    celsius: float


@dataclass(frozen=True)
class Sensors:
    """Readers of the device's sensors; ``sys_class`` and ``vcgencmd`` can be others for a test."""

    sys_class: Path = _SYS
    vcgencmd: Callable[[], str] = run_vcgencmd

    def temperature(self) -> Temperature | None:
        """The hottest thermal zone of the chip, of all zones if none is called after a chip; None without zones."""
        zones = []
        for folder in _folders(self.sys_class / "thermal", "thermal_zone*"):
            celsius = _number(folder / "temp") / 1000
            # Some drivers answer with an error, others with absolute zero.
            if math.isfinite(celsius) and round(celsius) in _PLAUSIBLE_CELSIUS:
                zones.append(Temperature(_text(folder / "type") or folder.name, celsius))
        chip = [zone for zone in zones if any(word in zone.zone.lower() for word in _CHIP_ZONES)]
        return max(chip or zones, key=lambda zone: zone.celsius, default=None)

    def voltage_alarm(self) -> bool | None:
        """Under-voltage as the kernel's ``rpi_volt`` sees it; None without that driver.

        It polls the firmware every two seconds and keeps an alarm that came in between, which a look now and
        then at ``vcgencmd`` would miss. It needs no rights either.
        """
        for folder in _folders(self.sys_class / "hwmon", "hwmon*"):
            if _text(folder / "name") == "rpi_volt":
                alarm = _number(folder / "in0_lcrit_alarm")
                return None if math.isnan(alarm) else bool(alarm)
        return None

    def throttled(self) -> Throttled | None:
        """The firmware's flags (``throttled=0x50005``); None where ``vcgencmd`` is missing, not allowed or broken."""
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            return Throttled(int(self.vcgencmd().strip().removeprefix("throttled="), 16))
        return None

    def discharging_battery(self) -> int | None:
        """Charge in percent of the battery that feeds the device now, the fullest of several; None if none does.

        A battery whose driver cannot tell whether it is discharging, like many fuel gauges on UPS boards,
        counts as not discharging.
        """
        charges = []
        for folder in _folders(self.sys_class / "power_supply", "*"):
            if _text(folder / "type") not in ("Battery", "UPS") or _text(folder / "scope") == "Device":
                continue  # a mains adapter; the battery of a mouse
            charge = _number(folder / "capacity")
            if _text(folder / "status") == "Discharging" and 0 <= charge <= 100:
                charges.append(int(charge))
        return max(charges, default=None)


def _folders(root: Path, pattern: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(root.glob(pattern))


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _number(path: Path) -> float:
    with suppress(ValueError):
        return float(_text(path))
    return math.nan
