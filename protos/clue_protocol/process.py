"""Child processes of the daemons: started again when they die, gone when the daemon is gone."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0
_STABLE_AFTER = 60.0


def spawn(command: Sequence[str], env: Mapping[str, str] | None = None, **popen: object) -> "subprocess.Popen[bytes]":
    """Start ``command`` in a session of its own; the kernel ends it when the calling THREAD ends."""
    wrapped = [sys.executable, "-m", "clue_protocol._child", str(os.getpid()), *command]
    return subprocess.Popen(wrapped, env=dict(env) if env is not None else None, start_new_session=True, **popen)  # type: ignore[call-overload,no-any-return]


def stop(process: "subprocess.Popen[bytes]", grace: float = 10.0) -> None:
    """End a child and everything it started: SIGTERM, then SIGKILL to what is left after ``grace`` seconds."""
    family = _family(process.pid)
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    # Grandchildren usually follow by themselves; those that do not are ended one by one.
    _, alive = psutil.wait_procs([p for p in family if p.pid != process.pid], timeout=grace / 4)
    for straggler in alive:
        with suppress(psutil.Error):
            straggler.kill()
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


class Supervisor:
    """Keeps one child running until :meth:`close`; restarts it with growing pauses.

    Args:
        name: for the log.
        command: called before every start, so that a restart sees fresh arguments.
        env: environment of the child.
        log_file: where its output goes, rotated at 1 MB.
        on_exit: called with the exit code each time it ends by itself.
        on_line: called with every line it prints, from a thread of its own; must not block.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        env: Mapping[str, str],
        log_file: Path,
        on_exit: Callable[[int], None] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._name = name
        self._command = command
        self._env = env
        self._log_file = log_file
        self._on_exit = on_exit
        self._on_line = on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        # The child lives as long as the thread that started it (see spawn), hence one thread per child.
        self._thread = threading.Thread(target=self._run, name=f"supervise-{name}", daemon=True)

    def start(self) -> None:
        """Start the child and watch it."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the running child, None between two starts."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def restart(self) -> None:
        """End the running child; it is started again after a pause."""
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            stop(process)

    def close(self) -> None:
        """End the child for good."""
        self._closing.set()
        self.restart()
        self._thread.join(30)

    def _run(self) -> None:
        delay = _FIRST_DELAY
        while not self._closing.is_set():
            started = time.monotonic()
            code = self._run_once()
            if self._closing.is_set():
                return
            if time.monotonic() - started > _STABLE_AFTER:
                delay = _FIRST_DELAY
            log.warning("%s ended with code %s; starting it again in %.0f s", self._name, code, delay)
            if self._on_exit is not None:
                self._on_exit(code)
            self._closing.wait(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _run_once(self) -> int:
        try:
            with self._lock:
                if self._closing.is_set():
                    return 0
                self._process = process = spawn(
                    self._command(),
                    self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            log.error("cannot start %s: %s", self._name, error)
            return 127
        copier = threading.Thread(target=self._copy_output, args=(process,), daemon=True)
        copier.start()
        self._end_orphans(process)
        code = process.wait()
        copier.join(2)
        return code

    def _end_orphans(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the child's end, then kill what it left in its group: the next start must not find it."""
        with suppress(ChildProcessError):  # stop() was faster, and looks after the family itself
            # Not reaped yet, so the number of the group cannot have been given to anyone else.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with suppress(ProcessLookupError, PermissionError):
                if not self._closing.is_set():
                    os.killpg(process.pid, signal.SIGKILL)

    def _copy_output(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None  # noqa: S101
        handler = RotatingFileHandler(self._log_file, maxBytes=1_000_000, backupCount=2, delay=True)
        with suppress(OSError, ValueError):
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip("\n")
                if self._on_line is not None:
                    self._on_line(text)
                handler.emit(logging.makeLogRecord({"msg": text}))
        handler.close()
