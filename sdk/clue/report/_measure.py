"""What a report says about a model, measured by :mod:`clue.evaluate`; nothing is computed a second way here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clue.evaluate import (
    Accuracy,
    CalibrationError,
    ClassAccuracies,
    EnergySeparation,
    LinearProbe,
    MembershipInference,
    ModelView,
    OracleDivergence,
    QuantisedAccuracy,
    Relearning,
)
from clue.losses import free_energy
from clue.report._charts import Dot
from clue.report._figure import Series

RATES = (("ua", "UA"), ("ra", "RA"), ("ta", "TA"), ("mia", "MIA"))
_STEPS = (5, 40)


@dataclass(frozen=True)
class Figure:
    """A metric: value, 95 % interval, and the images that it rests on; shares in [0, 1]."""

    value: float
    interval: tuple[float, float]
    samples: int

    def percent(self) -> Dot:
        """The same in percent."""
        return Dot(100 * self.value, 100 * self.interval[0], 100 * self.interval[1])


@dataclass(frozen=True)
class MeasuredModel:
    """One of the models of a report.

    Attributes:
        series: how it is named and drawn.
        view: its answers.
        figures: metrics by the names of :meth:`clue.evaluate.Judgement.figures`.
        forget_energy: free energy of test images of the forgotten class, shape (F,), in units of logits.
        retained_energy: of test images of the others, shape (R,).
    """

    series: Series
    view: ModelView
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def forget_energy(self) -> Tensor:
        """See above."""
        return free_energy(self.view.test.of_class(self.view.forget_class).logits)

    @property
    def retained_energy(self) -> Tensor:
        """See above."""
        return free_energy(self.view.test.without_class(self.view.forget_class).logits)

    def rates(self) -> dict[str, float]:
        """UA, RA, TA and MIA in percent."""
        return {key: 100 * self.figures[key].value for key, _ in RATES}


def measure(
    views: Sequence[tuple[Series, ModelView]],
    *,
    depth: bool = False,
    draws: int = 3,
    mia: int = 9000,
    says: Callable[[str], None] = lambda _: None,
) -> list[MeasuredModel]:
    """Measure every view; the last one is Retrain if there are three.

    Args:
        views: the original, the unlearned model, and the Retrain oracle if there is one.
        depth: linear probe and relearning too, which take minutes.
        draws: attackers of the relearning metric.
        mia: members and non-members that the membership attack is fitted to, each, at most.
        says: told what is being done.

    Raises:
        DataError: a class without images, or a model whose output is not finite.
    """
    oracle = views[2][1] if len(views) > 2 else None
    found = []
    for series, view in views:
        says(f"judging the model {series.name}" if series.name != "Retrain" else "judging Retrain")
        accuracy = ClassAccuracies().measure(view)
        figures = {name: _rate(getattr(accuracy, name)) for name in ("ua", "ra", "ta", "ua_test")}
        figures["mia"] = _rate(MembershipInference(limit=mia).measure(view).non_members)
        separation, calibration = EnergySeparation().measure(view), CalibrationError().measure(view)
        images = separation.forget_samples + separation.retained_samples
        figures["energy_auroc"] = Figure(separation.value, separation.interval(), images)
        figures["ece_retained"] = Figure(calibration.value, calibration.interval(), calibration.samples)
        figures["ua_quantised"] = _rate(QuantisedAccuracy().measure(view).ua)
        if oracle is not None and view is not oracle:
            divergence = OracleDivergence(oracle.test).measure(view)
            figures["kl_to_oracle"] = Figure(divergence.value, divergence.interval(), divergence.samples)
        if depth:
            says(f"attacking the model {series.name}; this takes minutes")
            figures |= _depth(view, draws)
        found.append(MeasuredModel(series, view, figures))
    return found


def _depth(view: ModelView, draws: int) -> dict[str, Figure]:
    figures = {"linear_probe": _rate(LinearProbe().measure(view).recall)}
    for name, reset in (("relearn", False), ("relearn_head", True)):
        result = Relearning(steps=_STEPS, draws=draws, reset_head=reset).measure(view)
        for steps in _STEPS:
            samples = result.after[steps][0].samples
            figures[f"{name}_{steps}"] = Figure(result.value(steps), result.interval(steps), samples)
    return figures


def _rate(accuracy: Accuracy) -> Figure:
    return Figure(accuracy.value, accuracy.interval(), accuracy.samples)
