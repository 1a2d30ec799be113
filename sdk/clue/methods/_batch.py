"""Forget data as it comes in: read batch by batch and checked, so that a method only sees images it can use."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from clue.errors import ClueError, ForgetInputError


def read_batches(loader: Iterable[object]) -> Iterator[object]:
    """The loader's batches; whatever the user's data set raises becomes one line.

    Raises:
        ForgetInputError: an image cannot be read, or images of different sizes meet in a batch.
        ClueError: the data set's own, as it is.
    """
    try:
        yield from loader
    except Exception as error:
        reason = last_line(error)
        if isinstance(error, ClueError):
            # From a worker process it arrives with that process's traceback for a message.
            raise type(error)(reason) from None
        if "equal size" in reason:
            reason = f"they differ in size, so resize them to what the model takes ({reason})"
        raise ForgetInputError(f"the forget images cannot be read: {reason}") from error


def check_batch(batch: object, forget_class: int) -> Tensor:
    """The images of a batch, shape (N, C, H, W), floating point and finite.

    Raises:
        ForgetInputError: they are of another shape or type, hold NaN or infinity, or a label says
            that one is not of the forget class.
    """
    if isinstance(batch, Tensor):
        images, labels = batch, None
    elif isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        raise ForgetInputError("forget data must yield images, or pairs of images and labels")
    if labels is not None:
        _check_labels(labels, len(images) if images.ndim else 0, forget_class)
    if images.ndim != 4:
        raise ForgetInputError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ForgetInputError(
            f"images must be floating point, got {images.dtype}: scale and normalise them as in training"
        )
    if not bool(torch.isfinite(images).all()):
        raise ForgetInputError("a forget image holds NaN or infinity: leave it out or repair it")
    return images.detach()


def _check_labels(labels: object, count: int, forget_class: int) -> None:
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ForgetInputError(f"labels must be class indices, got {_short(labels)}") from None
    if found.ndim > 1 and found.numel() != count:
        raise ForgetInputError(
            f"labels must be class indices of shape (N,), got {tuple(found.shape)}: of one-hot labels pass argmax(1)"
        )
    found = found.flatten()
    if found.numel() != count:
        raise ForgetInputError(f"a batch has {count} images but {found.numel()} labels")
    if found.is_complex() or (found.is_floating_point() and bool((found != found.trunc()).any())):
        raise ForgetInputError(f"labels must be whole numbers, got {_short(found.tolist())}")
    wrong = found[found != forget_class]
    if len(wrong):
        raise ForgetInputError(
            f"the forget set holds an image of class {int(wrong[0])}, "
            f"not only of class {forget_class}: pass forget samples only"
        )


def last_line(error: BaseException) -> str:
    """The last line of an error's message, without the name of its type; one line for whatever was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) == 1 or "Traceback" not in str(error):
        return lines[0]
    name, separator, text = lines[-1].partition(": ")
    return text if separator and " " not in name else lines[-1]


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
