"""Device side: hand the signed request to the agent's socket, bring its answer back."""

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clue_protocol.v1 import agent_pb2, agent_pb2_grpc

app = ClientApp()

# gRPC's own limit of 4 MiB is too small for patches and updates.
_ANY_SIZE = [("grpc.max_receive_message_length", -1)]


@app.query("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Forward one envelope. The agent decides everything; nothing is read or kept here."""
    request = message.content["request"]
    wait = float(str(request["wait_seconds"]))
    try:
        with grpc.insecure_channel(f"unix:{context.node_config['socket']}", _ANY_SIZE) as channel:
            answer = agent_pb2_grpc.AgentServiceStub(channel).Deliver(
                agent_pb2.DeliverRequest(
                    request_envelope=bytes(request["envelope"]),  # type: ignore[arg-type]
                    request_id=str(request["request_id"]),
                    wait_seconds=wait,
                    # A coordinator of an earlier version sends none of these.
                    attempt=int(str(request.get("attempt", 0))),
                    recall=bool(request.get("recall", False)),
                    patch=bytes(request.get("patch", b"")),  # type: ignore[arg-type]
                    root_envelopes=[bytes(root) for root in request.get("roots", [])],  # type: ignore[union-attr, arg-type]
                    time_attestation=bytes(request.get("time", b"")),  # type: ignore[arg-type]
                ),
                timeout=wait + 15,
            )
        record = ConfigRecord(
            {
                "receipt": answer.receipt_envelope,
                "update": answer.update,
                "not_begun": answer.not_begun,
                "stage": answer.progress.stage,
                "fraction": answer.progress.fraction,
                "root_version": answer.root_version,
                "time_nonce": answer.time_nonce,
            }
        )
    except grpc.RpcError as error:
        record = ConfigRecord({"error": f"the agent did not answer: {error.code().name}"})
    return Message(RecordDict({"answer": record}), reply_to=message)
