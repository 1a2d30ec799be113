"""The fuzzing of ``make fuzz``, briefly; and that it would notice what it looks for."""

import random
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import fuzz
import fuzz_targets

from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.v1 import forget_pb2 as pb


def test_nothing_forged_is_accepted_and_nothing_crashes():
    found = fuzz.run(seed=7, count=12_000)
    assert sum(target.tries for target in found.values()) == 12_000
    for name, target in found.items():
        assert not target.forgeries, name
        assert not target.crashes, name
        assert not target.is_bad, name
        # The damage is not all of one kind, or only one check would have been tried.
        assert len(target.refusals) >= (1 if name == "invitation" else 2), name


def _requests() -> fuzz_targets.Target:
    return fuzz_targets.all_targets()[0]


def test_a_judge_that_verifies_no_signature_is_found_out():
    def judge(data: bytes) -> bytes:
        peek_message(data, REQUEST_TYPE, pb.ForgetRequest)
        return fuzz_targets.payload_of(data)

    found = fuzz.attack(replace(_requests(), judge=judge), 1000, random.Random(1))  # noqa: S311
    assert found.forgeries
    assert found.is_bad


def test_a_judge_that_crashes_is_found_out():
    target = _requests()

    def judge(data: bytes) -> bytes:
        if len(data) < 20:
            raise KeyError("too short")
        return target.judge(data)

    found = fuzz.attack(replace(target, judge=judge), 3000, random.Random(1))  # noqa: S311
    assert "KeyError" in found.crashes[0]
    assert found.is_bad
