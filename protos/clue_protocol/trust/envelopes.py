"""Envelopes that several people sign, each on a machine of their own.

The payload is serialised once. Whoever signs later adds to the signatures and leaves the payload's bytes alone, so it
does not matter who signs first or with which version of the software.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from google.protobuf.message import Message
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from clue_protocol.envelope import load_envelope
from clue_protocol.errors import EnvelopeError
from clue_protocol.trust.errors import SignerError, ThresholdError
from clue_protocol.trust.keys import checked_key, fingerprint

ROOT_TYPE = "application/vnd.clue.root.v1+protobuf"
TIME_TYPE = "application/vnd.clue.time.v1+protobuf"


def unsigned(message: Message, payload_type: str) -> bytes:
    """``message`` in an envelope that nobody has signed yet, as JSON bytes."""
    return _dump(Envelope(message.SerializeToString(deterministic=True), payload_type, {}))


def read_envelope(data: bytes, payload_type: str) -> Envelope:
    """Parse an envelope without verifying it.

    Raises:
        EnvelopeError: too large, not DSSE, two signatures under one key id, or of another type.
    """
    envelope = load_envelope(data)
    if envelope.payload_type != payload_type:
        raise EnvelopeError(f"the envelope holds {envelope.payload_type!r}, expected {payload_type!r}")
    if not all(isinstance(keyid, str) for keyid in envelope.signatures):
        raise EnvelopeError("not a DSSE envelope: a key id is not text")
    return envelope


def payload_digest(envelope: Envelope) -> bytes:
    """SHA-256 of the payload (32 bytes): stays the same when a signature is added."""
    return hashlib.sha256(envelope.payload).digest()


def add_signature(data: bytes, payload_type: str, signer: Signer) -> bytes:
    """The envelope with one more signature; signing twice with one key leaves one signature.

    Raises:
        EnvelopeError: ``data`` is not an envelope of ``payload_type``.
        PublicKeyError: the signer's public key is not in normal form.
        SignerError: the signer failed, or its signature does not verify.
    """
    envelope = read_envelope(data, payload_type)
    key = checked_key(signer.public_key)
    try:
        envelope.sign(signer)
    except Exception as error:  # signers of hardware and clouds raise what they like
        raise SignerError(f"the key {key.keyid[:16]} could not sign: {_one_line(error)}") from None
    # The wrong key in a token, or one that was exchanged in the cloud, shows here and not on the devices.
    if not signers(envelope, [key]):
        raise SignerError(f"what was signed with the key {key.keyid[:16]} does not verify with its public key")
    return _dump(envelope)


def merge_signatures(first: bytes, second: bytes, payload_type: str) -> bytes:
    """One envelope with the signatures of both; where both hold one under the same key id, that of ``first`` stays.

    Raises:
        EnvelopeError: one is not an envelope of ``payload_type``, or they hold different payloads.
    """
    one, two = read_envelope(first, payload_type), read_envelope(second, payload_type)
    if one.payload != two.payload:
        raise EnvelopeError("the two envelopes hold different documents: signatures cannot be put together")
    return _dump(Envelope(one.payload, payload_type, {**two.signatures, **one.signatures}))


def single_signatures(data: bytes, payload_type: str) -> dict[str, bytes]:
    """By key id, the envelope with that one signature: the document of one person's approval."""
    envelope = read_envelope(data, payload_type)
    one_each = {keyid: {keyid: signature} for keyid, signature in envelope.signatures.items()}
    return {keyid: _dump(Envelope(envelope.payload, payload_type, one)) for keyid, one in one_each.items()}


def signers(envelope: Envelope, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Those of ``keys`` whose signature the envelope carries, each public key once."""
    found: dict[str, Key] = {}
    for key in keys:
        try:
            envelope.verify([key], 1)
        except VerificationError:
            continue
        found.setdefault(fingerprint(key), key)
    return tuple(found.values())


def require_threshold(envelope: Envelope, keys: Sequence[Key], threshold: int, what: str) -> tuple[Key, ...]:
    """The signers among ``keys``; ThresholdError if they are fewer than ``threshold`` (at least 1)."""
    present = signers(envelope, keys)
    if len(present) < max(threshold, 1):
        raise ThresholdError(
            f"{what} is signed by {len(present)} of the {len(keys)} keys that may, {threshold} must", len(present)
        )
    return present


def _dump(envelope: Envelope) -> bytes:
    body = envelope.to_dict()
    body["signatures"].sort(key=lambda signature: signature["keyid"])
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
