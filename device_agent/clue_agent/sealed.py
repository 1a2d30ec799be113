"""Files encrypted under a key of their own, so that erasing one means destroying 32 bytes.

On flash, overwriting a file proves nothing: the controller writes elsewhere and keeps the old
blocks. So models and samples only ever reach the card encrypted (XChaCha20-Poly1305, libsodium's
``secretstream``), each under a fresh key that lies alone in a file of :class:`KeyRing`. Without
the key the rest is noise, wherever copies of it may linger. The key file itself lies on the same
card unless the ring is put elsewhere; its old block is the one thing that may linger there too.
"""

import io
import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from nacl import bindings as sodium
from nacl.exceptions import CryptoError

from clue_agent.errors import SealError
from clue_protocol.files import fsync_folder, private_folder, write_atomic_stream, write_new_secret

_MAGIC = b"clue-sealed-1\n"
_CHUNK = 1 << 18
_OVERHEAD = sodium.crypto_secretstream_xchacha20poly1305_ABYTES
_HEADER = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_KEY = sodium.crypto_secretstream_xchacha20poly1305_KEYBYTES
_MORE, _LAST = (
    sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
    sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL,
)
_TOGETHER = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class KeyRing:
    """One file of 32 bytes a key, in a folder that only its owner reads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str) -> bytes:
        """A fresh random key under ``name``, on disk before this returns; FileExistsError if there is one."""
        private_folder(self.root)
        key = os.urandom(_KEY)
        write_new_secret(self._path(name), key)
        return key

    def get(self, name: str) -> bytes:
        """The key called ``name``; SealError if it was destroyed or never made."""
        try:
            key = self._path(name).read_bytes()
        except FileNotFoundError:
            raise SealError(f"there is no key {name}: what it sealed is erased") from None
        except OSError as error:
            raise SealError(f"cannot read the key {name}: {error.strerror}") from None
        if len(key) != _KEY:
            raise SealError(f"the key {name} is damaged: it has {len(key)} bytes")
        return key

    def destroy(self, name: str) -> bool:
        """Overwrite and remove a key; False if there was none. Safe to repeat."""
        destroyed = self._destroy(name)
        if destroyed:
            fsync_folder(self.root)
        return destroyed

    def destroy_all(self, names: Collection[str]) -> int:
        """:meth:`destroy` for many; returns how many there were."""
        # A file system writes out together what several threads wait for at once.
        with ThreadPoolExecutor(min(_TOGETHER, len(names)) or 1) as pool:
            destroyed = sum(pool.map(self._destroy, names))
        if destroyed:
            fsync_folder(self.root)
        return destroyed

    def _destroy(self, name: str) -> bool:
        path = self._path(name)
        try:
            with path.open("r+b") as stream:
                stream.write(os.urandom(_KEY))
                stream.flush()
                os.fsync(stream.fileno())
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return True

    def names(self) -> list[str]:
        """Names of all keys, sorted."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name))
        return []

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SealError(f"{name!r} cannot be the name of a key")
        return self.root / name


def seal(data: "bytes | BinaryIO", target: Path, key: bytes) -> None:
    """Encrypt ``data`` into ``target``, atomically and durably; a stream is read in pieces."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    write_atomic_stream(target, _encrypt(stream, key), mode=0o600)


def unseal(path: Path, key: bytes) -> bytes:
    """The content of a sealed file; SealError unless every byte of it is as it was sealed under ``key``."""
    try:
        with path.open("rb") as stream:
            return b"".join(_decrypt(stream, path, key))
    except OSError as error:
        raise SealError(f"cannot read {path}: {error.strerror}") from None


def _encrypt(stream: BinaryIO, key: bytes) -> Iterator[bytes]:
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    yield _MAGIC + sodium.crypto_secretstream_xchacha20poly1305_init_push(state, key)
    piece = stream.read(_CHUNK)
    while True:
        following = stream.read(_CHUNK)
        # Only the last piece carries the closing tag: a file cut between two pieces lacks it.
        yield sodium.crypto_secretstream_xchacha20poly1305_push(state, piece, tag=_MORE if following else _LAST)
        if not following:
            return
        piece = following


def _decrypt(stream: BinaryIO, path: Path, key: bytes) -> Iterator[bytes]:
    head = stream.read(len(_MAGIC) + _HEADER)
    if len(head) != len(_MAGIC) + _HEADER or not head.startswith(_MAGIC):
        raise SealError(f"{path} is not a sealed file, or its beginning is damaged")
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    try:
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, head[len(_MAGIC) :], key)
        last = False
        while block := stream.read(_CHUNK + _OVERHEAD):
            if last:
                raise SealError(f"{path} goes on after its end")
            part, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, block)
            last = tag == _LAST
            yield part
        if not last:
            raise SealError(f"{path} is cut short")
    except (CryptoError, RuntimeError, ValueError):
        raise SealError(f"{path} is damaged, or was sealed under another key") from None
