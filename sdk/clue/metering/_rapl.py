"""Running average power limit (RAPL): the energy counters of x86 CPU packages under /sys/class/powercap."""

from pathlib import Path

from clue.metering._sysfs import SYSFS, read_number, read_text


class RaplSensor:
    """Joules of all CPU packages, or of the platform where only that has a counter.

    OSError if there are no counters, or they are readable for root only (the default since Linux 5.10);
    ValueError if they hold no numbers.
    """

    source = "rapl"
    relative_uncertainty = 0.05
    # A counter of 262 kJ wraps after 17 minutes at 250 W: this is often enough, and costs nothing.
    period = 10.0
    cumulative = True

    def __init__(self, sysfs: Path = SYSFS) -> None:
        # Top-level zones only: intel-rapl:0 contains intel-rapl:0:0. "psys" in turn contains the packages.
        zones = sorted(path for path in sysfs.glob("class/powercap/intel-rapl:*") if path.name.count(":") == 1)
        packages = [zone for zone in zones if read_text(zone / "name") != "psys"]
        self._zones = packages or zones
        if not self._zones:
            raise OSError(f"no RAPL zones under {sysfs / 'class/powercap'}")
        self._spans = [read_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = self._counters()
        self._used = 0
        self.scope = f"{len(packages)} CPU package(s)" if packages else "the platform (psys)"

    def read(self) -> float:
        """Joules since the sensor was made; a counter that wrapped once since the last call is unwrapped."""
        now = self._counters()
        for before, after, span in zip(self._last, now, self._spans, strict=True):
            self._used += after - before if after >= before else after - before + span
        self._last = now
        return self._used / 1e6

    def _counters(self) -> list[int]:
        return [read_number(zone / "energy_uj") for zone in self._zones]
