"""``clue-agent enroll`` against the enrolment service: over TLS, on a real ledger; only Flower is away."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from fleet_ledger import DEVICE_KEYS
from test_invitations import Nodes

import clue
from clue_agent import cli, setup
from clue_agent.config import load_config
from clue_agent.setup import own_enrolment
from clue_coordinator import invitations, pki, roots
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.enrol import create_fleet
from clue_coordinator.enrolment_service import EnrolmentServer, EnrolmentService
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger
from clue_coordinator.lockout import MOST_WRONG, Lockout
from clue_coordinator.models import Device
from clue_protocol.documents import Trust
from clue_protocol.enrolment import MAX_MESSAGE_BYTES, open_statement
from clue_protocol.files import HomeLock
from clue_protocol.invitation import Invitation, new_secret
from clue_protocol.net import free_port
from clue_protocol.trust import ROOT_TYPE, FleetTrust, Role, add_signature, successor
from clue_protocol.v1 import enrolment_pb2 as pb
from clue_protocol.v1 import enrolment_pb2_grpc

REQUEST, CLOCK, ROOT = DEVICE_KEYS[9:12]


class House:
    """A coordinator's enrolment service with one fleet and a root."""

    def __init__(self, home: Path) -> None:
        self.config = CoordinatorConfig(home=home, enrolment_port=free_port())
        pki.create_pki(self.config.pki, self.config.certificate_hosts)
        self.ledger = Ledger(self.config.ledger_file)
        create_fleet(self.ledger, "yard")
        self.keys = HomeKeys(REQUEST, (CLOCK,), ROOT)
        self.root = roots.found(self.ledger, self.keys)
        self.nodes, self.lockout = Nodes(), Lockout()
        self.server = EnrolmentServer(EnrolmentService(self.config, self.ledger, self.nodes, self.lockout), self.config)

    def token(self, name: str = "", seconds: float = 600.0, **changes: object) -> str:
        version = self.root.root.version
        secret = invitations.create_invitation(self.ledger, "yard", version, seconds, name)[1]
        fields: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.config.enrolment_port,
            "secret": secret,
            "ca_digest": pki.ca_digest(self.config.pki),
            "root_digest": self.root.digest,
            "installation": self.root.root.installation,
        }
        return Invitation(**fields | changes).to_token()  # type: ignore[arg-type]

    def rotate(self) -> None:
        """The next root."""
        now = time.time_ns()
        more = {"more": FleetTrust(Role((REQUEST.public_key,)))}
        new = successor(self.root, now, now + roots.LIFETIME_NS, fleets=more)
        roots.publish(self.ledger, add_signature(new.to_envelope(), ROOT_TYPE, ROOT), self.keys)

    def devices(self) -> dict[str, Device]:
        with self.ledger.read() as session:
            return {device.device_id: device for device in session.query(Device)}

    def close(self) -> None:
        self.server.close()
        self.ledger.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = House(tmp_path / "coordinator")
    yield found
    found.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network."""
    import torch

    from clue.architectures import build_model

    spec = clue.ModelSpec("resnet20", ("red", "green"), input_size=(16, 16))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    clue.save_bundle(folder, build_model(spec), spec)
    return folder


Agent = Callable[..., tuple[int, str, str]]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Agent:
    """Runs ``clue-agent``; returns exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clue-agent", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_device_joins_and_may_ask_again(house: House, agent: Agent, model: Path, tmp_path: Path) -> None:
    home, token = tmp_path / "pi", house.token("front-door")
    # Since the token was made.
    house.rotate()
    code, out, err = agent("enroll", token, "--home", home, "--model", model, "--label", "site=paris")
    assert (code, err) == (0, ""), err
    assert "device front-door is in fleet yard" in out
    device = house.devices()["front-door"]
    assert device.labels["site"] == "paris"
    assert device.receipt_key["keyid"] == own_enrolment(load_config(home / "agent.toml")).receipt_key.keyid
    assert device.enrolment_envelope is not None
    assert open_statement(device.enrolment_envelope)[1].device_id == "front-door"
    trust = Trust.from_json((home / "trust.json").read_bytes())
    with house.ledger.read() as session:
        newest = roots.latest(session)
    assert newest.root.version == 2
    assert trust.root == newest.envelope
    assert (trust.fleet, trust.superlink) == ("yard", house.config.superlink_address)
    kept = {path: path.read_bytes() for path in (home / "receipt-key.pem", home / "supernode-key.pem")}
    # As often as it likes, with nothing but the token.
    (home / "trust.json").unlink()
    shutil.rmtree(home / "trust", ignore_errors=True)
    code, _, err = agent("enroll", token.lower(), "--home", home)
    assert (code, err) == (0, ""), err
    assert Trust.from_json((home / "trust.json").read_bytes()) == trust
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(house.devices()) == 1
    # Another device with the same token leaves nothing behind.
    code, _, err = agent("enroll", token, "--home", tmp_path / "other", "--model", model)
    assert (code, err.count("\n")) == (1, 1)
    assert "used by another device" in err
    assert not (tmp_path / "other").exists()


def test_keys_are_the_same_after_a_kill_at_any_point(
    house: House, agent: Agent, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, token = tmp_path / "pi", house.token("pi")

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    # Nothing is tidied up: as after SIGKILL.
    monkeypatch.setattr(setup, "_undo", lambda *_: None)
    # Each time a little later.
    kept: list[bytes] = []
    for point in (
        "clue_agent.setup._create_supernode_key",
        "clue_agent.setup.config_text",
        "clue_agent.enroll.sign_statement",
        "clue_agent.enroll.save_trust",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(point, die)
            with pytest.raises(Killed):
                agent("enroll", token, "--home", home, "--model", model)
        kept.append((home / "receipt-key.pem").read_bytes())
        assert not (home / "trust.json").exists()
    assert list(house.devices()) == ["pi"]  # the coordinator was told, and the device did not hear
    code, _, err = agent("enroll", token, "--home", home)
    assert (code, err) == (0, ""), err
    assert {(home / "receipt-key.pem").read_bytes(), *kept} == {kept[0]}
    assert house.nodes.calls == 1


def test_another_coordinator_is_told_nothing(house: House, agent: Agent, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "pi"
    heard: list[str] = []

    def hear(self: EnrolmentService, request: pb.GetInvitationRequest, context: grpc.ServicerContext) -> None:
        heard.append(request.secret.hex())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnrolmentService, "GetInvitation", hear)
        wrong = [
            (house.token(ca_digest=sha256(b"another").digest()), "is not the coordinator that made this token"),
            (house.token(port=free_port()), "does not answer"),
        ]
        for token, problem in wrong:
            code, _, err = agent("enroll", token, "--home", home, "--model", model)
            assert (code, err.count("\n")) == (1, 1), err
            assert problem in err
    assert heard == []
    # A root that the token does not name, from the right coordinator: refused after the fact, and nothing is trusted.
    code, _, err = agent("enroll", house.token("pi", root_digest=b"\x01" * 32), "--home", home, "--model", model)
    assert (code, err.count("\n")) == (1, 1)
    assert "not the one that this device was told to trust" in err
    assert not (home / "trust.json").exists()


def test_an_impostor_with_the_right_authority_is_told_nothing(
    house: House, agent: Agent, model: Path, tmp_path: Path
) -> None:
    """Its certificate is public: what counts is who can show one that it signed."""
    heard: list[str] = []

    class Impostor(enrolment_pb2_grpc.EnrolmentServiceServicer):
        def GetAuthority(
            self, request: pb.GetAuthorityRequest, context: grpc.ServicerContext
        ) -> pb.GetAuthorityResponse:
            heard.append("authority")
            return pb.GetAuthorityResponse(ca_pem=(house.config.pki / "ca.pem").read_text())

        def GetInvitation(
            self, request: pb.GetInvitationRequest, context: grpc.ServicerContext
        ) -> pb.GetInvitationResponse:
            heard.append("secret")
            return pb.GetInvitationResponse(fleet="yard", device_id="pi")

    own = CoordinatorConfig(home=tmp_path / "impostor", enrolment_port=free_port())
    pki.create_pki(own.pki, own.certificate_hosts)
    server = EnrolmentServer(Impostor(), own)  # type: ignore[arg-type]
    code, _, err = agent("enroll", house.token(port=own.enrolment_port), "--home", tmp_path / "pi", "--model", model)
    server.close()
    assert (code, err.count("\n"), heard) == (1, 1, ["authority"])
    assert not (tmp_path / "pi").exists()


def test_wrong_tokens_and_options_leave_nothing(house: House, agent: Agent, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "pi"
    good = house.token()
    for arguments, exit_code, problem in (
        ([good[:-1]], 1, "not whole"),
        (["hello"], 1, "no invitation token"),
        ([good], 1, "choose a name with --device-id"),
        ([good, "--device-id", "no name"], 2, "device name"),
        ([house.token("a"), "--device-id", "b"], 1, "for the device 'a', not 'b'"),
        ([house.token("a", secret=new_secret())], 1, "does not know this token"),
        ([good, "--device-id", "pi", "--holdout", tmp_path / "none"], 2, "is not a folder"),
    ):
        code, _, err = agent("enroll", *arguments, "--home", home, "--model", model)
        assert code == exit_code, err
        assert problem in " ".join(err.replace("│", " ").split()), err
        assert not home.exists()
    code, _, err = agent("enroll", good, "--device-id", "pi", "--home", home)
    assert (code, "--model BUNDLE" in err) == (1, True)
    code, _, err = agent("enroll", good, "--device-id", "pi", "--home", home, "--model", tmp_path)
    assert code == 1
    assert not home.exists()
    assert house.devices() == {}


def test_an_agent_that_runs_is_left_alone(house: House, agent: Agent, model: Path, tmp_path: Path) -> None:
    home, token = tmp_path / "pi", house.token("pi")
    assert agent("enroll", token, "--home", home, "--model", model)[0] == 0
    lock = HomeLock(home)
    lock.acquire()
    code, _, err = agent("enroll", token, "--home", home)
    lock.release()
    assert (code, "is in use" in err) == (1, True)


def test_guessing_is_slowed_and_large_messages_are_refused(house: House) -> None:
    token = Invitation.from_token(house.token())
    credentials = grpc.ssl_channel_credentials((house.config.pki / "ca.pem").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{token.port}", credentials) as channel:
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        for _ in range(MOST_WRONG):
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetInvitation(pb.GetInvitationRequest(secret=new_secret()), timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetInvitation(pb.GetInvitationRequest(secret=token.secret), timeout=30)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "wait 6" in refused.value.details() or "wait 5" in refused.value.details()
        with pytest.raises(grpc.RpcError) as refused:
            stub.Enrol(pb.EnrolRequest(statement_envelope=b"x" * MAX_MESSAGE_BYTES), timeout=30)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.GetAuthority(pb.GetAuthorityRequest(), timeout=30).ca_pem.startswith("-----BEGIN")
