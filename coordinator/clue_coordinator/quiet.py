"""Quiet hours on a device's own clock."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from clue_coordinator.plan import RolloutPlan
from clue_protocol.documents import is_timezone

TIMEZONE_LABEL = "timezone"


def quiet_until(plan: RolloutPlan, labels: dict[str, str], now: float) -> float | None:
    """When the quiet hours end that it is now on a device, as UTC seconds; None if it is not.

    The device's label ``timezone`` says where it is; UTC without one. On a day on which the clock
    is changed this goes by what the device's own clock shows, at every moment.
    """
    if plan.quiet_from == plan.quiet_until:
        return None
    return _end(plan.quiet_from, plan.quiet_until, labels.get(TIMEZONE_LABEL, ""), int(now // 60))


@lru_cache(maxsize=4096)
def _end(start: int, end: int, zone_name: str, now: int) -> float | None:
    """As above, with ``now`` in minutes: a fleet's devices share their time zones and ask within one minute."""
    zone, at, quiet = _zone(zone_name), datetime.fromtimestamp(60 * now, UTC), False
    while True:
        local = at.astimezone(zone)
        minute = local.hour * 60 + local.minute
        if not (start <= minute < end if start < end else minute >= start or minute < end):
            return at.timestamp() if quiet else None
        quiet = True
        step = timedelta(minutes=(end - minute) % 1440)
        if (at + step).astimezone(zone).utcoffset() != local.utcoffset():
            # The clock is changed on the way: look at every minute.
            step = timedelta(minutes=1)
        at += step


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    # Without a name, or with one that this machine's tables do not know: UTC.
    return ZoneInfo(name if is_timezone(name) else "UTC")
