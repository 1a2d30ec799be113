"""Files that survive a power cut, secrets that only their owner reads, and one daemon per home."""

import fcntl
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from clue_protocol.errors import AlreadyRunningError, SocketPathError

# sun_path holds 108 bytes on Linux, with the closing zero; gRPC needs a little room too.
_LONGEST_SOCKET_PATH = 100


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``: readers see the old file or the new one, also after a power cut."""
    write_atomic_stream(path, (data,), mode)


def write_atomic_stream(path: Path, pieces: Iterable[bytes], mode: int = 0o644) -> None:
    """:func:`write_atomic` for what should not be in memory at once."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_new_secret(path: Path, data: bytes) -> None:
    """Write ``data`` with mode 0600; FileExistsError if ``path`` exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def private_folder(path: Path) -> Path:
    """Make ``path`` (and its parents) with mode 0700; returns it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


LOCK_FILE = "daemon.lock"


class HomeLock:
    """Held by the one daemon of a home folder; the kernel drops it when the process dies."""

    def __init__(self, home: Path) -> None:
        self._path = home / LOCK_FILE
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock; AlreadyRunningError names the process that holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            who = f" (process {holder})" if holder else ""
            raise AlreadyRunningError(f"{self._path.parent} is in use by another daemon{who}: stop it first") from None
        self._descriptor = descriptor
        # Only for the message above: the lock holds without it, on a full disk too.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def socket_path(home: Path, name: str) -> Path:
    """Where to put the Unix socket ``name``: in ``home``, or in a private folder if that path is too long."""
    path = home / name
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    path = Path(tempfile.mkdtemp(prefix="clue-")) / name  # mkdtemp makes it 0700
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise SocketPathError(f"{path} is too long for a Unix socket: set TMPDIR to a shorter folder")
    return path
