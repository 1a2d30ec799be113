"""Where forget samples live: sealed under a key each, split once for all, never more than the limits allow.

::

    vault.json          the limits and the holdout share it was begun with
    secret              of this vault alone: it decides the split and the folder names
    lock                held by whoever changes anything; its content changes with every change
    in-use              locked while a job reads: nothing is evicted meanwhile
    <class>/            keyed hash of the class's name, which stands in class.json
      forget/<id>.sealed  holdout/<id>.sealed
      erasing           the class is being erased: nothing is read from it or added to it any more

Opening a sample takes two keys of the ring, its own and that of its class. Evicting it destroys its own;
erasing the class destroys that of the class, which makes all of it unreadable in one step, and then all
the others. An id is a hash of the image file under the key of the class, too: once that is gone, not even
a lingering file name tells whether a known image was among them.

Which part an image belongs to follows from its content alone, so that an image that was ever held out
is never used to forget, in whichever class, and however often it is offered again.

A key is on disk before the file that it seals, and a file is gone before its key (a whole class is
marked first): whatever a crash leaves is found by :meth:`Vault.sweep`.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path

from clue_agent.errors import SampleRefusedError, SealError, VaultError
from clue_agent.images import check_image
from clue_agent.retention import PARTS, Part, Shelf, VaultLimits, surplus
from clue_agent.sealed import KeyRing, seal, unseal
from clue_agent.vault_files import (
    CLASS,
    ERASING,
    IN_USE,
    SUFFIX,
    VaultIndex,
    class_folders,
    class_name,
    drop_temporary,
    is_held,
    open_limits,
    open_secret,
    sealed_files,
    sealed_ids,
    write_limits,
)
from clue_protocol.files import fsync_folder, private_folder, write_atomic

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What became of an image that was offered."""

    ADDED = "added"
    DUPLICATE = "duplicate"
    # The class, or the vault, is full and the draw went against it: it will never be kept.
    NOT_KEPT = "not kept"
    # It would displace a sample while a job reads the vault: offer it again later.
    BUSY = "busy"


@dataclass(frozen=True, order=True)
class Item:
    """One sample: its class, its part ("forget" or "holdout") and its id."""

    name: str
    part: Part
    id: str


@dataclass(frozen=True)
class Erased:
    """What :meth:`Vault.erase` did, earlier tries that were cut off included.

    Attributes:
        items: samples of the class, both parts.
        bytes: their size, encrypted.
        keys_destroyed: keys of samples that are no more.
    """

    items: int = 0
    bytes: int = 0
    keys_destroyed: int = 0


@dataclass(frozen=True)
class Swept:
    """What :meth:`Vault.sweep` found and put right.

    Attributes:
        files: half-written files, files without a key, samples above the limits.
        keys: keys that opened nothing any more.
        erased: by class, erasures that a crash had cut off and that are complete now.
    """

    files: int = 0
    keys: int = 0
    erased: Mapping[str, Erased] = field(default_factory=dict)


class Vault:
    """The vault at ``root``, made if there is none; safe to use from several threads and processes.

    Args:
        root: its folder.
        ring: holds the keys.
        limits: what is kept; without them the vault's own.

    Raises:
        VaultError: it cannot be opened, or it holds samples that were split by another holdout share.
    """

    def __init__(self, root: Path, ring: KeyRing, limits: VaultLimits | None = None) -> None:
        self.root = root
        self.ring = ring
        self._index = VaultIndex(root)
        with self._storage():
            private_folder(root)
            with self._index.locked():
                self._secret = open_secret(root)
                self.limits = open_limits(root, limits)

    # Reading takes no lock: a name is there or it is not.

    def classes(self) -> list[str]:
        """Names of the classes that have samples, sorted."""
        names = map(class_name, class_folders(self.root))
        return sorted(name for name in names if name and any(self.items(name, part) for part in PARTS))

    def items(self, name: str, part: Part) -> list[Item]:
        """The samples of one part of a class, sorted by id; none while the class is being erased."""
        folder = self._folder(name)
        if (folder / ERASING).exists():
            return []
        return [Item(name, part, identity) for identity in sorted(sealed_ids(folder / part))]

    def count(self, name: str, part: Part) -> int:
        """Number of samples of one part of a class."""
        return len(self.items(name, part))

    def read(self, item: Item) -> bytes:
        """The image file as it was offered; SealError if it is damaged, evicted or erased."""
        folder = self._folder(item.name)
        own, of_class = self.ring.get(_key_name(item.id)), self.ring.get(_class_key_name(folder.name))
        return unseal(folder / item.part / (item.id + SUFFIX), _content_key(own, of_class))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside the block no sample is evicted for a newer one; erasing a class goes ahead all the same.

        For a job, which lists the samples once and reads them again and again.
        """
        with self._storage(), self._index.locked():
            descriptor = os.open(self.root / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(descriptor)

    # Changing

    def add(self, name: str, data: bytes, refused: Callable[[], Collection[str]] = tuple) -> Outcome:
        """Offer an image; on disk, sealed, when this returns ADDED.

        Args:
            name: its class, any text.
            data: a PNG or JPEG file.
            refused: classes of which nothing may be stored. It is asked while the vault is locked: a class
                that is forgotten and erased while an app adds to it stays erased.

        Raises:
            SampleRefusedError: it is no usable image, or the class is refused.
            VaultError: the class is being erased, or the storage failed.
        """
        if not name:
            raise SampleRefusedError("a sample needs the name of a class")
        check_image(data)
        with self._storage(), self._index.changing() as shelves:
            if name in refused():
                raise SampleRefusedError(f"{name!r} is forgotten: no image of it is stored")
            folder = self._open_class(name, shelves)
            shelf = shelves[folder.name]
            of_class = self._class_key(folder, shelf)
            part, identity = self._part(data), _hash(data, of_class, 20, b"sample id").hex()
            if identity in shelf[part]:
                return Outcome.DUPLICATE
            shelf[part][identity] = _sealed_size(len(data))
            gone = surplus(shelves, self.limits)
            full = (folder.name, part, identity) in gone
            if full or (gone and is_held(self.root / IN_USE)):
                del shelf[part][identity]
                return Outcome.NOT_KEPT if full else Outcome.BUSY
            self._store(folder / part / (identity + SUFFIX), identity, of_class, data)
            for victim in gone:
                self._evict(shelves, *victim)
            return Outcome.ADDED

    def erase(self, name: str) -> Erased:
        """Destroy every sample of a class and their keys; repeat it after a crash, it goes on."""
        with self._storage(), self._index.changing() as shelves:
            erased = self._erase_folder(self._folder(name))
            shelves.pop(self._folder(name).name, None)
            # What an app that was killed left behind may be of this class.
            self._drop_orphans(shelves)
        return erased

    def sweep(self) -> Swept:
        """Put right what crashes left, and apply the limits; for the daemon's start, before any job reads."""
        with self._storage(), self._index.changing() as shelves:
            write_limits(self.root, self.limits)
            files = drop_temporary(self.root)
            erased: dict[str, Erased] = {}
            for folder in list(class_folders(self.root)):
                name = class_name(folder)
                if self._is_doomed(folder):
                    if sealed_files(folder):
                        log.warning("completing the erasure of %r", name or folder.name)
                    done = self._erase_folder(folder)
                    if name is not None:
                        erased[name] = done
                else:
                    files += sum(drop_temporary(place) for place in (folder, *(folder / part for part in PARTS)))
                    files += self._drop_keyless(folder)
            shelves.clear()
            shelves.update(self._index.read())
            keys = self._drop_orphans(shelves)
            gone = surplus(shelves, self.limits)
            for victim in gone:
                self._evict(shelves, *victim)
        return Swept(files + len(gone), keys, erased)

    # One sample

    def _store(self, path: Path, identity: str, of_class: bytes, data: bytes) -> None:
        self.ring.destroy(_key_name(identity))  # left by a crash: nothing is sealed under it
        try:
            seal(data, path, _content_key(self.ring.create(_key_name(identity)), of_class))
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                self.ring.destroy(_key_name(identity))
            raise

    def _evict(self, shelves: dict[str, Shelf], folder: str, part: Part, identity: str) -> None:
        place = self.root / folder / part
        (place / (identity + SUFFIX)).unlink(missing_ok=True)
        fsync_folder(place)
        self.ring.destroy(_key_name(identity))
        del shelves[folder][part][identity]

    def _part(self, data: bytes) -> Part:
        draw = int.from_bytes(_hash(data, self._secret, 8, b"split"), "big")
        return "holdout" if draw < self.limits.holdout_share * 2**64 else "forget"

    # One class

    def _folder(self, name: str) -> Path:
        return self.root / _hash(name.encode("utf-8", "surrogatepass"), self._secret, 16, b"class").hex()

    def _open_class(self, name: str, shelves: dict[str, Shelf]) -> Path:
        folder = self._folder(name)
        if (folder / ERASING).exists():
            raise VaultError(f"the samples of {name!r} are being erased: nothing is added to them")
        if not (folder / CLASS).exists():
            for part in PARTS:
                private_folder(folder / part)
            write_atomic(folder / CLASS, json.dumps({"name": name}).encode(), mode=0o600)
            fsync_folder(self.root)
        shelves.setdefault(folder.name, {part: {} for part in PARTS})
        return folder

    def _class_key(self, folder: Path, shelf: Shelf) -> bytes:
        name = _class_key_name(folder.name)
        try:
            return self.ring.get(name)
        except SealError as error:
            if any(shelf.values()):
                raise VaultError(
                    f"its samples can no longer be read and are removed at the next start: {error}"
                ) from None
            self.ring.destroy(name)  # a crash may have left it cut short
            return self.ring.create(name)

    def _is_doomed(self, folder: Path) -> bool:
        """Its erasure has begun, or what is left of it nobody can read or find."""
        if (folder / ERASING).exists() or class_name(folder) is None:
            return True
        try:
            self.ring.get(_class_key_name(folder.name))
        except SealError:
            return bool(sealed_files(folder))
        return False

    def _erase_folder(self, folder: Path) -> Erased:
        if not folder.exists():
            return Erased()
        sealed = sealed_files(folder)
        names = [_key_name(path.stem) for path in sealed]
        marker = folder / ERASING
        try:
            erased = Erased(**json.loads(marker.read_bytes()))
        except (OSError, ValueError, TypeError):
            keys = len(set(names).intersection(self.ring.names()))
            erased = Erased(len(sealed), sum(path.stat().st_size for path in sealed), keys)
            # On a full card it is done without: then a crash costs the numbers, not the erasure.
            with suppress(OSError):
                write_atomic(marker, json.dumps(vars(erased)).encode(), mode=0o600)
        self.ring.destroy(_class_key_name(folder.name))
        self.ring.destroy_all(names)
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
        shutil.rmtree(folder)
        fsync_folder(self.root)
        return erased

    # What crashes leave

    def _drop_keyless(self, folder: Path) -> int:
        dropped = 0
        for path in sealed_files(folder):
            try:
                self.ring.get(_key_name(path.stem))
            except SealError:
                path.unlink(missing_ok=True)
                fsync_folder(path.parent)
                self.ring.destroy(_key_name(path.stem))
                dropped += 1
        return dropped

    def _drop_orphans(self, shelves: Mapping[str, Shelf]) -> int:
        needed = {_class_key_name(folder) for folder in shelves}
        needed |= {_key_name(identity) for shelf in shelves.values() for ids in shelf.values() for identity in ids}
        ours = [name for name in self.ring.names() if name.startswith(("sample-", "class-"))]
        return self.ring.destroy_all([name for name in ours if name not in needed])

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise VaultError(f"the vault {self.root} cannot be used: {error.strerror or error}") from error


def _key_name(identity: str) -> str:
    return f"sample-{identity}"


def _class_key_name(folder: str) -> str:
    return f"class-{folder}"


def _hash(data: bytes, key: bytes, size: int, purpose: bytes) -> bytes:
    return blake2b(data, key=key, digest_size=size, person=purpose).digest()


def _content_key(own: bytes, of_class: bytes) -> bytes:
    return _hash(own, of_class, 32, b"sample key")


def _sealed_size(length: int) -> int:
    # At least what seal() makes of it: a header, and a tag for every started 256 KiB.
    return length + 64 + 17 * (length >> 18)
