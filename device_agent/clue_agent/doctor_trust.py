"""Checks of what the device trusts: the root, what it says of the fleet, and what is known of the time."""

from collections.abc import Iterator

from clue_agent.config import AgentConfig
from clue_agent.doctor import Finding, fail, ok, warn
from clue_agent.status import ask_daemon
from clue_agent.trust_status import answered_view, stored_report, view_of
from clue_protocol.documents import Trust
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.times import DAY

_SOON = 30 * DAY
_RENEW = "sign the next root at the coordinator: the device takes it with its next contact"


def root(config: AgentConfig, trust: Trust) -> Iterator[Finding]:
    """The stored root and state are whole, in date by signed time, and name the fleet."""
    try:
        report = stored_report(config, trust)
    except ProtocolError as error:
        yield fail(
            "root",
            str(error),
            "restore the folder from a backup; or give the device a new trust document with 'clue-agent trust "
            "--replace', and it will take old requests for new ones",
        )
        return
    view = view_of(report)
    left = report.root_expires_ns - report.at_least_ns
    if report.announced_root > report.root_version:
        yield warn("root", view.root_text, "if that does not end by itself, the coordinator holds a root back")
    elif left <= 0:
        yield fail("root", view.root_text, _RENEW)
    elif left < _SOON:
        yield warn("root", view.root_text, _RENEW)
    else:
        yield ok("root", view.root_text)
    if not report.knows_fleet:
        yield fail(
            "fleet",
            f"the root says nothing of fleet {trust.fleet}: all its requests are refused",
            "make the fleet at the coordinator, or give the device the trust document of its fleet",
        )
    answer = ask_daemon(config)
    yield ok("signed time", (answered_view(answer.trust) if answer is not None else view).time_text)
