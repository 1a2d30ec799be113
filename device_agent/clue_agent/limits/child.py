"""A command in a process group of its own, whose output is read and which can be paused and ended for certain."""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from clue_agent.limits.footprint import Family
from clue_protocol.process import spawn

_LAUNCH = Path(__file__).with_name("_launch.py")
_PIECE = 1 << 16
_LONGEST_LINE = 16 << 20
# Even SIGKILL waits for a disk that does not answer.
_DEATH_SECONDS = 10.0


class Child:
    """A running command; leaving the context ends it and all it started.

    Args:
        command: program and arguments.
        environment: its environment.
        log_path: file for its stderr.
        on_line: called with each line of stdout by :meth:`read` and :meth:`end`.
        nice: added to this process's niceness.
        data: RLIMIT_DATA in bytes: allocations beyond it fail, touched or not.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        on_line: Callable[[bytes], None],
        *,
        nice: int,
        data: int,
    ) -> None:
        self._lines = _Lines(on_line)
        self._launched = self._paused = False
        with ExitStack() as cleanup:
            # Appending, so that the log can be cut under the writer.
            self._log = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            cleanup.callback(os.close, self._log)
            self._ready, ready = os.pipe()
            cleanup.callback(os.close, self._ready)
            try:
                launch = [str(os.getpid()), str(ready), str(nice), str(data), *command]
                self._process = spawn(
                    [sys.executable, "-I", "-S", str(_LAUNCH), *launch],
                    environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    pass_fds=(ready,),
                )
            finally:
                os.close(ready)
            self._cleanup = cleanup.pop_all()
        assert self._process.stdout is not None  # noqa: S101
        self._stdout = self._process.stdout.fileno()
        self._cleanup.callback(self._process.stdout.close)
        os.set_blocking(self._stdout, False)
        self.family = Family(self._process.pid)
        self._selector = self._cleanup.enter_context(selectors.DefaultSelector())
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._ready, selectors.EVENT_READ)
        with suppress(OSError):  # before Linux 5.3 the end is noticed at the next look instead of at once
            descriptor = os.pidfd_open(self._process.pid)
            self._cleanup.callback(os.close, descriptor)
            self._selector.register(descriptor, selectors.EVENT_READ)

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        self._cleanup.close()

    def has_ended(self) -> bool:
        """Whether the command itself ended, by whatever cause. It is not reaped: its number stays taken."""
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            return ended is not None
        return True

    def read(self, seconds: float) -> None:
        """Wait for output or the end, at most ``seconds``; passes complete lines on."""
        for key, _ in self._selector.select(seconds):
            if key.fd == self._stdout:
                if self._read_piece() == b"":
                    self._selector.unregister(self._stdout)
            elif key.fd == self._ready:
                self._launched = True
                self._selector.unregister(self._ready)

    def pause(self, paused: bool) -> None:
        """Stop the group, or let it go on."""
        # Not before the launcher is done: stopped earlier, it would not die with this process yet.
        if self._launched and paused != self._paused:
            self._signal(signal.SIGSTOP if paused else signal.SIGCONT)
            self._paused = paused

    def cut_log(self, most: int) -> None:
        """Keep a quarter of the log, its end, if it has more than ``most`` bytes: complaining for ever fills no card.

        The end, because the last words of a program say why it ended.
        """
        size = os.fstat(self._log).st_size
        if size > most:
            end = os.pread(self._log, most, size - most // 4)  # more than asked for, if it was written to meanwhile
            os.ftruncate(self._log, 0)
            os.write(self._log, end)

    def end(self) -> int | None:
        """Kill what is left, pass on what was written, and return the code; None if not even SIGKILL helped."""
        self._kill()
        with suppress(BlockingIOError):
            # Bounded, should a stranger have got hold of the pipe and fill it.
            for _ in range(2 * _LONGEST_LINE // _PIECE):
                if self._read_piece() == b"":
                    break
        self._lines.close()
        return self._process.returncode

    def _kill(self) -> None:
        if self._process.returncode is not None:
            return
        self.family.refresh()
        self._signal(signal.SIGKILL)
        self.family.kill_children()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DEATH_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        # Not reaped, so the number of the group cannot have been given to anyone else.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read_piece(self) -> bytes | None:
        piece = os.read(self._stdout, _PIECE)
        self._lines.feed(piece)
        return piece


class _Lines:
    """Cuts a stream into lines; one that is too long to be a message is dropped."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._rest = bytearray()
        self._skipping = False

    def feed(self, piece: bytes) -> None:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            line, skip = bytes(self._rest) + part, self._skipping
            self._rest.clear()
            self._skipping = False
            if not skip:
                self._on_line(line)
        self._rest += rest
        if len(self._rest) > _LONGEST_LINE:
            self._rest.clear()
            self._skipping = True

    def close(self) -> None:
        """Pass on a last line without a newline."""
        if self._rest and not self._skipping:
            self._on_line(bytes(self._rest))
        self._rest.clear()


def last_line(log_path: Path) -> str:
    """The last line of a log that is not blank, at most 300 characters; empty if there is none."""
    with suppress(OSError), log_path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 8192))
        lines = stream.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""
    return ""
