"""``[limits]`` in agent.toml."""

import re
from datetime import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_QUIET_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class LimitsConfig(BaseModel):
    """What the worker process may take of the device, and when it has to wait."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Memory in MiB that the worker and all it starts may hold; 0: three quarters of what is available at its start.
    memory_mib: Annotated[int, Field(ge=0)] = 0
    # Share of the time in which the worker may run, on as many cores as it has threads; 100: always.
    cpu_percent: Annotated[int, Field(ge=5, le=100)] = 100
    # Paused at the first temperature in degrees Celsius, goes on at the second.
    max_celsius: Annotated[float, Field(ge=30, le=120)] = 80.0
    resume_celsius: Annotated[float, Field(ge=20, le=120)] = 72.0
    pause_on_undervoltage: bool = True
    # Paused below this charge, but only while a battery feeds the device; 0: never.
    min_battery_percent: Annotated[int, Field(ge=0, le=100)] = 30
    # Paused inside these hours of the device's local time, e.g. "22:00-06:00"; "": never.
    quiet_hours: str = ""
    # MiB that must still be free on the disk when the job is done.
    min_free_mib: Annotated[int, Field(ge=0)] = 200
    # Seconds the worker may take, pauses not counted.
    budget_seconds: Annotated[float, Field(gt=0)] = 3600.0
    # Seconds that all its pauses may last together; after that the job ends.
    max_paused_seconds: Annotated[float, Field(gt=0)] = 86400.0

    @field_validator("quiet_hours")
    @classmethod
    def _quiet_hours(cls, value: str) -> str:
        if value:
            match = _QUIET_HOURS.fullmatch(value)
            if match is None:
                raise ValueError(f"quiet hours are written like 22:00-06:00, not {value!r}")
            if match.group(1, 2) == match.group(3, 4):
                raise ValueError(f"quiet hours {value!r} begin and end at the same time: leave them empty, or fix one")
        return value

    @model_validator(mode="after")
    def _hysteresis(self) -> "LimitsConfig":
        if self.resume_celsius >= self.max_celsius:
            raise ValueError(
                f"resume_celsius ({self.resume_celsius:g}) must be below max_celsius ({self.max_celsius:g})"
            )
        return self

    @property
    def quiet_between(self) -> tuple[time, time] | None:
        """Begin and end of the quiet hours, None without; the end is earlier where they span midnight."""
        match = _QUIET_HOURS.fullmatch(self.quiet_hours)
        if match is None:
            return None
        hour, minute, end_hour, end_minute = map(int, match.groups())
        return time(hour, minute), time(end_hour, end_minute)

    @property
    def reserve_bytes(self) -> int:
        """``min_free_mib`` in bytes, for :func:`clue_agent.limits.check_free`."""
        return self.min_free_mib << 20
