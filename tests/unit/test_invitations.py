"""Invitations in the ledger, and the device that uses one: once, by one device, however often it must ask."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fleet_ledger import DEVICE_KEYS, Fleet
from securesystemslib.signer import CryptoSigner

from clue_coordinator import invitations
from clue_coordinator.devices import retire_device
from clue_coordinator.errors import ConflictError, CoordinatorError, FlowerError, UsageError, WrongTokenError
from clue_coordinator.lockout import MOST_WRONG, SECONDS, Lockout
from clue_coordinator.models import Device
from clue_coordinator.self_enrolment import SelfEnrolment
from clue_protocol.documents import Enrolment
from clue_protocol.enrolment import open_statement, sign_statement
from clue_protocol.errors import DocumentError
from clue_protocol.invitation import new_secret, secret_digest

HOUSE = "0f" * 16


class Nodes:
    """Stands where Flower is: a node for every key, the same one each time."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.calls = 0
        self.down = False

    def register(self, supernode_key: str, name: str) -> int:
        self.calls += 1
        if self.down:
            raise FlowerError("'flwr supernode' failed: it is down")
        if supernode_key not in self.keys:
            self.keys.append(supernode_key)
        return 5000 + self.keys.index(supernode_key)

    def unregister(self, node_id: int) -> None:
        self.keys[node_id - 5000] = "gone"


class Yard:
    """A fleet without devices, and the way in."""

    def __init__(self, where: Path | str) -> None:
        self.fleet = Fleet.make(where, 0)
        self.ledger = self.fleet.ledger
        self.nodes = Nodes()
        self.door = SelfEnrolment(self.ledger, self.nodes)

    def invite(self, name: str = "", seconds: float = 3600.0, **labels: str) -> bytes:
        return invitations.create_invitation(self.ledger, "yard", 1, seconds, name, labels)[1]

    def enrol(self, secret: bytes, number: int = 0, name: str = "", **changed: object) -> Device:
        return self.door.enrol(secret, statement(secret, number, name, **changed), HOUSE)

    def devices(self) -> list[str]:
        with self.ledger.read() as session:
            return [device.device_id for device in session.query(Device).order_by(Device.id)]


def document(number: int, name: str = "") -> Enrolment:
    key = f"ecdsa-sha2-nistp384 BBBB{number}"
    return Enrolment(name or f"pi-{number}", DEVICE_KEYS[number].public_key, key, ("bird",), "00" * 32, "1", {"a": "b"})


def statement(
    secret: bytes, number: int, name: str = "", *, house: str = HOUSE, signer: CryptoSigner | None = None
) -> bytes:
    digest = bytes.fromhex(secret_digest(secret))
    return sign_statement(house, digest, document(number, name), signer or DEVICE_KEYS[number])


@pytest.fixture
def yard(new_url: Callable[[], str]) -> Yard:
    return Yard(new_url())


def test_one_device_once_and_the_same_answer_to_it_alone(yard: Yard) -> None:
    secret = yard.invite(site="paris", a="c")
    device = yard.enrol(secret)
    assert (device.device_id, device.fleet.name, device.labels) == ("pi-0", "yard", {"a": "c", "site": "paris"})
    assert device.enrolment_envelope is not None
    kept, enrolment = open_statement(device.enrolment_envelope)
    assert (kept.installation, enrolment.device_id) == (HOUSE, "pi-0")
    # As after a power cut on the device.
    for _ in range(2):
        assert yard.enrol(secret).id == device.id
    assert yard.nodes.calls == 1
    with pytest.raises(ConflictError, match="used by another device"):
        yard.enrol(secret, number=1)
    assert yard.devices() == ["pi-0"]
    [row] = invitations.list_invitations(yard.ledger, include_closed=True)
    assert (invitations.invitation_state(row, yard.fleet.now), row.device_pk) == ("USED", device.id)
    assert invitations.list_invitations(yard.ledger) == []
    assert secret.hex() not in repr(vars(row))
    assert [e.kind for e in yard.fleet.events() if e.device_id == "pi-0"] == ["device.added"]
    # Even that device, when the token's life is over or it was sent away.
    retire_device(yard.ledger, "pi-0")
    with pytest.raises(ConflictError, match="was retired"):
        yard.enrol(secret)
    yard.fleet.now += 3601
    with pytest.raises(ConflictError, match="expired"):
        yard.enrol(secret)


def test_of_many_at_once_one_gets_it(yard: Yard) -> None:
    secret = yard.invite()

    def attempt(number: int) -> str:
        try:
            return yard.enrol(secret, number).device_id
        except ConflictError as error:
            return str(error)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(attempt, [n % 6 for n in range(24)]))
    [won] = yard.devices()
    assert answers.count(won) == 4  # all four calls of the one device
    assert {a for a in answers if a != won} == {"the token was used by another device: ask for a new one"}
    assert yard.nodes.calls == 1


def test_an_interrupted_enrolment_belongs_to_its_device_still(yard: Yard) -> None:
    secret = yard.invite()
    yard.nodes.down = True
    with pytest.raises(FlowerError):
        yard.enrol(secret)
    assert yard.devices() == []
    yard.nodes.down = False
    with pytest.raises(ConflictError, match="used by another"):
        yard.enrol(secret, number=1)
    assert yard.enrol(secret).device_id == "pi-0"


def test_a_name_or_key_that_is_taken_does_not_cost_the_token(yard: Yard) -> None:
    yard.enrol(yard.invite(), number=0)
    secret = yard.invite()
    with pytest.raises(ConflictError, match="enrolled already"):
        yard.enrol(secret, number=1, name="pi-0")
    with pytest.raises(ConflictError, match="has the same key"):
        yard.enrol(secret, number=0, name="pi-9")
    assert yard.enrol(secret, number=2, name="pi-2").device_id == "pi-2"


def test_the_name_that_was_given_must_be_taken(yard: Yard) -> None:
    secret = yard.invite("front-door")
    with pytest.raises(UsageError, match="for the device 'front-door', not 'pi-0'"):
        yard.enrol(secret)
    assert yard.enrol(secret, name="front-door").device_id == "front-door"
    with pytest.raises(ConflictError, match="there is or was"):
        yard.invite("front-door")


def test_who_does_not_show_the_key_is_refused(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "ledger.sqlite")
    secret = yard.invite()
    forged = {
        "signed by another key": statement(secret, 0, signer=DEVICE_KEYS[1]),
        "of another installation": statement(secret, 0, house="ff" * 16),
        "for another token": statement(new_secret(), 0),
        "cut off": statement(secret, 0)[:-9],
        "empty": b"",
    }
    for envelope in forged.values():
        with pytest.raises(UsageError, match="statement is refused"):
            yard.door.enrol(secret, envelope, HOUSE)
    assert yard.enrol(secret, number=2).device_id == "pi-2"


def test_withdrawn_expired_and_unknown(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "ledger.sqlite")
    secret = yard.invite()
    assert invitations.withdraw_invitation(yard.ledger, 1).withdrawn_at == yard.fleet.now
    with pytest.raises(ConflictError, match="withdrawn"):
        yard.enrol(secret)
    late = yard.invite(seconds=60.0)
    yard.fleet.now += 60.0
    with pytest.raises(ConflictError, match="expired"):
        yard.enrol(late)
    with pytest.raises(WrongTokenError):
        yard.enrol(new_secret())
    for number, problem in ((7, "no invitation 7"), (0, "no invitation 0")):
        with pytest.raises(UsageError, match=problem):
            invitations.withdraw_invitation(yard.ledger, number)
    used = yard.invite()
    yard.enrol(used)
    with pytest.raises(ConflictError, match="'pi-0' has used invitation 3"):
        invitations.withdraw_invitation(yard.ledger, 3)


def test_a_wrong_invitation_is_one_line(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "ledger.sqlite")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fleet": "yrad"}, "did you mean 'yard'"),
        ({"lifetime_seconds": 59.0}, "1 minute to 31 days"),
        ({"lifetime_seconds": float("nan")}, "1 minute to 31 days"),
        ({"device_id": "no name"}, "device name"),
        ({"labels": {"Bad": "x"}}, "label key"),
    ]
    good: dict[str, Any] = {"fleet": "yard", "root_version": 1, "lifetime_seconds": 60.0}
    for options, problem in wrong:
        with pytest.raises((CoordinatorError, DocumentError), match=problem):
            invitations.create_invitation(yard.ledger, **good | options)
    assert invitations.list_invitations(yard.ledger, include_closed=True) == []


def test_who_guesses_waits_and_others_do_not() -> None:
    now = [100.0]
    lockout = Lockout(lambda: now[0])
    for _ in range(MOST_WRONG - 1):
        lockout.note("ipv4:192.0.2.1:5000")
    assert lockout.seconds_left("ipv4:192.0.2.1:6000") == 0
    lockout.note("ipv4:192.0.2.1:7000")
    assert lockout.seconds_left("ipv4:192.0.2.1:6000") == SECONDS
    assert lockout.seconds_left("ipv4:192.0.2.2:6000") == 0
    now[0] += SECONDS
    assert lockout.seconds_left("ipv4:192.0.2.1:6000") == 0
    # One household's network, and no more memory than for so many.
    for number in range(MOST_WRONG):
        lockout.note(f"ipv6:%5B2001:db8::{number:x}%5D:1")
    assert lockout.seconds_left("ipv6:%5B2001:db8::ffff%5D:1") > 0
    assert lockout.seconds_left("ipv6:%5B2001:db8:0:1::1%5D:1") == 0
    for number in range(5000):
        lockout.note(f"ipv4:10.0.{number // 256}.{number % 256}:1")
    assert len(lockout._wrong) <= 4096
