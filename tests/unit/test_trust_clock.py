"""The truth table of expiry, and that no clock and no order of events gets around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_protocol.trust.clock import (
    DRIFT_PPM,
    MAX_ATTESTATION_AGE,
    ClockReading,
    TimeKnowledge,
    Verdict,
    judge_expiry,
)
from clue_protocol.trust.times import LATEST, SECOND, from_timestamp, to_timestamp

VALID, EXPIRED, WAITING = Verdict.VALID, Verdict.EXPIRED, Verdict.WAITING_FOR_TIME
TIMES = st.integers(0, LATEST)
CLOCKS = st.sampled_from([0, 60 * SECOND, 3_786_912_000 * SECOND]) | TIMES


@pytest.mark.parametrize(
    ("expires", "lower", "upper", "device", "synchronised", "verdict"),
    [
        # e <= L
        (10, 10, None, 0, False, EXPIRED),
        (10, 10, None, 5, True, EXPIRED),
        (10, 11, 9, 5, True, EXPIRED),
        # e > U
        (10, 5, 9, 0, False, VALID),
        (10, 5, 9, 99, True, VALID),
        # L < e <= U
        (10, 5, 10, 7, True, WAITING),
        (10, 9, 11, 0, False, WAITING),
        # no U
        (10, 5, None, 4, True, WAITING),
        (10, 5, None, 5, True, VALID),
        (10, 5, None, 9, True, VALID),
        (10, 5, None, 10, True, WAITING),
        (10, 5, None, 4, False, WAITING),
        (10, 5, None, 7, False, WAITING),
        (10, 5, None, 99, False, WAITING),
    ],
)
def test_the_truth_table(
    expires: int, lower: int, upper: int | None, device: int, synchronised: bool, verdict: Verdict
) -> None:
    assert judge_expiry(expires, ClockReading(lower, upper, device, synchronised)) is verdict


@given(now=TIMES, expires=TIMES, behind=TIMES, trip=st.none() | TIMES, device=CLOCKS, synchronised=st.booleans())
def test_true_bounds_are_never_judged_wrongly(
    now: int, expires: int, behind: int, trip: int | None, device: int, synchronised: bool
) -> None:
    """Where L <= now <= U, nothing expired is valid, unless the device's clock was set wrongly and nobody was asked."""
    reading = ClockReading(max(now - behind, 0), None if trip is None else now + trip, device, synchronised)
    verdict = judge_expiry(expires, reading)
    if verdict is EXPIRED:
        assert expires <= now
    if verdict is VALID and not (trip is None and synchronised and device < now):
        assert now < expires


@given(expires=TIMES, lower=TIMES, upper=st.none() | TIMES, device=CLOCKS, other=CLOCKS)
def test_a_clock_that_nobody_set_decides_nothing(
    expires: int, lower: int, upper: int | None, device: int, other: int
) -> None:
    one, two = (judge_expiry(expires, ClockReading(lower, upper, clock, False)) for clock in (device, other))
    assert one is two


@given(expires=TIMES, lower=TIMES, upper=st.none() | TIMES, device=CLOCKS, synchronised=st.booleans(), more=TIMES)
def test_expired_is_for_good(
    expires: int, lower: int, upper: int | None, device: int, synchronised: bool, more: int
) -> None:
    if judge_expiry(expires, ClockReading(lower, upper, device, synchronised)) is EXPIRED:
        assert judge_expiry(expires, ClockReading(lower + more, None, 0, True)) is EXPIRED


@given(expires=TIMES, now=TIMES, device=CLOCKS, synchronised=st.booleans())
def test_waiting_ends_with_an_answer(expires: int, now: int, device: int, synchronised: bool) -> None:
    """An answer without delay decides, whatever was known before."""
    knowledge = TimeKnowledge.after_start(0, 0).learn_answer(now, 0, 0)
    verdict = judge_expiry(expires, knowledge.reading(0, device, synchronised))
    assert verdict is (VALID if now < expires else EXPIRED)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pass", "broadcast", "answer", "restart"]),
        st.integers(0, 3 * MAX_ATTESTATION_AGE),
        st.integers(0, 3600 * SECOND),
    ),
    max_size=30,
)


@given(start=st.integers(0, LATEST // 2), steps=STEPS, drift=st.floats(-1, 1))
def test_the_truth_lies_between_the_bounds(start: int, steps: list[tuple[str, int, int]], drift: float) -> None:
    """With a boot clock that is wrong by up to the allowed drift, and messages that are delayed at will."""
    now, boot = start, 0
    knowledge = TimeKnowledge.after_start(start, 0)

    def wait(elapsed: int) -> None:
        nonlocal now, boot
        now += elapsed
        boot += round(elapsed / (1 + drift * (DRIFT_PPM - 1) / 1e6))

    lowest = 0
    for kind, elapsed, delay in steps:
        if kind == "pass":
            wait(elapsed)
        elif kind == "broadcast":
            sent = now
            wait(elapsed)
            knowledge = knowledge.learn(sent, boot)
        elif kind == "answer":
            asked = boot
            wait(delay // 2)
            answered = now
            wait(delay - delay // 2)
            knowledge = knowledge.learn_answer(answered, boot, asked)
        else:
            stored = knowledge.lower(boot)
            now, boot = now + elapsed, 0
            knowledge = TimeKnowledge.after_start(stored, boot)
        lower, upper = knowledge.lower(boot), knowledge.upper(boot)
        assert lowest <= lower <= now
        assert upper is None or now <= upper
        lowest = lower


def test_an_old_attestation_takes_nothing_back() -> None:
    knowledge = TimeKnowledge.after_start(1000, 0).learn_answer(2000, 10, 0)
    assert knowledge.learn(1500, 20).lower(20) == knowledge.lower(20) >= 2000
    assert knowledge.learn_answer(1500, 20, 15).lower(20) == knowledge.lower(20)


def test_an_answer_is_good_for_a_day() -> None:
    knowledge = TimeKnowledge.after_start(0, 0).learn_answer(1000, 0, 0)
    day = MAX_ATTESTATION_AGE
    assert knowledge.upper(day) == 1000 + day + day * DRIFT_PPM // 10**6
    assert knowledge.upper(day + 1) is None
    assert knowledge.lower(day) == 1000 + day - day * DRIFT_PPM // 10**6


def test_a_boot_clock_that_runs_backwards_gives_nothing() -> None:
    knowledge = TimeKnowledge.after_start(1000, 50).learn_answer(1000, 50, 50)
    assert knowledge.lower(0) == 1000
    assert knowledge.upper(0) is None


@given(TIMES)
def test_times_survive_protobuf(time_ns: int) -> None:
    assert from_timestamp(to_timestamp(time_ns)) == time_ns


@pytest.mark.parametrize("time_ns", [-1, LATEST + 1])
def test_times_out_of_range(time_ns: int) -> None:
    with pytest.raises(ValueError, match="1970"):
        to_timestamp(time_ns)
