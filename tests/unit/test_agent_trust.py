"""Attacks on a device: each is refused with a reason of its own, or held, and neither its model nor its trust moves."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_home import EVE, OPERATOR, Device, FakeWorker, ask, deliver, envelope, receipt_of
from trust_house import BEGINNING, CENTURY, House, key, request_message, role, sign_request
from typer.testing import CliRunner

from clue_agent import trust_files
from clue_agent.agent import Agent
from clue_agent.boottime import Instant
from clue_agent.cli import app
from clue_agent.config import AgentConfig, config_text
from clue_agent.doctor import Level
from clue_agent.doctor_trust import root as root_findings
from clue_agent.errors import ConfigError
from clue_agent.journal import Journal
from clue_agent.setup import load_trust, save_trust
from clue_agent.status import read_status
from clue_agent.trust_files import TrustFiles
from clue_protocol.documents import Trust
from clue_protocol.errors import AlreadyRunningError
from clue_protocol.files import HomeLock
from clue_protocol.trust import ROOT_TYPE, FleetTrust, add_signature, load_state
from clue_protocol.trust.errors import TrustStateError
from clue_protocol.trust.times import DAY, SECOND
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb

IN_1970, IN_2090 = 60 * SECOND, 3_786_912_000 * SECOND
TWO_OF_THREE = role(OPERATOR, key("ann"), key("bob"), threshold=2)


class FakeClock:
    """The time passes when a test says so, and the date is what the test says."""

    def __init__(self, device_ns: int = IN_1970) -> None:
        self.boot_id, self.boot_ns, self.device_ns = "boot-1", 5 * SECOND, device_ns

    def now(self) -> Instant:
        return Instant(self.boot_id, self.boot_ns, self.device_ns)

    def passes(self, seconds: float) -> None:
        self.boot_ns += int(seconds * SECOND)
        self.device_ns += int(seconds * SECOND)


def hand_over(agent: Agent, data: bytes = b"", **more: Any) -> agent_pb2.DeliverResponse:
    """One delivery as it is, without a helping hand with the time."""
    return agent.deliver(agent_pb2.DeliverRequest(request_envelope=data, request_id="r-1", **more))


def reason(answer: agent_pb2.DeliverResponse) -> str:
    receipt = receipt_of(answer)
    assert receipt.outcome == pb.OUTCOME_REJECTED, receipt.detail
    assert receipt.detail
    assert "\n" not in receipt.detail
    return pb.Reason.Name(receipt.reason).removeprefix("REASON_")


def marks(device: Device) -> dict[str, int]:
    state = load_state(device.config.trust_folder / "state.json")
    return {name: mark.sequence for name, mark in state.fleets.items()}


# Who and what


def changed_root(device: Device) -> House:
    """Two of three decide over the yard, carol left, dora decides over the farm, the yard is in epoch 1."""
    house = House()
    fleets = {"yard": FleetTrust(TWO_OF_THREE, epoch=1), "farm": FleetTrust(role(key("dora")))}
    house.publish(fleets=fleets, revoke=[(key("carol").public_key, "laptop stolen")])
    save_trust(device.config, house.trust().to_json())
    return house


FIFTH = (1 << 32) | 5
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nobody signed": (lambda: signed_by(), "BAD_SIGNATURE"),
    "a stranger signed": (lambda: signed_by(EVE), "BAD_SIGNATURE"),
    "one of two": (lambda: signed_by(OPERATOR), "BELOW_THRESHOLD"),
    "one of two, twice": (lambda: signed_by(OPERATOR, OPERATOR), "BELOW_THRESHOLD"),
    "one and a stranger": (lambda: signed_by(OPERATOR, EVE), "BELOW_THRESHOLD"),
    "one and a revoked key": (lambda: signed_by(OPERATOR, key("carol")), "REVOKED_KEY"),
    "root and time keys": (lambda: signed_by(key("root"), key("timestamp")), "WRONG_ROLE"),
    "another fleet's approver": (lambda: signed_by(key("dora")), "WRONG_ROLE"),
    "another installation": (lambda: approved(installation="ab" * 16), "WRONG_INSTALLATION"),
    "no installation": (lambda: approved(installation=""), "WRONG_INSTALLATION"),
    "another fleet": (lambda: approved(fleet="farm"), "WRONG_FLEET"),
    "an old number": (lambda: approved(sequence=FIFTH - 1), "REPLAYED"),
    "a number that was used": (lambda: approved(sequence=FIFTH), "FORKED"),
    "a number of the last epoch": (lambda: approved(sequence=99), "WRONG_EPOCH"),
    "another model": (lambda: approved(model_digest="ab" * 32), "WRONG_MODEL"),
    "expired": (lambda: approved(expires_in=-1), "EXPIRED"),
    "no nonce": (lambda: approved(nonce=b""), "INVALID_REQUEST"),
    "no number": (lambda: approved(sequence=0), "INVALID_REQUEST"),
}


def signed_by(*signers: Any, **changes: Any) -> bytes:
    fields = {"request_id": "r-attack", "forget_class": "blue", "sequence": FIFTH + 1} | changes
    data = sign_request(request_message(**fields), *(signers or [EVE]))
    return data if signers else json.dumps(json.loads(data) | {"signatures": []}).encode()


def approved(**changes: Any) -> bytes:
    return signed_by(OPERATOR, key("ann"), **changes)


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_refused_with_its_own_reason(device: Device, worker: FakeWorker, name: str) -> None:
    make, expected = ATTACKS[name]
    changed_root(device)
    agent = device.boot(start=False)  # what it promises is as good as done
    assert ask(agent, approved(request_id="r-5", sequence=FIFTH, forget_class="green"), "r-5").progress.stage
    model, before, data = device.model(), marks(device), make()
    answer = ask(agent, data, "r-attack")
    assert reason(answer) == expected
    assert (answer.root_version, answer.time_nonce) == (2, b"")
    assert (device.model(), marks(device), before) == (model, before, {"yard": FIFTH})
    agent = device.boot(start=False)
    assert ask(agent, data, "r-attack").receipt_envelope == answer.receipt_envelope
    # It has cost the device nothing: what the right people ask for is done.
    good = approved(request_id="r-good", sequence=FIFTH + 7, model_digest=device.digest)
    assert ask(agent, good, "r-good").progress.stage == "waiting"
    assert [job.request_id for job in device.journal.unfinished()] == ["r-5", "r-good"]
    assert marks(device) == {"yard": FIFTH + 7}


def test_a_fleet_that_the_root_does_not_know(device: Device) -> None:
    save_trust(device.config, House().trust(fleet="barn").to_json())
    assert reason(ask(device.boot(), envelope(fleet="barn"))) == "UNKNOWN_FLEET"
    findings = {f.check: f.level for f in root_findings(device.config, load_trust(device.config))}
    assert findings == {"root": Level.OK, "fleet": Level.FAIL, "signed time": Level.OK}


def test_what_the_journal_knows_is_no_replay(device: Device, worker: FakeWorker) -> None:
    """A later request was accepted meanwhile: a receipt is handed out again, and a failed attempt made again."""
    worker.ua_after = 5
    agent = device.boot()
    old = envelope(policy=pb.Policy(max_ua=0, max_ra_drop=1, max_tries=1), max_attempts=3)
    first = ask(agent, old, seconds=60)
    assert receipt_of(first).outcome == pb.OUTCOME_FAILED
    worker.ua_after = 0
    assert deliver(agent, envelope(request_id="r-2", forget_class="blue"), "r-2").outcome == pb.OUTCOME_SUCCEEDED
    assert ask(agent, old).receipt_envelope == first.receipt_envelope
    indented = json.dumps(json.loads(old), indent=1).encode()
    assert ask(agent, indented).receipt_envelope == first.receipt_envelope
    agent = device.boot()
    assert deliver(agent, indented, attempt=2).outcome == pb.OUTCOME_SUCCEEDED
    assert marks(device) == {"yard": 2}
    # A request that was never accepted is overtaken for good, also if the journal has heard of it by a recall.
    late = envelope(request_id="r-late", sequence=1, forget_class="green")
    assert ask(agent, late, "r-late", recall=True).not_begun
    assert reason(ask(agent, late, "r-late")) == "REPLAYED"


def test_another_attempt_with_a_key_that_was_revoked_meanwhile(device: Device, worker: FakeWorker) -> None:
    worker.ua_after = 5
    house, agent = House(), device.boot()
    data = envelope(policy=pb.Policy(max_ua=0, max_ra_drop=1, max_tries=1), max_attempts=3)
    assert deliver(agent, data).outcome == pb.OUTCOME_FAILED
    fleets = {name: FleetTrust(role(EVE)) for name in ("yard", "farm")}
    root = house.publish(fleets=fleets, revoke=[(OPERATOR.public_key, "stolen")])
    answer = ask(agent, data, attempt=2, root_envelopes=[root])
    assert (reason(answer), len(worker.jobs)) == ("REVOKED_KEY", 1)


# Roots


def test_a_device_that_was_off_through_three_rotations(device: Device, worker: FakeWorker) -> None:
    house = House()
    roots, holder = [], house.holder
    for name in ("second", "third", "fourth"):
        new = key(name)
        roots.append(house.publish(root=role(new), signers=[holder, new]))
        holder = house.holder = new
    fleets = {name: FleetTrust(role(EVE)) for name in ("yard", "farm")}
    roots.append(house.publish(fleets=fleets, revoke=[(OPERATOR.public_key, "laptop stolen")]))
    agent = device.boot()
    held = hand_over(agent, envelope(), time_attestation=house.time())
    assert (held.progress.stage, held.root_version, held.time_nonce) == ("waiting for a newer root", 1, b"")
    answer = hand_over(agent, envelope(), root_envelopes=roots)
    assert (reason(answer), answer.root_version) == ("REVOKED_KEY", 5)
    assert worker.jobs == []
    # Roots that it has passed already are nothing new, and what it has is still there after a restart.
    assert hand_over(device.boot(), b"", root_envelopes=roots[1:]).root_version == 5
    new = sign_request(request_message(request_id="r-2"), EVE)
    assert deliver(device.boot(), new, "r-2").outcome == pb.OUTCOME_SUCCEEDED


def test_a_root_that_is_announced_and_withheld_holds_everything(device: Device, worker: FakeWorker) -> None:
    house, agent = House(), device.boot(start=False)
    new = house.publish()
    before = device.model()
    for boot in range(3):
        answer = hand_over(agent, envelope(), time_attestation=house.time() if boot == 0 else b"")
        assert (answer.progress.stage, answer.receipt_envelope) == ("waiting for a newer root", b"")
        assert device.journal.unfinished() == []
        agent = device.boot(start=boot == 2)
    assert (device.model(), worker.jobs, read_status(device.config).trust.announced_root) == (before, [], 2)
    assert ask(agent, envelope(), seconds=60, root_envelopes=[new]).receipt_envelope


def test_roots_that_lead_nowhere_change_nothing(device: Device) -> None:
    house, other, agent = House(), House(), device.boot(start=False)
    second, third = house.publish(), house.publish()
    other.holder = EVE
    forged = other.publish()
    fork = House().publish(expires_ns=BEGINNING + CENTURY - DAY)
    for roots, version in (
        ([b"garbage"], 1),
        ([forged], 1),
        ([third], 1),
        ([second, forged], 2),
        ([fork], 2),
        ([third], 3),
        ([house.roots[0]], 3),
    ):
        assert hand_over(agent, b"", root_envelopes=roots).root_version == version
    assert device.boot(start=False).trusting.root_version == 3


def test_an_expired_root_waits_for_the_next(device: Device, worker: FakeWorker) -> None:
    house = House()
    house.publish(expires_ns=BEGINNING + DAY)
    save_trust(device.config, house.trust().to_json())
    agent = device.boot()
    answer = hand_over(agent, envelope(), time_attestation=house.time())
    assert (answer.progress.stage, answer.receipt_envelope) == ("waiting: the root has expired", b"")
    [finding, _] = root_findings(device.config, load_trust(device.config))
    agent.close()  # stores the time
    [finding, _] = root_findings(device.config, load_trust(device.config))
    assert (finding.level, "expired" in finding.detail) == (Level.FAIL, True)
    agent = device.boot()
    assert ask(agent, envelope(), seconds=60, root_envelopes=[house.publish()]).receipt_envelope


# Time


@pytest.mark.parametrize("date", [IN_1970, IN_2090], ids=["1970", "2090"])
def test_neither_a_clock_that_is_behind_nor_one_ahead_decides(device: Device, worker: FakeWorker, date: int) -> None:
    house, clock = House(), FakeClock(date)
    good, expired = envelope(expires_in=3600), envelope(request_id="r-2", expires_in=-60)
    agent = device.boot(clock=clock)
    for data in (good, expired):
        answer = hand_over(agent, data)
        assert (answer.progress.stage, len(answer.time_nonce), answer.receipt_envelope) == (
            "waiting for the time",
            16,
            b"",
        )
    assert device.journal.unfinished() == []
    # A time for everyone says how late it is at least. That is enough to refuse, and not enough to obey.
    assert reason(hand_over(agent, expired, time_attestation=house.time())) == "EXPIRED"
    answer = hand_over(agent, good)
    assert answer.progress.stage == "waiting for the time"
    # After a restart the device asks anew: an answer to the old question is none.
    agent = device.boot(clock=clock)
    assert hand_over(agent, good, time_attestation=house.time(answer.time_nonce)).progress.stage
    assert worker.jobs == []
    nonce = hand_over(agent, good).time_nonce
    assert nonce == hand_over(agent, good).time_nonce
    answer = hand_over(agent, good, time_attestation=house.time(nonce), wait_seconds=60)
    assert (receipt_of(answer).outcome, answer.time_nonce) == (pb.OUTCOME_SUCCEEDED, b"")


def test_the_time_runs_on_by_the_boot_clock(device: Device, worker: FakeWorker) -> None:
    house, clock = House(), FakeClock()
    agent = device.boot(clock=clock)
    nonce = hand_over(agent, envelope(request_id="r-9", expires_in=600)).time_nonce
    hand_over(agent, b"", time_attestation=house.time(nonce))
    assert agent.trusting.report().at_most_ns is not None
    clock.passes(700)
    agent.trusting.keep_time()
    assert reason(hand_over(agent, envelope(expires_in=600))) == "EXPIRED"
    # The lower bound survives a power cut, the upper one does not; nor does it survive another boot unnoticed.
    device.agents.clear()
    again = Agent(device.config, load_trust(device.config), OPERATOR, Journal(device.config.journal), clock).trusting
    assert (again.report().at_most_ns, again.report().at_least_ns > time.time_ns() + 690 * SECOND) == (None, True)
    clock.boot_id, clock.boot_ns = "boot-2", 0
    assert agent.trusting.report().at_most_ns is None
    assert worker.jobs == []


def test_times_that_are_not_signed_by_the_timestamp_key_or_are_old_teach_nothing(device: Device) -> None:
    house, agent = House(), device.boot(start=False)
    new = house.time()
    hand_over(agent, b"", time_attestation=house.time())
    known = agent.trusting.report().at_least_ns
    soon = time.time_ns() + 10 * DAY
    for data in (b"garbage", house.time(at=soon, signer=OPERATOR), house.time(at=soon, signer=EVE), new):
        hand_over(agent, b"", time_attestation=data)
    assert agent.trusting.report().at_least_ns - known < DAY


def test_a_new_timestamp_key_takes_back_what_the_old_one_said(device: Device, worker: FakeWorker) -> None:
    """A thief attests 2090: everything is expired, until the root holders replace the key."""
    house, agent = House(), device.boot()
    hand_over(agent, b"", time_attestation=house.time(at=IN_2090))
    assert reason(hand_over(agent, envelope(request_id="r-2"))) == "EXPIRED"
    house.timer = key("new timestamp")
    root = house.publish(timestamp=role(house.timer), revoke=[(key("timestamp").public_key, "stolen")])
    answer = hand_over(agent, envelope(), root_envelopes=[root])
    assert answer.progress.stage == "waiting for the time"
    answer = hand_over(agent, envelope(), time_attestation=house.time(answer.time_nonce), wait_seconds=60)
    assert receipt_of(answer).outcome == pb.OUTCOME_SUCCEEDED


# The files


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("how", ["delivered", "given"])
def test_a_power_cut_between_root_and_state(
    device: Device, monkeypatch: pytest.MonkeyPatch, worker: FakeWorker, at: int, how: str
) -> None:
    """Before the first file, between any two, and after the last, twice in a row: the device starts and goes on."""
    house = House()
    agent = device.boot(start=False)
    assert ask(agent, envelope(request_id="r-5"), "r-5").progress.stage
    for turn in range(2):
        root = house.publish()
        writes = 0

        def cut(real: Callable[..., None]) -> Callable[..., None]:
            def write(path: Path, *rest: Any, **options: Any) -> None:
                nonlocal writes
                if writes == at:
                    raise PowerCutError
                writes += 1
                real(path, *rest, **options)

            return write

        with monkeypatch.context() as patched:
            patched.setattr(trust_files, "write_atomic", cut(trust_files.write_atomic))
            patched.setattr(trust_files, "save_state", cut(trust_files.save_state))
            try:
                if how == "delivered":
                    hand_over(agent, b"", root_envelopes=[root])
                else:
                    save_trust(device.config, house.trust().to_json())
            except PowerCutError:
                pass
        device.agents.clear()
        agent = device.boot(start=False)
        assert agent.trusting.root_version >= 1 + turn * (at > 2)
        assert marks(device) == {"yard": 5}
        assert reason(ask(agent, envelope(request_id=f"r-{turn + 1}"), f"r-{turn + 1}")) == "REPLAYED"
        assert hand_over(agent, b"", root_envelopes=house.roots[1:]).root_version == house.root.root.version


@pytest.mark.parametrize("name", ["state.json", "root.dsse"])
@pytest.mark.parametrize("damage", ["gone", "torn", "old", "other"])
def test_damaged_trust_is_said_and_never_replaced(device: Device, name: str, damage: str) -> None:
    house = House()
    old = {path.name: path.read_bytes() for path in device.config.trust_folder.iterdir()}
    save_trust(device.config, (house.publish() and house.trust()).to_json())
    path = device.config.trust_folder / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "old":
        path.write_bytes(old[name])
    else:
        path.write_bytes(b'{"format": "clue-trust-state/1"}')
    if (name, damage) == ("state.json", "old"):
        # That is what a power cut leaves, too: the state is brought to the root.
        assert device.boot(start=False).trusting.root_version == 2
        return
    left = {path.name: path.read_bytes() for path in device.config.trust_folder.iterdir()}
    with pytest.raises(TrustStateError, match="enrol the device anew"):
        device.boot(start=False)
    with pytest.raises(TrustStateError):
        save_trust(device.config, house.trust().to_json())
    assert left == {path.name: path.read_bytes() for path in device.config.trust_folder.iterdir()}
    assert "enrol the device anew" in read_status(device.config).trust.problem
    [finding] = root_findings(device.config, load_trust(device.config))
    assert (finding.level, "--replace" in finding.advice) == (Level.FAIL, True)
    save_trust(device.config, house.trust().to_json(), replace=True)
    assert device.boot(start=False).trusting.root_version == 2


def test_a_trust_document_given_again_goes_forward_only(device: Device) -> None:
    house = House()
    assert deliver(device.boot(start=False), envelope(forget_class="nothing")).outcome == pb.OUTCOME_REJECTED
    device.shut_down()
    house.publish()
    house.publish()
    moved = house.trust(version=3, superlink="10.0.0.1:9092").to_json()
    save_trust(device.config, moved)
    save_trust(device.config, moved)
    assert (load_trust(device.config).superlink, device.boot(start=False).trusting.root_version) == ("10.0.0.1:9092", 3)
    device.shut_down()
    fork = House()
    fork.publish()
    fork.publish(expires_ns=BEGINNING + CENTURY - DAY)
    for document, problem in (
        (house.trust(version=2), "has version 3 already"),
        (fork.trust(), "another one"),
        (stranger(), "this device belongs to"),
    ):
        with pytest.raises(ConfigError, match=problem):
            save_trust(device.config, document.to_json())
    assert load_trust(device.config).to_json() == moved
    lock = HomeLock(device.config.home)
    lock.acquire()
    with pytest.raises(AlreadyRunningError):
        save_trust(device.config, moved)
    lock.release()
    save_trust(device.config, stranger().to_json(), replace=True)
    assert device.boot(start=False).trusting.root_version == 1


def stranger() -> Trust:
    """Of another installation, whose root key is the same."""
    root = dataclasses.replace(House().root.root, installation="cd" * 16)
    data = add_signature(root.to_envelope(), ROOT_TYPE, key("root"))
    return dataclasses.replace(House().trust(), root=data)


def test_a_pin_that_the_power_cut_off_is_begun_again(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = AgentConfig(device_id="cam-2", samples=tmp_path, home=tmp_path / "new")
    config.home.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(trust_files, "save_state", lambda *_: (_ for _ in ()).throw(PowerCutError()))
        with pytest.raises(PowerCutError):
            save_trust(config, House().trust().to_json())
    assert not config.trust.exists()
    save_trust(config, House().trust().to_json())
    assert TrustFiles(config.trust_folder).load()[0].root.version == 1


def test_status_and_doctor_say_it_in_plain_words(device: Device) -> None:
    config = device.config
    (config.home / "agent.toml").write_text(config_text(config))
    shown = CliRunner().invoke(app, ["status", "--config", str(config.home / "agent.toml")], env={"COLUMNS": "200"})
    assert "version 1 of installation" in shown.stdout
    assert "until 2125" in shown.stdout
    assert "at least 2026-01-01T00:00:00Z; the coordinator is asked when a request comes" in shown.stdout
    agent = device.boot()
    assert not agent.status().trust.HasField("at_most")
    ask(agent, envelope(forget_class="nothing"))
    told = agent.status().trust
    assert told.root_version == 1
    assert told.at_least.seconds <= time.time() <= told.at_most.seconds + 1
    device.shut_down()
    data = json.loads(
        CliRunner()
        .invoke(app, ["status", "--json", "--config", str(config.home / "agent.toml")], env={"COLUMNS": "200"})
        .stdout
    )
    assert (data["trust"]["root_version"], data["trust"]["problem"]) == (1, "")
    assert data["trust"]["time_at_least"] > "2026-01-01T00:00:00Z"
