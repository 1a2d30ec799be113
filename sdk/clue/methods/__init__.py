"""Unlearning methods, each in its own file, found by name.

A method is a function ``run(job, hyperparameters)`` that changes ``job.student`` in place.
Register your own from outside the package, with the training loop that the others share or without::

    @dataclass(frozen=True)
    class Unlikely(SgdHyperparameters):
        sharpness: float = 1.0

    @register_method("unlikely", Unlikely)
    def run(job: ForgetJob, hp: Unlikely) -> None:
        def loss(images: Tensor) -> BatchLoss:
            logits = job.student(images)
            p = torch.softmax(hp.sharpness * logits, dim=1)[:, job.forget_class]
            return BatchLoss(p.mean(), logits)

        run_sgd(job, hp, loss)

Every method here sees forget samples only. Where a published method also wants retained
images, its file says what the forget-only form leaves out or puts in their place. The one
exception is the oracle ``retrain``, a yardstick that asks for a folder of retained images.
"""

from clue.methods import boundary_expanding as _boundary_expanding  # noqa: F401
from clue.methods import boundary_shrinking as _boundary_shrinking  # noqa: F401
from clue.methods import clue as _clue  # noqa: F401
from clue.methods import clue_plus as _clue_plus  # noqa: F401
from clue.methods import delete as _delete  # noqa: F401
from clue.methods import gradient_ascent as _gradient_ascent  # noqa: F401
from clue.methods import influence as _influence  # noqa: F401
from clue.methods import lipschitz as _lipschitz  # noqa: F401
from clue.methods import random_labels as _random_labels  # noqa: F401
from clue.methods import random_soft_labels as _random_soft_labels  # noqa: F401
from clue.methods import retrain as _retrain  # noqa: F401
from clue.methods import salun as _salun  # noqa: F401
from clue.methods import selective_synaptic_dampening as _selective_synaptic_dampening  # noqa: F401
from clue.methods import unsir as _unsir  # noqa: F401
from clue.methods._job import EpochRecord, ForgetJob, Progress
from clue.methods._registry import (
    Hyperparameters,
    available_methods,
    get_method,
    make_hyperparameters,
    register_method,
)
from clue.methods._sgd import BatchLoss, SgdHyperparameters, run_sgd

__all__ = [
    "BatchLoss",
    "EpochRecord",
    "ForgetJob",
    "Hyperparameters",
    "Progress",
    "SgdHyperparameters",
    "available_methods",
    "get_method",
    "make_hyperparameters",
    "register_method",
    "run_sgd",
]
