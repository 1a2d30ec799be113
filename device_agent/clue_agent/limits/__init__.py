"""How hard the worker process may work: memory, CPU, heat, power, quiet hours, disk and time.

:class:`LimitsConfig` says what is allowed, :class:`Watch` what the device's sensors say now, and
:func:`run_limited` runs one command within both. Nothing here loads torch.
"""

from clue_agent.limits.child import last_line
from clue_agent.limits.conditions import Sensors
from clue_agent.limits.config import LimitsConfig
from clue_agent.limits.disk import check_free
from clue_agent.limits.run import Ended, Verdict, run_limited
from clue_agent.limits.watch import Hold, HoldKind, Watch

__all__ = [
    "Ended",
    "Hold",
    "HoldKind",
    "LimitsConfig",
    "Sensors",
    "Verdict",
    "Watch",
    "check_free",
    "last_line",
    "run_limited",
]
