"""Quiet hours on a device's own clock."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from clue_coordinator.plan import RolloutPlan

TIMEZONE_LABEL = "timezone"


def quiet_until(plan: RolloutPlan, labels: dict[str, str], now: float) -> float | None:
    """When the quiet hours end that it is now on a device, as UTC seconds; None if it is not.

    The device's label ``timezone`` says where it is; UTC without one. A day on which the clock
    is changed is read as the device's own clock shows it.
    """
    start, end = plan.quiet_from, plan.quiet_until
    if start == end:
        return None
    local = datetime.fromtimestamp(now, UTC).astimezone(_zone(labels.get(TIMEZONE_LABEL, "")))
    minute = local.hour * 60 + local.minute
    inside = start <= minute < end if start < end else minute >= start or minute < end
    if not inside:
        return None
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    days = 1 if start > end and minute >= start else 0
    ends = (midnight + timedelta(days=days)).replace(hour=end // 60, minute=end % 60)
    # Where the clock was put back within the quiet hours the end may seem to be past.
    return max(ends.timestamp(), now + 1.0)


def is_timezone(name: str) -> bool:
    """True if this machine knows the time zone."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, KeyError):
        # A name that this machine's tables do not know.
        return ZoneInfo("UTC")
