"""The update itself: which positions of which tensors changed, and by how much. Free of torch."""

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from clue.errors import UpdateError

MAX_TENSORS = 10_000
MAX_NAME = 512
MAX_COUNT = 2**31 - 1
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one tensor, at n of its positions.

    Attributes:
        shape: of the whole tensor.
        indices: positions in row-major order, int32, shape (n,), strictly ascending.
        values: what is added there, float32, finite, shape (n,).

    Raises:
        UpdateError: any of these does not hold, or n is 0.
    """

    shape: tuple[int, ...]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape, indices, values = self.shape, self.indices, self.values
        if len(shape) > _MAX_DIMENSIONS or any(type(side) is not int or side < 1 for side in shape):
            raise UpdateError(f"a tensor of the update has the impossible shape {shape}")
        if math.prod(shape) > MAX_COUNT:
            raise UpdateError(f"a tensor of the update has more than {MAX_COUNT} elements")
        if indices.dtype != np.int32 or values.dtype != np.float32 or indices.ndim != 1 or values.ndim != 1:
            raise UpdateError("positions must be int32 and values float32, both with one dimension")
        if len(indices) == 0 or len(indices) != len(values):
            raise UpdateError(f"a tensor of the update has {len(indices)} positions for {len(values)} values")
        if indices[0] < 0 or indices[-1] >= math.prod(shape):
            raise UpdateError(f"the update changes a position outside a tensor of shape {shape}")
        if not bool((indices[1:] > indices[:-1]).all()):
            raise UpdateError("positions of the update are not in ascending order, or some come twice")
        if not bool(np.isfinite(values).all()):
            raise UpdateError("the update holds a value that is not finite")
        indices.flags.writeable = values.flags.writeable = False

    @property
    def size(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    def dense(self) -> NDArray[np.float32]:
        """The change of the whole tensor, of its shape, with zeros where nothing changed."""
        whole = np.zeros(self.size, np.float32)
        whole[self.indices] = self.values
        return whole.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Update:
    """What forgetting one class changed in a model.

    Attributes:
        base: digest of the bundle that was changed (64 hex digits); the update fits no other.
        forget_class: name of the class.
        samples: forget images that it was made from, in all; a device may claim any number.
        changes: the changed tensors by their names in the state dict; parameters only.
        contributors: devices whose updates went into it.

    Raises:
        UpdateError: a field is out of its range.
    """

    base: str
    forget_class: str
    samples: int
    changes: Mapping[str, Change]
    contributors: int = 1

    def __post_init__(self) -> None:
        if len(self.base) != 64 or not set(self.base) <= set(string.hexdigits.lower()):
            raise UpdateError("the update does not name its base model by a SHA-256 digest")
        if not 0 < len(self.forget_class) <= MAX_NAME:
            raise UpdateError(f"the update's class name must have 1 to {MAX_NAME} characters")
        for name in ("samples", "contributors"):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= MAX_COUNT:
                raise UpdateError(f"the update's {name} must be a whole number from 1 to {MAX_COUNT}")
        if not 0 < len(self.changes) <= MAX_TENSORS:
            raise UpdateError(f"the update must change 1 to {MAX_TENSORS} tensors, not {len(self.changes)}")
        if any(not 0 < len(name) <= MAX_NAME for name in self.changes):
            raise UpdateError(f"names of tensors in the update must have 1 to {MAX_NAME} characters")
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))

    @property
    def positions(self) -> int:
        """Changed positions of all tensors."""
        return sum(len(change.indices) for change in self.changes.values())

    def norm(self) -> float:
        """Euclidean norm of the change."""
        return math.sqrt(sum(float(np.square(c.values, dtype=np.float64).sum()) for c in self.changes.values()))
