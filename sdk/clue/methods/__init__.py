"""Unlearning methods, each in its own file, found by name.

A method is a function ``run(job, hyperparameters)`` that changes ``job.student`` in place.
Register your own from outside the package::

    @dataclass(frozen=True)
    class Mine(Hyperparameters):
        lr: float = 1e-3

    @clue.register_method("mine", Mine)
    def run(job: ForgetJob, hp: Mine) -> None: ...

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
from clue.methods._job import ForgetJob
from clue.methods._registry import (
    Hyperparameters,
    available_methods,
    get_method,
    make_hyperparameters,
    register_method,
)

__all__ = [
    "ForgetJob",
    "Hyperparameters",
    "available_methods",
    "get_method",
    "make_hyperparameters",
    "register_method",
]
