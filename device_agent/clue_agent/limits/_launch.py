"""``python _launch.py PARENT READY NICE DATA_BYTES COMMAND...``: run COMMAND under limits that it cannot lift.

A program of its own because the limits must be set after the fork, where a threaded daemon must not
run Python code. It is started by its path and uses nothing but the standard library, so that it is
through in a moment also on a small device.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
# What the kernel ends first when memory runs out; -1000 is never, 1000 always.
_OOM_SCORE = "800"


def main() -> None:
    """Set the limits, then become the command."""
    parent, ready, nice, data = (int(word) for word in sys.argv[1:5])
    command = sys.argv[5:]
    # A stopped process never gets to SIGTERM, only to SIGKILL.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    os.nice(nice)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123 - pathlib is slow to load
        stream.write(_OOM_SCORE)
    # 1 rather than 0: with 0 the kernel still pipes a dump into a collector such as apport; the memory holds the model.
    _limit(resource.RLIMIT_CORE, 1)
    _limit(resource.RLIMIT_DATA, data)
    # Closes when the command takes over, which tells the parent that this process may now be stopped.
    os.set_inheritable(ready, False)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


if __name__ == "__main__":
    main()
