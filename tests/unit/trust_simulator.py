"""A whole installation: root holders, approvers, a time server, a coordinator that may be hostile, and devices.

Tests play the attacks on it. A device keeps its root and its state in real files, and its "model" is a list of the
classes that it has forgotten, so that a test can see that nothing happened.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from securesystemslib.signer import CryptoSigner, Signer

from clue_protocol.envelope import REQUEST_TYPE
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import (
    Challenge,
    FleetTrust,
    Role,
    Root,
    TimeKnowledge,
    TrustedRoot,
    TrustState,
    add_signature,
    attest_time,
    load_state,
    new_installation_id,
    open_attestation,
    pin_root,
    save_state,
    successor,
    unsigned,
    verify_request,
    walk_chain,
)
from clue_protocol.trust.times import DAY, SECOND, to_timestamp
from clue_protocol.v1 import forget_pb2 as pb

# 2026-01-01
START = 1_767_225_600 * SECOND
YEAR = 365 * DAY
IN_1970 = 60 * SECOND
IN_2090 = 3_786_912_000 * SECOND


def people(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


def role(signers: Sequence[Signer], threshold: int = 1) -> Role:
    return Role(tuple(signer.public_key for signer in signers), threshold)


def signed(data: bytes, payload_type: str, signers: Sequence[Signer]) -> bytes:
    for signer in signers:
        data = add_signature(data, payload_type, signer)
    return data


def payload_of(data: bytes) -> bytes:
    return base64.b64decode(json.loads(data)["payload"])


def with_payload(data: bytes, payload: bytes) -> bytes:
    """The attacker's edit: other content under the signatures that are there."""
    return json.dumps(json.loads(data) | {"payload": base64.b64encode(payload).decode()}).encode()


def edited(data: bytes, message_class: type[Message], edit: Callable[[Any], None]) -> bytes:
    message = message_class.FromString(payload_of(data))
    edit(message)
    return with_payload(data, message.SerializeToString(deterministic=True))


class Installation:
    """homecams needs two of three approvers, barn one of one."""

    def __init__(self) -> None:
        self.now = START
        self.holders = people(3)
        [self.timer] = people(1)
        [self.log] = people(1)
        self.approvers = people(3)
        [self.barn] = people(1)
        self._sequence = 0
        self._attestations = 0
        root = Root(
            installation=new_installation_id(),
            version=1,
            issued_ns=self.now,
            expires_ns=self.now + YEAR,
            root=role(self.holders, 2),
            timestamp=role([self.timer]),
            log=role([self.log]),
            fleets={"homecams": FleetTrust(role(self.approvers, 2)), "barn": FleetTrust(role([self.barn]))},
        )
        data = self.sign_root(root, self.holders[:2])
        self.roots = [data]
        self.root = pin_root(data, self.digest_of(data))

    @staticmethod
    def digest_of(data: bytes) -> bytes:
        return hashlib.sha256(payload_of(data)).digest()

    @staticmethod
    def sign_root(root: Root, signers: Sequence[Signer]) -> bytes:
        return signed(root.to_envelope(), "application/vnd.clue.root.v1+protobuf", signers)

    def publish(self, root: Root, signers: Sequence[Signer]) -> bytes:
        """Sign a successor and make it the newest root."""
        data = self.sign_root(root, signers)
        self.root = walk_chain(self.root, [data])
        self.roots.append(data)
        return data

    def rotate_holders(self) -> None:
        """Every root key is replaced."""
        new = people(3)
        root = successor(self.root, self.now, self.now + YEAR, root=role(new, 2))
        self.publish(root, [*self.holders[:2], *new[:2]])
        self.holders = new

    def revoke_approver(self, index: int = 0) -> CryptoSigner:
        """One of homecams' approvers is replaced; returns the key that is revoked now."""
        gone = self.approvers[index]
        self.approvers = [*self.approvers[:index], *people(1), *self.approvers[index + 1 :]]
        fleets = {"homecams": FleetTrust(role(self.approvers, 2))}
        root = successor(
            self.root, self.now, self.now + YEAR, fleets=fleets, revoke=[(gone.public_key, "laptop stolen")]
        )
        self.publish(root, self.holders[:2])
        return gone

    def message(self, **changes: Any) -> pb.ForgetRequest:
        self._sequence += 1
        fields = {
            "request_id": f"r-{self._sequence}",
            "installation": self.root.root.installation,
            "fleet": "homecams",
            "sequence": self._sequence,
            "forget_class": "bird",
            "model_digest": "ab" * 32,
            "policy": pb.Policy(max_ua=0.05, max_ra_drop=0.03),
            "issued_at": to_timestamp(self.now),
            "expires_at": to_timestamp(self.now + 7 * DAY),
            "nonce": secrets.token_bytes(16),
        }
        return pb.ForgetRequest(**(fields | changes))

    def request(self, signers: Sequence[Signer] | None = None, **changes: Any) -> bytes:
        """A request as two approvers sign it, each on a machine of their own."""
        who = self.approvers[:2] if signers is None else signers
        return signed(unsigned(self.message(**changes), REQUEST_TYPE), REQUEST_TYPE, who)

    def time(self, nonce: bytes = b"", signer: Signer | None = None, at: int | None = None) -> bytes:
        self._attestations = max(self._attestations + 1, self.now // 10**6)
        return attest_time(self.root, signer or self.timer, self.now if at is None else at, self._attestations, nonce)


class Device:
    """A Pi without a real-time clock."""

    def __init__(self, installation: Installation, home: Path, fleet: str = "homecams") -> None:
        self.world = installation
        self.fleet = fleet
        self.home = home
        self.forgotten: list[str] = []
        self.root = pin_root(installation.roots[-1], installation.root.digest)
        self.state = TrustState.first(self.root)
        self._store()
        self.power_cut(wall=IN_1970)

    def power_cut(self, wall: int, synchronised: bool = False) -> None:
        """Boot anew, with whatever the wall clock says; only the files are left."""
        self.state = load_state(self.home / "state.json")
        self.root = self._stored_root()
        self.state.check_root(self.root)
        self._booted_at = self.world.now
        self._wall_offset = wall - self.world.now
        self.synchronised = synchronised
        self.challenge: Challenge | None = None
        self.knowledge = TimeKnowledge.after_start(self.state.attested_ns, self.boot_ns)

    @property
    def boot_ns(self) -> int:
        return self.world.now - self._booted_at

    def receive_roots(self, envelopes: Sequence[bytes]) -> None:
        root = walk_chain(self.root, envelopes)
        self.state = self.state.after_root(self.root, root)
        self.root = root
        self._store()
        self.knowledge = TimeKnowledge.after_start(self.state.attested_ns, self.boot_ns)

    def ask(self) -> bytes:
        self.challenge = Challenge.new(self.boot_ns)
        return self.challenge.nonce

    def receive_time(self, data: bytes) -> None:
        attested = open_attestation(
            data,
            self.root,
            lower_ns=self.knowledge.lower(self.boot_ns),
            last_sequence=self.state.attestation_sequence,
            challenge=self.challenge,
        )
        if attested.answers is None:
            self.knowledge = self.knowledge.learn(attested.time_ns, self.boot_ns)
        else:
            asked = attested.answers.asked_boot_ns
            self.knowledge = self.knowledge.learn_answer(attested.time_ns, self.boot_ns, asked)
            self.challenge = None
        self.state = self.state.after_attestation(attested)
        self._store()

    def learn_time(self) -> None:
        """Ask and be answered in no time."""
        self.receive_time(self.world.time(self.ask()))

    def receive_request(self, data: bytes) -> None:
        reading = self.knowledge.reading(self.boot_ns, self.world.now + self._wall_offset, self.synchronised)
        verified = verify_request(data, root=self.root, fleet=self.fleet, state=self.state, reading=reading)
        self.state = verified.accepted(self.state)
        self._store()
        if not verified.is_known:
            self.forgotten.append(verified.request.forget_class)

    def refuses(self, error: type[ProtocolError], act: Callable[[bytes], None], data: Any) -> ProtocolError:
        """``act`` raises exactly ``error``, and neither model nor root nor state is another than before."""
        before = (list(self.forgotten), self.root, self.state, (self.home / "state.json").read_bytes())
        with pytest.raises(error) as caught:
            act(data)
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)
        assert before == (self.forgotten, self.root, self.state, (self.home / "state.json").read_bytes())
        return caught.value

    def _store(self) -> None:
        (self.home / "root.json").write_bytes(self.root.envelope)
        save_state(self.home / "state.json", self.state)

    def _stored_root(self) -> TrustedRoot:
        data = (self.home / "root.json").read_bytes()
        return pin_root(data, Installation.digest_of(data))
