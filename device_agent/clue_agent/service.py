"""The agent's gRPC service on a Unix socket that only its own user can reach."""

from concurrent import futures
from pathlib import Path

import grpc

from clue_agent.agent import Agent
from clue_agent.errors import AgentError
from clue_protocol.v1 import agent_pb2, agent_pb2_grpc

_LONGEST_WAIT = 300.0
# Of a message: a patch beside its envelope (see clue_agent.delivery).
_MOST_BYTES = 80 << 20


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Delegates to :class:`Agent`."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def Deliver(self, request: agent_pb2.DeliverRequest, context: grpc.ServicerContext) -> agent_pb2.DeliverResponse:
        """See agent.proto."""
        request.wait_seconds = min(max(request.wait_seconds, 0.0), _LONGEST_WAIT)
        return self._agent.deliver(request)

    def GetStatus(
        self, request: agent_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetStatusResponse:
        """See agent.proto."""
        try:
            return self._agent.status()
        except AgentError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise

    def UpdateModel(
        self, request: agent_pb2.UpdateModelRequest, context: grpc.ServicerContext
    ) -> agent_pb2.UpdateModelResponse:
        """See agent.proto."""
        try:
            return self._agent.update_model(Path(request.bundle))
        except AgentError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise


def serve(agent: Agent, socket: Path) -> grpc.Server:
    """Start the service; the caller stops it."""
    socket.unlink(missing_ok=True)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=8, thread_name_prefix="grpc"),
        options=[("grpc.max_receive_message_length", _MOST_BYTES)],
    )
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(agent), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    socket.chmod(0o600)
    return server
