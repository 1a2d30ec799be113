"""Roots in the ledger, requests that wait for people, numbers in order, and the time beside every request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_ledger import KEYS, SIGNER, Fleet
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from clue_coordinator import approvals, enrol, reports, requests, rollout, roots
from clue_coordinator.errors import ApprovalError, ConflictError, RootRefusedError, UsageError
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.models import Device, LogLeaf
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.root_drafts import Changes, draft
from clue_coordinator.timekeeper import Timekeeper
from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.trust import (
    ROOT_TYPE,
    Challenge,
    FleetTrust,
    Role,
    add_signature,
    check_approvals,
    open_attestation,
    successor,
    walk_chain,
)
from clue_protocol.trust.times import DAY
from clue_protocol.v1 import forget_pb2 as pb

ALICE, BOB, CAROL, EVE = (CryptoSigner.generate_ed25519() for _ in range(4))
PEOPLE = Role((ALICE.public_key, BOB.public_key, CAROL.public_key), 2)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.make(tmp_path / "ledger.sqlite", 2)


@pytest.fixture
def people(fleet: Fleet) -> Fleet:
    """Fleet ``yard`` belongs to three people, of whom two must sign."""
    publish(fleet, fleets={"yard": FleetTrust(PEOPLE)}, names={ALICE.public_key.keyid: "alice"})
    return fleet


def publish(fleet: Fleet, keys: HomeKeys = KEYS, *, names: dict[str, str] | None = None, **changes: Any) -> int:
    """Make the next root, a second later; returns its version."""
    fleet.now += 1
    with fleet.ledger.read() as session:
        old = roots.latest(session)
    now = int(fleet.now) * 10**9
    new = successor(old, now, now + 365 * DAY, **changes)
    assert keys.root is not None
    return roots.publish(fleet.ledger, add_signature(new.to_envelope(), ROOT_TYPE, keys.root), keys, names).root.version


def signed(fleet: Fleet, request_id: str, *signers: CryptoSigner) -> bytes:
    envelope = fleet.request(request_id).envelope
    for signer in signers:
        envelope = add_signature(envelope, REQUEST_TYPE, signer)
    return envelope


def approve(fleet: Fleet, request_id: str, *signers: CryptoSigner) -> str:
    approvals.approve(fleet.ledger, request_id, signed(fleet, request_id, *signers))
    return fleet.request(request_id).state


def leaves(fleet: Fleet, kind: str) -> list[str]:
    with fleet.ledger.read() as session:
        return list(session.scalars(select(LogLeaf.reference).where(LogLeaf.kind == kind).order_by(LogLeaf.id)))


def test_nothing_starts_below_the_threshold(people: Fleet) -> None:
    request_id = people.order()
    assert people.request(request_id).state == "AWAITING_APPROVAL"
    assert people.lease(0, 1) == {}
    assert leaves(people, "request") == []
    assert approve(people, request_id, ALICE) == "AWAITING_APPROVAL"
    assert approve(people, request_id, ALICE) == "AWAITING_APPROVAL"
    assert [entry["name"] for entry in people.request(request_id).approvals] == ["alice"]
    assert people.lease(0, 1) == {}
    people.now += 3600
    assert approve(people, request_id, BOB) == "SCHEDULED"
    assert people.request(request_id).wave_at == people.now
    given = people.lease(0, 1)
    assert set(given) == {0, 1}
    with people.ledger.read() as session:
        root = roots.latest(session).root
    assert len(check_approvals(given[0].request_envelope, root, "yard")) == 2
    assert people.answer(given[0]) == "SUCCEEDED"
    assert leaves(people, "approval") == [request_id] * 2
    assert leaves(people, "request") == [request_id]
    assert approve(people, request_id, ALICE) == "IN_PROGRESS"  # known, so it changes nothing
    with pytest.raises(ConflictError, match="it waits for no approval"):
        approve(people, request_id, CAROL)


def test_who_may_not_approve_is_told_why(people: Fleet) -> None:
    request_id = people.order()
    for signer, why in ((EVE, "no signature is of a key that may"), (KEYS.root, "does not decide over fleet yard")):
        assert isinstance(signer, CryptoSigner)
        with pytest.raises(ApprovalError, match=why):
            approve(people, request_id, signer)
    other = people.order()
    with pytest.raises(ApprovalError, match="is not request"):
        approvals.approve(people.ledger, request_id, signed(people, other, ALICE))
    with pytest.raises(UsageError, match="no signed request"):
        approvals.approve(people.ledger, request_id, b"{}")
    # A stranger's signature beside a good one does not come along.
    approve(people, request_id, ALICE, EVE)
    assert EVE.public_key.keyid.encode() not in people.request(request_id).envelope


def test_waiting_ends_with_the_deadline_or_with_a_no(people: Fleet) -> None:
    late, unwanted = people.order(expires_in_seconds=60), people.order()
    approve(people, late, BOB)
    people.now += 61
    people.tick()
    request = people.request(late)
    assert (request.state, request.reason) == ("CANCELED", "expired before it was approved: 1 of 2 approvals")
    assert request.finished_at is not None
    assert people.states(late) == ["CANCELED"] * 2
    approvals.reject(people.ledger, unwanted, "not this one")
    assert people.request(unwanted).reason == "rejected by an approver: not this one"
    with pytest.raises(ConflictError, match="CANCELED"):
        approve(people, unwanted, ALICE)


def test_a_new_root_counts_for_what_waits(people: Fleet) -> None:
    request_id = people.order()
    approve(people, request_id, CAROL)
    two = Role((ALICE.public_key, BOB.public_key))
    publish(people, fleets={"yard": FleetTrust(two)}, revoke=[(CAROL.public_key, "stolen")])
    assert leaves(people, "revocation") == ["root-4"]
    assert people.request(request_id).approvals == []
    with pytest.raises(ApprovalError, match="was revoked"):
        approve(people, request_id, CAROL)
    approve(people, request_id, BOB)
    started = people.request(request_id)
    assert started.state == "SCHEDULED"
    publish(people, fleets={"yard": FleetTrust(two, epoch=1)})
    assert people.request(request_id).state == "CANCELED"
    assert people.request(people.order()).sequence == 2**32 + 1


def test_patches_are_not_for_fleets_of_people(people: Fleet) -> None:
    with pytest.raises(UsageError, match="the coordinator alone signs patches"):
        people.order(plan=RolloutPlan(without_samples="aggregate"))


def test_a_fleet_is_made_with_its_approvers_or_not_at_all(fleet: Fleet) -> None:
    enrol.create_fleet(fleet.ledger, "lab", KEYS, PEOPLE, {BOB.public_key.keyid: "bob"})
    with fleet.ledger.read() as session:
        root = roots.latest(session).root
        assert roots.key_names(session)[BOB.public_key.keyid] == "bob"
    assert root.fleets["lab"].request == PEOPLE
    people_hold = HomeKeys(SIGNER, KEYS.timestamps, None)
    with pytest.raises(ConflictError, match="root belongs to people"):
        enrol.create_fleet(fleet.ledger, "shed", people_hold, PEOPLE)
    enrol.create_fleet(fleet.ledger, "shed", people_hold)
    fleet.add_device(2)
    with fleet.ledger.write() as session:
        shed = enrol.require_fleet(session, "shed")
        session.scalars(select(Device).where(Device.device_id == "cam-2")).one().fleet = shed
    with pytest.raises(ConflictError, match="does not name fleet 'shed'"):
        requests.create_request(fleet.ledger, requests.ForgetOrder("shed", "bird"), SIGNER)


def test_roots_that_do_not_follow_are_refused(fleet: Fleet) -> None:
    with fleet.ledger.read() as session:
        old = roots.latest(session)
    now = int(fleet.now) * 10**9
    assert KEYS.root is not None

    def refused(why: str, signer: CryptoSigner, expires: int = now + DAY, **changes: Any) -> None:
        new = successor(old, now, expires, **changes)
        with pytest.raises(RootRefusedError, match=why):
            roots.publish(fleet.ledger, add_signature(new.to_envelope(), ROOT_TYPE, signer), KEYS)

    assert isinstance(KEYS.root, CryptoSigner)
    refused("signed by 0 of the 1 keys", EVE)
    refused("signed by 0 of the 1 keys that may, 1 must", KEYS.root, root=Role((EVE.public_key,)))
    refused("names no timestamp key of this coordinator", KEYS.root, timestamp=Role((EVE.public_key,)))
    fleet.now += 2 * 86400
    refused("has expired", KEYS.root)
    with pytest.raises(UsageError, match="no signed root"):
        roots.publish(fleet.ledger, b"x", KEYS)
    with fleet.ledger.read() as session:
        assert roots.latest(session).digest == old.digest
    assert roots.publish(fleet.ledger, old.envelope, KEYS).digest == old.digest


def test_a_root_is_renewed_in_time_where_the_home_may(fleet: Fleet) -> None:
    assert not roots.renew_if_due(fleet.ledger, KEYS)
    fleet.now += 336 * 86400
    assert not roots.renew_if_due(fleet.ledger, HomeKeys(SIGNER, KEYS.timestamps, None))
    assert roots.renew_if_due(fleet.ledger, KEYS)
    with fleet.ledger.read() as session:
        root = roots.latest(session).root
    assert (root.version, root.expires_ns) == (3, int(fleet.now) * 10**9 + 365 * DAY)
    assert not roots.renew_if_due(fleet.ledger, KEYS)


def test_a_ledger_of_before_gets_its_first_root_with_its_fleets(tmp_path: Path) -> None:
    fleet = Fleet.make(tmp_path / "ledger.sqlite", 0)
    enrol.create_fleet(fleet.ledger, "barn")
    with fleet.ledger.read() as session:
        assert "barn" not in roots.latest(session).root.fleets
    from clue_coordinator.ledger import Ledger

    bare = Ledger(tmp_path / "old.sqlite")
    enrol.create_fleet(bare, "barn")
    trusted = roots.found(bare, KEYS)
    assert (trusted.root.version, set(trusted.root.fleets)) == (1, {"barn"})
    assert roots.found(bare, KEYS).digest == trusted.digest


def test_a_device_is_given_the_roots_that_it_misses_and_the_time(fleet: Fleet) -> None:
    timekeeper = Timekeeper(fleet.ledger, KEYS)
    with fleet.ledger.read() as session:
        pinned = roots.latest(session)
    for _ in range(3):
        newest = publish(fleet)
    fleet.order()

    def lease() -> dict[int, Any]:
        found = rollout.lease(fleet.ledger, fleet.nodes, timekeeper=timekeeper)
        return {fleet.nodes.index(a.node_id): a for a in found}

    given = lease()
    root = walk_chain(pinned, given[0].root_envelopes)
    assert root.root.version == newest == 5
    assert given[0].time_attestation == given[1].time_attestation  # one for everyone
    opened = open_attestation(given[0].time_attestation, root, lower_ns=0, last_sequence=0)
    assert (opened.time_ns, opened.root_version) == (int(fleet.now * 1e9), 5)

    challenge = Challenge.new(7)
    told = reports.Told(5, challenge.nonce)
    reports.report_error(fleet.ledger, given[0].execution_id, fleet.nodes[0], "when?", unreachable=False, told=told)
    again = lease()
    assert set(again) == {0}  # at once, and without a fault
    assert not again[0].root_envelopes
    answer = open_attestation(
        again[0].time_attestation, root, lower_ns=0, last_sequence=opened.sequence, challenge=challenge
    )
    assert answer.answers == challenge
    # The numbers rise through a restart, also with a clock that was set back.
    fleet.now -= 5000
    with fleet.ledger.write() as session:
        late = Timekeeper(fleet.ledger, KEYS).attest(session, root)
    assert open_attestation(late, root, lower_ns=0, last_sequence=answer.sequence).sequence == answer.sequence + 1


def test_a_device_gets_requests_in_the_order_of_their_numbers(fleet: Fleet) -> None:
    first, second = fleet.order(plan=RolloutPlan(max_attempts=2, backoff_seconds=600)), fleet.order("cat")
    given = fleet.lease(0)
    assert given[0].request_id == first
    fleet.answer(given[0], outcome=pb.OUTCOME_FAILED, reason=pb.REASON_WORKER_FAILED)
    assert fleet.lease(0) == {}  # the second one does not overtake the pause of the first
    requests.cancel_request(fleet.ledger, first)
    assert fleet.lease(0)[0].request_id == second


def test_a_request_that_was_approved_late_is_overtaken(people: Fleet) -> None:
    early, late = people.order(), people.order("cat")
    approve(people, late, ALICE, BOB)
    given = people.lease(0)
    assert given[0].request_id == late  # what waits holds no device
    approve(people, early, ALICE, BOB)
    people.answer(given[0])
    assert people.lease(0) == {}
    execution = people.execution(early)
    assert (execution.state, execution.reason) == ("CANCELED", "OVERTAKEN")
    assert people.lease(1)[1].request_id == early  # of two, that device had begun none
    again = requests.retry_request(people.ledger, early, SIGNER, ["cam-0"])
    assert people.request(again).state == "AWAITING_APPROVAL"


def test_the_model_is_named_where_it_is_known(fleet: Fleet) -> None:
    def digest(request_id: str) -> str:
        return peek_message(fleet.request(request_id).envelope, REQUEST_TYPE, pb.ForgetRequest).model_digest

    first = fleet.order()
    assert digest(first) == "00" * 32
    assert digest(fleet.order()) == ""  # the first will have changed it
    for _ in range(2):
        given = fleet.lease(0, 1)
        fleet.answer(given[0])
        fleet.answer(given[1], outcome=pb.OUTCOME_REJECTED, reason=pb.REASON_ALREADY_FORGOTTEN)
    assert digest(fleet.order()) == ""  # they have different ones


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (lambda: Changes(revoke={ALICE.public_key.keyid[:6]: ""}), "at least 8 characters"),
        (lambda: Changes(revoke={"0" * 16: ""}), "no key whose id begins so"),
        (lambda: Changes(revoke={SIGNER.public_key.keyid: ""}), "fleet yard has 0 key"),
        (lambda: Changes(raise_epoch=["barn"]), "no fleet 'barn'"),
    ],
)
def test_drafts_that_make_no_sense(fleet: Fleet, changes: Callable[[], Changes], why: str) -> None:
    with fleet.ledger.read() as session:
        trusted = roots.latest(session)
    with pytest.raises(UsageError, match=why):
        draft(trusted, changes(), trusted.root.issued_ns, trusted.root.issued_ns + DAY)


def test_a_draft_keeps_what_it_does_not_name(people: Fleet) -> None:
    with people.ledger.read() as session:
        trusted = roots.latest(session)
    both = Changes(revoke={ALICE.public_key.keyid: "", BOB.public_key.keyid: ""})
    with pytest.raises(UsageError, match="fleet yard has 1 key"):
        draft(trusted, both, trusted.root.issued_ns, trusted.root.expires_ns + 1)
    new = draft(
        trusted,
        Changes(revoke={ALICE.public_key.keyid[:8]: "left"}, raise_epoch=["yard"]),
        trusted.root.issued_ns,
        trusted.root.expires_ns + 1,
    )
    assert set(new.fleets["yard"].request.keys) == {BOB.public_key, CAROL.public_key}
    assert (new.fleets["yard"].epoch, new.root, new.revoked[0].reason) == (1, trusted.root.root, "left")
