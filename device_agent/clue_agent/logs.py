"""``clue-agent logs``: what the agent and its child processes said, from journald or from the files in its home.

The daemon writes to standard error, which is journald under systemd; its children write to files under
``logs/``, rotated at 1 MB. No key and no image is ever logged by the agent; lines that look like a private key or
carry a secret in ``name=value`` form all the same (a child may print its environment) are blanked here.
"""

import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

UNIT = "clue-agent.service"
_POLL_SECONDS = 0.5
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_KEY_LINE = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]*PRIVATE KEY-----")
_BASE64_LINE = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}\s*")
_NAMED_SECRET = re.compile(r"(?i)\b([\w-]*(?:secret|password|passwd|token|api[_-]?key)[\w-]*\s*[=:]\s*)(\S+)")


def unit_is_loaded(unit: str = UNIT) -> bool:
    """True if systemd runs here and knows the unit, as a system or a user service."""
    return _scope(unit) is not None


def journal_command(lines: int, follow: bool, unit: str = UNIT) -> list[str]:
    """The ``journalctl`` command that shows the daemon's own lines."""
    scope = _scope(unit) or "--system"
    match = ["--user-unit", unit] if scope == "--user" else ["--unit", unit]
    command = ["journalctl", *match, "--lines", str(lines), "--no-pager", "--output", "short-iso"]
    return [*command, "--follow"] if follow else command


def show(folder: Path, lines: int) -> Iterator[str]:
    """The last ``lines`` lines of every log file in ``folder``, each with its file's name."""
    for path in _files(folder):
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in _blank(deque(stream, maxlen=lines)):
                yield f"{path.stem}: {line}"


def follow(folder: Path, wait_seconds: float = _POLL_SECONDS) -> Iterator[str]:
    """Lines as they are written, for ever, rotation and new files included; begins at the end of what is there.

    An empty string is yielded once a round, so that the caller can stop between two lines.
    """
    seen = {path: _Tail(path, at_end=True) for path in _files(folder)}
    while True:
        for path in _files(folder):
            tail = seen.setdefault(path, _Tail(path, at_end=False))
            for line in _blank(tail.read()):
                yield f"{path.stem}: {line}"
        yield ""
        time.sleep(wait_seconds)


class _Tail:
    """Whole lines that were added to a file, by name: a file that was rotated away is begun anew."""

    def __init__(self, path: Path, at_end: bool) -> None:
        self._path = path
        self._inode, self._offset = 0, 0
        if at_end:
            found = path.stat()
            self._inode, self._offset = found.st_ino, found.st_size

    def read(self) -> list[str]:
        try:
            with self._path.open("rb") as stream:
                inode, size = self._path.stat().st_ino, self._path.stat().st_size
                if inode != self._inode or size < self._offset:
                    self._inode, self._offset = inode, 0
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.log") if path.is_file())


def _blank(lines: "deque[str] | list[str]") -> Iterator[str]:
    inside_key = False
    for raw in lines:
        line = _COLOUR.sub("", raw.rstrip("\n"))
        if _KEY_LINE.search(line):
            inside_key = "BEGIN" in line
            yield "[private key removed]"
        elif not (inside_key and _BASE64_LINE.fullmatch(line)):
            inside_key = False
            yield _NAMED_SECRET.sub(r"\1[removed]", line)


def _scope(unit: str) -> str | None:
    if (
        shutil.which("systemctl") is None
        or shutil.which("journalctl") is None
        or not Path("/run/systemd/system").is_dir()
    ):
        return None
    for scope in ("--system", "--user"):
        command = ["systemctl", scope, "show", unit, "--property", "LoadState", "--value"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.stdout.strip() == "loaded":
            return scope
    return None


__all__ = ["UNIT", "follow", "journal_command", "show", "unit_is_loaded"]
