"""What a device is and does: from its running daemon, and from its home where none runs."""

from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from clue_agent.agent import Agent
from clue_agent.config import AgentConfig
from clue_agent.errors import AgentError, ConfigError
from clue_agent.journal import Journal
from clue_agent.observe import JournalReader, read_model
from clue_agent.setup import load_trust
from clue_agent.trust_status import TrustView, answered_view, stored_view
from clue_protocol.documents import Trust
from clue_protocol.files import HomeLock
from clue_protocol.keys import load_signing_key
from clue_protocol.v1 import agent_pb2, agent_pb2_grpc
from clue_protocol.v1 import forget_pb2 as pb

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Status:
    """What ``clue-agent status`` shows; the fields are the keys of its JSON.

    Attributes:
        device: its name.
        fleet: empty until the device was told whom to trust.
        running: whether the daemon answered.
        model: digest of the model in use (hex SHA-256 of model.json).
        classes: class names of the model.
        forgotten: those it was made to forget.
        unfinished: jobs without a receipt.
        outcomes: receipts by outcome.
        working_on: id of the request being worked on; empty without one.
        stage: what the work on it is at.
        fraction: how much of it is done, in [0, 1].
        held: why the work is paused; empty while it is not.
        repaired: what the daemon mended at its start; empty if nothing.
        trust: the root, and what is known of the time.
        last: the latest receipt's request, class, outcome, detail and end (RFC 3339); None without one.
    """

    device: str
    fleet: str
    running: bool
    model: str
    classes: list[str]
    forgotten: list[str]
    unfinished: int
    outcomes: dict[str, int]
    working_on: str = ""
    stage: str = ""
    fraction: float = 0.0
    held: str = ""
    repaired: str = ""
    trust: TrustView = field(default_factory=TrustView)
    last: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def read_status(config: AgentConfig) -> Status:
    """Ask the daemon, or read the home. AgentError if the home cannot be read either."""
    answer = ask_daemon(config)
    model = read_model(config)
    work = JournalReader(config.journal).read()
    trust: Trust | None
    try:
        trust = load_trust(config)
    except ConfigError:
        trust = None
    active = answer is not None and answer.active_request_id != ""
    return Status(
        device=config.device_id,
        fleet=trust.fleet if trust is not None else "",
        running=answer is not None,
        model=model.digest,
        classes=list(model.classes),
        forgotten=list(model.forgotten),
        unfinished=work.unfinished,
        outcomes={name.lower(): count for name, count in work.outcomes.items()},
        working_on=answer.active_request_id if active and answer is not None else "",
        stage=answer.progress.stage if active and answer is not None else "",
        fraction=answer.progress.fraction if active and answer is not None else 0.0,
        held=answer.held if answer is not None else "",
        repaired=answer.repaired if answer is not None else "",
        trust=answered_view(answer.trust) if answer is not None else stored_view(config, trust),
        last=_last(work.last),
    )


def ask_daemon(config: AgentConfig) -> agent_pb2.GetStatusResponse | None:
    """The daemon's own answer; None if none runs. AgentError if it runs and cannot answer."""
    try:
        socket = (config.home / "agent.socket-path").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            return stub.GetStatus(agent_pb2.GetStatusRequest(), timeout=_TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return None
        raise AgentError(f"the agent answered: {error.details()}") from None


def update_model(config: AgentConfig, bundle: Path) -> agent_pb2.UpdateModelResponse:
    """Hand a base model to the running daemon, or leave it for its next start; AgentError if it is refused."""
    with suppress(OSError):
        socket = (config.home / "agent.socket-path").read_text(encoding="utf-8").strip()
        try:
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                stub = agent_pb2_grpc.AgentServiceStub(channel)
                return stub.UpdateModel(agent_pb2.UpdateModelRequest(bundle=str(bundle.resolve())), timeout=120)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise AgentError(str(error.details())) from None
    # The daemon does not start where no slot holds a whole model: this is the way out.
    with ExitStack() as stack:
        lock = HomeLock(config.home)
        lock.acquire()
        stack.callback(lock.release)
        journal = Journal(config.journal)
        stack.callback(journal.close)
        return Agent(config, load_trust(config), load_signing_key(config.receipt_key), journal).update_model(bundle)


def _last(receipt: pb.Receipt | None) -> dict[str, str] | None:
    if receipt is None:
        return None
    return {
        "request_id": receipt.request_id,
        "forget_class": receipt.forget_class,
        "outcome": pb.Outcome.Name(receipt.outcome).removeprefix("OUTCOME_").lower(),
        "detail": receipt.detail,
        "finished_at": receipt.finished_at.ToJsonString() if receipt.HasField("finished_at") else "",
    }


__all__ = ["Status", "ask_daemon", "read_status", "update_model"]
