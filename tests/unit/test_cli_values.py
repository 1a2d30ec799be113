"""Option values: any text gives a value or one line."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_coordinator import cli_values as values
from clue_coordinator.errors import UsageError
from clue_coordinator.terminal import duration_text, natural
from clue_protocol.v1 import operator_pb2 as pb

# Any text, and texts that are nearly right.
TEXTS = st.text(max_size=40) | st.text(alphabet="0123456789.%/>:-=minhdwfaledrjctoy_ ", max_size=24)


@given(TEXTS)
def test_durations_from_any_text(text: str) -> None:
    try:
        seconds = values.parse_duration("--timeout", text)
    except UsageError as error:
        assert "--timeout" in str(error)
    else:
        assert 0 < seconds < math.inf
        assert text.isascii()


@given(st.integers(1, 10**6), st.sampled_from(["s", "m", "min", "h", "d", "w", "H", "D"]))
def test_durations(number: int, unit: str) -> None:
    one = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}[unit.lower()]
    assert values.parse_duration("--deadline", f" {number} {unit} ") == number * one


@pytest.mark.parametrize(
    "text", ["", "30", "d", "-1d", "0d", "0.0h", "1y", "1d2h", "٣d", "1e3d", "nan d", "9" * 400 + "d", "1.5.5h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        values.parse_duration("--expires", text)


@given(TEXTS)
def test_canaries_from_any_text(text: str) -> None:
    try:
        share, count = values.parse_canary(text)
    except UsageError:
        return
    assert (0 < share <= 1 and count == 0) or (share == 0 and 0 < count < 10**6)


@given(TEXTS)
def test_rates_from_any_text(text: str) -> None:
    try:
        devices, seconds = values.parse_rate(text)
    except UsageError:
        return
    assert devices > 0
    assert seconds >= 1


@given(TEXTS)
def test_rules_from_any_text(text: str) -> None:
    try:
        rule = values.parse_rule(text)
    except UsageError:
        return
    assert 0 <= rule.share < 1


@given(TEXTS)
def test_quiet_hours_from_any_text(text: str) -> None:
    try:
        start, end = values.parse_quiet(text)
    except UsageError:
        return
    assert start != end
    assert 0 <= start < 1440
    assert 0 <= end < 1440


@given(st.lists(TEXTS, max_size=4))
def test_settings_and_labels_from_any_text(texts: list[str]) -> None:
    try:
        data = values.parse_settings(texts)
    except UsageError:
        assert any("=" not in text or text.startswith("=") for text in texts)
    else:
        # JSON as the standard has it, not as Python has it: no NaN.
        assert not data or set(json.loads(data, parse_constant=pytest.fail)) == {t.partition("=")[0] for t in texts}
    try:
        labels = values.parse_labels("--label", texts)
    except UsageError:
        return
    assert all(labels.values())


def test_settings_that_are_nearly_json() -> None:
    deep = "[" * 100_000
    text = values.parse_settings(["a=NaN", "b=Infinity", f"c={deep}", "d=1e400", "e=" + "9" * 5000, "f=1e3"])
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["a"], found["b"], found["c"], found["d"]) == ("NaN", "Infinity", deep, "1e400")
    assert found["f"] == 1000


@given(st.lists(TEXTS, max_size=3))
def test_states_from_any_text(texts: list[str]) -> None:
    for parse in (values.execution_states, values.request_states):
        try:
            states = parse(texts)
        except UsageError as error:
            assert "--state" in str(error)
        else:
            assert len(states) == len(texts)


def test_what_the_help_shows() -> None:
    assert values.parse_canary("5%") == (0.05, 0)
    assert values.parse_canary("3") == (0.0, 3)
    assert values.parse_rate("50/min") == (50, 60)
    assert values.parse_rate("10/h") == (10, 3600)
    assert values.parse_quiet("22:00-06:00") == (1320, 360)
    assert values.parse_rule("timed-out > 2.5%") == pb.AbortRule(state=pb.EXECUTION_STATE_TIMED_OUT, share=0.025)
    assert values.parse_rule("any>0%") == pb.AbortRule(share=0)
    assert values.execution_states(["timed-out", "failed"]) == [
        pb.EXECUTION_STATE_TIMED_OUT,
        pb.EXECUTION_STATE_FAILED,
    ]


@given(st.floats(-10, 1e10))
def test_durations_as_words(seconds: float) -> None:
    assert duration_text(seconds)


def test_words() -> None:
    words = {0.4: "0 s", 59.6: "1 min", 61: "1 min 1 s", 720: "12 min", 12000: "3 h 20 min", 7 * 86400: "7 d"}
    assert {seconds: duration_text(seconds) for seconds in words} == words
    assert sorted(["cam-10", "cam-9", "a", "cam"], key=natural) == ["a", "cam", "cam-9", "cam-10"]
