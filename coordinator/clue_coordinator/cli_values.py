"""Option values as people write them: ``7d``, ``5%``, ``50/min``, ``failed>10%``, ``22:00-06:00``."""

import json
import math
import re

from clue_coordinator.errors import UsageError
from clue_coordinator.plain import rule_state
from clue_protocol.v1 import operator_pb2 as pb

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_PERIODS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0, "day": 86400.0}
_RULE = re.compile(r"(failed|rejected|timed[_-]out|any)\s*>\s*([0-9]+(?:\.[0-9]+)?)\s*%", re.IGNORECASE)


def parse_duration(option: str, text: str) -> float:
    """Seconds of ``90s``, ``30m``, ``12h``, ``7d``, ``2w``; more than 0."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    unit = _SECONDS.get(found[2].lower()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise UsageError(f"{option}: '{text}' is no time: write 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * unit


def parse_canary(text: str) -> tuple[float, int]:
    """Share and number of devices that go first: ``5%`` is (0.05, 0), ``3`` is (0, 3)."""
    percent = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*%", text.strip())
    if percent and 0 < float(percent[1]) <= 100:
        return float(percent[1]) / 100, 0
    if re.fullmatch(r"[0-9]{1,6}", text.strip()) and int(text) > 0:
        return 0.0, int(text)
    raise UsageError(f"--canary: '{text}' is neither a share such as 5% (above 0, up to 100%) nor a number of devices")


def parse_rate(text: str) -> tuple[int, float]:
    """Devices and seconds: ``50/min`` is (50, 60)."""
    found = re.fullmatch(r"([0-9]{1,6})\s*/\s*([a-z]+)", text.strip(), re.IGNORECASE)
    period = _PERIODS.get(found[2].lower()) if found else None
    if found is None or period is None or int(found[1]) == 0:
        raise UsageError(f"--rate: '{text}' is no rate: write devices per time, such as 50/min, 10/h or 2/s")
    return int(found[1]), period


def parse_rule(text: str) -> pb.AbortRule:
    """``failed>10%``; also rejected, timed_out, and any for all three together."""
    found = _RULE.fullmatch(text.strip())
    if found is None or float(found[2]) >= 100:
        raise UsageError(f"--abort-if: cannot read '{text}': write failed>10%, rejected>.., timed_out>.. or any>..")
    return pb.AbortRule(state=rule_state(found[1].upper().replace("-", "_")), share=float(found[2]) / 100)


def parse_quiet(text: str) -> tuple[int, int]:
    """Minutes after midnight: ``22:00-06:00`` is (1320, 360)."""
    found = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})", text.strip())
    hours = [int(part) for part in found.groups()] if found else []
    if not hours or hours[0] > 23 or hours[2] > 23 or hours[1] > 59 or hours[3] > 59 or hours[:2] == hours[2:]:
        raise UsageError(f"--quiet: '{text}' is no span of a day: write two different times, such as 22:00-06:00")
    return hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]


def parse_labels(option: str, texts: list[str]) -> dict[str, str]:
    """``key=value`` of each text."""
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"{option} takes key=value, got '{text}'")
        labels[key] = value
    return labels


def parse_settings(settings: list[str]) -> str:
    """``name=value`` of each text as one JSON object; values are JSON where they can be, else text."""
    values: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, got '{setting}'")
        try:
            values[name] = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            values[name] = text
    return json.dumps(values, sort_keys=True) if values else ""


def _no_constant(name: str) -> object:
    # NaN and Infinity are Python's, not JSON's.
    raise ValueError(name)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(text)
    return number


def execution_states(texts: list[str]) -> list[pb.ExecutionState.ValueType]:
    """States of executions by name."""
    return [pb.ExecutionState.Value(f"EXECUTION_STATE_{_state(text, pb.ExecutionState.keys())}") for text in texts]


def request_states(texts: list[str]) -> list[pb.RequestState.ValueType]:
    """States of requests by name."""
    return [pb.RequestState.Value(f"REQUEST_STATE_{_state(text, pb.RequestState.keys())}") for text in texts]


def state_words(keys: list[str]) -> list[str]:
    """The states in the keys of their enumeration, without what those begin with."""
    return [key.split("_STATE_", 1)[1] for key in keys if not key.endswith("UNSPECIFIED")]


def _state(text: str, keys: list[str]) -> str:
    known, word = state_words(keys), text.upper().replace("-", "_")
    if word not in known:
        raise UsageError(f"--state: there is no state '{text}': {', '.join(known).lower()}")
    return word
