"""How a request goes through its devices: canary, waves, abort rules, attempts, quiet hours.

Plain data and arithmetic; nothing here touches the ledger.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clue_coordinator.errors import UsageError
from clue_coordinator.models import Device
from clue_coordinator.states import UNSUCCESSFUL, ExecutionState

Seconds = Annotated[float, Field(ge=0, le=366 * 86400, allow_inf_nan=False)]
Minute = Annotated[int, Field(ge=0, lt=1440)]
# What a canary without a rule of its own is judged by.
_CANARY_SHARE = 0.10
_ANSWERS = (ExecutionState.SUCCEEDED, *UNSUCCESSFUL)


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AbortRule(_Plan):
    """Abort when more than ``share`` of the answers are ``state``."""

    state: Literal["FAILED", "REJECTED", "TIMED_OUT", "ANY"]
    share: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

    def __str__(self) -> str:
        return f"{self.state.lower()}>{100 * self.share:g}%"


class RolloutPlan(_Plan):
    """As kept with a request; see ``Rollout`` in operator.proto."""

    canary_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    canary_count: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    rate: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    rate_period_seconds: Seconds = 60.0
    growth: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 1.0
    abort_if: Annotated[tuple[AbortRule, ...], Field(max_length=8)] = ()
    abort_after: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    timeout_seconds: Seconds = 0.0
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 1
    backoff_seconds: Seconds = 60.0
    quiet_from: Minute = 0
    quiet_until: Minute = 0
    without_samples: Literal["reject", "aggregate"] = "reject"
    min_updates: Annotated[int, Field(ge=1, le=100)] = 3

    @model_validator(mode="after")
    def _consistent(self) -> "RolloutPlan":
        if self.canary_share and self.canary_count:
            raise ValueError("a canary is a share or a number of devices, not both")
        if self.growth > 1 and not self.rate:
            raise ValueError("growth needs a rate that can grow")
        if self.rate and self.rate_period_seconds < 1:
            raise ValueError("the period of a rate is at least one second")
        return self

    @property
    def has_canary(self) -> bool:
        """True if some devices go first."""
        return bool(self.canary_share or self.canary_count)

    def rules(self) -> tuple[AbortRule, ...]:
        """The abort rules; a canary without any is judged by failures above a tenth."""
        if self.abort_if or not self.has_canary:
            return self.abort_if
        return (AbortRule(state="FAILED", share=_CANARY_SHARE),)

    def wave_size(self, number: int) -> int | None:
        """Devices that may begin per period while wave ``number`` (from 1) is the newest; None without a rate."""
        if not self.rate:
            return None
        try:
            return min(math.ceil(self.rate * self.growth ** (number - 1)), 2**31)
        except OverflowError:
            return 2**31

    def waves(self, devices: int) -> list[int]:
        """Number of devices in each wave; the first entry is the canary, 0 without one."""
        share = max(1, math.ceil(self.canary_share * devices - 1e-9)) if self.canary_share else 0
        canary = min(devices, self.canary_count or share)
        sizes, left = [canary], devices - canary
        while left > 0:
            size = min(left, self.wave_size(len(sizes)) or left)
            sizes.append(size)
            left -= size
        return sizes

    def verdict(self, counts: dict[str, int], *, enough: bool) -> str:
        """Why to abort, or nothing. ``enough``: look at the rules however few have answered."""
        answers = sum(counts.get(state, 0) for state in _ANSWERS)
        if not answers or (answers < self.abort_after and not enough):
            return ""
        for rule in self.rules():
            states = UNSUCCESSFUL if rule.state == "ANY" else (rule.state,)
            bad = sum(counts.get(state, 0) for state in states)
            if bad > rule.share * answers + 1e-9:
                word = "did not succeed" if rule.state == "ANY" else rule.state
                return f"{rule}: {bad} of {answers} answers ({100 * bad / answers:.0f} %) {word}"
        return ""

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after attempt ``attempt`` (from 1); at most a day."""
        return float(min(self.backoff_seconds * 2 ** (attempt - 1), max(86400.0, self.backoff_seconds)))


def parse_plan(data: dict[str, object]) -> RolloutPlan:
    """A plan from plain data; UsageError says what is wrong with it."""
    try:
        return RolloutPlan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]).replace("_", " ")
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"the rollout's {where}: {message}" if where else message) from None


def in_order(devices: Iterable[Device], salt: str) -> list[Device]:
    """Who goes first: those that are online, and among them a choice that ``salt`` makes, not always the same ones."""

    def rank(device: Device) -> tuple[bool, bytes]:
        return not device.online, hashlib.sha256(f"{salt}/{device.device_id}".encode()).digest()

    return sorted(devices, key=rank)


def in_waves(plan: RolloutPlan, devices: Sequence[Device]) -> list[list[Device]]:
    """The devices of each wave; the first entry is the canary, empty without one."""
    found, start = [], 0
    for size in plan.waves(len(devices)):
        found.append(list(devices[start : start + size]))
        start += size
    return found
