"""The last resort: CPU seconds times what one busy core adds to an idle board, labelled ``estimated``."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clue.metering._reading import ESTIMATED, EnergyReading, IdleBaseline

DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
# A factor of two either way: boards, clocks and workloads differ that much.
ESTIMATE_UNCERTAINTY = 1.0


@dataclass(frozen=True)
class BoardProfile:
    """Power of a kind of board; where the figures are from is in docs/energy.md.

    Attributes:
        board: its name.
        watts_per_core: what one busy core adds: (whole board at full load - idle) / cores.
        idle_watts: the whole board doing nothing; 0 where nobody has measured it.
    """

    board: str
    watts_per_core: float
    idle_watts: float = 0.0


# By the start of the device tree's model string: the first that fits.
_PROFILES = {
    "Raspberry Pi 5": (1.4, 2.6),
    "Raspberry Pi Compute Module 5": (1.4, 2.6),
    "Raspberry Pi 4": (0.95, 2.7),
    "Raspberry Pi Compute Module 4": (0.95, 2.7),
    "Raspberry Pi 3": (0.75, 1.65),
    "Raspberry Pi Zero 2": (0.45, 0.6),
}
# Watts per core of machines that no profile knows; their idle power may be anything.
_GENERIC_WATTS_PER_CORE = {"x86_64": 10.0, "aarch64": 1.5}


def board_profile(model_file: Path = DEVICE_TREE_MODEL) -> BoardProfile:
    """The profile of the board that the device tree names, or a generic one."""
    try:
        board = model_file.read_text(errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    for prefix, (watts_per_core, idle_watts) in _PROFILES.items():
        if board.startswith(prefix):
            return BoardProfile(board, watts_per_core, idle_watts)
    machine = platform.machine()
    return BoardProfile(f"generic {machine} profile", _GENERIC_WATTS_PER_CORE.get(machine, 5.0))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def estimated(
    profile: BoardProfile,
    cpu: float,
    seconds: float,
    baseline: IdleBaseline | None = None,
    *,
    note: str = "",
    gap_seconds: float = 0.0,
) -> EnergyReading:
    """The estimate for ``cpu`` CPU seconds in ``seconds`` seconds.

    The model has no idle part: ``joules`` is the work alone. ``gross_joules`` adds the idle board, by
    ``baseline`` whatever its source, or else by ``profile``.
    """
    watts, idle = profile.watts_per_core, baseline.watts if baseline else profile.idle_watts
    detail = f"{cpu:.1f} CPU s x {watts:g} W per busy core ({profile.board})"
    detail += f"; idle of {idle:.2f} W not counted" if idle else "; idle power unknown, not counted"
    return EnergyReading(
        joules=cpu * watts,
        source=ESTIMATED,
        detail=f"{detail}; {note}" if note else detail,
        relative_uncertainty=ESTIMATE_UNCERTAINTY,
        gross_joules=cpu * watts + idle * seconds,
        idle_watts=idle,
        gap_seconds=gap_seconds,
        seconds=seconds,
    )


class CpuTimeMeter:
    """CPU seconds of this process and its ended children, times the watts of one busy core of this board."""

    source = ESTIMATED

    def __init__(
        self,
        model_file: Path = DEVICE_TREE_MODEL,
        *,
        cpu_clock: Callable[[], float] = cpu_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = board_profile(model_file)
        self._cpu_clock, self._clock = cpu_clock, clock
        self._baseline: IdleBaseline | None = None
        self._cpu_start = self._start = 0.0

    def start(self, baseline: IdleBaseline | None = None) -> None:
        """Remember the CPU time."""
        self._baseline = baseline
        self._cpu_start, self._start = self._cpu_clock(), self._clock()

    def read(self) -> EnergyReading:
        """The estimate since :meth:`start`."""
        cpu, seconds = self._cpu_clock() - self._cpu_start, self._clock() - self._start
        return estimated(self.profile, cpu, seconds, self._baseline)

    def stop(self) -> EnergyReading:
        """The same as :meth:`read`: there is nothing to end."""
        return self.read()

    def idle(self) -> IdleBaseline:
        """The idle power of the board's profile; takes no time."""
        return IdleBaseline(self.profile.idle_watts, ESTIMATED, relative_uncertainty=ESTIMATE_UNCERTAINTY)
