"""An image folder ``<class>/*.png|jpg``, read as a model of a given spec wants it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clue.errors import DataError
from clue.spec import ModelSpec

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images under ``root/<class>/``; labels are the model's class indices.

    An item is a tensor (3, H, W), float32, resized to the spec's input size and normalised.
    Grayscale and transparent images become RGB. ``paths`` lists the files, sorted.
    """

    def __init__(self, root: Path, spec: ModelSpec, files: Sequence[tuple[Path, int]]) -> None:
        self.root = root
        self._spec = spec
        self._files = list(files)
        self._mean = torch.tensor(spec.mean).view(3, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1)

    @property
    def paths(self) -> list[Path]:
        """The image files, in the order of the items."""
        return [path for path, _ in self._files]

    @property
    def labels(self) -> list[int]:
        """The class index of each item."""
        return [label for _, label in self._files]

    def without(self, labels: Collection[int]) -> "ImageFolder":
        """The same images less those of the given class indices."""
        return ImageFolder(self.root, self._spec, [item for item in self._files if item[1] not in labels])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._files[index]
        return (read_image(path, self._spec.input_size) - self._mean) / self._std, label

    def pixels(self, index: int) -> Tensor:
        """An item's image before normalisation: uint8 RGB, shape (3, H, W)."""
        return read_pixels(self._files[index][0], self._spec.input_size)


def image_folder(root: str | Path, spec: ModelSpec, only: str | None = None) -> ImageFolder:
    """Open an image folder.

    Args:
        root: folder with one sub-folder per class.
        spec: gives classes, input size and normalisation.
        only: take this class alone.

    Raises:
        DataError: the folder is missing, holds a class that the model lacks, or no image.
        UnknownClassError: ``only`` is not a class of the model.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"image folder {root} does not exist: give a folder with one sub-folder per class")
    if only is not None:
        spec.class_index(only)
        names = [only] if (root / only).is_dir() else []
    else:
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        unknown = [name for name in names if name not in spec.classes]
        if unknown:
            raise DataError(f"{root / unknown[0]} is not named after a class of the model")
    files = [(path, spec.classes.index(name)) for name in names for path in image_files(root / name)]
    if not files:
        raise DataError(f"there is no .png or .jpg image in {root / only if only else root}")
    return ImageFolder(root, spec, files)


def image_files(folder: Path) -> list[Path]:
    """The .png and .jpg files directly in ``folder``, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_image(source: Path | BinaryIO, size: tuple[int, int]) -> Tensor:
    """An image file as RGB in [0, 1], shape (3, height, width); DataError if it is unreadable."""
    return read_pixels(source, size).float().div_(255.0)


def read_pixels(source: Path | BinaryIO, size: tuple[int, int]) -> Tensor:
    """An image file as uint8 RGB, shape (3, height, width); DataError if it is unreadable."""
    try:
        with Image.open(source) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {source}: {error}") from None
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1)


def loader(data: "Dataset[Any]", batch_size: int = 128) -> "DataLoader[Any]":
    """Batches in a fixed order, for evaluation."""
    return DataLoader(data, batch_size=batch_size)
