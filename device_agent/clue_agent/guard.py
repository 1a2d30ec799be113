"""The guard: may this candidate replace the model in use, and if not, what to try next.

Accuracies are counts on the device's own holdout, so the policy is applied to what that many images
can show: of n images of the forgotten class at most ``floor(max_ua * n)`` may be recognised, and of n
retained ones at most ``floor(max_ra_drop * n)`` may be lost. One lost image is always allowed where the
policy allows a drop at all: with ten images nothing smaller can be measured.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from clue_protocol.v1 import forget_pb2 as pb

DEFAULT_METHOD = "clue_plus"
# Another way to the same end, for a request that leaves the method to the device.
OTHER_METHOD = "delete"
DEFAULT_TRIES = 3
# Whatever a policy says: each may take the whole time budget, and steps are doubled or halved every time.
MAX_TRIES = 10


@dataclass(frozen=True)
class Attempt:
    """What to try: a method, and a factor for its step size."""

    method: str
    step_scale: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What the guard says.

    Attributes:
        passed: the candidate may be used.
        text: one line with the numbers.
        too_weak: the class is still recognised.
    """

    passed: bool
    text: str
    too_weak: bool = False


def judge(
    ua_after: pb.Accuracy,
    ra_before: pb.Accuracy,
    ra_after: pb.Accuracy,
    policy: pb.Policy,
    *,
    by_ra_alone: bool = False,
) -> Verdict:
    """Apply the policy. An accuracy that was not measured never passes.

    Args:
        ua_after, ra_before, ra_after: counts on the holdout.
        policy: of the request.
        by_ra_alone: a device without any image of the class goes by RA where UA was not measured.
    """
    ua, ra = _share(ua_after), _share(ra_after)
    if (ua_after.samples == 0 and not by_ra_alone) or ra_after.samples == 0 or ra_before.samples != ra_after.samples:
        return Verdict(False, "UA or RA could not be measured; the old model stays in use")
    bound = f"at most {100 * upper_bound(ua_after.correct, ua_after.samples):.0f} % with 95 % confidence"
    if ua_after.correct > _floor(policy.max_ua * ua_after.samples):
        return Verdict(
            False,
            f"UA {100 * ua:.1f} % ({ua_after.correct} of {ua_after.samples}) is above the policy's "
            f"{100 * policy.max_ua:.1f} %; the old model stays in use",
            too_weak=True,
        )
    allowed = _floor(policy.max_ra_drop * ra_after.samples)
    if policy.max_ra_drop > 0:
        allowed = max(1, allowed)
    if ra_before.correct - ra_after.correct > allowed:
        return Verdict(
            False,
            f"RA fell from {100 * _share(ra_before):.1f} % to {100 * ra:.1f} % of {ra_after.samples} images, more than "
            f"the policy's {100 * policy.max_ra_drop:.1f} points; the old model stays in use",
        )
    if ua_after.samples == 0:
        return Verdict(True, f"UA not measured, this device has no holdout image of the class; RA {100 * ra:.1f} %")
    return Verdict(True, f"UA {ua_after.correct} of {ua_after.samples} ({bound}), RA {100 * ra:.1f} %")


def next_attempt(tried: list[tuple[Attempt, bool]], method: str) -> Attempt:
    """What to try after ``tried`` (each with whether it was too weak); ``method`` is the request's, empty for any.

    A candidate that still knows the class needs longer steps, one that damaged others or diverged shorter ones.
    """
    if not tried:
        return Attempt(method or DEFAULT_METHOD)
    last, too_weak = tried[-1]
    if not method and len(tried) >= DEFAULT_TRIES - 1 and last.method != OTHER_METHOD:
        return Attempt(OTHER_METHOD)
    return Attempt(last.method, last.step_scale * (2.0 if too_weak else 0.5))


def upper_bound(correct: int, samples: int) -> float:
    """One-sided 95 % Wilson bound: the true share is lower with that confidence."""
    if samples == 0:
        return 1.0
    z = NormalDist().inv_cdf(0.95)
    p = correct / samples
    centre = p + z * z / (2 * samples)
    spread = z * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples * samples))
    return min(1.0, (centre + spread) / (1 + z * z / samples))


def _share(accuracy: pb.Accuracy) -> float:
    return accuracy.correct / accuracy.samples if accuracy.samples else math.nan


def _floor(value: float) -> int:
    # 0.1 * 10 may come out a hair below 1.
    return math.floor(value + 1e-9)
