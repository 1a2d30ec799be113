"""The clocks of a device: one that runs on from its start, whatever its date says, and the one with the date."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Instant:
    """Both clocks, read at once.

    Attributes:
        boot_id: names the boot that ``boot_ns`` counts from; another one makes earlier readings worthless.
        boot_ns: since the start of the machine, sleep included.
        device_ns: since 1970, by a clock that anyone may have set.
    """

    boot_id: str
    boot_ns: int
    device_ns: int


class Clock(Protocol):
    """Where the time comes from; tests bring one of their own."""

    def now(self) -> Instant:
        """Read it."""
        ...


class SystemClock:
    """``CLOCK_BOOTTIME`` and ``CLOCK_REALTIME`` of the kernel."""

    def now(self) -> Instant:
        """Read both."""
        return Instant(_boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


def _boot_id() -> str:
    """Read each time: a container that is frozen and thawed elsewhere finds itself in another boot."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
