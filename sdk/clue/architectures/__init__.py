"""Build a model from its spec: ``resnet20``, ``torchvision:NAME`` or an allowed factory."""

import re
from collections.abc import Callable, Collection
from importlib import import_module

from torch import nn

from clue.architectures.resnet20 import resnet20
from clue.architectures.small_vit import small_vit
from clue.errors import BundleError
from clue.spec import ModelSpec

_BUILT_IN: dict[str, Callable[..., nn.Module]] = {"resnet20": resnet20, "small_vit": small_vit}
_VISION_TRANSFORMER = re.compile(r"small_vit\Z|torchvision:vit_")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


def build_model(spec: ModelSpec, *, allowed_factories: Collection[str] = ()) -> nn.Module:
    """A freshly initialised model of the spec's architecture; BundleError if there is none.

    A vision transformer is built for the spec's input size, which must be square and a multiple of
    its patches. Importable factories are called as ``factory(num_classes=N, **arguments)`` and only if
    their name is in ``allowed_factories``.
    """
    name = spec.architecture
    arguments = _image_size(spec) | dict(spec.arguments) | {"num_classes": len(spec.classes)}
    if name in _BUILT_IN:
        factory = _BUILT_IN[name]
    elif name.startswith("torchvision:"):
        return _torchvision_model(name.removeprefix("torchvision:"), arguments)
    elif _FACTORY.match(name):
        if name not in allowed_factories:
            raise BundleError(
                f"the bundle asks to run the code {name!r}: add it to the allowed factories if you trust it"
            )
        factory = _import_factory(name)
    else:
        raise BundleError(
            f"unknown architecture {name!r}: use {', '.join(sorted(_BUILT_IN))}, torchvision:NAME or module:function"
        )
    try:
        return factory(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise BundleError(f"cannot build {name!r}: {error}") from None


def _image_size(spec: ModelSpec) -> dict[str, object]:
    """``image_size`` of a vision transformer: its position embedding fits one input size only."""
    if not _VISION_TRANSFORMER.match(spec.architecture) or "image_size" in spec.arguments:
        return {}
    height, width = spec.input_size
    if height != width:
        raise BundleError(f"{spec.architecture!r} takes square images only, the input size is {height} x {width}")
    return {"image_size": height}


def _torchvision_model(name: str, arguments: dict[str, object]) -> nn.Module:
    from clue._torchvision import torchvision

    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise BundleError(f"torchvision has no classifier called {name!r}")
    try:
        model: nn.Module = models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise BundleError(f"cannot build torchvision:{name}: {error}") from None
    return model


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module, _, function = name.partition(":")
    try:
        factory = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BundleError(f"cannot import the architecture {name!r}: {error}") from None
    if not callable(factory):
        raise BundleError(f"the architecture {name!r} is not callable")
    return factory  # type: ignore[no-any-return]
