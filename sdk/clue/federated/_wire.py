"""An update as bytes: a safetensors file, which holds numbers and no code.

Its metadata describes the update as JSON; tensor number k of it lies there as ``k.values`` (float16 or float32) beside
``k.indices`` (int32), or ``k.bitmap`` (one bit a position, first position in the highest bit) where that is shorter.
Every size is checked before memory of that size is asked for: reading takes at most some twenty times the bytes given.
"""

import json
import math
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clue.errors import UpdateError
from clue.federated._update import MAX_TENSORS, Change, Update

FORMAT = "clue-update/1"
MAX_BYTES = 64 * 1024 * 1024
# Three entries of about 100 bytes for each tensor, and the names.
_MAX_HEADER = 8 * 1024 * 1024
_LENGTH = struct.Struct("<Q")
_HALF_LARGEST = float(np.finfo(np.float16).max)

Precision = Literal["float16", "float32"]


def update_to_bytes(update: Update, precision: Precision = "float16") -> bytes:
    """The update as bytes.

    Args:
        update: any update.
        precision: of the values. ``float16`` takes half the space and rounds every value by at most one part in 2,048
            (below 6e-5 by at most 3e-8); a tensor with a value that does not fit stays ``float32``.
    """
    arrays: dict[str, NDArray[Any]] = {}
    tensors: dict[str, list[int]] = {}
    for number, (name, change) in enumerate(sorted(update.changes.items())):
        half = precision == "float16" and float(np.abs(change.values).max()) <= _HALF_LARGEST
        arrays[f"{number}.values"] = change.values.astype(np.float16 if half else np.float32)
        if _bitmap_bytes(change.size) <= 4 * len(change.indices):
            bits = np.zeros(change.size, np.uint8)
            bits[change.indices] = 1
            arrays[f"{number}.bitmap"] = np.packbits(bits)
        else:
            arrays[f"{number}.indices"] = np.ascontiguousarray(change.indices)
        tensors[name] = list(change.shape)
    described = {
        "format": FORMAT,
        "base": update.base,
        "class": update.forget_class,
        "samples": update.samples,
        "contributors": update.contributors,
        "tensors": tensors,
    }
    return save(arrays, metadata={"clue": json.dumps(described)})


def update_from_bytes(data: bytes, *, max_bytes: int = MAX_BYTES) -> Update:
    """Read an update that may come from anyone.

    Raises:
        UpdateError: it is too large, damaged, or not an update; one line says what is wrong with it.
    """
    if len(data) > max_bytes:
        raise UpdateError(f"the update has {len(data)} bytes, more than the {max_bytes} that are allowed")
    described, arrays = _parts(data)
    try:
        changes: dict[str, Change] = {}
        for number, (name, sides) in enumerate(described["tensors"].items()):
            shape = tuple(sides)
            indices, values = _positions(arrays, number, shape), arrays.pop(f"{number}.values")
            if values.dtype not in (np.float16, np.float32):
                raise UpdateError(f"values of the update are {values.dtype}, not float16 or float32")
            # As bytes the arrays may be unaligned and read-only views of the input: copies are neither.
            changes[name] = Change(shape, indices.copy(), values.astype(np.float32))
        update = Update(
            base=_text(described["base"]),
            forget_class=_text(described["class"]),
            samples=described["samples"],
            changes=changes,
            contributors=described["contributors"],
        )
    except KeyError as error:
        raise UpdateError(f"the update lacks {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UpdateError(f"the update has a field of the wrong type: {error}") from None
    if arrays:
        raise UpdateError(f"the update holds something that it does not describe: {min(arrays)[:40]!r}")
    return update


def _parts(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description, and the arrays by name."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        if length > min(_MAX_HEADER, len(data) - _LENGTH.size):
            raise UpdateError("the update is cut short, or its header is too large")
        header = json.loads(data[_LENGTH.size : _LENGTH.size + length], object_pairs_hook=_once)
        described = json.loads(header["__metadata__"]["clue"], object_pairs_hook=_once)
        if described["format"] != FORMAT:
            raise UpdateError(f"the update is not of the format {FORMAT}")
        if not isinstance(described["tensors"], dict) or not 0 < len(described["tensors"]) <= MAX_TENSORS:
            raise UpdateError(f"the update must change 1 to {MAX_TENSORS} tensors")
        return described, load(data)
    except (struct.error, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpdateError(f"the bytes are not an update: {' '.join(str(error).split())[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which every name comes once: of two, readers could take either."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _positions(arrays: dict[str, NDArray[Any]], number: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
    bitmap = arrays.pop(f"{number}.bitmap", None)
    if bitmap is None:
        return arrays.pop(f"{number}.indices")
    values = arrays[f"{number}.values"]
    if any(type(side) is not int or side < 1 for side in shape):
        raise UpdateError("a tensor of the update has an impossible shape")
    size = math.prod(shape)
    # A longer one would be written as indices; this bounds what it unpacks to by the values that came.
    if bitmap.dtype != np.uint8 or bitmap.shape != (_bitmap_bytes(size),) or len(bitmap) > 4 * values.size:
        raise UpdateError(f"a bitmap of the update does not fit a tensor of shape {shape[:8]}")
    bits = np.unpackbits(bitmap)
    if np.count_nonzero(bits) != values.size or bits[size:].any():
        raise UpdateError(f"a bitmap of the update does not mark {values.size} positions")
    return np.flatnonzero(bits).astype(np.int32)


def _bitmap_bytes(size: int) -> int:
    return -(-size // 8)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
