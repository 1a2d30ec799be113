"""The device's end of the pipe: what comes out of Flower reaches the agent's socket, and its answer goes back."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from clue_agent.service import serve
from clue_coordinator.flower_app.clue_pipe import forwarder
from clue_protocol.files import socket_path
from clue_protocol.v1 import agent_pb2

LARGE = b"\x07" * (6 << 20)  # above gRPC's own limit


class Listener:
    """In the agent's place."""

    def __init__(self) -> None:
        self.asked: list[agent_pb2.DeliverRequest] = []
        self.answer = agent_pb2.DeliverResponse()

    def deliver(self, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        self.asked.append(request)
        return self.answer


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Listener, Path]]:
    made, socket = Listener(), socket_path(tmp_path, "agent.sock")
    server = serve(made, socket)  # type: ignore[arg-type]
    yield made, socket
    server.stop(0)


def forward(socket: Path, **fields: Any) -> ConfigRecord:
    asked = {"envelope": b"signed", "request_id": "r-1", "wait_seconds": 0.5} | fields
    content = RecordDict({"request": ConfigRecord(asked)})
    # As it comes out of Flower: run, message, sender, receiver, ..., created at, time to live, type.
    message = Message(metadata=Metadata(1, "m-1", 1, 7, "", "", 1.0, 60.0, "query.deliver"), content=content)
    reply = forwarder.deliver(message, SimpleNamespace(node_config={"socket": str(socket)}))
    answer = reply.content["answer"]
    assert isinstance(answer, ConfigRecord)
    return answer


def test_everything_passes_and_nothing_is_too_large(listener: tuple[Listener, Path]) -> None:
    agent, socket = listener
    agent.answer = agent_pb2.DeliverResponse(receipt_envelope=b"receipt", update=LARGE)
    answer = forward(socket, attempt=2, recall=True, patch=LARGE)
    assert (answer["receipt"], answer["update"], answer["not_begun"]) == (b"receipt", LARGE, False)
    [asked] = agent.asked
    assert (asked.request_envelope, asked.request_id, asked.wait_seconds) == (b"signed", "r-1", 0.5)
    assert (asked.attempt, asked.recall, asked.patch) == (2, True, LARGE)


def test_a_recall_is_answered(listener: tuple[Listener, Path]) -> None:
    agent, socket = listener
    agent.answer = agent_pb2.DeliverResponse(not_begun=True)
    assert forward(socket, recall=True)["not_begun"] is True


def test_a_coordinator_of_an_earlier_version_is_understood(listener: tuple[Listener, Path]) -> None:
    agent, socket = listener
    agent.answer = agent_pb2.DeliverResponse(progress=agent_pb2.Progress(stage="unlearning", fraction=0.5))
    answer = forward(socket)
    assert (answer["stage"], answer["fraction"], answer["receipt"]) == ("unlearning", 0.5, b"")
    assert (agent.asked[0].attempt, agent.asked[0].recall, agent.asked[0].patch) == (0, False, b"")


def test_an_agent_that_is_away_is_an_error(tmp_path: Path) -> None:
    assert "did not answer" in str(forward(tmp_path / "nobody")["error"])
