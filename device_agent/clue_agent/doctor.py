"""``clue-agent doctor``: everything that must be right on this device, one line a check.

A check returns findings and never raises for what it looks for; each finding that is not ``ok`` says what to do.
The agent may run meanwhile: nothing is written, and the journal is opened read-only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clue_agent.config import AgentConfig, load_config
from clue_agent.errors import AgentError, ConfigError
from clue_agent.setup import load_trust
from clue_protocol.documents import Trust


class Level(StrEnum):
    """``ok``; ``warn``: works, but look at it; ``fail``: the agent cannot do its work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        level: see :class:`Level`.
        detail: what was found.
        advice: what to do about it; empty where nothing has to be done.
    """

    check: str
    level: Level
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """A finding that needs nothing."""
    return Finding(check, Level.OK, detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """A finding that should be looked at."""
    return Finding(check, Level.WARN, detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """A finding that keeps the agent from working."""
    return Finding(check, Level.FAIL, detail, advice)


HomeCheck = Callable[[AgentConfig], Iterable[Finding]]
TrustCheck = Callable[[Trust], Iterable[Finding]]
MachineCheck = Callable[[], Iterable[Finding]]


def examine(config_path: Path, *, offline: bool = False) -> list[Finding]:
    """Run every check that can be run; without a configuration only those of the machine are left.

    Args:
        config_path: agent.toml.
        offline: leave out what needs the network.
    """
    from clue_agent import doctor_home, doctor_machine, doctor_network, doctor_trust

    found: list[Finding] = []
    config = _config(config_path, found)
    if config is not None:
        home_checks: Sequence[HomeCheck] = doctor_home.CHECKS
        for check in home_checks:
            found += _guarded(check.__name__, lambda check=check: check(config))  # type: ignore[misc]
        trust = _trust(config, found)
        if trust is not None:
            found += _guarded("root", lambda: doctor_trust.root(config, trust))
            trust_checks: Sequence[TrustCheck] = doctor_network.CHECKS if not offline else doctor_network.OFFLINE_CHECKS
            for trust_check in trust_checks:
                found += _guarded(trust_check.__name__, lambda check=trust_check: check(trust))  # type: ignore[misc]
    machine_checks: Sequence[MachineCheck] = doctor_machine.CHECKS
    for machine_check in machine_checks:
        found += _guarded(machine_check.__name__, machine_check)
    return found


def healthy(findings: Iterable[Finding]) -> bool:
    """True if nothing failed; warnings do not count."""
    return all(finding.level is not Level.FAIL for finding in findings)


def _config(path: Path, found: list[Finding]) -> AgentConfig | None:
    try:
        config = load_config(path)
    except ConfigError as error:
        found.append(fail("config", str(error), "correct agent.toml, or run 'clue-agent init'"))
        return None
    found.append(ok("config", f"{path}: device {config.device_id}"))
    return config


def _trust(config: AgentConfig, found: list[Finding]) -> Trust | None:
    try:
        trust = load_trust(config)
    except ConfigError as error:
        found.append(
            fail(
                "trust",
                str(error),
                "run 'clue-agent enroll' with a token",
            )
        )
        return None
    found.append(ok("trust", f"fleet {trust.fleet} at {trust.superlink}"))
    return trust


def _guarded(name: str, check: MachineCheck) -> list[Finding]:
    """One check that stumbles must not hide what the others found."""
    try:
        return list(check())
    except (AgentError, OSError, ValueError) as error:
        shown = name.replace("_", " ").strip()
        return [fail(shown, f"could not be checked: {error}", "look at the named file; then run this again")]


__all__ = ["Finding", "Level", "examine", "fail", "healthy", "ok", "warn"]
