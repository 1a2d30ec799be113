"""The power-management chip of a Raspberry Pi 5, read with ``vcgencmd pmic_read_adc``."""

import math
import re
import subprocess
from collections.abc import Callable

# A straight line through readings of a USB power meter at several loads, on one board, by J. Fikar
# (github.com/jfikar/RPi5-power): the chip sees its own rails, not its losses.
BOARD_PER_RAIL_WATT = 1.1451
BOARD_OFFSET_WATTS = 0.5879
# What feeds the board and the clock's battery: inputs, no part of what the rails deliver.
_INPUTS = {"EXT5V", "BATT"}
_MAIN_RAIL = "VDD_CORE"

# "  VDD_CORE_A current(7)=0.56259000A" and the short "VDD_CORE_A=0.5626A".
_LINE = re.compile(
    r"^\s*(?P<rail>\w+)_(?P<kind>[AV])(?:\s*(?:current|volt)\s*\(\d+\))?"
    r"\s*=\s*(?P<value>[-+]?\d{1,6}(?:\.\d{0,12})?)\s*(?P=kind)\s*$"
)
_TIMEOUT_SECONDS = 2.0


def read_pmic_adc() -> str:
    """What ``vcgencmd pmic_read_adc`` prints. OSError if there is no such command, or it fails or hangs."""
    command = ["vcgencmd", "pmic_read_adc"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"vcgencmd did not answer within {_TIMEOUT_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"vcgencmd pmic_read_adc failed: {said[0]} (its user must be in the group video)")
    return done.stdout


def parse_pmic_adc(text: str) -> dict[str, float]:
    """Watts of every rail of which current and voltage are there.

    Lines are paired by the rail's name: their numbers in brackets count channels, not rails, and differ
    between firmwares. Other lines are passed over.

    Raises:
        ValueError: VDD_CORE, the largest consumer, is not among the rails: another command's output, an
            error message, or a cut-off answer.
    """
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in text.splitlines():
        if match := _LINE.match(line):
            values[match["kind"]][match["rail"]] = float(match["value"])
    rails = {rail: amps * values["V"][rail] for rail, amps in values["A"].items() if rail in values["V"]}
    watts = {rail: product for rail, product in rails.items() if rail not in _INPUTS}
    if _MAIN_RAIL not in watts:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        raise ValueError(
            f"no current and voltage of {_MAIN_RAIL} in the output of vcgencmd pmic_read_adc: {first[:80]!r}"
        )
    return watts


def board_watts(rails: dict[str, float]) -> float:
    """Power at the board's 5 V input, in watts, from the watts of its rails."""
    return BOARD_PER_RAIL_WATT * math.fsum(rails.values()) + BOARD_OFFSET_WATTS


class PmicSensor:
    """Whole-board watts of a Raspberry Pi 5, without what hangs on its 5 V rail (USB, HATs, NVMe).

    ``run`` returns the command's output. OSError or ValueError if it does not work here.
    """

    source = "pmic"
    # Another board than the one of the fit; a rail's own current sense is good to a few per cent.
    relative_uncertainty = 0.1
    period = 1.0  # every sample forks
    cumulative = False

    def __init__(self, run: Callable[[], str] = read_pmic_adc) -> None:
        self._run = run
        self._rails = frozenset(parse_pmic_adc(run()))
        self.scope = f"Raspberry Pi 5 by {len(self._rails)} PMIC rails, without loads on its 5 V rail"

    def read(self) -> float:
        """Watts. ValueError if rails are missing that were there at first."""
        rails = parse_pmic_adc(self._run())
        if missing := sorted(self._rails - rails.keys()):
            raise ValueError(f"the output of vcgencmd pmic_read_adc lacks {', '.join(missing)}")
        return board_watts({rail: rails[rail] for rail in self._rails})
