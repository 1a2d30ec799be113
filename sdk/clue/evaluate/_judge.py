"""Every metric of a model at once: what ``clue bench`` and ``clue evaluate`` print."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clue.evaluate._accuracy import ClassAccuracies, ClassAccuracy
from clue.evaluate._membership import MembershipInference, MembershipResult
from clue.evaluate._outputs import (
    CalibrationError,
    CalibrationResult,
    DivergenceResult,
    EnergySeparation,
    OracleDivergence,
    SeparationResult,
)
from clue.evaluate._probe import LinearProbe, ProbeResult
from clue.evaluate._quantise import QuantisedAccuracy, QuantisedResult
from clue.evaluate._relearn import Relearning, RelearnResult
from clue.evaluate._view import Answers, ModelView

STEPS = (5, 40)


@dataclass(frozen=True)
class Judgement:
    """The results of all metrics; ``divergence`` holds one for each oracle."""

    accuracy: ClassAccuracy
    membership: MembershipResult
    probe: ProbeResult
    relearn: RelearnResult
    relearn_head: RelearnResult
    separation: SeparationResult
    calibration: CalibrationResult
    quantised: QuantisedResult
    divergence: tuple[DivergenceResult, ...]

    def figures(self) -> dict[str, float | None]:
        """One number for each metric: rates in percent, AUROC and ECE in [0, 1], KL in nats; None is unknown."""
        return {
            "ua": _percent(self.accuracy.ua.value),
            "ra": _percent(self.accuracy.ra.value),
            "ta": _percent(self.accuracy.ta.value),
            "ua_test": _percent(self.accuracy.ua_test.value),
            "mia": _percent(self.membership.value),
            "linear_probe": _percent(self.probe.value),
            **{f"relearn_{steps}": _percent(self.relearn.value(steps)) for steps in STEPS},
            **{f"relearn_head_{steps}": _percent(self.relearn_head.value(steps)) for steps in STEPS},
            "energy_auroc": self.separation.value,
            "ece_retained": self.calibration.value,
            "ua_quantised": _percent(self.quantised.ua.value),
            "ta_quantised": _percent(self.quantised.ta.value),
            "kl_to_oracle": statistics.fmean(one.value for one in self.divergence) if self.divergence else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Counts and intervals of every metric, as shares."""
        found = {
            **self.accuracy.as_dict(),
            "mia": self.membership.as_dict(),
            "linear_probe": self.probe.as_dict(),
            "relearn": self.relearn.as_dict(),
            "relearn_head": self.relearn_head.as_dict(),
            "energy_separation": self.separation.as_dict(),
            "calibration": self.calibration.as_dict(),
            "quantised": self.quantised.as_dict(),
        }
        if self.divergence:
            found["kl_to_oracle"] = self.divergence[0].as_dict()
        if len(self.divergence) > 1:
            found["kl_to_oracles"] = [one.as_dict() for one in self.divergence]
        return found


def judge(
    view: ModelView, oracles: Sequence[Answers] = (), *, per_class: int = 1000, draws: int = 3, mia: int = 9000
) -> Judgement:
    """Measure everything about the view's model.

    Args:
        view: the model and its images.
        oracles: answers of Retrain oracles on the test images of the forget class, for the KL divergence.
        per_class: training images of each class that the linear probe sees, at most.
        draws: attackers of the relearning metric.
        mia: members and non-members that the membership attack is fitted to, each, at most.

    Raises:
        DataError: a class without images, or a model whose output is not finite.
    """
    return Judgement(
        accuracy=ClassAccuracies().measure(view),
        membership=MembershipInference(limit=mia).measure(view),
        probe=LinearProbe(per_class=per_class).measure(view),
        relearn=Relearning(steps=STEPS, draws=draws).measure(view),
        relearn_head=Relearning(steps=STEPS, draws=draws, reset_head=True).measure(view),
        separation=EnergySeparation().measure(view),
        calibration=CalibrationError().measure(view),
        quantised=QuantisedAccuracy().measure(view),
        divergence=tuple(OracleDivergence(oracle).measure(view) for oracle in oracles),
    )


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100.0 * share
