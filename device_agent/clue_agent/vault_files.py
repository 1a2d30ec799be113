"""The files of a vault, and the lock and index through which they change (see clue_agent.vault)."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clue_agent.errors import VaultError
from clue_agent.retention import PARTS, Shelf, VaultLimits
from clue_protocol.files import write_atomic

LIMITS, SECRET, LOCK = "vault.json", "secret", "lock"
CLASS, ERASING, IN_USE, SUFFIX = "class.json", "erasing", "in-use", ".sealed"
_FOLDER = re.compile(r"[0-9a-f]{32}")
_SECRET_BYTES = _STAMP_BYTES = 32


class VaultIndex:
    """The sizes of all samples, kept so that not every image offered lists every folder.

    The lock's file holds a random stamp that changes with every change: where it is not the one this
    index left there, another process or object was at work, and the folders are listed again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stamp = b""
        self._shelves: dict[str, Shelf] = {}

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the vault's lock; the kernel drops it when the process dies."""
        # A description of its own each time: flock then holds between threads as well.
        descriptor = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def changing(self) -> Iterator[dict[str, Shelf]]:
        """The index by class folder, under the lock; the block changes it along with the files."""
        with self.locked() as descriptor:
            if not self._stamp or os.pread(descriptor, _STAMP_BYTES, 0) != self._stamp:
                self._shelves = self.read()
            # Before anything changes: who is killed half-way has told the others.
            self._stamp = os.urandom(_STAMP_BYTES)
            os.pwrite(descriptor, self._stamp, 0)
            try:
                yield self._shelves
            except BaseException:
                self._stamp = b""
                raise

    def read(self) -> dict[str, Shelf]:
        """The index as the folders are now, less the classes that are being erased."""
        return {
            folder.name: {part: sealed_ids(folder / part) for part in PARTS}
            for folder in class_folders(self._root)
            if not (folder / ERASING).exists()
        }


def open_secret(root: Path) -> bytes:
    """The vault's secret, made if the vault is new; call it under the lock. VaultError if it was lost."""
    path = root / SECRET
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        if class_folders(root):
            raise VaultError(f"{path} is missing or damaged: remove {root} and offer the samples again")
        secret = os.urandom(_SECRET_BYTES)
        write_atomic(path, secret, mode=0o600)
    return secret


def open_limits(root: Path, wanted: VaultLimits | None) -> VaultLimits:
    """The limits that hold: ``wanted``, or those of the vault. Call it under the lock.

    VaultError if they are damaged, or if samples were split by another holdout share.
    """
    try:
        kept = VaultLimits.model_validate_json((root / LIMITS).read_bytes())
    except FileNotFoundError:
        kept = None
    except ValidationError:
        raise VaultError(f"{root / LIMITS} is damaged: remove {root} and offer the samples again") from None
    limits = wanted or kept or VaultLimits()
    if kept is None or (kept.holdout_share != limits.holdout_share and not any(map(sealed_files, class_folders(root)))):
        write_limits(root, limits)
    elif kept.holdout_share != limits.holdout_share:
        raise VaultError(
            f"the samples in {root} were split with holdout_share = {kept.holdout_share:g}, and what is held out must "
            f"stay so: set it back from {limits.holdout_share:g}, or remove the folder and offer the samples again"
        )
    return limits


def write_limits(root: Path, limits: VaultLimits) -> None:
    """Make ``limits`` those of the vault, for who opens it without any."""
    write_atomic(root / LIMITS, limits.model_dump_json().encode(), mode=0o600)


def class_folders(root: Path) -> list[Path]:
    """The folders of all classes, sorted."""
    with suppress(FileNotFoundError):
        return sorted(path for path in root.iterdir() if _FOLDER.fullmatch(path.name))
    return []


def class_name(folder: Path) -> str | None:
    """The name of the class whose folder this is; None if it does not say, as after a crash."""
    try:
        described: Any = json.loads((folder / CLASS).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    name = described.get("name") if isinstance(described, dict) else None
    return name if isinstance(name, str) else None


def sealed_ids(place: Path) -> dict[str, int]:
    """Id and size in bytes of every sealed file directly in ``place``."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                with suppress(FileNotFoundError):
                    found[entry.name.removesuffix(SUFFIX)] = entry.stat().st_size
    return found


def sealed_files(folder: Path) -> list[Path]:
    """The sealed files of a class, both parts."""
    return [folder / part / (identity + SUFFIX) for part in PARTS for identity in sealed_ids(folder / part)]


def drop_temporary(place: Path) -> int:
    """Remove what ``write_atomic`` left when it was killed (names that begin with a dot); returns how many."""
    left = [path for path in place.iterdir() if path.name.startswith(".")] if place.is_dir() else []
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def is_held(path: Path) -> bool:
    """True if somebody has the lock file ``path`` locked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
