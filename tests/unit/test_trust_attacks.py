"""Attacks on requests and time, each refused with its own error; the model and the stored state stay as they were."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from trust_simulator import (
    IN_1970,
    IN_2090,
    START,
    YEAR,
    Device,
    Installation,
    edited,
    payload_of,
    people,
    role,
    signed,
)

from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, sign_message
from clue_protocol.errors import EnvelopeError, ProtocolError
from clue_protocol.trust import (
    TIME_TYPE,
    ClockReading,
    FleetTrust,
    TrustState,
    add_signature,
    check_approvals,
    merge_signatures,
    successor,
    unsigned,
    verify_request,
)
from clue_protocol.trust import errors as wrong
from clue_protocol.trust.times import DAY, LATEST, SECOND, to_timestamp
from clue_protocol.v1 import forget_pb2 as pb
from clue_protocol.v1 import trust_pb2


@pytest.fixture
def world() -> Installation:
    return Installation()


@pytest.fixture
def device(world: Installation, tmp_path: Path) -> Device:
    made = Device(world, tmp_path)
    made.learn_time()
    return made


# What is right


def test_two_of_three_approvers_make_a_device_forget(world: Installation, device: Device) -> None:
    one = world.request([world.approvers[2]])
    device.refuses(wrong.ThresholdError, device.receive_request, one)
    device.receive_request(add_signature(one, REQUEST_TYPE, world.approvers[0]))
    assert device.forgotten == ["bird"]


def test_approvals_from_two_machines_come_together(world: Installation, device: Device) -> None:
    bare = world.request([])
    here, there = (add_signature(bare, REQUEST_TYPE, approver) for approver in world.approvers[:2])
    both = merge_signatures(here, there, REQUEST_TYPE)
    assert both == merge_signatures(there, here, REQUEST_TYPE)
    assert len(check_approvals(both, world.root.root, "homecams")) == 2
    device.receive_request(both)
    with pytest.raises(EnvelopeError, match="different documents"):
        merge_signatures(here, world.request(), REQUEST_TYPE)


def test_a_request_that_comes_again_is_known(world: Installation, device: Device) -> None:
    data = world.request()
    device.receive_request(data)
    device.receive_request(data)
    device.receive_request(add_signature(data, REQUEST_TYPE, world.approvers[2]))
    assert device.forgotten == ["bird"]


# Signatures

REQUEST_FIELDS: dict[str, Any] = {
    "request_id": "other",
    "fleet": "barn",
    "sequence": 99,
    "forget_class": "cat",
    "method": "delete",
    "hyperparameters_json": '{"lr": 9}',
    "seed": 7,
    "nonce": b"\x01" * 16,
    "max_attempts": 9,
    "share_update": True,
    "installation": "0" * 32,
    "model_digest": "cd" * 32,
    "policy": pb.Policy(max_ua=1, max_ra_drop=1),
    "patch": pb.PatchReference(source_request_id="r-0"),
    "issued_at": to_timestamp(START + SECOND),
    "expires_at": to_timestamp(LATEST),
}


def test_the_table_of_fields_is_complete() -> None:
    assert set(REQUEST_FIELDS) == {field.name for field in pb.ForgetRequest.DESCRIPTOR.fields}


@pytest.mark.parametrize("field", REQUEST_FIELDS)
def test_a_tampered_field(world: Installation, device: Device, field: str) -> None:
    def tamper(message: pb.ForgetRequest) -> None:
        before = copy.deepcopy(message)
        message.ClearField(field)
        message.MergeFrom(pb.ForgetRequest(**{field: REQUEST_FIELDS[field]}))
        assert message != before

    device.refuses(wrong.ThresholdError, device.receive_request, edited(world.request(), pb.ForgetRequest, tamper))


def test_the_wrong_role(world: Installation, device: Device) -> None:
    for signers in ([world.timer, *world.holders], [world.barn], [world.approvers[0], world.holders[0]]):
        device.refuses(wrong.WrongRoleError, device.receive_request, world.request(signers))
    device.refuses(wrong.ThresholdError, device.receive_request, world.request(people(3)))


def test_another_fleet(world: Installation, device: Device, tmp_path: Path) -> None:
    barns = world.request([world.barn], fleet="barn")
    device.refuses(wrong.WrongRoleError, device.receive_request, barns)
    # Approvers of one fleet who name another: properly signed, and still not for this device.
    device.refuses(wrong.WrongFleetError, device.receive_request, world.request(fleet="barn"))
    device.fleet = "attic"
    device.refuses(wrong.UnknownFleetError, device.receive_request, world.request(fleet="attic"))


def test_another_installation_with_the_same_approvers(world: Installation, device: Device) -> None:
    data = world.request(installation=Installation().root.root.installation)
    device.refuses(wrong.RootInstallationError, device.receive_request, data)
    device.refuses(wrong.RootInstallationError, device.receive_request, world.request(installation=""))


def test_one_approver_counts_once(world: Installation, device: Device) -> None:
    one = world.request(world.approvers[:1])
    device.refuses(wrong.ThresholdError, device.receive_request, add_signature(one, REQUEST_TYPE, world.approvers[0]))
    body = json.loads(one)
    [mine] = body["signatures"]
    body["signatures"] = [mine, copy.deepcopy(mine)]
    device.refuses(EnvelopeError, device.receive_request, json.dumps(body).encode())
    body["signatures"] = [mine, mine | {"keyid": world.approvers[1].public_key.keyid}]
    device.refuses(wrong.ThresholdError, device.receive_request, json.dumps(body).encode())


def test_a_damaged_signature_beside_enough_good_ones_does_no_harm(world: Installation, device: Device) -> None:
    body = json.loads(world.request())
    body["signatures"].insert(0, {"keyid": world.approvers[2].public_key.keyid, "sig": "AAAA"})
    device.receive_request(json.dumps(body).encode())
    assert device.forgotten == ["bird"]


def test_a_key_that_borrows_a_key_id(world: Installation, device: Device) -> None:
    thief = CryptoSigner.generate_ed25519(keyid=world.approvers[1].public_key.keyid)
    one = world.request(world.approvers[:1])
    with pytest.raises(wrong.PublicKeyError, match="key id"):
        add_signature(one, REQUEST_TYPE, thief)
    both = sign_message(pb.ForgetRequest.FromString(b""), REQUEST_TYPE, [thief])
    device.refuses(wrong.ThresholdError, device.receive_request, both)


def test_a_receipt_or_a_root_is_not_a_request(world: Installation, device: Device) -> None:
    device.refuses(EnvelopeError, device.receive_request, world.roots[0])
    receipt = signed(sign_message(pb.Receipt(), RECEIPT_TYPE, []), RECEIPT_TYPE, world.approvers[:2])
    device.refuses(EnvelopeError, device.receive_request, receipt)
    relabelled = json.loads(receipt) | {"payloadType": REQUEST_TYPE}
    device.refuses(wrong.ThresholdError, device.receive_request, json.dumps(relabelled).encode())


def test_a_revoked_key(world: Installation, device: Device) -> None:
    late = world.request()
    gone = world.revoke_approver(0)
    device.receive_roots(world.roots)
    device.learn_time()
    device.refuses(wrong.RevokedKeyError, device.receive_request, late)
    device.refuses(wrong.RevokedKeyError, device.receive_request, world.request([gone, world.approvers[1]]))
    device.receive_request(world.request([gone, *world.approvers[:2]]))
    assert device.forgotten == ["bird"]


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": ""},
        {"forget_class": ""},
        {"nonce": b"short"},
        {"sequence": 0},
        {"policy": None},
        {"expires_at": None},
        {"issued_at": None},
        {"expires_at": to_timestamp(START - 1)},
        {"expires_at": Timestamp(seconds=2**62)},
        {"expires_at": Timestamp(seconds=START // SECOND + 9, nanos=-1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signed_request_without_what_it_needs(world: Installation, device: Device, changes: dict[str, Any]) -> None:
    device.refuses(wrong.RequestContentError, device.receive_request, world.request(**changes))


# Order


def test_replay_and_out_of_order(world: Installation, device: Device) -> None:
    first, second, third = (world.request(forget_class=name) for name in ("a", "b", "c"))
    device.receive_request(first)
    device.receive_request(third)
    for old in (first, second):
        device.refuses(wrong.RequestReplayError, device.receive_request, old)
    device.power_cut(wall=IN_1970)
    device.learn_time()
    device.refuses(wrong.RequestReplayError, device.receive_request, first)
    assert device.forgotten == ["a", "c"]


def test_two_requests_with_one_number(world: Installation, device: Device) -> None:
    device.receive_request(world.request(sequence=5))
    device.refuses(wrong.RequestForkError, device.receive_request, world.request(sequence=5, forget_class="cat"))


def test_a_burnt_counter_is_mended_by_a_new_epoch(world: Installation, device: Device) -> None:
    """Stolen approvers' keys use up the highest number; without epochs, no request would ever be accepted again."""
    device.receive_request(world.request(sequence=2**32 - 1))
    device.refuses(wrong.RequestReplayError, device.receive_request, world.request())
    device.refuses(wrong.RequestEpochError, device.receive_request, world.request(sequence=2**63))
    fleets = {"homecams": FleetTrust(role(world.approvers, 2), epoch=1)}
    world.publish(successor(world.root, world.now, world.now + YEAR, fleets=fleets), world.holders[:2])
    device.receive_roots(world.roots)
    device.learn_time()
    device.refuses(wrong.RequestEpochError, device.receive_request, world.request())
    device.receive_request(world.request(sequence=(1 << 32) + 1))


# Time


@pytest.mark.parametrize("wall", [0, IN_1970, IN_2090, START, START + 2 * DAY])
@pytest.mark.parametrize("synchronised", [False, True])
def test_an_expired_request_whatever_the_clock_says(
    world: Installation, device: Device, wall: int, synchronised: bool
) -> None:
    data = world.request()
    world.now += 8 * DAY
    device.power_cut(wall=wall, synchronised=False)
    device.refuses(wrong.WaitingForTimeError, device.receive_request, data)
    device.power_cut(wall=wall, synchronised=synchronised)
    device.learn_time()
    device.refuses(wrong.RequestExpiredError, device.receive_request, data)
    # It is known for good now: also after the next power cut, without anyone to ask.
    device.power_cut(wall=wall, synchronised=synchronised)
    device.refuses(wrong.RequestExpiredError, device.receive_request, data)


@pytest.mark.parametrize("wall", [0, IN_1970, IN_2090])
def test_a_valid_request_is_not_refused_for_ever(world: Installation, device: Device, wall: int) -> None:
    data = world.request()
    world.now += DAY
    for synchronised in (False, True):
        device.power_cut(wall=wall, synchronised=synchronised)
        assert device.refuses(wrong.WaitingForTimeError, device.receive_request, data).hold  # type: ignore[attr-defined]
    device.learn_time()
    device.receive_request(data)
    assert device.forgotten == ["bird"]


def test_a_clock_that_was_set_needs_no_answer(world: Installation, device: Device) -> None:
    data = world.request()
    world.now += DAY
    device.power_cut(wall=world.now, synchronised=True)
    device.receive_request(data)
    assert device.forgotten == ["bird"]


def test_a_withheld_answer_cannot_make_it_seem_early(world: Installation, device: Device) -> None:
    """The attacker has the question answered at once and delivers the answer when the request has expired."""
    world.now += 30 * DAY
    data = world.request(expires_at=to_timestamp(world.now + 3600 * SECOND))
    device.power_cut(wall=IN_1970)
    answer = world.time(device.ask())
    world.now += 2 * 3600 * SECOND
    device.refuses(wrong.WaitingForTimeError, device.receive_request, data)
    device.receive_time(answer)
    device.refuses(wrong.WaitingForTimeError, device.receive_request, data)
    device.learn_time()
    device.refuses(wrong.RequestExpiredError, device.receive_request, data)


def test_a_device_that_stays_on_needs_nobody_to_see_a_request_expire(world: Installation, device: Device) -> None:
    data = world.request(expires_at=to_timestamp(world.now + 3600 * SECOND))
    world.now += 3590 * SECOND
    device.receive_request(data)
    world.now += 20 * SECOND
    device.refuses(wrong.RequestExpiredError, device.receive_request, data)


def test_a_replayed_answer(world: Installation, device: Device) -> None:
    answer = world.time(device.ask())
    device.receive_time(answer)
    device.ask()
    device.refuses(wrong.NonceError, device.receive_time, answer)
    device.challenge = None
    device.refuses(wrong.NonceError, device.receive_time, answer)
    broadcast = world.time()
    device.receive_time(broadcast)
    device.refuses(wrong.AttestationReplayError, device.receive_time, broadcast)
    device.refuses(wrong.AttestationReplayError, device.receive_time, world.time(at=world.now - 1))
    device.refuses(wrong.AttestationExpiredError, device.receive_time, world.time(at=world.now - DAY))


def test_a_broadcast_gives_no_upper_bound(world: Installation, device: Device) -> None:
    data = world.request(expires_at=to_timestamp(world.now + 3600 * SECOND))
    held_back = world.time()
    world.now += 2 * 3600 * SECOND
    device.power_cut(wall=IN_1970)
    device.receive_time(held_back)
    device.refuses(wrong.WaitingForTimeError, device.receive_request, data)


@pytest.mark.parametrize("field", [field.name for field in trust_pb2.TimeAttestation.DESCRIPTOR.fields])
def test_a_tampered_attestation(world: Installation, device: Device, field: str) -> None:
    data = edited(world.time(device.ask()), trust_pb2.TimeAttestation, lambda message: message.ClearField(field))
    device.refuses(wrong.ThresholdError, device.receive_time, data)


def test_time_from_those_who_may_not_tell_it(world: Installation, device: Device) -> None:
    for signer in (world.holders[0], world.approvers[0], people(1)[0]):
        device.refuses(wrong.ThresholdError, device.receive_time, world.time(signer=signer))
    other = Installation()
    other.timer = world.timer
    device.refuses(wrong.RootInstallationError, device.receive_time, other.time())
    empty = sign_message(trust_pb2.TimeAttestation(installation=world.root.root.installation), "x", [])
    body = json.loads(empty) | {"payloadType": "application/vnd.clue.time.v1+protobuf"}
    lacking = add_signature(json.dumps(body).encode(), body["payloadType"], world.timer)
    device.refuses(wrong.AttestationContentError, device.receive_time, lacking)


def test_a_stolen_timestamp_key_and_the_year_2090(world: Installation, device: Device) -> None:
    """Everything is past its date then, until the root holders take the key away."""
    device.receive_time(world.time(at=IN_2090))
    device.refuses(wrong.RootExpiredError, device.receive_request, world.request())
    [world.timer] = people(1)
    world.now += DAY
    root = successor(world.root, world.now, world.now + YEAR, timestamp=role([world.timer]))
    world.publish(root, world.holders[:2])
    device.receive_roots(world.roots)
    device.learn_time()
    device.receive_request(world.request())
    assert device.forgotten == ["bird"]


def test_a_stolen_timestamp_key_and_a_root_that_is_not_there(world: Installation, device: Device) -> None:
    """Announcing version 2**64 - 1 and the highest number stops a fleet until the key is replaced, and no longer."""
    claim = trust_pb2.TimeAttestation.FromString(payload_of(world.time()))
    claim.root_version = claim.sequence = 2**64 - 1
    device.receive_time(signed(unsigned(claim, TIME_TYPE), TIME_TYPE, [world.timer]))
    device.refuses(wrong.RootOutdatedError, device.receive_request, world.request())
    device.refuses(wrong.AttestationReplayError, device.receive_time, world.time())
    [world.timer] = people(1)
    root = successor(world.root, world.now, world.now + YEAR, timestamp=role([world.timer]))
    world.publish(root, world.holders[:2])
    device.receive_roots(world.roots)
    device.learn_time()
    device.receive_request(world.request())
    assert device.forgotten == ["bird"]


def test_the_time_stays_known_when_other_keys_change(world: Installation, device: Device) -> None:
    data = world.request()
    world.now += 8 * DAY
    device.learn_time()
    world.revoke_approver(2)
    device.receive_roots(world.roots)
    device.refuses(wrong.RequestExpiredError, device.receive_request, data)


# Freeze


def test_a_root_that_is_withheld_is_noticed(world: Installation, device: Device) -> None:
    gone = world.revoke_approver(0)
    stolen = world.request([gone, world.approvers[1]])
    device.learn_time()
    assert device.refuses(wrong.RootOutdatedError, device.receive_request, stolen).hold  # type: ignore[attr-defined]
    device.receive_roots(world.roots)
    device.refuses(wrong.RevokedKeyError, device.receive_request, stolen)


def test_a_freeze_ends_with_the_root(world: Installation, device: Device) -> None:
    """Without root and time from anyone, a device does not go on trusting for ever."""
    world.now += 2 * YEAR
    device.power_cut(wall=IN_1970)
    data = world.request()
    device.refuses(wrong.WaitingForTimeError, device.receive_request, data)
    device.learn_time()
    assert device.refuses(wrong.RootExpiredError, device.receive_request, data).hold  # type: ignore[attr-defined]


# Garbage

WORLD = Installation()
SIGNED = WORLD.request()


STATE = TrustState.first(WORLD.root)
READING = ClockReading(WORLD.now, WORLD.now, 0, False)


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, len(SIGNED) - 1), inserted=st.binary(max_size=3), removed=st.integers(0, 4))
def test_damaged_bytes_never_get_through(position: int, inserted: bytes, removed: int) -> None:
    data = SIGNED[:position] + inserted + SIGNED[position + removed :]
    try:
        verified = verify_request(data, root=WORLD.root, fleet="homecams", state=STATE, reading=READING)
    except ProtocolError:
        return
    assert verified.request == pb.ForgetRequest.FromString(payload_of(SIGNED))


def test_a_root_that_may_have_expired_holds_a_request_that_has_not() -> None:
    expires = WORLD.root.root.expires_ns
    data = WORLD.request(expires_at=to_timestamp(expires + DAY))
    unsure = ClockReading(expires - 1, expires + 1, 0, False)
    with pytest.raises(wrong.WaitingForTimeError, match="its root"):
        verify_request(data, root=WORLD.root, fleet="homecams", state=STATE, reading=unsure)
