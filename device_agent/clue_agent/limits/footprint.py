"""How much memory a process and its children hold."""

import re
from contextlib import suppress
from pathlib import Path

import psutil

_PROC = Path("/proc")
_HELD = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.MULTILINE)
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class Family:
    """A process and all that descends from it, as found by the last :meth:`refresh`, which reads all of /proc."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._children: dict[int, psutil.Process] = {}

    def refresh(self) -> None:
        """Look for new children. Those seen before stay known as long as they live, whoever their parent is now."""
        # Not by number alone: the number of a dead child may be another process by now.
        self._children = {pid: child for pid, child in self._children.items() if child.is_running()}
        with suppress(psutil.Error):
            for child in psutil.Process(self._pid).children(recursive=True):
                self._children.setdefault(child.pid, child)

    def bytes_held(self) -> int:
        """Anonymous, shared and swapped-out memory of all members, in bytes.

        Pages of files, such as torch's libraries, are left out: the kernel drops and reloads them as it likes.
        Memory that members share after a fork counts for each of them, so the sum is never too low.
        """
        return sum(_bytes_held(pid) for pid in (self._pid, *self._children))

    def kill_children(self) -> None:
        """SIGKILL to every child seen that still lives; psutil makes sure that no number was given to another."""
        for child in self._children.values():
            with suppress(psutil.Error):
                child.kill()


def _bytes_held(pid: int) -> int:
    with suppress(OSError):
        return 1024 * sum(int(kib) for kib in _HELD.findall((_PROC / str(pid) / "status").read_bytes()))
    return 0


def available_bytes() -> int:
    """Memory that can be had without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def kernel_oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer ended since boot."""
    with suppress(OSError):
        if match := _OOM_KILLS.search((_PROC / "vmstat").read_text()):
            return int(match.group(1))
    return 0
