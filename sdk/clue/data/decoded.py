"""A labelled image data set, decoded once into a uint8 file that is mapped, not loaded.

A data set may be a folder with ``train/<class>/`` and ``test/<class>/``, a folder that holds
such a folder or an archive of CIFAR-10, or the zip archive itself. Decoding keeps one image in
memory at a time; reading maps the file, so that a process touches only the images it uses.

The cache is named by content: a data set that was moved or copied is the same data set, one
with a changed image is another.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clue._lock import locked
from clue.data.cifar10 import ARCHIVE
from clue.data.folder import IMAGE_SUFFIXES, image_files
from clue.errors import DataError
from clue.spec import ModelSpec

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
_FORMAT = "clue-images/2"
_DONE = "done.json"


@dataclass(frozen=True)
class ImageSource:
    """Where the images of a data set are, before any is decoded.

    Attributes:
        location: the folder that holds ``train`` and ``test``, or the archive.
        members: names by (split, class), sorted; relative to the folder, or in the archive.
    """

    location: Path
    members: dict[tuple[str, str], list[str]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted; the order of the logits."""
        return tuple(sorted({name for _, name in self.members}))

    @cached_property
    def key(self) -> str:
        """Digest of every file's split, class, name and content; it names the cache of the images.

        A folder is read whole; an archive holds a check sum of each member.
        """
        digest = hashlib.sha256(_FORMAT.encode())
        with self._checksums() as checksum:
            for (split, name), members in sorted(self.members.items()):
                for member in members:
                    digest.update(json.dumps([split, name, Path(member).name, checksum(member)]).encode())
        return digest.hexdigest()[:16]

    @contextmanager
    def _checksums(self) -> "Iterator[Callable[[str], str]]":
        if self.location.is_dir():
            yield lambda name: hashlib.sha256((self.location / name).read_bytes()).hexdigest()
            return
        with zipfile.ZipFile(self.location) as archive:
            yield lambda name: f"{archive.getinfo(name).CRC:08x}-{archive.getinfo(name).file_size}"

    @contextmanager
    def opener(self) -> "Iterator[Callable[[str], IO[bytes]]]":
        """A function that opens a member for reading."""
        if self.location.is_dir():
            yield lambda name: (self.location / name).open("rb")
            return
        with zipfile.ZipFile(self.location) as archive:
            yield lambda name: archive.open(name)


def open_source(path: Path) -> ImageSource:
    """Find the images under ``path``; DataError if there is no train and test split of the same classes."""
    root = _locate(path)
    names = _archive_names(root) if root.is_file() else _folder_names(root)
    members: dict[tuple[str, str], list[str]] = {}
    for name in names:
        parts = name.split("/")
        # Whatever stands above train/ and test/ in an archive is of no interest.
        if len(parts) >= 3 and parts[-3] in SPLITS and Path(name).suffix.lower() in IMAGE_SUFFIXES:
            members.setdefault((parts[-3], parts[-2]), []).append(name)
    train, test = ({name for split, name in members if split == wanted} for wanted in SPLITS)
    if not train or train != test:
        odd = sorted(train ^ test)
        problem = f"class {odd[0]!r} is in one of them only" if odd else "no image was found"
        raise DataError(f"{path} must hold train/<class>/ and test/<class>/ with the same classes: {problem}")
    if len(train) < 2:
        raise DataError(f"{path} holds one class only: forgetting needs another to keep")
    return ImageSource(root, {pair: sorted(found) for pair, found in members.items()})


def find_root(folder: Path) -> Path | None:
    """The folder with ``train/`` and ``test/`` at or right below ``folder``, or its archive; None if there is none."""
    for candidate in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if all((candidate / split).is_dir() for split in SPLITS):
            return candidate
    return folder / ARCHIVE if (folder / ARCHIVE).is_file() else None


def _locate(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a folder with train/ and test/, or a zip archive")
    root = find_root(path)
    if root is None:
        raise DataError(f"{path} holds neither train/ and test/ nor {ARCHIVE}")
    return root


def _archive_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _folder_names(root: Path) -> list[str]:
    found = []
    for split in SPLITS:
        for folder in sorted(child for child in (root / split).iterdir() if child.is_dir()):
            if folder.name.startswith("."):
                continue
            files = image_files(folder)
            if not files:
                raise DataError(f"{folder} holds no .png or .jpg image: fill it, or remove the class everywhere")
            found += [f"{split}/{folder.name}/{file.name}" for file in files]
    return found


class MappedImages(Dataset[tuple[Tensor, int]]):
    """Images of one split, or some of them: items are (normalised float32 (3, H, W), class index).

    The pixels stay in the mapped file until an item is asked for.
    """

    def __init__(self, pixels: NDArray[np.uint8], labels: Tensor, spec: ModelSpec, rows: Tensor | None = None) -> None:
        self._pixels = pixels
        self._spec = spec
        self._rows = torch.arange(len(labels)) if rows is None else rows
        self._all_labels = labels
        self._mean = torch.tensor(spec.mean).view(3, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1)

    @property
    def labels(self) -> Tensor:
        """Class index of every item, int64, shape (N,)."""
        return self._all_labels[self._rows]

    @property
    def pixels(self) -> Tensor:
        """All items as uint8 RGB, shape (N, 3, H, W), copied into memory."""
        return torch.from_numpy(self._pixels[self._rows.numpy()])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = int(self._rows[index])
        pixels = torch.from_numpy(np.array(self._pixels[row])).float().div_(255.0)
        return (pixels - self._mean) / self._std, int(self._all_labels[row])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Many items at once, normalised together; what a ``DataLoader`` asks for. Equal to one by one."""
        rows = self._rows[torch.as_tensor(indices)]
        pixels = torch.from_numpy(self._pixels[rows.numpy()]).float().div_(255.0)
        images = pixels.sub_(self._mean).div_(self._std)
        return list(zip(images.unbind(), self._all_labels[rows].tolist(), strict=True))

    def only(self, label: int, limit: int | None = None) -> "MappedImages":
        """The items of one class, the first ``limit`` of them."""
        return self._take(torch.nonzero(self.labels == label).flatten()[:limit])

    def one(self, index: int) -> "MappedImages":
        """The item at ``index`` alone."""
        return self._take(torch.tensor([index]))

    def first(self, counts: Sequence[int]) -> "MappedImages":
        """The first ``counts[k]`` items of every class k, in order."""
        chosen = [torch.nonzero(self.labels == label).flatten()[:n] for label, n in enumerate(counts)]
        return self._take(torch.cat(chosen).sort().values)

    def _take(self, chosen: Tensor) -> "MappedImages":
        return MappedImages(self._pixels, self._all_labels, self._spec, self._rows[chosen])


def decode(
    source: ImageSource,
    size: tuple[int, int],
    cache: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Decode every image of ``source`` at ``size`` (height, width); returns the folder of the files.

    Nothing is done where ``cache`` already holds them; where another process is at it, its end is
    waited for. ``progress`` is called with the images done and their total.

    DataError names an unreadable image, or a cache that cannot be written.
    """
    folder = cache / f"{source.key}-{size[0]}x{size[1]}"
    try:
        # A finished cache is used even where it cannot be written.
        if not (folder / _DONE).is_file():
            with locked(folder / ".lock"):
                if not (folder / _DONE).is_file():
                    _decode(source, size, folder, progress)
    except OSError as error:
        raise DataError(f"cannot write the image cache {folder}: {error.strerror}; choose another folder") from None
    return folder


def _decode(source: ImageSource, size: tuple[int, int], folder: Path, progress: Callable[[int, int], None]) -> None:
    digest = hashlib.sha256(json.dumps([_FORMAT, source.classes, size]).encode())
    total = sum(len(names) for names in source.members.values())
    done = 0
    with source.opener() as read:
        for split in SPLITS:
            files = [(name, label) for label, kind in enumerate(source.classes) for name in source.members[split, kind]]
            temporary = folder / f".{split}.npy"
            try:
                pixels = open_memmap(temporary, "w+", np.uint8, (len(files), 3, *size))
                # Asked for at once: a full disk is an error here, and a dead process when a map is written.
                with temporary.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, temporary.stat().st_size)
                for row, (name, _) in enumerate(files):
                    pixels[row] = _pixels(read, name, size)
                    done += 1
                    progress(done, total)
                pixels.flush()
                labels = np.array([label for _, label in files], dtype=np.int64)
                digest.update(pixels.data)
                digest.update(labels.data)
                del pixels
                temporary.replace(folder / f"{split}.npy")
                np.save(folder / f"{split}-labels.npy", labels)
            finally:
                temporary.unlink(missing_ok=True)
    body = {"format": _FORMAT, "classes": source.classes, "sha256": digest.hexdigest()}
    (folder / f".{_DONE}").write_text(json.dumps(body), encoding="utf-8")
    (folder / f".{_DONE}").replace(folder / _DONE)


def decoded_classes(folder: Path) -> tuple[str, ...]:
    """Class names of a folder that :func:`decode` made; empty where it is none."""
    return tuple(_facts(folder)["classes"]) if (folder / _DONE).is_file() else ()


def decoded_digest(folder: Path) -> str:
    """SHA-256 of classes, pixels and labels of a folder that :func:`decode` made."""
    return str(_facts(folder)["sha256"])


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        if facts["format"] == _FORMAT and isinstance(facts["classes"], list) and isinstance(facts["sha256"], str):
            return dict(facts)
        problem = "it is of another version"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise DataError(f"the image cache {folder} is damaged, delete it: {problem}")


def mapped(folder: Path, split: Split, spec: ModelSpec) -> MappedImages:
    """The images of a split of a decoded data set, labelled by the logits of ``spec``.

    DataError if the cache is damaged, or holds a class that the model lacks.
    """
    names = _facts(folder)["classes"]
    unknown = [name for name in names if name not in spec.classes]
    if unknown:
        raise DataError(f"the images hold the class {unknown[0]!r}, which the model lacks")
    try:
        pixels = np.load(folder / f"{split}.npy", mmap_mode="r")
        labels = torch.from_numpy(np.load(folder / f"{split}-labels.npy"))
    except (OSError, ValueError) as error:
        raise DataError(f"the image cache {folder} is damaged, delete it: {error}") from None
    return MappedImages(pixels, torch.tensor([spec.classes.index(name) for name in names])[labels], spec)


def _pixels(read: Callable[[str], IO[bytes]], name: str, size: tuple[int, int]) -> NDArray[Any]:
    """One image as uint8 RGB (3, height, width), by the same steps as :mod:`clue.data.folder`."""
    height, width = size
    try:
        with read(name) as stream, Image.open(stream) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {name}: {error}") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
