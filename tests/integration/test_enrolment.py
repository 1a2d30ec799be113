"""From an invitation to a revocation, with real processes; and a certificate that is renewed meanwhile."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clue_coordinator.pki import renew_server
from integration.conftest import Digits
from integration.harness import BRIEF, FLEET, Installation, one_line, succeed, wait_for

# Revoking runs one Flower command, on a machine that does other things, too.
CUT_OFF_SECONDS = 30.0


def test_invite_enroll_forget_revoke(tmp_path: Path, digits: Digits) -> None:
    with Installation(tmp_path / "house") as house:
        house.init()
        config = house.config
        # Its certificate becomes due some seconds after the coordinator has begun.
        due_in = 20.0
        began = time.time()
        renew_server(config.pki, config.certificate_hosts, began + config.server_certificate_days * 86400 / 3 + due_in)
        first = (config.pki / "server.pem").read_text()
        house.serve()
        succeed(house.coordinator("fleet", "create", FLEET))

        invite = ["device", "invite", "--fleet", FLEET, "--name", "pi-1"]
        invited = json.loads(succeed(house.coordinator(*invite, "--json")))
        samples, holdout = digits.shares["pi-1"]
        enroll = ["enroll", invited["token"], "--model", str(digits.bundle), "--keep-originals"]
        enroll += ["--samples", str(samples), "--holdout", str(holdout), "--home"]
        succeed(house.agent(*enroll, str(house.device("pi-1"))))
        assert "used by another device" in one_line(house.agent(*enroll, str(house.device("thief"))), 1)
        assert not house.device("thief").exists()
        # Again, as after a lost connection.
        succeed(house.agent("enroll", invited["token"], "--home", str(house.device("pi-1"))))

        house.start_agent("pi-1")
        wait_for(lambda: _shown(config.superlink_port) not in (first, ""), due_in + 60, "a renewed certificate")
        assert time.time() >= began + due_in
        # The SuperLink reads its certificate once: to show the new one it was started anew.
        for port in (config.superlink_port, config.operator_port, config.enrolment_port):
            wait_for(lambda port=port: _shown(port) == (config.pki / "server.pem").read_text(), 20, f"port {port}")
        house.wait_online(1)
        done = house.wait_completed(house.forget("eight", *BRIEF))
        assert done["pi-1"]["state"] == "SUCCEEDED", done
        assert done["pi-1"]["receipt_verified"]

        node = int(json.loads(succeed(house.coordinator("device", "show", "pi-1", "--json")))["node_id"])
        with _pulling(house, "pi-1", node) as pulls:
            wait_for(lambda: pulls.good > 0.0, 20, "a pull with the device's key")
            request = house.forget("three")
            asked = time.monotonic()
            said = succeed(house.coordinator("device", "revoke", "pi-1", "--reason", "stolen", "--yes", timeout=90))
            assert "cut off" in said
            wait_for(lambda: pulls.refused > asked, CUT_OFF_SECONDS, "a pull to be refused")
            # Nothing but refusals from there on.
            time.sleep(2.0)
            assert pulls.good < pulls.refused
        cut_off = pulls.refused - asked
        print(f"\nrevoked device: refused by the SuperLink {cut_off:.1f} s after the command was begun")
        assert cut_off < CUT_OFF_SECONDS
        assert house.wait_completed(request)["pi-1"]["state"] == "REMOVED"
        shown = json.loads(succeed(house.coordinator("device", "show", "pi-1", "--json")))
        assert shown["revocation_reason"] == "stolen"
        assert shown["cut_off_at"] is not None
        kinds = [event["kind"] for event in shown["events"]]
        assert {"device.revoked", "device.cut_off", "execution.removed"} <= set(kinds)
        with house.ledger() as ledger:
            leaves = ledger.execute("SELECT reference FROM log_leaf WHERE kind = 'revocation'").fetchall()
        assert leaves == [("device/pi-1",)]
        assert "there is or was a device 'pi-1'" in one_line(house.coordinator(*invite), 1)


class Pulls:
    """When the SuperLink last let the device pull messages, and when it first refused after that (monotonic s)."""

    good = 0.0
    refused = 0.0


@contextmanager
def _pulling(house: Installation, device: str, node: int) -> Iterator[Pulls]:
    """Pull with the device's own key over one connection, ten times a second: what a thief would do."""
    key = load_ssh_private_key((house.device(device) / "supernode-key.pem").read_bytes(), None)
    client = FleetHttpClient.from_server_address(
        house.config.superlink_address,
        False,
        str(house.config.pki / "ca.pem"),
        [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),  # type: ignore[arg-type,union-attr]
        ],
    )
    pulls, stopping = Pulls(), threading.Event()

    def pull() -> None:
        while not stopping.wait(0.1):
            try:
                client.PullMessages(PullMessagesRequest(node=Node(node_id=node)))
                pulls.good = time.monotonic()
            except Exception:
                if pulls.good > 0 and not pulls.refused:
                    pulls.refused = time.monotonic()

    thread = threading.Thread(target=pull)
    thread.start()
    try:
        yield pulls
    finally:
        stopping.set()
        thread.join(30)


def _shown(port: int) -> str:
    """The certificate that a port shows, empty if it shows none."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=30)
    except OSError:
        return ""
