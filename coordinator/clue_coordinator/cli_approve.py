"""``clue-coordinator request approve`` and ``reject``: an approver reads the document itself and signs it here."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from securesystemslib.signer import Key

from clue_coordinator.cli_keys import KeySource, PublicKeyFile, open_key
from clue_coordinator.cli_options import Home, JsonFlag, operator_client, print_result
from clue_coordinator.cli_requests import Comment, RequestId
from clue_coordinator.errors import ApprovalError
from clue_coordinator.plain import approvals_text, request_data
from clue_coordinator.root_files import RootFile, trusted_root
from clue_protocol.envelope import REQUEST_TYPE, parse_payload
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import ROOT_TYPE, TrustedRoot, add_signature, walk_chain
from clue_protocol.trust.envelopes import payload_digest, read_envelope
from clue_protocol.trust.keys import fingerprint
from clue_protocol.trust.request import EPOCH_SHIFT
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb

if TYPE_CHECKING:
    # It brings gRPC, which a command that only reads files need not wait for.
    from clue_coordinator.client import OperatorClient


def request_approve(
    request_id: RequestId,
    key: KeySource,
    home: Home = None,
    public_key: PublicKeyFile = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="FILE", help="A root of your own ('root export'): the coordinator's must follow."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a request says, and sign it with your key, on this machine; only the signature leaves it."""
    with operator_client(home) as client:
        answer = client.get_request_document(request_id)
        request = _read(answer.envelope, request_id)
        trusted = _root(client, root)
        _check(request, trusted)
        if not as_json:
            print("\n".join(_lines(request, answer, trusted)))
            if root is None:
                print("this was compared with the coordinator's root only; give a root of your own with --root FILE")
        if not yes and not typer.confirm("approve this?", default=False, err=True):
            raise typer.Exit(1)
        signer = open_key(key, public_key)
        _check_key(signer.public_key, trusted, request.fleet)
        signed = add_signature(answer.envelope, REQUEST_TYPE, signer)
        view = client.approve_request(request.request_id, signed)
    waits = view.state == pb.REQUEST_STATE_AWAITING_APPROVAL
    line = f"request {view.request_id}: {approvals_text(view)}; " + ("it waits for more" if waits else "it starts")
    print_result(as_json, request_data(view), line)


def request_reject(request_id: RequestId, home: Home = None, comment: Comment = "", as_json: JsonFlag = False) -> None:
    """Say no to a request that waits for approval: it is cancelled."""
    with operator_client(home) as client:
        view = client.reject_request(request_id, comment)
    print_result(as_json, request_data(view), f"request {view.request_id} is cancelled: {view.reason}")


def _read(envelope: bytes, asked: str) -> forget_pb2.ForgetRequest:
    """What will be signed, from its own bytes; ApprovalError if it is not what was asked for."""
    try:
        request = parse_payload(read_envelope(envelope, REQUEST_TYPE), forget_pb2.ForgetRequest)
    except ProtocolError as error:
        raise ApprovalError(f"what the coordinator gave is no request: {error}") from None
    if not request.request_id.startswith(asked):
        raise ApprovalError(f"the coordinator gave request {request.request_id}: that is not the one asked for")
    return request


def _root(client: "OperatorClient", own: Path | None) -> TrustedRoot:
    """The newest root; with one of the approver's own, only if it follows from that."""
    if own is None:
        return RootFile(client.get_root().envelope).trusted()
    known = trusted_root(own)
    answer = client.get_root(after=known.root.version)
    try:
        newest = walk_chain(known, answer.successors)
    except ProtocolError as error:
        raise ApprovalError(f"the coordinator's root does not follow {own}: {error}") from None
    if newest.digest != payload_digest(read_envelope(answer.envelope, ROOT_TYPE)):
        raise ApprovalError(f"the coordinator's root does not follow {own}")
    return newest


def _check(request: forget_pb2.ForgetRequest, trusted: TrustedRoot) -> None:
    root = trusted.root
    if request.installation != root.installation:
        raise ApprovalError("the request is of another installation than the root")
    if request.fleet not in root.fleets:
        raise ApprovalError(f"root version {root.version} has no fleet '{request.fleet}'")
    if request.sequence >> EPOCH_SHIFT != root.fleets[request.fleet].epoch:
        raise ApprovalError("the request's number is of another epoch than the root says: devices would refuse it")


def _check_key(key: Key, trusted: TrustedRoot, fleet: str) -> None:
    # The coordinator says the same; here nothing has left the machine yet.
    if fingerprint(key) in trusted.root.revoked_fingerprints():
        raise ApprovalError(f"key {key.keyid[:16]} was revoked: it approves nothing any more")
    if fingerprint(key) not in {fingerprint(other) for other in trusted.root.fleets[fleet].request.keys}:
        raise ApprovalError(f"key {key.keyid[:16]} does not decide over fleet {fleet}, by root {trusted.root.version}")


def _lines(
    request: forget_pb2.ForgetRequest, answer: pb.GetRequestDocumentResponse, trusted: TrustedRoot
) -> Iterator[str]:
    digest = payload_digest(read_envelope(answer.envelope, REQUEST_TYPE)).hex()
    policy = request.policy
    yield f"request {request.request_id}, sha256 {digest}"
    yield f"  forget       {request.forget_class!r}, for ever"
    yield f"  fleet        {request.fleet} of installation {request.installation}, by root {trusted.root.version}"
    yield f"  model        {request.model_digest or 'any'}"
    method = request.method or "the device's choice"
    settings = f" {request.hyperparameters_json}" if request.hyperparameters_json else ""
    yield f"  method       {method}{settings}, seed {request.seed}"
    yield (
        f"  policy       UA at most {100 * policy.max_ua:g} %, RA at most {100 * policy.max_ra_drop:g} points lower, "
        f"{max(request.max_attempts, 1)} attempt(s)"
    )
    yield f"  number       {request.sequence}"
    yield f"  made         {request.issued_at.ToJsonString()}, expires {request.expires_at.ToJsonString()}"
    if request.share_update:
        yield "  updates      devices may hand out what changed in their models"
    if request.HasField("patch"):
        yield f"  patch        {request.patch.digest.hex()} of request {request.patch.source_request_id}"
    view = answer.view
    yield "  devices      the document holds for every device of the fleet; the coordinator says it will ask"
    where = f" that match {view.target.where}" if view.target.where else ""
    later = ", and those that come to match later" if view.target.continuous else ""
    yield f"               {sum(view.counts.values())} device(s){where}{later}, for {view.created_by}"
    yield f"  so far       {approvals_text(view)}"
