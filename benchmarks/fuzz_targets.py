"""What is fuzzed: every door through which a document of somebody else comes in, with genuine documents to damage.

A target's ``judge`` answers with the document that was accepted, as the bytes that were signed, or raises a
:class:`ProtocolError` or, at the agent's door, an :class:`AgentError`. Any other exception is a crash, and any document
that nobody signed is a forgery.
"""

import base64
import contextlib
import hashlib
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz_mutations import GENERAL, OF_ENVELOPES, Mutator, edit_payload_fields
from google.protobuf.message import DecodeError
from securesystemslib.signer import CryptoSigner

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "unit"))
from certified_fleet import Certified

from clue_agent.errors import AgentError
from clue_agent.trust_files import TrustFiles
from clue_agent.trusting import DeviceTrust
from clue_agent.verify import open_request
from clue_protocol.certificate import verify_certificate
from clue_protocol.documents import Trust
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, open_message, sign_message
from clue_protocol.errors import EnvelopeError, ProtocolError
from clue_protocol.invitation import Invitation, InvitationError
from clue_protocol.tlog import (
    LOG_KEY,
    WITNESS_KEY,
    Checkpoint,
    Evidence,
    InclusionProof,
    Leaf,
    NoteKey,
    cosign_checkpoint,
    sign_checkpoint,
)
from clue_protocol.trust import (
    ROOT_TYPE,
    Challenge,
    FleetTrust,
    Role,
    Root,
    add_signature,
    attest_time,
    new_installation_id,
    next_root,
    open_attestation,
    pin_root,
    successor,
    unsigned,
)
from clue_protocol.trust.times import DAY, SECOND, to_timestamp
from clue_protocol.v1 import agent_pb2, trust_pb2
from clue_protocol.v1 import forget_pb2 as pb

Judge = Callable[[bytes], bytes]
REFUSALS = (ProtocolError, AgentError)


@dataclass(frozen=True)
class Target:
    """One door.

    Attributes:
        name: of the door.
        share: of all tries.
        seeds: genuine documents, each accepted by ``judge``, and others that it must refuse.
        judge: see the module.
        mutators: ways to damage them.
    """

    name: str
    share: int
    seeds: tuple[bytes, ...]
    judge: Judge
    mutators: tuple[Mutator, ...]

    def genuine(self) -> set[bytes]:
        """The documents that were signed, as ``judge`` answers with them."""
        found = set()
        for seed in self.seeds:
            with contextlib.suppress(*REFUSALS):
                found.add(self.judge(seed))
        assert found, f"{self.name}: no seed is accepted, so nothing is tested"
        return found


def payload_of(data: bytes) -> bytes:
    """The signed bytes in an envelope."""
    return base64.b64decode(json.loads(data)["payload"])


class World:
    """An installation with two fleets; homecams needs two of three approvers."""

    def __init__(self) -> None:
        self.now = time.time_ns()
        holders = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.timer = CryptoSigner.generate_ed25519()
        self.approvers = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.barn = CryptoSigner.generate_ed25519()
        self.receipts = CryptoSigner.generate_ed25519()
        first = Root(
            installation=new_installation_id(),
            version=1,
            issued_ns=self.now - DAY,
            expires_ns=self.now + 365 * DAY,
            root=_role(holders, 2),
            timestamp=_role([self.timer], 1),
            fleets={"homecams": FleetTrust(_role(self.approvers, 2)), "barn": FleetTrust(_role([self.barn], 1))},
        )
        data = _signed(first.to_envelope(), ROOT_TYPE, holders[:2])
        self.root = pin_root(data, hashlib.sha256(payload_of(data)).digest())
        second = successor(self.root, self.now, self.now + 365 * DAY)
        self.second = _signed(second.to_envelope(), ROOT_TYPE, holders[1:])
        self.challenge = Challenge.new(SECOND)

    def device(self) -> DeviceTrust:
        """A device of homecams that has asked for the time and was answered."""
        folder = Path(tempfile.mkdtemp(prefix="clue-fuzz-"))
        TrustFiles(folder).begin(self.root)
        device = DeviceTrust(folder, Trust("homecams", self.root.envelope, "127.0.0.1:1", "ca"))
        with contextlib.suppress(AgentError):
            open_request(self.request(), device)
        device.receive([], attest_time(self.root, self.timer, time.time_ns(), 1, device.nonce))
        shutil.rmtree(folder)  # a judge writes nothing
        return device

    def request(self, **changes: object) -> bytes:
        """A request that two approvers signed."""
        fields: dict[str, object] = {
            "request_id": "5a8a5f0e-9d8e-4c43-8b7c-0a4b6a4b1f11",
            "installation": self.root.root.installation,
            "fleet": "homecams",
            "sequence": 7,
            "forget_class": "bird",
            "method": "clue_plus",
            "hyperparameters_json": '{"epochs": 3}',
            "policy": pb.Policy(max_ua=0.05, max_ra_drop=0.03),
            "issued_at": to_timestamp(self.now),
            "expires_at": to_timestamp(self.now + DAY),
            "nonce": secrets.token_bytes(16),
        }
        message = pb.ForgetRequest(**(fields | changes))  # type: ignore[arg-type]
        return _signed(unsigned(message, REQUEST_TYPE), REQUEST_TYPE, self.approvers[:2])

    def receipt(self) -> bytes:
        """A receipt of the device with ``receipts``."""
        message = pb.Receipt(request_id="r", device_id="front-door", fleet="homecams", outcome=pb.OUTCOME_SUCCEEDED)
        message.ua_after.CopyFrom(pb.Accuracy(correct=0, samples=40))
        return sign_message(message, RECEIPT_TYPE, [self.receipts])


def all_targets() -> list[Target]:
    """Every door, with documents of a new world."""
    world = World()
    return [
        _requests(world),
        _deliveries(world),
        _roots(world),
        _times(world),
        _receipts(world),
        _evidence(),
        _certificates(),
        _invitations(world),
    ]


def _requests(world: World) -> Target:
    below = _signed(unsigned(_message(world.request()), REQUEST_TYPE), REQUEST_TYPE, world.approvers[2:])
    seeds = (
        world.request(),
        world.request(forget_class="cat", sequence=8, max_attempts=3),
        world.request(sequence=9, patch=pb.PatchReference(source_request_id="r", digest=bytes(32))),
    )
    # Real signatures that do not suffice: below the threshold, another role's, another document's.
    decoys = (below, world.receipt(), world.second, attest_time(world.root, world.timer, world.now, 9))

    device = world.device()

    def judge(data: bytes) -> bytes:
        open_request(data, device)
        return payload_of(data)

    return Target("request envelope", 5, (*seeds, *decoys), judge, _of(pb.ForgetRequest))


def _deliveries(world: World) -> Target:
    """What comes out of the socket: a protobuf with an envelope in it."""
    seeds = tuple(
        agent_pb2.DeliverRequest(
            request_envelope=world.request(sequence=number),
            wait_seconds=5.0,
            request_id="r",
            attempt=1,
            root_envelopes=[world.second],
            time_attestation=attest_time(world.root, world.timer, world.now, number),
        ).SerializeToString()
        for number in (3, 4)
    )

    device = world.device()

    def judge(data: bytes) -> bytes:
        try:
            delivery = agent_pb2.DeliverRequest.FromString(data)
        except DecodeError as error:
            raise EnvelopeError(str(error)) from None
        envelope = delivery.request_envelope
        open_request(envelope, device)
        return payload_of(envelope)

    return Target("delivery protobuf", 2, seeds, judge, GENERAL)


def _roots(world: World) -> Target:
    def judge(data: bytes) -> bytes:
        next_root(world.root, data)
        return payload_of(data)

    seeds = (world.second, world.root.envelope, world.request())
    return Target("root envelope", 1, seeds, judge, _of(trust_pb2.Root))


def _times(world: World) -> Target:
    seeds = (
        attest_time(world.root, world.timer, world.now, 10, world.challenge.nonce),
        attest_time(world.root, world.timer, world.now + SECOND, 11),
        world.request(),
    )

    def judge(data: bytes) -> bytes:
        lower = world.now - SECOND
        open_attestation(data, world.root, lower_ns=lower, last_sequence=1, challenge=world.challenge)
        return payload_of(data)

    return Target("time attestation", 1, seeds, judge, _of(trust_pb2.TimeAttestation))


def _receipts(world: World) -> Target:
    def judge(data: bytes) -> bytes:
        open_message(data, RECEIPT_TYPE, pb.Receipt, [world.receipts.public_key])
        return payload_of(data)

    return Target("receipt envelope", 1, (world.receipt(), world.request()), judge, _of(pb.Receipt))


def _evidence() -> Target:
    """A proof of inclusion with its checkpoint, as an auditor reads it."""
    log, witness = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    origin = "log.example/fuzz"
    key = NoteKey.of(origin, LOG_KEY, log.public_key)
    witness_key = NoteKey.of("witness.example/w", WITNESS_KEY, witness.public_key)
    leaves = [Leaf.of("receipt", b"document", f"r-{number}") for number in range(3)]
    hashes = [hashlib.sha256(b"\0" + leaf.to_bytes()).digest() for leaf in leaves]
    root = hashlib.sha256(b"\1" + hashlib.sha256(b"\1" + hashes[0] + hashes[1]).digest() + hashes[2]).digest()
    note = cosign_checkpoint(sign_checkpoint(Checkpoint(origin, 3, root), log), witness_key.name, witness)
    seed = Evidence(leaves[0], InclusionProof(0, 3, (hashes[1], hashes[2])), note).to_json().encode()

    def judge(data: bytes) -> bytes:
        evidence = Evidence.from_json(data)
        evidence.verify(key, [witness_key], 1, b"document")
        # Whatever was written around it: this leaf, this size, this root.
        return evidence.leaf.to_bytes() + evidence.checkpoint.split("\n\n")[0].encode()

    return Target("log evidence", 1, (seed,), judge, GENERAL)


def _certificates() -> Target:
    """A certificate of two devices. One form only: whatever is not the very file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        world = Certified.make(Path(folder) / "ledger.sqlite", 2)
        request = world.fleet.order()
        world.fleet.lease(0, 1)
        for device in (0, 1):
            world.fleet.report(request, device)
        seed = world.certificate(request)
        world.fleet.ledger.close()

    def judge(data: bytes) -> bytes:
        verify_certificate(data, world.roots)
        return data

    return Target("certificate", 1, (seed,), judge, GENERAL)


def _invitations(world: World) -> Target:
    """What is typed in or scanned: nothing is signed, and a checksum finds what is damaged."""
    ca, root = secrets.token_bytes(32), world.root.digest
    seed = Invitation("cams.example", 9444, secrets.token_bytes(16), ca, root, world.root.root.installation)

    def judge(data: bytes) -> bytes:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise InvitationError("not text") from None
        return Invitation.from_token(text).to_token().encode()

    return Target("invitation", 1, (seed.to_token().encode(),), judge, GENERAL)


def _of(message_class: type) -> tuple[Mutator, ...]:
    fields = edit_payload_fields(message_class)
    return (*GENERAL, *OF_ENVELOPES, fields, fields, fields)


def _message(data: bytes) -> pb.ForgetRequest:
    return pb.ForgetRequest.FromString(payload_of(data))


def _role(signers: list[CryptoSigner], threshold: int) -> Role:
    return Role(tuple(signer.public_key for signer in signers), threshold)


def _signed(data: bytes, payload_type: str, signers: list[CryptoSigner]) -> bytes:
    for signer in signers:
        data = add_signature(data, payload_type, signer)
    return data
