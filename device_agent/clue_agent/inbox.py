"""A folder that is watched: ``folder/<class>/*.png|jpg|jpeg`` is taken into the vault.

An image is sealed and durable before its original is removed. What cannot be taken stays where it is
and is reported once. Everything is opened relative to the folder's own descriptor and never through a
symbolic link, so that nothing outside of it can be read or removed.
"""

import errno
import os
import shutil
import stat
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from clue_agent.errors import SampleRefusedError, VaultError
from clue_agent.images import MAX_IMAGE_BYTES
from clue_agent.vault import Outcome, Vault
from clue_protocol.files import fsync_folder

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_SETTLE_SECONDS = 1.0
# What a file is called in the tables below is (class folder, file); this changes whenever it is written to.
_Signature = tuple[int, int, int]
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class ScanResult:
    """What one scan did.

    Attributes:
        taken: images that are in the vault now and were not before.
        duplicates: images that the vault has already.
        not_kept: images that lost the draw because their class is full; they count as dealt with.
        waiting: files that are still being written, or whose turn comes when the running job has ended.
        refused: path and reason, each file once; it is looked at again when it changes.
    """

    taken: int = 0
    duplicates: int = 0
    not_kept: int = 0
    waiting: int = 0
    refused: list[tuple[Path, str]] = field(default_factory=list)


class Inbox:
    """The folder at ``folder``; it may come and go. Use it from one thread.

    Args:
        folder: one sub-folder per class.
        vault: where the images go.
        keep_originals: leave them in the folder, in the clear. What was taken is remembered, so that the next
            scan reads no image again; the next process reads all of them once and finds duplicates.
        allowed: names of the classes that may be taken: those of the model that are not forgotten.
    """

    def __init__(
        self, folder: Path, vault: Vault, keep_originals: bool, allowed: Callable[[], Collection[str]]
    ) -> None:
        self.folder = folder
        self._vault = vault
        self._keep_originals = keep_originals
        self._allowed = allowed
        self._done: dict[tuple[str, str], _Signature] = {}
        self._reported: dict[tuple[str, str], str] = {}
        self._first_seen: dict[tuple[str, str], tuple[_Signature, float]] = {}

    def scan(self, stop: Callable[[], bool] = lambda: False) -> ScanResult:
        """Take what is there; a folder that is missing or unreadable is reported like a file.

        Args:
            stop: asked before each file; True ends the scan early.

        Raises:
            VaultError: the vault's storage failed; originals stay.
        """
        found = ScanResult()
        seen: set[tuple[str, str]] = set()
        with _opened(self.folder, None) as root:
            if root is None:
                if _kind(str(self.folder), None) is not None:
                    self._refuse(found, seen, ("", ""), "it cannot be read, or is not a folder")
            else:
                self._scan_classes(root, found, seen, stop)
        if not stop():
            self._forget_unseen(seen)
        return found

    def _scan_classes(self, root: int, found: ScanResult, seen: set[tuple[str, str]], stop: Callable[[], bool]) -> None:
        allowed = {_normal(name): name for name in self._allowed()}
        for entry in _entries(root):
            place = (entry, "")
            kind = _kind(entry, root)
            if kind is None:
                continue
            if stat.S_ISLNK(kind.st_mode):
                self._refuse(found, seen, place, "it is a symbolic link, which is not followed")
            elif not stat.S_ISDIR(kind.st_mode):
                self._refuse(found, seen, place, "it lies outside the folder of a class")
            elif _normal(entry) not in allowed:
                with _opened(entry, root) as folder:
                    if folder is not None and any(_entries(folder)):
                        self._refuse(found, seen, place, "it is not a class of the model, or the class is forgotten")
            else:
                with _opened(entry, root) as folder:
                    if folder is None:
                        self._refuse(found, seen, place, "the folder cannot be read")
                        continue
                    for file in _entries(folder):
                        if stop():
                            return
                        self._take(folder, (entry, file), allowed[_normal(entry)], found, seen)

    def _take(
        self, folder: int, place: tuple[str, str], name: str, found: ScanResult, seen: set[tuple[str, str]]
    ) -> None:
        seen.add(place)
        file = place[1]
        info = _kind(file, folder)
        if info is None or self._done.get(place) == _signature(info):
            return
        if stat.S_ISLNK(info.st_mode):
            return self._refuse(found, seen, place, "it is a symbolic link, which is not followed")
        if not stat.S_ISREG(info.st_mode) or Path(file).suffix.lower() not in IMAGE_SUFFIXES:
            return self._refuse(found, seen, place, "it is not a .png, .jpg or .jpeg file")
        # A file that was refused is looked at again only when it has changed.
        told = f"{_signature(info)}"
        if self._reported.get(place, "").startswith(told):
            return None
        if not self._is_settled(place, info):
            found.waiting += 1
            return None
        try:
            data = _read(file, folder, info)
            if data is None:
                found.waiting += 1
                return None
            outcome = self._vault.add(name, data, refused=lambda: {name} - set(self._allowed()))
        except SampleRefusedError as error:
            if name not in self._allowed():
                return None  # forgotten just now: the next scan says so of the whole folder
            return self._refuse(found, seen, place, str(error), told)
        except OSError as error:
            return self._refuse(found, seen, place, f"it cannot be read: {error.strerror}")
        if outcome is Outcome.BUSY:
            found.waiting += 1
            return None
        found.taken += outcome is Outcome.ADDED
        found.duplicates += outcome is Outcome.DUPLICATE
        found.not_kept += outcome is Outcome.NOT_KEPT
        if self._keep_originals or not self._remove(folder, place, info, found, seen):
            self._done[place] = _signature(info)
        return None

    def _remove(
        self,
        folder: int,
        place: tuple[str, str],
        info: os.stat_result,
        found: ScanResult,
        seen: set[tuple[str, str]],
    ) -> bool:
        now = _kind(place[1], folder)
        if now is None or (now.st_ino, _signature(now)) != (info.st_ino, _signature(info)):
            return True  # somebody removed it, or put another in its place that is still to be taken
        try:
            os.unlink(place[1], dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._refuse(found, seen, place, f"it is in the vault, but cannot be removed here: {error.strerror}")
            return False
        return True

    def _is_settled(self, place: tuple[str, str], info: os.stat_result) -> bool:
        # A board without a clock may jump: what has not changed between two scans is settled too.
        if time.time() - max(info.st_mtime, info.st_ctime) >= _SETTLE_SECONDS:
            return True
        now = time.monotonic()
        signature, since = self._first_seen.setdefault(place, (_signature(info), now))
        if signature != _signature(info):
            self._first_seen[place] = (_signature(info), now)
            return False
        return now - since >= _SETTLE_SECONDS

    def _refuse(
        self, found: ScanResult, seen: set[tuple[str, str]], place: tuple[str, str], reason: str, told: str = ""
    ) -> None:
        seen.add(place)
        text = f"{told} {reason}"
        if self._reported.get(place) != text:
            self._reported[place] = text
            found.refused.append((self.folder.joinpath(*filter(None, place)), reason))

    def _forget_unseen(self, seen: set[tuple[str, str]]) -> None:
        for table in (self._done, self._reported, self._first_seen):
            for place in [place for place in table if place not in seen]:
                del table[place]


def erase_originals(folder: Path, name: str) -> int:
    """Remove everything in ``folder/<name>``, thumbnails and sub-folders included; returns the number of files.

    The class's folder itself stays. Symbolic links in it are removed, not followed.

    Raises:
        VaultError: something is still there, or the class's folder is itself a symbolic link.
    """
    if not folder.is_dir():
        return 0
    removed = 0
    # Compared, never joined: no name of a class can lead out of the folder.
    for place in [entry for entry in folder.iterdir() if _normal(entry.name) == _normal(name)]:
        if place.is_symlink():
            raise VaultError(f"{place} is a symbolic link: remove the images it leads to yourself, then the link")
        if place.is_dir():
            removed += _empty(place)
    return removed


def _empty(place: Path) -> int:
    files = sum(len(names) for _, _, names in os.walk(place))
    failed: list[str] = []
    for entry in list(place.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, onerror=lambda _, path, __: failed.append(str(path)))
            continue
        try:
            entry.unlink(missing_ok=True)
        except OSError:
            failed.append(str(entry))
    fsync_folder(place)
    if failed:
        raise VaultError(f"{len(failed)} entries of {place} cannot be removed, the first is {failed[0]}")
    return files


def _normal(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name)


def _signature(info: os.stat_result) -> _Signature:
    return info.st_size, info.st_mtime_ns, info.st_ino


def _entries(folder: int) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _kind(name: str, folder: int | None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None


@contextmanager
def _opened(name: "str | Path", parent: int | None) -> Iterator[int | None]:
    """Descriptor of a folder, or None; only the inbox itself may be a symbolic link."""
    flags = _FOLDER_FLAGS if parent is not None else _FOLDER_FLAGS & ~os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(name: str, folder: int, expected: os.stat_result) -> bytes | None:
    """The file's content, one byte more than allowed at most; None if it is gone or has changed."""
    try:
        # Never waits, should it have become a pipe meanwhile.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    with os.fdopen(descriptor, "rb") as stream:
        if _signature(os.fstat(descriptor)) != _signature(expected):
            return None
        data = stream.read(MAX_IMAGE_BYTES + 1)
        with suppress(OSError):
            if _signature(os.fstat(descriptor)) == _signature(expected):
                return data
    return None
