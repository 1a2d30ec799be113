"""``LiveModel``: an app loads the model once and always answers with the one that the agent has in use.

The agent swaps models under the app's feet: it switches a link and erases the old slot at any moment.
The app must neither fail nor mix two models. So everything that belongs to a model is one immutable
:class:`~clue_agent.loaded.LoadedModel`; each call takes the reference to it once; a swap is one assignment,
made when the new model is in memory and has answered a blank image. Whatever is wrong with the store, the
model in memory goes on, and ``stale_reason`` says why it may be an old one.
"""

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import get_args

import torch
from torch import Tensor

from clue.spec import ModelSpec
from clue_agent.errors import AgentError, StoreError
from clue_agent.frames import Frame
from clue_agent.loaded import Fingerprint, LoadedModel, OnForgotten, Prediction, load_current
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore

log = logging.getLogger(__name__)

_LONGEST_DELAY = 30.0
_JOIN_SECONDS = 30.0


class LiveModel:
    """The model that the agent at ``home`` has in use, for one app. Any thread may call it.

    >>> with LiveModel() as live:  # doctest: +SKIP
    ...     live.predict("photo.jpg").label
    'blackbird'

    Args:
        home: the agent's home. The app must run as the agent's user: nobody else can read the keys.
        on_forgotten: what to answer to an image of a forgotten class. ``unknown``: no label, if the
            forgotten class would win, or the free energy is above the threshold that the agent measured
            for this model (see :mod:`clue_agent.calibration`). ``next_best``: the best of the other classes.
        allowed_factories: importable architectures (``module:function``) that a bundle may name.
        check_every: seconds between two looks at the store; a look costs two system calls.
        background: look and load in a thread of its own, so that no frame waits for it. Otherwise the
            calling thread does both, and with ``check_every=0`` at every call.
        device: torch device to run on.
        threads: CPU threads of torch, which counts for the whole process; None leaves them alone.

    Raises:
        StoreError: there is no whole model in ``home``.
        BundleError: the model cannot be built.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        home: str | Path = "~/.clue/agent",
        *,
        on_forgotten: OnForgotten = "unknown",
        allowed_factories: Collection[str] = (),
        check_every: float = 0.2,
        background: bool = True,
        device: str | torch.device = "cpu",
        threads: int | None = None,
    ) -> None:
        if on_forgotten not in get_args(OnForgotten):
            raise ValueError(f"on_forgotten must be one of {', '.join(get_args(OnForgotten))}, got {on_forgotten!r}")
        if not (math.isfinite(check_every) and check_every >= 0) or (background and check_every == 0):
            raise ValueError(f"check_every must be a positive number of seconds, got {check_every}")
        if threads is not None:
            torch.set_num_threads(threads)
        home = Path(home).expanduser()
        self._store = ModelStore(home / "model", KeyRing(home / "keys"))
        self._on_forgotten = on_forgotten
        self._allowed_factories = tuple(allowed_factories)
        self._check_every = check_every
        self._background = background
        self._device = torch.device(device)
        self._stale_reason: str | None = None
        self._failed_at: Fingerprint | None = None
        self._delay = 0.0
        self._next_try = 0.0
        self._next_check = time.monotonic() + check_every
        self._closed = False
        self._checking = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._end_watcher: weakref.finalize[..., LiveModel] | None = None
        # Read once by every call, replaced in one place: this is the swap.
        self._loaded: LoadedModel | None = load_current(self._store, self._device, self._allowed_factories)
        if background:
            self._watch()
        _open_models.add(self)

    # Answering

    def predict(self, frame: Frame) -> Prediction:
        """The answer to one frame: a PIL image, a uint8 RGB array (H, W, 3) or tensor (3, H, W), or a file.

        Any size; it is resized to what the model wants. DataError if the frame cannot be read.
        """
        return self.predict_batch([frame])[0]

    def predict_batch(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Answers to several frames, all by the same model."""
        return self._current().answer(frames, self._on_forgotten)

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W); those of forgotten classes are minus infinity.

        Normalised means RGB in [0, 1], less ``spec.mean``, divided by ``spec.std``.
        """
        return self._current().masked_logits(batch)

    # What is served

    @property
    def spec(self) -> ModelSpec:
        """Classes, input size and normalisation of the model in use."""
        return self._current().spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the logits; forgotten ones keep their place."""
        return self.spec.classes

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Names of the classes that the model in use was made to forget, oldest first."""
        return self.spec.forgotten

    @property
    def digest(self) -> str:
        """SHA-256 (hex) that names the model in use, as in the agent's receipts."""
        return self._current().digest

    @property
    def stale_reason(self) -> str | None:
        """Why the model in memory may not be the current one: the store is damaged. None if all is well."""
        return self._stale_reason

    # Following the store

    def refresh(self) -> bool:
        """Look at the store now, and load what it has in use; True if that is another model than before.

        Every call that starts after this returns uses it. Does not raise where the store is damaged
        (see :attr:`stale_reason`).
        """
        with self._checking:
            before = self.digest
            self._next_try = 0.0
            self._check()
            return self.digest != before

    def close(self) -> None:
        """Stop following the store and let go of the model. Safe to repeat."""
        self._closed = True
        if self._end_watcher is not None:
            self._end_watcher()
        with self._checking:
            self._loaded = None

    def __enter__(self) -> "LiveModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        loaded = self._loaded
        what = "closed" if loaded is None else f"model {loaded.digest[:16]}, forgotten {list(loaded.spec.forgotten)}"
        return f"<LiveModel {self._store.root.parent}: {what}>"

    def _current(self) -> LoadedModel:
        if self._background:
            if self._watcher is None:
                self._try_locked(self._watch)
        elif time.monotonic() >= self._next_check:
            self._try_locked(self._check)
        loaded = self._loaded
        if loaded is None:
            raise AgentError("this LiveModel is closed: make another one")
        return loaded

    def _try_locked(self, action: Callable[[], None]) -> None:
        """Do it, unless another thread is at it: no frame waits for a lock."""
        if not self._closed and self._checking.acquire(blocking=False):
            try:
                action()
            finally:
                self._checking.release()

    def _watch(self) -> None:
        if self._watcher is None and not self._closed:
            stop = threading.Event()
            self._watcher = threading.Thread(
                target=_follow, args=(weakref.ref(self), stop, self._check_every), name="clue-live-model", daemon=True
            )
            self._watcher.start()
            # Runs at close(), when the last reference goes, or before the interpreter ends: a thread that is inside
            # torch then would bring the process down with it.
            self._end_watcher = weakref.finalize(self, _end, stop, self._watcher)

    def _check(self) -> None:
        """Load the store's model if it is another; the caller holds the lock. Never raises."""
        loaded, now = self._loaded, time.monotonic()
        self._next_check = now + self._check_every
        if loaded is None or self._closed:
            return
        try:
            found: Fingerprint | None = self._store.fingerprint()
        except (StoreError, OSError):
            found = None
        if found == loaded.fingerprint:
            self._recovered()
            return
        if self._stale_reason is not None and found == self._failed_at and now < self._next_try:
            return
        try:
            fresh = load_current(self._store, self._device, self._allowed_factories, loaded)
        except Exception as error:
            # Whatever it is, memory included: the app has a model and keeps it.
            self._failed(found, error)
            return
        if not self._closed:
            self._loaded = fresh
        if fresh.digest != loaded.digest:
            gone = ", ".join(fresh.spec.forgotten) or "nothing"
            log.info("the model in use is now %s (was %s); forgotten: %s", fresh.digest[:16], loaded.digest[:16], gone)
        self._recovered()

    def _recovered(self) -> None:
        if self._stale_reason is not None:
            log.warning("the model store is whole again; the model in memory is the current one")
        self._stale_reason = None

    def _failed(self, found: Fingerprint | None, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        if self._stale_reason is None:
            log.error("cannot load the model in use: %s; going on with the one in memory", reason)
            self._delay = 0.0
        # Reading a large damaged file over and over would cost the frames their time; a changed one is read at once.
        self._delay = min(max(2 * self._delay, self._check_every, 0.1), _LONGEST_DELAY)
        self._next_try = time.monotonic() + self._delay
        self._failed_at = found
        self._stale_reason = reason

    def _after_fork(self) -> None:
        """In the child of a fork: its parent's thread is not there, and may have held the lock."""
        self._checking = threading.Lock()
        self._watcher = None
        if self._end_watcher is not None:
            self._end_watcher.detach()
            self._end_watcher = None


_open_models: "weakref.WeakSet[LiveModel]" = weakref.WeakSet()


def _follow(reference: "weakref.ref[LiveModel]", stop: threading.Event, every: float) -> None:
    """The watcher. It holds no reference between two looks, so that a model that nobody uses can go."""
    while not stop.wait(every):
        live = reference()
        if live is None:
            return
        with live._checking:
            live._check()
        del live


def _end(stop: threading.Event, watcher: threading.Thread) -> None:
    stop.set()
    if watcher is not threading.current_thread():
        watcher.join(_JOIN_SECONDS)


def _revive_after_fork() -> None:
    for live in _open_models:
        live._after_fork()


os.register_at_fork(after_in_child=_revive_after_fork)
