"""A device for tests of the agent: its home, its requests, and a worker that is told what to say."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from trust_house import HOUSE, key, request_message

from clue_agent import base_model as base_model_module
from clue_agent import execution as execution_module
from clue_agent.agent import Agent
from clue_agent.boottime import Clock
from clue_agent.config import AgentConfig, WorkConfig
from clue_agent.job import JobSpec
from clue_agent.journal import Journal
from clue_agent.limits import LimitsConfig
from clue_agent.retention import VaultLimits
from clue_agent.sealed import KeyRing
from clue_agent.setup import load_trust, save_trust
from clue_agent.store import CANDIDATE, ModelStore
from clue_protocol.documents import Trust
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, open_message, sign_message
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb

OPERATOR, EVE, DEVICE = HOUSE.operator, key("eve"), key("device")
TRUST = HOUSE.trust()


def make_store(config: AgentConfig) -> ModelStore:
    return ModelStore(config.store, KeyRing(config.keys))


make_request = request_message


def envelope(signer: CryptoSigner = OPERATOR, request: pb.ForgetRequest | None = None, **changes: Any) -> bytes:
    return sign_message(request or make_request(**changes), REQUEST_TYPE, [signer])


def pin(config: AgentConfig, trust: Trust = TRUST) -> None:
    """What 'clue-agent trust' does, for the first time or again."""
    save_trust(config, trust.to_json())


@dataclass
class Device:
    """One home, and as many lives of its agent as a test needs."""

    config: AgentConfig
    agents: list[tuple[Agent, Journal]] = field(default_factory=list)

    def boot(self, *, start: bool = True, clock: Clock | None = None) -> Agent:
        self.shut_down()
        journal = Journal(self.config.journal)
        agent = Agent(self.config, load_trust(self.config), DEVICE, journal, clock)
        self.agents.append((agent, journal))
        if start:
            agent.start()
        return agent

    def shut_down(self) -> None:
        while self.agents:
            agent, journal = self.agents.pop()
            agent.close()
            journal.close()

    @property
    def journal(self) -> Journal:
        return self.agents[-1][1]

    def model(self) -> dict[str, bytes]:
        """Every file of the model in use, and which slot that is."""
        store = make_store(self.config)
        files = {p.name: p.read_bytes() for p in store.current.iterdir()}
        return files | {"slot": store.current_slot().encode()}

    @property
    def digest(self) -> str:
        return make_store(self.config).verify()[1]


@pytest.fixture
def device(tmp_path: Path, images_root: Path, bundle_dir: Path) -> Iterator[Device]:
    config = AgentConfig(
        device_id="cam-1",
        samples=images_root / "train",
        holdout=images_root / "test",
        keep_originals=True,
        work=WorkConfig(nice=0),
        limits=LimitsConfig(budget_seconds=120, min_free_mib=0),
        vault=VaultLimits(holdout_share=0.0),
        home=tmp_path,
    )
    make_store(config).install(bundle_dir)
    pin(config)
    made = Device(config)
    yield made
    made.shut_down()


def receipt_of(answer: agent_pb2.DeliverResponse) -> pb.Receipt:
    assert answer.receipt_envelope, f"no receipt yet, the agent is {answer.progress.stage}"
    return open_message(answer.receipt_envelope, RECEIPT_TYPE, pb.Receipt, [DEVICE.public_key])


def ask(
    agent: Agent, data: bytes, request_id: str = "r-1", seconds: float = 0.0, **more: Any
) -> agent_pb2.DeliverResponse:
    """Deliver, and tell the time if the device asks for it."""
    request = agent_pb2.DeliverRequest(request_envelope=data, request_id=request_id, wait_seconds=seconds, **more)
    answer = agent.deliver(request)
    if answer.time_nonce and not answer.receipt_envelope:
        request.time_attestation = HOUSE.time(answer.time_nonce)
        answer = agent.deliver(request)
    return answer


def tell_time(agent: Agent, data: bytes) -> None:
    """Let the device ask for the time, on account of a request, and answer it; the request is not delivered again."""
    nonce = agent.deliver(agent_pb2.DeliverRequest(request_envelope=data)).time_nonce
    agent.deliver(agent_pb2.DeliverRequest(time_attestation=HOUSE.time(nonce)))


def deliver(agent: Agent, data: bytes, request_id: str = "r-1", seconds: float = 60.0, **more: Any) -> pb.Receipt:
    return receipt_of(ask(agent, data, request_id, seconds, **more))


class FakeWorker:
    """Stands in for the worker process: writes a whole new bundle, and says what it is told to say."""

    def __init__(self, ua_after: int = 0, ra_after: int = 30, action: Callable[[JobSpec], None] | None = None) -> None:
        self.jobs: list[JobSpec] = []
        self.ua_after, self.ra_after, self.action = ua_after, ra_after, action

    def __call__(
        self,
        job: JobSpec,
        config: AgentConfig,
        cancelled: threading.Event,
        on_progress: Callable[[str, float], None],
        on_hold: Callable[[Any], None],
    ) -> dict[str, Any]:
        self.jobs.append(job)
        on_progress("unlearning", 0.5)
        store = make_store(config)
        stored = store.read(job.slot)
        spec = stored.spec
        for name in job.forget:
            spec = spec.with_forgotten(name)
        store.write(CANDIDATE, spec.to_json().encode(), stored.weights)
        if self.action is not None:
            self.action(job)
        return {
            "already_forgotten": False,
            "ua_before": {"correct": 10, "samples": 10},
            "ra_before": {"correct": 30, "samples": 30},
            "ua_after": {"correct": self.ua_after, "samples": 10},
            "ra_after": {"correct": self.ra_after, "samples": 30},
            "sample_digests": ["ab" * 32],
            "samples": 20,
            "method": job.method,
            "hyperparameters": job.hyperparameters,
            "seconds": 1.5,
            "energy": {"joules": 3.0, "source": "estimated", "detail": "d", "relative_uncertainty": 0.5},
            "peak_memory_bytes": 1000,
        }


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    fake = FakeWorker()
    monkeypatch.setattr(execution_module, "run_worker", fake)
    monkeypatch.setattr(base_model_module, "run_worker", fake)
    return fake
