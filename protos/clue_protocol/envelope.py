"""Signed documents: DSSE envelopes around serialised protobuf messages.

A signature covers the payload bytes and their type, so nothing has to be canonicalised and
a receipt can never be taken for a request. Parsing happens after verification.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from clue_protocol.errors import EnvelopeError, SignatureError

REQUEST_TYPE = "application/vnd.clue.forget-request.v1+protobuf"
RECEIPT_TYPE = "application/vnd.clue.receipt.v1+protobuf"
MAX_ENVELOPE_BYTES = 1 << 20
# What a device may hand out beside a receipt.
MAX_UPDATE_BYTES = 32 << 20

M = TypeVar("M", bound=Message)


def sign_message(message: Message, payload_type: str, signers: Sequence[Signer]) -> bytes:
    """Serialise ``message`` and wrap it in an envelope signed by every signer; returns JSON bytes."""
    envelope = Envelope(message.SerializeToString(deterministic=True), payload_type, {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()


def open_message(data: bytes, payload_type: str, message_class: type[M], keys: Sequence[Key], threshold: int = 1) -> M:
    """Verify an envelope and parse its payload.

    Args:
        data: the envelope as JSON bytes.
        payload_type: the only type that is accepted.
        message_class: protobuf class of the payload.
        keys: trusted public keys.
        threshold: number of distinct keys that must have signed.

    Raises:
        EnvelopeError: not an envelope of that type and message.
        SignatureError: fewer than ``threshold`` of ``keys`` signed it.
    """
    envelope = _parse(data)
    if envelope.payload_type != payload_type:
        raise EnvelopeError(f"the envelope holds {envelope.payload_type!r}, expected {payload_type!r}")
    if not envelope.signatures:
        raise SignatureError("the envelope carries no signature")
    try:
        envelope.verify(list(keys), threshold)
    except (VerificationError, ValueError):
        raise SignatureError(f"the envelope is not signed by {threshold} of the {len(keys)} trusted key(s)") from None
    return parse_payload(envelope, message_class)


def peek_message(data: bytes, payload_type: str, message_class: type[M]) -> M:
    """Parse the payload WITHOUT verifying it: only for showing what an untrusted envelope claims."""
    envelope = _parse(data)
    if envelope.payload_type != payload_type:
        raise EnvelopeError(f"the envelope holds {envelope.payload_type!r}, expected {payload_type!r}")
    return parse_payload(envelope, message_class)


def envelope_digest(data: bytes) -> bytes:
    """SHA-256 of the envelope byte for byte (32 bytes): names a request in receipts and journals."""
    return hashlib.sha256(data).digest()


def load_envelope(data: bytes) -> Envelope:
    """The envelope in ``data``, neither verified nor looked into; EnvelopeError if it is too large or none."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(f"the envelope is larger than {MAX_ENVELOPE_BYTES} bytes")
    try:
        return Envelope.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnvelopeError(f"not a DSSE envelope: {type(error).__name__}") from None


def parse_payload(envelope: Envelope, message_class: type[M]) -> M:
    """The payload as a message; EnvelopeError if it is none."""
    message = message_class()
    try:
        message.ParseFromString(envelope.payload)
    except DecodeError:
        raise EnvelopeError(f"the payload is not a {message_class.DESCRIPTOR.name}") from None
    return message


def _parse(data: bytes) -> Envelope:
    envelope = load_envelope(data)
    if not isinstance(envelope.payload_type, str):
        raise EnvelopeError("not a DSSE envelope: payloadType is not text")
    return envelope
