"""A fleet that three people decide over: nothing starts below two signatures, and who was revoked decides no more."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clue_coordinator.client import OperatorClient
from clue_coordinator.public_keys import PublicKey
from clue_protocol.trust import create_encrypted_key
from integration.conftest import DEVICES, Digits
from integration.harness import FLEET, Installation, one_line, succeed, wait_for

PEOPLE = ("alice", "bob", "carol")
PASSPHRASE = "correct horse battery staple"
# What is unlearnt, and how well, is the business of other tests.
QUICK = ("--method", "delete", "--set", "epochs=1", "--max-ua", "1", "--max-ra-drop", "1")


class Person:
    """An approver on a machine of their own: a token, the coordinator's certificates, a root, and a key."""

    def __init__(self, folder: Path, house: Installation, name: str) -> None:
        self.folder, self.name = folder / name, name
        self.folder.mkdir()
        token = self.folder / "clue.token"
        with OperatorClient(house.config) as client:
            token.write_text(client.create_token(name, "approver").secret)
        ca = self.folder / "ca.pem"
        ca.write_bytes((house.config.pki / "ca.pem").read_bytes())
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("CLUE_")} | {
            "CLUE_COORDINATOR_HOME": str(self.folder / "no-coordinator"),
            "CLUE_SERVER": house.config.operator_address,
            "CLUE_CA_FILE": str(ca),
            "CLUE_TOKEN_FILE": str(token),
            "CLUE_KEY_PASSPHRASE": PASSPHRASE,
            "CLUE_TEST_INSTALLATION": str(house.root),
        }
        key = create_encrypted_key(self.folder / "me.pem", PASSPHRASE).public_key
        Path(self.public).write_text(PublicKey(key, name).to_json())

    @property
    def public(self) -> str:
        return str(self.folder / "me.pub")

    @property
    def key_id(self) -> str:
        return str(json.loads(Path(self.public).read_text())["keyid"])

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(Path(sys.executable).parent / "clue-coordinator"), *arguments],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def approve(self, request_id: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return self.run("request", "approve", request_id, "--key", "me.pem", "--root", "root.dsse", "--yes", *options)


@pytest.fixture(scope="module")
def people(coordinator: Installation, digits: Digits) -> dict[str, Person]:
    """The fleet belongs to three people, of whom two must sign; both devices are online."""
    folder = coordinator.root / "people"
    folder.mkdir()
    found = {name: Person(folder, coordinator, name) for name in PEOPLE}
    approvers = [part for person in found.values() for part in ("--approver", person.public)]
    out = succeed(coordinator.coordinator("fleet", "approvers", FLEET, *approvers, "--require", "2"))
    assert "2 of 3 decide over homecams" in out
    succeed(found["alice"].run("root", "export", "root.dsse"))
    for name in ("bob", "carol"):
        shutil.copy(found["alice"].folder / "root.dsse", found[name].folder)
    for name, (samples, holdout) in digits.shares.items():
        coordinator.add_device(name, digits.bundle, samples, holdout)
        coordinator.start_agent(name)
    coordinator.wait_online(len(DEVICES))
    return found


@pytest.mark.timeout(400)
def test_two_of_three_people_decide(coordinator: Installation, people: dict[str, Person]) -> None:
    alice, bob, carol = people.values()
    out = succeed(coordinator.coordinator("forget", "--class", "eight", "--fleet", FLEET, *QUICK))
    assert "waits for 0 of 2 approvals" in out
    request_id = out.split()[1].rstrip(":")
    assert coordinator.show(request_id)["state"] == "AWAITING_APPROVAL"

    # Whoever holds the coordinator's home holds no approver's key, and the key that is there decides nothing.
    stranger = str(coordinator.root / "stranger.pem")
    coordinator.env["CLUE_KEY_PASSPHRASE"] = PASSPHRASE
    succeed(coordinator.coordinator("key", "create", stranger))
    refused = coordinator.coordinator("request", "approve", request_id, "--key", stranger, "--yes")
    assert "does not decide over fleet homecams" in refused.stderr

    assert "1 of 2 approvals: alice (key " in succeed(alice.approve(request_id))
    assert "1 of 2 approvals: alice (key " in succeed(alice.approve(request_id))  # twice is once
    shown = coordinator.show(request_id)
    assert (shown["state"], shown["counts"]) == ("AWAITING_APPROVAL", {"QUEUED": 2})
    assert [a["name"] for a in shown["approvals"]] == ["alice"]
    assert coordinator.events(request_id, "execution.in_progress") == []

    shown_to_bob = succeed(bob.approve(request_id[:8]))
    assert "'eight', for ever" in shown_to_bob
    assert "it starts" in shown_to_bob
    devices = coordinator.wait_completed(request_id)
    assert {d["state"] for d in devices.values()} == {"SUCCEEDED"}
    assert all(d["receipt_verified"] for d in devices.values())
    assert one_line(carol.approve(request_id), 1).endswith("it waits for no approval")


@pytest.mark.timeout(400)
def test_a_revoked_approver_decides_nothing_and_a_device_catches_up(
    coordinator: Installation, people: dict[str, Person], tmp_path: Path
) -> None:
    alice, bob, carol = people.values()
    coordinator.stop(DEVICES[1])
    # Waiting, with one signature of somebody who is about to go.
    waiting = coordinator.forget("three", *QUICK)
    succeed(carol.approve(waiting))
    draft = str(tmp_path / "next.json")
    drafted = succeed(
        coordinator.coordinator("root", "draft", draft, "--revoke", carol.key_id[:16], "--reason", "laptop stolen")
    )
    assert "REVOKED for ever: carol" in drafted
    assert "is signed by 0 of the 1 keys that may, 1 must" in one_line(
        coordinator.coordinator("root", "publish", draft), 1
    )
    assert "ready for 'root publish'" in succeed(coordinator.coordinator("root", "sign", draft, "--yes"))
    succeed(coordinator.coordinator("root", "publish", draft))
    succeed(coordinator.coordinator("root", "renew"))
    assert coordinator.show(waiting)["approvals"] == []
    assert "was revoked" in one_line(carol.approve(waiting), 1)
    succeed(alice.approve(waiting))
    assert "it starts" in succeed(bob.approve(waiting))
    wait_for(lambda: coordinator.show(waiting)["counts"].get("SUCCEEDED") == 1, 240, "the device that is on")
    # It was enrolled with version 2, and there are two more.
    coordinator.start_agent(DEVICES[1])
    devices = coordinator.wait_completed(waiting)
    assert {d["state"] for d in devices.values()} == {"SUCCEEDED"}
    newest = json.loads(succeed(coordinator.coordinator("root", "show", "--json")))
    assert newest["version"] == versions(coordinator)
    assert set(device_versions(coordinator).values()) == {newest["version"]}


def versions(house: Installation) -> int:
    with house.ledger() as ledger:
        return int(ledger.execute("SELECT max(version) FROM root").fetchone()[0])


def device_versions(house: Installation) -> dict[str, int]:
    with house.ledger() as ledger:
        return dict(ledger.execute("SELECT device_id, root_version FROM device"))
