"""One model of the store in memory, and the answers it gives. Nothing here changes after it is made."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from clue.bundle import bundle_from_bytes
from clue.errors import BundleError
from clue.spec import ModelSpec
from clue_agent.calibration import free_energy, stored_threshold
from clue_agent.errors import StoreError
from clue_agent.frames import Frame, frame_pixels
from clue_agent.store import ModelStore, StoredModel

OnForgotten: TypeAlias = Literal["unknown", "next_best"]
Fingerprint: TypeAlias = tuple[str, int, int]

_TRIES = 20
_PAUSE = 0.005


@dataclass(frozen=True)
class Prediction:
    """The answer to one frame.

    Attributes:
        label: name of the class; None for "unknown". Never a forgotten class.
        index: its logit; None for "unknown".
        confidence: probability of the best class among those not forgotten, in [0, 1]; for "unknown" too.
        free_energy: of the frame, over the classes not forgotten, in units of logits; low means familiar.
        model_digest: SHA-256 (hex) that names the one model which gave all of this.
    """

    label: str | None
    index: int | None
    confidence: float
    free_energy: float
    model_digest: str


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that answers, with everything that belongs to it.

    Attributes:
        model: in eval mode, on its device.
        spec: its classes, sizes and forgotten classes.
        digest: names it.
        fingerprint: what the store's was when this model was the current one.
        threshold: free energy above which a frame is unknown; None if the agent measured none.
        forgotten: indices of the classes that are.
        retained: indices of the classes that are not, int64, shape (R,), on the CPU.
        mask: True for the classes that are forgotten, shape (K,), on the model's device.
        mean: of the normalisation, shape (1, 3, 1, 1), on the model's device.
        std: likewise.
    """

    model: nn.Module
    spec: ModelSpec
    digest: str
    fingerprint: Fingerprint
    threshold: float | None
    forgotten: frozenset[int]
    retained: Tensor
    mask: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, batch: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W), forgotten classes included."""
        with torch.inference_mode():
            found: Tensor = self.model(batch.to(self.mean.device))
        return found

    def masked_logits(self, batch: Tensor) -> Tensor:
        """:meth:`logits` with those of forgotten classes at minus infinity."""
        # Outside inference mode, so that the caller may do with them what he likes.
        return self.logits(batch).masked_fill(self.mask, -math.inf)

    def batch(self, frames: Sequence[Frame]) -> Tensor:
        """Frames as the model wants them: float32, normalised, shape (N, 3, H, W)."""
        pixels = torch.stack([frame_pixels(frame, self.spec.input_size) for frame in frames])
        return pixels.to(self.mean.device).float().div_(255.0).sub_(self.mean).div_(self.std)

    def answer(self, frames: Sequence[Frame], on_forgotten: OnForgotten) -> list[Prediction]:
        """A prediction for each frame; DataError if one cannot be read."""
        if not frames:
            return []
        with torch.inference_mode():
            return self._answers(self.logits(self.batch(frames)).float().cpu(), on_forgotten)

    def _answers(self, logits: Tensor, on_forgotten: OnForgotten) -> list[Prediction]:
        if not len(self.retained):
            return [Prediction(None, None, 0.0, math.inf, self.digest)] * len(logits)
        # The best of the retained columns, rather than of masked logits: no logit whatever can make it a forgotten one.
        # Of the logits, not of the probabilities: rounding makes near logits equal there, and the wrong one wins.
        retained = logits[:, self.retained]
        column = retained.argmax(dim=1, keepdim=True)
        probability = retained.softmax(dim=1).gather(1, column)[:, 0]
        best = self.retained[column[:, 0]].tolist()
        energies = free_energy(logits, self.forgotten).tolist()
        tops = logits.argmax(dim=1).tolist()
        found = []
        for index, confidence, energy, top in zip(best, probability.tolist(), energies, tops, strict=True):
            unknown = on_forgotten == "unknown" and self._is_unknown(top, energy)
            label = None if unknown else self.spec.classes[index]
            found.append(Prediction(label, None if unknown else index, confidence, energy, self.digest))
        return found

    def _is_unknown(self, top: int, energy: float) -> bool:
        if top in self.forgotten or not math.isfinite(energy):
            return True
        return self.threshold is not None and energy > self.threshold


def load_current(
    store: ModelStore, device: torch.device, allowed_factories: Collection[str], known: LoadedModel | None = None
) -> LoadedModel:
    """The model that the store has in use; ``known`` itself, its fingerprint renewed, if it is that model.

    StoreError if the store is damaged, BundleError if its model cannot be built or does not answer.
    """
    fingerprint, stored = _read_current(store, known.digest if known else None)
    if stored is None:
        assert known is not None  # noqa: S101
        return replace(known, fingerprint=fingerprint)
    model = bundle_from_bytes(stored.spec, stored.digest, stored.weights, allowed_factories=allowed_factories).model
    spec = stored.spec
    absent = [name in spec.forgotten for name in spec.classes]
    loaded = LoadedModel(
        model=model.to(device).requires_grad_(False),
        spec=spec,
        digest=stored.digest,
        fingerprint=fingerprint,
        threshold=stored_threshold(stored.calibration),
        forgotten=frozenset(index for index, gone in enumerate(absent) if gone),
        retained=torch.tensor([index for index, gone in enumerate(absent) if not gone], dtype=torch.int64),
        mask=torch.tensor(absent, device=device),
        mean=torch.tensor(spec.mean, device=device).view(1, 3, 1, 1),
        std=torch.tensor(spec.std, device=device).view(1, 3, 1, 1),
    )
    _try_out(loaded)
    return loaded


def _try_out(loaded: LoadedModel) -> None:
    """One blank image: a model that does not answer must not get to replace one that does."""
    spec = loaded.spec
    try:
        logits = loaded.logits(torch.zeros(1, 3, *spec.input_size))
        usable = logits.shape == (1, len(spec.classes)) and bool(torch.isfinite(logits).all())
    except Exception as error:
        raise BundleError(f"the model {loaded.digest[:16]} fails on an image: {error}") from None
    if not usable:
        raise BundleError(f"the model {loaded.digest[:16]} does not give {len(spec.classes)} finite logits")


def _read_current(store: ModelStore, known: str | None) -> tuple[Fingerprint, StoredModel | None]:
    """The model in use and its fingerprint; None in its place if its digest is ``known``.

    The agent may switch the link and erase the old slot in the middle of this. Then the fingerprint has
    changed, and the reading begins anew; damage is only what is seen while it stays the same.
    """
    problem = f"{store.root} changes faster than it can be read"
    for _ in range(_TRIES):
        try:
            before = store.fingerprint()
        except (StoreError, OSError) as error:
            # Either the slot went between the two calls that this takes, or it is gone for good.
            problem = _text(error)
            time.sleep(_PAUSE)
            continue
        stored, damage = _read_once(store, known)
        if not _unchanged(store, before):
            continue
        if damage is not None:
            raise StoreError(damage)
        return before, stored
    raise StoreError(problem)


def _read_once(store: ModelStore, known: str | None) -> tuple[StoredModel | None, str | None]:
    digest = None
    try:
        _, digest = store.spec()
        return (None if digest == known else store.read()), None
    except (StoreError, OSError) as error:
        damage = _text(error)
    # Between jobs the other slot holds the same model. Another one in it, say the one from before, is no substitute.
    try:
        twin = store.read(store.other_slot())
    except (StoreError, OSError):
        return None, damage
    return (twin, None) if twin.digest == digest else (None, damage)


def _unchanged(store: ModelStore, before: Fingerprint) -> bool:
    try:
        return store.fingerprint() == before
    except (StoreError, OSError):
        return False


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot read {error.filename}: {error.strerror}"
    return str(error)
