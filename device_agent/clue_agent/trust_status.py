"""What a device trusts and what it knows of the time, in plain words and as data."""

from dataclasses import dataclass
from datetime import UTC, datetime

from clue_agent.config import AgentConfig
from clue_agent.trust_files import TrustFiles
from clue_agent.trusting import TrustReport, check_belongs, report_of
from clue_protocol.documents import Trust
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.times import SECOND, from_timestamp, to_timestamp
from clue_protocol.v1 import agent_pb2


@dataclass(frozen=True)
class TrustView:
    """As ``status`` shows it; the fields are the keys of its JSON, times RFC 3339 in UTC.

    Attributes:
        installation: 32 hex digits; empty if nothing is pinned.
        root_version: of the newest root that was accepted; 0 without one.
        root_expires_at: when that must have been replaced.
        announced_root: the newest version that was announced; above ``root_version``, the device waits for it.
        time_at_least: it is at least that late, by signed time.
        time_at_most: it is at most that late; None while that is not known.
        asking: a question for the time is open.
        problem: why nothing can be trusted; empty if all is well.
    """

    installation: str = ""
    root_version: int = 0
    root_expires_at: str | None = None
    announced_root: int = 0
    time_at_least: str | None = None
    time_at_most: str | None = None
    asking: bool = False
    problem: str = ""

    @property
    def root_text(self) -> str:
        """One line on the root."""
        if self.problem:
            return self.problem
        if not self.root_version:
            return "none yet: see 'clue-agent trust'"
        line = f"version {self.root_version} of installation {self.installation[:12]}, until {self.root_expires_at}"
        if (self.root_expires_at or "") <= (self.time_at_least or ""):
            line += ": expired, requests wait for a newer one"
        if self.announced_root > self.root_version:
            line += f"; version {self.announced_root} was announced, requests wait for it"
        return line

    @property
    def time_text(self) -> str:
        """One line on the time."""
        if self.time_at_least is None:
            return "nothing is known of it"
        if self.time_at_most is not None:
            return f"known: between {self.time_at_least} and {self.time_at_most}"
        asked = "the coordinator was asked" if self.asking else "the coordinator is asked when a request comes"
        return f"at least {self.time_at_least}; {asked}"


def view_of(report: TrustReport) -> TrustView:
    """``report`` for people."""
    return TrustView(
        installation=report.installation,
        root_version=report.root_version,
        root_expires_at=_text(report.root_expires_ns),
        announced_root=report.announced_root,
        time_at_least=_text(report.at_least_ns),
        time_at_most=_text(report.at_most_ns) if report.at_most_ns is not None else None,
        asking=report.asking,
    )


def stored_report(config: AgentConfig, trust: Trust) -> TrustReport:
    """What the files of a home say, whether or not an agent runs.

    Raises:
        TrustStateError: they are missing or damaged.
    """
    files = TrustFiles(config.trust_folder)
    root, state = files.load()
    check_belongs(files, root, trust)
    return report_of(root, state, trust.fleet)


def stored_view(config: AgentConfig, trust: Trust | None) -> TrustView:
    """The same for people; a problem is part of it."""
    if trust is None:
        return TrustView()
    try:
        return view_of(stored_report(config, trust))
    except ProtocolError as error:
        return TrustView(problem=str(error))


def trust_message(report: TrustReport) -> agent_pb2.TrustStatus:
    """As the agent's service answers."""
    return agent_pb2.TrustStatus(
        installation=report.installation,
        root_version=report.root_version,
        root_expires_at=to_timestamp(report.root_expires_ns),
        announced_root=report.announced_root,
        at_least=to_timestamp(report.at_least_ns),
        at_most=to_timestamp(report.at_most_ns) if report.at_most_ns is not None else None,
        asking=report.asking,
    )


def answered_view(message: agent_pb2.TrustStatus) -> TrustView:
    """Back from :func:`trust_message`."""
    return TrustView(
        installation=message.installation,
        root_version=message.root_version,
        root_expires_at=_text(from_timestamp(message.root_expires_at)),
        announced_root=message.announced_root,
        time_at_least=_text(from_timestamp(message.at_least)),
        time_at_most=_text(from_timestamp(message.at_most)) if message.HasField("at_most") else None,
        asking=message.asking,
    )


def _text(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"
