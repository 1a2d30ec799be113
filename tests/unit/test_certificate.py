"""Erasure certificates: true ones verify with nothing but a root; whatever is changed is named."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from certified_fleet import INSTALLATION, LOG, LOG_ROLE, WITNESS, Certified, first_root
from fleet_ledger import DEVICE_KEYS, SIGNER
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from clue.cli import app
from clue_coordinator import tlog
from clue_coordinator.certificates.page import page_of
from clue_coordinator.certificates.paper import to_pdf
from clue_coordinator.certificates.web import to_html
from clue_coordinator.errors import ConflictError, LogDamagedError
from clue_coordinator.tlog.compare import compare_documents
from clue_protocol.certificate import Certificate, CertificateError, CertificateFormError, verify_certificate
from clue_protocol.certificate.canonical import dump
from clue_protocol.commands import certificate_app, log_app
from clue_protocol.trust import FleetTrust
from clue_protocol.v1 import forget_pb2 as pb


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """Three devices: one has succeeded at the second attempt, one refused, and one says nothing until it is retired."""
    found = Certified.make(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", 3)
    yield found
    found.fleet.ledger.close()


@pytest.fixture(scope="module")
def request_id(world: Certified) -> str:
    fleet = world.fleet
    from clue_coordinator import devices
    from clue_coordinator.plan import RolloutPlan

    found = fleet.order(plan=RolloutPlan(max_attempts=2, backoff_seconds=1))
    leased = fleet.lease(0, 1)
    failed = {"outcome": pb.OUTCOME_FAILED, "reason": pb.REASON_OUT_OF_MEMORY}
    assert fleet.answer(leased[0], **failed) == "QUEUED"
    refused = {"outcome": pb.OUTCOME_REJECTED, "reason": pb.REASON_NO_HOLDOUT, "detail": "no <images>"}
    assert fleet.answer(leased[1], **refused) == "REJECTED"
    fleet.now += 60
    assert fleet.answer(fleet.lease(0)[0]) == "SUCCEEDED"
    with pytest.raises(ConflictError, match="open"):
        world.certificate(found)
    assert world.certificate(found, partial=True)
    devices.retire_device(fleet.ledger, "cam-2")
    return found


@pytest.fixture(scope="module")
def data(world: Certified, request_id: str) -> bytes:
    """With one witness."""
    world.rotate()
    world.certificate(request_id)
    world.cosign()
    return world.certificate(request_id)


def test_what_it_shows(world: Certified, request_id: str, data: bytes) -> None:
    found = verify_certificate(data, world.roots[:1])
    assert found.request.forget_class == "bird"
    assert [(d.said.device, d.said.state, len(d.receipts)) for d in found.devices] == [
        ("cam-0", "SUCCEEDED", 2),
        ("cam-1", "REJECTED", 1),
        ("cam-2", "REMOVED", 0),
    ]
    assert (found.erased, found.root.root.version, len(found.approvers)) == (1, 2, 1)
    assert found.statement.request_id == request_id


def test_the_same_outcome_is_one_leaf(world: Certified, request_id: str, data: bytes) -> None:
    assert world.certificate(request_id) == data


def test_any_root_of_the_chain_and_the_next_one_vouch_for_it(world: Certified, data: bytes) -> None:
    later = replace(world, roots=list(world.roots))
    later.rotate()
    later.rotate()
    for roots in (world.roots[:1], world.roots[1:2], world.roots[2:], later.roots[3:4], later.roots[3:]):
        assert verify_certificate(data, roots).erased == 1
    with pytest.raises(CertificateError, match="give the versions between"):
        verify_certificate(data, later.roots[4:])
    # The same keys, and another installation or version 1.
    for other in (first_root(None, 1e6, "cd" * 16), first_root(None, 1e6)):
        with pytest.raises(CertificateError, match="the root"):
            verify_certificate(data, [other])
    with pytest.raises(CertificateError, match="version none"):
        verify_certificate(data, [])


def test_witnesses(world: Certified, data: bytes) -> None:
    found = verify_certificate(data, world.roots, witnesses=[WITNESS], threshold=1)
    assert found.checkpoint.witnessed == {WITNESS.name: 5}
    assert verify_certificate(data, world.roots).witnesses == (WITNESS.name,)
    stranger = replace(WITNESS, name="other")
    with pytest.raises(CertificateError, match="0 of your witnesses"):
        verify_certificate(data, world.roots, witnesses=[stranger], threshold=1)


def test_a_root_without_a_log_role_needs_the_key(tmp_path: Path) -> None:
    world = Certified.make(tmp_path / "ledger.sqlite", 1, log_in_root=False)
    request_id = world.fleet.order()
    world.fleet.answer(world.fleet.lease(0)[0])
    data = world.certificate(request_id)
    with pytest.raises(CertificateError, match="names no key of the log"):
        verify_certificate(data, world.roots)
    assert verify_certificate(data, world.roots, log=[LOG]).erased == 1
    world.fleet.ledger.close()


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """Every byte of a small one: a device with a receipt, one without, a witness."""
    world = Certified.make(tmp_path / "ledger.sqlite", 2)
    world.roots = world.roots[1:]
    request_id = world.fleet.order()
    world.fleet.answer(world.fleet.lease(0)[0])
    world.certificate(request_id, partial=True)
    world.cosign()
    data = world.certificate(request_id, partial=True)
    world.fleet.ledger.close()
    assert verify_certificate(data, world.roots).witnesses == (WITNESS.name,)
    rng = random.Random(6)  # noqa: S311
    begin = time.monotonic()
    flips = 0
    for position in range(len(data)):
        for bit in rng.sample(range(8), 1 + position % 2):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(CertificateError):
                verify_certificate(bytes(changed), world.roots)
            flips += 1
    print(f"{flips} flipped bits in {len(data)} bytes, all found, {time.monotonic() - begin:.1f} s")


def test_no_other_writing_is_accepted(world: Certified, data: bytes) -> None:
    plain = json.loads(data)
    for other in (
        data.rstrip(b"\n"),
        data + b"\n",
        b" " + data,
        json.dumps(plain).encode() + b"\n",
        json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n",
        data.replace(b'{"approvals":[]', b'{"approvals":[],"approvals":[]'),
        dump(plain | {"note": "x"}) + b"\n",
        dump(plain | {"hashes": plain["hashes"] + ["00" * 32]}) + b"\n",
        dump(plain | {"hashes": plain["hashes"][:-1]}) + b"\n",
        b"[" * 100_000,
        b"",
    ):
        with pytest.raises(CertificateFormError):
            verify_certificate(other, world.roots)


Edit = Callable[[Certificate], Certificate]


def of_device(index: int, **changes: object) -> Edit:
    def edit(certificate: Certificate) -> Certificate:
        devices = list(certificate.devices)
        devices[index] = replace(devices[index], **changes)  # type: ignore[arg-type]
        return replace(certificate, devices=tuple(devices))

    return edit


def said_of(index: int, **changes: str) -> Edit:
    def edit(certificate: Certificate) -> Certificate:
        devices = list(certificate.statement.devices)
        devices[index] = replace(devices[index], **changes)
        return replace(certificate, statement=replace(certificate.statement, devices=tuple(devices)))

    return edit


def without_device(certificate: Certificate) -> Certificate:
    said = replace(certificate.statement, devices=certificate.statement.devices[:2])
    return replace(certificate, statement=said, devices=certificate.devices[:2])


def receipt_by_another_key(certificate: Certificate) -> Certificate:
    device = certificate.devices[0]
    enrolment = replace(device.enrolment, receipt_key=DEVICE_KEYS[5].public_key)
    return of_device(0, enrolment=enrolment)(certificate)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (without_device, "the statement: the leaf is not"),
        (said_of(1, state="SUCCEEDED"), "the statement: the leaf is not"),
        (lambda c: replace(c, statement=replace(c.statement, finished_at=1)), "the statement: the leaf is not"),
        (lambda c: replace(c, devices=c.devices[:2]), "names 3 devices, the certificate holds 2"),
        (lambda c: replace(c, devices=(c.devices[1], c.devices[0], c.devices[2])), "device cam-0: its enrolment is of"),
        (receipt_by_another_key, "device cam-0: enrolment: the leaf is not"),
        (of_device(0, receipts=()), "device cam-0: it is said to have succeeded"),
        (lambda c: of_device(1, receipts=c.devices[0].receipts)(c), "device cam-1: receipt 1: the leaf is not"),
        (lambda c: of_device(0, receipts=c.devices[0].receipts[:1])(c), "its last receipt does not say so"),
        (lambda c: replace(c, request=replace(c.request, place=c.devices[0].place)), "the request: the leaf is not"),
        (lambda c: replace(c, roots=c.roots[:1]), "the root: the roots are not those"),
        (lambda c: replace(c, roots=()), "holds no root"),
        (lambda c: replace(c, witnesses=()), "the checkpoint: it carries signatures of keys"),
        (lambda c: replace(c, approvals=(("00" * 32, c.request.place),)), "an approval: it is of a key"),
        (lambda c: replace(c, approvals=((SIGNER.public_key.keyid, c.request.place),)), "an approval: the leaf is not"),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(world: Certified, data: bytes, edit: Edit, named: str) -> None:
    changed = edit(Certificate.from_bytes(data)).to_bytes()
    with pytest.raises(CertificateError, match=named):
        verify_certificate(changed, world.roots[:1])


def test_what_the_coordinator_itself_cannot_forge(tmp_path: Path) -> None:
    """Its log takes anything; what a device or an approver has not signed is found all the same."""
    world = Certified.make(tmp_path / "ledger.sqlite", 1)
    fleet = world.fleet
    request_id = fleet.order()
    forged = fleet.receipt(request_id, key=CryptoSigner.generate_ed25519())
    with fleet.ledger.write() as session:
        execution = fleet.execution(request_id)
        merged = session.merge(execution)
        merged.receipt_envelope, merged.state = forged, "SUCCEEDED"
        tlog.append(session, "receipt", forged, f"{request_id}/cam-0")
    data = world.certificate(request_id, partial=True)
    with pytest.raises(CertificateError, match="device cam-0: receipt 1: the envelope is not signed"):
        verify_certificate(data, world.roots)
    world.roots = [first_root(LOG_ROLE, fleet.now, request=CryptoSigner.generate_ed25519())]
    with pytest.raises(CertificateError, match="the request: the request is signed by 0 of the 1 keys"):
        verify_certificate(world.certificate(request_id, partial=True), world.roots)
    fleet.ledger.close()


def test_approvals_stand_in_the_log_one_by_one(tmp_path: Path) -> None:
    from test_approvals import ALICE, BOB, PEOPLE, approve, publish

    from clue_coordinator import approvals, roots

    world = Certified.make(tmp_path / "ledger.sqlite", 1)
    fleet = world.fleet
    publish(fleet, world.home, fleets={"yard": FleetTrust(PEOPLE)})
    with fleet.ledger.read() as session:
        world.roots = roots.since(session, 0)
    unwanted, request_id = fleet.order(), fleet.order()
    approvals.reject(fleet.ledger, unwanted, "no")
    for one in (unwanted, request_id):
        with pytest.raises(ConflictError, match="has not started"):
            world.certificate(one, partial=True)
    for signer in (ALICE, BOB):
        approve(fleet, request_id, signer)
    fleet.answer(fleet.lease(0)[0])
    found = verify_certificate(data := world.certificate(request_id), world.roots[:1])
    assert (len(found.approvers), found.approvals_logged, found.root.root.version) == (2, 2, 3)
    certificate = Certificate.from_bytes(data)
    (one, place), (other, another) = certificate.approvals
    swapped = replace(certificate, approvals=((one, another), (other, place)))
    with pytest.raises(CertificateError, match="an approval: the leaf is not"):
        verify_certificate(swapped.to_bytes(), world.roots)
    with fleet.ledger.read() as session:
        assert compare_documents(session) == 3
    fleet.ledger.close()


# For people


def test_the_page_says_it_all(world: Certified, data: bytes) -> None:
    page = page_of(verify_certificate(data, world.roots), data)
    html = to_html(page)
    assert not page.good
    assert "1 of 3 devices in fleet yard have forgotten “bird”." in html
    for words in (
        "Article 17",
        "no receipt",
        "90.0 % → 10.0 %",
        "10 / 20",
        "approximate unlearning",
        "own word",
        "copies outside",
        INSTALLATION,
        "cam-2",
    ):
        assert words in html, words
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    pdf = to_pdf(page)
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") == 1


# The commands


def run(typer_app: object, *arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(typer_app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_clue_finds_the_command() -> None:
    status, text = run(app, "--help")
    assert status == 0
    assert "verify-certificate" in text


def test_the_command(world: Certified, data: bytes, tmp_path: Path) -> None:
    file, root = tmp_path / "certificate.json", tmp_path / "root.json"
    file.write_bytes(data)
    root.write_bytes(world.roots[0])
    status, text = run(certificate_app, file, "--root", root)
    assert status == 0
    assert "verified: 1 of 3 device(s) of yard have forgotten 'bird'" in text
    assert "NOT shown for cam-2: REMOVED RETIRED, no receipt" in text
    file.write_bytes(data.replace(b"cam-2", b"cam-3"))
    status, text = run(certificate_app, file, "--root", root)
    assert status == 1
    assert "the statement: the leaf is not" in text
    for arguments in ((file,), (file, "--root", tmp_path / "none"), (file, "--root", root, "--witnesses", 1)):
        assert run(certificate_app, *arguments)[0] == 2
    assert run(certificate_app, file, "--root", root, "--log-key", "x")[0] == 2


def test_evidence_and_consistency_offline(world: Certified, request_id: str, data: bytes, tmp_path: Path) -> None:
    from clue_protocol.tlog import Growth

    ledger = world.fleet.ledger
    with ledger.read() as session:
        [index, *_] = tlog.indices_of(session, request_id)
        evidence = tlog.prove(session, index, [LOG]).to_json()
        note = tlog.note_of_size(session)
        growth = Growth(note, note, tlog.Tree(session).prove_consistency(tlog.size_of(session))).to_json()
    files = {name: tmp_path / name for name in ("evidence", "growth", "document", "note", "root", "vkey")}
    texts = (
        evidence,
        growth,
        world.fleet.request(request_id).envelope.decode(),
        note,
        world.roots[0].decode(),
        LOG.to_text(),
    )
    for path, text in zip(files.values(), texts, strict=True):
        path.write_text(text)
    for key in (("--root", files["root"]), ("--log-key", files["vkey"]), ("--log-key", LOG.to_text())):
        status, text = run(log_app, files["evidence"], *key, "--document", files["document"])
        assert (status, f"request {request_id} is leaf {index}" in text) == (0, True), text
        status, text = run(log_app, files["growth"], *key, "--from", files["note"])
        assert (status, "nothing was changed" in text) == (0, True), text
    assert run(log_app, files["evidence"], *key, "--document", files["note"])[0] == 1
    assert run(log_app, files["note"], *key)[0] == 1
    assert run(log_app, files["evidence"])[0] == 2


# The log against the ledger


def test_documents_that_were_changed_behind_the_log(tmp_path: Path) -> None:
    world = Certified.make(tmp_path / "ledger.sqlite", 2)
    ledger, fleet = world.fleet.ledger, world.fleet
    request_id = fleet.order()
    for assignment in fleet.lease(0, 1).values():
        fleet.answer(assignment)
    with ledger.read() as session:
        assert compare_documents(session) == 5
        before = tlog.size_of(session)
    from sqlalchemy import text

    for change, named in (
        ("UPDATE execution SET receipt_envelope = x'78' WHERE device_pk = 2", f"the receipt {request_id}/cam-1"),
        ("UPDATE execution SET receipt_envelope = NULL WHERE device_pk = 2", f"(receipt {request_id}/cam-1) is not"),
        ("UPDATE request SET envelope = x'78'", f"the request {request_id}"),
        ("UPDATE device SET enrolled_at = 1 WHERE id = 1", "the enrolment cam-0"),
    ):
        with ledger.write() as session:
            session.execute(text(change))
            with pytest.raises(LogDamagedError) as error:
                compare_documents(session)
            session.rollback()
        assert named in str(error.value)
    with ledger.read() as session:
        assert (compare_documents(session), tlog.size_of(session)) == (5, before)
    ledger.close()


def test_an_older_ledger_is_taken_up_in_the_order_of_time(tmp_path: Path) -> None:
    world = Certified.make(tmp_path / "ledger.sqlite", 2)
    fleet = world.fleet
    request_id = fleet.order()
    for assignment in fleet.lease(0, 1).values():
        fleet.now += 1
        fleet.answer(assignment)
    from sqlalchemy import text

    from clue_coordinator.tlog import record

    with fleet.ledger.write() as session:
        leaves = [tlog.leaf_at(session, index) for index in range(tlog.size_of(session))]
        leaves = [leaf for leaf in leaves if leaf.kind != "rotation"]
        for trigger in session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            session.execute(text(f"DROP TRIGGER {trigger}"))
        session.execute(text("DELETE FROM log_leaf"))
    with fleet.ledger.write() as session:
        assert record.begin(session) == 5
        assert [tlog.leaf_at(session, index) for index in range(5)] == leaves
        assert record.begin(session) == 0
        assert compare_documents(session) == 5
    assert verify_certificate(world.certificate(request_id), world.roots).erased == 2
    fleet.ledger.close()
