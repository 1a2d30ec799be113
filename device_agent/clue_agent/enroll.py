"""``clue-agent enroll``: the device's side of enrolment, every step of which may be interrupted and repeated.

1. The CA certificate is fetched over a connection that is not trusted yet, and its fingerprint compared with the
   token's. Nothing is sent before that.
2. Over a new connection that only this CA vouches for, the device asks what the token is for.
3. The home is made, keys included (:func:`.setup.initialise`), unless that was done before.
4. The device signs its enrolment document with its receipt key and sends it, with the secret.
5. Of the answer it checks the root against the token's digest, its successors against that, and the CA once more.
6. Only then the trust document is written, which makes the device one of the fleet.
"""

import hashlib
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from clue_agent.config import AgentConfig
from clue_agent.errors import AgentError, EnrolmentError
from clue_agent.setup import discard, load_trust, own_enrolment, save_trust
from clue_protocol.documents import Trust
from clue_protocol.enrolment import MAX_MESSAGE_BYTES, sign_statement
from clue_protocol.envelope import parse_payload
from clue_protocol.errors import DocumentError, ProtocolError
from clue_protocol.files import HomeLock
from clue_protocol.invitation import Invitation
from clue_protocol.keys import load_signing_key
from clue_protocol.trust import ROOT_TYPE, TrustedRoot, pin_root, walk_chain
from clue_protocol.trust.envelopes import read_envelope
from clue_protocol.v1 import enrolment_pb2 as pb
from clue_protocol.v1 import enrolment_pb2_grpc, trust_pb2

_CONNECT_SECONDS = 15.0
# The coordinator registers the device with Flower meanwhile, one device after the other.
_ENROL_SECONDS = 120.0
# A coordinator whose SuperLink is being started anew, with a renewed certificate say, can do it some seconds later.
_PATIENCE = {
    "methodConfig": [
        {
            "name": [{"service": "clue.v1.EnrolmentService", "method": "Enrol"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "4s",
                "maxBackoff": "12s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_PATIENCE)),
]


@dataclass(frozen=True)
class Offer:
    """What a token is for: the fleet, the name that must be taken (empty: any), and the labels that are given."""

    fleet: str
    device_id: str
    labels: dict[str, str]


class EnrolmentClient:
    """A connection to the coordinator that the token names, and no other. Use as a context manager."""

    def __init__(self, invitation: Invitation) -> None:
        """EnrolmentError if there is no coordinator, or another one than the token's."""
        self._invitation = invitation
        self._ca_pem = _verified_authority(invitation)
        self._channel = _channel(invitation, self._ca_pem)
        self._stub = enrolment_pb2_grpc.EnrolmentServiceStub(self._channel)

    def __enter__(self) -> "EnrolmentClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def offer(self) -> Offer:
        """What the token is for; EnrolmentError if it is good for nothing."""
        with _errors(self._invitation):
            answer = self._stub.GetInvitation(
                pb.GetInvitationRequest(secret=self._invitation.secret), timeout=_CONNECT_SECONDS
            )
        return Offer(answer.fleet, answer.device_id, dict(answer.labels))

    def enrol(self, config: AgentConfig) -> Trust:
        """Enrol the device of a home that is set up, and keep what it must trust.

        Raises:
            EnrolmentError: the coordinator refuses, or its answer is not what the token promises.
            AlreadyRunningError: an agent runs in this home.
        """
        lock = HomeLock(config.home)
        # What a running agent trusts is not changed under its feet.
        lock.acquire()
        try:
            _check_house(config, self._invitation)
            request = self._request(config)
            with _errors(self._invitation):
                answer = self._stub.Enrol(request, timeout=_ENROL_SECONDS)
            self._check(config, answer)
        finally:
            lock.release()
        return save_trust(config, answer.trust_json)

    def _request(self, config: AgentConfig) -> pb.EnrolRequest:
        signer = load_signing_key(config.receipt_key)
        digest = hashlib.sha256(self._invitation.secret).digest()
        statement = sign_statement(self._invitation.installation, digest, own_enrolment(config), signer)
        return pb.EnrolRequest(secret=self._invitation.secret, statement_envelope=statement)

    def _check(self, config: AgentConfig, answer: pb.EnrolResponse) -> None:
        try:
            trust = Trust.from_json(answer.trust_json)
        except DocumentError as error:
            raise EnrolmentError(f"the coordinator's answer cannot be used: {error}") from None
        if answer.device_id != config.device_id:
            raise EnrolmentError(f"the coordinator took the device for '{answer.device_id}', not '{config.device_id}'")
        if _fingerprint(trust.ca_pem) != self._invitation.ca_digest:
            raise EnrolmentError("the coordinator's answer names another certificate authority than the token")
        newest = _walk(list(answer.root_envelopes), self._invitation)
        if trust.root != newest.envelope:
            raise EnrolmentError("the coordinator's answer holds another root than the newest that it proves")


def _verified_authority(invitation: Invitation) -> str:
    """The CA certificate (PEM), if it is the token's. Only public things cross this connection, in both directions."""
    try:
        # Whoever answers: gRPC needs a certificate to begin with, and what it says is checked below.
        leaf = ssl.get_server_certificate((invitation.host, invitation.port), timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EnrolmentError(
            f"the coordinator does not answer at {invitation.address}: {problem}; is 'clue-coordinator serve' running, "
            "and can this device reach it?"
        ) from None
    with _channel(invitation, leaf) as channel, _errors(invitation):
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        found = stub.GetAuthority(pb.GetAuthorityRequest(), timeout=_CONNECT_SECONDS).ca_pem
    if _fingerprint(found) != invitation.ca_digest:
        raise EnrolmentError(
            f"{invitation.address} is not the coordinator that made this token: its certificate authority is another; "
            "nothing was sent"
        )
    return found


def _channel(invitation: Invitation, roots_pem: str) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(roots_pem.encode())
    return grpc.secure_channel(invitation.address, credentials, options=_OPTIONS)


def _fingerprint(pem: str) -> bytes:
    """SHA-256 of the first certificate's DER; empty if there is more than one, or none."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return b""
    return certificates[0].fingerprint(hashes.SHA256()) if len(certificates) == 1 else b""


def _check_house(config: AgentConfig, invitation: Invitation) -> None:
    """Before anything is asked for: a device is not taken over by another installation by the way."""
    if not config.trust.exists():
        return
    try:
        root = parse_payload(read_envelope(load_trust(config).root, ROOT_TYPE), trust_pb2.Root)
    except ProtocolError as error:
        raise EnrolmentError(f"cannot use {config.trust}: {error}") from None
    if root.installation != invitation.installation:
        raise EnrolmentError(f"{config.home} belongs to another installation: enroll with another --home")


def _walk(envelopes: list[bytes], invitation: Invitation) -> TrustedRoot:
    if not envelopes:
        raise EnrolmentError("the coordinator's answer holds no root")
    try:
        pinned = pin_root(envelopes[0], invitation.root_digest)
        if pinned.root.installation != invitation.installation:
            raise EnrolmentError("the coordinator's answer holds the root of another installation")
        return walk_chain(pinned, envelopes[1:])
    except ProtocolError as error:
        raise EnrolmentError(f"the coordinator's roots are refused: {error}") from None


@contextmanager
def _errors(invitation: Invitation) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), str(error.details() or "")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            # Flower's own failures come with the same code, and a line of ours.
            text = details if details.startswith("'flwr") else f"it does not answer at {invitation.address}"
            raise EnrolmentError(f"the coordinator could not do it: {text}; run the same command again") from None
        raise EnrolmentError(f"the coordinator refuses: {' '.join(details.split())[:300]}", refused=True) from None


def enroll(
    invitation: Invitation,
    home: Path,
    existing: AgentConfig | None,
    device_id: str,
    make: Callable[[str], AgentConfig],
) -> tuple[AgentConfig, Trust]:
    """The whole of it.

    Args:
        invitation: from the token.
        home: the folder, which need not exist.
        existing: the home, if it is set up already.
        device_id: the name that the command line gives, or empty.
        make: sets the home up for a device of this name.

    Raises:
        AgentError, ProtocolError: in one line; what was not there before is as it was, or can be gone on with.
    """
    with EnrolmentClient(invitation) as client:
        offer = client.offer()
        name = device_id or (existing.device_id if existing else "") or offer.device_id
        if offer.device_id and name != offer.device_id:
            raise EnrolmentError(f"this token is for the device '{offer.device_id}', not '{name}'")
        if not name:
            raise EnrolmentError("the token names no device: choose a name with --device-id")
        if existing is not None and existing.device_id != name:
            raise EnrolmentError(f"{existing.home} is the home of '{existing.device_id}', not '{name}'")
        there = home.exists()
        config = existing or make(name)
        try:
            return config, client.enrol(config)
        except EnrolmentError as error:
            # Otherwise the home stays: the coordinator may know its keys already.
            if error.refused and existing is None:
                discard(config, keep_home=there)
            raise


def bundle_or_error(path: Path | None, home: Path) -> Path:
    """A first time needs a model; AgentError says so."""
    if path is None:
        raise AgentError(f"there is no agent in {home} yet: say which model it starts with, --model BUNDLE")
    return path
