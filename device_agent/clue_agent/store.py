"""The model in use: two slots and a symbolic link that is switched by one atomic rename.

``model/current`` points at ``a`` or ``b``; each slot holds a sealed bundle::

    model.json           the spec, in the clear; its SHA-256 is the model's digest
    key-id               which key opens the weights
    weights.sealed       safetensors, under a key of its own (see clue_agent.sealed)
    calibration.json     what the device measured of this model (optional)

A new model is built in ``model/new``, where nothing looks for a model to use (a base model that came in
waits in ``model/incoming``), and takes the place of the slot that is not in use once it has passed the
guard (:meth:`ModelStore.promote`). At every moment, power cut included, ``current`` names a whole bundle: it
is renamed only after the new one is on disk. Between jobs both slots hold the same model, so that one may
rot: :meth:`ModelStore.repair` goes back to the whole one and says so.
"""

import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clue.errors import BundleError
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec, verify_weights
from clue_agent.errors import SealError, StoreError
from clue_agent.sealed import KeyRing, seal, unseal
from clue_protocol.files import fsync_folder, private_folder, write_atomic

log = logging.getLogger(__name__)

_SLOTS = ("a", "b")
CANDIDATE, INCOMING = "new", "incoming"
_SEALED, _KEY_ID, _CALIBRATION = "weights.sealed", "key-id", "calibration.json"
_BASE = "base-digest"


@dataclass(frozen=True)
class StoredModel:
    """A bundle read from a slot, its digests checked.

    Attributes:
        slot: where it lies.
        spec: its classes, sizes and forgotten classes.
        digest: SHA-256 (hex) of ``model.json``, which pins the weights.
        weights: the safetensors file, decrypted.
        calibration: what the device measured of this model; empty if it has not.
    """

    slot: str
    spec: ModelSpec
    digest: str
    weights: bytes = field(repr=False)
    calibration: dict[str, Any] = field(default_factory=dict)


class ModelStore:
    """The store at ``root`` whose keys lie in ``ring`` (see module docstring)."""

    def __init__(self, root: Path, ring: KeyRing) -> None:
        self.root = root
        self.ring = ring

    # Reading

    @property
    def current(self) -> Path:
        """The link to the slot in use."""
        return self.root / "current"

    def current_slot(self) -> str:
        """Name of the slot in use; StoreError if the link is missing or foreign."""
        try:
            name = self.current.readlink().name
        except OSError:
            raise StoreError(f"{self.current} is missing: run 'clue-agent init' with a model") from None
        if name not in _SLOTS:
            raise StoreError(f"{self.current} points to {name!r}, which is not a slot")
        return name

    def other_slot(self) -> str:
        """Name of the slot that is not in use."""
        return _SLOTS[1 - _SLOTS.index(self.current_slot())]

    def slot(self, name: str) -> Path:
        """Folder of a slot."""
        return self.root / name

    def fingerprint(self) -> tuple[str, int, int]:
        """Changes whenever another model is in use, and costs two system calls; StoreError if there is none."""
        name = self.current_slot()
        try:
            found = (self.slot(name) / SPEC_FILE).stat()
        except OSError:
            raise StoreError(f"{self.slot(name) / SPEC_FILE} is missing: the slot is damaged") from None
        return name, found.st_ino, found.st_mtime_ns

    def spec(self, slot: str | None = None) -> tuple[ModelSpec, str]:
        """Spec and digest of the model in use (or in ``slot``), weights not read; StoreError if it is damaged."""
        name = slot or self.current_slot()
        try:
            return read_spec(self.slot(name))
        except BundleError as error:
            if slot is None and self.current_slot() != name:
                return self.spec()  # another was switched to meanwhile, and this one erased
            raise StoreError(str(error)) from None

    def read(self, slot: str | None = None) -> StoredModel:
        """The model in use (or in ``slot``), every byte checked; StoreError if it is damaged."""
        name = slot or self.current_slot()
        spec, digest = self.spec(name)
        folder = self.slot(name)
        try:
            weights = unseal(folder / _SEALED, self.ring.get(self._key_id(name)))
        except SealError as error:
            raise StoreError(f"the model in slot {name} cannot be read: {error}") from None
        if hashlib.sha256(weights).hexdigest() != spec.weights_sha256:
            raise StoreError(f"the weights in slot {name} do not match their digest: the slot is damaged")
        try:
            calibration = json.loads((folder / _CALIBRATION).read_bytes())
        except (OSError, ValueError):
            calibration = {}
        return StoredModel(name, spec, digest, weights, calibration if isinstance(calibration, dict) else {})

    def base_digest(self) -> str:
        """Digest of the model as it was given, before anything was forgotten in it; empty if that is not known."""
        try:
            return (self.root / _BASE).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            pass
        try:
            spec, digest = self.spec()
        except StoreError:
            return ""
        # A home of before this was written down: it can still be told where nothing was forgotten yet.
        return "" if spec.forgotten else digest

    def note_base(self, digest: str) -> None:
        """Remember the digest of the model as it was given, durably."""
        path = self.root / _BASE
        if not path.is_file() or path.read_bytes() != f"{digest}\n".encode():
            write_atomic(path, f"{digest}\n".encode())

    def size(self) -> int:
        """Bytes of the sealed weights in use."""
        return (self.current / _SEALED).stat().st_size

    def verify(self) -> tuple[ModelSpec, str]:
        """Like :meth:`spec`, and the weights are whole."""
        stored = self.read()
        return stored.spec, stored.digest

    def is_whole(self, slot: str, digest: str) -> bool:
        """True if the slot holds a complete bundle with this digest."""
        try:
            return self.read(slot).digest == digest
        except StoreError:
            return False

    # Writing

    def install(self, bundle: Path) -> None:
        """Seal the first model in; BundleError if it is damaged, StoreError if a model is there."""
        if self.current.is_symlink():
            raise StoreError(f"{self.root} already holds a model")
        spec, digest = read_spec(bundle)
        verify_weights(bundle, spec)
        private_folder(self.root)
        self.note_base(digest)
        text, weights = (bundle / SPEC_FILE).read_bytes(), (bundle / WEIGHTS_FILE).read_bytes()
        for name in _SLOTS:
            self.write(name, text, weights)
        self._point_to(_SLOTS[0])

    def write(self, slot: str, spec_text: bytes, weights: bytes, calibration: dict[str, Any] | None = None) -> None:
        """Fill a slot that is not in use. ``model.json`` comes last: without it the slot does not count as a model."""
        self.erase(slot)
        folder = self.slot(slot)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"model-{slot}-{os.urandom(8).hex()}"
        # The id first: a key that no slot names would never be destroyed.
        write_atomic(folder / _KEY_ID, name.encode())
        seal(weights, folder / _SEALED, self.ring.create(name))
        if calibration is not None:
            write_atomic(folder / _CALIBRATION, json.dumps(calibration).encode())
        write_atomic(folder / SPEC_FILE, spec_text)
        fsync_folder(self.root)

    def promote(self, digest: str) -> bool:
        """Put the candidate with this digest to use; False if it is not whole. Safe to repeat after a crash."""
        other = self.other_slot()
        if self.is_whole(self.current_slot(), digest):
            return True
        if not self.is_whole(other, digest):
            if not self.is_whole(CANDIDATE, digest):
                return False
            self.erase(other)
            self.slot(CANDIDATE).rename(self.slot(other))
            fsync_folder(self.root)
        self._point_to(other)
        return True

    def erase(self, slot: str) -> bool:
        """Destroy the key of a slot and empty it; True if there was a key. Safe to repeat after a crash."""
        if self.current.is_symlink() and self.current_slot() == slot:
            raise StoreError(f"slot {slot} is in use and cannot be erased")
        folder = self.slot(slot)
        if not folder.exists():
            return False
        destroyed = False
        with suppress(SealError):
            destroyed = self.ring.destroy(self._key_id(slot))
        (folder / SPEC_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder)
        fsync_folder(self.root)
        return destroyed

    def drop_orphans(self) -> int:
        """Destroy the keys of models that no slot names, such as of a slot whose ``key-id`` rotted; how many."""
        # The keys first: who fills a slot names its key before there is one.
        keys = [name for name in self.ring.names() if name.startswith("model-")]
        named = set()
        for slot in (*_SLOTS, CANDIDATE, INCOMING):
            with suppress(SealError):
                named.add(self._key_id(slot))
        return self.ring.destroy_all([name for name in keys if name not in named])

    def mirror(self) -> None:
        """Make the slot that is not in use a second copy of the model in use, under another key."""
        stored = self.read()
        other = self.other_slot()
        if not self.is_whole(other, stored.digest):
            self.write(other, (self.slot(stored.slot) / SPEC_FILE).read_bytes(), stored.weights, stored.calibration)

    def repair(self) -> str:
        """Go back to the whole slot if the one in use is damaged; returns what was done, or nothing.

        StoreError if neither slot holds a whole model.
        """
        try:
            self.read()
        except StoreError as error:
            damage = str(error)
        else:
            return ""
        for name in _SLOTS:
            try:
                digest = self.read(name).digest
            except StoreError:
                continue
            self._point_to(name)
            log.error("%s; slot %s is whole and in use now (%s)", damage, name, digest[:16])
            return f"{damage}; went back to slot {name}"
        raise StoreError(f"{damage}; the other slot holds no whole model either: run 'clue-agent update-model BUNDLE'")

    def _key_id(self, slot: str) -> str:
        try:
            return (self.slot(slot) / _KEY_ID).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise SealError(f"slot {slot} does not say which key opens it") from None

    def _point_to(self, slot: str) -> None:
        fresh = self.root / ".current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(slot)
        fresh.replace(self.current)
        fsync_folder(self.root)
