"""Checks of the machine: 64-bit system, clock, memory, temperature and power, energy meter, torch."""

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from clue_agent.doctor import Finding, fail, ok, warn

# The worker alone takes about 300 MB for a small network, most of it torch.
_MIN_MEMORY = 500_000_000
_FEW_MEMORY = 800_000_000
_HOT_CELSIUS = 80.0
_TORCH_SECONDS = 180.0
_THERMAL = Path("/sys/class/thermal")
_SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
# Bits of 'vcgencmd get_throttled': what is so now.
_THROTTLED_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_ROOT = 0


def system() -> Iterator[Finding]:
    """torch has no wheels for 32-bit ARM, and a 64-bit kernel may well carry a 32-bit user land."""
    bits = 8 * struct.calcsize("P")
    detail = f"{platform.system()} {platform.machine()}, {bits}-bit Python {platform.python_version()}"
    if bits == 64:
        yield ok("system", detail)
    else:
        yield fail("system", detail, "install the 64-bit Raspberry Pi OS: there is no torch for 32 bits")


def user() -> Iterator[Finding]:
    """The agent needs no privileges."""
    if os.geteuid() == _ROOT:
        yield warn("user", "root", "run the agent as a user of its own; see docs/install-pi.md")
    else:
        yield ok("user", f"uid {os.geteuid()}")


def clock() -> Iterator[Finding]:
    """A Pi without a battery starts in the past; requests and certificates then look expired, or not valid yet."""
    now = datetime.now(UTC)
    # This file was written by the installation: nothing can happen before it.
    installed = datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)
    if now < installed:
        yield fail(
            "clock",
            f"it says {now:%Y-%m-%d %H:%M}, before this software was installed ({installed:%Y-%m-%d})",
            "wait for the time server, or set the clock: 'timedatectl'",
        )
    elif Path("/run/systemd/timesync").is_dir() and not _SYNCHRONISED.exists():
        yield warn("clock", f"{now:%Y-%m-%d %H:%M} UTC, not synchronised since the start", "see 'timedatectl status'")
    else:
        yield ok("clock", f"{now:%Y-%m-%d %H:%M} UTC")


def memory() -> Iterator[Finding]:
    """Room for the worker."""
    now, swap = psutil.virtual_memory(), psutil.swap_memory()
    detail = f"{now.available / 1e6:,.0f} of {now.total / 1e6:,.0f} MB available, {swap.free / 1e6:,.0f} MB swap free"
    available = now.available + swap.free
    if available < _MIN_MEMORY:
        yield fail("memory", detail, "end other programs or add swap: the worker needs about 300 MB and torch")
    elif available < _FEW_MEMORY:
        yield warn("memory", detail, "large networks will not fit: end other programs or add swap")
    else:
        yield ok("memory", detail)


def temperature() -> Iterator[Finding]:
    """The hottest thermal zone, in degrees Celsius."""
    zones = [celsius for path in sorted(_THERMAL.glob("thermal_zone*/temp")) if (celsius := _celsius(path)) is not None]
    if not zones:
        yield ok("temperature", "this machine has no sensor that can be read")
    elif max(zones) >= _HOT_CELSIUS:
        yield warn("temperature", f"{max(zones):.0f} C: work will be held", "give the board air, a heat sink or a fan")
    else:
        yield ok("temperature", f"{max(zones):.0f} C")


def power_supply() -> Iterator[Finding]:
    """What the Raspberry Pi's firmware says of voltage and throttling, where there is one."""
    program = shutil.which("vcgencmd")
    if program is None:
        return
    try:
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode != 0:
        yield warn("power", "vcgencmd does not answer", "add the agent's user to the group 'video'")
        return
    try:
        flags = int(done.stdout.strip().partition("=")[2], 16)
    except ValueError:
        yield warn("power", f"vcgencmd says {done.stdout.strip()!r}", "update the firmware: 'sudo apt full-upgrade'")
        return
    now = [name for bit, name in _THROTTLED_NOW.items() if flags >> bit & 1]
    before = [name for bit, name in _THROTTLED_NOW.items() if flags >> (bit + 16) & 1]
    if now:
        yield warn("power", f"now: {', '.join(now)}", "use the board's own power supply, and cool it")
    elif before:
        yield warn("power", f"since the start: {', '.join(before)}", "use the board's own power supply, and cool it")
    else:
        yield ok("power", "no under-voltage and no throttling since the start")


def energy_meter() -> Iterator[Finding]:
    """Which meter the receipts' joules will come from."""
    from clue.metering import measure_energy

    with measure_energy() as measurement:
        pass
    reading = measurement.reading()
    note = "; receipts mark it as an estimate" if reading.source == "estimated" else ""
    yield ok("energy meter", f"{reading.source}, +-{100 * reading.relative_uncertainty:.0f} %{note}")


def torch() -> Iterator[Finding]:
    """The worker's own imports, in a process of their own: this one stays free of torch."""
    code = (
        "import json, clue_agent.worker, torch; print(json.dumps({'version': torch.__version__, "
        "'cuda': torch.version.cuda}))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield fail("torch", f"not imported within {_TORCH_SECONDS:.0f} s", "look at the card's speed and the memory")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield fail("torch", f"the worker cannot be imported: {last[:200]}", "install it again; see docs/install-pi.md")
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["cuda"] and shutil.which("nvidia-smi") is None:
        advice = "the CPU build is smaller by gigabytes; see docs/install-pi.md"
        yield warn("torch", f"{found['version']}, built for CUDA {found['cuda']}", advice)
    else:
        yield ok("torch", found["version"])


def _celsius(path: Path) -> float | None:
    try:
        return int(path.read_text()) / 1000
    except (OSError, ValueError):
        return None


CHECKS = (system, user, clock, memory, temperature, power_supply, energy_meter, torch)
