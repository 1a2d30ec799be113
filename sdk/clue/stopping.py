"""A supervisor's stop and Ctrl-C as exceptions that no library loses."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED, TERMINATED = 130, 143
_ASK_AGAIN_SECONDS = 5.0
_IMPORT_SECONDS = 0.1


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM unwind the block as SIGINT does, so that half-written folders do not stay behind.

    An exception in the middle of an import is swallowed by the compiled part of numpy and ends torch's with
    abort(): the first signal waits until the import is over, a second one does not. Python drops an exception that
    is raised inside a destructor or a callback: as long as nothing unwinds, the stop is asked for again. Whatever
    leaves the block after a signal is the stop, also where a library has put an error of its own in its place.
    Work that ends well before that counts as done. For the main thread.

    Raises:
        KeyboardInterrupt: SIGINT came.
        SystemExit: SIGTERM came; the code is ``TERMINATED``.
    """
    came: list[int] = []
    previous: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        # Not before: until a stop came the timer belongs to whoever set it.
        if not came:
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, ask_again)
        came.append(number)
        if len(came) == 1 and _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _IMPORT_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_SECONDS)
        raise _stop_of(number)

    def ask_again(_number: int, frame: FrameType | None) -> None:
        importing = _is_importing(frame)
        signal.setitimer(signal.ITIMER_REAL, _IMPORT_SECONDS if importing else _ASK_AGAIN_SECONDS)
        # Cleaning up may take longer and must not be cut off.
        if not importing and not _is_unwinding():
            raise _stop_of(came[0])

    try:
        previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not where a shell made us ignore it
            previous[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
        yield
    except BaseException as error:
        if not came:
            raise
        raise _stop_of(came[0]) from error
    finally:
        if came:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_of(number: int) -> BaseException:
    return SystemExit(TERMINATED) if number == signal.SIGTERM else KeyboardInterrupt()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the code that a signal cut off belongs to an import."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _is_unwinding() -> bool:
    """Whether the code that a signal cut off runs on behalf of a stop on its way out."""
    error = sys.exception()
    while error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
        error = error.__context__
    return error is not None
