"""The device agent: verifies forget requests, unlearns on the device, swaps the model, signs receipts.

For apps::

    from clue_agent import LiveModel

    with LiveModel() as live:
        print(live.predict("photo.jpg").label)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clue_agent.live import LiveModel as LiveModel
    from clue_agent.loaded import Prediction as Prediction

_EXPORTS = {"LiveModel": "clue_agent.live", "Prediction": "clue_agent.loaded"}

__all__ = sorted(_EXPORTS)  # pyright: ignore


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for: the daemon, which needs none, stays free of torch."""
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'clue_agent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
