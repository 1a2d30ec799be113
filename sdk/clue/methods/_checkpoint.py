"""Checkpoints of a running job: where they are kept, and what their bytes hold.

A checkpoint is one safetensors file (no pickle) with the tensors that changed and a JSON text in its
metadata. It belongs to one call of :func:`clue.forget`: the text names everything that the result
depends on (the identity), and a SHA-256 over text and tensors finds every flipped bit.
See docs/checkpoints.md for what it reveals of the forget images.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

FORMAT = 1
_LENGTH = struct.Struct("<Q")


class Checkpoint(Protocol):
    """A place for one checkpoint, as :func:`clue.forget` takes it.

    ``save`` replaces the checkpoint before it; after a power cut ``load`` must give one or the other, or None.
    An OSError of ``save`` costs the checkpoint, not the run; every other exception ends the run.
    Any exception of ``load`` means that there is nothing to go on from.
    """

    @property
    def every_seconds(self) -> float:
        """Seconds between two checkpoints, >= 0. 0 saves after every update, whatever that costs."""
        return 10.0

    def save(self, data: bytes) -> None:
        """Keep ``data``."""

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint in a file of its own, replaced atomically and flushed to disk; mode 0600.

    It is not encrypted: whoever reads it sees activations of forget images (docs/checkpoints.md).

    Attributes:
        path: the file; its folder must exist.
        every_seconds: seconds between two checkpoints, >= 0.
    """

    path: str | Path
    every_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.every_seconds >= 0:
            raise ValueError(f"every_seconds must be at least 0, got {self.every_seconds}")

    def save(self, data: bytes) -> None:
        """Replace the file by ``data``: a reader sees the old one or the new one, also after a power cut."""
        path, temporary = Path(self.path), self._temporary
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load(self) -> bytes | None:
        """The file's content; None if there is none."""
        with suppress(FileNotFoundError):
            return Path(self.path).read_bytes()
        return None

    def delete(self) -> None:
        """Remove the file; call it when the new model is safe. The blocks of a flash disk may still hold it."""
        Path(self.path).unlink(missing_ok=True)
        self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        path = Path(self.path)
        return path.with_name(f".{path.name}.new")


class DamagedCheckpointError(ValueError):
    """The bytes are no whole checkpoint. Never leaves :func:`clue.forget`, which then starts over."""


def encode(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """One safetensors file; besides it, only tensors that are not contiguous or not on the CPU are copied."""
    kept: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        # safetensors refuses tensors that share memory.
        if tensor.data_ptr() in pointers or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        pointers.add(tensor.data_ptr())
        kept[name] = tensor
    text = json.dumps(header)
    return save(kept, metadata={"clue": text, "sha256": _digest(text, kept)})


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) of :func:`encode`; DamagedCheckpointError if a bit of it is not as it was written."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        tensors = load(data)
        metadata = json.loads(data[_LENGTH.size : _LENGTH.size + length])["__metadata__"]
        text, digest = metadata["clue"], metadata["sha256"]
    except (struct.error, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"it cannot be read: {' '.join(str(error).split())}") from None
    if _digest(text, tensors) != digest:
        raise DamagedCheckpointError("its digest is wrong")
    header = json.loads(text)
    if header.get("format") != FORMAT:
        raise DamagedCheckpointError(f"its format is {header.get('format')}, not {FORMAT}")
    # Tensors inside a larger buffer may lie at odd addresses, where matrix products can round differently.
    return header, {name: tensors.pop(name).clone() for name in list(tensors)}


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = TensorDigest(text)
    for name in sorted(tensors):
        digest.add(tensors[name], name)
    return digest.hexdigest()


class TensorDigest:
    """SHA-256 over a text and tensors with their names, types and shapes."""

    def __init__(self, text: str = "") -> None:
        self._hash = hashlib.sha256(text.encode())

    def add(self, tensor: Tensor, name: str = "") -> None:
        """Go on with ``tensor``; its layout in memory and its device make no difference."""
        self._hash.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        self._hash.update(as_bytes(tensor.detach().to("cpu")).numpy().data)

    def hexdigest(self) -> str:
        """Of everything added so far."""
        return self._hash.hexdigest()


def as_bytes(tensor: Tensor) -> Tensor:
    """The bits of a tensor, uint8, flat; a copy only where it is not contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def model_digest(model: nn.Module) -> str:
    """SHA-256 of the modules' types, the weights, the buffers and which of them are frozen."""
    modules = [f"{name}:{type(module).__qualname__}" for name, module in model.named_modules()]
    digest = TensorDigest(" ".join(modules))
    for name, tensor in named_tensors(model):
        digest.add(tensor, f"{name} {tensor.requires_grad}")
    return digest.hexdigest()


def named_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers, each once however often the model uses it."""
    yield from model.named_parameters()
    yield from model.named_buffers()
