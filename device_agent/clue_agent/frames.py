"""What a camera hands over, as the pixels that a model wants; the same steps as for its training images."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clue.data.folder import read_pixels
from clue.errors import DataError

# A PIL image; a uint8 array (H, W, 3) in the order RGB; a uint8 tensor (3, H, W); or an image file.
Frame: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor | str | Path"


def frame_pixels(frame: Frame, size: tuple[int, int]) -> Tensor:
    """A frame as uint8 RGB (3, height, width), resized to ``size`` if it has another; on the CPU.

    DataError if it is none of the kinds of :data:`Frame`, or the file is unreadable.
    """
    if isinstance(frame, str | Path):
        return read_pixels(Path(frame), size)
    if isinstance(frame, Image.Image):
        return _from_array(np.asarray(_resized(frame.convert("RGB"), size)))
    if isinstance(frame, Tensor):
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3:
            raise _wrong(f"a tensor of {frame.dtype} and shape {tuple(frame.shape)}")
        if tuple(frame.shape[1:]) == size:
            return frame.cpu()
        frame = frame.cpu().permute(1, 2, 0).numpy()
    if not isinstance(frame, np.ndarray):
        raise _wrong(f"a {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise _wrong(f"an array of {frame.dtype} and shape {frame.shape}")
    if frame.shape[:2] == size:
        return _from_array(frame)
    return _from_array(np.asarray(_resized(Image.fromarray(np.ascontiguousarray(frame)), size)))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _from_array(pixels: NDArray[Any]) -> Tensor:
    # A copy: a camera fills its buffer anew, and torch cannot take read-only or mirrored (BGR[..., ::-1]) arrays.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _wrong(what: str) -> DataError:
    return DataError(
        f"cannot read a frame from {what}: give a PIL image, a uint8 array (H, W, 3), "
        "a uint8 tensor (3, H, W) or the path of an image"
    )
