"""How well a class is forgotten and everything else kept.

Every metric comes twice: a function on tensors, and a small class that holds its settings and
takes a :class:`ModelView` (a model, its data and its answers, computed once)::

    view = ModelView(model, train_data, test_data, forget_class)
    ClassAccuracies().measure(view).ua.value
    MembershipInference().measure(view).as_dict()

Results are frozen dataclasses with ``as_dict()``; they carry sample counts, and proportions a
95 % Wilson interval.

======================== ======================== ====================================
class                    function                 question
======================== ======================== ====================================
``ClassAccuracies``      ``split_accuracy``       UA, RA, TA
``MembershipInference``  ``membership_inference`` do forget images look trained on?
``LinearProbe``          ``linear_probe``         is the class left in the features?
``Relearning``           ``relearn``              how fast does it come back?
``EnergySeparation``     ``energy_separation``    is the class out of distribution?
``OracleDivergence``     ``oracle_divergence``    does it answer like Retrain?
``CalibrationError``     ``calibration_error``    are retained confidences honest?
``QuantisedAccuracy``    ``quantised_copy``       does 8-bit rounding bring it back?
                         ``average_gap``          mean gap to Retrain in UA, RA, TA, MIA
                         ``judge``                all of them at once
======================== ======================== ====================================
"""

from clue.evaluate._accuracy import (
    Accuracy,
    ClassAccuracies,
    ClassAccuracy,
    evaluate_classes,
    split_accuracy,
)
from clue.evaluate._judge import Judgement, judge
from clue.evaluate._membership import (
    MembershipInference,
    MembershipResult,
    average_gap,
    membership_inference,
    true_class_probability,
)
from clue.evaluate._outputs import (
    CalibrationError,
    CalibrationResult,
    DivergenceResult,
    EnergySeparation,
    OracleDivergence,
    SeparationResult,
    calibration_error,
    energy_separation,
    oracle_divergence,
)
from clue.evaluate._probe import LinearProbe, ProbeResult, first_per_class, linear_probe
from clue.evaluate._quantise import QuantisedAccuracy, QuantisedResult, fake_quantise, quantised_copy
from clue.evaluate._relearn import Relearning, RelearnResult, relearn
from clue.evaluate._view import Answers, ModelView, answers

__all__ = [
    "Accuracy",
    "Answers",
    "CalibrationError",
    "CalibrationResult",
    "ClassAccuracies",
    "ClassAccuracy",
    "DivergenceResult",
    "EnergySeparation",
    "Judgement",
    "LinearProbe",
    "MembershipInference",
    "MembershipResult",
    "ModelView",
    "OracleDivergence",
    "ProbeResult",
    "QuantisedAccuracy",
    "QuantisedResult",
    "RelearnResult",
    "Relearning",
    "SeparationResult",
    "answers",
    "average_gap",
    "calibration_error",
    "energy_separation",
    "evaluate_classes",
    "fake_quantise",
    "first_per_class",
    "judge",
    "linear_probe",
    "membership_inference",
    "oracle_divergence",
    "quantised_copy",
    "relearn",
    "split_accuracy",
    "true_class_probability",
]
