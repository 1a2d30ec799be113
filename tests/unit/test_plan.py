"""Plans, waves, abort rules, back-off and quiet hours: arithmetic that needs no ledger."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clue_coordinator.errors import UsageError
from clue_coordinator.models import Device
from clue_coordinator.plan import AbortRule, RolloutPlan, in_order, in_waves, parse_plan
from clue_coordinator.quiet import quiet_until

DAY = 86400.0


def device(name: str, *, online: bool = False) -> Device:
    return Device(device_id=name, online=online, labels={}, retired_at=None)


# Validation


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"canary_share": 0.1, "canary_count": 2}, "not both"),
        ({"growth": 2}, "growth needs a rate"),
        ({"rate": 5, "rate_period_seconds": 0.5}, "at least one second"),
        ({"rate": -1}, "the rollout's rate: "),
        ({"canary_share": 1.1}, "canary share"),
        ({"canary_share": float("nan")}, "canary share"),
        ({"growth": 0.5, "rate": 1}, "growth"),
        ({"growth": float("inf"), "rate": 1}, "growth"),
        ({"max_attempts": 0}, "max attempts"),
        ({"max_attempts": 21}, "max attempts"),
        ({"quiet_from": 1440}, "quiet from"),
        ({"timeout_seconds": -1}, "timeout seconds"),
        ({"backoff_seconds": 1e9}, "backoff seconds"),
        ({"abort_if": [{"state": "SUCCEEDED", "share": 0.1}]}, "abort if.0.state"),
        ({"abort_if": [{"state": "FAILED", "share": 1}]}, "abort if.0.share"),
        ({"abort_if": [{"state": "ANY", "share": 0.1}] * 9}, "abort if"),
        ({"without_samples": "guess"}, "without samples"),
        ({"min_updates": 0}, "min updates"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_plans_that_make_no_sense(data: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_plan(data)
    assert "\n" not in str(caught.value)


def test_a_plan_survives_the_ledger() -> None:
    plan = parse_plan(
        {"canary_share": 0.05, "rate": 50, "growth": 2.0, "abort_if": [{"state": "FAILED", "share": 0.1}]}
    )
    assert RolloutPlan.model_validate(plan.model_dump(mode="json")) == plan
    assert str(plan.abort_if[0]) == "failed>10%"


# Waves

plans = st.builds(
    RolloutPlan,
    canary_count=st.integers(0, 50),
    rate=st.integers(1, 300),
    growth=st.floats(1, 100),
) | st.builds(RolloutPlan, canary_share=st.floats(0, 1))


@given(plans, st.integers(0, 20_000))
@example(RolloutPlan(canary_share=1e-12), 5)
def test_waves_have_every_device_once_and_no_wave_is_larger_than_its_cap(plan: RolloutPlan, devices: int) -> None:
    sizes = plan.waves(devices)
    assert sum(sizes) == devices
    assert all(size > 0 for size in sizes[1:])
    if plan.has_canary:
        expected = plan.canary_count or max(1, math.ceil(plan.canary_share * devices - 1e-9))
        assert sizes[0] == min(devices, expected)
    else:
        assert sizes[0] == 0
    for number, size in enumerate(sizes[1:], 1):
        cap = plan.wave_size(number)
        assert cap is None or size <= cap
        # All but the last are full.
        assert cap is None or number == len(sizes) - 1 or size == cap
    if not plan.rate:
        assert len(sizes) <= 2


def test_waves_by_example() -> None:
    assert RolloutPlan().waves(7) == [0, 7]
    assert RolloutPlan(canary_share=0.05).waves(100) == [5, 95]
    assert RolloutPlan(canary_share=0.05).waves(3) == [1, 2]
    assert RolloutPlan(canary_count=5, rate=10, growth=2).waves(100) == [5, 10, 20, 40, 25]
    assert RolloutPlan(rate=3, growth=1.5).waves(20) == [0, 3, 5, 7, 5]
    assert RolloutPlan(canary_count=9).waves(4) == [4]
    assert RolloutPlan(rate=1_000_000, growth=100).wave_size(500) == 2**31


def test_the_order_begins_with_devices_that_are_online_and_depends_on_the_request() -> None:
    devices = [device(f"d{number}", online=number % 3 == 0) for number in range(30)]
    orders = [[d.device_id for d in in_order(devices, salt)] for salt in ("yard/1", "yard/1", "yard/2")]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    for order in orders:
        assert {int(name[1:]) % 3 for name in order[:10]} == {0}
    canary, rest = in_waves(RolloutPlan(canary_count=4), in_order(devices, "yard/1"))
    assert [d.device_id for d in canary] == orders[0][:4]
    assert [d.device_id for d in rest] == orders[0][4:]


# Abort rules


def plan_with(*rules: tuple[str, float], **more: Any) -> RolloutPlan:
    return RolloutPlan(abort_if=tuple(AbortRule(state=s, share=p) for s, p in rules), **more)


def test_verdicts() -> None:
    plan = plan_with(("FAILED", 0.1), abort_after=20)
    assert plan.verdict({"FAILED": 3, "SUCCEEDED": 16}, enough=False) == ""
    assert plan.verdict({"FAILED": 2, "SUCCEEDED": 18}, enough=False) == ""  # exactly a tenth is not more
    why = plan.verdict({"FAILED": 3, "SUCCEEDED": 17, "QUEUED": 80}, enough=False)
    assert why == "failed>10%: 3 of 20 answers (15 %) FAILED"
    assert plan.verdict({"FAILED": 1}, enough=True).startswith("failed>10%")
    assert plan.verdict({"REJECTED": 50}, enough=True) == ""
    anything = plan_with(("ANY", 0.5))
    assert "4 of 5" in anything.verdict({"FAILED": 1, "REJECTED": 1, "TIMED_OUT": 2, "SUCCEEDED": 1}, enough=False)
    assert anything.verdict({"CANCELED": 9, "REMOVED": 9, "QUEUED": 9}, enough=True) == ""


def test_a_canary_is_judged_even_without_rules() -> None:
    assert RolloutPlan().verdict({"FAILED": 9}, enough=True) == ""
    plan = RolloutPlan(canary_count=10)
    assert plan.verdict({"FAILED": 1, "SUCCEEDED": 9}, enough=True) == ""
    assert plan.verdict({"FAILED": 2, "SUCCEEDED": 8}, enough=True).startswith("failed>10%")
    # The operator's own rules replace it.
    assert plan_with(("REJECTED", 0.1), canary_count=10).verdict({"FAILED": 9}, enough=True) == ""


states = st.sampled_from(["SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED", "QUEUED", "IN_PROGRESS"])


@given(
    st.dictionaries(states, st.integers(0, 1000)),
    st.sampled_from(["FAILED", "REJECTED", "TIMED_OUT", "ANY"]),
    st.integers(0, 99),
    st.integers(0, 50),
)
def test_a_verdict_is_the_share_of_the_answers(counts: dict[str, int], state: str, percent: int, after: int) -> None:
    failures = {s: counts.get(s, 0) for s in ("FAILED", "REJECTED", "TIMED_OUT")}
    answers = sum(failures.values()) + counts.get("SUCCEEDED", 0)
    bad = sum(failures.values()) if state == "ANY" else failures[state]
    plan = plan_with((state, percent / 100), abort_after=after)
    due = answers > 0 and 100 * bad > percent * answers
    assert bool(plan.verdict(counts, enough=True)) == due
    assert bool(plan.verdict(counts, enough=False)) == (due and answers >= after)


# Back-off


@given(st.floats(0, 366 * DAY), st.integers(1, 20))
def test_backoff_doubles_up_to_a_day(seconds: float, attempt: int) -> None:
    plan = RolloutPlan(backoff_seconds=seconds, max_attempts=20)
    pause = plan.backoff(attempt)
    assert plan.backoff(1) == seconds
    assert seconds <= pause <= max(seconds, DAY)
    assert pause == min(seconds * 2 ** (attempt - 1), max(seconds, DAY))


# Quiet hours


def at(zone: str, *moment: int, fold: int = 0) -> float:
    return datetime(*moment, fold=fold, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type, misc]


def quiet(begin: str, end: str) -> RolloutPlan:
    minutes = [60 * int(text[:2]) + int(text[3:]) for text in (begin, end)]
    return RolloutPlan(quiet_from=minutes[0], quiet_until=minutes[1])


def test_quiet_hours_by_the_devices_own_clock() -> None:
    plan, paris = quiet("22:00", "06:00"), {"timezone": "Europe/Paris"}
    assert quiet_until(plan, paris, at("Europe/Paris", 2026, 1, 10, 21, 59, 59)) is None
    assert quiet_until(plan, paris, at("Europe/Paris", 2026, 1, 10, 22)) == at("Europe/Paris", 2026, 1, 11, 6)
    assert quiet_until(plan, paris, at("Europe/Paris", 2026, 1, 11, 0)) == at("Europe/Paris", 2026, 1, 11, 6)
    assert quiet_until(plan, paris, at("Europe/Paris", 2026, 1, 11, 5, 59, 59)) == at("Europe/Paris", 2026, 1, 11, 6)
    assert quiet_until(plan, paris, at("Europe/Paris", 2026, 1, 11, 6)) is None
    noon = quiet("08:00", "18:30")
    assert quiet_until(noon, paris, at("Europe/Paris", 2026, 7, 1, 12)) == at("Europe/Paris", 2026, 7, 1, 18, 30)
    assert quiet_until(noon, paris, at("Europe/Paris", 2026, 7, 1, 19)) is None
    assert quiet_until(quiet("08:00", "08:00"), paris, at("Europe/Paris", 2026, 7, 1, 8)) is None


@pytest.mark.parametrize("labels", [{}, {"timezone": ""}, {"timezone": "Mars/Olympus"}, {"timezone": "../../etc"}])
def test_without_a_zone_that_is_known_it_is_utc(labels: dict[str, str]) -> None:
    plan = quiet("22:00", "06:00")
    assert quiet_until(plan, labels, at("UTC", 2026, 1, 10, 23)) == at("UTC", 2026, 1, 11, 6)
    assert quiet_until(plan, labels, at("UTC", 2026, 1, 10, 21)) is None


def test_the_night_on_which_the_clock_is_put_back() -> None:
    # In Paris 03:00 becomes 02:00: the clock shows 02:30 twice, and both times it is quiet until 02:45.
    zone, plan = "Europe/Paris", quiet("02:00", "02:45")
    for fold in (0, 1):
        now, end = (at(zone, 2026, 10, 25, 2, minute, fold=fold) for minute in (30, 45))
        assert quiet_until(plan, {"timezone": zone}, now) == end
    night = quiet("22:00", "06:00")
    ends = quiet_until(night, {"timezone": zone}, at(zone, 2026, 10, 24, 22))
    assert ends == at(zone, 2026, 10, 25, 6) == at(zone, 2026, 10, 24, 22) + 9 * 3600


def test_the_night_on_which_the_clock_is_put_forward() -> None:
    # In Paris 02:00 becomes 03:00: quiet hours that would end at 02:30 end at that moment.
    zone = "Europe/Paris"
    ends = quiet_until(quiet("22:00", "02:30"), {"timezone": zone}, at(zone, 2026, 3, 28, 23))
    assert ends == at(zone, 2026, 3, 29, 3)
    assert quiet_until(quiet("02:10", "02:50"), {"timezone": zone}, at(zone, 2026, 3, 29, 3)) is None


ZONES = ["Europe/Paris", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata", ""]
# Around the changes of the clock in Paris and St. John's (until 2011 there at one minute past midnight), and anywhere.
CHANGES = [
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 5, 30, tzinfo=UTC),
    datetime(2026, 11, 1, 4, 30, tzinfo=UTC),
    datetime(2008, 3, 9, 3, 31, tzinfo=UTC),
    datetime(2008, 11, 2, 2, 31, tzinfo=UTC),
]
moments = st.one_of(
    st.builds(
        lambda change, offset: (change + timedelta(seconds=offset)).timestamp(),
        st.sampled_from(CHANGES),
        st.floats(-1.5 * DAY, 1.5 * DAY),
    ),
    st.floats(at("UTC", 2005, 1, 1), at("UTC", 2036, 1, 1)),
)


@settings(max_examples=400)
@given(moments, st.integers(0, 1439), st.integers(0, 1439), st.sampled_from(ZONES))
def test_when_quiet_hours_end_it_is_not_quiet(now: float, begin: int, end: int, zone: str) -> None:
    plan = RolloutPlan(quiet_from=begin, quiet_until=end)
    labels = {"timezone": zone} if zone else {}

    def is_quiet(moment: float) -> bool:
        local = datetime.fromtimestamp(moment, ZoneInfo(zone or "UTC"))
        minute = 60 * local.hour + local.minute
        return begin <= minute < end if begin <= end else minute >= begin or minute < end

    ends = quiet_until(plan, labels, now)
    assert (ends is not None) == is_quiet(now)
    if ends is not None:
        assert now < ends <= now + 25 * 3600
        assert not is_quiet(ends)
        # And until then it is, all the time.
        assert all(is_quiet(now + share * (ends - now)) for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.999))
