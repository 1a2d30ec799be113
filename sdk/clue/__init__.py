"""CLUE: make an image classifier forget one class, on the device, without any retain data.

Typical use::

    import clue

    bundle = clue.load_bundle("model/")
    birds = clue.data.image_folder("samples/", bundle.spec, only="bird")
    result = clue.forget(bundle.model, birds, forget_class=bundle.spec.class_index("bird"))
    clue.save_bundle("model-without-birds/", result.model, bundle.spec.with_forgotten("bird"))
    print(result.report)

Names are resolved on first use, so that ``import clue`` (and the parts of it that
need no tensors, such as :mod:`clue.spec`) stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clue import data as data
    from clue._forget import ForgetReport as ForgetReport
    from clue._forget import ForgetResult as ForgetResult
    from clue._forget import Progress as Progress
    from clue._forget import forget as forget
    from clue._synthesise_class import synthesise_class as synthesise_class
    from clue.bundle import ModelBundle as ModelBundle
    from clue.bundle import load_bundle as load_bundle
    from clue.bundle import save_bundle as save_bundle
    from clue.errors import ClueError as ClueError
    from clue.errors import ForgetDivergedError as ForgetDivergedError
    from clue.evaluate import Accuracy as Accuracy
    from clue.evaluate import evaluate_classes as evaluate_classes
    from clue.methods import available_methods as available_methods
    from clue.methods import register_method as register_method
    from clue.methods._checkpoint import Checkpoint as Checkpoint
    from clue.methods._checkpoint import FileCheckpoint as FileCheckpoint
    from clue.spec import ModelSpec as ModelSpec

__version__ = "0.1.0"

_EXPORTS = {
    "Accuracy": "clue.evaluate",
    "Checkpoint": "clue.methods._checkpoint",
    "ClueError": "clue.errors",
    "FileCheckpoint": "clue.methods._checkpoint",
    "ForgetDivergedError": "clue.errors",
    "ForgetReport": "clue._forget",
    "ForgetResult": "clue._forget",
    "ModelBundle": "clue.bundle",
    "ModelSpec": "clue.spec",
    "Progress": "clue._forget",
    "available_methods": "clue.methods",
    "evaluate_classes": "clue.evaluate",
    "synthesise_class": "clue._synthesise_class",
    "forget": "clue._forget",
    "load_bundle": "clue.bundle",
    "register_method": "clue.methods",
    "save_bundle": "clue.bundle",
}

__all__ = ["__version__", "data", *sorted(_EXPORTS)]  # pyright: ignore


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name == "data":
        return import_module("clue.data")
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'clue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
