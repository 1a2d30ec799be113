"""Where the worker keeps how far it came: sealed, because activations of forget images are in it."""

import logging
from pathlib import Path

from clue_agent.errors import SealError
from clue_agent.sealed import KeyRing, seal, unseal
from clue_protocol.files import private_folder

log = logging.getLogger(__name__)


class SealedCheckpoint:
    """A checkpoint for :func:`clue.forget` under a key of its own; the agent destroys that after the job."""

    every_seconds = 10.0

    def __init__(self, folder: Path, ring: KeyRing, name: str) -> None:
        self._path = private_folder(folder) / f"{name}.sealed"
        self._ring = ring
        self._key = f"checkpoint-{name}"

    def save(self, data: bytes) -> None:
        """Replace the last one; a disk that is full costs the checkpoint, not the job."""
        try:
            try:
                key = self._ring.get(self._key)
            except SealError:
                self._ring.destroy(self._key)  # a crash may have left it cut short
                key = self._ring.create(self._key)
            seal(data, self._path, key)
        except (OSError, SealError) as error:
            log.warning("no checkpoint could be written: %s", error)

    def load(self) -> bytes | None:
        """The last one that is whole, if any."""
        try:
            return unseal(self._path, self._ring.get(self._key))
        except SealError:
            return None
