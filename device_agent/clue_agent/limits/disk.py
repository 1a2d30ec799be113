"""Is there room before a job starts? A full card halfway through costs more than a late start."""

import os
from pathlib import Path

_FEWEST_FILES = 64


def check_free(folder: Path, needed_bytes: int, reserve_bytes: int) -> str | None:
    """None if ``needed_bytes`` fit on the disk of ``folder`` and leave ``reserve_bytes``; else why not, in one line.

    Counts what an ordinary user may write (the blocks kept for root are not free), and also says so if the
    disk is mounted read-only, as Linux does with a failing SD card, or has no room for further files.
    """
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return f"cannot see how much room is on the disk of {folder}: {error.strerror}"
    if disk.f_flag & os.ST_RDONLY:
        return f"the disk of {folder} is read-only: mount it writable; a worn SD card turns read-only by itself"
    if disk.f_files > 0 and disk.f_favail < _FEWEST_FILES:
        return f"the disk of {folder} has room for {disk.f_favail} more files only: remove some"
    free = disk.f_bavail * disk.f_frsize
    missing = needed_bytes + reserve_bytes - free
    if missing <= 0:
        return None
    return (
        f"the disk of {folder} has {_mib(free)} MiB free, but the job needs {_mib(needed_bytes)} "
        f"and {_mib(reserve_bytes)} must stay free: make room for {_mib(missing)} MiB"
    )


def _mib(count: int) -> int:
    return -(-count >> 20)
