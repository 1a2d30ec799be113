"""Server side: lease what is pending for the nodes that are online, push it, hand back what comes."""

import time
from dataclasses import dataclass

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from clue_protocol.v1 import dispatch_pb2 as pb
from clue_protocol.v1 import dispatch_pb2_grpc
from clue_protocol.v1.agent_pb2 import Progress

app = ServerApp()

# Flower's error code for a node that is not connected.
_NODE_UNAVAILABLE = 5


@dataclass
class _Flight:
    assignment: pb.Assignment
    lost_at: float


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run until the coordinator ends this run, or starts another."""
    epoch = str(context.run_config["epoch"])
    # gRPC's own limit of 4 MiB is too small for the patches of several devices.
    any_size = [("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(f"unix:{context.run_config['socket']}", any_size)
    coordinator = dispatch_pb2_grpc.DispatchServiceStub(channel)
    flights: dict[str, _Flight] = {}
    poll = 1.0
    while True:
        try:
            answer = coordinator.Lease(pb.LeaseRequest(epoch=epoch, online_nodes=list(grid.get_node_ids())), timeout=30)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return  # another dispatcher has taken over
            time.sleep(2.0)  # the coordinator is being restarted
            continue
        poll = answer.poll_seconds or poll
        _push(grid, coordinator, epoch, list(answer.assignments), flights)
        _pull(grid, coordinator, epoch, flights)
        time.sleep(poll)


def _push(
    grid: Grid,
    coordinator: dispatch_pb2_grpc.DispatchServiceStub,
    epoch: str,
    assignments: list[pb.Assignment],
    flights: dict[str, _Flight],
) -> None:
    if not assignments:
        return
    messages = [
        Message(
            RecordDict(
                {
                    "request": ConfigRecord(
                        {
                            "envelope": a.request_envelope,
                            "request_id": a.request_id,
                            "wait_seconds": a.wait_seconds,
                            "attempt": a.attempt,
                            "recall": a.recall,
                            "patch": a.patch,
                            "roots": list(a.root_envelopes),
                            "time": a.time_attestation,
                        }
                    )
                }
            ),
            dst_node_id=a.node_id,
            message_type="query.deliver",
            ttl=a.ttl_seconds,
        )
        for a in assignments
    ]
    for assignment, message_id in zip(assignments, grid.push_messages(messages), strict=False):
        if message_id:
            flights[message_id] = _Flight(assignment, time.monotonic() + assignment.ttl_seconds + 10)
        else:
            _report(coordinator, epoch, assignment, error="node unavailable")


def _pull(
    grid: Grid, coordinator: dispatch_pb2_grpc.DispatchServiceStub, epoch: str, flights: dict[str, _Flight]
) -> None:
    if not flights:
        return
    for reply in grid.pull_messages(list(flights)):
        # An id that was answered must not be asked for again.
        flight = flights.pop(reply.metadata.reply_to_message_id, None)
        if flight is None:
            continue
        if reply.has_error():
            unavailable = reply.error.code == _NODE_UNAVAILABLE
            text = "node unavailable" if unavailable else f"Flower error {reply.error.code}: {reply.error.reason}"
            _report(coordinator, epoch, flight.assignment, error=text)
            continue
        answer = reply.content["answer"]
        # An agent of an earlier version sends no update and knows no roots.
        known = {"root_version": int(str(answer.get("root_version", 0))), "time_nonce": answer.get("time_nonce", b"")}
        if answer.get("receipt"):
            result: dict[str, object] = {"receipt_envelope": answer["receipt"], "update": answer.get("update", b"")}
        elif answer.get("not_begun"):
            result = {"not_begun": True}
        elif answer.get("error"):
            result = {"error": str(answer["error"])}
        else:
            result = {"progress": Progress(stage=str(answer["stage"]), fraction=float(str(answer["fraction"])))}
        _report(coordinator, epoch, flight.assignment, **result, **known)
    now = time.monotonic()
    for message_id in [m for m, flight in flights.items() if flight.lost_at < now]:
        _report(coordinator, epoch, flights.pop(message_id).assignment, error="node unavailable")


def _report(
    coordinator: dispatch_pb2_grpc.DispatchServiceStub,
    epoch: str,
    assignment: pb.Assignment,
    **result: object,
) -> None:
    request = pb.ReportRequest(
        epoch=epoch,
        execution_id=assignment.execution_id,
        node_id=assignment.node_id,
        **result,  # type: ignore[arg-type]
    )
    try:
        coordinator.Report(request, timeout=30)
    except grpc.RpcError:
        return  # the lease runs out, and the device answers a repeated request with the same receipt
