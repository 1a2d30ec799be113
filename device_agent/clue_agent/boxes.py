"""Bytes that a job keeps on the card, sealed under a key each: the update it hands out, the patch it applies."""

import os
import re
import time
from pathlib import Path

from clue_agent.errors import SealError
from clue_agent.sealed import KeyRing, seal, unseal
from clue_agent.vault_files import drop_temporary
from clue_protocol.files import private_folder

UPDATE, PATCH = "update", "patch"
_FOLDERS = {UPDATE: "updates", PATCH: "patches"}
MOST_PATCH_BYTES = 64 << 20
_SUFFIX = ".sealed"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Box:
    """At most one content a job, under the job's digest; torch-free, for the agent and its worker.

    Args:
        home: the agent's.
        ring: holds the keys.
        kind: :data:`UPDATE` or :data:`PATCH`.
    """

    def __init__(self, home: Path, ring: KeyRing, kind: str) -> None:
        self._folder = home / _FOLDERS[kind]
        self._ring = ring
        self._kind = kind

    def put(self, job: bytes, data: bytes) -> None:
        """Replace the content, durably; OSError if the disk is full."""
        self.destroy(job)
        private_folder(self._folder)
        seal(data, self._path(job), self._ring.create(self._key(job)))

    def get(self, job: bytes) -> bytes | None:
        """The content; None if there is none, or it is damaged."""
        try:
            return unseal(self._path(job), self._ring.get(self._key(job)))
        except SealError:
            return None

    def has(self, job: bytes) -> bool:
        """True if there is something, whole or not."""
        return self._path(job).exists()

    def destroy(self, job: bytes) -> None:
        """Destroy the key, then the file. Safe to repeat after a crash."""
        self._ring.destroy(self._key(job))
        self._path(job).unlink(missing_ok=True)

    def jobs(self) -> list[bytes]:
        """Digests of the jobs of which there is something, be it only a key."""
        files = {path.name.removesuffix(_SUFFIX) for path in self._files()}
        prefix = f"{self._kind}-"
        keys = {name.removeprefix(prefix) for name in self._ring.names() if name.startswith(prefix)}
        return [bytes.fromhex(name) for name in sorted(files | keys) if _DIGEST.fullmatch(name)]

    def sweep(self) -> None:
        """Remove what was half written when the power went."""
        drop_temporary(self._folder)

    def touch(self, job: bytes) -> None:
        """Begin :meth:`age` anew."""
        os.utime(self._path(job))

    def age(self, job: bytes) -> float:
        """Seconds since the content was put or touched, by the wall clock; negative if that was set back since."""
        try:
            return time.time() - self._path(job).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _path(self, job: bytes) -> Path:
        return self._folder / f"{job.hex()}{_SUFFIX}"

    def _key(self, job: bytes) -> str:
        return f"{self._kind}-{job.hex()}"
