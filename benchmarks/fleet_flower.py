"""How many real SuperNodes this machine carries, and what Flower's pipe costs: ``python benchmarks/fleet_flower.py``.

A real coordinator with its SuperLink and dispatcher, and per device a real SuperNode, SuperExec and the real
forwarder, with TLS and SuperNode authentication. Behind each forwarder stands no agent but a stub of AgentService
that answers at once with a receipt signed by the device's key: nothing is verified, journalled or unlearned, so this
is the time and the memory of the pipe alone. Every size is ordered twice: the first time the SuperExecs have to start.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from clue_agent.config import AgentConfig
from clue_agent.flower import FlowerNode
from clue_coordinator.client import OperatorClient, forget_call
from clue_protocol.documents import Enrolment, Trust
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, envelope_digest, peek_message, sign_message
from clue_protocol.keys import create_signing_key
from clue_protocol.v1 import agent_pb2, agent_pb2_grpc
from clue_protocol.v1 import forget_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from integration.harness import FLEET, Installation, succeed, wait_for

# By a word of the command line; what runs inside a process of ours has no other name.
_GROUPS = {
    "flower-superlink": "SuperLink",
    "flower-supernode": "SuperNode",
    "flower-superexec": "SuperExec",
    "flwr-serverapp": "dispatcher",
    "flwr-clientapp": "ClientApp",
    "clue-coordinator": "coordinator",
}
_WAIT_SECONDS = 240.0


class StubAgent(agent_pb2_grpc.AgentServiceServicer):
    """Signs a receipt for whatever comes."""

    def __init__(self, name: str, home: Path) -> None:
        self._name = name
        self._key = create_signing_key(home / "receipt-key.pem")
        self.public_key = self._key.public_key

    def Deliver(self, request: agent_pb2.DeliverRequest, context: grpc.ServicerContext) -> agent_pb2.DeliverResponse:
        del context
        asked = peek_message(request.request_envelope, REQUEST_TYPE, pb.ForgetRequest)
        receipt = pb.Receipt(
            request_id=asked.request_id,
            device_id=self._name,
            fleet=asked.fleet,
            outcome=pb.OUTCOME_SUCCEEDED,
            request_digest=envelope_digest(request.request_envelope),
        )
        return agent_pb2.DeliverResponse(receipt_envelope=sign_message(receipt, RECEIPT_TYPE, [self._key]))


class Device:
    """A stub agent behind a real SuperNode."""

    def __init__(self, name: str, root: Path, client: OperatorClient) -> None:
        home = root / name
        home.mkdir()
        stub = StubAgent(name, home)
        config = AgentConfig(device_id=name, samples=home, home=home)
        ssh = _supernode_key(config.supernode_key)
        enrolment = Enrolment(name, stub.public_key, ssh, ("bird", "cat"), "00" * 32, "0.1.0")
        answer = client.add_device(FLEET, enrolment.to_json())
        socket = home / "agent.sock"
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        agent_pb2_grpc.add_AgentServiceServicer_to_server(stub, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()
        self._node = FlowerNode(config, Trust.from_json(answer.trust_json), socket)
        self._node.start()

    def close(self) -> None:
        self._node.close()
        self._server.stop(0)


def _supernode_key(path: Path) -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    private = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    path.chmod(0o600)
    form = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode("ascii")


class Memory(threading.Thread):
    """Samples the memory of every descendant of this process; keeps the largest sum of each group."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._stopping = threading.Event()
        self._reset = threading.Lock()
        self._peaks: dict[str, tuple[int, int]] = {}
        self.total = 0

    def take(self) -> dict[str, dict[str, int]]:
        """Peaks since the last call: bytes and number of processes."""
        with self._reset:
            found, self._peaks = self._peaks, {}
        return {name: {"pss_bytes": size, "processes": count} for name, (size, count) in sorted(found.items())}

    def run(self) -> None:
        while not self._stopping.wait(0.5):
            sums: dict[str, list[int]] = defaultdict(list)
            for process in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(process.cmdline())
                    # Proportional: what the processes share is counted once.
                    size = process.memory_full_info().pss
                except psutil.Error:
                    continue
                sums[next((group for word, group in _GROUPS.items() if word in words), "other")].append(size)
            self.total = sum(map(sum, sums.values()))
            with self._reset:
                for name, sizes in sums.items():
                    largest = self._peaks.get(name, (0, 0))
                    self._peaks[name] = max(largest, (sum(sizes), len(sizes)))

    def close(self) -> None:
        self._stopping.set()
        self.join()


def main() -> None:
    options = _options()
    memory = Memory()
    memory.start()
    devices: list[Device] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="clue-sn-") as folder, Installation(Path(folder)) as house:
        try:
            house.init()
            house.serve()
            succeed(house.coordinator("fleet", "create", FLEET))
            with OperatorClient(house.config) as client:
                for size in sorted(options.devices):
                    expected = memory.total * size / max(len(devices), 1) if devices else 0
                    if expected > options.memory * 1e9:
                        print(f"{size} devices would take about {expected / 1e9:.1f} GB: more than --memory; stopping")
                        break
                    rows += _measure(size, devices, house, client, memory)
        finally:
            with futures.ThreadPoolExecutor(max(1, len(devices))) as pool:
                list(pool.map(Device.close, devices))
            memory.close()
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    _print(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8, 16], metavar="N")
    parser.add_argument("--memory", type=float, default=8.0, metavar="GB", help="no size that would take more")
    parser.add_argument("--json", type=Path, metavar="OUT")
    return parser.parse_args()


def _measure(
    size: int, devices: list[Device], house: Installation, client: OperatorClient, memory: Memory
) -> list[dict[str, Any]]:
    started = time.monotonic()
    while len(devices) < size:
        devices.append(Device(f"pi-{len(devices)}", house.root, client))
    enrolled = time.monotonic()
    wait_for(
        lambda: sum(device.online for device in client.list_devices(FLEET)) == size,
        _WAIT_SECONDS,
        f"{size} devices to connect",
    )
    online = time.monotonic()
    rows = []
    for start in ("cold", "warm"):
        memory.take()
        ordered = time.monotonic()
        request_id = client.forget(forget_call(FLEET, "bird")).request_id
        wait_for(
            lambda wanted=request_id: client.get_request(wanted).HasField("finished_at"),  # type: ignore[misc]
            _WAIT_SECONDS,
            f"{size} receipts",
        )
        seconds = time.monotonic() - ordered
        counts = dict(client.get_request(request_id).counts)
        assert counts == {"SUCCEEDED": size}, counts
        rows.append(
            {
                "devices": size,
                "start": start,
                "seconds": seconds,
                "enrol_seconds": enrolled - started,
                "online_seconds": online - enrolled,
                "memory": memory.take(),
            }
        )
        print(f"{size} devices, {start}: {seconds:.1f} s", flush=True)
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    groups = [*_GROUPS.values()]
    table = Table("devices", "SuperExec", "order to receipts", *(f"{g} MB" for g in groups), "together MB", box=None)
    for row in rows:
        sizes = [row["memory"].get(group, {"pss_bytes": 0})["pss_bytes"] / 1e6 for group in groups]
        cells = [f"{size:.0f}" for size in [*sizes, sum(sizes)]]
        table.add_row(str(row["devices"]), row["start"], f"{row['seconds']:.1f} s", *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
