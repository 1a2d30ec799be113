"""When the worker must wait: what the sensors say, turned into one decision that does not flutter."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from clue_agent.limits.conditions import Sensors, Throttled
from clue_agent.limits.config import LimitsConfig

# A clock before this day, which is older than this software, was never set: few Pis have a battery for theirs.
CLOCK_IS_SET_AFTER = datetime(2025, 1, 1)
# Starting vcgencmd costs a process each time.
_VCGENCMD_EVERY = 5.0
# The pause itself takes the load away and lets the voltage rise, so the end of the alarm alone proves nothing.
_REST_AFTER_UNDERVOLTAGE = 60.0
_BATTERY_HYSTERESIS = 5


class HoldKind(StrEnum):
    """Why the worker has to wait."""

    UNDERVOLTAGE = "undervoltage"
    HOT = "hot"
    BATTERY = "battery"
    QUIET_HOURS = "quiet_hours"


@dataclass(frozen=True)
class Hold:
    """The worker has to wait; ``detail`` says why in one line, with numbers."""

    kind: HoldKind
    detail: str


class Watch:
    """Asks the sensors whether the worker may run. One object a job, or one for the daemon; not thread-safe.

    Args:
        config: the thresholds.
        sensors: the readers.
        local_time: the device's local time, for the quiet hours only.
        monotonic: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        config: LimitsConfig,
        sensors: Sensors | None = None,
        *,
        local_time: Callable[[], datetime] = datetime.now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._sensors = sensors or Sensors()
        self._local_time = local_time
        self._monotonic = monotonic
        self._hot = False
        self._low = False
        self._alarm_at: float | None = None
        self._flags: Throttled | None = None
        self._flags_at: float | None = None

    def check(self) -> Hold | None:
        """None if the worker may run now, else the first reason that stands in its way."""
        # All are asked each time: each keeps the state of its own hysteresis.
        holds = (self._undervoltage(), self._temperature(), self._battery(), self._quiet_hours())
        return next((hold for hold in holds if hold is not None), None)

    def _undervoltage(self) -> Hold | None:
        if not self._config.pause_on_undervoltage:
            return None
        now = self._monotonic()
        if self._voltage_is_low(now):
            self._alarm_at = now
            return Hold(HoldKind.UNDERVOLTAGE, "the supply voltage is too low: use a stronger power supply or cable")
        if self._alarm_at is None or now - self._alarm_at >= _REST_AFTER_UNDERVOLTAGE:
            return None
        return Hold(
            HoldKind.UNDERVOLTAGE,
            f"the supply voltage was too low {now - self._alarm_at:.0f} s ago: "
            f"goes on after {_REST_AFTER_UNDERVOLTAGE:.0f} s without",
        )

    def _voltage_is_low(self, now: float) -> bool:
        alarm = self._sensors.voltage_alarm()
        if alarm is not None:
            return alarm
        if self._flags_at is None or now - self._flags_at >= _VCGENCMD_EVERY:
            self._flags_at, self._flags = now, self._sensors.throttled()
        return self._flags is not None and bool(self._flags & Throttled.UNDER_VOLTAGE)

    def _temperature(self) -> Hold | None:
        reading = self._sensors.temperature()
        if reading is None:
            self._hot = False
            return None
        self._hot = reading.celsius >= (self._config.resume_celsius if self._hot else self._config.max_celsius)
        if not self._hot:
            return None
        return Hold(
            HoldKind.HOT,
            f"{reading.zone} is at {reading.celsius:.1f} degrees Celsius: at most {self._config.max_celsius:g}, "
            f"goes on below {self._config.resume_celsius:g}",
        )

    def _battery(self) -> Hold | None:
        least = self._config.min_battery_percent
        charge = self._sensors.discharging_battery() if least else None
        if charge is None:
            self._low = False
            return None
        # Never above 100, or a full battery would not do.
        enough = min(least + _BATTERY_HYSTERESIS, 100) if self._low else least
        self._low = charge < enough
        if not self._low:
            return None
        return Hold(HoldKind.BATTERY, f"the battery is at {charge} % and discharging: at least {least} % are asked for")

    def _quiet_hours(self) -> Hold | None:
        between = self._config.quiet_between
        if between is None:
            return None
        now = self._local_time()
        # With a clock that was never set the hours mean nothing, and a device that is switched off every night
        # would start inside them each time.
        if now < CLOCK_IS_SET_AFTER:
            return None
        begin, end = between
        at = now.time()
        inside = begin <= at < end if begin < end else at >= begin or at < end
        if not inside:
            return None
        return Hold(HoldKind.QUIET_HOURS, f"it is {at:%H:%M}, inside the quiet hours {self._config.quiet_hours}")
